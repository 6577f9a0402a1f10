"""NF4: each weight is one of 16 quantiles of a normal, scaled by the largest value of its block of 64.

    c = nearest(W / a),  a = max|W| over the block,  W ~ CODE[c] a

Source: QLoRA (2305.14314) section 3. Bit-compatible with bitsandbytes (quant_type="nf4"): W is read row by row, blocks
are runs of 64 whatever the rows, the last may be short; two codes a byte, the first in the high nibble. Gaussian
weights: relative Frobenius error 0.092. 4 + 32/64 = 4.5 bits a weight.

How the nearest value is found without a search, and how a byte is decoded at once, is told in `_table4.py`.

Shapes: W_OI (out, in); codes (ceil(O*I/2),) uint8; absmax (ceil(O*I/block),) fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec
from . import _table4

# Quantiles of N(0, 1) with an exact zero and ends at 1: 8 on the positive side, 7 on the negative (QLoRA appendix E).
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class NF4:
    """block: weights that share one absmax, a power of two from 32 to 4096."""

    block: int = 64

    def __post_init__(self):
        _table4.check_block(self.block)


def encode(cfg: NF4, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": packed uint8, "absmax": fp32 per block}. Raises: FinloraError on non-finite weights."""
    codes, absmax = _table4.encode(CODE, W_OI, cfg.block)
    return {"codes": codes, "absmax": absmax}


def decode(cfg: NF4, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return _table4.decode(CODE, tensors["codes"], tensors["absmax"], cfg.block, shape, dtype)


def bits(cfg: NF4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + 32 / block, a little more where the last byte or block is short."""
    return _table4.bits(cfg.block, shape)


CODEC = Codec("nf4", NF4, encode, decode, bits, lossless=False, paper="2305.14314")
