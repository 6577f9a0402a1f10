"""The SEC's own inline transformations, which Arelle leaves to a plug-in: numbers in words, lengths of time, ticked boxes.

    transforms() -> {QName: function of the displayed text}     for Arelle's modelManager.customTransforms

Names of exchanges, states and countries are not turned into codes: those facts keep the text as displayed.
Source: the names and results of the EDGAR Filer Manual's registry, `inlineXBRL/transformation/2015-08-31`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

NAMESPACE = "http://www.sec.gov/inlineXBRL/transformation/2015-08-31"
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: i for i, word in enumerate(_ONES)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)} | {"no": 0, "none": 0, "nil": 0, "a": 1, "an": 1}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_TICKED, _OPEN = "☑☒", "☐"
DAYS = Decimal("30.4375")  # of a month


def transforms() -> dict[Any, Callable[[str], str]]:
    """Arelle's table of transformations by qualified name."""
    from arelle.ModelValue import QName

    known: dict[str, Callable[[str], str]] = {"numwordsen": number_words, "boolballotbox": ticked}
    known |= {"durwordsen": duration_words}
    known |= {f"dur{unit}": _length(letter) for unit, letter in {"year": "Y", "month": "M", "week": "W", "day": "D", "hour": "H"}.items()}
    return {QName("ixt-sec", NAMESPACE, name): call for name, call in known.items()}


def number_words(text: str) -> str:
    """So "two" is 2, "one hundred and five thousand" is 105000. Raises: ValueError for other words."""
    words = re.sub(r"[-,\s]+", " ", text.strip().lower()).split()
    if not words:
        raise ValueError("no number")
    total = part = 0
    for word in words:
        if word == "and":
            continue
        if word == "hundred":
            part = (part or 1) * 100
        elif word in _SCALES:
            total += (part or 1) * _SCALES[word]
            part = 0
        elif word in _WORDS:
            part += _WORDS[word]
        elif word.isascii() and word.isdigit():
            part += int(word)
        else:
            raise ValueError(f"{word!r:.40} is not a number word")
    return str(total + part)


def ticked(text: str) -> str:
    """The value "true" of a ticked ballot box, "false" of an empty one."""
    mark = text.strip()[:1]
    if not mark or mark not in _TICKED + _OPEN:
        raise ValueError("no ballot box")
    return "true" if mark in _TICKED else "false"


def duration_words(text: str) -> str:
    """So "three years" is P3Y."""
    number, _, unit = text.strip().lower().rpartition(" ")
    letter = {"year": "Y", "month": "M", "week": "W", "day": "D", "hour": "H"}.get(unit.removesuffix("s"))
    if letter is None:
        raise ValueError("no length of time")
    return _length(letter)(number_words(number))


def _length(letter: str) -> Callable[[str], str]:
    """A count of one unit as an XML duration: 2.7 years are P2Y8M12D."""

    def length(text: str) -> str:
        try:
            count = Decimal(text.strip())
        except InvalidOperation:
            raise ValueError("no number") from None
        if not count.is_finite() or abs(count) > 10**6:
            raise ValueError("no length of time")
        sign, count = ("-" if count < 0 else ""), abs(count)
        if letter == "H":
            return f"{sign}PT{count.normalize():f}H"
        if letter == "W":
            return f"{sign}P{int(count * 7)}D"
        out, rest = f"{sign}P", count
        for unit, next_ in (("Y", 12), ("M", DAYS), ("D", 0)):
            if "YMD".index(unit) < "YMD".index(letter):
                continue
            whole = int(rest)
            if whole or unit == letter:
                out += f"{whole}{unit}"
            rest = (rest - whole) * next_
        return out

    return length
