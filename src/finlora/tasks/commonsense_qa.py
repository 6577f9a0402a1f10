"""CommonsenseQA: everyday questions written around ConceptNet, five options by letter (Talmor et al. 2019, arXiv 1811.00937).

Source: hub `tau/commonsense_qa`, columns question, choices {text, label}, answerKey. Also read: llm-foundry's commonsense_qa.jsonl.
Licence: MIT.
Splits: validation 1,221, train 9,741; the test split is published without answers, so 1,221 is what is graded.
Scoring: the likelihood of each letter after the question and its options, as lm-evaluation-harness.
Known errata: llm-foundry's file has four of the five options and one letter too often right: C in 492 of 1,221 rows (0.4029) where A, B
and D have a fifth each; chance in it is 0.25, not 0.20.
Cluster: the question.
Floor: always C is right in 492 of 1,221 rows (0.4029) of llm-foundry's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, place_of
from ._choice import LETTERS, choice, question_in, read_letter

_QUERY = re.compile(r"Question: (?P<question>.*)\nChoices:\n(?P<options>A\. .*)\nAnswer:", re.DOTALL)


def lettered(question: str, options: tuple[str, ...]) -> str:
    """The question, its options each behind a letter, and "Answer: "."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options)), "Answer: "])


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    question, options, gold = question_in(row, place)
    found = _QUERY.fullmatch(question) if "query" in row else None
    if found:  # the options stand in the query, the letters in the column
        question, options = found["question"], tuple(re.split(r"\n[B-J]\. ", found["options"].removeprefix("A. ")))
    prompt = lettered(f"Question: {question.strip()}", options)
    yield choice(f"commonsense_qa-{index}", prompt, LETTERS[: len(options)], gold, cluster_of(question))


TASK = Task(
    name="commonsense_qa",
    labels=(),
    kind="choice",
    examples=_examples,
    read=read_letter,
    source=Source(
        hub="tau/commonsense_qa",
        url="https://huggingface.co/datasets/tau/commonsense_qa",
        licence="MIT",
        files={"train": ("commonsense_qa_train.jsonl",), "test": ("commonsense_qa_test.jsonl", "commonsense_qa.jsonl")},
        columns={"text": ("question",), "choices": ("choices",), "label": ("answerKey",)},
    ),
    errata="llm-foundry's file has four of five options, and C right in 40% of its rows",
    majority={"test": ("C", 492 / 1221, 1221)},
    group="general",
)
