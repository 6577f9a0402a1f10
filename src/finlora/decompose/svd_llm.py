"""SVD-LLM: truncated SVD after the inputs are whitened by a Cholesky factor of their second moment.

    C = L L^T,   W L = U S V^T,   B = U_k S_k^{1/2},   A = S_k^{1/2} V_k^T L^{-1}

Source: 2403.07378.  The optimum in exact arithmetic, the same as `swift`'s; on a C of nearly lower rank the inverse of L
spreads rounding, and on one that is singular C is first raised as the authors do, C + (jitter - lambda_min) 1, which is
another problem's optimum.
Differs from the authors': C is a mean, where theirs is a sum over tokens, so their jitter of 1e-6 is taken as a part of C's
mean diagonal.  Their update of U in closed form, B = W C' A^T (A C' A^T)^{-1}, gives the same B again where C' is the C of
the whitening; it matters where C' is of the compressed model's inputs, and there decomposing by C' from the beginning
(`sequential`) is at least as good.

Shapes: W_OI, C_II, L_II, A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..seam import Stats
from . import Decomposition, Factors
from ._shared import check_share, moment, signed, tails


@dataclass(frozen=True)
class SVDLLM:
    """jitter: how far above zero a singular C is raised, as a part of its mean diagonal."""

    jitter: float = 1e-6

    def __post_init__(self):
        check_share("jitter", self.jitter, 1, "1e-6 is usual")


def whitening(C_II: Tensor, jitter: float) -> Tensor:
    """L with L L^T = C, or = C raised until there is one."""
    L, bad = torch.linalg.cholesky_ex(C_II)
    one = torch.eye(len(C_II)).to(C_II)
    least = float(torch.linalg.eigvalsh(C_II)[0]) if int(bad) else 0.0
    # where the jitter is below the rounding of the eigenvalues it takes more of it: tenfold each time
    step = max(jitter, torch.finfo(torch.float64).eps) * float(C_II.diagonal().mean())
    while int(bad):
        L, bad = torch.linalg.cholesky_ex(C_II + (step - min(least, 0.0)) * one)
        step *= 10
    return L


def solve(cfg: SVDLLM, W_OI: Tensor, stats: Stats | None, rank: int) -> Factors:
    """Factors of the given rank; errors are output errors (of the raised C where it was raised)."""
    L = whitening(moment(stats.moment_II, W_OI), cfg.jitter)
    U, S, V = torch.linalg.svd(W_OI @ L, full_matrices=False)
    half = S[:rank].sqrt()
    rows = torch.linalg.solve_triangular(L, half[:, None] * V[:rank], upper=False, left=False)
    return Factors(*signed(rows, U[:, :rank] * half), tails(S.square()))


DECOMPOSITION = Decomposition("svd_llm", SVDLLM, solve, needs=("moment_II",), paper="2403.07378")
