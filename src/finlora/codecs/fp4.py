"""FP4 of bitsandbytes: each weight is one of 15 small floats, scaled by the largest value of its block of 64.

    c = nearest(W / a),  a = max|W| over the block,  W ~ CODE[c] a,  CODE = +- (0, 1/16, 2, 3, 4, 6, 8, 12) / 12

Source: bitsandbytes (quant_type="fp4"; 8-bit optimizers, 2110.02861), bit-compatible with it in codes, order and layout, as
`nf4` is. No OCP format: E2M1 (see `mxfp4`, `nvfp4`) has evenly spaced small values where this one has 1/16, so that a value
near zero is kept worse than a value near the maximum. Gaussian weights: relative Frobenius error 0.122, against 0.092 for
`nf4` at the same size; it is here to read what others have stored. 4 + 32/64 = 4.5 bits a weight.

The high bit of a code is the sign, with one exception: of the two zeros bitsandbytes' kernel for CPUs takes code 8 for tiny
positive values and 0 for negative ones, that for CUDA the other way round. They decode alike; ours are the CPU's.

Shapes: W_OI (out, in); codes (ceil(O*I/2),) uint8; absmax (ceil(O*I/block),) fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec
from . import _table4

# sign, two bits of exponent, one of mantissa, in the order of the codes
MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
CODE = (*(m / 12 for m in MAGNITUDES), 0.0, *(-m / 12 for m in MAGNITUDES[1:]))


@dataclass(frozen=True)
class FP4:
    """block: weights that share one absmax, a power of two from 32 to 4096."""

    block: int = 64

    def __post_init__(self):
        _table4.check_block(self.block)


def encode(cfg: FP4, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": packed uint8, "absmax": fp32 per block}. Raises: FinloraError on non-finite weights."""
    codes, absmax = _table4.encode(CODE, W_OI, cfg.block)
    return {"codes": codes, "absmax": absmax}


def decode(cfg: FP4, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return _table4.decode(CODE, tensors["codes"], tensors["absmax"], cfg.block, shape, dtype)


def bits(cfg: FP4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + 32 / block, a little more where the last byte or block is short."""
    return _table4.bits(cfg.block, shape)


CODEC = Codec("fp4", FP4, encode, decode, bits, lossless=False, paper="2110.02861")
