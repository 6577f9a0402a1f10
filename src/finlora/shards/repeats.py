"""Which documents of a build repeat an earlier one: equal texts by a hash, near ones by MinHash.

Both write `.work/NAME.drop` for every unit, the places (int64) of the documents to leave out, from what each unit left
there: `NAME.hashes`, eight bytes a document, or `NAME.signatures`, 480 bytes a document, which stay on disk.

Near: in each band of the signatures, one after the other, a document is compared with the earlier ones of the same key that
are still there and not near each other, at most COMPARED, and goes where two signatures agree in four fifths of their
places.  That estimates J over pieces of five words (as Lee et al. 2022, arXiv 2107.06499): of pairs at J = 0.6 two in
a million go, at 0.7 nine in a thousand, at 0.75 12%, at 0.85 95%, at 0.9 99.97%.  Held at a time: some fifty bytes a document.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .. import minhash
from . import unit
from .plan import Unit
from .unit import WORK

AT_A_TIME = 4096  # documents of one key whose signatures are held together


def mark_equal(folder: Path, units: Iterable[Unit]) -> None:
    """Leave out texts whose hash came before, in that unit or another."""
    seen: list[np.ndarray] = []  # sorted, each more than twice the next: eight bytes a text, and few merges
    for u in units:
        hashes = np.fromfile(folder / WORK / f"{u.name}.hashes", np.uint64)
        fresh, first = np.unique(hashes, return_index=True)
        new = np.ones(len(fresh), bool)
        for known in seen:
            at = np.minimum(np.searchsorted(known, fresh), len(known) - 1)
            new &= known[at] != fresh
        unit.write(folder / WORK / f"{u.name}.drop", np.setdiff1d(np.arange(len(hashes)), first[new]).astype(np.int64).tobytes())
        if new.any():
            seen.append(fresh[new])
        while len(seen) > 1 and len(seen[-2]) <= 2 * len(seen[-1]):
            seen[-2:] = [np.sort(np.concatenate(seen[-2:]))]


def mark_near(folder: Path, units: Iterable[Unit]) -> None:
    """Leave out documents that are near an earlier one."""
    names = [u.name for u in units]
    files = _Signatures([folder / WORK / f"{name}.signatures" for name in names])
    there = np.ones(files.starts[-1], bool)
    for k in range(minhash.BANDS):
        rows = np.flatnonzero(there)
        keys = files.band(k, rows)
        for bucket in minhash.buckets(keys):
            _thin(rows[bucket], files, there)
    for name, start, end in zip(names, files.starts, files.starts[1:]):
        unit.write(folder / WORK / f"{name}.drop", np.flatnonzero(~there[start:end]).astype(np.int64).tobytes())


def _thin(rows: np.ndarray, files: _Signatures, there: np.ndarray) -> None:
    """Mark those of one key (ascending) that are near one before them."""
    heads: list[np.ndarray] = []
    for k in range(0, len(rows), AT_A_TIME):
        some = rows[k : k + AT_A_TIME]
        held = files.read(some)
        left = np.ones(len(some), bool)  # not near any head so far
        tried = 0
        while left.any():
            if tried == len(heads):
                if len(heads) == minhash.COMPARED:
                    break
                first = int(left.argmax())
                heads.append(held[first])
                left[first] = False
            near = left & (minhash.agreement(held, heads[tried]) >= minhash.ALIKE)
            there[some[near]] = False
            left &= ~near
            tried += 1


class _Signatures:
    """The signatures of all units by the documents' places in their order; mapped, not read."""

    def __init__(self, paths: list[Path]):
        wide = minhash.BANDS * minhash.PLACES
        sizes = [p.stat().st_size // (4 * wide) for p in paths]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.paths, self.wide = paths, wide

    def _file(self, n: int) -> np.ndarray:
        many = int(self.starts[n + 1] - self.starts[n])
        return np.memmap(self.paths[n], np.dtype("<u4"), "r", shape=(many, self.wide)) if many else np.zeros((0, self.wide), np.uint32)

    def band(self, k: int, rows: np.ndarray) -> np.ndarray:
        """The keys of band k of the documents at `rows`, ascending; one unit at a time."""
        out, cuts = [np.zeros(0, np.uint64)], np.searchsorted(rows, self.starts)
        for n in range(len(self.paths)):
            mine = rows[cuts[n] : cuts[n + 1]] - self.starts[n]
            if len(mine):
                file = self._file(n)
                places = slice(k * minhash.PLACES, (k + 1) * minhash.PLACES)
                out += [minhash.key(file[mine[at : at + AT_A_TIME], places]) for at in range(0, len(mine), AT_A_TIME)]
        return np.concatenate(out)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(rows, K) of the documents at `rows`, ascending."""
        out, cuts = np.empty((len(rows), self.wide), np.uint32), np.searchsorted(rows, self.starts)
        for n in np.unique(np.searchsorted(self.starts, rows, side="right") - 1):
            out[cuts[n] : cuts[n + 1]] = self._file(n)[rows[cuts[n] : cuts[n + 1]] - self.starts[n]]
        return out
