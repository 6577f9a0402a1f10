"""nvfp4: 4-bit floats in blocks of 16 that share an 8-bit float, over one scale of the whole weight (NVIDIA).

    t = max|W| / (448 * 6),   b = e4m3(max|w| / (6 t)) over the block,   w ~ e2m1(w / (b t)) b t

Source: Pretraining Large Language Models with NVFP4 (2509.25149); E2M1 is 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, E4M3 the
format of `fp8`. Rounded to nearest, ties to even, saturating at 6 (b may be rounded below what the block's largest
weight asks for). Blocks are runs of a row, the last of a row may be short. A block more than 2^17 times smaller than the
weight's largest value would have b = 0 and vanish; b is kept at 2^-9, E4M3's smallest, at least. t is cut to 18 bits, so
that all products are exact in fp32 and a decoded weight encodes to itself. Gaussian weights: relative Frobenius error
0.0950, Student-t (5 degrees) 0.0923. 4 + 8/16 = 4.5 bits a weight and 32 for the whole.

Shapes: W_OI (out, in), G = ceil(in / 16); codes packed uint8, the first in the low nibble; scale_OG uint8, the bits of
E4M3; tensor_scale () fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec, check_finite
from . import _blocks

BLOCK = 16
LARGEST, SMALLEST = 448.0, 2.0**-9  # of E4M3
TINY = 1e-36  # a block whose scale is below this decodes to zeros; keeps 1 / scale finite


@dataclass(frozen=True)
class NVFP4:
    """Nothing to choose."""


def block_scale(tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """(O, G) of `dtype`: b t."""
    scale = tensors["scale"].view(torch.float8_e4m3fn).to(dtype) * tensors["tensor_scale"].to(dtype)
    return torch.where(scale > TINY, scale, 0)


def encode(cfg: NVFP4, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": packed uint8, "scale": (O, G) uint8, "tensor_scale": ()}. Raises: FinloraError on non-finite weights."""
    check_finite(W_OI)
    absmax = _blocks.absmax_rows(W_OI, BLOCK)
    whole = _blocks.trimmed(absmax.amax() / (LARGEST * 6))
    wanted = torch.where(whole > TINY, absmax / 6 / whole, 0)
    scale = torch.where(absmax > 0, wanted.clamp(SMALLEST, LARGEST), 0).to(torch.float8_e4m3fn).view(torch.uint8)
    tensors = {"scale": scale, "tensor_scale": whole}
    kept = block_scale(tensors, torch.float32)
    factor = torch.where(kept > 0, 1 / kept, 0)
    return {"codes": _blocks.encode(W_OI, factor, BLOCK), **tensors}


def decode(cfg: NVFP4, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return _blocks.decode(tensors["codes"], block_scale(tensors, work), BLOCK, shape, dtype)


def bits(cfg: NVFP4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + 8 / 16 and 32 for the weight, more where the last byte, or a row's last block, is short."""
    O, I = shape
    return (8 * (-(-O * I // 2) + O * -(-I // BLOCK)) + 32) / (O * I)


CODEC = Codec("nvfp4", NVFP4, encode, decode, bits, lossless=False, paper="2509.25149")
