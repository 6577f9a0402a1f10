"""Facts become items of four kinds, each of which needs the facts that its prompt shows.

    tag       which concept stands at a figure (exact, or rounded) for a period and member
    value     what a concept stands at for a period and member
    formula   which formula gives a ratio: named, in the ids of the facts; or given as a number, in concepts
    calc      which expression in the filing's values gives a named ratio

FinLoRA's questions (arXiv 2505.19819) name what is wanted, so that a table of names answers them without the XML: 95.8% of its formulas,
87.6% of its tags.  Here the options of an item are made so that the question and the options alone say nothing:

* options are facts of the same filing and unit that stand next to each other by size, and the gold's rank among them is drawn
  first, evenly (a fact for which some rank cannot be had is not asked), so that no concept is known to be the largest; of a tag
  item the gold is drawn from the options after them, so that none is asked more often than it is offered;
* formulas are every pair of three numerators and three denominators (of three facts for a change), so that no part is commoner;
* ids are dealt anew in each item, and the order of options and of facts is drawn.

Preferred as neighbours are the same concept in another period or of another member, and parent and child of the calculation linkbase.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import permutations
from typing import Any

from .facts import Fact, Filing
from .ratios import SAME_LENGTH, Ratio, length, ratios

KINDS = ("tag", "value", "formula", "calc")
OPTIONS = 8
SIDE = 3  # numerators, and denominators, of a formula's options
SHOWN = 24  # facts in a prompt, more where the options alone are more
MOST_MEMBERS = 2
Show = Callable[[Iterable[Fact]], list[Fact]]
WORDS = {9: "billion", 6: "million", 3: "thousand"}


def usable(filing: Filing) -> list[Fact]:
    """The facts that items are made of: numbers but nothing, of few members, one a concept, context and unit.

    Of copies the most precise is taken; copies that differ by more than their rounding are left out altogether.
    """
    best: dict[tuple, Fact | None] = {}
    for fact in filing.facts:
        if not fact.number or not fact.end or len(fact.members) > MOST_MEMBERS or fact.concept.startswith("dei:"):
            continue
        key = (fact.concept, fact.context, fact.unit)
        other = best.get(key, fact)
        if other is None or abs(other.number - fact.number) > max(_step(other), _step(fact)):  # type: ignore[operator]
            best[key] = None
        else:
            best[key] = min(other, fact, key=_step)
    return [f for f in best.values() if f is not None]


def make(kind: str, filing: Filing, rng: random.Random, most: int, shown: int = SHOWN) -> Iterator[dict[str, Any]]:
    """Up to `most` rows of that kind, in a drawn order: {"form", "question", "context", "target", "choices", ...}. shown: facts in a prompt."""
    facts = usable(filing)

    def show(wanted: Iterable[Fact]) -> list[Fact]:
        return _shown(wanted, facts, filing, rng, shown)

    seen: set[str] = set()
    for made in _MAKERS[kind](filing, facts, rng, show):
        if len(seen) >= most:
            return
        if made is not None and made["question"] not in seen:
            seen.add(made["question"])
            yield made


def text_of(number: Decimal) -> str:
    """The number written out, without exponent or trailing zeroes."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rounded(number: Decimal, digits: int = 3) -> str:
    """The number to that many digits, with its scale in words: "95.4 billion"."""
    if not number:
        return "0"
    exact = number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1))
    power = next((p for p in WORDS if abs(exact) >= Decimal(10) ** p), 0)
    return text_of(exact.scaleb(-power)) + (f" {WORDS[power]}" if power else "")


def when(fact: Fact) -> str:
    """The fact's period and members in words."""
    period = f"from {fact.start} to {fact.end}" if fact.start else f"at {fact.end}"
    return period + (", " + members(fact) if fact.members else "")


def members(fact: Fact) -> str:
    """The fact's members as a prompt shows them."""
    return "; ".join(f"{axis}={member}" for axis, member in fact.members)


def line(fact: Fact, name: str) -> str:
    """The fact as a prompt shows it."""
    extra = f' member="{members(fact)}"' if fact.members else ""
    return f'<{fact.concept} id="{name}" period="{fact.period}" unit="{fact.unit}"{extra}>{text_of(fact.number or Decimal(0))}</{fact.concept}>'


def prompt(company: str, lines: Sequence[str], question: str, choices: Sequence[str]) -> str:
    """The whole prompt; without `lines` it is what a reader who ignores the filing sees."""
    facts = "\n".join(lines)
    options = "\n".join(f"- {c}" for c in choices)
    return f"XBRL facts filed by {company}; a fact without a member is of the whole company:\n{facts}\n\nQuestion: {question}\nChoices:\n{options}\nAnswer with one of the choices.\nAnswer: "


# -- options ---------------------------------------------------------------------------------------------------------


def near(gold: Fact, pool: Iterable[Fact], n: int, rng: random.Random, key: Callable[[Fact], Any], preferred: Iterable[Fact] = ()) -> list[Fact] | None:
    """`gold` and n - 1 neighbours by size, with its rank drawn evenly; None where some rank cannot be had.

    No two share a number or `key`. preferred: facts taken before nearer ones.
    """
    liked = {id(f) for f in preferred}
    ordered = sorted((f for f in pool if f.unit == gold.unit and f.number != gold.number), key=lambda f: (id(f) not in liked, abs(f.number - gold.number), f.concept, f.context))  # type: ignore[operator]
    used, sides = {key(gold)}, ([], [])
    numbers = {gold.number}
    for fact in ordered:
        side = sides[fact.number > gold.number]  # type: ignore[operator]
        if len(side) < n - 1 and fact.number not in numbers and key(fact) not in used:
            side.append(fact)
            used.add(key(fact))
            numbers.add(fact.number)
    if min(map(len, sides)) < n - 1:
        return None
    rank = rng.randrange(n)
    return [*sides[0][:rank], gold, *sides[1][: n - 1 - rank]]


def related(fact: Fact, filing: Filing, facts: Iterable[Fact]) -> list[Fact]:
    """The same concept elsewhere, and in the same context parents and children of the calculation linkbase."""
    kin = {a.child for a in filing.arcs if a.parent == fact.concept} | {a.parent for a in filing.arcs if a.child == fact.concept}
    return [f for f in facts if f is not fact and (f.concept == fact.concept or f.concept in kin and f.context == fact.context)]


def _shown(wanted: Iterable[Fact], facts: Sequence[Fact], filing: Filing, rng: random.Random, most: int) -> list[Fact]:
    """The wanted facts and others about them, up to `most`, in a drawn order."""
    shown = list(dict.fromkeys(wanted))
    kept = set(shown)
    kin = [related(f, filing, facts) for f in shown]
    fill = [f for r in kin for f in rng.sample(r, min(2, len(r)))] + rng.sample(facts, min(len(facts), 2 * most))
    for fact in fill:
        if len(shown) >= most:
            break
        if fact not in kept:
            shown.append(fact)
            kept.add(fact)
    rng.shuffle(shown)
    return shown


def _row(filing: Filing, form: str, question: str, choices: Sequence[str], gold: str, shown: Sequence[Fact], asked: Fact, rng: random.Random) -> dict[str, Any] | None:
    choices = list(choices)
    rng.shuffle(choices)
    if len(set(choices)) < len(choices) or gold not in choices:
        return None
    return {"form": form, "question": question, "context": prompt(filing.company, [line(f, f"f{i}") for i, f in enumerate(shown, 1)], question, choices), "target": gold,
            "choices": choices, "concept": asked.concept, "unit": asked.unit, "decimals": asked.decimals, "period": asked.period}  # fmt: skip


# -- kinds -----------------------------------------------------------------------------------------------------------


def _tags(filing: Filing, facts: list[Fact], rng: random.Random, show: Show) -> Iterator[dict[str, Any] | None]:
    for start in rng.sample(facts, len(facts)):
        same = [f for f in facts if f.context == start.context]
        options = near(start, same, OPTIONS, rng, lambda f: f.concept) or near(start, facts, OPTIONS, rng, lambda f: f.concept)
        if options is None:
            continue
        gold = rng.choice(options)  # so that a concept at the edge of the filing's sizes is asked as often as it is offered
        round_ = rng.random() < 0.5
        shown = show(options)
        figure = f"about {rounded(gold.number)}" if round_ else text_of(gold.number)  # type: ignore[arg-type]
        yield _row(filing, "rounded" if round_ else "exact", f"Which concept stands at {figure} {gold.unit} {when(gold)}?", [f.concept for f in options], gold.concept, shown, gold, rng)


def _values(filing: Filing, facts: list[Fact], rng: random.Random, show: Show) -> Iterator[dict[str, Any] | None]:
    for gold in rng.sample(facts, len(facts)):
        options = near(gold, facts, OPTIONS, rng, lambda f: f.number, related(gold, filing, facts))
        if options is not None:
            shown = show(options)
            yield _row(filing, "value", f"What does {gold.concept} stand at {when(gold)}?", [text_of(f.number) for f in options], text_of(gold.number), shown, gold, rng)  # type: ignore[arg-type]


def expression(form: str, a: str, b: str) -> str:
    """The ratio's formula over two names or numbers."""
    return f"{a} / {b}" if form == "share" else f"({a} - {b}) / {b}"


def asked(ratio: Ratio) -> str:
    """The ratio with its time, as a question names it."""
    if ratio.form == "change":
        return f"{ratio.name} from the period {ratio.b.period} to the period {ratio.a.period}"
    period = f"from {ratio.a.start} to {ratio.a.end}" if ratio.a.start else f"at {ratio.a.end}"
    return f"{ratio.name} {period}"


def _third(ratio: Ratio, facts: list[Fact], rng: random.Random) -> Fact | None:
    """A third fact for a change: the same concept at a third time, else one whose size makes no pair the likeliest.

    It lies below, between or above the two, drawn evenly, at a distance that is as often more as less than theirs.
    """
    low, high = sorted((float(ratio.a.number), float(ratio.b.number)))  # type: ignore[arg-type]
    if low <= 0 or low == high:
        return None
    free = [f for f in facts if f.unit == ratio.a.unit and f.number > 0 and f.number not in (ratio.a.number, ratio.b.number)]  # type: ignore[operator]
    series = [f for f in free if f.concept == ratio.a.concept and not f.members and bool(f.start) == bool(ratio.a.start) and abs(length(f) - length(ratio.a)) <= SAME_LENGTH]
    if series:
        return rng.choice(series)
    sides = [[f for f in free if f.number < low], [f for f in free if low < f.number < high], [f for f in free if f.number > high]]  # type: ignore[operator]
    if not all(sides):
        return None
    side, step = rng.randrange(3), high / low
    away = step ** (2 ** rng.uniform(-2, 2))
    aim = (low / away, low * step ** rng.random(), high * away)[side]
    return min(sides[side], key=lambda f: (abs(math.log(float(f.number) / aim)), f.concept, f.context))  # type: ignore[arg-type]


def _sides(ratio: Ratio, filing: Filing, facts: list[Fact], rng: random.Random) -> list[tuple[Fact, Fact]] | None:
    """Pairs of facts for the options of a ratio, the right one among them; every fact as often as another."""
    if ratio.form == "change":
        third = _third(ratio, facts, rng)
        return None if third is None else list(permutations((ratio.a, ratio.b, third), 2))
    free = [f for f in facts if f is not ratio.a and f is not ratio.b and f.number not in (ratio.a.number, ratio.b.number)]
    upper = near(ratio.a, free, SIDE, rng, lambda f: f.number, related(ratio.a, filing, free))
    if upper is None:
        return None
    taken = {f.number for f in upper}
    below = [f for f in free if f.number not in taken and f.number > 0]  # type: ignore[operator]
    lower = near(ratio.b, below, SIDE, rng, lambda f: f.number, related(ratio.b, filing, below))
    return None if lower is None else [(a, b) for a in upper for b in lower]


def _ratio_items(filing: Filing, facts: list[Fact], rng: random.Random, show: Show, ids: bool) -> Iterator[dict[str, Any] | None]:
    found = ratios(filing, facts)
    for ratio in rng.sample(found, len(found)):
        pairs = _sides(ratio, filing, facts, rng)
        if pairs is None:
            continue
        shown = show([f for pair in pairs for f in pair])
        name = {f: f"f{i}" if ids else text_of(f.number) for i, f in enumerate(shown, 1)}  # type: ignore[arg-type]
        choices = [expression(ratio.form, name[a], name[b]) for a, b in pairs]
        question = f"Which formula gives {asked(ratio)}?" if ids else f"Which expression in the values filed gives {asked(ratio)}?"
        yield _row(filing, ratio.form, question, choices, expression(ratio.form, name[ratio.a], name[ratio.b]), shown, ratio.a, rng)


def _given(filing: Filing, facts: list[Fact], rng: random.Random, show: Show) -> Iterator[dict[str, Any] | None]:
    for gold in rng.sample(facts, len(facts)):
        six = near(gold, [f for f in facts if f.context == gold.context and f.number > 0], 2 * SIDE, rng, lambda f: f.concept) if gold.number > 0 else None  # type: ignore[operator]
        if six is None:
            continue
        rng.shuffle(six)
        pairs = [(a, b) for a in six[:SIDE] for b in six[SIDE:]]
        a, b = rng.choice(pairs)
        figures = [f"{x.number / y.number:.4g}" for x, y in pairs]  # type: ignore[operator]
        if len(set(figures)) == len(pairs):
            question = f"Which formula gives {a.number / b.number:.4g} {when(gold)}?"  # type: ignore[operator]
            yield _row(filing, "given", question, [f"{x.concept} / {y.concept}" for x, y in pairs], f"{a.concept} / {b.concept}", show(six), a, rng)


def _formulas(filing: Filing, facts: list[Fact], rng: random.Random, show: Show) -> Iterator[dict[str, Any] | None]:
    """Named and given ones by turns."""
    named, given = _ratio_items(filing, facts, rng, show, True), _given(filing, facts, rng, show)
    while True:
        pair = [next(named, False), next(given, False)]
        if pair == [False, False]:
            return
        yield from (p for p in pair if p)


def _step(fact: Fact) -> Decimal:
    """The rounding of a fact, 0 where it says nothing or is exact."""
    try:
        return Decimal(1).scaleb(-int(fact.decimals))
    except (ValueError, ArithmeticError):
        return Decimal(0)


_MAKERS = {
    "tag": _tags,
    "value": _values,
    "formula": _formulas,
    "calc": lambda filing, facts, rng, show: _ratio_items(filing, facts, rng, show, False),
}
