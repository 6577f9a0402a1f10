"""What FiNER and FNXL share: one question for each number of a sentence, alone or in FinLoRA's batches of four.

    parts(prompt, ASK)                 the questions of a prompt, each with its number and sentence
    one_each(...)                      Examples of one question each, whatever the row holds
    batched(...)                       one Example a row, its questions together, the golds joined by commas

Legend: a tag is a US-GAAP element name without its prefix, such as Revenues.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import cluster_of, text_in

ENDING = "\nOutput US GAAP tags:"  # FinLoRA's
_PREFIX = re.compile(r"\bus-?gaap\s*[:_]\s*", re.IGNORECASE)
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9]{2,199}")


@dataclass(frozen=True)
class Ask:
    """One question: its line as it stands, the number asked about, the sentence, the tag ("" where a prompt does not say)."""

    line: str
    entity: str
    sentence: str
    tag: str = ""


def parts(prompt: str, pattern: re.Pattern[str]) -> list[Ask]:
    """The questions of a prompt by `pattern`, which has the groups line, entity and sentence."""
    return [Ask(m["line"], m["entity"], m["sentence"]) for m in pattern.finditer(prompt)]


def asked(row: Mapping[str, Any], pattern: re.Pattern[str], place: str, known: Callable[[str], bool]) -> list[Ask]:
    """The questions of a row in FinLoRA's form, one or a batch, with their tags.

    Raises: FinloraError for a prompt without questions, as many tags as there are not questions, or a tag that is not known.
    """
    prompt, target = text_in(row, "context", place), text_in(row, "target", place)
    found = parts(prompt, pattern)
    if not found:
        raise FinloraError(f"{place}: no question in the prompt", 'wanted lines such as: What is best tag for entity "5.0" in sentence: "..."')
    tags = [bare(t) for t in target.split(",")]
    if len(tags) != len(found):
        raise FinloraError(f"{place}: {len(found)} questions but {len(tags)} answers", "the answers are tags joined by commas, one for each question")
    for tag in tags:
        if not known(tag):
            raise FinloraError(f"{place}: unknown tag {tag!r:.60}", "a US-GAAP element name of this task, without its prefix")
    return [Ask(a.line, a.entity, a.sentence, t) for a, t in zip(found, tags)]


def one_each(stem: str, asks: Sequence[Ask], index: int, prompt: Callable[[str], str], labels: tuple[str, ...] = ()) -> Iterator[Example]:
    """An Example for each question; questions about one sentence share a cluster."""
    for k, a in enumerate(asks):
        id = f"{stem}-{index}" if len(asks) == 1 else f"{stem}-{index}-{k}"
        yield Example(id, (("user", prompt(a.line)),), a.tag, a.tag, cluster_of(a.sentence), labels)


def batched(stem: str, asks: Sequence[Ask], index: int, prompt: str) -> Example:
    """One Example that asks all questions; its gold is their tags joined by commas."""
    gold = ",".join(a.tag for a in asks)
    return Example(f"{stem}-{index}", (("user", prompt),), gold, gold, cluster_of(*(a.sentence for a in asks)))


def bare(text: str) -> str:
    """A tag without prefix, quotes and white space around it."""
    return _PREFIX.sub("", text).strip(" \t\r\n\"'`*.")


def is_tag(text: str) -> bool:
    """Whether the text has the form of an element name."""
    return _TAG.fullmatch(text) is not None


def read_tag(text: str, labels: object = ()) -> str | None:
    """The tag that the first line with a word consists of, with or without prefix; None for more words, or several tags.

    Case counts: element names differ by it.
    """
    said = bare(_line(text))
    return said if is_tag(said) else None


def read_batch(text: str, labels: object = ()) -> str | None:
    """The tags of the first line with a word, joined by commas, "" for a part that is none; None where no part is a tag."""
    said = [re.sub(r"^\s*\d+\s*[.)]\s*", "", part) for part in _line(text).split(",")]
    tags = [t if is_tag(t := bare(part)) else "" for part in said]
    return ",".join(tags) if any(tags) else None


def mark_batch(gold: Any, answer: Any) -> float:
    """The share of questions whose tag stands in its place; what is said beyond them does not count."""
    golds = str(gold).split(",")
    said = [] if answer is None else str(answer).split(",")
    return sum(g == a for g, a in zip(golds, said)) / len(golds)


def _line(text: str) -> str:
    return next((line for line in text.splitlines() if re.search(r"\w", line)), "")
