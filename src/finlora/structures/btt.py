"""BTT: a block tensor train of two cores, with the start and the learning rates that make it train as a dense layer does.

    y_ha = sum_gt L_hagt (sum_i R_ghti x_gi),   I = G i, O = H a;   rank (H in + G out) values for in * out

Source: Qiu et al., 2406.06248 (Compute Better Spent). G and H are the largest divisors of in and out up to their square
roots, so any layer divides, and a prime side is one run. The authors deal out prime factors greedily and take the
larger divisor of in: 768 is 16 x 48 there and 24 x 32 here, 3072 is 32 x 96 (48 x 64), 11008 is 16 x 688 (86 x 128),
so that their ranks and sizes are not ours. With rank 1 and square shapes this is Monarch; `blockdiag` has few large
blocks where this has many small. Sizes come in steps of about 1 / sqrt(in) + 1 / sqrt(out) of the layer: coarse in a
narrow one.

Each core begins Gaussian with deviation sqrt(1 / ins) min(1, sqrt(outs / ins)), ins and outs being what each of its
outputs sums and what each of its inputs reaches (muP); with variance = "dense" both are then multiplied by one number
that gives W a dense layer's mean square std^2, with "paper" they stay; the authors also begin the last core of a layer
that closes a residual branch at 0, which is not done here, where a layer does not know its place. lr_scale = "fan_in",
the default here and essential by the paper: each core learns at in / (2 ins) times the rate. The paper's normalisation
of the cores' size in training is left out. Muon would make each core orthogonal as one matrix, not block by block.

Fit: as that of blockdiag, which this is but for the numbers of runs.

Shapes: x (..., I), y (..., O), W_OI, R (G*H*T, I/G), L (O, G*T) with T = rank, see `_blocks.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..codecs._choices import check_choices
from ..seam import Stats, Structure, ones
from . import _blocks, _factors


@dataclass(frozen=True)
class BTT:
    """rank: of the train, between the cores. variance: of the start, "dense" as a dense layer's or "paper" as written.
    lr_scale: "fan_in" or "none"."""

    rank: int = 2
    variance: Literal["dense", "paper"] = "dense"
    lr_scale: Literal["none", "fan_in"] = "fan_in"

    def __post_init__(self):
        check_choices(self)
        _factors.check_whole("rank", self.rank, 1, "1 to 8 is usual")


def runs(n: int) -> int:
    """The largest divisor up to the square root."""
    return next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)


def init(cfg: BTT, n_in: int, n_out: int, std: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """{"R": (G*H*T, I/G), "L": (O, G*T)}. Raises: FinloraError when the rank exceeds a block."""
    G, H, T = runs(n_in), runs(n_out), cfg.rank
    i, o = n_in // G, n_out // H
    _factors.check_rank(T, i, o, "a block of the layer")
    s_R, s_L = deviation(i, H * T), deviation(G * T, o)
    gain = math.sqrt(std / (math.sqrt(T) * s_R * s_L)) if cfg.variance == "dense" else 1.0
    R = _factors.normal((G * H * T, i), gain * s_R, generator)
    return {"R": R, "L": _factors.normal((n_out, G * T), gain * s_L, generator)}


def deviation(ins: int, outs: int) -> float:
    """muP's, which keeps the spectral norm at sqrt(outs / ins)."""
    return math.sqrt(1 / ins) * min(1.0, math.sqrt(outs / ins))


def apply(cfg: BTT, params, x: Tensor) -> Tensor:
    """Both cores in turn."""
    return _blocks.apply(*_factors.cast(params, x, "R", "L"), x, cfg.rank)


def dense(cfg: BTT, params) -> Tensor:
    """The blocks multiplied out."""
    return _blocks.dense(params["R"], params["L"], cfg.rank)


def fit(cfg: BTT, W_OI: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
    """Each block's truncated SVD, or what is better with statistics. Raises: FinloraError when the rank exceeds a block, or
    the weight is not finite."""
    O, I = W_OI.shape
    G, H = runs(I), runs(O)
    _factors.check_rank(cfg.rank, I // G, O // H, "a block of the layer")
    R, L = _blocks.fit(W_OI.double(), _factors.moment(stats, W_OI), G, H, cfg.rank)
    return _factors.kept({"R": R, "L": L}, W_OI)


def sized(cfg: BTT, n_in: int, n_out: int, keep: float) -> BTT:
    """The largest rank. Raises: FinloraError where rank 1 is too large."""
    G, H = runs(n_in), runs(n_out)
    most = min(n_in // G, n_out // H)
    return replace(cfg, rank=_factors.largest("btt", n_in, n_out, keep, H * n_in + G * n_out, most))


def count(cfg: BTT, n_in: int, n_out: int) -> int:
    """rank (H in + G out). Raises: as init."""
    _factors.check_rank(cfg.rank, n_in // runs(n_in), n_out // runs(n_out), "a block of the layer")
    return cfg.rank * (runs(n_out) * n_in + runs(n_in) * n_out)


def groups(cfg: BTT, params) -> dict[str, float]:
    """in / (2 ins) for each core, or 1 and 1."""
    if cfg.lr_scale == "none":
        return ones(cfg, params)
    i, inner = params["R"].shape[1], params["L"].shape[1]
    return _factors.fan_in(i * inner // cfg.rank, R=i, L=inner)


STRUCTURE = Structure(
    "btt", BTT, init, apply, count=count, flops=count, sized=sized, dense=dense, fit=fit, groups=groups, paper="2406.06248",
)  # fmt: skip
