"""All metrics by name, and which of them a kind of task shows.

`numeric` is accuracy under the name it goes by for numbers and programs: the mean mark of the task's own comparison.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import unknown
from . import calibration, texts
from .metrics import Metric, accuracy, balanced_accuracy, macro_f1, mcc, micro_f1, weighted_f1

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        accuracy, balanced_accuracy, macro_f1, micro_f1, weighted_f1, mcc, calibration.ece, calibration.brier,
        texts.exact, replace(accuracy, name="numeric"),
        texts.token_f1_metric, texts.rouge_l_metric, texts.entity_f1, texts.bertscore(),
    )
}  # fmt: skip
OF_KIND: dict[str, tuple[str, ...]] = {
    "label": ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc", "ece", "brier"),
    "choice": ("accuracy", "ece", "brier"),
    "number": ("numeric", "exact"),
    "program": ("numeric", "exact"),
    "spans": ("entity_f1", "accuracy"),
    "text": ("token_f1", "rouge_l", "exact"),
}


def metric_named(metric: Metric | str) -> Metric:
    """The metric of that name, or the metric itself. Raises FinloraError for an unknown name."""
    if isinstance(metric, str):
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        return METRICS[metric]
    return metric
