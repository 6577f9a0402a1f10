"""COPA: which of two sentences is the cause, or the effect, of another (Roemmele et al. 2011; SuperGLUE, arXiv 1905.00537).

Source: hub `aps/super_glue` (`copa`), columns premise, choice1, choice2, question (cause, effect), label. Also read: llm-foundry's copa.jsonl.
Licence: BSD 2-Clause.
Splits: validation 100, train 400; the test split is published without answers, so 100 is what is graded.
Prompt: the premise without its full stop and "because" or "therefore"; scored is each sentence, its first letter made small.
How this differs: lm-evaluation-harness puts two spaces before a sentence, by a doubled delimiter; here it is one, as running text is, and
`copa@lm_eval` has two.
Known errata: 100 rows: an interval of about 19 points.
Cluster: the premise.
Floor: always the first sentence is right in 55 of 100.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, label_in, place_of, text_in
from ._choice import choice, index_in, options_in, question_in, read_choice

_LINKS = {"cause": "because", "effect": "therefore"}


def _make(space: str) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        if "query" in row:
            prompt, choices, gold = question_in(row, place)
        else:
            link = _LINKS[label_in(row.get("question"), tuple(_LINKS), place)]
            prompt = f"{text_in(row, 'premise', place).strip()[:-1]} {link}"
            choices = options_in([c[0].lower() + c[1:] for c in (text_in(row, "choice1", place), text_in(row, "choice2", place))], place)
            gold = index_in(row.get("label"), choices, place)
        yield choice(f"copa-{index}", prompt + space, choices, gold, cluster_of(prompt))

    return examples


TASK = Task(
    name="copa",
    labels=(),
    kind="choice",
    examples=_make(" "),
    read=read_choice,
    source=Source(
        hub="aps/super_glue",
        url="https://huggingface.co/datasets/aps/super_glue",
        licence="BSD 2-Clause",
        files={"train": ("copa_train.jsonl",), "validation": ("copa_val.jsonl",), "test": ("copa_test.jsonl", "copa.jsonl")},
        columns={"text": ("premise", "question"), "choices": ("choice1", "choice2"), "label": ("label",)},
    ),
    errata="100 rows: an interval of about 19 points",
    majority={"test": ("option 1", 55 / 100, 100)},
    group="general",
)

VARIANTS = {"lm_eval": replace(TASK, name="copa@lm_eval", examples=_make("  "))}
