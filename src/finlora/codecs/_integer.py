"""Integers of 2, 3 and 4 bits in groups with a scale and a zero: what `int2`, `int3` and `int4` share.

    s = bf16((hi - lo) / top),   z = round(-lo / s),   q = clamp(round(w / s) + z, 0, top),   w ~ s (q - z)

lo <= 0 <= hi are the ends of a group, top = 2^bits - 1. z is a whole number, so that 0 is on the grid and zeros stay
zeros; it is kept in as many bits as a code. A group is a run of 64 (32, 128) weights of one row, the last of a row may
be short.

The scale is kept in bf16, not in the usual fp16: codes are rounded against the scale as it is kept, so that its few
bits cost nothing (Gaussian weights, 4 bits, groups of 64: relative error 0.0911 with fp32 scales and with bf16), and it
has fp32's range, where fp16 would turn weights below 1e-6 to zeros and above 1e6 to infinity without a word. Where
rounding the scale up leaves the highest code out of reach the next smaller scale is taken: then a decoded group spans
the whole grid again and encodes to itself. A zero that is a fraction would give 0.0897, for 12 bits a group more.

`refine = "hqq"` moves z as HQQ does (Badri and Shaji, 2023): twenty rounds of

    e = shrink(w - s (q - z)),   z = mean(q - (w - e) / s),   shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)

with p = 0.7, beta = 10 growing by 1.01, s as it was. z then is a fraction, kept in fp16 (it lies within 0 .. top). HQQ
stops when the mean error of the whole tensor grows and keeps the z after that; here each group keeps the best z that
it has seen, so that no group ends with a larger mean |w - s (q - z)| than it began with (at a fractional z). `shrink`
is in units of the weight: below 0.17 = beta^(-1 / (2 - p)) it is zero, and the errors of usual models are far below.
There z is a plain mean, the p-norm plays no part, and the squared error falls too: 0.0911 -> 0.0863 at 4 bits,
0.457 -> 0.433 at 2. With weights of size 10, where shrink acts: 0.0884 and 0.450. A group that holds an exact zero gets
z rounded.

Shapes: W_OI (out, in); G = ceil(in / group); codes packed uint8; scale_OG bf16; zero (O*G codes packed) or zero_OG fp16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..linear import check_finite
from ._choices import check_choices
from ._packed import bytes_of, pack, read, write
from ._room import room

CHUNK = 1 << 20  # weights handled at a time, in rows
TINY = 1e-36  # a group whose scale is below this decodes to zeros; keeps 1 / scale finite
P, BETA, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20  # HQQ's constants


@dataclass(frozen=True)
class Integers:
    """group: weights of a row that share scale and zero. refine: hqq moves the zero to lessen the mean error."""

    group: Literal[32, 64, 128] = 64
    refine: Literal["none", "hqq"] = "none"

    def __post_init__(self):
        check_choices(self)


def spans(I: int, group: int) -> Iterator[tuple[slice, slice, int]]:
    """(columns, groups, width): the whole groups of a row, then its short last group."""
    whole = I // group
    if whole:
        yield slice(0, whole * group), slice(0, whole), group
    if I % group:
        yield slice(whole * group, I), slice(whole, whole + 1), I % group


def row_chunks(O: int, I: int, chunk: int, device: torch.device) -> Iterator[slice]:
    """Runs of rows of some `chunk` weights, or all; a multiple of 8 rows, so that packed planes begin at whole bytes.

    An accelerator, which no cache helps and every call costs, is given sixteen times as many.
    """
    chunk = chunk if device.type == "cpu" else 16 * chunk
    rows = O if O * I <= chunk else max(8, chunk // I // 8 * 8)
    return (slice(start, min(start + rows, O)) for start in range(0, O, rows))


def _grid(w: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(scale bf16, 1 / scale or 0, zero not yet rounded) of groups w (..., width)."""
    lo, hi = w.amin(-1).clamp_(max=0), w.amax(-1).clamp_(min=0)
    scale = (hi / top - lo / top).bfloat16()
    inverse = _inverse(scale)
    short = ((-lo * inverse).round() + hi * inverse).round() < top
    # the bits of a positive float are those of a whole number that grows with it
    scale = torch.where(short & (scale > TINY), (scale.view(torch.int16) - 1).view(torch.bfloat16), scale)
    scale = torch.where(scale > TINY, scale, 0)
    inverse = _inverse(scale)
    return scale, inverse, -lo * inverse


def _inverse(scale: Tensor) -> Tensor:
    """fp32 1 / scale, 0 where the group decodes to zeros."""
    return torch.where(scale > TINY, 1 / scale.float(), 0)


def _hqq(w: Tensor, scale: Tensor, inverse: Tensor, zero: Tensor, top: int) -> Tensor:
    """HQQ's zero for groups w (..., width), as fp16 keeps it."""
    scale, inverse = scale.float()[..., None], inverse[..., None]
    x = w * inverse
    best, least, beta = zero, torch.full_like(zero, torch.inf), BETA
    for _ in range(ROUNDS + 1):
        zero = zero.half().float().clamp(0, top)
        codes = (x + zero[..., None]).round_().clamp_(0, top)
        error = w - (codes - zero[..., None]) * scale
        size = error.abs()
        mean = size.mean(-1)
        better = mean < least
        best, least = torch.where(better, zero, best), torch.where(better, mean, least)
        zero = codes.sub_(x)
        if float(size.amax()) > beta ** (-1 / (2 - P)):  # below that shrink is zero
            zero += error.sign() * (size - size.pow(P - 1) / beta).clamp_(min=0) * inverse
        zero = zero.mean(-1)
        beta *= GROWTH
    return torch.where((w == 0).any(-1), best.round(), best).half()


def encode(cfg: Integers, W_OI: Tensor, width: int) -> dict[str, Tensor]:
    """{"codes": packed uint8, "scale": (O, G) bf16, "zero"}. Raises: FinloraError on non-finite weights."""
    check_finite(W_OI)
    O, I = W_OI.shape
    top, device = 2**width - 1, W_OI.device
    G = -(-I // cfg.group)
    hqq = cfg.refine == "hqq"
    scale = torch.empty(O, G, dtype=torch.bfloat16, device=device)
    zero = torch.empty(O, G, dtype=torch.float16 if hqq else torch.uint8, device=device)
    packed = torch.empty(bytes_of(O * I, width), dtype=torch.uint8, device=device)
    for rows in row_chunks(O, I, CHUNK, W_OI.device):
        part = W_OI[rows]
        codes = torch.empty(part.shape, dtype=torch.uint8, device=device)
        for columns, groups, size in spans(I, cfg.group):
            w = part[:, columns].float().unflatten(1, (-1, size))
            s, inverse, z = _grid(w, top)
            z = _hqq(w, s, inverse, z, top) if hqq else z.round_().clamp_(0, top)
            # one rounding of w / s + z: with a whole z it is round(w / s) + z but for ties
            q = (w * inverse[..., None]).add_(z[..., None].float())
            codes[:, columns] = q.round_().clamp_(0, top).flatten(1).to(torch.uint8)
            scale[rows, groups], zero[rows, groups] = s, z.to(zero.dtype)
        write(packed, codes.view(-1), rows.start * I, O * I, width)
    return {"codes": packed, "scale": scale, "zero": zero if hqq else pack(zero.view(-1), width)}


def decode(cfg: Integers, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, width: int) -> Tensor:
    """W_OI in `dtype`: s (q - z), in fp32 (fp64 for fp64), rounded once."""
    O, I = shape
    work = torch.float64 if dtype == torch.float64 else torch.float32
    grid = tuple(range(2**width))
    scale, zero = tensors["scale"].to(work), tensors["zero"]
    if zero.is_floating_point():
        zero = zero.to(work)
    else:
        zero = read(zero, grid, 0, scale.numel(), scale.numel(), work).view(scale.shape)
    whole = O * I <= CHUNK
    out = None if whole else room(O * I, dtype, scale.device).view(shape)
    for rows in row_chunks(O, I, CHUNK, scale.device):
        values = read(tensors["codes"], grid, rows.start * I, rows.stop * I, O * I, work).view(-1, I)
        for columns, groups, size in spans(I, cfg.group):
            part = values[:, columns].unflatten(1, (-1, size))
            part.sub_(zero[rows, groups, None]).mul_(scale[rows, groups, None])
        if out is None:
            return values.to(dtype)
        out[rows] = values
    assert out is not None
    return out


def bits(cfg: Integers, shape: tuple[int, int], width: int) -> float:
    """width + (16 + width) / group, or (16 + 16) / group with hqq; more where a row's last group is short."""
    O, I = shape
    groups = O * -(-I // cfg.group)
    zero = 2 * groups if cfg.refine == "hqq" else bytes_of(groups, width)
    return 8 * (bytes_of(O * I, width) + 2 * groups + zero) / (O * I)
