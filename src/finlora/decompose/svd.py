"""Truncated SVD of the weight itself, blind to what its inputs are.

    W = U S V^T,   B = U_k S_k^{1/2},   A = S_k^{1/2} V_k^T

The best approximation of W in the Frobenius norm (Eckart and Young 1936), which is not what a model asks for: directions
that no input ever takes count as much as those that all take.  Here as the floor for the others.

Shapes: W_OI, A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..seam import Stats
from . import Decomposition, Factors
from ._shared import split


@dataclass(frozen=True)
class SVD:
    """Nothing to choose."""


def solve(cfg: SVD, W_OI: Tensor, stats: Stats | None, rank: int) -> Factors:
    """Factors of the given rank; errors are |W - B A|^2."""
    return split(W_OI, rank)


DECOMPOSITION = Decomposition("svd", SVD, solve, paper="")
