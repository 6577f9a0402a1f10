"""Dense: the weight itself, every value of it trained; what the other structures are measured against.

    y = x W^T,   W ~ N(0, std)

Source: none is needed. It takes no size but its own: keep below 1 is refused.

Shapes: x (..., I), y (..., O), W_OI.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FinloraError
from ..seam import Stats, Structure, check_finite
from . import _factors


@dataclass(frozen=True)
class Dense:
    """No settings."""


def init(cfg: Dense, n_in: int, n_out: int, std: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """{"W": (O, I)}, Gaussian."""
    return {"W": _factors.normal((n_out, n_in), std, generator)}


def apply(cfg: Dense, params, x: Tensor) -> Tensor:
    """x W^T."""
    return F.linear(x, *_factors.cast(params, x, "W"))


def dense(cfg: Dense, params) -> Tensor:
    """W."""
    return params["W"]


def fit(cfg: Dense, W_OI: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
    """The weight itself. Raises: FinloraError where it is not finite."""
    check_finite(W_OI)
    return _factors.kept({"W": W_OI.clone()}, W_OI)


def sized(cfg: Dense, n_in: int, n_out: int, keep: float) -> Dense:
    """Itself. Raises: FinloraError where less than the whole is to be kept."""
    _factors.check_keep(keep)
    if keep < 1:
        raise FinloraError(
            f"keep = {keep:g} is less than structure `dense` has, which is all of a linear",
            "keep 1, or choose a structure such as lowrank",
        )
    return cfg


def count(cfg: Dense, n_in: int, n_out: int) -> int:
    """in * out."""
    return n_in * n_out


STRUCTURE = Structure("dense", Dense, init, apply, count=count, flops=count, sized=sized, dense=dense, fit=fit)
