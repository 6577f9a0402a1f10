"""What a metric is, and the metrics of labels.

    F1_l = 2 tp / (2 tp + fp + fn)        micro: the same over the sums of all labels, which is accuracy
    R_K  = (c n - sum_l p_l t_l) / sqrt((n^2 - sum_l p_l^2) (n^2 - sum_l t_l^2))

R_K (Gorodkin 2004) is Matthews' correlation for any number of labels: c right of n, p_l answers and t_l golds of label l.
It is 0 for answers that ignore the question, whatever the shares of the labels, and where one label is all there is.
A no-label answer enters each of them as a blind wrong guess: its expected counts over the other labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import FinloraError, unknown
from .records import Record

Labels = Sequence[str] | None
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Metric:
    """A number that depends on records through sums alone.

    tally: (records, labels) -> (N, S), what each record adds. finish: (..., S) sums -> (...) values.
    lacks: records -> why they have no such number, "" where they have. low, high: the ends of its scale.
    lower_is_better: an error. of_labels: `tally` is the counts of labels. unknown: (S,) sums -> the part of the
    value that no record can tell; the interval is that much longer.
    Called as metric(records, labels=None) it returns a float; labels are those to average over, by default the ones
    that occur in gold. A label with neither gold nor answers is left out: 0/0 has no value.
    """

    name: str
    tally: Callable[[Sequence[Record], Labels], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    lacks: Callable[[Sequence[Record]], str] = lambda records: ""
    low: float = 0.0
    high: float = 1.0
    lower_is_better: bool = False
    of_labels: bool = False
    unknown: Callable[[np.ndarray], float] = lambda sums: 0.0

    def __call__(self, records: Sequence[Record], labels: Labels = None) -> float:
        """The metric of records. Raises FinloraError as `sums`."""
        # sorted, so that the last bit of a sum of fractional marks does not depend on the order of the records
        return float(self.finish(np.sort(self.sums(records, labels), axis=0).sum(0)))

    def sums(self, records: Sequence[Record], labels: Labels = None) -> np.ndarray:
        """(N, S): what each record adds.

        Raises FinloraError for no records, records that lack what the metric is of, or a gold answer that is not in labels.
        """
        if why := self.lacks(_some(records)):
            raise FinloraError(f"no {self.name} of these records: {why}")
        return self.tally(records, labels)


def _some(records: Sequence[Record]) -> Sequence[Record]:
    if not len(records):
        raise FinloraError("no records to score", "the evaluation wrote none; is the data file empty?")
    return records


def gold_labels(records: Sequence[Record], labels: Labels = None) -> list[str]:
    """The labels to average over: `labels`, or those that occur in gold, sorted.

    Raises FinloraError for an empty label list and for a gold answer outside it.
    """
    if labels is None:
        return sorted({str(r.gold) for r in records})
    if not len(labels):
        raise FinloraError("the label list is empty", "name the labels, or leave them out to take those in gold")
    known = set(labels)
    for r in records:
        if str(r.gold) not in known:
            raise unknown("label", str(r.gold), known, f"the gold of record `{r.id}`")
    return list(dict.fromkeys(labels))


def _no_labels(records: Sequence[Record]) -> str:
    odd = next((r for r in records if isinstance(r.gold, list | tuple | dict)), None)
    return "" if odd is None else f"the gold of `{odd.id}` is a {type(odd.gold).__name__}, no label"


def marks(records: Sequence[Record], labels: Labels = None) -> np.ndarray:
    """(N, 2): the mark of each record, and one."""
    return np.array([(r.correct, 1.0) for r in records])


def mean(sums: np.ndarray) -> np.ndarray:
    """(..., 2) sums of a value and of ones -> the means (...)."""
    return ratio(sums[..., 0], sums[..., 1])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)


def _counts(records: Sequence[Record], labels: Labels) -> np.ndarray:
    """(N, 4 L): for each label gold and answered, answered, gold, gold and answered by no label."""
    names = gold_labels(records, labels)
    place = {label: k for k, label in enumerate(names)}
    out = np.zeros((len(records), 4, len(names)))
    rows = np.arange(len(records))
    gold = np.array([place[str(r.gold)] for r in records])
    answer = np.array([-1 if r.answer is None else place.get(str(r.answer), -1) for r in records])
    read = answer >= 0
    right = gold == answer
    out[rows[right], 0, gold[right]] = 1
    out[rows[read], 1, answer[read]] = 1
    out[rows, 2, gold] = 1
    out[rows[~read], 3, gold[~read]] = 1
    return out.reshape(len(records), -1)


def _split(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 4 L) sums -> hits, answers and golds of each label (..., L); no-label answers are blind wrong guesses."""
    hit, answered, gold, off = np.moveaxis(sums.reshape(*sums.shape[:-1], 4, -1), -2, 0)
    others = max(gold.shape[-1] - 1, 1)
    return hit, answered + (off.sum(-1, keepdims=True) - off) / others, gold


def _f1(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hit, answered, gold = _split(sums)
    return ratio(2 * hit, answered + gold), answered, gold  # 2 tp + fp + fn = answered + gold


def _macro(sums: np.ndarray) -> np.ndarray:
    f1, answered, gold = _f1(sums)
    return ratio(f1.sum(-1), (answered + gold > 0).sum(-1).astype(float))


def _never_gold(sums: np.ndarray) -> float:
    """Share of the labels averaged over that are answered and never gold: they enter as 0, and could be anything."""
    _, answered, gold = _split(sums)
    return float(ratio((answered * (gold == 0) > 0).sum(-1), (answered + gold > 0).sum(-1)))


def _hits(records: Sequence[Record], labels: Labels) -> np.ndarray:
    names = set(gold_labels(records, labels))
    return np.array([(float(str(r.answer) == str(r.gold) and str(r.answer) in names and r.answer is not None), 1.0) for r in records])


def _weighted(sums: np.ndarray) -> np.ndarray:
    f1, _, gold = _f1(sums)
    return ratio((f1 * gold).sum(-1), gold.sum(-1))


def _balanced(sums: np.ndarray) -> np.ndarray:
    hit, _, gold = _split(sums)
    return ratio(ratio(hit, gold).sum(-1), (gold > 0).sum(-1).astype(float))


def _correlation(sums: np.ndarray) -> np.ndarray:
    hit, answered, gold = _split(sums)
    n = gold.sum(-1)
    spread = (n**2 - (answered**2).sum(-1)) * (n**2 - (gold**2).sum(-1))
    return ratio(hit.sum(-1) * n - (answered * gold).sum(-1), np.sqrt(np.maximum(spread, 0)))


accuracy = Metric("accuracy", marks, mean)
balanced_accuracy = Metric("balanced_accuracy", _counts, _balanced, _no_labels, of_labels=True)
macro_f1 = Metric("macro_f1", _counts, _macro, _no_labels, of_labels=True, unknown=_never_gold)
micro_f1 = Metric("micro_f1", _hits, mean, _no_labels)  # each wrong answer is one miss and one false alarm: 2 tp + fp + fn = 2 n
weighted_f1 = Metric("weighted_f1", _counts, _weighted, _no_labels, of_labels=True)
mcc = Metric("mcc", _counts, _correlation, _no_labels, low=-1.0, of_labels=True)


def unreadable(records: Sequence[Record]) -> int:
    """How many answers could not be read."""
    return sum(r.answer is None for r in records)


def confusion(records: Sequence[Record], labels: Labels = None) -> dict[str, list]:
    """{"labels": L names, "columns": the same and "unreadable", "matrix": L x (L + 1) counts, gold by answer}.

    An answer outside the labels is appended to them, so that every record is seen.
    """
    names = gold_labels(_some(records), labels)
    names += sorted({str(r.answer) for r in records if r.answer is not None} - set(names))
    place = {label: k for k, label in enumerate(names)}
    matrix = [[0] * (len(names) + 1) for _ in names]
    for r in records:
        matrix[place[str(r.gold)]][len(names) if r.answer is None else place[str(r.answer)]] += 1
    return {"labels": names, "columns": [*names, UNREADABLE], "matrix": matrix}
