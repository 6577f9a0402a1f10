"""Metrics of said texts: exact match, token F1, ROUGE-L, entity F1 and BERTScore.

    token F1   2 |G n A| / (|G| + |A|)      G, A: multisets of the words of gold and answer; the mean over records
    ROUGE-L    2 lcs / (|G| + |A|)          lcs: the longest common subsequence of words; the mean over records
    entity F1  2 tp / (golds + answers)     over the entities of all records, equal in type, text and place
    BERTScore  2 P R / (P + R)              P, R: mean over the tokens of the answer (gold) of the best cosine x_i . y_j

Words: runs of letters and digits, "1,577.00" being one; ROUGE-L has its own, ASCII letters and digits, as published (Lin
2004; equal to rouge-score 0.1.2 without stemming).  Entity F1 is seqeval's micro F1 where each entity carries its place.
BERTScore (Zhang et al. 2020, arXiv 1904.09675) is without idf and without rescaling: a figure of one encoder and layer,
which says nothing beside that of another.  It equals bert-score 0.3.13 on one pair at a time; that package lets a token
whose every cosine is negative match the padding of its batch with 0, so that a score there depends on its neighbours.

How this differs from the usual way: an unreadable answer has no words and scores 0; for entities it is as many false
alarms as there were golds (at least one), or silence would cost no precision.

Shapes: x_TD tokens of a text, unit length; sums (N, 2), entities (N, 3): both, golds, answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .metrics import Labels, Metric, mean, ratio
from .records import Record

Encode = Callable[[list[str]], Sequence[tuple[Sequence[str], np.ndarray]]]
_WORD = re.compile(r"\w+(?:[.,]\w+)*")


def plain(value: Any) -> str:
    """A value as text for `exact`: NFKC, case folded, one space for white space, no quotes around it and no stop at its end."""
    return " ".join(unicodedata.normalize("NFKC", text_of(value)).casefold().split()).strip("\"'`*").rstrip(".,;:!? ")


def text_of(value: Any) -> str:
    """The text of a gold or an answer: strings as they are, the parts of a list joined by a space, None as nothing."""
    if isinstance(value, list | tuple):
        return " ".join(map(text_of, value))
    return "" if value is None else str(value)


def token_f1(gold: str, said: str) -> float:
    """F1 of the words that gold and said have in common, order apart; 1 where neither has any."""
    return _overlap(_WORD.findall(gold.lower()), _WORD.findall(said.lower()), _common)


def rouge_l(gold: str, said: str) -> float:
    """ROUGE-L F1 of the longest common subsequence of words; 0 where either has none."""
    a, b = (re.sub("[^a-z0-9]+", " ", s.lower()).split() for s in (gold, said))
    return _overlap(a, b, _subsequence) if a or b else 0.0


def _overlap(gold: Sequence[str], said: Sequence[str], common: Callable[[Sequence[str], Sequence[str]], int]) -> float:
    return 2 * common(gold, said) / (len(gold) + len(said)) if gold or said else 1.0


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    return (Counter(a) & Counter(b)).total()


def _subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one number (Hyyro 2004)."""
    where: dict[str, int] = {}
    for k, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << k
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hit = row & where.get(word, 0)
        row = (row + hit | row - hit) & full
    return len(a) - row.bit_count()


def greedy(x_TD: np.ndarray, x_tokens: Sequence[str], y_TD: np.ndarray, y_tokens: Sequence[str]) -> tuple[float, float, float]:
    """(precision, recall, F1) of answer x for gold y: each token with the likest of the other text.

    Tokens that are "" (the tokenizer's own marks) are matched but not counted. A text without tokens scores 0.
    """
    counts_x, counts_y = np.array([t != "" for t in x_tokens], bool), np.array([t != "" for t in y_tokens], bool)
    if not counts_x.any() or not counts_y.any():
        return 0.0, 0.0, 0.0
    alike = np.asarray(x_TD, float) @ np.asarray(y_TD, float).T
    p, r = float(alike.max(1)[counts_x].mean()), float(alike.max(0)[counts_y].mean())
    return p, r, 2 * p * r / (p + r) if p + r > 0 else 0.0


# -- as metrics ------------------------------------------------------------------------------------------------------


def _no_text(records: Sequence[Record]) -> str:
    def fine(value: Any) -> bool:
        return isinstance(value, str | int | float) or isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)

    odd = next((r for r in records if not fine(r.gold)), None)
    return "" if odd is None else f"the gold of `{odd.id}` is not text"


def _of_pairs(name: str, value: Callable[[str, str], float]) -> Metric:
    def tally(records: Sequence[Record], labels: Labels) -> np.ndarray:
        return np.array([(0.0 if r.answer is None else value(text_of(r.gold), text_of(r.answer)), 1.0) for r in records])

    return Metric(name, tally, mean, _no_text)


def _exact(records: Sequence[Record], labels: Labels) -> np.ndarray:
    return np.array([(float(r.answer is not None and (r.gold == r.answer or plain(r.gold) == plain(r.answer))), 1.0) for r in records])


def entities(value: Any) -> list[tuple[str, ...]] | None:
    """The entities of a gold or an answer, [type, text] or [type, text, place] each; None where it is no such list."""
    if not isinstance(value, list | tuple):
        return None
    fine = all(isinstance(x, list | tuple) and len(x) in (2, 3) and isinstance(x[0], str) and isinstance(x[1], str) for x in value)
    return [tuple(map(str, x)) for x in value] if fine else None


def _no_entities(records: Sequence[Record]) -> str:
    for r in records:
        for which, value in (("gold", r.gold), ("answer", r.answer)):
            if not (value is None and which == "answer") and entities(value) is None:
                return f"the {which} of `{r.id}` is no list of [type, text]"
    return ""


def _spans(records: Sequence[Record], labels: Labels) -> np.ndarray:
    out = np.zeros((len(records), 3))
    for k, r in enumerate(records):
        gold, said = Counter(entities(r.gold)), Counter(entities(r.answer) or ())
        wrong = max(1, gold.total()) if r.answer is None else said.total()
        out[k] = (gold & said).total(), gold.total(), wrong
    return out


def bertscore(encode: Encode | None = None) -> Metric:
    """BERTScore by an encoder: texts -> for each (tokens, x_TD of unit length), the tokenizer's own marks as "".

    Without an encoder it is the name of a metric that no records have. Pairs once scored are remembered.
    """
    known: dict[tuple[str, str], float] = {}

    def tally(records: Sequence[Record], labels: Labels) -> np.ndarray:
        pairs = [(text_of(r.gold), text_of(r.answer)) for r in records]
        new = sorted({p for p, r in zip(pairs, records, strict=True) if r.answer is not None} - known.keys())
        texts = sorted({t for pair in new for t in pair}, key=lambda t: (len(t), t))
        coded = dict(zip(texts, encode(texts), strict=True)) if texts else {}
        for gold, said in new:
            (y_tokens, y_TD), (x_tokens, x_TD) = coded[gold], coded[said]
            known[gold, said] = greedy(x_TD, x_tokens, y_TD, y_tokens)[2]
        return np.array([(0.0 if r.answer is None else known[p], 1.0) for p, r in zip(pairs, records, strict=True)])

    def lacks(records: Sequence[Record]) -> str:
        return _no_text(records) if encode is not None else "it needs an encoder; name a local encoder's folder"

    return Metric("bertscore", tally, mean, lacks)


exact = Metric("exact", _exact, mean, _no_text)
token_f1_metric = _of_pairs("token_f1", token_f1)
rouge_l_metric = _of_pairs("rouge_l", rouge_l)
entity_f1 = Metric("entity_f1", _spans, lambda sums: ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2]), _no_entities)
