"""MinHash: signatures of a fixed size by which like texts are found among many.

J(A, B) = |A and B| / |A or B| over the pieces of two texts.  A signature holds, for each of K random functions h, the least
h(s) over the pieces; two signatures agree in a place with probability J (Broder 1997).  Texts that agree in all r places of
any of b bands are candidates, P = 1 - (1 - J^r)^b.  K = 120 in 24 bands of 5: P = 0.9999 at J = 0.8, 0.988 at 0.7, 0.53 at 0.5.

Legend: N texts, S pieces of all texts in a row, K functions, b bands, r places of a band.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

LENGTH = 5  # characters, or words, of a piece
BANDS, PLACES = 24, 5
ALIKE = 0.8  # Jaccard from which two texts are near
COMPARED = 32  # texts of a band that another is compared with, which bounds the work where thousands are cut from one template
_PRIME = np.uint64((1 << 31) - 1)
_STEP = 1 << 8  # pieces that are hashed at a time


def of_characters(text: str) -> np.ndarray:
    """The sorted, unique 31-bit hashes of the text's five-character pieces, uint64; of the whole text where it is shorter."""
    return _pieces(np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64))


def of_words(text: str) -> np.ndarray:
    """The same of its pieces of five words, case and what is no letter or digit aside."""
    found = re.findall(r"\w+", text.casefold()) or [text]
    return _pieces(np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in found), np.uint64, len(found)))


def _pieces(codes: np.ndarray) -> np.ndarray:
    if len(codes) < LENGTH:
        codes = np.concatenate([codes, np.zeros(LENGTH - len(codes), dtype=np.uint64)])
    mixed = np.zeros(len(codes) - LENGTH + 1, dtype=np.uint64)
    for k in range(LENGTH):  # a polynomial hash, then a finaliser that spreads it over all bits
        mixed = mixed * np.uint64(1_000_003) + codes[k : len(codes) - LENGTH + 1 + k]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed ^ (mixed >> np.uint64(32))) % _PRIME)


def signatures(pieces: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """uint32 (N, K) of the pieces of N texts; the seed draws the functions."""
    if not pieces:
        return np.zeros((0, BANDS * PLACES), dtype=np.uint32)
    flat_S = np.concatenate(pieces)
    starts_N = np.cumsum([0, *(len(p) for p in pieces[:-1])])
    a_K, b_K = _functions(seed)
    columns = [np.minimum.reduceat((a * flat_S + b) % _PRIME, starts_N) for a, b in zip(a_K, b_K)]  # below 2^62, no overflow
    return np.stack(columns, axis=1).astype(np.uint32)


def signature(pieces: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint32 (K,) of one text, however long, in little memory."""
    a_K, b_K = _functions(seed)
    parts = (pieces[k : k + _STEP] for k in range(0, len(pieces), _STEP))
    return np.min([((a_K[:, None] * part + b_K[:, None]) % _PRIME).min(1) for part in parts], axis=0).astype(np.uint32)


@lru_cache(4)
def _functions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=[1997, seed]))
    return rng.integers(1, int(_PRIME), BANDS * PLACES, dtype=np.uint64), rng.integers(0, int(_PRIME), BANDS * PLACES, dtype=np.uint64)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The exact overlap of two sets of pieces."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of places (last dimension) in which signatures agree: an estimate of J with variance J (1 - J) / K."""
    return (a == b).mean(-1)


def buckets(keys: np.ndarray) -> Iterator[np.ndarray]:
    """The places, two or more in ascending order, of equal keys (N,)."""
    order = np.argsort(keys, kind="stable")
    sorted_ = keys[order]
    edges = np.concatenate([[0], np.flatnonzero(sorted_[1:] != sorted_[:-1]) + 1, [len(keys)]]) if len(keys) else np.zeros(1, np.int64)
    many = np.flatnonzero(np.diff(edges) > 1)
    for k in many:
        yield order[edges[k] : edges[k + 1]]


def key(places: np.ndarray) -> np.ndarray:
    """The places of one band of N signatures (N, r) as one number each, uint64 (N,); different ones meet with probability 2^-64."""
    mixed = np.zeros(len(places), dtype=np.uint64)
    for column in places.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
