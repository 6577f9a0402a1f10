"""Weights as 4-bit numbers of a table of 16 values, scaled by the largest value of their block.

    c = nearest(W / a),  a = max|W| over the block,  W ~ TABLE[c] a

The layout is bitsandbytes' own: W is read row by row, blocks are runs of `block` weights whatever the rows, the last may be
short; two codes a byte, the first in the high nibble. What differs is how the nearest value is found. The usual way is a
binary search over the 15 middles between neighbours, four unpredictable branches a weight. But the upper bits of a float
(sign, exponent, three digits) already decide on which side of all middles but at most one it lies, and the lower bits
compare with that one as integers. Both facts fit in one addend per value of the upper bits (`ladder`):

    label = (bits + STEPS[bits >> 20]) >> 20        integer addition carries into the label exactly above the middle

so that a weight costs one look-up in a table of 4096 and no branch, and a comparison is exact to the last bit, ties
included. Two labels, that is one byte of codes, are then looked up at once. Decoding looks a byte up in a table of 256
pairs and scales once. All is done in slices that stay in the cache, each by one thread (_threads.py): the result does not
depend on their number.

Shapes: W_OI (out, in); codes (ceil(O*I/2),) uint8; absmax (ceil(O*I/block),) fp32; N weights of a slice, whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FinloraError
from ..linear import check_finite
from ._room import room
from ._threads import over_slices

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
CHUNK = 1 << 24  # weights decoded at a time on an accelerator (encoded: a quarter): scratch of at most some 130 MB
SLICE = 1 << 19
TINY = 1e-38  # keeps 1 / absmax finite in a block of zeros
SHIFT = 20  # bits below sign, exponent and three digits of an fp32


def check_block(block: int) -> None:
    """Raises FinloraError where `block` is no block size of bitsandbytes."""
    if block not in BLOCKS:
        raise FinloraError(f"block must be a power of two from 32 to 4096, got {block!r}", "use 64")


def bits(block: int, shape: tuple[int, int]) -> float:
    """4 + 32 / block, a little more where the last byte or block is short."""
    n = shape[0] * shape[1]
    return (8 * -(-n // 2) + 32 * -(-n // block)) / n


def slice_size(device: torch.device, block: int, limit: int) -> int:
    """How many weights to handle at a time: whole blocks, and on a CPU what a thread can keep in its cache."""
    size = min(limit, SLICE) if device.type == "cpu" else limit
    return max(block, size // block * block)


# -- nearest ---------------------------------------------------------------------------------------------------------


@cache
def ladder(table: tuple[float, ...], shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(steps int32 (2^(32 - shift),), codes uint8 (2 L,)): nearest(x) = codes[label(x)] for finite fp32 x.

    The label is the number of middles that lie below |x| in size on x's side of zero, plus L where x is negative; L is
    the first power of two not below the table's length. A tie goes to the smaller value. shift: how many lower bits of x
    are compared; between two values of the upper bits there must be one middle at most.
    """
    with torch.inference_mode(False):
        values, order = torch.tensor(table, dtype=torch.float32).sort(stable=True)
        middles = (values[:-1] + values[1:]) / 2
        size = middles.abs().view(torch.int32).long()  # floats of one sign are ordered as their bits are
        sides = 1 << (31 - shift)
        span = 1 << (len(table) - 1).bit_length()
        below = int((middles < 0).sum())
        steps, codes = [], torch.zeros(2 * span, dtype=torch.long)
        # x > m: for m >= 0 from the next float on; for m < 0 as long as |x| is smaller
        for negative, edges in ((1, size[middles < 0].flip(0)), (0, size[middles >= 0] + 1)):
            upper, lower = edges >> shift, edges & ((1 << shift) - 1)
            assert len(upper.unique()) == len(upper), "two middles share their upper bits: compare fewer lower bits"
            count = torch.bincount(upper, minlength=sides)
            label = count.cumsum(0) - count + negative * span
            carry = torch.zeros(sides, dtype=torch.long).index_put_((upper,), (1 << shift) - lower)
            steps.append(((label - torch.arange(sides) + negative * sides) << shift) + carry)
            rank = torch.arange(len(edges) + 1)
            codes[negative * span + rank] = order[below - rank if negative else below + rank]
        # modulo 2^32, as the sum that they go into
        return torch.cat(steps).to(torch.int32).to(device), codes.to(torch.uint8).to(device)


@cache
def _byte_of(table: tuple[float, ...], device: torch.device) -> Tensor:
    """(8192,) uint8: the byte of two codes, at label of the first + 256 * label of the second."""
    with torch.inference_mode(False):
        codes = ladder(table, SHIFT, torch.device("cpu"))[1]
        return ((F.pad(codes, (0, 256 - codes.numel()))[None, :] << 4) | codes[:, None]).reshape(-1).to(device)


@cache
def _pairs(table: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256,) of a type twice as wide as `dtype`: the two values a byte stands for, side by side in memory."""
    with torch.inference_mode(False):
        code, byte = torch.tensor(table, dtype=torch.float32).to(dtype), torch.arange(256)
        pairs = torch.stack([code[byte >> 4], code[byte & 15]], 1).contiguous()
        return pairs.view({4: torch.float64, 8: torch.complex128}[dtype.itemsize]).reshape(256).to(device)


def _look_up(table: Tensor, index_RC: Tensor, out_RC: Tensor) -> Tensor:
    """table[index], in out_RC."""
    torch.index_select(table, 0, index_RC.view(-1), out=out_RC.view(-1))
    return out_RC


def label(x_RC: Tensor, steps: Tensor, shift: int, index_RC: Tensor, out_RC: Tensor) -> Tensor:
    """Labels of fp32 x for the codes of `ladder`, in out_RC (int32). index_RC: scratch."""
    bits_RC = x_RC.view(torch.int32)
    torch.bitwise_right_shift(bits_RC, shift, out=out_RC)
    index_RC.copy_(out_RC.add_(steps.numel() // 2))  # negative numbers come first
    return _look_up(steps, index_RC, out_RC).add_(bits_RC).bitwise_right_shift_(shift)


@torch.no_grad()
def nearest(table: tuple[float, ...], x_RC: Tensor, shift: int) -> Tensor:
    """uint8 like x_RC: the place in `table` of the value nearest to x (fp32, finite); a tie goes to the smaller value."""
    steps, codes = ladder(table, shift, x_RC.device)
    index_RC = torch.empty_like(x_RC, dtype=torch.int32)
    index_RC.copy_(label(x_RC, steps, shift, index_RC, torch.empty_like(x_RC, dtype=torch.int32)))
    return _look_up(codes, index_RC, torch.empty_like(x_RC, dtype=torch.uint8))


# -- the codec -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(table: tuple[float, ...], W_OI: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(codes, absmax) of a weight. Raises: FinloraError on non-finite weights."""
    flat, n, device = W_OI.reshape(-1), W_OI.numel(), W_OI.device
    whole = n // block * block
    codes = torch.empty((n + 1) // 2, dtype=torch.uint8, device=device)
    absmax = torch.empty(-(-n // block), dtype=torch.float32, device=device)
    steps, byte_of = ladder(table, SHIFT, device)[0], _byte_of(table, device)
    size = min(slice_size(device, block, CHUNK // 4), max(whole, block))

    def worker() -> Callable[[int, int], None]:
        scaled = torch.empty(size, dtype=torch.float32, device=device)
        labels, index = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
        small = torch.empty(size, dtype=torch.uint8, device=device)

        def pack(x_NB: Tensor, out: Tensor) -> None:
            """The bytes of values within [-1, 1]. B is even."""
            count, shape = x_NB.numel(), x_NB.shape
            found = label(x_NB, steps, SHIFT, index[:count].view(shape), labels[:count].view(shape))
            two = small[:count].copy_(found.view(-1)).view(torch.int16)
            pairs = index[: count // 2].copy_(two).view(shape[0], -1)
            _look_up(byte_of, pairs, out.view(pairs.shape))

        def work(start: int, stop: int) -> None:
            if start == whole:  # the short block at the end
                rest = flat[whole:].float()
                absmax[-1] = rest.abs().amax().clamp(min=TINY)
                return pack(F.pad(rest / absmax[-1], (0, (n - whole) % 2))[None], codes[whole // 2 :])
            part_NB, x_NB = flat[start:stop].view(-1, block), scaled[: stop - start].view(-1, block)
            if part_NB.dtype != torch.float32:
                part_NB = x_NB.copy_(part_NB)
            largest = absmax[start // block : stop // block]
            torch.amax(torch.abs(part_NB, out=labels[: stop - start].view(torch.float32).view(-1, block)), 1, out=largest)
            # bitsandbytes multiplies whole blocks by the reciprocal and divides a short one: the last bit can decide a tie
            torch.mul(part_NB, (1.0 / largest.clamp(min=TINY))[:, None], out=x_NB)
            pack(x_NB, codes[start // 2 : stop // 2])

        return work

    over_slices(whole, size, device, worker)
    if whole < n:
        worker()(whole, n)
    if not bool(absmax.isfinite().all()):  # NaN and infinity reach the absmax of their block
        check_finite(W_OI.float())
    return codes, absmax


@torch.no_grad()
def decode(
    table: tuple[float, ...], codes: Tensor, absmax: Tensor, block: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """W_OI in `dtype`: TABLE[codes] * absmax, multiplied in fp32 (fp64 for fp64) and rounded once."""
    n, device = shape[0] * shape[1], codes.device
    whole = n // block * block
    work = torch.float64 if dtype == torch.float64 else torch.float32
    pairs, absmax = _pairs(table, device, work), absmax.to(work)
    out = room(n, dtype, device)
    size = min(slice_size(device, block, CHUNK), whole)

    def worker() -> Callable[[int, int], None]:
        index = torch.empty(size // 2, dtype=torch.int32, device=device)
        found = None if dtype == work else torch.empty(size // 2, dtype=pairs.dtype, device=device)

        def one(start: int, stop: int) -> None:
            half, scale = (stop - start) // 2, absmax[start // block : stop // block, None]
            index_NH = index[:half].copy_(codes[start // 2 : stop // 2]).view(-1, block // 2)
            if dtype == work:
                to = out[start:stop]
                _look_up(pairs, index_NH, to.view(pairs.dtype).view(index_NH.shape))
                to.view(-1, block).mul_(scale)
            else:
                values_NB = _look_up(pairs, index_NH, found[:half].view(index_NH.shape)).view(work).view(-1, block)
                out[start:stop].view(-1, block).copy_(values_NB.mul_(scale))

        return one

    over_slices(whole, size, device, worker)
    if whole < n:
        rest = pairs.index_select(0, codes[whole // 2 :].int()).view(work)[: n - whole]
        out[whole:] = rest * absmax[-1]
    return out.view(shape)
