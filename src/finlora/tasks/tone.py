"""Tone: is what a company reports bad, neutral or good for shareholders?

Source: ships with the package (finlora/embedded/tasks/tone_*.jsonl), made by recipes/tasks/build.py; data card: CARD.md there.
Synthetic: our own sentences, most about invented companies; 15 in 100 state public figures of real ones, rounded (card).
Licence: this package's.
Splits: train, validation, test; no template family and no company of the test occurs in train.
What decides: of up to three moves, the latest; in about one text of six more of its metric is bad (costs, losses, debts).
A text of several moves holds words of several labels, in the same small phrases, so that counting them does not do.
Known errata: none; labels follow from how a text is made, so they are as right as those rules (stated in the card). Some of the
public figures are from memory and may be off.
Floor: each label is a third of every split. Naive Bayes and others: in the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text import Example
from . import SENTIMENT, Source, Task, label_rows

QUESTION = "What is the tone of this news for shareholders?"  # for rows without a prompt; the shipped rows end with "Tone: "
_rows = label_rows("tone", SENTIMENT, QUESTION)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """The row's Example; texts made from one company and its months share a cluster."""
    for example in _rows(row, index):
        yield replace(example, id=str(row.get("id") or example.id), cluster=str(row.get("cluster") or example.cluster))


TASK = Task(
    name="tone",
    group="shipped",
    labels=SENTIMENT,
    examples=_examples,
    source=Source(
        licence="as the package; synthetic text of this project, public figures",
        files={"train": "tone_train.jsonl", "validation": "tone_val.jsonl", "test": "tone_test.jsonl"},
        package="tone",
    ),
    majority={"train": ("negative", 1 / 3, 3000), "test": ("negative", 1 / 3, 480)},
)
