"""The search for the shift of each block under NF4, all candidates of a block at once: the inside of `nf4_icq`.

A block's weights are sorted and put into units of its reach, u = (w - median) / max|w - median|, so that every block has
the same candidates f. Under the shift f a weight has code k where t_(k-1) < u <= t_k, with

    t_k(f) = f + a(f) mid_k,   a(f) = max(hi - f, f - lo),   lo, hi the ends of u,   mid_k between CODE[k] and CODE[k+1]

Every t_k grows with f (|mid_k| < 1), so that a weight changes its code only where a threshold passes it, which happens
about once a weight over the whole range. The search finds these passings, adds up what each changes at the candidate
where it happens, and runs over the candidates with sums alone: 201 candidates cost hardly more than ten.

Shapes: B blocks of L weights, C candidates; u_BL sorted, f_C, thresholds and cuts (B, 15).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .nf4 import CODE

TINY = 1e-38  # keeps 1 / reach finite in a block of equal weights
UNIT = 1 << 16  # n log2 n is summed in whole 1/65536ths: histograms that are alike in another order tie exactly


@dataclass(frozen=True)
class Blocks:
    """Sorted blocks in units of their reach, with the running sums that errors are computed from.

    u_BL; median_B, reach_B in the weight's units; count, first: (B, L + 1), sums of h and h u; second_B: sum of h u^2.
    """

    u: Tensor
    median: Tensor
    reach: Tensor
    count: Tensor
    first: Tensor
    second: Tensor


def blocks_of(w_BL: Tensor, h_BL: Tensor | None) -> Blocks:
    """fp32 blocks, each weight's squared error weighted by h (None: 1). The median is the lower one of two."""
    ordered, order = w_BL.sort(1)
    L = w_BL.shape[1]
    median = ordered[:, (L - 1) // 2].clone()
    u = ordered.sub_(median[:, None])
    reach = torch.maximum(-u[:, 0], u[:, -1])
    u /= reach.clamp(min=TINY)[:, None]
    # exact sums: an error is the small difference of large ones
    fine = u.double()
    h = torch.ones_like(fine) if h_BL is None else h_BL.gather(1, order).double()
    count, first = (F.pad(t.cumsum(1), (1, 0)) for t in (h, h * fine))
    return Blocks(u, median, reach, count, first, (h * fine * fine).sum(1))


def _levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """(CODE (16,), the middles (15,)), fp32."""
    code = torch.tensor(CODE, dtype=torch.float32, device=device)
    return code, (code[:-1] + code[1:]) / 2


def cuts_of(blocks: Blocks, f: Tensor) -> tuple[Tensor, Tensor]:
    """(cuts (B, 15): how many weights lie at or below each threshold, a_B) under the shifts f, (B,) or ()."""
    _, middles = _levels(f.device)
    a = torch.maximum(blocks.u[:, -1] - f, f - blocks.u[:, 0])
    return torch.searchsorted(blocks.u, (f.reshape(-1, 1) + a[:, None] * middles), right=True), a


def _moments(blocks: Blocks, cuts: Tensor) -> Tensor:
    """(3, B) fp64: the sums of h u c, h c and h c^2 over a block, c its weights' code values."""
    code = _levels(cuts.device)[0].double()
    step, square = code[:-1] - code[1:], code[:-1] ** 2 - code[1:] ** 2
    first, count = blocks.first.gather(1, cuts), blocks.count.gather(1, cuts)
    ends = blocks.first[:, -1] * code[-1], blocks.count[:, -1] * code[-1], blocks.count[:, -1] * code[-1] ** 2
    return torch.stack([first @ step, count @ step, count @ square]) + torch.stack(ends)


def _error(blocks: Blocks, f: Tensor, a: Tensor, moments: Tensor) -> Tensor:
    """(B,): the sum of h (u - f - a c)^2."""
    uc, c, cc = moments
    first, count = blocks.first[:, -1], blocks.count[:, -1]
    return blocks.second - 2 * (f * first + a * uc) + f * f * count + 2 * f * a * c + a * a * cc


def errors(blocks: Blocks, tau: Tensor) -> Tensor:
    """(B,) fp64: the weighted squared error, in units of reach^2, of NF4(w - tau) + tau."""
    f = (tau - blocks.median) / blocks.reach.clamp(min=TINY)
    cuts, a = cuts_of(blocks, f)
    return _error(blocks, f.double(), a.double(), _moments(blocks, cuts))


def _passings(blocks: Blocks, f_C: Tensor) -> tuple[Tensor, ...]:
    """(cuts at the first candidate, then one entry a passing: block, threshold, candidate, place in u.view(-1))."""
    B, L = blocks.u.shape
    _, middles = _levels(f_C.device)
    start, _ = cuts_of(blocks, f_C[0])
    stop, _ = cuts_of(blocks, f_C[-1])
    many = (stop - start).clamp_(min=0).view(-1)
    pair = torch.repeat_interleave(torch.arange(many.numel(), device=many.device), many)
    block = pair // 15
    threshold = pair - block * 15
    # counted from the first passing of this block and threshold
    within = torch.arange(pair.numel(), device=many.device) + (start.view(-1) - many.cumsum(0) + many).index_select(
        0, pair
    )
    place = block * L + within
    u, mid = blocks.u.view(-1).index_select(0, place), middles.index_select(0, threshold)
    lo, hi = (end.index_select(0, block) for end in (blocks.u[:, 0], blocks.u[:, -1]))
    # the shift at which f + mid (hi - f), or f + mid (f - lo), is u; a is the larger of the two brackets
    left, right = (u - mid * hi) / (1 - mid), (u + mid * lo) / (1 + mid)
    f = torch.where(mid > 0, torch.minimum(left, right), torch.maximum(left, right))
    step = (f_C[-1] - f_C[0]) / (len(f_C) - 1)
    candidate = ((f - f_C[0]) / step).ceil().clamp(1, len(f_C) - 1).long()
    return start, block, threshold, candidate, place


def least_error(blocks: Blocks, f_C: Tensor) -> Tensor:
    """(B,): the candidate of the least weighted squared error, the first of equals."""
    start, block, threshold, candidate, place = _passings(blocks, f_C)
    B = len(start)
    code = _levels(f_C.device)[0]
    # passing a weight lowers its code by one
    step, square = (part.index_select(0, threshold) for part in (code[:-1] - code[1:], code[:-1] ** 2 - code[1:] ** 2))
    h = (blocks.count[:, 1:] - blocks.count[:, :-1]).float().reshape(-1).index_select(0, place)
    step, square = h * step, h * square
    u = blocks.u.view(-1).index_select(0, place)
    change = torch.zeros(len(f_C) * 3 * B, device=f_C.device)
    at = candidate * (3 * B) + block
    for k, amount in enumerate((step * u, step, square)):
        change.scatter_add_(0, at + k * B, amount)
    change = change.view(len(f_C), 3, B)
    moments, least, best = _moments(blocks, start).float(), None, None
    light = replace(
        blocks, count=blocks.count[:, -1:].float(), first=blocks.first[:, -1:].float(), second=blocks.second.float()
    )
    lo, hi = blocks.u[:, 0], blocks.u[:, -1]
    for k, f in enumerate(f_C):
        moments += change[k]
        error = _error(light, f, torch.maximum(hi - f, f - lo), moments)
        if least is None:
            least, best = error, f.expand(B).clone()
            continue
        best = torch.where(error < least, f, best)
        least = torch.minimum(error, least)
    assert best is not None
    return best


def most_entropy(blocks: Blocks, f_C: Tensor) -> Tensor:
    """(B,): the candidate under which the codes' histogram has the largest entropy, the first of equals."""
    start, block, threshold, candidate, _ = _passings(blocks, f_C)
    B, L = blocks.u.shape
    table = torch.arange(L + 1, dtype=torch.float64, device=f_C.device)
    table = (torch.xlogy(table, table) / torch.log(torch.tensor(2.0)) * UNIT).round().int()
    change = torch.zeros(len(f_C) * 15 * B, dtype=torch.uint8, device=f_C.device)  # blocks have 128 weights at most
    change.scatter_add_(0, (candidate * 15 + threshold) * B + block, torch.ones_like(block, dtype=torch.uint8))
    change = change.view(len(f_C), 15, B)
    cuts = torch.zeros(17, B, dtype=torch.int32, device=f_C.device)
    cuts[1:16], cuts[16] = start.t(), L
    best, least = f_C[0].expand(B).clone(), None
    for k, f in enumerate(f_C):
        cuts[1:16] += change[k]
        # sum of n log2 n: the entropy is log2 L - this / L
        spent = table.index_select(0, (cuts[1:] - cuts[:-1]).view(-1)).view(16, B).sum(0, dtype=torch.int32)
        if least is None:
            least = spent
            continue
        best = torch.where(spent < least, f, best)
        least = torch.minimum(spent, least)
    return best
