"""Reads the label of a text by rule, from the text alone: a check on the makers, sharing no code with them."""

from __future__ import annotations

import re

UP = r"rose|grew|gained|increased|raised|lifted"
DOWN = r"fell|dropped|declined|decreased|cut|reduced|lowered"
LEVEL = r"held|stayed flat|were unchanged|kept|maintained"
WHEN = r"(?:[A-Z][a-z]+|(?:Q\d )?\d{4})"  # a month, a year, a quarter
METRIC = re.compile(r"orders|sales|earnings|profits|margins|revenues|costs|losses|debts", re.IGNORECASE)
_MOVE = re.compile(rf"in {WHEN} (?:(?P<up>{UP})|(?P<down>{DOWN})|(?P<level>{LEVEL}))\b")


def _last(text: str) -> tuple[int, int]:
    """The last move, and where it stands."""
    found = list(_MOVE.finditer(text))
    assert found, text
    return 1 if found[-1]["up"] else -1 if found[-1]["down"] else 0, found[-1].start()


def tone(text: str) -> int:
    """1 positive, 0 neutral, -1 negative."""
    way, at = _last(text)
    metric = METRIC.findall(text[:at])[-1].lower()  # what the last move is of: the metric named last before it
    return way * (-1 if metric in ("costs", "losses", "debts") else 1)


def guidance(text: str) -> int:
    """1 raised, 0 held, -1 cut: what a rival did does not count."""
    return _last(text.split("that of a rival")[0])[0]


ORACLES = {"tone": tone, "guidance": guidance}
