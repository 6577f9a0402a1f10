"""HellaSwag: which of four endings goes on with a scene, the wrong ones machine-written (Zellers et al. 2019, arXiv 1905.07830).

Source: hub `Rowan/hellaswag`, columns activity_label, ctx_a, ctx_b, ctx, endings, label, source_id.
Licence: MIT.
Splits: validation 10,042 (1,000 in the sample kept for development), train 39,905; the test split is published without answers.
Prompt: "ACTIVITY: CTX", with ctx_b begun by a capital and WikiHow's brackets removed, as lm-evaluation-harness.
Scoring: the likelihood of each ending divided by its bytes, as `acc_norm` there (by characters); `hellaswag@sum` does not divide, its `acc`.
Known errata: WikiHow's "[header]", "[title]" and "[step]" stand in the texts and are removed.
Cluster: source_id, the video or article a scene is from: 704 in the sample.
Floor: always the first ending is right in 267 of 1,000 (0.2670) of the sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, cluster_of, place_of, text_in
from ._choice import choice, index_in, options_in, read_choice


def tidy(text: str) -> str:
    """The text without WikiHow's brackets, as the harness strips them."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    if isinstance(row.get("ctx_a"), str) and isinstance(row.get("ctx_b"), str):
        scene = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    else:
        scene = text_in(row, "ctx", place)
    if isinstance(row.get("activity_label"), str):
        scene = f"{row['activity_label']}: {scene}"
    source = str(row.get("source_id") or scene)
    text_in({"ctx": scene}, "ctx", place), text_in({"source_id": source}, "source_id", place)
    endings = tuple(map(tidy, options_in(row.get("endings"), place)))
    if not all(endings):
        raise FinloraError(f"{place}: an ending is nothing but brackets", "drop the row")
    gold = index_in(row.get("label"), endings, place)
    yield choice(f"hellaswag-{index}", tidy(scene) + " ", endings, gold, cluster_of(source))


TASK = Task(
    name="hellaswag",
    labels=(),
    kind="choice",
    examples=_examples,
    read=read_choice,
    source=Source(
        hub="Rowan/hellaswag",
        url="https://huggingface.co/datasets/Rowan/hellaswag",
        licence="MIT",
        files={
            "train": ("hellaswag_train.jsonl",),
            "validation": ("hellaswag_val.jsonl",),
            "test": ("hellaswag_test.jsonl", "hellaswag_val.jsonl", "hellaswag_val_1000.jsonl"),
        },
        columns={"text": ("ctx_a", "ctx_b", "ctx"), "choices": ("endings",), "label": ("label",)},
    ),
    errata="WikiHow's bracketed headings are removed; 1,000 scenes of the sample are from 704 sources",
    majority={"test_1000": ("option 1", 267 / 1000, 1000)},
    norm="bytes",
    group="general",
)

VARIANTS = {"sum": replace(TASK, name="hellaswag@sum", norm="sum")}
