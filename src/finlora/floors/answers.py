"""Floors that ask nothing of the question, or next to nothing: the commonest answer, a drawn one, a constant text, an echo.

majority    the answer commonest in training among those offered, argmax_l n_l
prior       an answer drawn with the shares of training: what a model gets that knows the shares and nothing else
position    the option at the place where the right one mostly stands; longest: the option of most letters
constant    the training answer most like all others by token F1; echo: the question's own words
nothing     no entities; dictionary: the strings that are mostly entities in training, wherever they occur
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..score import Record, token_f1
from ..text import Example
from .common import Mark, Read, both, commonest, group_of, members_of, own_words, record, same, token_of

SAMPLE = 200  # training answers that a constant text is chosen from, and compared with


def majority(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """A record for each test example: the answer commonest in training, ties broken by the order of its labels.

    mark: (gold, answer) -> 0 to 1, equality by default. read: given, answers are texts that it reads. Counted apart for
    each set of labels and each instruction that many share. Raises FinloraError when there is nothing to learn from.
    """
    train, test = both(train, test)
    members = members_of(train)
    counts = {key: Counter(token_of(train[k], read) for k in rows) for key, rows in members.items()}
    answers = [commonest(e, counts[group_of(e, members, True)]) for e in test]
    return [record(e, a, mark, "majority", read) for e, a in zip(test, answers, strict=True)]


def prior(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """As majority, but drawn with the training shares of the answers offered; the draw depends on the example's id alone."""
    train, test = both(train, test)
    members = members_of(train)
    counts = {key: Counter(token_of(train[k], read) for k in rows) for key, rows in members.items()}
    return [record(e, _drawn(e, counts[group_of(e, members, True)]), mark, "prior", read) for e in test]


def _drawn(example: Example, counts: Counter) -> Any:
    offered = example.labels or sorted(counts, key=str)
    weights = [counts[label] for label in offered]
    if not any(weights):
        weights = [1] * len(offered)
    left = int(hashlib.sha256(f"prior {example.id}".encode()).hexdigest()[:13], 16) / 16**13 * sum(weights)
    for label, weight in zip(offered, weights, strict=True):
        left -= weight
        if left < 0:
            return label
    return offered[-1]


def position(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """The option at the place where the right one stands most often in training, among questions of as many options."""
    train, test = both(train, test)
    counts: dict[int, Counter] = {}
    for e in train:
        if e.gold in e.labels:
            counts.setdefault(len(e.labels), Counter())[e.labels.index(e.gold)] += 1
    out = []
    for e in test:
        seen = counts.get(len(e.labels), Counter())
        out.append(record(e, e.labels[max(range(len(e.labels)), key=seen.__getitem__)], mark, "position"))
    return out


def longest(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """The option of most letters, the first of equals: writers of exams qualify the right answer. Learns nothing."""
    return [record(e, max(e.labels, key=len), mark, "longest") for e in test]


def constant(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """One text for all: the training answer of highest mean token F1 with the others, of `SAMPLE` taken by their hash."""
    train, test = both(train, test)
    texts = sorted({e.answer for e in train}, key=lambda t: hashlib.sha256(t.encode("utf-8", "replace")).hexdigest())[:SAMPLE]
    best = max(texts, key=lambda t: (sum(token_f1(other, t) for other in texts), t))
    return [record(e, best, mark, "constant", read or _as_it_is) for e in test]


def echo(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """The question's own words: its prompt without the words that begin and end every training prompt."""
    train, test = both(train, test)
    return [record(e, words, mark, "echo", read or _as_it_is) for e, words in zip(test, own_words(train, test)[1], strict=True)]


def _as_it_is(text: str, labels: Sequence[str]) -> str | None:
    return text.strip() or None


def nothing(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """The answer that there are no entities."""
    return [record(e, [], mark, "nothing") for e in test]


def dictionary(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """Entities by a dictionary: strings that are entities more often than not in training, with their commonest type.

    Golds are lists of [type, text] or [type, text, n], the n-th of its kind from the least n in training on. Case and
    punctuation do not count in finding them.
    """
    train, test = both(train, test)
    seen, asked = own_words(train, test)
    names: dict[tuple[str, ...], Counter] = {}
    for e in train:
        for kind, text, *_ in e.gold:
            if words := _words(text):
                names.setdefault(words, Counter())[kind, text] += 1
    numbers = [entity[2] for e in train for entity in e.gold if len(entity) > 2]
    met = Counter(name for text in seen for name in _found(text, names))
    known = {name: max(sorted(c), key=c.__getitem__) for name, c in names.items() if 2 * c.total() > met[name]}
    out = []
    for e, text in zip(test, asked, strict=True):
        times: Counter = Counter()
        answer = []
        for name in _found(text, known):
            kind, said = known[name]
            answer.append([kind, said, min(numbers) + times[kind, said]] if numbers else [kind, said])
            times[kind, said] += 1
        out.append(record(e, answer, mark, "dictionary"))
    return out


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def _found(text: str, names: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The names in a text from left to right, the longest at each place."""
    words, out, at = _words(text), [], 0
    longest = max(map(len, names), default=0)
    while at < len(words):
        size = next((n for n in range(longest, 0, -1) if words[at : at + n] in names and at + n <= len(words)), 0)
        if size:
            out.append(words[at : at + size])
        at += size or 1
    return out
