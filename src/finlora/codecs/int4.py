"""int4: whole numbers 0 .. 15 with a scale and a zero for each group of 64 weights of a row.

    s = (hi - lo) / 15,   z = round(-lo / s),   q = clamp(round(w / s) + z, 0, 15),   w ~ s (q - z)

Source: asymmetric round-to-nearest, the format of GPTQ (2210.17323); `refine = "hqq"` is HQQ (Badri and Shaji, 2023). How
scale and zero are kept, and what refining does, is told in `_integer.py`. Groups of 64: 4 + (16 + 4)/64 = 4.3125 bits a
weight; Gaussian weights: relative Frobenius error 0.0911 (hqq: 0.0863 at 4.5 bits). Groups of 32: 4.625 bits, 0.0808; of
128: 4.156 bits, 0.1006.

Shapes: W_OI (out, in), G = ceil(in / group); codes packed uint8, scale_OG bf16, zero: packed codes, or zero_OG fp16 (hqq).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec
from . import _integer


@dataclass(frozen=True)
class Int4(_integer.Integers):
    """group: weights of a row that share scale and zero. refine: hqq moves the zero to lessen the mean error."""


def encode(cfg: Int4, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes", "scale", "zero"}. Raises: FinloraError on non-finite weights."""
    return _integer.encode(cfg, W_OI, 4)


def decode(cfg: Int4, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return _integer.decode(cfg, tensors, shape, dtype, 4)


def bits(cfg: Int4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + (16 + 4) / group; 32 instead of 16 + 4 with hqq."""
    return _integer.bits(cfg, shape, 4)


CODEC = Codec("int4", Int4, encode, decode, bits, lossless=False, paper="2210.17323")
