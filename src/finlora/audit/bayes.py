"""A small naive Bayes of its own, as a witness: it is trained on one set and asked about another.

argmax_l log n_l + sum_w count_w log((n_lw + a) / (n_l. + a V)) over words and pairs of words w, hashed into V places
(multinomial naive Bayes, McCallum and Nigam 1998).  It differs from floors.py, which seeks the strongest such floor by
cross-validation over whole prompts: here only the text counts, never the question, so that a set may be judged by
a witness that was asked in other words; and cross-validation is a subtraction of counts.

Legend: N texts, L labels, V hashed places, W words of all texts in a row.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLACES = 1 << 17
SMOOTHING = 0.3
_WORD = re.compile(r"[^\W_]+|[$%]")


@dataclass(frozen=True)
class Words:
    """The words of N texts: place: (W,) hashed words and pairs, text: (W,) the text of each."""

    place: np.ndarray
    text: np.ndarray
    n: int


def words(texts: Sequence[str]) -> Words:
    """Words and neighbouring pairs of normalised texts; each counts once a text."""
    places, lengths = [], []
    known: dict[str, int] = {}
    for text in texts:
        found = _WORD.findall(text)
        parts = {*found, *map(" ".join, zip(found, found[1:]))}
        for part in parts:
            if part not in known:
                known[part] = zlib.crc32(part.encode("utf-8", "replace")) % PLACES
        places += sorted({known[part] for part in parts})
        lengths.append(len(places))
    sizes = np.diff([0, *lengths]) if lengths else np.zeros(0, dtype=int)
    return Words(np.array(places, dtype=np.int64), np.repeat(np.arange(len(texts)), sizes), len(texts))


def counts(w: Words, labels_N: np.ndarray, L: int) -> tuple[np.ndarray, np.ndarray]:
    """(words of each label (L, V), texts of each label (L,)); a label of -1 counts nowhere."""
    keep = labels_N[w.text] >= 0
    table = np.bincount(labels_N[w.text[keep]] * PLACES + w.place[keep], minlength=L * PLACES).reshape(L, PLACES)
    return table, np.bincount(labels_N[labels_N >= 0], minlength=L)


def answer(table_LV: np.ndarray, texts_L: np.ndarray, w: Words, even: bool = False) -> np.ndarray:
    """The likeliest label of each text, long (N,). even: leave the labels' frequencies out."""
    rate_LV = np.log(table_LV + SMOOTHING) - np.log(table_LV.sum(1, keepdims=True) + SMOOTHING * (table_LV.sum(0) > 0).sum())
    score_LN = np.stack([np.bincount(w.text, weights=rate[w.place], minlength=w.n) for rate in rate_LV])
    if not even:
        score_LN += np.log(np.maximum(texts_L, 1e-9))[:, None]
    return score_LN.argmax(0)


def held_out(w: Words, labels_N: np.ndarray, fold_N: np.ndarray, L: int, folds: int = 5) -> np.ndarray:
    """The answer to each text by the texts of the other folds, long (N,)."""
    table_LV, texts_L = counts(w, labels_N, L)
    out = np.full(w.n, -1)
    for k in range(folds):
        own = np.where(fold_N == k, labels_N, -1)
        part_LV, part_L = counts(w, own, L)
        said = answer(table_LV - part_LV, texts_L - part_L, w)
        out[fold_N == k] = said[fold_N == k]
    return out
