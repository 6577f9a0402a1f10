"""Swift-SVD: the best low rank for the inputs that were seen, in closed form: the main directions of the outputs.

    W C W^T = V L V^T,   B = V_k,   A = V_k^T W;   the squared output error is the sum of the eigenvalues left out

Source: 2604.01609.  No inverse and no whitening: C may be singular, as it is when fewer tokens than inputs were seen, and
the optimum is attained all the same.  Where a weight has more outputs than inputs the same directions come from the smaller
Gram matrix: with C = S S^T, the eigenvectors of (W S)^T (W S) (I x I in place of O x O), and B from the QR of W S V.
The eigenvalues are squares of singular values, so components below about 1e-8 of the largest are noise: that costs
1e-16 of the error, not of a component.
Differs from the authors': float64 throughout (theirs float32), C from calibration in place of outputs aggregated again for
each weight, and `ridge`: C + ridge * mean(diag C), which spares what the text did not show. 0 is the paper's.

Shapes: W_OI, C_II, A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..seam import Stats
from . import Decomposition, Factors
from ._shared import check_share, damped, moment, root, signed, tails


@dataclass(frozen=True)
class Swift:
    """ridge: added to C, as a part of its mean diagonal; 0 is exact for the text seen, 0.01 spares unseen directions."""

    ridge: float = 0.0

    def __post_init__(self):
        check_share("ridge", self.ridge, 10, "0 is the paper's; 0.01 helps where the text is short")


def solve(cfg: Swift, W_OI: Tensor, stats: Stats | None, rank: int) -> Factors:
    """Factors of the given rank; errors are output errors (of the damped C where there is a ridge)."""
    O, I = W_OI.shape
    C = damped(moment(stats.moment_II, W_OI), cfg.ridge)
    if O <= I:
        G = W_OI @ C @ W_OI.T
        values, vectors = torch.linalg.eigh((G + G.T) / 2)
        B = vectors.flip(1)[:, :rank]
    else:
        Y = W_OI @ root(C)
        values, vectors = torch.linalg.eigh(Y.T @ Y)
        # QR where dividing by the singular values would do for large ones alone; a zero column becomes an orthonormal one
        B = torch.linalg.qr(Y @ vectors.flip(1)[:, :rank]).Q
    A, B = signed(B.T @ W_OI, B)
    return Factors(A.contiguous(), B.contiguous(), tails(values.flip(0)))


DECOMPOSITION = Decomposition("swift", Swift, solve, needs=("moment_II",), paper="2604.01609")
