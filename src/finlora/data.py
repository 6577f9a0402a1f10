"""From tokens to batches: the order of examples, packing into rows, and the shift, done here once.

Shapes: B rows, T positions.  Position t of a row predicts `targets[t]`.  A row holds whole examples one after another;
`doc` numbers them (-1: padding), `pos` restarts at 0 in each, and attention never crosses from one to the next.
`branch` numbers alternative continuations of one beginning (0: the shared trunk): a branch sees the trunk and itself.

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

SHARED = 8  # tokens that neighbours must have in common: below that, keeping them apart costs less than joining them


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

    @staticmethod
    def tensors() -> tuple[str, ...]:
        """The names of the (B, T) fields."""
        return ("ids", "targets", "weights", "doc", "pos", "branch")

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in self.tensors()})


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


@dataclass(frozen=True)
class Tree:
    """Examples that begin alike: the first `trunk` predictions are the same in all and have no weight in any."""

    trunk: int
    members: tuple[Tokens, ...]

    def __len__(self) -> int:
        """Positions that it takes: the trunk once, and the rest of each example."""
        return self.trunk + sum(len(t.ids) - 1 - self.trunk for t in self.members)

    def joined(self, tokens: Tokens) -> Tree | None:
        """The tree with one more example, or None where that would save less than leaving it out."""
        first = self.members[0]
        trunk = _alike(first.ids, tokens.ids, min(self.trunk if len(self.members) > 1 else _silent(first), _silent(tokens)))
        if trunk < SHARED or trunk * len(self.members) < self.trunk * (len(self.members) - 1):
            return None
        return Tree(trunk, (*self.members, tokens))


def trees(row: Iterable[Tokens], share: bool) -> list[Tree]:
    """A row's examples, neighbours that begin alike put together if `share`."""
    out: list[Tree] = []
    for tokens in row:
        tree = out[-1].joined(tokens) if share and out else None
        if tree is None:
            out.append(Tree(0, (tokens,)))
        else:
            out[-1] = tree
    return out


def _silent(tokens: Tokens) -> int:
    """How many of the example's first predictions have no weight."""
    return next((k for k, w in enumerate(tokens.weights[1:]) if w), len(tokens.ids) - 1)


def _alike(a: tuple[int, ...], b: tuple[int, ...], most: int) -> int:
    """How many of the first `most` tokens are the same."""
    low, high = 0, min(len(a), len(b), most)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def pack(stream: Iterable[Tokens], length: int, share: bool = False) -> list[list[Tokens]]:
    """Rows of whole examples, each row at most `length` predictions, in the stream's order.

    share: sort the examples by their tokens, so that those that begin alike are neighbours, and count what they have in
    common once; `collate` then lays it out once.  An instruction that every example repeats, or a document that many ask
    about, is computed once a row, and loss and gradient stay what they are: causal attention cannot tell.
    An example longer than `length` is the caller's mistake: text.fit decides about those, before.
    """
    rows: list[list[Tokens]] = []
    last, closed = Tree(0, ()), length + 1  # the row's last tree, and the positions before it
    for tokens in sorted(stream, key=lambda t: t.ids) if share else stream:
        n = len(tokens.ids) - 1
        assert 0 < n <= length, f"example {tokens.id} has {n} predictions, rows have {length}"
        tree = last.joined(tokens) if share and last.members else None
        if tree is None:
            tree, closed = Tree(0, (tokens,)), closed + len(last)
        if closed + len(tree) > length:
            rows.append([])
            tree, closed = Tree(0, (tokens,)), 0
        rows[-1].append(tokens)
        last = tree
    return rows


def collate(rows: Sequence[Sequence[Tokens]], length: int | None = None, share: bool = False) -> Batch:
    """A Batch of the rows, padded to `length` or, without one, to the longest row.  share: as the rows were packed with."""
    grown = [trees(row, share) for row in rows]
    width = max(sum(map(len, row)) for row in grown)
    length = width if length is None else length
    assert width <= length, f"a row of {width} predictions does not fit {length}"
    shape = (len(rows), length)
    ids, targets, pos, branch = (np.zeros(shape, np.int64) for _ in range(4))
    weights, doc = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
    for b, row in enumerate(grown):
        k = 0
        for d, tree in enumerate(row):
            for number, t in enumerate(tree.members):
                start, stop = tree.trunk if number else 0, len(t.ids) - 1
                here = slice(k, k + stop - start)
                ids[b, here], targets[b, here] = t.ids[start:-1], t.ids[start + 1 :]
                weights[b, here], doc[b, here], pos[b, here] = t.weights[start + 1 :], d, np.arange(start, stop)
                if len(tree.members) > 1:
                    branch[b, k + tree.trunk - start : k + stop - start] = number + 1
                k += stop - start
    return Batch(*(torch.from_numpy(a) for a in (ids, targets, weights, doc, pos, branch)))
