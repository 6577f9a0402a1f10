"""FWSVD: truncated SVD after each input is scaled by how much the loss minds its weights.

    d_i = (sum_o (dL/dW_oi)^2)^{1/2},   W diag(d) = U S V^T,   B = U_k S_k^{1/2},   A = S_k^{1/2} V_k^T diag(d)^{-1}

Source: 2207.00112 (Fisher-weighted SVD). There x W is written, so that the rows which share one importance are inputs: the
columns of a weight that is written (out, in).
Differs from the authors': they sum the squared gradients of single batches, an estimate of the Fisher information;
calibration keeps the gradient of the mean loss alone, whose square is a coarser one (contributions of both signs cancel before
they are squared).  An input without gradient counts as 1e-6 of the largest, so that it can be given back.

Shapes: W_OI, grad_OI, A_RI, B_OR; d_I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..seam import Stats
from . import Decomposition, Factors, wide
from ._shared import known, split


@dataclass(frozen=True)
class FWSVD:
    """Nothing to choose."""


def solve(cfg: FWSVD, W_OI: Tensor, stats: Stats | None, rank: int) -> Factors:
    """Factors of the given rank; errors are |(W - B A) diag(d)|^2."""
    known(stats.grad_OI, "gradients of a linear's weight")
    d = wide(stats.grad_OI.to(W_OI.device)).norm(dim=0)
    most = float(d.max())
    d = d.clamp(min=1e-6 * most) if most > 0 else torch.ones_like(d)
    return split(W_OI * d, rank, undo_in=d)


DECOMPOSITION = Decomposition("fwsvd", FWSVD, solve, needs=("grad_OI",), paper="2207.00112")
