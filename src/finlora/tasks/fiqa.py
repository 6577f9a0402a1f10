"""FiQA task 1: the sentiment of a financial headline or tweet (WWW 2018 challenge).

Source: hub `pauri32/fiqa-2018` (sentence, sentiment_score, format) and `TheFinAI/flare-fiqasa` (text, answer).  FinLoRA:
data/test/fiqa_test.jsonl at 7e1cf82803aa (arXiv 2505.19819).
Licence: unknown (challenge data; mirrors say MIT or CC BY 3.0 without a licence file); treat as non-commercial.
Splits: test 235 rows (128 tweets, 107 headlines), train 877 (rebuilt: 1,111 sentences less the test).
A score s in [-1, 1] is read as FinGPT and FinLoRA document it: negative below -0.1, positive from 0.1 on, else neutral.
Known errata: 4 of 235 published labels are not what that rule gives (scores -0.099, 0.143, 0.003, 0.125); they are kept
as published.  2 test rows are exact repeats; 2 test tweets are
train tweets with another link (same labels).  The paper's base score, 46.55, is 128/275: another test set than the 235 rows of the tuned models.
Tweet prompts are letter for letter those of TFNS, whose published labels mean the opposite: do not mix the two unmended.
Floor: always "positive" is right in 141 of 235 test rows (0.6000), 542 of 877 in train (0.6180).  Naive Bayes: 0.677.
Only 18 test rows are neutral: read macro F1 with its interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import SENTIMENT, Source, Task, label_rows, place_of

SCORES = ("sentiment_score", "score")
THRESHOLD = 0.1


def sentiment(score: float) -> str:
    """The label of a score in [-1, 1]."""
    return "negative" if score < -THRESHOLD else "positive" if score >= THRESHOLD else "neutral"


def _question(row: Mapping[str, Any]) -> str:
    number = row.get("id")  # tweets are numbered from 10000 on in the challenge's files
    tweet = row.get("format") == "post" or (isinstance(number, int) and number >= 10000)
    return f"What is the sentiment of this {'tweet' if tweet else 'news'}?"


_by_label = label_rows("fiqa", SENTIMENT, _question, text=("sentence", "text"), label=("label", "answer", "sentiment_label", *SCORES))


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    column = next((c for c in SCORES if c in row), None)
    if column is None or "context" in row:
        return _by_label(row, index)
    place = place_of(row, index)
    try:
        score = float(row[column])
    except (TypeError, ValueError):
        score = math.nan
    if not -1 <= score <= 1:
        raise FinloraError(f"{place}: column `{column}` should be a number from -1 to 1, got {row[column]!r:.40}", "fix or drop the row")
    return _by_label({**row, "label": sentiment(score)}, index)


TASK = Task(
    name="fiqa",
    group="sentiment",
    labels=SENTIMENT,
    examples=_examples,
    source=Source(
        hub="pauri32/fiqa-2018",
        url="https://huggingface.co/datasets/pauri32/fiqa-2018",
        finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/fiqa_test.jsonl",
        licence="unknown; treat as non-commercial",
        noncommercial=True,
        files={"train": ("fiqa_train.jsonl",), "test": ("fiqa_test.jsonl", "fiqa_test_dev.jsonl")},
        columns={"text": ("sentence", "text"), "label": SCORES + ("label", "answer")},
    ),
    errata="4 of 235 published labels differ from the documented threshold; 2 exact repeats; 18 neutral rows",
    majority={"test": ("positive", 141 / 235, 235), "train": ("positive", 542 / 877, 877)},
)
