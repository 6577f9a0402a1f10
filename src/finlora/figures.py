"""What records amount to: the metrics of a task with their intervals, and the floors beside them.

    summary(task, records, way)               n, clusters, unreadable, metrics with intervals, confusion
    floor_metrics(task, examples, ...)        the same metrics of what a model must beat
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import rows, score
from .errors import FinloraError
from .floors import majority, naive_bayes
from .score import Record
from .tasks import Task
from .text import Example

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
LABELLED = ("label", "choice")  # kinds of task whose examples offer their answers


def summary(task: Task, records: Sequence[Record], way: str, short: bool = False) -> dict[str, Any]:
    """The figures of records: n, clusters, unreadable, way, metrics with intervals, and (not short) the confusion matrix."""
    labels = _labels(task, records)
    names = metrics_of(task)
    metrics = {name: estimate(records, name, labels) for name in names}
    lost = score.unreadable(records)
    if short:
        return {"metrics": metrics, "unreadable": lost}
    told = {
        "n": len(records),
        "clusters": metrics[names[0]]["clusters"],
        "unreadable": lost,
        "way": way,
        "metric": task.metric,
        "metrics": metrics,
    }
    if task.kind == "label":
        told["confusion"] = score.confusion(records, labels)
    return told


def metrics_of(task: Task) -> tuple[str, ...]:
    """The names of the metrics a task is shown with, the primary one among them."""
    first = METRICS if task.kind == "label" else (task.metric,)
    return tuple(dict.fromkeys((*first, task.metric, *task.metrics)))


def estimate(records: Sequence[Record], metric: str, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """A metric with its 95% interval, as a receipt has it; of a single cluster the interval is all there is, [0, 1]."""
    clusters = len({r.cluster or f"\0{r.id}" for r in records})
    if clusters < 2:
        return {"value": score.METRICS[metric](records, labels), "low": 0.0, "high": 1.0, "n": len(records), "clusters": clusters, "how": "one cluster says nothing about others"}
    return asdict(score.interval(records, metric, labels=labels))


def _labels(task: Task, records: Sequence[Record]) -> Sequence[str] | None:
    """The task's labels, unless the records have gold answers besides (labels that differ from example to example)."""
    return task.labels if task.labels and {str(r.gold) for r in records} <= set(task.labels) else None


_FLOORS: dict[tuple, dict[str, Any]] = {}  # the same floors are asked for by every run of a study


def floor_metrics(
    task: Task, examples: Sequence[Example], dir: str | Path = "", split: str = "test", limit: int = 0, train: bool = True, progress: Any = None
) -> dict[str, Any]:
    """{"majority": {"metrics"}, "naive_bayes": {"metrics"}} on the examples, both learned from the training split.

    Without a training split the majority is the commonest gold of the examples themselves, and says so. train: False
    leaves naive Bayes out. Kept in memory for the next run on the same files.
    """
    if task.kind != "label":
        return {}
    try:
        learned = rows.file_digest(task, "train", dir or None)
    except FinloraError:
        learned = ""
    key = (task.name, rows.file_digest(task, split, dir or None), learned, split, limit, len(examples), train)
    if key not in _FLOORS:
        if progress:
            progress.note(f"floors of {task.name}: majority" + (" and naive Bayes" if train and learned else ""))
        source = rows.read_examples(task, "train", dir or None) if learned else list(examples)
        found = {"majority": _floor(task, majority(source, examples, task.mark))}
        if not learned:
            found["majority"]["how"] = "commonest gold of the graded examples: there is no training split"
        if train and learned:
            found["naive_bayes"] = _floor(task, naive_bayes(source, examples, task.mark))
        _FLOORS[key] = found
    return _FLOORS[key]


def _floor(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    labels = _labels(task, records)
    return {"metrics": {name: estimate(records, name, labels) for name in metrics_of(task)}}
