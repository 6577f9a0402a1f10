"""The `tone` generator: one instance gives a text for each label, alike in company, figures and wrapper."""

from __future__ import annotations

import random

import facts
import lexicon as lx
from grammar import Clause, Decks, capital, directions_apart, draw, money, show
from lexicon import DOWN, FLAT, UP

LABELS = ("negative", "neutral", "positive")
QUESTION = "What is the sentiment of this news for shareholders?"
GOOD = [m for m in lx.METRICS if m.polarity > 0]
BAD = [m for m in lx.METRICS if m.polarity < 0]
PLAIN = [m for m in lx.METRICS if m.polarity == 0]
MOVES = (UP, DOWN)
# In train two metrics of three are good news when they rise, as in the news; val and test hold as many bad as good ones.
POLARITIES = {"train": (1, 1, -1), "val": (1, -1), "test": (1, -1)}


def metric_of(polarity: int, decks: Decks, key: str) -> lx.Metric:
    return decks.deal((key, polarity), {1: GOOD, -1: BAD, 0: PLAIN}[polarity])


def fill(pattern: str, first: Clause, second: Clause | None, slots: dict) -> str:
    """Puts the clauses into their slots in the given order."""
    for letter, clause in (("X", first), ("Y", second)):
        if clause is not None:
            slots |= {letter: clause.past(), letter + "h": clause.headline(), letter + "t": clause.tweet(), letter + "n": clause.nominal(), letter + "d": clause.the + clause.past()}
    return pattern.format(**slots)


class Instance:
    """What the texts of one cluster share: pattern, company, period, metric, amounts, random choices."""

    def __init__(self, logic: str, pattern: str, company: str, ticker: str, decks: Decks, rng: random.Random, split: str):
        self.logic, self.pattern, self.decks = logic, pattern, decks
        self.polarity = decks.deal((logic, "polarity"), POLARITIES[split])
        self.metric = metric_of(self.polarity, decks, logic)
        self.plain = metric_of(0, decks, logic)
        self.amounts = draw(self.metric.kind, rng)
        self.plain_amounts = draw(self.plain.kind, rng)
        self.seed = rng.random()
        month = rng.randrange(len(lx.MONTHS) - 2)
        self.slots = {
            "co": company, "tick": ticker, "per": rng.choice(lx.PERIODS), "q": rng.choice(lx.SHORT_PERIODS),
            "event": rng.choice(lx.EVENTS).format(day=rng.randrange(1, 29), month=lx.MONTHS[month]),
        }

    @property
    def figure(self) -> str:
        return f"{self.metric.text} {show(self.amounts[0], self.metric.kind)}"

    def text(self, label: int) -> str:
        """The text whose sentiment is `label` (-1, 0, 1)."""
        rng = random.Random(f"{self.seed}")  # the same choices for every label
        text = getattr(self, self.logic)(label, rng)
        return capital(text)

    def clause(self, metric, direction, rng, amounts=None) -> Clause:
        return Clause(metric, direction, self.decks, rng, amounts)

    def single(self, label: int, rng) -> str:
        if label == FLAT:
            direction = self.decks.deal((self.logic, "plain"), MOVES)
            only = self.clause(self.plain, direction, rng, self.plain_amounts)
        else:
            only = self.clause(self.metric, label * self.polarity, rng, self.amounts)
        return fill(self.pattern, only, None, dict(self.slots))

    event = single

    def pair(self, label: int, rng) -> str:
        direction = label * self.polarity
        other = directions_apart(direction, rng)
        mine = self.clause(self.metric, direction, rng, self.amounts)
        plain = self.clause(self.plain, other, rng, self.plain_amounts)
        first, second = (mine, plain) if rng.random() < 0.5 else (plain, mine)
        return fill(self.pattern, first, second, dict(self.slots))

    def forecast(self, label: int, rng) -> str:
        direction = label * self.polarity
        other = directions_apart(direction, rng)
        parts = [
            (self.decks.deal(("cmp", direction), lx.ABOVE[direction]), rng.choice(lx.FORECAST)),
            (self.decks.deal(("cmp", other), lx.ABOVE[other]), rng.choice(lx.LAST_YEAR)),
        ]
        if rng.random() < 0.5:
            parts.reverse()
        (c1, r1), (c2, r2) = parts
        value = show(self.amounts[0], self.metric.kind)
        return self.pattern.format(M=self.metric.text, v=value, c1=c1, r1=r1, c2=c2, r2=r2, **self.slots)

    def surprise(self, label: int, rng) -> str:
        direction = self.decks.deal((self.logic, "move", label), MOVES)
        than = {1: "more than", -1: "less than", 0: "as much as"}[label * self.polarity * direction]
        clause = self.clause(self.metric, direction, rng, self.amounts)
        return fill(self.pattern, clause, None, {**self.slots, "than": than})

    def denial(self, label: int, rng) -> str:
        direction = label * self.polarity
        other = directions_apart(direction, rng)
        clause = self.clause(self.metric, direction, rng, self.amounts)
        false = self.decks.deal(("denied", other), [v for v in lx.VERBS if v.direction == other and not v.spread])
        return self.pattern.format(
            m=self.metric.text, base=false.base, ing=false.ing, Z=clause.predicate(), pro="they" if self.metric.plural else "it", **self.slots
        )

    def offset(self, label: int, rng) -> str:
        # first effect has sentiment s, the second has -s
        s = self.decks.deal((self.logic, "first", label), (1, -1))
        other = metric_of(self.decks.deal((self.logic, "second"), (1, -1)), self.decks, "offset2")
        while other is self.metric:
            other = metric_of(other.polarity, self.decks, "offset2")
        a = f"{self.decks.deal(('adj', s * self.polarity), lx.ADJECTIVES[s * self.polarity])} {self.metric.text}"
        b = f"{self.decks.deal(('adj', -s * other.polarity), lx.ADJECTIVES[-s * other.polarity])} {other.text}"
        rel = {1: "carried more weight than", -1: "carried less weight than", 0: "carried as much weight as"}[label * s]
        return self.pattern.format(a=a, b=b, rel=rel, **self.slots)


def public_text(pattern: str, company: str, ticker: str, fact: tuple, decks: Decks) -> tuple[str, int]:
    """A text of a public figure and its label: the direction is the true one; a level alone is neutral."""
    metric, period, now, was = fact
    polarity, plural = facts.KINDS[metric]
    amount = (lambda v: f"${v:.2f}") if "per share" in metric else money
    slots = {"co": company, "tick": ticker, "per": period, "m": metric, "now": amount(now)}
    direction = UP if now > was else DOWN
    spread = metric == "net loss" and decks.deal(("pub spread", direction), (True, False))
    verb = decks.deal(("pub", direction, spread), [v for v in lx.VERBS if v.direction == direction and v.spread == spread])
    text = pattern.format(**slots, was=amount(was), Z=verb.past, zt="up" if direction > 0 else "down")
    moving = "{Z}" in pattern or "{zt}" in pattern
    if plural:
        text = text.replace(f"for {period} was", f"for {period} were")
    return capital(text), direction * polarity if moving else FLAT


def usable(fact: tuple) -> bool:
    """Moves of under 2% are not called a rise or a fall."""
    return abs(fact[2] / fact[3] - 1) >= 0.02
