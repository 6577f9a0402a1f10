"""Small pieces of text: amounts, clauses about one metric, decks that deal words evenly."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import lexicon as lx
from lexicon import DOWN, FLAT, UP


class Deck:
    """Deals items in random order, each once before any comes again: even use without tuning."""

    def __init__(self, items: Sequence, rng: random.Random):
        self.items, self.rng, self.left = list(items), rng, []

    def deal(self):
        if not self.left:
            self.left = self.items[:]
            self.rng.shuffle(self.left)
        return self.left.pop()


class Decks:
    """Decks by key, made at first use."""

    def __init__(self, rng: random.Random):
        self.rng, self.by_key = rng, {}

    def deal(self, key, items: Sequence):
        if key not in self.by_key:
            self.by_key[key] = Deck(items, self.rng)
        return self.by_key[key].deal()


def money(millions: float) -> str:
    """Dollars: `$512 million`, `$4.6 billion`."""
    if millions >= 1000:
        return f"${millions / 1000:.1f} billion"
    return f"${millions:.0f} million" if millions >= 20 else f"${millions:.1f} million"


def show(value: float, kind: str) -> str:
    """A value of a metric's kind as text."""
    if kind == "money":
        return money(value)
    if kind == "small":
        return f"${value:.2f}"
    if kind in ("percent", "growth"):
        return f"{value:.1f}%"
    return f"{value:,.0f}"


def draw(kind: str, rng: random.Random) -> tuple[float, float]:
    """A value and the size of a change (fraction for amounts, points for percents, items for `few`)."""
    if kind == "money":
        return round(10 ** rng.uniform(1.6, 4.0), 0), rng.randrange(2, 29) / 100
    if kind == "small":
        return rng.randrange(40, 900) / 100, rng.randrange(3, 29) / 100
    if kind == "percent":
        return rng.randrange(60, 400) / 10, rng.randrange(3, 30) / 10
    if kind == "count":
        return float(rng.randrange(210, 9800) * 10), rng.randrange(2, 29) / 100
    if kind == "pages":
        return float(rng.randrange(90, 260)), float(rng.randrange(2, 19))
    return float(rng.randrange(4, 17)), float(rng.randrange(1, 3))


def before(value: float, change: float, direction: int, kind: str) -> float:
    """The earlier value from which `value` came by `change` in `direction`."""
    if kind in ("percent", "few", "pages"):
        return value - direction * change
    return value / (1 + direction * change)


def tail(metric: lx.Metric, direction: int, value: float, change: float, style: int) -> str:
    """What follows the verb: ` 4% to $512 million`, ` to 9 from 8`, ` at $512 million`."""
    now = show(value, metric.kind)
    if direction == FLAT:
        return f" at {now}" if style else ""
    then = show(before(value, change, direction, metric.kind), metric.kind)
    if metric.kind in ("few", "pages") or (style == 2 and then != now):
        return f" to {now} from {then}"
    by = f"{change:.1f} points" if metric.kind == "percent" else f"{change * 100:.0f}%"
    return f" {by} to {now}" if style else f" {by}"


class Clause:
    """One metric, one direction, one verb and amounts; gives its several grammatical forms."""

    def __init__(self, metric: lx.Metric, direction: int, decks: Decks, rng: random.Random, amounts=None):
        self.metric, self.direction, self.rng = metric, direction, rng
        self.value, self.change = amounts or draw(metric.kind, rng)
        spread = metric.spread and direction != FLAT and rng.random() < 0.6
        verbs = [v for v in lx.VERBS if v.direction == direction and v.spread == spread]
        self.verb = decks.deal(("verb", direction, spread, metric.polarity), verbs)
        self.noun = decks.deal(("noun", direction, metric.polarity), lx.NOUNS[direction])
        self.short = decks.deal(("short", direction, metric.polarity), lx.SHORT[direction])
        self.style = rng.choice((0, 1, 1, 2)) if metric.kind not in ("few", "pages") else 1
        # words before or after the metric keep it apart from its verb
        word, place = rng.random(), rng.random()
        self.name = f"{rng.choice(lx.BEFORE)} {metric.text}" if word < 0.45 else metric.text
        self.middle = " " + rng.choice(lx.MIDDLES) if word > 0.45 and place < 0.85 else ""

    @property
    def tail(self) -> str:
        return tail(self.metric, self.direction, self.value, self.change, self.style)

    @property
    def the(self) -> str:
        """`the ` before things that are counted one by one."""
        return "" if self.metric.polarity else "the "

    def predicate(self) -> str:
        be = ("were " if self.metric.plural else "was ") if self.verb.be else ""
        return f"{be}{self.verb.past}{self.tail}"

    def past(self) -> str:
        """`revenue in the quarter rose 4% to $512 million`."""
        return f"{self.name}{self.middle} {self.predicate()}"

    def headline(self) -> str:
        """`revenue rises 4% to $512 million`."""
        verb = self.verb.third
        if self.metric.plural and not self.verb.be:
            verb = self.verb.base
        return f"{self.name}{self.middle} {verb}{self.tail}"

    def tweet(self) -> str:
        """`revenue up 4% to $512 million`."""
        return f"{self.name}{self.middle} {self.short}{self.tail}"

    def nominal(self) -> str:
        """`a 4% rise in revenue`, `no change in revenue`."""
        if self.direction == FLAT:
            return f"no change in {self.the}{self.name}{self.middle}"
        if self.metric.kind in ("few", "pages"):
            article, size = ("an " if self.noun[0] in "aeiou" else "a "), ""
        elif self.metric.kind == "percent":
            article, size = article_of(f"{self.change:.1f}"), f"{self.change:.1f}-point "
        else:
            article, size = article_of(f"{self.change * 100:.0f}"), f"{self.change * 100:.0f}% "
        return f"{article}{size}{self.noun} in {self.the}{self.name}{self.middle}"


def article_of(number: str) -> str:
    """`an ` before numbers read with a vowel first (8, 11, 18, 80s), else `a `."""
    whole = number.split(".")[0]
    return "an " if whole.startswith("8") or whole in ("11", "18") else "a "


def capital(text: str) -> str:
    """First letters of sentences in upper case."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def directions_apart(label: int, rng: random.Random, keep: float = 0.85) -> int:
    """The direction of a clause that must not decide, such that each text holds one flat and one moving word.

    A deciding flat clause gets a moving neighbour; a moving one mostly gets a flat neighbour.
    """
    if label == FLAT:
        return rng.choice((UP, DOWN))
    return FLAT if rng.random() < keep else -label
