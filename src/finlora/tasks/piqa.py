"""PIQA: which of two ways reaches a physical goal (Bisk et al. 2020, arXiv 1911.11641).

Source: hub `ybisk/piqa`, columns goal, sol1, sol2, label. Also read: llm-foundry's piqa.jsonl.
Licence: AFL 3.0.
Splits: validation 1,838, train 16,113; the test split is published without answers, so 1,838 is what is graded.
Scoring: the likelihood of each solution after "Question: GOAL\\nAnswer:", as lm-evaluation-harness `acc`; `piqa@bytes` divides it by the
solution's bytes, its `acc_norm` (there by characters).
Known errata: 37 rows repeat another's goal with other solutions.  In 3 rows one solution begins the other, token
for token; those are scored with their end tokens (finlora.generate), which the harness does not do.
Cluster: the goal, 1,801 (1,803 as written).
Floor: always the second solution is right in 928 of 1,838 (0.5049).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, place_of, text_in
from ._choice import asked, choice, index_in, options_in, question_in, read_choice, unasked


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    if "query" in row:
        goal, solutions, gold = question_in(row, place)
        goal = unasked(goal)
    else:
        goal = text_in(row, "goal", place)
        solutions = options_in([text_in(row, "sol1", place), text_in(row, "sol2", place)], place)
        gold = index_in(row.get("label"), solutions, place)
    yield choice(f"piqa-{index}", asked(goal), solutions, gold, cluster_of(goal))


TASK = Task(
    name="piqa",
    labels=(),
    kind="choice",
    examples=_examples,
    read=read_choice,
    source=Source(
        hub="ybisk/piqa",
        url="https://huggingface.co/datasets/ybisk/piqa",
        licence="AFL 3.0",
        files={"train": ("piqa_train.jsonl",), "validation": ("piqa_val.jsonl",), "test": ("piqa_test.jsonl", "piqa.jsonl")},
        columns={"text": ("goal",), "choices": ("sol1", "sol2"), "label": ("label",)},
    ),
    errata="37 validation rows repeat another's goal with other solutions",
    majority={"test": ("option 2", 928 / 1838, 1838)},
    group="general",
)

VARIANTS = {"bytes": replace(TASK, name="piqa@bytes", norm="bytes")}
