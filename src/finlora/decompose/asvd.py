"""ASVD: truncated SVD after each input is scaled by how large it usually is.

    d_j = (size of x_j)^alpha,   W diag(d) = U S V^T,   B = U_k S_k^{1/2},   A = S_k^{1/2} V_k^T diag(d)^{-1}

Source: 2312.05821.  It sees the diagonal of C = E[x x^T] and nothing of how inputs go together.
Differs from the authors': the size of x_j is its root mean square, C_jj^{1/2}, where theirs is mean |x_j| (calibration keeps
second moments; for a Gaussian input they differ by the factor 0.8, which is the same for all inputs and drops out); the
whole SVD, where theirs is a randomised one that is far from the optimum at such ranks.  An input that is never other than
zero counts as 1e-6 of the largest, so that its column can be given back.

Shapes: W_OI, C_II, A_RI, B_OR; d_I.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..seam import Stats
from . import Decomposition, Factors
from ._shared import check_share, moment, split


@dataclass(frozen=True)
class ASVD:
    """alpha: 0 is plain SVD, 1 scales by the size itself, 0.5 is the paper's."""

    alpha: float = 0.5

    def __post_init__(self):
        check_share("alpha", self.alpha, 2, "0.5 is the paper's")


def solve(cfg: ASVD, W_OI: Tensor, stats: Stats | None, rank: int) -> Factors:
    """Factors of the given rank; errors are |(W - B A) diag(d)|^2."""
    size = moment(stats.moment_II, W_OI).diagonal().clamp(min=0).sqrt()
    d = size.clamp(min=1e-6 * float(size.max())).pow(cfg.alpha)
    return split(W_OI * d, rank, undo_in=d)


DECOMPOSITION = Decomposition("asvd", ASVD, solve, needs=("moment_II",), paper="2312.05821")
