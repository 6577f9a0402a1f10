"""int2: whole numbers 0 .. 3 with a scale and a zero for each group of 64 weights of a row, 4 codes a byte.

    s = (hi - lo) / 3,   z = round(-lo / s),   q = clamp(round(w / s) + z, 0, 3),   w ~ s (q - z)

Source: asymmetric round-to-nearest, the format of GPTQ (2210.17323); `refine = "hqq"` is HQQ (Badri and Shaji, 2023). How
scale and zero are kept, and what refining does, is told in `_integer.py`. Groups of 64: 2 + (16 + 2)/64 = 2.281 bits a
weight; Gaussian weights: relative Frobenius error 0.457 (hqq: 0.432 at 2.5 bits): nearly half of the weight is lost, and
an adapter has much to make up for. Groups of 32: 2.563 bits, 0.407; of 128: 2.141 bits, 0.504.

Shapes: W_OI (out, in), G = ceil(in / group); codes packed uint8, scale_OG bf16, zero: packed codes, or zero_OG fp16 (hqq).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec
from . import _integer


@dataclass(frozen=True)
class Int2(_integer.Integers):
    """group: weights of a row that share scale and zero. refine: hqq moves the zero to lessen the mean error."""


def encode(cfg: Int2, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes", "scale", "zero"}. Raises: FinloraError on non-finite weights."""
    return _integer.encode(cfg, W_OI, 2)


def decode(cfg: Int2, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return _integer.decode(cfg, tensors, shape, dtype, 2)


def bits(cfg: Int2, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """2 + (16 + 2) / group; 32 instead of 16 + 2 with hqq."""
    return _integer.bits(cfg, shape, 2)


CODEC = Codec("int2", Int2, encode, decode, bits, lossless=False, paper="2210.17323")
