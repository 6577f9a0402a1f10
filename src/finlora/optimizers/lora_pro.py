"""LoRA-Pro: AdamW of those factor gradients whose joint step comes nearest to the full gradient's.

A step (dA, dB) moves the weight by s (dB A + B dA). Of all such moves the one nearest to the full gradient G, in least
squares, is G - (I - P_B) G (I - P_A), with P_B and P_A the projections onto B's columns and A's rows; it is reached
from the factors' own gradients g_A = s B^T G and g_B = s G A^T alone:

    dA = (B^T B)^-1 g_A / s^2 + X A
    dB = (I - B (B^T B)^-1 B^T) g_B (A A^T)^-1 / s^2 - B X

for every X, which moves weight between the factors without moving B A. X is chosen so that (dA, dB) stays nearest to
(g_A, g_B): B^T B X + X A A^T = -(B^T B)^-1 g_A A^T / s^2, solved in the eigenvectors of both sides.

Source: 2407.18242. The paper keeps Adam's moments of the full-size gradient, O x I numbers twice over, which is the
memory that low rank was to save; here AdamW follows the factors' adjusted gradients, so the step is the least-squares
one in direction but not in size. B = 0 at the start is no special case: the Gram matrices are damped.

Shapes: A_RI, B_OR, g_RI, g_OR, X_RR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import Optimizer, Pair
from ._apart import Adjusted, adamw
from .riemannian import check_damping


@dataclass(frozen=True)
class LoRAPro:
    """damping: added to the eigenvalues of B^T B and A A^T before they are inverted."""

    damping: float = 1e-2

    def __post_init__(self):
        check_damping(self.damping)


def equivalent(
    A_RI: Tensor, B_OR: Tensor, g_RI: Tensor, g_OR: Tensor, s: float, damping: float
) -> tuple[Tensor, Tensor]:
    """(dA, dB) as in the module's equations; damping 0 asks for factors of full rank."""
    b_R, U = torch.linalg.eigh(B_OR.t() @ B_OR)
    a_R, V = torch.linalg.eigh(A_RI @ A_RI.t())
    b_R, a_R = b_R.clamp(min=0) + damping, a_R.clamp(min=0) + damping
    plain_RI = (U / b_R) @ (U.t() @ g_RI) / s**2
    X = U @ (-(U.t() @ (plain_RI @ A_RI.t()) @ V) / (b_R[:, None] + a_R)) @ V.t()
    across_OR = g_OR - B_OR @ ((U / b_R) @ (U.t() @ (B_OR.t() @ g_OR)))
    return plain_RI + X @ A_RI, (across_OR @ V / a_R) @ V.t() / s**2 - B_OR @ X


class Proper(Adjusted):
    """AdamW of the adjusted gradients."""

    damping: float

    def adjust(self, A_RI: Tensor, B_OR: Tensor, g_RI: Tensor, g_OR: Tensor, s: float) -> tuple[Tensor, Tensor]:
        return equivalent(A_RI, B_OR, g_RI, g_OR, s, self.damping)


def make(cfg: LoRAPro, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.AdamW:
    """AdamW over the groups that sees the pairs' gradients adjusted."""
    made = adamw(groups, settings, Proper)
    made.pairs, made.damping = tuple(pairs), cfg.damping
    return made


OPTIMIZER = Optimizer("lora_pro", LoRAPro, make, paper="2407.18242", paired=True)
