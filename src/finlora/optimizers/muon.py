"""Muon: each matrix of a linear steps along its momentum with all singular values made alike.

    m <- mu m + (1 - mu) g,   U S V^T = (1 - mu) g + mu m
    p <- p (1 - lr decay) - lr 0.2 sqrt(max(rows, columns)) UV^T

Source: Jordan 2024 (kellerjordan.github.io/posts/muon); the factor 0.2 sqrt(max), which gives an entry the size of
AdamW's steps so that the learning rate carries over, is of 2502.16982. UV^T comes from five steps of a Newton-Schulz
iteration whose coefficients are tuned for speed, in fp32: the singular values of a random oblong matrix end between
0.68 and 1.14, not at 1, and those near 0 stay below. Vectors, embeddings and heads go by AdamW.

On a factor A or B the step is the same in every rotated basis (Q A, B Q^T), but not in a scaled one: a factor twice as
large gets the same step, which moves B A half as much in proportion.

Shapes: p_MN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FinloraError
from . import Optimizer, Pair
from ._apart import Apart, adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


@dataclass(frozen=True)
class Muon:
    """momentum: decay of the gradient's running mean. nesterov: look one step ahead along it."""

    momentum: float = 0.95
    nesterov: bool = True

    def __post_init__(self):
        if isinstance(self.momentum, bool) or not isinstance(self.momentum, int | float) or not 0 <= self.momentum < 1:
            raise FinloraError(f"momentum must be in [0, 1), got {self.momentum!r}", "0.95 is usual")


def orthogonal(m_MN: Tensor) -> Tensor:
    """About UV^T of m = U S V^T, by Newton-Schulz; zero stays zero."""
    a, b, c = COEFFICIENTS
    tall = m_MN.shape[0] > m_MN.shape[1]
    x = m_MN.t() if tall else m_MN
    x = x / torch.linalg.matrix_norm(x).clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(STEPS):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.t() if tall else x


class Orthogonal(Apart):
    """Muon for matrices of linears, AdamW for the rest."""

    cfg: Muon

    def advance(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        state, g = self.state[p], p.grad
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(g, 1 - self.cfg.momentum)
        m = torch.lerp(g, state["momentum"], self.cfg.momentum) if self.cfg.nesterov else state["momentum"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(orthogonal(m), alpha=-0.2 * max(p.shape) ** 0.5 * group["lr"])


def make(cfg: Muon, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.Optimizer:
    """Muon over the matrices of linears, AdamW over all else."""
    made = adamw(groups, settings, Orthogonal)
    made.cfg = cfg
    made.keep(p for group in groups if group.get("inner") for p in group["params"] if p.ndim == 2)
    return made


OPTIMIZER = Optimizer("muon", Muon, make, paper="2502.16982")
