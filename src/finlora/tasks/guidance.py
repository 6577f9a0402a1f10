"""Guidance: compared with its earlier outlook, did the company lower, maintain or raise its guidance?

Source: ships with the package (finlora/embedded/tasks/guidance_*.jsonl), made by recipes/tasks/build.py; data card: CARD.md there.
Synthetic: our own sentences about invented companies only; nothing is said of what a real one expects.
Licence: this package's.
Splits: train, validation, test; no template family and no company of the test occurs in train.
What decides: which verb goes with the guidance and which with a budget, a rival or an earlier month; denials; refusals; in a
tenth of the rows only two numbers. Most test texts hold raising, keeping and lowering words at once.
Known errata: none; labels follow from how a text is made, so they are as right as those rules (stated in the card).
Floor: each label is a third of every split. Naive Bayes and others: in the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text import Example
from . import Source, Task, label_rows

LABELS = ("lowered", "maintained", "raised")
QUESTION = "What did the company do with its guidance?"
_rows = label_rows("guidance", LABELS, QUESTION)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """The row's Example; texts made from one company and figure share a cluster."""
    for example in _rows(row, index):
        yield replace(example, id=str(row.get("id") or example.id), cluster=str(row.get("cluster") or example.cluster))


TASK = Task(
    name="guidance",
    labels=LABELS,
    examples=_examples,
    source=Source(
        licence="as the package; synthetic text of this project",
        files={"train": "guidance_train.jsonl", "validation": "guidance_val.jsonl", "test": "guidance_test.jsonl"},
        package="guidance",
    ),
    majority={"train": ("lowered", 1002 / 3000, 3000), "test": ("lowered", 161 / 483, 483)},
)
