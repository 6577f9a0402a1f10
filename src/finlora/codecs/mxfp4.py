"""mxfp4: 4-bit floats in blocks of 32 that share a power of two (OCP Microscaling).

    e = floor(log2 max|w|) - 2 over the block,   w ~ e2m1(w / 2^e) 2^e,   E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives

Source: OCP Microscaling Formats (MX) 1.0 (2310.10537), the conversion of the specification: rounded to nearest, ties to
even, saturating at 6 (the largest weight of a block may stand at up to 8). Blocks are runs of a row, the last of a row
may be short; e is kept as the byte e + 127 (E8M0). Gaussian weights: relative Frobenius error 0.113 to
0.118, by where their size lies between two powers of two (0.1156 in the mean), against 0.092 for `nf4`: a power of two
is a coarse scale. 4 + 8/32 = 4.25 bits a weight.

Shapes: W_OI (out, in), G = ceil(in / 32); codes packed uint8, the first in the low nibble; exponent_OG uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..linear import Codec, check_finite
from . import _blocks

BLOCK = 32
BIAS = 127  # of E8M0
EMAX = 2  # the exponent of E2M1's largest binade: 4 .. 6


@dataclass(frozen=True)
class MXFP4:
    """Nothing to choose."""


@cache
def powers(device: torch.device, sign: int) -> Tensor:
    """(255,) fp32: 2^(sign (byte - 127))."""
    with torch.inference_mode(False):
        exact = torch.tensor([2.0 ** (sign * (byte - BIAS)) for byte in range(255)], dtype=torch.float64)
        return exact.float().to(device)


def encode(cfg: MXFP4, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": packed uint8, "exponent": (O, G) uint8}. Raises: FinloraError on non-finite weights."""
    check_finite(W_OI)
    absmax = _blocks.absmax_rows(W_OI, BLOCK)
    # frexp gives absmax = m 2^k with m in [1/2, 1): floor(log2 absmax) = k - 1, exactly
    exponent = torch.frexp(absmax).exponent - 1 - EMAX
    exponent = torch.where(absmax > 0, exponent + BIAS, 0).clamp_(0, 254)
    factor = powers(W_OI.device, -1).index_select(0, exponent.view(-1)).view(exponent.shape)
    return {"codes": _blocks.encode(W_OI, factor, BLOCK), "exponent": exponent.to(torch.uint8)}


def decode(cfg: MXFP4, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    exponent = tensors["exponent"]
    scale = powers(exponent.device, 1).index_select(0, exponent.view(-1).int()).view(exponent.shape)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return _blocks.decode(tensors["codes"], scale.to(work), BLOCK, shape, dtype)


def bits(cfg: MXFP4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + 8 / 32, more where the last byte, or a row's last block, is short."""
    O, I = shape
    return 8 * (-(-O * I // 2) + O * -(-I // BLOCK)) / (O * I)


CODEC = Codec("mxfp4", MXFP4, encode, decode, bits, lossless=False, paper="2310.10537")
