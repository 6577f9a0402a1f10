"""fp8: each weight an E4M3 float (4 exponent bits, 3 of mantissa, up to 448) with one scale per output row.

    s = max|W| / 448 over the row,   W ~ e4m3(W / s) s

Source: FP8 Formats for Deep Learning (2209.05433), the variant without infinities (torch.float8_e4m3fn), rounded to
nearest, ties to even. The codes are kept as bytes, which every device and safetensors reader moves and compares;
viewed as float8_e4m3fn they are the weights, and with the scales the per-channel form that serving engines read. s is
cut to 18 bits, so that products are exact in fp32 and a decoded weight encodes to itself. Gaussian weights: relative
Frobenius error 0.0264, Student-t (5 degrees) 0.0259: a float does not mind long tails, but `int8` is closer on both
(0.0079 and 0.015). 8 + 32/in bits a weight.

Shapes: W_OI (out, in), codes_OI uint8, scale_O fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..linear import Codec, check_finite
from ._blocks import trimmed
from ._integer import row_chunks
from ._room import room

CHUNK = 1 << 20  # weights handled at a time, in rows
LARGEST = 448.0  # of E4M3
TINY = 1e-36  # a row whose scale is below this decodes to zeros; keeps 1 / scale finite


@dataclass(frozen=True)
class FP8:
    """Nothing to choose."""


@cache
def _values(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256,): the number each byte stands for. Looking it up is three times as fast on a CPU as torch's own cast."""
    with torch.inference_mode(False):
        return torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).to(dtype).to(device)


def encode(cfg: FP8, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": (O, I) uint8, the bits of E4M3; "scale": (O,) fp32}. Raises: FinloraError on non-finite weights."""
    check_finite(W_OI)
    O, I = W_OI.shape
    scale = torch.linalg.vector_norm(W_OI, torch.inf, dim=1).float() / LARGEST
    scale = trimmed(scale)
    scale = torch.where(scale > TINY, scale, 0)
    factor = torch.where(scale > 0, 1 / scale, 0)[:, None]
    codes = torch.empty(O, I, dtype=torch.uint8, device=W_OI.device)
    for rows in row_chunks(O, I, CHUNK, W_OI.device):
        # the largest of a row may come out a rounding above 448, which is still nearest to 448: NaN begins at 464
        codes[rows] = (W_OI[rows].float() * factor[rows]).to(torch.float8_e4m3fn).view(torch.uint8)
    return {"codes": codes, "scale": scale}


def decode(cfg: FP8, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    O, I = shape
    work = torch.float64 if dtype == torch.float64 else torch.float32
    codes, scale = tensors["codes"], tensors["scale"].to(work)[:, None]
    table = _values(codes.device, work)
    out = room(O * I, dtype, codes.device).view(shape)
    for rows in row_chunks(O, I, CHUNK, codes.device):
        values = table.index_select(0, codes[rows].view(-1).int()).view(-1, I)
        out[rows] = values.mul_(scale[rows])
    return out


def bits(cfg: FP8, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """8 + 32 / in."""
    return 8.0 + 32.0 / shape[1]


CODEC = Codec("fp8", FP8, encode, decode, bits, lossless=False, paper="2209.05433")
