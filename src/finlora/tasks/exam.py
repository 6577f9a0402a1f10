"""Exams of your own: multiple-choice questions in a folder, such as for CFA or CPA, answered by letter.

Source: none; such questions are protected by copyright, and FinLoRA released none of the four exam sets it reports (arXiv
2505.19819).  Rows: question, choices (a list, an object {A: ...}, or columns A, B, C ...), answer (a letter, the choice's
text, or its number from 0 in `answer_index`), and where they are there `id` and `vignette` (or `context`, a text that several
questions share).
Licence: the user's own.
Splits: test.jsonl, .json, .csv or .parquet in the folder, train and validation likewise.
Known errata: published exam scores are said to be read from whole answers ("B. Asking Jones to ..."), under which base models
score below chance; here a letter is chosen by likelihood, or must lead what is said.  "Both A and B" or "all of the
above" name other choices by place.
Cluster: the vignette, or else the question: questions about one case are one piece of evidence.
Floor: chance, one in the number of choices.  `exam@shuffled` puts the choices in an order that is drawn from the item's id,
so that a preference for a letter cannot be taken for knowledge; items whose choices name others keep their order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, cluster_of, column_of, place_of, text_in
from ._choice import LETTERS, read_letter

ASK = "Answer the question with the letter of the right choice."
_COLUMNS = {"text": ("question", "query"), "label": ("answer", "answer_index", "label")}
_SHARED = ("vignette", "case", "passage", "context")
_BY_PLACE = re.compile(r"\b(?:above|below|both|neither|either|all of the|none of the|[A-J] (?:and|or|nor) [A-J]|I{1,3} (?:and|or|only)|first two)\b", re.IGNORECASE)


def order_of(item: str, count: int) -> list[int]:
    """The order in which an item's choices are shown: place -> number of the choice; drawn from the id alone."""
    return sorted(range(count), key=lambda k: hashlib.sha256(f"{item}\n{k}".encode()).digest())


def _choices(row: Mapping[str, Any], place: str) -> list[str]:
    given = row.get("choices", row.get("options"))
    if isinstance(given, Mapping):
        given = [given[x] for x in LETTERS if x in given] if set(map(str, given)) <= set(LETTERS) else given.get("text")
    if given is None:
        given = []
        for letter in LETTERS:
            if row.get(letter) in (None, ""):
                break
            given.append(row[letter])
    if not isinstance(given, list | tuple) or not all(isinstance(c, str | int | float) and str(c).strip() for c in given):
        raise FinloraError(f"{place}: the choices should be a list of texts", "a column `choices`, or columns A, B, C ...")
    out = [re.sub(rf"^\s*\(?{LETTERS[k]}[).:]\s+", "", str(c)).strip() for k, c in enumerate(given[: len(LETTERS)])]
    if not 2 <= len(given) <= len(LETTERS) or len({c.casefold() for c in out}) < len(out):
        raise FinloraError(f"{place}: {len(given)} choices, {len({c.casefold() for c in out})} of them different", f"2 to {len(LETTERS)} different ones")
    return out


def _right(row: Mapping[str, Any], choices: Sequence[str], place: str) -> int:
    column = column_of(row, _COLUMNS["label"], place, "answer")
    value = row[column]
    text = "" if value is None or isinstance(value, bool) else str(value).strip()
    if column != "answer" and re.fullmatch(r"\d{1,2}", text) and int(text) < len(choices):
        return int(text)
    letters = LETTERS[: len(choices)]
    same = [k for k, c in enumerate(choices) if c.casefold() == text.casefold()]
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    if same:
        return same[0]
    letter = read_letter(text, letters)
    if letter and choices[letters.index(letter)].casefold() == re.sub(r"^\W*\w\W*\s", "", text).casefold():
        return letters.index(letter)
    raise FinloraError(f"{place}: unknown answer {str(value)[:40]!r}", f"one of the letters {letters[0]} to {letters[-1]}, or a choice's text")


def _reader(shuffled: bool):
    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        question = text_in(row, column_of(row, _COLUMNS["text"], place, "question"), place)
        shared = next((text_in(row, c, place) for c in _SHARED if row.get(c) not in (None, "")), "")
        choices, item = _choices(row, place), str(row.get("id") or cluster_of(question))
        right, order = _right(row, choices, place), list(range(len(choices)))
        if shuffled and not any(_BY_PLACE.search(c) for c in choices):
            order = order_of(item, len(choices))
        lines = "\n".join(f"{LETTERS[k]}. {choices[c]}" for k, c in enumerate(order))
        head = f"{shared}\n" if shared else ""
        prompt = f"Instruction: {ASK}\nInput: {head}{question}\n{lines}\nAnswer: "
        gold = LETTERS[order.index(right)]
        yield Example(f"exam-{index}", (("user", prompt),), gold, gold, cluster_of(shared or question), tuple(LETTERS[: len(choices)]))

    return examples


def _task(name: str, shuffled: bool, errata: str) -> Task:
    return Task(
        name=name,
        labels=(),
        examples=_reader(shuffled),
        kind="choice",
        way="choose",
        read=read_letter,
        source=Source(licence="the user's own", files={"train": ("exam_train.jsonl",), "test": ("exam_test.jsonl",)}, columns=_COLUMNS),
        errata=errata,
        metrics=("accuracy", "ece", "brier"),
        group="exam",
    )


TASK = _task("exam", False, "your own rows; nothing of it ships")
VARIANTS = {"shuffled": _task("exam@shuffled", True, "choices in an order drawn from the item's id")}
