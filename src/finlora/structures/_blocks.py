"""Two block-diagonal matrices with a permutation between them: every block of W, of H by G, is a product of `rank`.

    W_hg = L_hg R_hg,   y_h = sum_g L_hg (R_hg x_g)

The inputs are cut into G runs and the outputs into H. The first matrix maps each run of inputs to rank values for each
run of outputs, the permutation brings those together, the second matrix maps them out. Both are kept as plain matrices,
block above block, so that codecs take them as any other.

Shapes: x (..., I), y (..., O), W_OI, R (G*H*T, I/G) with rows ordered (g, h, t), L (O, G*T) with rows ordered (h, o)
and columns (g, t); T the rank; C_II.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _factors


def apply(R: Tensor, L: Tensor, x: Tensor, rank: int) -> Tensor:
    """x_BTI -> y_BTO in two batched products."""
    G, H = counts(R, L, rank)
    flat = x.reshape(-1, G, R.shape[1]).transpose(0, 1)
    z = torch.bmm(flat, R.view(G, H * rank, -1).mT)  # (G, N, H*T)
    z = z.view(G, -1, H, rank).permute(2, 1, 0, 3).reshape(H, -1, G * rank)
    y = torch.bmm(z, L.view(H, -1, G * rank).mT)  # (H, N, O/H)
    return y.transpose(0, 1).reshape(*x.shape[:-1], L.shape[0])


def counts(R: Tensor, L: Tensor, rank: int) -> tuple[int, int]:
    """(G, H): runs of inputs and of outputs."""
    return L.shape[1] // rank, R.shape[0] // L.shape[1]


def dense(R: Tensor, L: Tensor, rank: int) -> Tensor:
    """W_OI."""
    G, H = counts(R, L, rank)
    blocks = torch.einsum("hogt,ghti->hogi", L.view(H, -1, G, rank), R.view(G, H, rank, -1))
    return blocks.reshape(L.shape[0], -1)


def joined(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """(R, L) of factors by block: A (H, G, T, I/G), B (H, G, O/H, T)."""
    H, G, T, i = A.shape
    R = A.transpose(0, 1).reshape(G * H * T, i)
    return R, B.transpose(1, 2).reshape(H * B.shape[2], G * T)


def parted(R: Tensor, L: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The other way round: (A, B) by block."""
    G, H = counts(R, L, rank)
    return R.view(G, H, rank, -1).transpose(0, 1), L.view(H, -1, G, rank).transpose(1, 2)


def fit(W_OI: Tensor, C_II: Tensor | None, G: int, H: int, rank: int) -> tuple[Tensor, Tensor]:
    """(R, L), balanced, in W's dtype, which should be float64.

    Without C each block is its own truncated SVD, and that is the optimum (the Monarch projection, 2204.00595). With C the
    inputs of different runs are correlated and there is no closed form for both: R from each block's own optimum, or from
    the projection, then L exactly; the better of the two, so never worse than the projection.
    """
    O, I = W_OI.shape
    blocks = W_OI.view(H, O // H, G, I // G).transpose(1, 2)
    plain = joined(*_factors.best(blocks, None, rank))
    if C_II is None:
        return plain
    own = torch.stack([C_II[run, run] for run in (slice(g * (I // G), (g + 1) * (I // G)) for g in range(G))])
    starts = (plain, joined(*_factors.best(blocks, own, rank)))
    tried = [(R, last(R, W_OI, C_II, G, H, rank)) for R, _ in starts]
    R, L = min(tried, key=lambda pair: _factors.loss(W_OI, dense(*pair, rank), C_II))
    return joined(*_factors.balanced(*parted(R, L, rank)))


def last(R: Tensor, W_OI: Tensor, C_II: Tensor, G: int, H: int, rank: int) -> Tensor:
    """L with the least E|x W^T - y|^2 for this R, in closed form for each run of outputs."""
    rows = R.view(G, H, rank, -1)
    out = []
    for h, W in enumerate(W_OI.view(H, -1, W_OI.shape[1])):
        Z = torch.block_diag(*rows[:, h])  # (G*T, I): what this run of outputs is made of
        ZC = Z @ C_II
        out.append(W @ ZC.mT @ torch.linalg.pinv(ZC @ Z.mT, hermitian=True))
    return torch.cat(out)
