"""From tokens to batches: the order of examples, packing into rows, and the shift, done here once.

Shapes: B rows, T positions.  Position t of a row predicts `targets[t]`.  A row holds whole examples one after another;
`doc` numbers them (-1: padding), `pos` restarts at 0 in each, and attention never crosses from one to the next.
`branch` numbers alternative continuations of one prompt (0: the shared trunk): a branch sees the trunk and itself.

The order is a pure function of (seed, epoch), so that the cursor of a run is its step, and resuming needs no other state.
Unlike the usual trainers nothing is averaged per row or per micro-batch: how a step's examples are cut into rows cannot
change its loss or gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .text import Tokens


@dataclass(frozen=True)
class Batch:
    """ids, targets, doc, pos, branch: long (B, T); weights: float32 (B, T); rows: adapter name of each row, or None."""

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    doc: torch.Tensor
    pos: torch.Tensor
    branch: torch.Tensor
    rows: list[str | None] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        names = ("ids", "targets", "weights", "doc", "pos", "branch")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n), a pure function of its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


def members(step: int, batch: int, n: int, seed: int) -> list[int]:
    """The indices of the `batch` examples of optimiser step `step`: epochs follow one another without a gap."""
    out: list[int] = []
    for epoch in range(step * batch // n, ((step + 1) * batch - 1) // n + 1):
        start, stop = max(step * batch - epoch * n, 0), min((step + 1) * batch - epoch * n, n)
        out.extend(int(i) for i in order(n, seed, epoch)[start:stop])
    return out


def pieces(tokens: Tokens, length: int) -> list[Tokens]:
    """A long document cut into pieces of at most `length` predictions; neighbours share the token at the cut."""
    n = len(tokens.ids)
    return [
        Tokens(tokens.ids[k : k + length + 1], tokens.weights[k : k + length + 1], f"{tokens.id}:{k}")
        for k in range(0, n - 1, length)
    ]


def pack(stream: Iterable[Tokens], length: int) -> list[list[Tokens]]:
    """Rows of whole examples, each row at most `length` predictions, in the stream's order.

    An example longer than `length` is the caller's mistake: text.fit decides about those, before.
    """
    rows: list[list[Tokens]] = []
    used = length + 1
    for tokens in stream:
        n = len(tokens.ids) - 1
        assert 0 < n <= length, f"example {tokens.id} has {n} predictions, rows have {length}"
        if used + n > length:
            rows.append([])
            used = 0
        rows[-1].append(tokens)
        used += n
    return rows


def collate(rows: Sequence[Sequence[Tokens]], length: int | None = None) -> Batch:
    """A Batch of the rows, padded to `length` or, without one, to the longest row."""
    width = max(sum(len(t.ids) - 1 for t in row) for row in rows)
    length = width if length is None else length
    assert width <= length, f"a row of {width} predictions does not fit {length}"
    shape = (len(rows), length)
    ids, targets, pos, branch = (np.zeros(shape, np.int64) for _ in range(4))
    weights, doc = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
    for b, row in enumerate(rows):
        k = 0
        for d, t in enumerate(row):
            n = len(t.ids) - 1
            here = slice(k, k + n)
            ids[b, here], targets[b, here] = t.ids[:-1], t.ids[1:]
            weights[b, here], doc[b, here], pos[b, here] = t.weights[1:], d, np.arange(n)
            k += n
    return Batch(*(torch.from_numpy(a) for a in (ids, targets, weights, doc, pos, branch)))
