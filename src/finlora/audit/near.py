"""Near duplicates: texts whose sets of five-letter pieces overlap by four fifths, found by MinHash and judged exactly.

Each pair of texts that agree in a band of their signatures (see minhash.py) is judged by its exact Jaccard index, so that
nothing is reported on an estimate: sampling can miss a pair, never invent one.  A text is compared with at most COMPARED
others of a band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import minhash
from ..minhash import ALIKE, COMPARED, jaccard

LONGEST = 20_000  # characters of a text that count


@dataclass(frozen=True)
class Shingled:
    """pieces: sorted unique shingle hashes of each of N texts. signatures: uint32 (N, K)."""

    pieces: list[np.ndarray]
    signatures: np.ndarray


def prepare(texts: Sequence[str], seed: int = 0) -> Shingled:
    """Pieces and signatures of N texts; the seed draws the functions."""
    pieces = [minhash.of_characters(t[:LONGEST]) for t in texts]
    return Shingled(pieces, minhash.signatures(pieces, seed))


def groups(shingled: Shingled, alike: float = ALIKE) -> list[list[int]]:
    """Groups of two or more texts, each of which is near to another of its group; in the order of their first texts."""
    root = list(range(len(shingled.pieces)))

    def top(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for bucket in _buckets(shingled):
        heads: list[int] = []
        for i in bucket:
            for j in heads:
                if top(i) == top(j):
                    break
                if _near(shingled, i, j, alike):
                    root[max(top(i), top(j))] = min(top(i), top(j))
                    break
            else:
                if len(heads) < COMPARED:
                    heads.append(i)
    out: dict[int, list[int]] = {}
    for i in range(len(root)):
        out.setdefault(top(i), []).append(i)
    return [members for members in out.values() if len(members) > 1]


def across(shingled: Shingled, cut: int, alike: float = ALIKE) -> dict[int, int]:
    """{i: j}: texts i >= cut (the second set) that are near to a text j < cut of the first."""
    out: dict[int, int] = {}
    for bucket in _buckets(shingled):
        first = [j for j in bucket if j < cut][:COMPARED]
        for i in bucket if first else ():
            if i >= cut and i not in out:
                j = next((j for j in first if _near(shingled, i, j, alike)), None)
                if j is not None:
                    out[i] = j
    return dict(sorted(out.items()))


def _near(shingled: Shingled, i: int, j: int, alike: float) -> bool:
    a, b = shingled.pieces[i], shingled.pieces[j]
    return min(len(a), len(b)) >= alike * max(len(a), len(b)) and jaccard(a, b) >= alike


def _buckets(shingled: Shingled) -> Iterator[list[int]]:
    """The texts, two or more in ascending order, that agree in a band."""
    for k in range(minhash.BANDS):
        for bucket in minhash.buckets(minhash.key(shingled.signatures[:, k * minhash.PLACES : (k + 1) * minhash.PLACES])):
            yield bucket.tolist()
