"""OpenBookQA: elementary science that joins a given fact with common knowledge (Mihaylov et al. 2018, arXiv 1809.02789).

Source: hub `allenai/openbookqa` (`main`), columns question_stem, choices {text, label}, answerKey; the book is not shown.
Also read: llm-foundry's openbook_qa.jsonl, LLM-Adapters' instructions for training.
Licence: Apache-2.0 (the authors' repository).
Splits: test 500, validation 500, train 4,957 (1,200 of them in the file kept for development).
Scoring: the likelihood of each option's text right after the stem, divided by its bytes, as lm-evaluation-harness `acc_norm` (there by
characters); `openbookqa@sum` does not divide, its `acc`.
Known errata: 2 test questions are asked twice, with other options; 5 are also in the 1,200 of train.
Cluster: the question, 498 in the test.
Floor: always the first option is right in 138 of 500 (0.2760).
"""

from __future__ import annotations

from dataclasses import replace

from . import Source, Task
from ._choice import option_rows, read_choice

TASK = Task(
    name="openbookqa",
    labels=(),
    kind="choice",
    examples=option_rows("openbookqa", lambda stem: stem + " ", names=("question_stem",)),
    read=read_choice,
    source=Source(
        hub="allenai/openbookqa",
        url="https://huggingface.co/datasets/allenai/openbookqa",
        licence="Apache-2.0",
        files={
            "train": ("openbookqa_train.jsonl", "openbookqa_train_instruct.jsonl"),
            "test": ("openbookqa_test.jsonl", "openbook_qa.jsonl"),
        },
        columns={"text": ("question_stem",), "choices": ("choices",), "label": ("answerKey",)},
    ),
    errata="2 test questions are asked twice, with other options; 5 are also in the 1,200 rows of train kept for development",
    majority={"test": ("option 1", 138 / 500, 500)},
    norm="bytes",
    group="general",
)

VARIANTS = {"sum": replace(TASK, name="openbookqa@sum", norm="sum")}
