"""Makes the texts of `guidance`: the latest step on the company's own guidance, whatever a rival does after it."""

from __future__ import annotations

import random

import words as w
from series import GUIDANCE_COUNTS, Deal, Series

LABELS = ("cut", "held", "raised")
ASK = "Guidance: "
HARD = (0, 0, 0, 0, 0, 0, 0, 0, 0, 1)  # one cluster in ten ends with what a rival did
FAMILIES = {
    "train": {
        "at": ("The {m} at {co} was {list}.", "The {m} of {co} was {list}."),
        "said": ("{co} said its {m} was {list}.", "{co} said that its {m} was {list}."),
        "for": ("At {co}, {m} was {list}.", "For {co}, {m} was {list}."),
        "line": ("{co}: {m} {list}.", "{co} reports that {m} was {list}."),
    },
    "val": {"val-gave": ("The {m} that {co} gave was {list}.",), "val-told": ("{co} told us that {m} was {list}.",)},
    "test": {
        "test-hear": ("We hear that the {m} at {co} was {list}.", "Today {co} said the {m} was {list}."),
        "test-news": ("News from {co}: its {m} was {list}.", "As for the {m} of {co}, it was {list}."),
    },
}
RIVAL = "that of a rival"


class Instance:
    """One cluster: a company, months, perhaps a rival. `text(label)` gives its text of that label (-1, 0, 1)."""

    def __init__(self, pattern: str, company: str, deal: Deal, rng: random.Random, split: str) -> None:
        self.pattern, self.hard, self.deal, self.rng = pattern, deal("hard", HARD), deal, rng
        self.slots = {"co": company, "m": deal("own", w.OWN)}
        self.series = Series(w.STEPS, GUIDANCE_COUNTS, deal, rng, split, more=self.hard)

    def text(self, label: int) -> str:
        parts = self.series.statements(self.series.ways(label), ("step", self.hard))
        if self.hard:
            way = self.rng.choice([x for x in (1, 0, -1) if x != label])
            parts.append(f"{RIVAL} in {self.series.months[-1]} {self.deal(('rival', way), w.STEPS[way])}")
        return self.pattern.format(list=self.series.joined(parts), **self.slots)
