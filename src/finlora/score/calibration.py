"""Whether a model's probabilities mean what they say: expected calibration error and the Brier score.

    p_l   = exp(s_l) / sum_m exp(s_m)                            s_l: log-likelihood of label l
    ECE   = sum_b |sum_(i in b) (hit_i - p_i)| / N               b: 15 bins of equal width of p_i, the choice's probability
    Brier = mean_i sum_l (p_il - [l = gold_i])^2                 from 0 to 2

Both are errors: lower is better.  They are of the label likelihoods and of the choice made by them, also where the answer
of a record is read from text.  A gold answer that was not offered has probability 0.

Source: ECE with 15 bins as Guo et al. 2017 (arXiv 1706.04599); Brier 1950, all labels, not halved.  ECE of a finite set is
biased upward: a perfectly calibrated model shows about sqrt(bins / N), so that small sets are compared by the Brier score.

Shapes: p_NL, sums (N, 15 + 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import Labels, Metric, mean, ratio
from .records import Record

BINS = 15


def probabilities(record: Record) -> dict[str, float]:
    """{label: probability} by the record's scores, softmax over its labels in their order."""
    s = np.array(list(record.scores.values()), dtype=float)
    p = np.exp(s - s.max())
    return dict(zip(record.scores, (p / p.sum()).tolist(), strict=True))


def _no_scores(records: Sequence[Record]) -> str:
    odd = next((r for r in records if not r.scores or r.choice not in r.scores), None)
    return "" if odd is None else f"`{odd.id}` has no label likelihoods; grade with the way `choose`"


def _gaps(records: Sequence[Record], labels: Labels) -> np.ndarray:
    out = np.zeros((len(records), BINS + 1))
    for k, r in enumerate(records):
        p = probabilities(r)[r.choice]
        out[k, max(int(np.ceil(p * BINS)) - 1, 0)] = (r.choice == r.gold) - p  # bins (a, b], as in the paper
    out[:, -1] = 1
    return out


def _brier(records: Sequence[Record], labels: Labels) -> np.ndarray:
    out = np.ones((len(records), 2))
    for k, r in enumerate(records):
        p = probabilities(r)
        out[k, 0] = sum(v * v for v in p.values()) - 2 * p.get(r.gold, 0.0) + 1
    return out


def _ece(sums: np.ndarray) -> np.ndarray:
    return ratio(np.abs(sums[..., :-1]).sum(-1), sums[..., -1])


ece = Metric("ece", _gaps, _ece, _no_scores, lower_is_better=True)
brier = Metric("brier", _brier, mean, _no_scores, high=2.0, lower_is_better=True)
