"""What both tasks share: two or three statements in the order of time, the latest of which decides.

Each statement has the same form, "in MONTH VERB", and what follows the last begins with "in" too, so that neither a word nor a
pair of words tells which is the latest; the months are as likely to be early as late, and the texts of a cluster differ only in
their verbs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import words as w

# How many statements; one alone is for finding out what the verbs mean.
TONE_COUNTS = (1, 1, 1, 2, 2, 2, 2, 2, 3, 3)
GUIDANCE_COUNTS = (1, 1, 2, 2, 2, 2, 2, 3, 3, 3)
Deal = Callable[[object, Sequence], object]


def decks(rng: random.Random) -> Deal:
    """deal(key, items) draws from a shuffled deck of the items that is kept under the key and renewed when empty."""
    kept: dict = {}

    def deal(key, items):
        if not kept.get(key):
            kept[key] = rng.sample(list(items), len(items))
        return kept[key].pop()

    return deal


class Series:
    """The statements of one cluster; `text(way)` ends with a statement of that way (1 up, 0 level, -1 down)."""

    def __init__(self, verbs: Mapping[int, Sequence[str]], counts: Sequence[int], deal: Deal, rng: random.Random, split: str, more: int = 0) -> None:
        self.verbs, self.deal, self.rng = verbs, deal, rng
        self.count = deal("count", counts)
        start = rng.randrange(12)
        gaps = [0]
        for _ in range(self.count - 1 + more):
            gaps.append(gaps[-1] + rng.choice((1, 2)))
        self.months = [w.MONTHS[(start + g) % 12] for g in gaps]
        self.links = [rng.choice(w.LINKS) for _ in range(self.count - 1 + more)]
        self.tail = deal("tail", w.TAILS[split])

    def ways(self, last: int) -> list[int]:
        """The ways of the statements: those before the last are the other two, each once."""
        left = [x for x in (1, 0, -1) if x != last]
        self.rng.shuffle(left)
        return left[: self.count - 1] + [last]

    def statements(self, ways: Sequence[int], slot: object) -> list[str]:
        """One statement a way."""
        return [f"in {self.months[i]} {self.deal((slot, i == self.count - 1, way), self.verbs[way])}" for i, way in enumerate(ways)]

    def joined(self, parts: Sequence[str]) -> str:
        return parts[0] + "".join(link + part for link, part in zip(self.links, parts[1:], strict=True)) + ", " + self.tail
