"""Blocks of E2M1 floats along a row: what `mxfp4` and `nvfp4` share.

E2M1 has 1 sign, 2 exponent and 1 mantissa bits: +- 0, 0.5, 1, 1.5, 2, 3, 4, 6. Rounding is to the nearest, ties to the
even mantissa, and saturates at 6. Two codes a byte, the first in the low nibble, as in checkpoints of both formats.

Shapes: W_OI (out, in), G = ceil(in / block), codes (ceil(O*I/2),) uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._integer import row_chunks, spans
from ._packed import bytes_of, read, write
from ._room import room

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*MAGNITUDES, *(-m for m in MAGNITUDES))  # of codes 0 .. 15: the high bit is the sign
CHUNK = 1 << 20  # weights handled at a time, in rows


def absmax_rows(W_OI: Tensor, block: int) -> Tensor:
    """(O, G) fp32: the largest magnitude of each block."""
    parts = [
        torch.linalg.vector_norm(W_OI[:, columns].unflatten(1, (-1, size)), torch.inf, dim=2).float()
        for columns, _, size in spans(W_OI.shape[1], block)
    ]
    return torch.cat(parts, 1)


def trimmed(scale: Tensor) -> Tensor:
    """fp32 scales cut to 18 significant bits: times a code and an 8-bit float they are exact in fp32."""
    return (scale.view(torch.int32) & ~63).view(torch.float32)


def nearest(values: Tensor) -> Tensor:
    """uint8 codes of fp32 values, which are overwritten."""
    negative = values < 0
    # a step of 1/2 below 2, of 1 below 4, of 2 above: the spacing of E2M1; round() takes ties to even multiples,
    # which have even mantissas
    size = values.abs_().clamp_(max=6)
    low, middle = (size * 2).round_(), size.round()
    high = size.mul_(0.5).round_()
    # codes: 2v below 2 (0 .. 4), v + 2 to 4 (4 .. 6), v / 2 + 4 to 6 (6, 7); the least that is not too small
    code = torch.minimum(low, middle.add_(2)).minimum(high.add_(4))
    return code.to(torch.uint8).add_(negative.to(torch.uint8) << 3)


def encode(W_OI: Tensor, factor_OG: Tensor, block: int) -> Tensor:
    """Packed codes of W * factor, the factor being that of the block."""
    O, I = W_OI.shape
    packed = torch.empty(bytes_of(O * I, 4), dtype=torch.uint8, device=W_OI.device)
    for rows in row_chunks(O, I, CHUNK, W_OI.device):
        part = W_OI[rows]
        codes = torch.empty(part.shape, dtype=torch.uint8, device=W_OI.device)
        for columns, groups, size in spans(I, block):
            w = part[:, columns].float().unflatten(1, (-1, size))
            codes[:, columns] = nearest(w * factor_OG[rows, groups, None]).flatten(1)
        write(packed, codes.view(-1), rows.start * I, O * I, 4)
    return packed


def decode(codes: Tensor, scale_OG: Tensor, block: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`: the codes' values times their block's scale, in the scale's type, rounded once."""
    O, I = shape
    work = scale_OG.dtype
    whole = O * I <= CHUNK
    out = None if whole else room(O * I, dtype, codes.device).view(shape)
    for rows in row_chunks(O, I, CHUNK, codes.device):
        values = read(codes, VALUES, rows.start * I, rows.stop * I, O * I, work).view(-1, I)
        for columns, groups, size in spans(I, block):
            values[:, columns].unflatten(1, (-1, size)).mul_(scale_OG[rows, groups, None])
        if out is None:
            return values.to(dtype)
        out[rows] = values
    assert out is not None
    return out
