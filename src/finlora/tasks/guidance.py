"""Guidance: after what a company reports, does its own guidance stand cut, held or raised?

Source: ships with the package (finlora/embedded/tasks/guidance_*.jsonl), made by recipes/tasks/build.py; data card: CARD.md there.
Synthetic: our own sentences about invented companies.
Licence: this package's.
Splits: train, validation, test; no template family and no company of the test occurs in train.
What decides: of up to three steps on the guidance, the latest; one text of ten ends with what a rival did, which does not count.
A text of several steps holds words of several labels, in the same small phrases, so that counting them does not do.
Known errata: none; labels follow from how a text is made, so they are as right as those rules (stated in the card).
Floor: each label is a third of every split. Naive Bayes and others: in the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text import Example
from . import Source, Task, label_rows

LABELS = ("cut", "held", "raised")
QUESTION = "What did the company last do with its guidance?"  # for rows without a prompt; the shipped rows end with "Guidance: "
_rows = label_rows("guidance", LABELS, QUESTION)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """The row's Example; texts made from one company and its months share a cluster."""
    for example in _rows(row, index):
        yield replace(example, id=str(row.get("id") or example.id), cluster=str(row.get("cluster") or example.cluster))


TASK = Task(
    name="guidance",
    group="shipped",
    labels=LABELS,
    examples=_examples,
    source=Source(
        licence="as the package; synthetic text of this project",
        files={"train": "guidance_train.jsonl", "validation": "guidance_val.jsonl", "test": "guidance_test.jsonl"},
        package="guidance",
    ),
    majority={"train": ("cut", 1 / 3, 3000), "test": ("cut", 1 / 3, 480)},
)
