"""NumClaim: is a sentence with a number a claim about the future, or a statement of fact? (Shah et al. 2024)

Source: arXiv 2402.11728, hub `gtfintechlab/Numclaim` (config main; parquet; context, response), responses INCLAIM and OUTOFCLAIM, 1
and 0 where they are numbered.  No revision was verified.
Licence: not verified: the hub's card names none in its head, and the sentences are of analysts' reports and earnings calls;
treated as non-commercial.
Splits: train 2,144 rows, test 537 (hub card).
Known errata: the classes part the future from the past, not opinion from fact: "backed by its focus on improving its cost
structure" of last year's gain is out of claim.  Another set of that name (Chen et al. 2020) is in Chinese.
Cluster: the sentence.
Floor: always "out of claim" is right in 439 of 537 test rows (0.818); naive Bayes on words and pairs of words 0.922.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..text import Example
from . import Source, Task, label_rows

LABELS = ("out of claim", "in claim")
CODES = {0: "out of claim", 1: "in claim", "outofclaim": "out of claim", "inclaim": "in claim", "out-of-claim": "out of claim", "in-claim": "in claim"}
_COLUMNS = {"text": ("sentence", "text"), "label": ("response", "label")}

_rows = label_rows(
    "numclaim",
    LABELS,
    "Is this sentence a claim about the future (in claim) or a statement of fact (out of claim)?",
    text=_COLUMNS["text"],
    label=_COLUMNS["label"],
    codes=CODES,
)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """The hub calls the sentence `context`, which is the prompt's column elsewhere."""
    if "response" in row and "context" in row:
        row = {**{k: v for k, v in row.items() if k != "context"}, "sentence": row["context"]}
    return _rows(row, index)


TASK = Task(
    name="numclaim",
    labels=LABELS,
    examples=_examples,
    source=Source(
        hub="gtfintechlab/Numclaim",
        url="https://huggingface.co/datasets/gtfintechlab/Numclaim",
        licence="not verified; treated as non-commercial",
        files={"train": ("numclaim_train.csv", "main/train-*.parquet"), "test": ("numclaim_test.csv", "main/test-*.parquet")},
        rows={"train": 2144, "test": 537},
        columns={"text": ("context", "sentence", "text"), "label": _COLUMNS["label"]},
        noncommercial=True,
    ),
    errata="the classes part the future from the past, not opinion from fact",
    majority={"test": ("out of claim", 439 / 537, 537)},
    metric="macro_f1",
    metrics=("accuracy", "macro_f1", "weighted_f1", "mcc"),
    group="tagging",
)
