"""The encoder floor: logistic regression on the mean vectors of a small encoder.

What a model of a few million parameters, never tuned on text of the field, makes of the same training set.  The penalty is
chosen by cross-validation over the training clusters.  Optional: it needs an encoder.

Shapes: x_NW (examples, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..score import Record
from ..text import Example
from .common import FOLDS, Mark, both, fold_of, own_words, record, same

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def encoder_probe(
    train: Iterable[Example], test: Iterable[Example], encode: Callable[[Sequence[str]], np.ndarray], mark: Mark = same
) -> list[Record]:
    """A record for each test example of a label task.

    encode: texts -> x_NW, such as `Encoder.mean`. Raises FinloraError when there is nothing to learn from.
    """
    from sklearn.linear_model import LogisticRegression

    train, test = both(train, test)
    seen, asked = own_words(train, test)
    golds = np.array([e.gold for e in train])
    if len(set(golds.tolist())) < 2 or not test:
        return [record(e, golds[0].item(), mark, "encoder") for e in test]
    x_NW, y_NW = encode(seen), encode(asked)
    fold = np.array([fold_of(e) for e in train])

    def fitted(rows: np.ndarray, penalty: float) -> LogisticRegression:
        return LogisticRegression(C=penalty, max_iter=2000).fit(x_NW[rows], golds[rows])

    def right(penalty: float) -> int:
        total = 0
        for out in range(FOLDS):
            fit, check = fold != out, fold == out
            if check.any() and len(set(golds[fit].tolist())) > 1:
                total += int((fitted(fit, penalty).predict(x_NW[check]) == golds[check]).sum())
        return total

    best = fitted(np.ones(len(train), bool), max(PENALTIES, key=right))
    place = {name: k for k, name in enumerate(best.classes_.tolist())}
    out = []
    for e, chances in zip(test, best.predict_proba(y_NW), strict=True):
        offered = [x for x in e.labels or place if x in place] or list(place)
        out.append(record(e, max(offered, key=lambda x: chances[place[x]]), mark, "encoder"))
    return out
