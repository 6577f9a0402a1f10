"""int8 with one scale per output row: q = round(127 W / a), a = max|W| over the row; W ~ q a / 127.

Source: LLM.int8() (2208.07339), vector-wise. Codes and row maxima equal those of bitsandbytes' `int8_vectorwise_quant`
with no outlier threshold. Gaussian weights: relative Frobenius error 0.0079 at in = 1024 (it grows with the row's
largest value). 8 + 32/in bits a weight.

Shapes: W_OI (out, in), codes_OI int8, absmax_O fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec, check_finite

CHUNK = 1 << 24  # weights encoded at a time, so that the fp32 copies of a huge layer stay small
TINY = 1e-30  # a row whose largest value is below this decodes to zeros; keeps 127 / absmax finite


@dataclass(frozen=True)
class Int8:
    """Nothing to choose."""


def encode(cfg: Int8, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": (O, I) int8, "absmax": (O,) fp32}. Raises: FinloraError on non-finite weights."""
    check_finite(W_OI)
    O, I = W_OI.shape
    codes = torch.empty(O, I, dtype=torch.int8, device=W_OI.device)
    absmax = torch.linalg.vector_norm(W_OI, torch.inf, dim=1).float()  # max|W| without a copy for |W|
    factor = (127.0 / absmax.clamp(min=TINY))[:, None]
    rows = max(1, CHUNK // I)
    for start in range(0, O, rows):
        part = slice(start, start + rows)
        codes[part] = (W_OI[part].float() * factor[part]).round_()
    return {"codes": codes, "absmax": absmax}


def decode(cfg: Int8, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    codes, absmax = tensors["codes"], tensors["absmax"]
    if dtype == torch.float64:
        absmax = absmax.double()
    scale = (absmax / 127)[:, None]
    if dtype == scale.dtype:
        return codes * scale
    return (codes * scale).to(dtype)


def bits(cfg: Int8, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """8 + 32 / in."""
    return 8.0 + 32.0 / shape[1]


CODEC = Codec("int8", Int8, encode, decode, bits, lossless=False, paper="2208.07339")
