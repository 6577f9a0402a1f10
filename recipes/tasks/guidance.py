"""The `guidance` generator: one instance gives a text for each label, alike in company, objects and wrapper."""

from __future__ import annotations

import random

import guidance_templates as gt
import lexicon as lx
from grammar import Decks, capital, money
from lexicon import DOWN, FLAT, UP

LABELS = ("lowered", "maintained", "raised")
QUESTION = "What did the company do with its guidance?"
ALL = (DOWN, FLAT, UP)


def action(direction: int, decks: Decks, key: str) -> lx.Act:
    return decks.deal((key, direction), [a for a in lx.ACTS if a.direction == direction])


def finite(act: lx.Act, what: str, style: float, present: bool = True) -> str:
    """`cut its guidance`, `decided to cut its guidance` or, where it may be present, `is cutting its guidance`."""
    if style < 0.2:
        return "decided to " + act.base.format(o=what)
    if style < 0.35 and present:
        return "is " + act.ing.format(o=what)
    return act.past.format(o=what)


class Instance:
    """What the texts of one cluster share."""

    def __init__(self, logic: str, pattern: str, company: str, ticker: str, decks: Decks, rng: random.Random, split: str):
        self.logic, self.pattern, self.decks = logic, pattern, decks
        self.g = decks.deal((logic, "g"), lx.GUIDANCE)
        self.o = decks.deal((logic, "o"), lx.OTHERS)
        self.measure, self.kind = decks.deal((logic, "m"), lx.MEASURES)
        self.value = {
            "money": round(10 ** rng.uniform(1.8, 4.3), 0), "growth": float(rng.randrange(3, 20)), "small": rng.randrange(50, 600) / 100,
        }[self.kind]
        self.change = {"money": rng.randrange(4, 19) / 100, "growth": float(rng.randrange(1, 3)), "small": rng.randrange(5, 19) / 100}[self.kind]
        while self.kind != "growth" and len({self.show(self.before(label)) for label in ALL}) < 3:
            self.change += 0.03  # rounding must not hide the step
        self.seed = rng.random()
        month = rng.randrange(5)
        self.slots = {
            "co": company, "tick": ticker, "per": rng.choice(lx.PERIODS), "q": rng.choice(lx.SHORT_PERIODS),
            "mon": lx.MONTHS[month], "mon2": lx.MONTHS[month + rng.randrange(1, 6)], "who": rng.choice(lx.ACTORS), "m": self.measure,
        }
        third = decks.deal(("third", split), gt.THIRD[split] * 5 + (("", ""),) * gt.PLAIN_THIRDS[split])
        self.place, self.third = third if logic != "figures" else ("", "")
        self.other_o, self.who3 = rng.sample([o for o in lx.OTHERS if o != self.o], 1)[0], rng.choice([w for w in lx.ACTORS if w != self.slots["who"]])

    @property
    def figure(self) -> str:
        return f"{self.g} {self.o} {self.show(self.value)}"

    def show(self, value: float) -> str:
        return {"money": money, "growth": lambda v: f"{v:.0f}%", "small": lambda v: f"${v:.2f}"}[self.kind](value)

    def before(self, label: int) -> float:
        """The earlier figure from which the present one came by a step in that direction."""
        return self.value - label * self.change if self.kind == "growth" else self.value / (1 + label * self.change)

    def text(self, label: int) -> str:
        """The text in which the guidance was lowered (-1), maintained (0) or raised (1)."""
        rng = random.Random(f"{self.seed}")  # the same choices for every label
        others = [d for d in ALL if d != label]
        other = self.decks.deal((self.logic, "other", label), others)
        (left,) = [d for d in others if d != other]
        a, b = action(label, self.decks, "main"), action(other, self.decks, "other")
        span = rng.choice(lx.SPANS)
        g, o = f"{span} {self.g}", f"{rng.choice((span, *lx.SPANS))} {self.o}"
        its_g, its_o, own = f"its {g}", f"its {o}", f"its own {rng.choice((span, *lx.SPANS))} {self.g}"
        style, now = rng.random(), self.logic != "time"
        slots = self.slots | {
            "a": finite(a, its_g, style, now), "ap": a.past.format(o=its_g), "ah": a.third.format(o=g), "it": finite(a, "it", style, now), "gp": f"{g} was {a.passive}",
            "b": finite(b, its_o, rng.random()), "bp": b.past.format(o=its_o), "bh": b.third.format(o=o), "op": f"{o} was {b.passive}",
            "p": finite(b, its_g, rng.random(), False), "pit": b.past.format(o="it"), "ping": b.ing.format(o=its_g), "pingit": b.ing.format(o="it"),
            "w": finite(b, own, rng.random(), False), "wh": b.third.format(o=g), "yes": "agreed", "no": "refused", "agreed": "agreed",
            "n": b.base.format(o=its_g), "nit": b.base.format(o="it"), "ning": b.ing.format(o=its_g), "ningit": b.ing.format(o="it"),
        }
        third_o = f"its {rng.choice(lx.SPANS)} {self.other_o}"
        c = action(left, self.decks, "third")
        extra = self.third.format(
            c=c.past.format(o=third_o), o3=third_o, cit=c.past.format(o="it"), cn=c.base.format(o=third_o), x=c.past.format(o=f"its own {rng.choice((span, *lx.SPANS))} {self.g}"),
            who3=self.who3, mon=lx.MONTHS[lx.MONTHS.index(self.slots["mon2"]) - 1],
        )
        if self.logic == "call" and ("{yes}" in self.pattern or "{agreed}" in self.pattern):
            wanted = action(label, self.decks, "wanted")
            slots["n"] = wanted.base.format(o=its_g)
        slots |= {"v": self.show(self.value), "v0": self.show(self.before(label))}
        text = self.pattern.format(**slots)
        if self.place == "first":
            text = extra + text
        elif self.place == "last":
            text = (text if text[-1] in ".?" else text + ".") + extra
        return capital(text)
