"""BoolQ: yes or no to a searched question, given a passage of Wikipedia (Clark et al. 2019, arXiv 1905.10044).

Source: hub `google/boolq`, columns question, passage, answer (true or false); `aps/super_glue` has label 0 or 1, 1 being yes.
Also read: llm-foundry's boolq.jsonl.
Licence: CC BY-SA 3.0.
Splits: validation 3,270 (785 in the quarter kept for development), train 9,427; there is no published test with answers.
Prompt: "PASSAGE\\nQuestion: ...?\\nAnswer:", as lm-evaluation-harness; scored are " no" and " yes".
Known errata: none known; questions are searches, so they have neither capitals nor, on the hub, a question mark.
Cluster: the passage, 760 in the quarter: several questions may be about one.
Floor: always yes is right in 488 of 785 (0.6217) of the quarter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, column_of, label_in, place_of, text_in
from ._choice import question_in

LABELS = ("no", "yes")


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    if "query" in row:
        query, choices, gold = question_in(row, place)
        passage, _, question = query.removeprefix("Passage: ").rpartition("\nQuestion: ")
        question, answer = question.removesuffix("?"), label_in(choices[gold], LABELS, place)
    else:
        passage, question = text_in(row, "passage", place), text_in(row, "question", place)
        value = row[column_of(row, ("answer", "label"), place, "answer")]
        answer = LABELS[value] if isinstance(value, bool) else label_in(value, LABELS, place, {0: "no", 1: "yes", "false": "no", "true": "yes"})
    prompt = f"{passage}\nQuestion: {question}?\nAnswer: "
    yield Example(f"boolq-{index}", (("user", prompt),), answer, answer, cluster_of(passage), LABELS)


TASK = Task(
    name="boolq",
    labels=LABELS,
    examples=_examples,
    source=Source(
        hub="google/boolq",
        url="https://huggingface.co/datasets/google/boolq",
        licence="CC BY-SA 3.0",
        files={"train": ("boolq_train.jsonl",), "validation": ("boolq_val.jsonl",), "test": ("boolq_test.jsonl", "boolq.jsonl")},
        columns={"text": ("passage", "question"), "label": ("answer", "label")},
    ),
    errata="several questions may be about one passage",
    majority={"test": ("yes", 488 / 785, 785)},
    group="general",
)
