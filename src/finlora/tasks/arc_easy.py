"""ARC Easy: grade-school science questions that simple retrieval answered (Clark et al. 2018, arXiv 1803.05457).

Source: hub `allenai/ai2_arc`, ARC-Easy, columns question, choices {text, label}, answerKey (letters, in some rows numbers).
Also read: llm-foundry's arc_easy.jsonl, LLM-Adapters' instructions for training.
Licence: CC BY-SA 4.0.
Splits: test 2,376, validation 570, train 2,251.
Scoring: the likelihood of each option's text after "Question: ...\\nAnswer:", as lm-evaluation-harness `acc`; `arc_easy@bytes` divides
it by the option's bytes, its `acc_norm`.
Known errata: 7 test rows hold two options of the same words; 7 test questions are also in train.  In 9 test rows one option begins
another, token for token; those are scored with their end tokens (finlora.generate), which the harness does not do.
Cluster: the question, 2,371 in the test.
Floor: always the third option is right in 634 of 2,376 (0.2668).
"""

from __future__ import annotations

from dataclasses import replace

from . import Source, Task
from ._choice import asked, option_rows, read_choice, unasked

TASK = Task(
    name="arc_easy",
    labels=(),
    kind="choice",
    examples=option_rows("arc_easy", asked, bare=unasked),
    read=read_choice,
    source=Source(
        hub="allenai/ai2_arc",
        url="https://huggingface.co/datasets/allenai/ai2_arc",
        licence="CC BY-SA 4.0",
        files={"train": ("arc_easy_train.jsonl", "arc-easy_train_instruct.jsonl"), "test": ("arc_easy_test.jsonl", "arc_easy.jsonl")},
        columns={"text": ("question",), "choices": ("choices",), "label": ("answerKey",)},
    ),
    errata="7 test rows hold two options of the same words; 7 test questions are also in train",
    majority={"test": ("option 3", 634 / 2376, 2376)},
    group="general",
)

VARIANTS = {"bytes": replace(TASK, name="arc_easy@bytes", norm="bytes")}
