"""Few-shot: k worked examples from training before each question.

    with_shots(test, train, k=4, seed=1)     the same examples, their messages begun by four questions with answers

Every example of a run gets the same shots, drawn once by seed, so that their tokens are computed once (generate.choose
shares what prompts begin with) and a score is one draw, not an average over draws that nobody could repeat.  What an example
may not see is replaced for it by the next in the draw: a shot of its own cluster would show its answer.

Shots ask the same kind of question where training has that kind: the pool is narrowed to examples that begin alike (the
first line of the prompt, quoted names left out: one MMLU subject, one of nine headline questions), if at least k
remain; else all of it serves.  Where all of the pool offers the same labels, each label has its turn before any has two, in
an order drawn by seed; which stands last, and which is left out if k is below their number, is chance.

How this differs from the usual way: lm-evaluation-harness draws anew for every question, from all of train, labels as they
come; a draw by rank of a hash depends neither on the order of the rows nor on the library's generator.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .errors import FinloraError
from .text import Example, prompt_text

_NAMES = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")


def with_shots(examples: Iterable[Example], pool: Iterable[Example], k: int, seed: int = 0) -> list[Example]:
    """The examples in their order, the messages of each begun by k (question, answer) pairs of the pool.

    What stands above a question (a system turn) is said once, first. k = 0 leaves all as they are.
    Raises: FinloraError for a negative k, or where the pool has too few examples of other clusters.
    """
    examples, pool = list(examples), list(pool)
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise FinloraError(f"shots is {k!r}", "a whole number from 0 on")
    if not k:
        return examples
    by_kind: dict[str, list[Example]] = {}
    for e in pool:
        by_kind.setdefault(_kind(e), []).append(e)
    clusters = {kind: {_cluster(p) for p in members} for kind, members in by_kind.items()}
    drawn: dict[str | None, list[Example]] = {}
    out = []
    for e in examples:
        kind = _kind(e)
        key = kind if len(clusters.get(kind, set()) - {_cluster(e)}) >= k else None  # None: all of the pool
        if key not in drawn:
            drawn[key] = _draw(pool if key is None else by_kind[key], k + 1, seed)
        chosen = [p for p in drawn[key] if _cluster(p) != _cluster(e)][:k]
        if len(chosen) < k:
            raise FinloraError(f"{k} shots are wanted for example `{e.id}`, training has {len(chosen)} of other texts", "ask for fewer shots")
        out.append(_shown(e, chosen))
    return out


def _shown(example: Example, shots: Sequence[Example]) -> Example:
    above = [m for m in example.messages if m[0] == "system"]
    turns = [turn for shot in shots for turn in (*(m for m in shot.messages if m[0] != "system"), ("assistant", shot.answer))]
    return replace(example, messages=(*above, *turns, *(m for m in example.messages if m[0] != "system")))


def _draw(pool: Sequence[Example], n: int, seed: int) -> list[Example]:
    """n examples of different clusters, each label in its turn.

    Of one cluster the first by rank serves. The spare one, drawn last, steps in where a shot may not be shown.
    """
    ranked = sorted(pool, key=lambda p: (_rank(seed, p), p.id))
    first: dict[str, Example] = {}
    for p in ranked:
        first.setdefault(_cluster(p), p)
    ranked = list(first.values())
    if not ranked or not ranked[0].labels or any(p.labels != ranked[0].labels or p.gold not in p.labels for p in ranked):
        return ranked[:n]
    queues: dict[str, list[Example]] = {}
    for p in ranked:
        queues.setdefault(p.gold, []).append(p)
    order = sorted(queues, key=lambda label: _hash(seed, label))  # not by their first examples: the commonest would lead
    turns = [p for depth in range(max(map(len, queues.values()))) for label in order for p in queues[label][depth : depth + 1]]
    return turns[:n]


def _rank(seed: int, example: Example) -> bytes:
    return _hash(seed, f"{prompt_text(example)}\0{example.answer}")


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "replace")).digest()


def _kind(example: Example) -> str:
    return _NAMES.sub("''", prompt_text(example).split("\n", 1)[0])


def _cluster(example: Example) -> str:
    return example.cluster or example.id
