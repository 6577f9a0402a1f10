"""Riemannian preconditioning: AdamW of each factor's gradient measured in the other factor's metric.

    g_A <- (B^T B + d I)^-1 g_A,   g_B <- g_B (A A^T + d I)^-1,   then AdamW

Source: 2402.02347 (ScaledAdamW). Without damping and without Adam, the step of B A is to first order the same for every
(R A, B R^-1): plain gradient descent moves the larger factor's partner more.

What is lost of that here, and why: Adam divides each entry by its own past size, which undoes part of the
preconditioning and depends on the basis. And at the start B = 0, where the metric is damping alone; a small d (the
paper's 1e-6) then magnifies the first gradients of A by up to 1 / (2 sqrt d), and Adam's second moment remembers it for
a thousand steps, during which A hardly learns. The default d = 0.01 keeps that below 5.

Shapes: A_RI, B_OR, g_RI, g_OR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FinloraError
from . import Optimizer, Pair
from ._apart import Adjusted, adamw, damped_inverse


@dataclass(frozen=True)
class Riemannian:
    """damping: added to the eigenvalues of B^T B and A A^T before they are inverted."""

    damping: float = 1e-2

    def __post_init__(self):
        check_damping(self.damping)


def check_damping(value: Any) -> None:
    """Raises: FinloraError where it is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise FinloraError(f"damping must be a finite number above 0, got {value!r}", "0.01 is usual")


def precondition(A_RI: Tensor, B_OR: Tensor, g_RI: Tensor, g_OR: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """((B^T B + d I)^-1 g_A, g_B (A A^T + d I)^-1)."""
    return damped_inverse(B_OR.t() @ B_OR, damping) @ g_RI, g_OR @ damped_inverse(A_RI @ A_RI.t(), damping)


class Preconditioned(Adjusted):
    """AdamW of the preconditioned gradients."""

    damping: float

    def adjust(self, A_RI: Tensor, B_OR: Tensor, g_RI: Tensor, g_OR: Tensor, s: float) -> tuple[Tensor, Tensor]:
        return precondition(A_RI, B_OR, g_RI, g_OR, self.damping)


def make(cfg: Riemannian, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.AdamW:
    """AdamW over the groups that sees the pairs' gradients preconditioned."""
    made = adamw(groups, settings, Preconditioned)
    made.pairs, made.damping = tuple(pairs), cfg.damping
    return made


OPTIMIZER = Optimizer("riemannian", Riemannian, make, paper="2402.02347", paired=True)
