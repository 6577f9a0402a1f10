"""What floors share: groups of questions, the words that every prompt has, and the record of a floor's answer."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import FinloraError
from ..score import Record
from ..text import Example, prompt_text

SHARED = 50  # training examples from which an instruction is counted on its own
_NAMES = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")

FOLDS = 5

Key = tuple[frozenset[str] | None, str | None]
Mark = Callable[[Any, Any], float]
Read = Callable[[str, Sequence[str]], Any]


def same(gold: Any, answer: Any) -> float:
    """The mark where the task has none: equality."""
    return float(gold == answer)


def both(train: Iterable[Example], test: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Both as lists. Raises FinloraError when there is nothing to learn from."""
    train, test = list(train), list(test)
    if not train:
        raise FinloraError("a floor needs training examples, there are none", "give the task a training split")
    return train, test


# -- groups ----------------------------------------------------------------------------------------------------------


def instruction(example: Example) -> str:
    """The first line of the prompt, without what stands in quotes."""
    return _NAMES.sub("''", prompt_text(example).split("\n", 1)[0])


def _keys(example: Example) -> tuple[Key, Key, Key]:
    """The groups an example may belong to, narrowest first."""
    labels = frozenset(example.labels)
    return (labels, instruction(example)), (labels, None), (None, None)


def members_of(train: Sequence[Example]) -> dict[Key, list[int]]:
    """Training rows of every group; an instruction that few examples share makes none."""
    out: dict[Key, list[int]] = {}
    for k, example in enumerate(train):
        for key in _keys(example):
            out.setdefault(key, []).append(k)
    return {key: rows for key, rows in out.items() if key[1] is None or len(rows) >= SHARED}


def group_of(example: Example, members: dict[Key, list[int]], apart: bool) -> Key:
    """The narrowest group that the example belongs to; apart: instructions count."""
    return next(key for key in _keys(example)[0 if apart else 1 :] if key in members)


def commonest(example: Example, counts: Counter) -> Any:
    """The commonest answer of those offered, the first of equals."""
    offered = example.labels or sorted(counts, key=str)
    return max(offered, key=lambda label: counts[label])  # max keeps the first of equals


def shared(prompts: Sequence[str]) -> tuple[int, int]:
    """How many words begin, and end, every prompt."""
    if len(set(prompts)) < 2:
        return 0, 0
    rows = [p.split() for p in prompts]
    room = min(map(len, rows))
    first = next((k for k in range(room) if len({r[k] for r in rows}) > 1), room)
    last = next((k for k in range(room - first) if len({r[-1 - k] for r in rows}) > 1), room - first)
    return first, last


def trim(prompt: str, cut: tuple[int, int]) -> str:
    """The prompt without so many words at its ends."""
    words = prompt.split()
    return " ".join(words[cut[0] : len(words) - cut[1]])


def own_words(train: Sequence[Example], test: Sequence[Example]) -> tuple[list[str], list[str]]:
    """The prompts of both without the words that begin and end every training prompt."""
    prompts = [prompt_text(e) for e in train]
    cut = shared(prompts)
    return [trim(p, cut) for p in prompts], [trim(prompt_text(e), cut) for e in test]


def fold_of(example: Example) -> int:
    """Which fold of the cross-validation the example's cluster is in."""
    return int(hashlib.sha256((example.cluster or example.id).encode()).hexdigest()[:8], 16) % FOLDS


def token_of(example: Example, read: Read | None) -> Any:
    """What is counted of a training example: its gold answer, or with `read` the text that is the right answer."""
    return example.gold if read is None else example.answer


def record(example: Example, answer: Any, mark: Mark, way: str, read: Read | None = None) -> Record:
    """The record of a floor's answer to an example; with `read` the answer is a text, and read as a model's would be."""
    said = None
    if read is not None:
        said, answer = answer, read(answer, example.labels)
    digest = hashlib.sha256(prompt_text(example).encode("utf-8", "replace")).hexdigest()[:16]
    choice = answer if isinstance(answer, str) else None
    correct = 0.0 if answer is None else float(mark(example.gold, answer))
    return Record(example.id, example.cluster, digest, example.gold, said, answer, None, choice, correct, f"floor:{way}")
