"""No codec: the weight as it is, in the compute dtype. decode gives the buffer itself, so that it costs nothing.

Shapes: W_OI (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec, check_finite


@dataclass(frozen=True)
class Plain:
    """Nothing to choose."""


def encode(cfg: Plain, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"W": W_OI}, sharing memory where W is contiguous."""
    check_finite(W_OI)
    return {"W": W_OI.contiguous()}


def decode(cfg: Plain, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The buffer itself, or a cast of it when another dtype is asked for."""
    return tensors["W"].to(dtype)


def bits(cfg: Plain, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """The width of `dtype`."""
    return 8.0 * dtype.itemsize


CODEC = Codec("none", Plain, encode, decode, bits, lossless=True)
