"""Block-diagonal: two block-diagonal matrices with a permutation between, y = L P R x (Monarch, BlockShuffle).

    y_h = sum_g L_hg (R_hg x_g),   x and y in `blocks` runs each;   blocks * rank (in + out) values for in * out

Source: Monarch, 2204.00595; as layers of language models, BlockShuffle of Wei et al., 2406.16450. Each of the blocks^2
blocks of W is a product of `rank`, so at the size of a low-rank map of rank r = blocks * rank the whole may have the
rank blocks * r. Monarch's own case is rank 1 with about sqrt(in) blocks. Its last permutation, which only renames the
outputs, is left out. Both matrices begin Gaussian with deviation (std^2 / rank)^(1/4), which gives W a dense layer's
variance.

lr_scale = "fan_in": R learns at blocks / 2 times the rate, L at in / (2 blocks rank) times it. Muon would make R and L
orthogonal each as one matrix, not block by block.

Fit: without statistics each block's truncated SVD (the Monarch projection, exact). With them no closed form is known
for both matrices; L is exact for an R of the blocks' own, and the result no worse than the projection (`_blocks.fit`).

Shapes: x (..., I), y (..., O), W_OI, R (G*G*T, I/G), L (O, G*T) with G = blocks and T = rank, see `_blocks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..codecs._choices import check_choices
from ..errors import FinloraError
from ..seam import Stats, Structure, ones
from . import _blocks, _factors


@dataclass(frozen=True)
class BlockDiag:
    """blocks: runs that inputs and outputs are cut into. rank: of each of the blocks^2 blocks. lr_scale: "none" or
    "fan_in"."""

    blocks: int = 4
    rank: int = 16
    lr_scale: Literal["none", "fan_in"] = "none"

    def __post_init__(self):
        check_choices(self)
        _factors.check_whole("blocks", self.blocks, 1, "4 is usual, 1 is plain low rank")
        _factors.check_whole("rank", self.rank, 1, "a quarter of the width divided by the blocks is usual")


def check_blocks(cfg: BlockDiag, n_in: int, n_out: int) -> tuple[int, int]:
    """(in, out) of one block. Raises: FinloraError where the layer does not divide into the blocks."""
    if n_in % cfg.blocks or n_out % cfg.blocks:
        common = [n for n in range(1, min(n_in, n_out) + 1) if n_in % n == 0 and n_out % n == 0]
        near = min(common, key=lambda n: (abs(n - cfg.blocks), n))
        raise FinloraError(
            f"blocks = {cfg.blocks} does not divide a linear of {n_out} x {n_in} (out x in)",
            f"use {near} blocks" if near > 1 else "its sides have no common divisor: leave it dense, or use structure btt",
        )
    return n_in // cfg.blocks, n_out // cfg.blocks


def init(cfg: BlockDiag, n_in: int, n_out: int, std: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """{"R": (G*G*T, I/G), "L": (O, G*T)}. Raises: FinloraError where the blocks do not divide the layer or the rank exceeds
    a block."""
    G, (i, o) = cfg.blocks, check_blocks(cfg, n_in, n_out)
    _factors.check_rank(cfg.rank, i, o, "a block of the layer")
    own = (std**2 / cfg.rank) ** 0.25
    R = _factors.normal((G * G * cfg.rank, i), own, generator)
    return {"R": R, "L": _factors.normal((n_out, G * cfg.rank), own, generator)}


def apply(cfg: BlockDiag, params, x: Tensor) -> Tensor:
    """L P R x."""
    return _blocks.apply(*_factors.cast(params, x, "R", "L"), x, cfg.rank)


def dense(cfg: BlockDiag, params) -> Tensor:
    """The blocks multiplied out."""
    return _blocks.dense(params["R"], params["L"], cfg.rank)


def fit(cfg: BlockDiag, W_OI: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
    """The Monarch projection, or what is better with statistics. Raises: FinloraError as `init`, and on a weight that is not
    finite."""
    i, o = check_blocks(cfg, W_OI.shape[1], W_OI.shape[0])
    _factors.check_rank(cfg.rank, i, o, "a block of the layer")
    R, L = _blocks.fit(W_OI.double(), _factors.moment(stats, W_OI), cfg.blocks, cfg.blocks, cfg.rank)
    return _factors.kept({"R": R, "L": L}, W_OI)


def sized(cfg: BlockDiag, n_in: int, n_out: int, keep: float) -> BlockDiag:
    """The largest rank for these blocks. Raises: FinloraError where rank 1 is too large or the blocks do not divide."""
    most = min(check_blocks(cfg, n_in, n_out))
    return replace(cfg, rank=_factors.largest("blockdiag", n_in, n_out, keep, cfg.blocks * (n_in + n_out), most))


def count(cfg: BlockDiag, n_in: int, n_out: int) -> int:
    """blocks * rank (in + out). Raises: as init."""
    i, o = check_blocks(cfg, n_in, n_out)
    _factors.check_rank(cfg.rank, i, o, "a block of the layer")
    return cfg.blocks * cfg.rank * (n_in + n_out)


def groups(cfg: BlockDiag, params) -> dict[str, float]:
    """1 and 1, or blocks / 2 and in / (2 blocks rank)."""
    if cfg.lr_scale == "none":
        return ones(cfg, params)
    i, inner = params["R"].shape[1], params["L"].shape[1]
    return _factors.fan_in(i * cfg.blocks, R=i, L=inner)


STRUCTURE = Structure(
    "blockdiag", BlockDiag, init, apply, count=count, flops=count, sized=sized, dense=dense, fit=fit, groups=groups,
    paper="2204.00595",
)  # fmt: skip
