"""Lines that ask with their end alone: the same attention as lines that ask with all of themselves, with fewer queries."""

from __future__ import annotations

import pytest
import torch

from finlora.attention import packed_attention, trimmed, whole
from finlora.data import Batch

CPU = torch.device("cpu")


def batch(documents: list[tuple[int, list[int]]]) -> Batch:
    """One row of documents, each (length of its trunk, lengths of its branches)."""
    doc, pos, branch = [], [], []
    for d, (trunk, tails) in enumerate(documents):
        for number, (start, n) in enumerate([(0, trunk), *((trunk, tail) for tail in tails)]):
            doc += [d] * n
            pos += range(start, start + n)
            branch += [number] * n
    rows = [torch.tensor([x]) for x in (doc, pos, branch)]
    zeros = torch.zeros_like(rows[0])
    return Batch(zeros, zeros, zeros.float(), *rows)


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize(
    "documents",
    [
        [(60, [3, 5, 2])],  # long trunk, short branches
        [(60, [20, 1]), (7, []), (90, [4] * 6), (33, [40, 2])],
        [(12, [30, 30]), (1, [1, 1]), (200, [9, 11])],
        [(50, [])],
    ],
    ids=["one", "mixed", "ends", "plain"],
)
def test_fewer_queries_give_the_same_attention(documents, window):
    """float64: measured at most 7e-16 over these cases."""
    row = batch(documents)
    T = row.doc.shape[1]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, T, 8, dtype=torch.float64, generator=generator) for heads in (4, 2, 2))
    full = whole(row)
    short = trimmed(full, CPU)
    asked = [sum((g.index if g.ask is None else g.ask).numel() for g in where.groups) for where in (full, short)]
    assert asked[1] <= asked[0]
    a, b = (packed_attention(q, k, v, where, None, window=window) for where in (full, short))
    assert (a - b).abs().max() < 1e-13


def test_short_branches_behind_a_long_trunk_ask_alone():
    short = trimmed(whole(batch([(100, [45] * 10)])), CPU)
    asked = sum((g.index if g.ask is None else g.ask).numel() for g in short.groups)
    assert asked <= 145 + 9 * 48, "the trunk asks once"


def test_lines_that_nothing_is_taken_from_are_left_out():
    """Two documents of which the second is computed where the first is, as when prompts are the same."""
    full = whole(batch([(40, []), (40, [])]))
    full.back = full.back[40:]
    short = trimmed(full, CPU)
    assert sum(g.index.shape[0] for g in short.groups) == 1
    assert torch.equal(short.groups[0].index[0], torch.arange(40, 80)) and torch.equal(short.back, torch.arange(40))
