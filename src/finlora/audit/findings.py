"""What an audit says: findings, each of one kind, with its place, its count and what to do about it.

    Finding("overlap", "error", "tfns test and train", "50 of 2,388 test rows ...", ("tfns_test.jsonl:12",), 50, ("tfns-11",), "score without them")

Severity: "error" where scores on the set do not mean what they say, "warning" where they mean less, "note" for what a
reader should know. Findings are sorted by severity, then as they were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("error", "warning", "note")
SHOWN = 5  # places and ids kept with a finding


@dataclass(frozen=True)
class Finding:
    """kind: a short name, the same for all sets. severity: one of SEVERITIES. what: the set and split. message: one line
    with the figures. where: "file:line" of the first few rows concerned. count: rows concerned. ids: of their examples.
    advice: the remedy. figures: numbers behind the message, by name."""

    kind: str
    severity: str
    what: str
    message: str
    where: tuple[str, ...] = ()
    count: int = 0
    ids: tuple[str, ...] = ()
    advice: str = ""
    figures: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return {**asdict(self), "figures": dict(self.figures)}

    def __str__(self) -> str:
        place = f" ({self.where[0]})" if self.where else ""
        return f"{self.severity}: {self.what}: {self.message}{place}"


def found(kind: str, severity: str, what: str, message: str, items: Sequence[Any] = (), advice: str = "", **figures: Any) -> Finding:
    """A Finding about `items` (anything with `place` and `id`); figures are kept by name."""
    some = items[:SHOWN]
    return Finding(kind, severity, what, message, tuple(i.place for i in some), len(items), tuple(i.id for i in some), advice, tuple(figures.items()))


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first, those of one severity as they came."""
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))
