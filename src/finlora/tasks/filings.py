"""Filings: one figure of six that a real company filed, asked for by its concept and date.

Source: ships with the package (finlora/embedded/tasks/filings_*.jsonl), made by recipes/tasks/filings.py from XBRL filings; data card: CARD.md there.
Bare figures, with the names of concept and company, the period and the unit; no text of a filer.
Licence: this package's; the figures are facts of public filings.
Splits: by company. train 600 rows (Apple, 10-K 2022 and 2023, 10-Q of March 2025; Applied Optoelectronics, 10-Q of June 2014), validation 120
(Netflix, 10-Q of September 2010), test 150 (Boston Beer, 10-Q of June 2013).
What decides: three concepts of like size at two dates are shown; the row ends with one concept and date again.
Known errata: none; figures are rounded to a tenth of a million (to a million from a billion on).
Hard for the embedded base: untuned 0.180 by likelihood; said, after LoRA (rank 16, 3e-3, 80 steps of 16) 0.227 [0.147, 0.334], after full
tuning (1e-3, 70 steps) 0.233 [0.153, 0.338]. It does not learn to copy by key in that budget.
Cluster: company and concept asked for; 37 in the test, all of one company, so that an interval says nothing about other companies.
Floor: one of six, 0.167. Readers that see the question and the options but not the figures reach, on the test: the commonest answer
to the question, with or without the company, 0.167; the option most often right in train 0.170; the commonest place 0.167, the commonest
rank by size 0.167, the longest 0.161, the shortest 0.174, the largest 0.153, the smallest 0.167, the one nearest to the others 0.150.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, place_of, text_in


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """The row's Example. Raises: FinloraError where the answer is not among two or more different choices."""
    place = place_of(row, index)
    prompt, gold, choices = text_in(row, "context", place), text_in(row, "target", place).strip(), row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices) or len(set(choices)) < len(choices):
        raise FinloraError(f"{place}: `choices` should be a list of two or more different texts", "make the rows again with recipes/tasks/filings.py")
    if gold not in choices:
        raise FinloraError(f"{place}: the target {gold!r:.60} is not among the choices", "make the rows again with recipes/tasks/filings.py")
    yield Example(str(row.get("id") or f"filings-{index}"), (("user", prompt),), gold, gold, str(row.get("cluster") or f"filings {index}"), tuple(choices))


TASK = Task(
    name="filings",
    labels=(),
    examples=_examples,
    kind="choice",
    source=Source(
        licence="as the package; figures of public filings",
        files={"train": "filings_train.jsonl", "validation": "filings_val.jsonl", "test": "filings_test.jsonl"},
        package="filings",
        rows={"train": 600, "validation": 120, "test": 150},
    ),
    max_new=8,
    group="shipped",
)
