"""Whether items need their facts: a reader of rules that answers from the prompt alone, and readers that never see the facts.

    solve(row)                  the choice that the prompt's facts lead to, read from its text; None where not exactly one does
    attack(train, test)         {name: Attack(accuracy, chance, n)}: how far one comes without the facts

The attacks learn from the train rows of other companies, as a memorising model would.  A set that an attack takes much above
chance can be answered without reading; FinLoRA's published ones fall to the first two (papers' 95.8% and 87.6%).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from .items import rounded
from .ratios import NAMED

Row = Mapping[str, Any]
_LINE = re.compile(r'^<(\S+) id="(f\d+)" period="([^"]*)" unit="([^"]*)"(?: member="([^"]*)")?>([^<]*)</\1>$', re.MULTILINE)
_WHEN = r"(?:from (?P<start>\d{4}-\d\d-\d\d) to|at) (?P<end>\d{4}-\d\d-\d\d)"
_TAG = re.compile(rf"Which concept stands at (?P<about>about )?(?P<figure>.+?) (?P<unit>\S+) {_WHEN}(?:, (?P<member>.+))?\?")
_VALUE = re.compile(rf"What does (?P<concept>\S+) stand at {_WHEN}(?:, (?P<member>.+))?\?")
_GIVEN = re.compile(rf"Which formula gives (?P<figure>-?[\d.]+(?:[eE][-+]?\d+)?) {_WHEN}(?:, (?P<member>.+))?\?")
_RATIO = re.compile(rf"Which (?:formula|expression in the values filed) gives (?P<name>.+) {_WHEN}\?")
_CHANGE = re.compile(r"Which .*? gives the relative change of (?P<concept>\S+) from the period (?P<before>\S+) to the period (?P<after>\S+)\?")
_FALLS = re.compile(r"the share of (\S+) that falls to (\S+) = (\S+)")


@dataclass(frozen=True)
class Shown:
    """A fact as the prompt's text has it."""

    concept: str
    period: str
    unit: str
    member: str
    value: Decimal
    text: str


@dataclass(frozen=True)
class Attack:
    """What a reader without the facts reaches: accuracy and chance (mean of 1 / options) over n rows."""

    accuracy: float
    chance: float
    n: int


def shown(context: str) -> dict[str, Shown]:
    """id -> fact, read from the prompt's text."""
    return {m[2]: Shown(m[1], m[3], m[4], m[5] or "", Decimal(m[6]), m[6]) for m in _LINE.finditer(context)}


def solve(row: Row) -> str | None:
    """The one choice that the facts in the prompt lead to; None where none or several do. Reads only context and choices."""
    context, choices = row["context"], row["choices"]
    facts = shown(context)
    question = context.rpartition("\nQuestion: ")[2].partition("\n")[0]
    fits = _reader(question, facts)
    right = [c for c in choices if fits is not None and fits(c)]
    return right[0] if len(right) == 1 else None


def _reader(question: str, facts: dict[str, Shown]) -> Callable[[str], bool] | None:
    """Whether a choice answers the question."""

    def at(found: re.Match[str]) -> tuple[str, str]:
        period = f"{found['start']}/{found['end']}" if found["start"] else found["end"]
        return period, found.groupdict().get("member") or ""

    if found := _TAG.fullmatch(question):
        here = [f for f in facts.values() if (f.period, f.member) == at(found) and f.unit == found["unit"]]
        named = {f.concept for f in here if (rounded(f.value) if found["about"] else f.text) == found["figure"]}
        return lambda c: c in named
    if found := _VALUE.fullmatch(question):
        values = {f.text for f in facts.values() if (f.concept, f.period, f.member) == (found["concept"], *at(found))}
        return lambda c: len(values) == 1 and c in values
    if found := _CHANGE.fullmatch(question):
        series = [(i, f) for i, f in facts.items() if f.concept == found["concept"] and not f.member]
        after, before = ([(i, f) for i, f in series if f.period == found[when]] for when in ("after", "before"))
        return _one_of({f"({x} - {y}) / {y}" for (i, a) in after for (j, b) in before for x, y in ((i, j), (a.text, b.text))})
    if found := _GIVEN.fullmatch(question):
        here = {f.concept: f.value for f in facts.values() if (f.period, f.member) == at(found)}
        return lambda c: _quotient(c, here) == found["figure"]
    if found := _RATIO.fullmatch(question):
        period = at(found)[0]
        upper, lower = _parts(found["name"])
        a = [(i, f) for i, f in facts.items() if f.period == period and (f.concept, f.member) in upper]
        b = [(i, f) for i, f in facts.items() if f.period == period and (f.concept, f.member) in lower]
        return _one_of({f"{x} / {y}" for (i, u) in a for (j, v) in b for x, y in ((i, j), (u.text, v.text))})
    return None


def _one_of(answers: set[str]) -> Callable[[str], bool]:
    return lambda c: c in answers


def _quotient(choice: str, here: Mapping[str, Decimal]) -> str | None:
    a, _, b = choice.partition(" / ")
    return f"{here[a] / here[b]:.4g}" if a in here and here.get(b) else None


def _parts(name: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(concept, member) that may stand above and below the line of a ratio's name."""
    if name in NAMED:
        return tuple({(f"us-gaap:{c}", "") for c in names} for names in NAMED[name])  # type: ignore[return-value]
    if found := _FALLS.fullmatch(name):
        return {(found[1], f"{found[2]}={found[3]}")}, {(found[1], "")}
    child, _, parent = name.partition(" as a share of ")
    return {(child, "")}, {(parent, "")}


# -- readers that never see the facts --------------------------------------------------------------------------------


def attack(train: Sequence[Row], test: Sequence[Row]) -> dict[str, Attack]:
    """How often each reader without the facts is right on the test rows.

    question: the commonest answer to the question (without its figures) in train; question+company: the same within a company;
    prior: the choice most often right when offered; position, rank: the commonest place of the gold among the choices, and among
    them by size; longest, shortest, largest, smallest; vote: the choice whose parts the others share most, or the one nearest to the
    others in size; magnitude: the choice nearest to what its concepts stood at in train.
    """
    if not test:
        return {}
    chance = sum(1 / len(r["choices"]) for r in test) / len(test)
    found = {}
    for name, make in _ATTACKS.items():
        choose = make(train)
        right = sum(_hit(choose(r), r) for r in test)
        found[name] = Attack(right / len(test), chance, len(test))
    return found


def _hit(scores: Sequence[float], row: Row) -> float:
    """The share of the gold among the choices scored highest: ties are split, as a guess among them would on average."""
    top = max(scores)
    best = [c for c, s in zip(row["choices"], scores, strict=True) if s >= top - 1e-12]
    return best.count(row["target"]) / len(best)


def _plain(question: str) -> str:
    """The question without figures and dates."""
    return re.sub(r"-?\d[\d.,/-]*", "#", question)


def _commonest(keys: Callable[[Row], list[Any]]) -> Callable[[Sequence[Row]], Callable[[Row], list[float]]]:
    """An attack: choices scored by how often train gives them as the answer under the row's first key that it knows."""

    def make(train: Sequence[Row]) -> Callable[[Row], list[float]]:
        seen: dict[Any, Counter] = defaultdict(Counter)
        for row in train:
            for key in keys(row):
                seen[key][row["target"]] += 1

        def choose(row: Row) -> list[float]:
            for key in keys(row):
                if key in seen and any(seen[key][c] for c in row["choices"]):
                    return [float(seen[key][c]) for c in row["choices"]]
            return [0.0] * len(row["choices"])

        return choose

    return make


def _prior(train: Sequence[Row]) -> Callable[[Row], list[float]]:
    offered, right = Counter(c for r in train for c in r["choices"]), Counter(r["target"] for r in train)
    return lambda row: [(right[c] + 1) / (offered[c] + len(row["choices"])) for c in row["choices"]]


def _place(order: Callable[[Row], list[Any]]) -> Callable[[Sequence[Row]], Callable[[Row], list[float]]]:
    """An attack: the commonest place of the gold in an order of the choices."""

    def make(train: Sequence[Row]) -> Callable[[Row], list[float]]:
        seen = Counter((len(r["choices"]), order(r).index(r["target"])) for r in train if r["target"] in order(r))
        return lambda row: [float(seen[len(row["choices"]), order(row).index(c)]) for c in row["choices"]]

    return make


def _by_size(row: Row) -> list[str]:
    return sorted(row["choices"], key=lambda c: (_size(c) is None, _size(c) or 0.0, len(c), c))


def _size(choice: str) -> float | None:
    """What a choice of bare numbers comes to."""
    numbers = re.fullmatch(r"(?:\((\S+) - (\S+)\) / \2|(\S+) / (\S+)|(\S+))", choice)
    if not numbers:
        return None
    try:
        a, b, x, y, one = (float(Decimal(g)) if g else None for g in numbers.groups())
    except InvalidOperation:
        return None
    if one is not None:
        return one
    over, under = (a - b, b) if a is not None and b is not None else (x, y)
    return over / under if over is not None and under else None


def _extreme(measure: Callable[[str], float], sign: int) -> Callable[[Sequence[Row]], Callable[[Row], list[float]]]:
    return lambda train: lambda row: [sign * measure(c) for c in row["choices"]]


def _vote(train: Sequence[Row]) -> Callable[[Row], list[float]]:
    def choose(row: Row) -> list[float]:
        sizes = [_size(c) for c in row["choices"]]
        if all(s is not None for s in sizes):
            logs = [_log(s) for s in sizes]  # type: ignore[arg-type]
            return [-sum(abs(x - y) for y in logs) for x in logs]
        parts = Counter(p for c in row["choices"] for p in set(re.findall(r"[\w:.-]+", c)))
        return [sum(parts[p] for p in set(re.findall(r"[\w:.-]+", c))) for c in row["choices"]]

    return choose


def _magnitude(train: Sequence[Row]) -> Callable[[Row], list[float]]:
    """Knows what each concept stood at in train (mean logarithm, over the facts its prompts show), and each named ratio."""
    stood: dict[str, list[float]] = defaultdict(list)
    ratio: dict[str, list[float]] = defaultdict(list)
    for row in train:
        for fact in shown(row["context"]).values():
            stood[fact.concept].append(_log(float(fact.value)))
        size = _size(row["target"])
        if size is not None:
            ratio[_plain(row["question"])].append(_log(size))
    middle = sum(map(sum, stood.values())) / max(1, sum(map(len, stood.values())))

    def known(table: dict[str, list[float]], key: str, other: float) -> float:
        return sum(table[key]) / len(table[key]) if table.get(key) else other

    def choose(row: Row) -> list[float]:
        question, choices = row["question"], row["choices"]
        sizes = [_size(c) for c in choices]
        if found := _TAG.fullmatch(question):
            figure = _log(_figure(found["figure"]))
            return [-abs(known(stood, c, middle) - figure) for c in choices]
        if found := _VALUE.fullmatch(question):
            return [-abs(_log(s or 0.0) - known(stood, found["concept"], middle)) for s in sizes]
        if found := _GIVEN.fullmatch(question):
            figure = _log(float(found["figure"]))
            pairs = [c.partition(" / ") for c in choices]
            return [-abs(known(stood, a, middle) - known(stood, b, middle) - figure) for a, _, b in pairs]
        if all(s is not None for s in sizes):
            return [-abs(_log(s) - known(ratio, _plain(question), -0.5)) for s in sizes]  # type: ignore[arg-type]
        return [0.0] * len(choices)

    return choose


def _figure(text: str) -> float:
    number, _, word = text.partition(" ")
    return float(number) * {"thousand": 1e3, "million": 1e6, "billion": 1e9}.get(word, 1.0)


def _log(value: float) -> float:
    return math.log10(max(abs(value), 1e-9))


_ATTACKS: dict[str, Callable[[Sequence[Row]], Callable[[Row], list[float]]]] = {
    "question": _commonest(lambda r: [r["question"], _plain(r["question"])]),
    "question+company": _commonest(lambda r: [(r["question"], r["company"]), (_plain(r["question"]), r["company"]), _plain(r["question"])]),
    "prior": _prior,
    "position": _place(lambda r: list(r["choices"])),
    "rank": _place(_by_size),
    "longest": _extreme(len, 1),
    "shortest": _extreme(len, -1),
    "largest": _extreme(lambda c: _size(c) or 0.0, 1),
    "smallest": _extreme(lambda c: _size(c) or 0.0, -1),
    "vote": _vote,
    "magnitude": _magnitude,
}
