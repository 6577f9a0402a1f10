"""int8 with one scale per output row: q = round(127 W / a), a = max|W| over the row; W ~ q a / 127.

Source: LLM.int8() (2208.07339), vector-wise. Codes and row maxima equal those of bitsandbytes' `int8_vectorwise_quant`
with no outlier threshold. Gaussian weights: relative Frobenius error 0.0079 at in = 1024 (it grows with the row's
largest value). 8 + 32/in bits a weight.

Shapes: W_OI (out, in), codes_OI int8, absmax_O fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linear import Codec, check_finite
from ._room import room

CHUNK = 1 << 24  # weights handled at a time: bounds the temporaries of a huge layer
SLICE = 1 << 18  # the same for each thread of a CPU: what stays in its cache
TINY = 1e-30  # a row whose largest value is below this decodes to zeros; keeps 127 / absmax finite


@dataclass(frozen=True)
class Int8:
    """Nothing to choose."""


def _slices(shape: tuple[int, int], device: torch.device) -> Iterator[slice]:
    """Rows to handle at a time."""
    size = min(CHUNK, SLICE * torch.get_num_threads()) if device.type == "cpu" else CHUNK
    rows = max(1, size // shape[1])
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


@torch.no_grad()
def encode(cfg: Int8, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": (O, I) int8, "absmax": (O,) fp32}. Raises: FinloraError on non-finite weights."""
    O, I = W_OI.shape
    codes = torch.empty(O, I, dtype=torch.int8, device=W_OI.device)
    absmax = torch.empty(O, dtype=torch.float32, device=W_OI.device)
    for rows in _slices((O, I), W_OI.device):
        part = W_OI[rows].float()
        torch.amax(part.abs(), 1, out=absmax[rows])
        codes[rows] = (part * (127.0 / absmax[rows].clamp(min=TINY))[:, None]).round_()
    if not bool(absmax.isfinite().all()):  # NaN and infinity reach the absmax of their row
        check_finite(W_OI.float())
    return {"codes": codes, "absmax": absmax}


@torch.no_grad()
def decode(cfg: Int8, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    codes, absmax = tensors["codes"], tensors["absmax"]
    work = torch.float64 if dtype == torch.float64 else torch.float32
    scale = (absmax.to(work) / 127)[:, None]
    out = room(shape[0] * shape[1], dtype, codes.device).view(shape)
    for rows in _slices(shape, codes.device):
        if dtype == work:
            out[rows].copy_(codes[rows]).mul_(scale[rows])
        else:
            out[rows] = codes[rows].to(work).mul_(scale[rows])
    return out


def bits(cfg: Int8, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """8 + 32 / in."""
    return 8.0 + 32.0 / shape[1]


CODEC = Codec("int8", Int8, encode, decode, bits, lossless=False, paper="2208.07339")
