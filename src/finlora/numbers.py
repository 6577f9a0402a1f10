"""Numbers as models write them: read, written in one form, and compared with a gold figure.

    parse_number("$1,577.00")            Number(value=1577.0, decimals=2, unit="$")
    parse_number("about (3.5%) of it")   Number(value=-3.5, percent=True, decimals=1)
    parse_number("2.3 million")          Number(value=2300000.0, scale=1e6, decimals=1)
    parse_number("12 or 15")             None: several

What is read: where the text says "answer is" or "answer:", what follows its last such place, else the first line with a
word.  Of a line with equal signs, what follows the last.  There a number must lead, after nothing but a currency sign and
words such as "about"; units and other words may follow, another number joined to it by a comma, an operator, "to", "or" or
"and" may not.  Parentheses round the whole figure make it negative, as accountants write.  Commas group by three (or two
and three, as in India); a comma as a decimal mark is not read, because "1,234" would then have two readings.

What is equal (`numbers_match`): see there.  The usual ways are a first float found anywhere, which takes the year of
"in 2019 it was 5", or equality of strings, under which nobody answers $1,577.00 with 1577.  Nothing here is evaluated:
the text is matched by expressions without nested repeats, so that reading takes time linear in its length.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

LONGEST = 4000  # characters looked at from where a number must lead
DIGITS = 40  # of one number: more are no figure
SCALES = {
    "hundred": 1e2,
    "thousand": 1e3,
    "lakh": 1e5,
    "million": 1e6,
    "crore": 1e7,
    "billion": 1e9,
    "trillion": 1e12,
}
_SHORT = {"k": 1e3, "m": 1e6, "mm": 1e6, "mn": 1e6, "mln": 1e6, "b": 1e9, "bn": 1e9, "bln": 1e9, "t": 1e12, "tn": 1e12}
_CURRENCY = {
    **dict.fromkeys(("$", "us$", "usd", "dollar", "dollars", "us dollars"), "$"),
    **dict.fromkeys(("€", "eur", "euro", "euros"), "€"),
    **dict.fromkeys(("£", "gbp", "pound", "pounds"), "£"),
    **dict.fromkeys(("¥", "jpy", "yen"), "¥"),
    **dict.fromkeys(("₹", "inr", "rs", "rs.", "rupees"), "₹"),
    **dict.fromkeys(("cny", "rmb", "yuan"), "CNY"),
    **dict.fromkeys(("c$", "cad"), "CAD"),
    **dict.fromkeys(("a$", "aud"), "AUD"),
    **dict.fromkeys(("hk$", "hkd"), "HKD"),
    "chf": "CHF",
}
_SIGNS = "|".join(re.escape(x) for x in sorted(_CURRENCY, key=len, reverse=True) if not x[-1].isalpha() or len(x) == 3)
_WORDS = "|".join(re.escape(x) for x in sorted(_CURRENCY, key=len, reverse=True))
_MARKER = re.compile(r"\banswer\s*(?:is|:|=)", re.IGNORECASE)
_LEAD = re.compile(
    r"(?:[\s*_`#>:~≈\"'“”‘’\[\]]|\.(?!\d)|\b(?:the|final|answer|result|value|total|output|it|is|was|are|were|be|would|will|about|approximately"
    r"|approx|around|roughly|nearly|almost|circa|equals?|equal to|a|of)\b(?![-%$]))+"
)
_NUMBER = re.compile(
    rf"(?P<open>\()?\s?(?P<sign>[-+])?\s?(?P<money>{_SIGNS})?\$?\s?(?P<open2>\()?(?P<sign2>[-+])?"
    r"(?P<number>(?:\d{1,3}(?:,\d{2,3}){0,9},\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:e(?P<e>[-+]?\d{1,3})(?!\d)|\s?[x*]\s?10\s?\^\s?[{(]?(?P<ten>[-+]?\d{1,3})[)}]?)?"
)
_AFTER = {
    "close": re.compile(r"\s?\)"),
    "percent": re.compile(r"\s?(?:%|-?(?:percentage points?|percent|per cent|pct\.?|pp)(?!\w))"),
    "points": re.compile(r"\s?(?:basis points?|bps?)(?!\w)"),
    "scale": re.compile(rf"\s?-?(?P<word>{'|'.join(SCALES)})s?(?!\w)"),
    "short": re.compile(rf"\s?(?P<word>{'|'.join(sorted(_SHORT, key=len, reverse=True))})(?!\w)"),
    "in": re.compile(rf"\s?[,(]?\s?(?:\$ ?|usd |dollars )?in (?P<word>{'|'.join(SCALES)})s(?!\w)\)?"),
    "money": re.compile(rf"\s?(?P<word>{_WORDS})(?!\w)"),
    "times": re.compile(r"x(?!\w)"),
}
_JOINED = re.compile(r"\s?(?:[-+*/x÷^:~=<>&|,;]|\.(?=\d)|(?:to|and|or|through|versus|vs\.?)(?!\w))\s?(?=(?:[$€£¥₹(+-]\s?){0,3}\.?\d)")
_OPERATORS = ("-", "+", "*", "/", "x", "÷", "^")
_TAIL = re.compile(r"(?:st|nd|rd|th)(?!\w)|[-'_]?\d|-[a-z]|\^|\)\s?\d|\s\d")
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_POWER = re.compile(r"10([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3})")
_SPACED = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_STAR = re.compile(r"(?<=[\d)%]) ?\* ?(?=[-+($€£¥₹]{0,3}[\d.])|(?<=[\d)%]) ?\*\* ?(?=[-+(]?\d)")
_MINUS = str.maketrans({**dict.fromkeys("−‒–‐‑﹣－", "-"), "×": "x", "⁄": "/", "\\": None, "*": None})


@dataclass(frozen=True)
class Number:
    """A number with what was written round it.

    value: with its scale applied, without the percent ("2.3 million" is 2300000.0, "12.5%" is 12.5). percent: of a hundred.
    scale: of the word or letter after it, 1.0 where none. decimals: digits after the point, before the scale. unit: "$", "€"
    and the like, "x" for a multiple, "" where none.
    """

    value: float
    percent: bool = False
    scale: float = 1.0
    decimals: int = 0
    unit: str = ""

    @property
    def fraction(self) -> float:
        """The value as a share of one where it is a percentage, else the value."""
        return self.value / 100 if self.percent else self.value

    @property
    def written(self) -> float:
        """The figure before its scale: 2.3 of "2.3 million"."""
        return self.value / self.scale

    def __str__(self) -> str:
        """One form for each number, which reads as the same number: "-2.3 million $", "12.5%"."""
        word = next((f" {w}" for w, s in SCALES.items() if s == self.scale), "")
        if self.percent and self.scale == 0.01:
            word = " bp"
        percent = "%" if self.percent and word != " bp" else ""
        return f"{self.written:.{self.decimals}f}{word}{percent}{' ' * (len(self.unit) > 0 and self.unit != 'x')}{self.unit}"


def parse_number(text: str) -> Number | None:
    """The number that leads in `text` (see the module's docstring), or None where none does or several do."""
    if not isinstance(text, str):
        return None
    start = max((m.end() for m in _MARKER.finditer(text)), default=0)
    line = next((x for x in text[start : start + LONGEST].splitlines() if re.search(r"\w", x)), "")
    line = _POWER.sub(lambda m: "10^" + m[1].translate(_POWERS), line)
    line = unicodedata.normalize("NFKC", _SPACED.sub(",", line))
    line = " ".join(_times(line).translate(_MINUS).casefold().split())[:LONGEST]
    return _leading(line.rpartition("=")[2].strip())


def read_number(text: str, labels: object = ()) -> str | None:
    """`parse_number` as the `read` of a task: the number in its one written form, None where it cannot be read."""
    found = parse_number(text)
    return None if found is None else str(found)


def number_of(value: Number | float | int | str) -> Number | None:
    """A gold figure as a Number: a text is parsed, a float has the decimals of its shortest form."""
    if isinstance(value, Number):
        return value
    if isinstance(value, str):
        return parse_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return Number(float(value), decimals=max(0, -exponent))


def numbers_match(
    gold: Number | float | int | str,
    answer: Number | float | int | str | None,
    *,
    decimals: int | None = None,
    rel: float = 0.0,
    percent: bool | None = None,
) -> bool:
    """Whether the answer is the gold figure.

    * Equal after rounding to the gold's decimals (or to `decimals`): no further from it than half of its last place, so
      gold 12.35 takes 12.346 and 12.345, not 12.3 or 12.36; gold 5 takes 5.4.  `rel` allows that share of the gold beside.
    * Percent: where the gold is a percentage (`percent`, or its own sign where that is None) 14.46%, 14.46 and 0.1446 are
      one; where it is not, a percentage is its share of one: gold 0.1446 takes 14.46%, gold 14.46 does not.
    * Scale: words count, so 2.3 million is 2300000; where only the gold has one, the answer may leave it out (2.3).
    * Units: two different currencies are never equal, one that is left out is forgiven.

    A gold or answer that is no number matches nothing.
    """
    a, g = None if answer is None else number_of(answer), number_of(gold)
    if a is None or g is None or (a.unit and g.unit and a.unit != g.unit):
        return False
    is_percent = g.percent if percent is None else percent
    figure = g.value if is_percent else g.fraction
    step = 0.5 * 10.0 ** -(g.decimals if decimals is None else decimals) * g.scale
    room = max(step, rel * abs(figure)) * (1 + 1e-9) + 1e-12 * abs(figure)
    said = [a.value]
    if is_percent and not a.percent:
        said.append(a.value * 100)
    elif a.percent and not is_percent:
        said = [a.fraction]
    if g.scale != 1 and a.scale == 1:
        said += [s * g.scale for s in said]
    return any(abs(s - figure) <= room for s in said)


def _times(line: str) -> str:
    """One sign of multiplication; a star between two figures is one, every other is markdown."""
    return _STAR.sub("x", line.replace("×", "x").replace("·10^", "x10^"))


def _leading(line: str) -> Number | None:
    """The number that leads in the line; None where another one is joined to it. The same number again is no other."""
    lead = _LEAD.match(line)
    found = _one(line[lead.end() if lead else 0 :])
    if found is None:
        return None
    number, rest = found
    while joined := _JOINED.match(rest):
        again = _one(rest[joined.end() :])
        if again is None or again[0] != number or joined[0].strip() in _OPERATORS:
            return None
        rest = again[1]
    return number


def _one(line: str) -> tuple[Number, str] | None:
    """(number with its units, rest) of a line that begins with one."""
    m = _NUMBER.match(line)
    if m is None or sum(map(str.isdigit, m["number"])) > DIGITS:
        return None
    at, seen = m.end(), {}
    while True:
        for kind, pattern in _AFTER.items():
            after = None if kind in seen else pattern.match(line, at)
            if after and (kind != "close" or m["open"] or m["open2"]):
                seen[kind], at = after.groupdict().get("word") or True, after.end()
                break
        else:
            break
    number, rest = _number(m, seen), line[at:]
    return None if number is None or _TAIL.match(rest) else (number, rest)


def _number(m: re.Match[str], seen: dict) -> Number | None:
    """The Number of a match and the units seen after it; None where parentheses stay open or it is no finite figure."""
    opened = bool(m["open"] or m["open2"])
    if (opened and "close" not in seen) or (m["sign"] and m["sign2"]):
        return None
    words = [seen[k] for k in ("scale", "short", "in") if k in seen]
    if len(words) > 1 or ("points" in seen and (words or "percent" in seen)):
        return None
    whole, _, part = m["number"].replace(",", "").partition(".")
    power = int(m["e"] or m["ten"] or 0)
    exact = Decimal(f"{whole or 0}.{part or 0}").scaleb(power)
    scale = {**SCALES, **_SHORT}[words[0]] if words else 0.01 if "points" in seen else 1.0
    decimals = max(0, len(part) - power)
    value = float(exact * Decimal(str(scale)))
    if decimals > DIGITS or not math.isfinite(value) or abs(value) > 1e60:
        return None
    sign = -1 if opened or "-" in (m["sign"], m["sign2"]) else 1
    unit = _CURRENCY.get(m["money"] or seen.get("money", ""), "") or ("x" if "times" in seen else "")
    return Number(sign * value if value else 0.0, bool({"percent", "points"} & seen.keys()), scale, decimals, unit)

