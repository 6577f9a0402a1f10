"""NF4: each weight is one of 16 quantiles of a normal, scaled by the largest value of its block of 64.

    c = nearest(W / a),  a = max|W| over the block,  W ~ CODE[c] a

Source: QLoRA (2305.14314) section 3. Bit-compatible with bitsandbytes (quant_type="nf4"): W is read row by row, blocks
are runs of 64 whatever the rows, the last may be short; two codes a byte, the first in the high nibble. Gaussian
weights: relative Frobenius error 0.092. 4 + 32/64 = 4.5 bits a weight.

Decoding looks a whole byte up in a table of 256 pairs and scales once, instead of shifting and looking up each nibble.

Shapes: W_OI (out, in); codes (ceil(O*I/2),) uint8; absmax (ceil(O*I/block),) fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FinloraError
from ..linear import Codec, check_finite

# Quantiles of N(0, 1) with an exact zero and ends at 1: 8 on the positive side, 7 on the negative (QLoRA appendix E).
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
CHUNK = 1 << 24  # weights handled at a time: bounds the temporaries of a huge layer at some 200 MB
TINY = 1e-38  # keeps 1 / absmax finite in a block of zeros


@dataclass(frozen=True)
class NF4:
    """block: weights that share one absmax, a power of two from 32 to 4096."""

    block: int = 64

    def __post_init__(self):
        if self.block not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise FinloraError(f"nf4 block must be a power of two from 32 to 4096, got {self.block!r}", "use 64")


@cache
def _pairs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256,) of a type twice as wide as `dtype`: the two values a byte stands for, side by side in memory."""
    with torch.inference_mode(False):
        code, byte = torch.tensor(CODE, dtype=torch.float32).to(dtype), torch.arange(256)
        pairs = torch.stack([code[byte >> 4], code[byte & 15]], 1).contiguous()
        return pairs.view({4: torch.float64, 8: torch.complex128}[dtype.itemsize]).reshape(256).to(device)


def absmax_blocks(W_OI: Tensor, block: int) -> Tensor:
    """(ceil(O*I/block),) fp32: the largest magnitude of each run of `block` weights."""
    flat = W_OI.reshape(-1)
    whole = flat.numel() // block * block
    # the infinity norm is max|w| without a second tensor of W's size for |W|
    parts = [torch.linalg.vector_norm(flat[:whole].view(-1, block), torch.inf, dim=1).float()]
    if whole < flat.numel():
        parts.append(flat[whole:].abs().amax().float().clamp(min=TINY).reshape(1))
    return torch.cat(parts)


def normalise(values: Tensor, absmax: Tensor, block: int) -> Tensor:
    """fp32 values of shape (N,) over the absmax of their block; zeros fill the last block up when it is short."""
    size = values.numel()
    values = F.pad(values, (0, -size % block)).view(-1, block)
    absmax = absmax.clamp(min=TINY)
    # bitsandbytes multiplies whole blocks by the reciprocal and divides a short one: the last bit can decide a tie
    scaled = values * (1.0 / absmax)[:, None]
    if size % block:
        scaled[-1] = values[-1] / absmax[-1]
    return scaled.view(-1)


def pack(W_OI: Tensor, absmax: Tensor, block: int) -> Tensor:
    """(ceil(O*I/2),) uint8: the nearest codes of W / absmax, two a byte, the first in the high nibble."""
    flat, n = W_OI.reshape(-1), W_OI.numel()
    code = torch.tensor(CODE, dtype=torch.float32, device=flat.device)
    middles = (code[:-1] + code[1:]) / 2
    packed = torch.empty((n + 1) // 2, dtype=torch.uint8, device=flat.device)
    for start in range(0, n, CHUNK):
        part = flat[start : start + CHUNK].float()
        size = part.numel()
        scaled = normalise(part, absmax[start // block : (start + CHUNK) // block], block)
        codes = torch.bucketize(scaled, middles, out_int32=True)[: size + size % 2].to(torch.uint8)
        packed[start // 2 : (start + size + 1) // 2] = (codes[::2] << 4) | codes[1::2]
    return packed


def unpack(codes: Tensor, absmax: Tensor, block: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`: CODE[codes] * absmax, multiplied in fp32 (fp64 for fp64) and rounded once."""
    n = shape[0] * shape[1]
    work = torch.float64 if dtype == torch.float64 else torch.float32
    table, absmax = _pairs(codes.device, work), absmax.to(work)
    out = torch.empty(n, dtype=dtype, device=codes.device) if n > CHUNK else None
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        values = table.index_select(0, codes[start // 2 : (stop + 1) // 2].int()).view(work)[: stop - start]
        whole = (stop - start) // block * block
        first = start // block
        values[:whole].view(-1, block).mul_(absmax[first : first + whole // block, None])
        if whole < stop - start:
            values[whole:].mul_(absmax[-1])
        if out is None:
            return values.view(shape).to(dtype)
        out[start:stop] = values
    assert out is not None
    return out.view(shape)


def encode(cfg: NF4, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """{"codes": packed uint8, "absmax": fp32 per block}. Raises: FinloraError on non-finite weights."""
    check_finite(W_OI)
    absmax = absmax_blocks(W_OI, cfg.block)
    return {"codes": pack(W_OI, absmax, cfg.block), "absmax": absmax}


def decode(cfg: NF4, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return unpack(tensors["codes"], tensors["absmax"], cfg.block, shape, dtype)


def bits(cfg: NF4, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + 32 / block, a little more where the last byte or block is short."""
    n = shape[0] * shape[1]
    return (8 * -(-n // 2) + 32 * -(-n // cfg.block)) / n


CODEC = Codec("nf4", NF4, encode, decode, bits, lossless=False)
