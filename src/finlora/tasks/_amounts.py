"""The numbers of a question in words, each with what it is of, and which of a formula's variables each belongs to.

    amounts("$200 at 5% for 3 years")       200 of money, 0.05 as a rate, 3.0 years of time
    assign(text, amounts, {"P": ("m", "deposit"), "r": ("r", "rate")})       {"P": 200.0, "r": 0.05}

A variable has kinds and words.  Of all ways in which the kinds fit, that one is taken where numbers stand nearest to the words of
their variables; it counts only where every number has a variable and every variable a number, and no other way comes as near.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
YEARS = {"year": 1.0, "semester": 0.5, "quarter": 0.25, "month": 1 / 12, "week": 1 / 52, "day": 1 / 365}  # units of time in years
FAR = 40.0  # the distance of a variable whose words do not occur
_NUMBER = re.compile(
    rf"(?P<sign>[-−](?=[$€£]?\d))?(?P<money>[$€£]\s?)?(?P<digits>\d+(?:,\d{{3}})*(?:\.\d+)?)(?![\d])(?:\s(?P<scale>{'|'.join(SCALES)})\b)?"
    rf"(?P<rate>\s?%|\s?percent\b)?(?:[ -]?(?P<unit>{'|'.join(YEARS)})s?\b)?|\b(?P<word>{'|'.join(WORDS)})[ -](?P<unit2>{'|'.join(YEARS)})s?\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=\w)_\w|\b[a-z]*\d+[a-z]\b|\b[PSD]_[01]\b", re.IGNORECASE)
_CHANGE = re.compile(r"\bfrom # (?:last year )?to #|\bto # from #", re.IGNORECASE)
_AND = re.compile(r"\b(?:and|but|while|with|against)\b")
_END = re.compile(r"[.?!;](?=\s|$)")


@dataclass(frozen=True)
class Amount:
    """A number of a question. value: a percentage as its share of one, a time in years. kind: "money", "rate", "time" or
    "plain". unit: of a time. start, end: where it stands."""

    value: float
    kind: str
    start: int
    end: int
    unit: str = ""


def amounts(text: str) -> list[Amount]:
    """The numbers of a text in order; the digits of names such as S_0 and years such as 2022 are none."""
    bare = _NAME.sub(lambda m: "_" * len(m[0]), text)
    out = []
    for m in _NUMBER.finditer(bare):
        unit = (m["unit"] or m["unit2"] or "").lower()
        value = float(WORDS[m["word"].lower()] if m["word"] else m["digits"].replace(",", "")) * SCALES.get((m["scale"] or "").lower(), 1.0)
        value = -value if m["sign"] else value
        if m["rate"]:
            out.append(Amount(value / 100, "rate", m.start(), m.start() + len(m[0].split("%")[0]) + 1))
        elif m["money"]:
            out.append(Amount(value, "money", m.start(), m.end()))
        elif unit:
            out.append(Amount(value * YEARS[unit], "time", m.start(), m.end(), unit))
        elif m["scale"] or not (1900 <= value <= 2100 and "," not in m[0] and re.search(r"\b(?:in|year|ending|during|of|for)\s$", bare[: m.start()], re.IGNORECASE)):
            out.append(Amount(value, "plain", m.start(), m.end()))
    return out


def settled(text: str, found: Sequence[Amount]) -> list[Amount]:
    """The amounts where "from A to B", or "to B from A", counts as B alone."""
    marked, places, at = "", [], 0
    for a in found:
        marked += text[at : a.start] + "#"
        places.append(len(marked) - 1)
        at = a.end
    marked += text[at:]
    gone = set()
    for m in _CHANGE.finditer(marked):
        inside = [k for k, place in enumerate(places) if m.start() <= place < m.end()]
        if len(inside) == 2 and found[inside[0]].kind == found[inside[1]].kind:
            gone.add(inside[0] if m[0].lower().startswith("from") else inside[1])
    return [a for k, a in enumerate(found) if k not in gone]


def assign(text: str, found: Sequence[Amount], wanted: Mapping[str, tuple[str, str]]) -> dict[str, float] | None:
    """{variable: value}, each amount given to one; None where their numbers differ or no way fits.

    wanted: variable -> (kinds, by their first letters; its words, a regular expression).
    """
    if len(found) != len(wanted):
        return None
    low, names = text.lower(), list(wanted)
    where = {name: [m.span() for m in re.finditer(wanted[name][1], low)] for name in names}
    cost = {(k, name): _far(low, a, found, where[name]) for k, a in enumerate(found) for name in names if a.kind[0] in wanted[name][0]}
    best = sorted(
        (sum(cost[k, name] for k, name in zip(order, names)), order)
        for order in itertools.permutations(range(len(found)))
        if all((k, name) in cost for k, name in zip(order, names))
    )
    if not best or (len(best) > 1 and best[1][0] - best[0][0] < 0.5) or sum(not spans for spans in where.values()) > 1:
        return None
    return {name: found[k].value for k, name in zip(best[0][1], names)}


def _far(text: str, a: Amount, found: Sequence[Amount], spans: Sequence[tuple[int, int]]) -> float:
    """How far an amount stands from the nearest of some words: words between, more for commas, conjunctions, ends of sentences and other numbers."""
    out = FAR
    for start, end in spans:
        low, high = (a.end, start) if start >= a.end else (end, a.start)
        if low > high:
            return 0.0
        gap = text[low:high]
        others = sum(low <= b.start < high for b in found)
        out = min(out, len(gap.split()) + 3 * gap.count(",") + 2 * len(_AND.findall(gap)) + 12 * len(_END.findall(gap)) + 8 * others + (0.3 if start >= a.end else 0.0))
    return out
