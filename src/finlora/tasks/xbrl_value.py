"""XBRL values: what does a concept of a filing stand at, for a period and member?

Source: `xbrl_value` reads rows that `finlora xbrl build` makes from filings.  `xbrl_value@finlora` reads FinLoRA's (arXiv
2505.19819): data/test/xbrl_extract_value_test.jsonl, the facts of one context and a metric's name; `xbrl_value@closed` its
questions without the facts, which can only be known by heart.
Licence: facts of filings are public record; FinLoRA's rows OpenMDW-1.0.
Splits: own rows by company.  FinLoRA's test 2,515 rows, FY2023, train not obtained, of the same 30 companies.  With facts 90
test rows are at hand (Apple FY2023), without all 2,515.
What is right: the gold's value, however written: 352583000000.0, 352,583,000,000 and $352,583 million are one; the sign
counts.
Known errata: golds are floats written by pandas ("352583000000.0") where the XML says 352583000000; each fact is asked in 5
wordings; the facts shown are of the one context that holds the answer, without period or unit, so that FinLoRA's question
about a fiscal year needs no choice between years.
Cluster: the fact: 503 in FinLoRA's test, 18 with facts at hand.  Own rows bring their own, the company.
Floor: always 9000000.0 is right in 15 of 2,515 (0.0060); of the 90 with facts each of 18 values is in 5 (0.0556).
"""

from __future__ import annotations

from typing import Any

from ..numbers import numbers_match, read_number
from . import Task
from ._xbrl import built, closed, closed_source, own_source, published, source

_ERRATA = "each fact is asked 5 times; the facts shown are those of the right period only"


def mark(gold: Any, answer: Any) -> float:
    """1.0 where the answer is the gold's value, rounded to its decimals."""
    return float(numbers_match(gold, answer))


def _task(name: str, examples: Any, source: Any, errata: str = "", majority: Any = None, floors: tuple[str, ...] = ("majority",)) -> Task:
    return Task(
        name=name,
        labels=(),
        kind="number",
        way="say",
        examples=examples,
        read=read_number,
        mark=mark,
        source=source,
        errata=errata,
        majority=majority or {},
        metric="numeric",
        max_new=24,
        floors=floors,
        group="xbrl",
    )


TASK = _task("xbrl_value", built("value", offered=False), own_source("value"), floors=("lookup",))
VARIANTS = {
    "finlora": _task("xbrl_value@finlora", published("value"), source("value"), _ERRATA, {"test": ("-214000000.0", 5 / 90, 90)}),
    "closed": _task(
        "xbrl_value@closed",
        closed("value"),
        closed_source("value"),
        f"without the facts: what is known by heart; {_ERRATA}",
        {"test": ("9000000.0", 15 / 2515, 2515)},
    ),
}
