"""WinoGrande: which of two names fits the gap of a sentence (Sakaguchi et al. 2020, arXiv 1907.10641).

Source: hub `allenai/winogrande` (`winogrande_xl`), columns sentence (with `_`), option1, option2, answer ("1" or "2").
Also read: llm-foundry's winogrande.jsonl {"context_options", "continuation", "gold"}.
Licence: CC BY 4.0.
Splits: validation 1,267 (621 in the development half), train 40,398; the test split is published without answers.
Scoring: partial, as the authors and lm-evaluation-harness: the likelihood of what follows the gap, given the sentence up to it with
each option in its place.  The option's own likelihood does not count.
Known errata: twin sentences, which differ in a word or two, stand side by side in the data.
Cluster: the sentence up to the gap, which most twins share: 561 in the half.
Floor: always the second option is right in 317 of 621 (0.5105) of the half.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, cluster_of, place_of, text_in
from ._choice import choice, index_in, options_in, read_choice


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    if "context_options" in row:
        contexts = options_in(row["context_options"], place)
        before = os.path.commonprefix(contexts)
        before = before[: before.rfind(" ") + 1]
        options, rest = tuple(c[len(before) :] for c in contexts), text_in(row, "continuation", place)
        gold = index_in(row.get("gold"), options, place)
    else:
        before, gap, rest = text_in(row, "sentence", place).partition("_")
        if not gap or not rest.strip():
            raise FinloraError(f"{place}: the sentence has no gap `_` with words behind it", "fix or drop the row")
        options = options_in([text_in(row, "option1", place), text_in(row, "option2", place)], place)
        gold = index_in(row.get("answer"), options, place, ("1", "2"))
    if not before.strip() or not all(options):
        raise FinloraError(f"{place}: nothing stands before the gap, or in it", "fix or drop the row")
    after = " " + rest.strip()
    yield choice(f"winogrande-{index}", before, options, gold, cluster_of(before), after=after, answer=options[gold] + after)


TASK = Task(
    name="winogrande",
    labels=(),
    kind="choice",
    examples=_examples,
    read=read_choice,
    source=Source(
        hub="allenai/winogrande",
        url="https://huggingface.co/datasets/allenai/winogrande",
        licence="CC BY 4.0",
        files={
            "train": ("winogrande_train.jsonl",),
            "validation": ("winogrande_val.jsonl",),
            "test": ("winogrande_test.jsonl", "winogrande.jsonl", "winogrande_dev.jsonl"),
        },
        columns={"text": ("sentence",), "choices": ("option1", "option2"), "label": ("answer",)},
    ),
    errata="twin sentences are not independent: 621 rows of the half have 561 beginnings",
    majority={"test_dev": ("option 2", 317 / 621, 621)},
    group="general",
)
