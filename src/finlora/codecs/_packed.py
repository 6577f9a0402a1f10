"""Small codes in whole bytes: packing them, and looking bytes up instead of taking them apart.

Codes of 1, 2 or 4 bits fill a byte from its low end. A code of 3 bits is kept as two planes, its low two bits and its
high bit, which together take 3 bytes for 8 codes and, unlike codes that straddle bytes, decode by whole-byte look-up.

Shapes: codes (n,) uint8, packed (bytes_of(n, width),) uint8, values (2^width,).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = {2: (2,), 3: (2, 1), 4: (4,)}  # width of a code -> widths of its planes, the low one first


def bytes_of(n: int, width: int) -> int:
    """Bytes that n codes of `width` bits take; a plane's last byte may be short."""
    return sum(-(-n * plane // 8) for plane in PLANES[width])


def offsets_of(n: int, width: int) -> list[tuple[int, int, int]]:
    """(bits below, plane width, first byte) of each plane."""
    out, below, first = [], 0, 0
    for plane in PLANES[width]:
        out.append((below, plane, first))
        below, first = below + plane, first + -(-n * plane // 8)
    return out


def write(packed: Tensor, codes: Tensor, start: int, n: int, width: int) -> None:
    """Put codes start, start + 1, ... of n into `packed`. start: a multiple of 8; so is len(codes), but at the end."""
    for below, plane, first in offsets_of(n, width):
        per = 8 // plane
        part = codes if plane == width else (codes >> below) & (2**plane - 1)
        part = F.pad(part, (0, -part.numel() % per)).view(-1, per)
        whole = part[:, 0].clone()
        for k in range(1, per):
            whole |= part[:, k] << (k * plane)
        at = first + start // per
        packed[at : at + whole.numel()] = whole


def pack(codes: Tensor, width: int) -> Tensor:
    """(bytes_of(n, width),) uint8 of (n,) codes."""
    packed = torch.empty(bytes_of(codes.numel(), width), dtype=torch.uint8, device=codes.device)
    write(packed, codes, 0, codes.numel(), width)
    return packed


@cache
def _table(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256, codes a byte): the values a byte stands for, side by side; pairs are kept as one wider number."""
    with torch.inference_mode(False):
        per = {2: 8, 4: 4, 16: 2}[len(values)]
        digits = (torch.arange(256)[:, None] >> (torch.arange(per) * (8 // per))) & (len(values) - 1)
        table = torch.tensor(values, dtype=torch.float64).to(dtype)[digits].contiguous()
        if per == 2:  # one load instead of two: twice as fast on a CPU
            table = table.view({4: torch.float64, 8: torch.complex128}[dtype.itemsize]).reshape(256)
        return table.to(device)


def _look_up(part: Tensor, values: tuple[float, ...], dtype: torch.dtype, n: int) -> Tensor:
    return _table(values, part.device, dtype).index_select(0, part.int()).view(dtype).reshape(-1)[:n]


def read(packed: Tensor, values: tuple[float, ...], start: int, stop: int, n: int, dtype: torch.dtype) -> Tensor:
    """(stop - start,) of `dtype`: the value of each code from start to stop of n. start: a multiple of 8.

    values: of the codes 0, 1, ...; for codes of two planes the values must be the codes themselves.
    """
    width = len(values).bit_length() - 1
    planes = offsets_of(n, width)
    assert len(planes) == 1 or values == tuple(range(2**width))
    total = None
    for below, plane, first in planes:
        per = 8 // plane
        part = packed[first + start // per : first + -(-stop // per)]
        own = values if len(planes) == 1 else tuple(k << below for k in range(2**plane))
        found = _look_up(part, own, dtype, stop - start)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total
