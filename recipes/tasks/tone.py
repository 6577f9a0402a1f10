"""Makes the texts of `tone`: the latest move of a metric, times whether more of the metric is good or bad.

Most are about invented companies; the public ones state real figures of real companies (facts.py).
"""

from __future__ import annotations

import random

import facts
import words as w
from series import TONE_COUNTS, Deal, Series

LABELS = ("negative", "neutral", "positive")
ASK = "Tone: "
HARD = (0, 0, 0, 0, 0, 0, 0, 1)  # one cluster in eight has a metric of which more is bad
FAMILIES = {
    "train": {
        "at": ("{M} at {co} {list}.", "{M} of {co} {list}."),
        "said": ("{co} said its {m} {list}.", "{co} said that its {m} {list}."),
        "for": ("At {co}, {m} {list}.", "For {co}, {m} {list}."),
        "line": ("{co}: {m} {list}.", "{co} reports that {m} {list}."),
    },
    "val": {"val-the": ("The {m} of {co} {list}.",), "val-told": ("{co} told us that {m} {list}.",)},
    "test": {
        "test-hear": ("We hear that {m} at {co} {list}.", "Today {co} said the {m} {list}."),
        "test-news": ("News from {co}: its {m} {list}.", "As for the {m} of {co}, they {list}."),
    },
}

# Rows about real companies with their public figures: one or two moves of fiscal years, the latest decides here too.
PUBLIC = {
    "train": {"public": ("At {co}, {list}.", "{co}: {list}.", "{co} said its {list}.", "{co} reports that {list}.")},
    "val": {"val-public": ("{co} told us that {list}.", "{co} wrote that its {list}.")},
    "test": {"test-public": ("News from {co}: {list}.", "Today {co} said the {list}.", "We hear that at {co} {list}.")},
}
PUBLIC_COUNTS = (1, 1, 2, 2, 2)
PUBLIC_HARD = (0, 0, 1)


class Instance:
    """One cluster: a company, a metric, months. `text(label)` gives its text of that label (-1, 0, 1)."""

    def __init__(self, pattern: str, company: str, deal: Deal, rng: random.Random, split: str) -> None:
        self.pattern, self.hard = pattern, deal("hard", HARD)
        metric = deal(("metric", self.hard), w.BAD if self.hard else w.GOOD)
        self.slots = {"co": company, "m": metric, "M": metric.capitalize()}
        self.series = Series(w.MOVES, TONE_COUNTS, deal, rng, split)

    def text(self, label: int) -> str:
        way = -label if self.hard else label
        parts = self.series.statements(self.series.ways(way), ("move", self.hard))
        return self.pattern.format(list=self.series.joined(parts), **self.slots)


class Public:
    """One cluster of real facts of one company. `text(label)` draws a text of that label; its last move is that label's."""

    def __init__(self, pattern: str, company: str, deal: Deal, rng: random.Random, split: str) -> None:
        self.pattern, self.company, self.deal, self.rng = pattern, company, deal, rng
        self.moves = facts.moves(facts.FACTS[split][company][1])
        self.count, self.link = deal("public count", PUBLIC_COUNTS), rng.choice(w.LINKS)

    def text(self, label: int) -> str:
        hard = self.deal(("public hard", label), PUBLIC_HARD)
        fit = [m for m in self.moves if m["way"] * sign(m) == label]
        last = self.deal((self.company, label, hard), [m for m in fit if (sign(m) < 0) == hard] or fit)
        # What comes before, by three years at most, differs in direction or in whether more of it is good.
        before = [m for m in self.moves if 0 < last["end"] - m["end"] <= 3 and (m["way"], sign(m)) != (last["way"], sign(last))]
        told = [self.rng.choice(before), last] if before and self.count == 2 else [last]
        parts, metric = [], None
        for m in told:
            verb = self.deal(("public", m is last, m["way"]), [v for v in w.MOVES[m["way"]] if v != "gained"])
            start = f" from {m['from']}" if m["way"] and len(told) == 1 and self.rng.random() < 0.5 else ""
            name = "" if m["metric"] == metric else f"{m['metric']} "
            metric = m["metric"]
            parts.append(f"{name}in {m['period']} {verb}{start} {'to' if m['way'] else 'at'} {m['to']}")
        return self.pattern.format(co=self.company, list=self.link.join(parts))


def sign(move: dict) -> int:
    """1 where more of the move's metric is good, -1 where it is bad."""
    return -1 if move["metric"].split()[-1] in w.BAD else 1
