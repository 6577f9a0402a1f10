"""Reads the label back from a text by rule, knowing nothing of how the text was made.

It shows that the text alone settles the label, and catches a generator that writes one thing and labels another. It knows
the words of lexicon.py (also as interaction features: polarity of the metric times direction times modifier) and the
sentence shapes that change what a clause is worth; it is no model to compare with.
"""

from __future__ import annotations

import re

import facts
import lexicon as lx
from lexicon import DOWN, FLAT, UP

POLARITY = {m.text: m.polarity for m in lx.METRICS} | {m: p for m, (p, _) in facts.KINDS.items()}


def _either(words) -> str:
    return "|".join(sorted(map(re.escape, set(words)), key=len, reverse=True))


METRIC = _either(POLARITY)
VALUED = _either(m for m, p in POLARITY.items() if p)
DIRECTION: dict[str, int] = {"unchanged": FLAT, "flat": FLAT, "level": FLAT, "up": UP, "down": DOWN}
for _v in lx.VERBS:
    DIRECTION |= {form: _v.direction for form in (_v.base, _v.past, _v.third, _v.ing)}
for _d, _words in (*lx.NOUNS.items(), *lx.ADJECTIVES.items()):
    DIRECTION |= dict.fromkeys(_words, _d)
MOVE = _either(DIRECTION)
COMPARE = {w: d for d, words in lx.ABOVE.items() for w in words}
SIGN = {"more": 1, "less": -1, "as much": 0}


def tone(text: str) -> int:
    """-1, 0 or 1."""
    low = text.lower()
    weight = re.search(rf"({MOVE}) ({VALUED}) carried (more|less|as much) weight", low)
    if weight:
        return DIRECTION[weight[1]] * POLARITY[weight[2]] * SIGN[weight[3]]
    metric = re.search(rf"\b({VALUED})\b", low)
    against = re.search(rf"({_either(COMPARE)}) (?:{_either(lx.FORECAST)})", low)
    if against and metric:
        return COMPARE[against[1]] * POLARITY[metric[1]]
    surprise = re.search(r"(more|less|as much) (?:than|as) .*?(?:forecast|planned)|(more|less|as much) (?:than|as) forecast", low)
    if not metric:
        return 0  # nothing in it bears on shareholders
    before = re.search(rf"({MOVE}) in (?:the )?(?:{_either(lx.BEFORE)})? ?{metric[1]}\b", low)
    after = re.search(rf"\b({MOVE})\b", low[metric.end():])
    denied = re.search(r"\b(?:would|did not|rather than|did the|would see)\b", low)
    if before:
        direction = DIRECTION[before[1]]
    elif denied:
        direction = DIRECTION[re.findall(rf"\b({MOVE})\b", low)[-1]]
    elif after:
        direction = DIRECTION[after[1]]
    else:
        return 0  # a level without a comparison
    return direction * POLARITY[metric[1]] * (SIGN[surprise[1] or surprise[2]] if surprise else 1)


STEM = {"rais": UP, "lift": UP, "increas": UP, "maintain": FLAT, "keep": FLAT, "kept": FLAT, "leav": FLAT, "left": FLAT, "confirm": FLAT,
        "lower": DOWN, "cut": DOWN, "reduc": DOWN}
VERB = rf"\b({_either(STEM)})\w*"
NOUN = r"(?:guidance|outlook|forecast)\b"
SPAN = rf"(?:its )?(?:{_either(lx.SPANS)}) (?:(?:revenue|profit|sales) )?"
OTHER = _either(lx.OTHERS)
PAST_OVER = (  # statements that do not tell what the company did in the end
    rf"(?:(?:Last week|Earlier|In \w+|While|As|after|while|as|that|On Monday|in \w+)[ ,]*)?(?:{_either(lx.ACTORS)}) (?:decided to )?{VERB} (?:its own )?{SPAN}{NOUN}( unchanged| as it was)?",
    rf"(?:did not|would|Rather than|instead of|chose not to|after|After|had|having) (?:decided to )?{VERB} (?:it|{SPAN}{NOUN})( unchanged| as it was)?",
    rf"(?:As to|And) its (?:{_either(lx.SPANS)}) (?:{OTHER})[,?] [Ii]t {VERB} it( unchanged| as it was)?",
    rf"where in \w+ it {VERB} it( unchanged| as it was)?",
)


def guidance(text: str) -> int:
    """-1, 0 or 1."""
    figures = re.findall(r"\$?(\d[\d.]*)(%| million| billion)?(?=[\s.;,]|$)", text)
    if re.search(r"expects|now sees|for the year: before", text):
        values = [float(n.rstrip(".")) * {" billion": 1000}.get(unit, 1) for n, unit in figures if n.rstrip(".")]
        values = values[-2:]
        now_last = bool(re.search(r"for the year: before|now expects \$?[\d.]+%?(?: million| billion)?\.$|It now expects", text)) and not re.search(r"Before, it|that was|it had expected", text)
        now, before = reversed(values) if now_last else values
        return (now > before) - (now < before)
    asked = re.search(rf"(?:to|asked to) (?:decided to )?{VERB} {SPAN}{NOUN}.*?agreed\b", text)
    if asked:
        return STEM[asked[1]]
    text = re.sub(rf"(?:[Aa]sked (?:in \w+ )?to|wanted [\w ]+? to|when asked to) {VERB} {SPAN}{NOUN}( unchanged| as it was)?", "", text)
    for pattern in PAST_OVER:
        text = re.sub(pattern, "", text)
    found = re.findall(rf"{VERB} (?:{SPAN}{NOUN}|it\b)", text) or []
    passive = re.findall(rf"{SPAN}{NOUN} was {VERB}", text)
    return STEM[(found + passive)[-1]]


ORACLES = {"tone": tone, "guidance": guidance}
