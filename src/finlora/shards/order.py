"""The order of a corpus larger than memory: blocks are shuffled, and pieces within a window of blocks.

A block is `block` neighbours, which lie together on disk.  An epoch permutes the blocks, takes `window` of them at a time,
and permutes the pieces of each window.  What fits one window is permuted as a whole.  Reading stays within `window` blocks,
and a step costs its batch: n / block numbers an epoch and block * window numbers a window are drawn once and kept.

Like `data.members` it is a pure function of the step, so that the step is all the position there is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

BLOCK, WINDOW = 256, 64


def members(step: int, batch: int, n: int, seed: int, *, block: int = BLOCK, window: int = WINDOW) -> list[int]:
    """The indices of the `batch` pieces of optimiser step `step`: epochs follow one another without a gap."""
    out: list[int] = []
    at, stop = step * batch, (step + 1) * batch
    while at < stop:
        epoch, place = divmod(at, n)
        held, skip = _window(n, seed, epoch, block, window, place)
        out.extend(held[skip : skip + stop - at].tolist())
        at += min(stop - at, len(held) - skip)
    return out


def _window(n: int, seed: int, epoch: int, block: int, window: int, place: int) -> tuple[np.ndarray, int]:
    """(the pieces of the window in which place `place` of the epoch lies, how far into it that is)."""
    blocks = _blocks(-(-n // block), seed, epoch)
    full, lacking = block * window, -n % block  # the last block is short by `lacking`, and so is the window that has it
    short = _place_of_last(len(blocks), seed, epoch) // window
    end = (short + 1) * full - lacking
    number = place // full if place < end else (place + lacking) // full
    start = number * full - (lacking if number > short else 0)
    return _pieces(n, seed, epoch, block, window, number), place - start


@lru_cache(4)
def _blocks(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


@lru_cache(4)
def _place_of_last(count: int, seed: int, epoch: int) -> int:
    return int(np.flatnonzero(_blocks(count, seed, epoch) == count - 1)[0])


@lru_cache(4)
def _pieces(n: int, seed: int, epoch: int, block: int, window: int, number: int) -> np.ndarray:
    blocks = _blocks(-(-n // block), seed, epoch)[number * window : (number + 1) * window]
    pieces = (blocks[:, None] * block + np.arange(block)).ravel()
    draw = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, number + 1]))  # a stream of its own
    return draw.permutation(pieces[pieces < n])
