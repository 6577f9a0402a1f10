"""What records amount to: the metrics of a task with their intervals, and the floors beside them.

    summary(task, records, way)               n, clusters, unreadable, metrics with intervals, confusion
    floor_metrics(task, examples, ...)        the same metrics of what a model must beat
    text_figures(each)                        nats a token and bits a byte of held-out text, with intervals over documents
    text_difference(after, before)            the same of two models, paired by document: what tuning forgot
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import floors, rows, score
from .errors import FinloraError
from .score import Estimate, Record
from .score.intervals import _bootstrap
from .tasks import Task
from .text import Example

LABELLED = ("label", "choice")  # kinds of task whose examples offer their answers
Encode = Callable[[Sequence[str]], Any] | None


def metrics_of(task: Task) -> tuple[str, ...]:
    """The names of the metrics a task is shown with: those of its kind, the primary one and its own."""
    return tuple(dict.fromkeys((*score.OF_KIND[task.kind], task.metric, *task.metrics)))


def measured(task: Task, records: Sequence[Record], encode: Encode = None) -> dict[str, dict[str, Any]]:
    """{metric: estimate} of every metric of the task that these records can have.

    encode: the encoder of BERTScore, without which it is left out; so are those of likelihoods where labels were not compared.
    """
    labels = _labels(task, records)
    out = {}
    for name in metrics_of(task):
        metric = score.bertscore(encode) if name == "bertscore" and encode is not None else score.metric_named(name)
        if not metric.lacks(records):
            out[name] = estimate(records, metric, labels)
    return out


def summary(task: Task, records: Sequence[Record], way: str, short: bool = False, encode: Encode = None) -> dict[str, Any]:
    """The figures of records: n, clusters, unreadable, way, metrics with intervals, and (not short) the confusion matrix."""
    metrics = measured(task, records, encode)
    lost = score.unreadable(records)
    if short:
        return {"metrics": metrics, "unreadable": lost}
    told = {
        "n": len(records),
        "clusters": next(iter(metrics.values()))["clusters"],
        "unreadable": lost,
        "way": way,
        "metric": task.metric,
        "metrics": metrics,
    }
    if task.kind == "label":
        told["confusion"] = score.confusion(records, _labels(task, records))
    return told


def estimate(records: Sequence[Record], metric: score.Metric | str, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """A metric with its 95% interval, as a receipt has it; of a single cluster the interval is all there is."""
    metric = score.metric_named(metric)
    clusters = len({r.cluster or f"\0{r.id}" for r in records})
    if clusters < 2:
        return {
            "value": metric(records, labels), "low": metric.low, "high": metric.high, "n": len(records), "clusters": clusters,
            "how": "one cluster says nothing about others",
        }  # fmt: skip
    return asdict(score.interval(records, metric, labels=labels))


def _labels(task: Task, records: Sequence[Record]) -> Sequence[str] | None:
    """The task's labels, unless the records have gold answers besides (labels that differ from example to example)."""
    return task.labels if task.labels and {str(r.gold) for r in records} <= set(task.labels) else None


_FLOORS: dict[tuple, dict[str, Any]] = {}  # the same floors are asked for by every run of a study


def floor_metrics(
    task: Task, examples: Sequence[Example], dir: str | Path = "", split: str = "test", limit: int = 0, train: bool = True, progress: Any = None,
    encode: Encode = None,
) -> dict[str, Any]:
    """{floor: {"metrics"}} of the task's floors on the examples, learned from the training split.

    examples: without worked ones before them. Without a training split the simple ones are counted on the examples
    themselves, and say so. train: False leaves those out that read the training texts. Kept in memory for the next run on the same files.
    """
    try:
        learned = rows.file_digest(task, "train", dir or None)
    except FinloraError:
        learned = ""
    key = (task.name, rows.file_digest(task, split, dir or None), learned, split, limit, len(examples), train, encode is not None)
    if key not in _FLOORS:
        names = None if train and learned else floors.SIMPLE
        if progress:
            shown = [n.replace("_", " ") for n in floors.names_of(task) if names is None or n in names]
            progress.note(f"floors of {task.name}: {', '.join(shown)}")
        source = rows.read_examples(task, "train", dir or None) if learned else list(examples)
        found = {name: {"metrics": measured(task, records, encode)} for name, records in floors.of(task, source, examples, names).items()}
        if not learned:
            for told in found.values():
                told["how"] = "counted on the graded examples: there is no training split"
        _FLOORS[key] = found
    return _FLOORS[key]


# -- held-out text ---------------------------------------------------------------------------------------------------

DRAWS = 2000
_UNITS = {"nats_per_token": (2, 1.0), "bits_per_byte": (3, math.log(2))}  # figure: (column of `each` to divide by, nats in its unit)


def text_figures(each: Sequence[Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """{"nats_per_token", "bits_per_byte"}: estimates over documents. each: rows (id, nats, tokens, bytes)."""
    return {name: asdict(_ratio(each, each, column, unit)) for name, (column, unit) in _UNITS.items()}


def text_difference(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Like text_figures, of how one receipt's "text" section differs from another's: above zero, `after` reads worse.

    Documents are drawn in pairs, so that how hard they are cancels.
    Raises: FinloraError where the two are not of the same documents, cut and counted alike.
    """
    pairs = text_pairs(after, before)
    return {name: asdict(_ratio(pairs, before["each"], column, unit)) for name, (column, unit) in _UNITS.items()}


def text_pairs(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """(id, nats of after less those of before, tokens, bytes) of each document. Raises: as text_difference."""
    a, b = after["each"], before["each"]
    if after["sha256"] != before["sha256"] or [(*r[:1], *r[2:]) for r in a] != [(*r[:1], *r[2:]) for r in b]:
        raise FinloraError("the two runs did not read the same held-out text in the same tokens", "measure both with the same evaluate.text and tokenizer")
    return [(x[0], x[1] - y[1], x[2], x[3]) for x, y in zip(a, b, strict=True)]


def _ratio(top: Sequence[Sequence[Any]], bottom: Sequence[Sequence[Any]], column: int, unit: float) -> Estimate:
    """sum of nats of `top` over the sum of a column of `bottom`, with the cluster bootstrap's interval over documents."""
    sums = np.array([[t[1] / unit, b[column]] for t, b in zip(top, bottom, strict=True)], dtype=float)
    nats, size = sums.sum(0)
    n, value = int(size), float(nats / size) if size else math.nan
    if len(sums) < 2:
        return Estimate(value, -math.inf, math.inf, n, len(sums), "one document says nothing about others")
    found = _bootstrap(sums, lambda s: s[..., 0] / s[..., 1], 0.95, DRAWS, 0)
    if found is None:
        return Estimate(value, value, value, n, len(sums), "the same in all documents")
    return Estimate(value, min(found[0], value), max(found[1], value), n, len(sums), f"bootstrap of documents, BCa, {DRAWS} draws")
