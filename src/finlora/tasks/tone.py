"""Tone: is a sentence of financial news bad, neutral or good for shareholders?

Source: ships with the package (finlora/embedded/tasks/tone_*.jsonl), made by recipes/tasks/build.py; data card: CARD.md there.
Synthetic: our own sentences about invented companies, and about rounded public figures of listed ones.
Licence: this package's.
Splits: train, validation, test; no template family and no company of the test occurs in train.
What decides: metric times direction (a loss that narrowed is good, costs that rose are bad), which of two clauses bears on
shareholders, the surprise against forecasts, denials, which of two effects is larger. No single word does.
Known errata: none; labels follow from how a text is made, so they are as right as those rules (stated in the card).
Floor: each label is a third of every split. Naive Bayes and others: in the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text import Example
from . import SENTIMENT, Source, Task, label_rows

QUESTION = "What is the sentiment of this news for shareholders?"
_rows = label_rows("tone", SENTIMENT, QUESTION)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """The row's Example; texts made from one company and figure share a cluster."""
    for example in _rows(row, index):
        yield replace(example, id=str(row.get("id") or example.id), cluster=str(row.get("cluster") or example.cluster))


TASK = Task(
    name="tone",
    labels=SENTIMENT,
    examples=_examples,
    source=Source(
        licence="as the package; synthetic text of this project",
        files={"train": "tone_train.jsonl", "validation": "tone_val.jsonl", "test": "tone_test.jsonl"},
        package="tone",
    ),
    majority={"train": ("neutral", 1061 / 3177, 3177), "test": ("negative", 172 / 516, 516)},
)
