"""Near duplicates: texts whose sets of five-letter pieces overlap by four fifths, found by MinHash and judged exactly.

J(A, B) = |A and B| / |A or B| over the five-character shingles of the normalised texts.  A signature holds, for each of
K random functions h, the least h(s) over the shingles; two signatures agree in a place with probability J (Broder 1997).
Texts that agree in all r places of any of b bands are candidates, P = 1 - (1 - J^r)^b, and each candidate pair is judged
by its exact J, so that nothing is reported on an estimate: sampling can miss a pair, never invent one.

K = 120 in 24 bands of 5: P = 0.9999 at J = 0.8, 0.988 at 0.7, 0.53 at 0.5.  A text is compared with at most COMPARED
others of a band, which bounds the work where thousands of texts are cut from one template.

Legend: N texts, S shingles of all texts in a row, K functions, b bands, r places of a band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LENGTH = 5  # characters of a shingle
BANDS, PLACES = 24, 5
ALIKE = 0.8  # Jaccard from which two texts are near
LONGEST = 20_000  # characters of a text that count
COMPARED = 32
_PRIME = np.uint64((1 << 31) - 1)


@dataclass(frozen=True)
class Shingled:
    """pieces: sorted unique shingle hashes of each of N texts. signatures: uint32 (N, K)."""

    pieces: list[np.ndarray]
    signatures: np.ndarray


def shingle(text: str) -> np.ndarray:
    """The sorted, unique 31-bit hashes of the text's five-character pieces, uint64; of the whole text where it is shorter."""
    codes = np.frombuffer(text[:LONGEST].encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < LENGTH:
        codes = np.concatenate([codes, np.zeros(LENGTH - len(codes), dtype=np.uint64)])
    mixed = np.zeros(len(codes) - LENGTH + 1, dtype=np.uint64)
    for k in range(LENGTH):  # a polynomial hash, then a finaliser that spreads it over all bits
        mixed = mixed * np.uint64(1_000_003) + codes[k : len(codes) - LENGTH + 1 + k]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed ^ (mixed >> np.uint64(32))) % _PRIME)


def prepare(texts: Sequence[str], seed: int = 0) -> Shingled:
    """Shingles and signatures of N texts; the seed draws the functions."""
    pieces = [shingle(t) for t in texts]
    if not pieces:
        return Shingled([], np.zeros((0, BANDS * PLACES), dtype=np.uint32))
    flat_S = np.concatenate(pieces)
    starts_N = np.cumsum([0, *(len(p) for p in pieces[:-1])])
    rng = np.random.Generator(np.random.Philox(key=[1997, seed]))
    a_K = rng.integers(1, int(_PRIME), BANDS * PLACES, dtype=np.uint64)
    b_K = rng.integers(0, int(_PRIME), BANDS * PLACES, dtype=np.uint64)
    columns = [np.minimum.reduceat((a * flat_S + b) % _PRIME, starts_N) for a, b in zip(a_K, b_K)]  # below 2^62, no overflow
    return Shingled(pieces, np.stack(columns, axis=1).astype(np.uint32))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The exact overlap of two sets of shingles."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def estimate(shingled: Shingled, i: int, j: int) -> float:
    """The share of places in which two signatures agree: an estimate of J with variance J (1 - J) / K."""
    return float((shingled.signatures[i] == shingled.signatures[j]).mean())


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
    for band in range(BANDS):
        keys = np.ascontiguousarray(shingled.signatures[:, band * PLACES : (band + 1) * PLACES]).view(f"V{4 * PLACES}").ravel()
        _, place, many = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.argsort(place, kind="stable")
        ends = np.cumsum(many)
        for end, size in zip(ends[many > 1], many[many > 1]):
            yield [int(i) for i in order[end - size : end]]
