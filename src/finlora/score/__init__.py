"""Records of what a model answered, the metrics of records, and how sure one can be of them.

Accuracy is the mean mark.  F1 of label l is 2 tp / (2 tp + fp + fn), averaged over the labels (macro) or by their gold
counts (weighted).  Two things differ from the usual way:

* An answer that is no label (unreadable, or off the label list) is wrong: a miss of its gold label, and a false alarm
  spread evenly over the other labels, as a blind wrong guess would be.  Dropping the false alarm, as published
  financial scorers do, leaves every precision at 1 and turns an accuracy a into an F1 of 2a / (1 + a).  With it the
  false alarms and the misses stay equal in number, so micro F1 is accuracy whatever is unreadable.
* Records that share a document or a paraphrased question are one cluster, and the interval knows it: Wilson's for 0/1
  marks, with the effective number of trials where they are clustered, and the bootstrap of clusters for all else.

records.py holds what became of each example, metrics.py the metrics of labels, calibration.py those of likelihoods,
texts.py those of texts and entities, catalogue.py all of them by name, intervals.py the intervals and paired tests.

The bootstrap never touches records: every metric is a function of sums over records, clusters with equal sums are one
kind, and how often each of the K kinds is drawn is multinomial.  2000 draws of 20,000 records take milliseconds.

Legend: N records, C clusters, K kinds of cluster, S sums of a metric, L labels, J draws.
"""

from __future__ import annotations

from .catalogue import METRICS, OF_KIND, metric_named
from .intervals import Estimate, Paired, binomial_p, holm, interval, paired, wilson
from .metrics import (
    UNREADABLE,
    Labels,
    Metric,
    accuracy,
    balanced_accuracy,
    confusion,
    gold_labels,
    macro_f1,
    mcc,
    micro_f1,
    unreadable,
    weighted_f1,
)  # fmt: skip
from .records import Record, append_records, read_records
from .texts import bertscore, rouge_l, token_f1

__all__ = [
    "METRICS", "OF_KIND", "UNREADABLE", "Estimate", "Labels", "Metric", "Paired", "Record", "accuracy", "append_records", "balanced_accuracy",
    "bertscore", "binomial_p", "confusion", "gold_labels", "holm", "interval", "macro_f1", "mcc", "metric_named", "micro_f1", "paired",
    "read_records", "rouge_l", "token_f1", "unreadable", "weighted_f1", "wilson",
]  # fmt: skip
