"""XBRL calculations: which expression in a filing's values gives a ratio?

Source: `xbrl_calc` reads rows that `finlora xbrl build` makes from filings.  `xbrl_calc@finlora` reads FinLoRA's (arXiv
2505.19819): data/test/xbrl_extract_formula_calculations_test.jsonl, the facts of one context and a ratio's name;
`xbrl_calc@closed` its questions without the facts, which can only be known by heart.
Licence: facts of filings are public record; FinLoRA's rows OpenMDW-1.0.
Splits: own rows by company.  FinLoRA's train 3,360 rows (3,330 at hand), FY2019 to 2022, test 835, FY2023, of the same 30
companies.  With facts 70 rows in all: 35 train (Apple FY2022), 35 test (Apple FY2023).
What is right: an expression of the gold's value, such as 100 * 11311 / 45754 for (11311000000 / 45754000000) * 100, or the
value itself as a number, rounded to no more than 1% of it: 24.72, 24.72% and 0.2472 where the gold ends in "* 100".
Known errata: published golds are expressions that were never evaluated, so that FinLoRA's grader marks 24.72 wrong; each
fact is asked in 5 wordings; the example question of the prompt asks for a formula.
Cluster: the fact: 167 in FinLoRA's test, 7 with facts at hand.  Own rows bring their own, the company.
Floor: the commonest expression is right in 5 of 835 (0.0060); 5 of the 35 with facts (0.1429).
"""

from __future__ import annotations

from typing import Any

from . import Task
from ._xbrl import built, closed, closed_source, mark_calculation, own_source, published, read_calculation, source

_ERRATA = "each fact is asked 5 times; published golds are expressions that were never evaluated, numbers of their value are right here"


def _task(name: str, examples: Any, source: Any, errata: str = "", majority: Any = None, floors: tuple[str, ...] = ("majority",)) -> Task:
    return Task(
        name=name,
        labels=(),
        kind="program",
        way="say",
        examples=examples,
        read=read_calculation,
        mark=mark_calculation,
        source=source,
        errata=errata,
        majority=majority or {},
        metric="numeric",
        max_new=48,
        floors=floors,
        group="xbrl",
    )


TASK = _task("xbrl_calc", built("calc", offered=False), own_source("calc"), floors=("lookup",))
VARIANTS = {
    "finlora": _task(
        "xbrl_calc@finlora", published("calc"), source("formula_calculations", ("with_xml_*_train.jsonl",)), _ERRATA, {"test": ("(96995000000 / 383285000000) * 100", 5 / 35, 35)}
    ),
    "closed": _task(
        "xbrl_calc@closed",
        closed("calc"),
        closed_source("formula_calculations"),
        f"without the facts: what is known by heart; {_ERRATA}",
        {"test": ("167558000000 / 68774000000", 5 / 835, 835)},
    ),
}
