"""Floors that remember: the answer of the likest training question, and the look-up that never reads the input.

nearest   the answer of the training prompt of highest TF-IDF cosine; of equals the commonest answer
lookup    the same on the question alone, its input (a filing, a page, a sentence) left out and its numbers unread: first the
          training questions equal to it, then the likest ones, or else the prompts that begin alike

Look-up is an attack on the data set: where it scores well, the answers can be known without the document they are said to
be read from.  On FinLoRA's formula construction (arXiv 2505.19819; questions alone) it gives 98.8% of the gold formulas to the
letter (96.6% if ties fell the other way); a table of (ratio, company), made for that set by hand, gives 95.8%.  On its tags, each company left out in turn,
80.6% of all rows (87.3% of those that ask for a tag); a table of the reported items 81.2% (87.6%).  On its financial
mathematics 13.5%, the commonest answer of each formula.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..score import Record
from ..text import Example, prompt_text
from .common import FOLDS, Mark, Read, both, commonest, fold_of, group_of, members_of, own_words, record, same, token_of

CHUNK = 512  # test prompts compared with all of training at a time
ALIKE = 5  # training prompts that must begin alike before their answers are counted
_INPUT = re.compile(
    r"^(?:Input|XML File|XML|Context|Text|Passage|Document|Document Pages Context|Sentence|Table)s?:.*?(?=^(?:Question|Answer|Options|Instruction)s?:|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


def nearest(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """A record for each test example: the answer of the training prompt most like its own.

    mark: (gold, answer) -> 0 to 1, equality by default. read: given, answers are texts that it reads. Compared within
    each set of labels and each instruction that many share. Raises FinloraError when there is nothing to learn from.
    """
    train, test = both(train, test)
    members = members_of(train)
    asked: dict[Any, list[int]] = {}
    for k, example in enumerate(test):
        asked.setdefault(group_of(example, members, True), []).append(k)
    answers: list[Any] = [None] * len(test)
    for key, rows in asked.items():
        part, questions = [train[k] for k in members[key]], [test[k] for k in rows]
        for k, answer in zip(rows, _likest(part, questions, *own_words(part, questions), read), strict=True):
            answers[k] = answer
    return [record(e, a, mark, "nearest", read) for e, a in zip(test, answers, strict=True)]


def lookup(train: Iterable[Example], test: Iterable[Example], mark: Mark = same, read: Read | None = None) -> list[Record]:
    """A record for each test example: the commonest training answer of its question, whatever the input says.

    Which of the two ways of looking is taken, likest or beginning alike, is chosen by cross-validation over the training
    clusters. Raises FinloraError when there is nothing to learn from.
    """
    train, test = both(train, test)
    fold = [fold_of(e) for e in train]
    right = dict.fromkeys((_by_question, _by_beginning), 0)
    for out in range(FOLDS):
        fit, check = [[e for e, k in zip(train, fold, strict=True) if (k == out) == held] for held in (False, True)]
        if fit and check:
            for way in right:
                right[way] += sum(a == token_of(e, read) for a, e in zip(way(fit, check, read), check, strict=True))
    best = max(right, key=right.__getitem__)
    return [record(e, a, mark, "lookup", read) for e, a in zip(test, best(train, test, read), strict=True)]


def question_of(example: Example) -> str:
    """The prompt without its input and with # for every number: what can be asked without having read."""
    text = _INPUT.sub(" ", prompt_text(example))
    return re.sub(r"\d+(?:[.,]\d+)*", "#", re.sub(r"<[^>]*>[^<\n]*", " ", text)).lower()


def _by_question(train: Sequence[Example], test: Sequence[Example], read: Read | None) -> list[Any]:
    seen, asked = [question_of(e) for e in train], [question_of(e) for e in test]
    table: dict[str, Counter] = {}
    for question, e in zip(seen, train, strict=True):
        table.setdefault(question, Counter())[token_of(e, read)] += 1
    new = [k for k, question in enumerate(asked) if question not in table]
    answers: list[Any] = [None if q not in table else commonest(e, table[q]) for q, e in zip(asked, test, strict=True)]
    for k, answer in zip(new, _likest(train, [test[k] for k in new], seen, [asked[k] for k in new], read), strict=True):
        answers[k] = answer
    return answers


def _by_beginning(train: Sequence[Example], test: Sequence[Example], read: Read | None) -> list[Any]:
    """The commonest answer of the training prompts that share the longest beginning, `ALIKE` of them at least."""
    table: dict[tuple[str, ...], Counter] = {}
    for e in train:
        for begin in _beginnings(e):
            table.setdefault(begin, Counter())[token_of(e, read)] += 1
    out = []
    for e in test:
        counts = table[()]
        for begin in _beginnings(e):
            if table.get(begin, Counter()).total() < ALIKE:
                break
            counts = table[begin]
        out.append(commonest(e, counts))
    return out


def _beginnings(example: Example) -> Iterator[tuple[str, ...]]:
    """The first words of the question in steps of two, up to 40."""
    words = question_of(example).split()[:40]
    return (tuple(words[:k]) for k in range(0, len(words) + 1, 2))


def _likest(train: Sequence[Example], test: Sequence[Example], seen: Sequence[str], asked: Sequence[str], read: Read | None) -> list[Any]:
    """For each test text the answer of the training text of highest TF-IDF cosine, of equals the commonest."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tokens = [token_of(e, read) for e in train]
    everything = Counter(tokens)
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)[#$%]|\b\w+\b", sublinear_tf=True)
    try:
        train_NV = vectorizer.fit_transform(seen)
    except ValueError:  # no text has a word of its own
        return [commonest(e, everything) for e in test]
    out = []
    for at in range(0, len(test), CHUNK):
        alike = vectorizer.transform(asked[at : at + CHUNK]) @ train_NV.T
        for k, e in enumerate(test[at : at + CHUNK]):
            rows, values = alike.indices[alike.indptr[k] : alike.indptr[k + 1]], alike.data[alike.indptr[k] : alike.indptr[k + 1]]
            near = rows[values > values.max() - 1e-9] if len(values) else np.arange(0)
            counts = Counter(tokens[j] for j in near)
            out.append(commonest(e, counts if any(counts[x] for x in (e.labels or counts)) else everything))
    return out
