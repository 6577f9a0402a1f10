"""MMLU: exam questions of 57 subjects, four options by letter (Hendrycks et al. 2021, arXiv 2009.03300).

Source: hub `cais/mmlu`, columns question, subject, choices, answer (0 to 3, or a letter).
Licence: MIT.
Splits: test 14,042 (2,381 in the development part: 11 subjects of finance, business and law whole, at most 60 questions of each other),
validation 1,531, dev 285 (5 a subject), which is what few-shot examples are drawn from and therefore read as train.
Prompt: "The following are multiple choice questions (with answers) about SUBJECT." as a system turn, then question, options, "Answer:".
Scoring: the likelihood of each letter, as lm-evaluation-harness; the subject stands in the id (`mmlu-SUBJECT-12`), for tables by subject.
Known errata: about 6.5% of the questions have an error (Gema et al. 2024, arXiv 2406.04127); 27 rows of the part repeat a question,
and some have two options of the same words.
Cluster: the question; questions on one passage ("This question refers to the following information") share it: 2,337 in the part.
Floor: always D is right in 653 of 2,381 (0.2743) of the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, place_of, text_in
from ._choice import LETTERS, choice, index_in, options_in, read_letter
from .commonsense_qa import lettered

_PASSAGE = "This question refers to the following information"


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    question, subject = text_in(row, "question", place), text_in(row, "subject", place).strip()
    options = options_in(row.get("choices"), place)
    answer = row.get("answer")
    letters = LETTERS[: len(options)]
    gold = index_in(answer, options, place, tuple(letters) if isinstance(answer, str) and answer.strip().isalpha() else ())
    read = question.strip().rpartition("\n")[0] if question.strip().startswith(_PASSAGE) else ""
    system = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
    yield choice(f"mmlu-{subject}-{index}", lettered(question.strip(), options), letters, gold, cluster_of(read or question), system)


TASK = Task(
    name="mmlu",
    labels=(),
    kind="choice",
    examples=_examples,
    read=read_letter,
    source=Source(
        hub="cais/mmlu",
        url="https://huggingface.co/datasets/cais/mmlu",
        licence="MIT",
        files={
            "train": ("mmlu_train.jsonl", "mmlu_fewshot_dev5.jsonl"),
            "validation": ("mmlu_val.jsonl",),
            "test": ("mmlu_test.jsonl", "mmlu_test_dev.jsonl"),
        },
        columns={"text": ("question",), "choices": ("choices",), "label": ("answer",), "subject": ("subject",)},
    ),
    errata="about 6.5% of the questions have an error (arXiv 2406.04127); 27 of the development part repeat another",
    majority={"test_dev": ("D", 653 / 2381, 2381)},
    group="general",
)
