"""CoLA: a bottleneck with a nonlinearity in the place of a linear, y = B silu(A x), trained from the first step.

    y = silu(x A^T) B^T,   A (rank, in), B (out, rank)

Source: 2502.10940. As the paper draws them, both factors are Gaussian with deviation rank^(-1/4) (in + out)^(-1/4),
whatever the dense layer's std. With variance = "paper" they stay so; with "dense" B is multiplied by the number that
gives the outputs, for Gaussian inputs of variance 1, the variance of a dense layer's: A's scale, which says how bent
the map is, stays the paper's. The paper's ranks are a quarter of the width. The authors keep the MLP's own activation
at 60M and 130M and drop it from 350M on; here only linears are replaced, so it always stays.

The map is not linear, so it has no dense weight (`dense` is None): it cannot be multiplied out, and adapters stand over
its outputs or over each factor. No closed form fits it to a given weight either (`fit` is None). The paper's saving of
memory, to keep z = A x alone and recompute the rest, is a matter of recomputation policies: `chain` and `between` tell
where z is.

Shapes: x (..., I), y (..., O), A_RI, B_OR, z (..., R).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs._choices import check_choices
from ..seam import Structure, ones
from . import _factors


@dataclass(frozen=True)
class CoLA:
    """rank: inner width. variance: of the start, "dense" as a dense layer's or "paper" as written. lr_scale: "none" or
    "fan_in"."""

    rank: int = 64
    variance: Literal["dense", "paper"] = "dense"
    lr_scale: Literal["none", "fan_in"] = "none"

    def __post_init__(self):
        check_choices(self)
        _factors.check_whole("rank", self.rank, 1, "a quarter of the width is usual")


def init(cfg: CoLA, n_in: int, n_out: int, std: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """{"A": (R, I), "B": (O, R)}. Raises: FinloraError when the rank exceeds the layer."""
    _factors.check_rank(cfg.rank, n_in, n_out)
    own = (cfg.rank * (n_in + n_out)) ** -0.25
    gain = 1.0
    if cfg.variance == "dense":
        gain = math.sqrt(n_in / (cfg.rank * passed(own * math.sqrt(n_in)))) * std / own
    A = _factors.normal((cfg.rank, n_in), own, generator)
    return {"A": A, "B": _factors.normal((n_out, cfg.rank), gain * own, generator)}


def passed(deviation: float) -> float:
    """E[silu(z)^2] for z ~ N(0, deviation^2), by the trapezoid rule over 8 deviations."""
    t = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-t.square() / 2)
    return float((weight * F.silu(deviation * t).square()).sum() / weight.sum())


def between(cfg: CoLA, z: Tensor) -> Tensor:
    """silu(z)."""
    return F.silu(z)


def apply(cfg: CoLA, params, x: Tensor) -> Tensor:
    """silu(x A^T) B^T."""
    A, B = _factors.cast(params, x, "A", "B")
    return F.linear(F.silu(F.linear(x, A)), B)


def sized(cfg: CoLA, n_in: int, n_out: int, keep: float) -> CoLA:
    """The largest rank. Raises: FinloraError where rank 1 is too large."""
    return replace(cfg, rank=_factors.largest("cola", n_in, n_out, keep, n_in + n_out, min(n_in, n_out)))


def count(cfg: CoLA, n_in: int, n_out: int) -> int:
    """rank (in + out). Raises: FinloraError when the rank exceeds the layer."""
    _factors.check_rank(cfg.rank, n_in, n_out)
    return cfg.rank * (n_in + n_out)


def groups(cfg: CoLA, params) -> dict[str, float]:
    """1 and 1, or 1 / 2 and in / (2 rank)."""
    if cfg.lr_scale == "none":
        return ones(cfg, params)
    R, I = params["A"].shape
    return _factors.fan_in(I, A=I, B=R)


def chain(cfg: CoLA, params) -> tuple[Tensor, Tensor]:
    """(A, B), with silu between."""
    return params["A"], params["B"]


STRUCTURE = Structure(
    "cola", CoLA, init, apply, count=count, flops=count, sized=sized, groups=groups, chain=chain, between=between,
    paper="2502.10940",
)  # fmt: skip
