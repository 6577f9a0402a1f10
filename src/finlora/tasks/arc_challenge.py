"""ARC Challenge: grade-school science questions that retrieval and word statistics failed (Clark et al. 2018, arXiv 1803.05457).

Source: hub `allenai/ai2_arc`, ARC-Challenge, columns question, choices {text, label}, answerKey (letters, in some rows numbers).
Also read: llm-foundry's arc_challenge.jsonl, LLM-Adapters' instructions for training.
Licence: CC BY-SA 4.0.
Splits: test 1,172 (the half kept for development 585), validation 299, train 1,119.
Scoring: the likelihood of each option's text after "Question: ...\\nAnswer:", divided by its bytes, as lm-evaluation-harness
`acc_norm` (there by characters); `arc_challenge@sum` does not divide, its `acc`.
Known errata: 2 rows of the half hold two options of the same words; 5 of its questions are also in train.  In one
row an option begins another, token for token; it is scored with end tokens (finlora.generate), which the harness does not do.
Cluster: the question, 584 in the half.
Floor: always the second option is right in 151 of 585 (0.2581).
"""

from __future__ import annotations

from dataclasses import replace

from . import Source, Task
from ._choice import asked, option_rows, read_choice, unasked

TASK = Task(
    name="arc_challenge",
    labels=(),
    kind="choice",
    examples=option_rows("arc_challenge", asked, bare=unasked),
    read=read_choice,
    source=Source(
        hub="allenai/ai2_arc",
        url="https://huggingface.co/datasets/allenai/ai2_arc",
        licence="CC BY-SA 4.0",
        files={
            "train": ("arc_challenge_train.jsonl", "arc-challenge_train_instruct.jsonl"),
            "test": ("arc_challenge_test.jsonl", "arc_challenge.jsonl", "arc_challenge_dev.jsonl"),
        },
        columns={"text": ("question",), "choices": ("choices",), "label": ("answerKey",)},
    ),
    errata="2 rows of the development half hold two options of the same words; 5 of its questions are also in train",
    majority={"test_dev": ("option 2", 151 / 585, 585)},
    norm="bytes",
    group="general",
)

VARIANTS = {"sum": replace(TASK, name="arc_challenge@sum", norm="sum")}
