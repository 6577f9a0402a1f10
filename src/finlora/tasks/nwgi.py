"""News with GPT instructions: the sentiment of a stock news item on seven levels, or on three as `nwgi@3`.

Source: hub `oliverwang15/news_with_gpt_instructions` (news, label).  FinLoRA: data/test/nwgi_test.jsonl at 7e1cf82803aa
(arXiv 2505.19819).
Licence: unknown; the news is third parties', the labels were written by a language model.
Splits: test 4,047 rows in FinLoRA, of which 2,039 are the development half.  The train part is on the hub only.
`nwgi@3` keeps the sign of the level (strong, moderately and mildly positive are positive).  FinGPT instead calls both mild
levels neutral, which moves the floor from 0.547 to 0.413: three-level numbers compare only under one rule.
Known errata: the labels are a model's opinion, not a market's or a reader's; FinLoRA's README says three levels, its file
and code have seven; published scores of several tuned models are below the floor of this file.
Floor: always "moderately positive" is right in 1,522 of 4,047 test rows (0.3761), 783 of 2,039 of the half (0.3840).  Three levels:
"positive" 2,214 of 4,047 (0.5471), 1,138 of 2,039 (0.5581).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import (
    SENTIMENT,
    Source,
    Task,
    column_of,
    finlora_prompt,
    label_in,
    label_rows,
    parse_finlora,
    place_of,
    prompt_in,
)

LEVELS = (
    "strong negative",
    "moderately negative",
    "mildly negative",
    "neutral",
    "mildly positive",
    "moderately positive",
    "strong positive",
)
_QUESTION = "What is the sentiment of this news?"
_TEXT, _LABEL = ("news", "text", "sentence"), ("label", "sentiment")


def sign(level: str) -> str:
    """The sign of a level: "mildly negative" is negative."""
    return level.split()[-1]


_three = label_rows("nwgi", SENTIMENT, _QUESTION, text=_TEXT, label=_LABEL)


def _three_levels(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """Folds the seven levels by sign, in the label and in the choices that the prompt offers."""
    place = place_of(row, index)
    both = LEVELS + ("negative", "positive")  # a file that has three levels already passes as it is
    given = prompt_in(row, place)
    if given is None:
        column = column_of(row, _LABEL, place, "label")
        return _three({**row, column: sign(label_in(row[column], both, place))}, index)
    prompt, column = given
    parsed = parse_finlora(prompt)
    if parsed is None:
        raise FinloraError(f"{place}: cannot find the choices in the prompt, to offer three in place of seven", "ask for `nwgi`, or use FinLoRA's prompt form")
    prompt = finlora_prompt(parsed[0], SENTIMENT if parsed[1] else (), parsed[2])
    return _three({**row, "context": prompt, "target": sign(label_in(row[column], both, place))}, index)


_SOURCE = Source(
    hub="oliverwang15/news_with_gpt_instructions",
    url="https://huggingface.co/datasets/oliverwang15/news_with_gpt_instructions",
    finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/nwgi_test.jsonl",
    licence="unknown",
    noncommercial=True,
    files={"train": ("nwgi_train.jsonl",), "test": ("nwgi_test.jsonl", "nwgi_test_dev.jsonl")},
    columns={"text": _TEXT, "label": _LABEL},
)

TASK = Task(
    name="nwgi",
    group="sentiment",
    labels=LEVELS,
    examples=label_rows("nwgi", LEVELS, _QUESTION, text=_TEXT, label=_LABEL),
    source=_SOURCE,
    errata="labels are a language model's; published as three levels, the file has seven",
    majority={"test": ("moderately positive", 1522 / 4047, 4047), "test_dev": ("moderately positive", 783 / 2039, 2039)},
)

VARIANTS = {
    "3": Task(
        name="nwgi@3",
        group="sentiment",
        labels=SENTIMENT,
        examples=_three_levels,
        source=_SOURCE,
        errata="three levels by sign; FinGPT calls the mild levels neutral",
        majority={"test": ("positive", 2214 / 4047, 4047), "test_dev": ("positive", 1138 / 2039, 2039)},
    )
}
