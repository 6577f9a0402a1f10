"""GSM8K: grade-school word problems, a number after a worked solution (Cobbe et al. 2021, arXiv 2110.14168).

Source: hub `openai/gsm8k` (`main`), columns question, answer (a solution that ends in "#### 18").
Licence: MIT.
Splits: test 1,319 (656 in the development half), train 7,473.
Prompt: "Question: ...\\nAnswer:", as lm-evaluation-harness; training teaches the whole solution, with its <<48/2=24>> marks.
Reading: the number after the first "####" (the harness's strict match); where there is none, the last number of the text (its flexible
match). A text without a number is unreadable. Of a second question that the model makes up, nothing is read.
Known errata: some test rows have wrong or ambiguous golds (a revision: arXiv 2502.03461).
Cluster: the question.
Floor: the commonest number of the test half, 12, is right in 20 of 656 (0.0305).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, cluster_of, place_of, text_in
from ._choice import asked

_GIVEN = re.compile(r"####[ \t]*(.*)")
_NUMBER = re.compile(r"(?:(?<![\d.)])[-−])?\$?(?<![\d.])(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
STOP = ("Question:",)


def read_solution(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number that a solution ends in, as digits with an optional sign and point; None where there is none."""
    for stop in STOP:
        text = text.partition(stop)[0]
    given = _GIVEN.search(text)
    numbers = _NUMBER.findall(given[1]) if given else _NUMBER.findall(text)[-1:]
    return _canonical(numbers[0]) if numbers else None


def mark_number(gold: Any, answer: Any) -> float:
    """1.0 where both are the same number."""
    try:
        return float(answer is not None and Decimal(str(gold)) == Decimal(str(answer)))
    except InvalidOperation:
        return 0.0


def _canonical(text: str) -> str:
    sign, digits = re.match(r"([-−]?)(.*)", re.sub(r"[$,]", "", text)).groups()  # type: ignore[union-attr]
    return ("-" if sign else "") + (digits.lstrip("0") or "0" if "." not in digits else digits)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    question, answer = text_in(row, "question", place), text_in(row, "answer", place)
    gold = read_solution(answer) if "####" in answer else None
    if gold is None:
        raise FinloraError(f"{place}: the answer does not end in `#### NUMBER`", "fix or drop the row")
    yield Example(f"gsm8k-{index}", (("user", asked(question)),), gold, answer, cluster_of(question))


TASK = Task(
    name="gsm8k",
    labels=(),
    kind="number",
    way="say",
    examples=_examples,
    read=read_solution,
    mark=mark_number,
    source=Source(
        hub="openai/gsm8k",
        url="https://huggingface.co/datasets/openai/gsm8k",
        licence="MIT",
        files={"train": ("gsm8k_train.jsonl",), "test": ("gsm8k_test.jsonl", "gsm8k_test_dev.jsonl")},
        columns={"text": ("question",), "label": ("answer",)},
    ),
    errata="some test rows have wrong or ambiguous golds (arXiv 2502.03461)",
    majority={"test_dev": ("12", 20 / 656, 656)},
    metric="numeric",
    max_new=256,
    stop=STOP,
    group="general",
)
