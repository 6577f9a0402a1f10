"""int3: whole numbers 0 .. 7 with a scale and a zero for each group of 64 weights of a row, 8 codes in 3 bytes.

    s = (hi - lo) / 7,   z = round(-lo / s),   q = clamp(round(w / s) + z, 0, 7),   w ~ s (q - z)

Source: asymmetric round-to-nearest, the format of GPTQ (2210.17323); `refine = "hqq"` is HQQ (Badri and Shaji, 2023). How
scale and zero are kept, and what refining does, is told in `_integer.py`. Groups of 64: 3 + (16 + 3)/64 = 3.297 bits a
weight; Gaussian weights: relative Frobenius error 0.195 (hqq: 0.185 at 3.5 bits). Groups of 32: 3.594 bits, 0.173; of
128: 3.148 bits, 0.216.

Shapes: W_OI (out, in), G = ceil(in / group); codes packed uint8, scale_OG bf16, zero: packed codes, or zero_OG fp16 (hqq).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec
from . import _integer


@dataclass(frozen=True)
class Int3(_integer.Integers):
    """group: weights of a row that share scale and zero. refine: hqq moves the zero to lessen the mean error."""


def encode(cfg: Int3, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes", "scale", "zero"}. Raises: FinloraError on non-finite weights."""
    return _integer.encode(cfg, W_OI, 3)


def decode(cfg: Int3, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return _integer.decode(cfg, tensors, shape, dtype, 3)


def bits(cfg: Int3, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """3 + (16 + 3) / group; 32 instead of 16 + 3 with hqq."""
    return _integer.bits(cfg, shape, 3)


CODEC = Codec("int3", Int3, encode, decode, bits, lossless=False, paper="2210.17323")
