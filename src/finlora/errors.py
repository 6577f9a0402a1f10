"""Errors meant for the user: one line that names the value, the place and the remedy.

`FinloraError` is what a user can fix; the command line prints it without a traceback and exits with status 2.
Our own mistakes stay `assert`s and keep their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class FinloraError(Exception):
    """A problem the user can fix.

    message: names the value and the place. hint: the remedy, shown after the message.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message, hint)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    @property
    def problems(self) -> list[FinloraError]:
        """The problems this error stands for: itself, unless it is a `Problems`."""
        return [self]

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class Problems(FinloraError):
    """Several problems found in one pass, so that the user fixes them all at once."""

    def __init__(self, problems: Iterable[FinloraError]):
        self._problems = [p for problem in problems for p in problem.problems]
        assert self._problems, "Problems needs at least one problem"
        super().__init__("; ".join(map(str, self._problems)))

    @property
    def problems(self) -> list[FinloraError]:
        return list(self._problems)


def unknown(kind: str, name: str, known: Iterable[str], place: str = "") -> FinloraError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, 1, 0.55)
    where = f" in {place}" if place else ""
    hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}" if known else ""
    return FinloraError(f"no {kind} named `{name}`{where}", hint)


def gathered(problems: list[FinloraError], action: Callable[[], Any]) -> Any:
    """What `action` returns; its error joins the problems, and the answer is then None."""
    try:
        return action()
    except FinloraError as error:
        problems += error.problems
        return None
