"""LoRA-RITE: an adaptive step of B A that is the same however the product is factored.

With B = U_B R_B (U_B orthonormal) the gradient of A is cleared of B's size and shape, and preconditioned in U_B's
basis:

    g = R_B^-T g_A  (= s U_B^T G),   V <- b2 T V T^T + (1 - b2) g g^T / I,   S = (V + rho I)^-1/2 g
    M <- b1 T M + (1 - b1) S,        A <- A - lr R_B^-1 M,                   T = U_B^T (U_B of the last step)

and likewise B, with A's rows in place of B's columns. T carries the moments into today's basis; what V loses by that is
kept as rho, the largest fall of an eigenvalue, so that the step never grows by forgetting.

Source: 2410.20625; betas are corrected for their start as in the authors' code. How we differ: theirs falls to NaN,
read as 0, where an eigenvalue rounds below 0; here eigenvalues count as at least `floor` of the largest. Where B is 0,
at the start, R_B has no inverse and A waits for B.  The weight moves at the rate lr whatever the size of B and A, so
the first steps are large against a young adapter: warm up.  train.clip measures gradients as the factors have them,
which depends on the factoring; 0 leaves the invariance whole.

Shapes: A_RI, B_OR, U_OR or U_IR, V_RR, M as the parameter.
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


@dataclass(frozen=True)
class LoRARite:
    """floor: eigenvalues of the second moment count as at least this share of the largest."""

    floor: float = 1e-6

    def __post_init__(self):
        if isinstance(self.floor, bool) or not isinstance(self.floor, int | float) or not 0 < self.floor < 1:
            raise FinloraError(f"floor must be between 0 and 1, got {self.floor!r}", "1e-6 is usual")


def basis(factor_NR: Tensor) -> tuple[Tensor, Tensor]:
    """(U_NR, R^-1_RR) of a factor = U R; directions that it does not have are 0 in the inverse."""
    U, R = torch.linalg.qr(factor_NR)
    return U, torch.linalg.pinv(R, rtol=1e3 * torch.finfo(R.dtype).eps)


def corrected(beta: float, step: int) -> float:
    """The decay at a step (from 1) that makes a running mean, begun at 0, the mean of what it has seen."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


class Invariant(Apart):
    """LoRA-RITE for the pairs, AdamW for the rest."""

    cfg: LoRARite
    partner: dict[nn.Parameter, nn.Parameter]
    rows: dict[nn.Parameter, bool]  # whether the rank runs over the parameter's rows, as in A

    def before(self, taken: dict[nn.Parameter, Tensor]) -> None:
        # both factors are read before either moves
        self.bases = {p: basis(self.partner[p].t() if not self.rows[p] else self.partner[p]) for p in taken}

    def advance(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        (U, inverse), state = self.bases.pop(p), self.state[p]
        g_RN = p.grad if self.rows[p] else p.grad.t()
        g_RN, (beta1, beta2) = inverse.t() @ g_RN, group["betas"]
        rank = len(g_RN)
        if not state:
            state["step"] = torch.zeros(())
            state["basis"], state["first"] = torch.zeros_like(U), torch.zeros_like(g_RN)
            state["second"], state["lost"] = g_RN.new_zeros(rank, rank), g_RN.new_zeros(())
        state["step"] += 1
        step = int(state["step"])
        b1, b2 = corrected(beta1, step), corrected(beta2, step)
        T = U.t() @ state["basis"]
        moved = T @ state["second"] @ T.t()
        fell = torch.linalg.eigvalsh(state["second"]) - torch.linalg.eigvalsh(moved)
        lost = b2 * (state["lost"] + fell.max().clamp(min=0))
        V = b2 * moved + (1 - b2) * (g_RN @ g_RN.t()) / g_RN.shape[1]
        values, vectors = torch.linalg.eigh((V + V.t()) / 2)
        values = values.clamp(min=0) + lost
        size = values.clamp(min=self.cfg.floor * values.max()).sqrt() + group["eps"]
        S = (vectors / size) @ (vectors.t() @ g_RN)
        M = b1 * (T @ state["first"]) + (1 - b1) * S
        state.update(basis=U.contiguous(), first=M, second=V, lost=lost)  # as a file holds it, so that a resumed run adds in the same order
        change = inverse @ M
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(change if self.rows[p] else change.t(), alpha=-group["lr"])


def make(cfg: LoRARite, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.Optimizer:
    """LoRA-RITE over the pairs, AdamW over all else."""
    made = adamw(groups, settings, Invariant)
    made.cfg, made.partner, made.rows = cfg, {}, {}
    for A, B, _ in pairs:
        made.partner.update({A: B, B: A})
        made.rows.update({A: True, B: False})
    made.keep(made.partner)
    return made


OPTIMIZER = Optimizer("lora_rite", LoRARite, make, paper="2410.20625", paired=True, invariant=True)
