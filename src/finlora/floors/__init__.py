"""What a model must beat: the commonest answer, a drawn one, naive Bayes, the likest training question, a look-up, an echo.

    of(task, train, test)   {name: records} of the floors of the task's kind and those that the task names

Floors learn from the training split alone.  Label floors are counted apart for each set of labels and, where that many
examples share it, for each instruction (the first line of the prompt, quoted names left out): nine yes/no questions about
one headline are nine floors.  Every floor answers with records, so that it has the same metrics and intervals as a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import unknown
from ..score import Record
from ..text import Example
from .answers import constant, dictionary, echo, longest, majority, nothing, position, prior
from .bayes import SMOOTHING, naive_bayes
from .common import FOLDS, SHARED
from .memory import lookup, nearest, question_of
from .probe import encoder_probe

__all__ = [
    "FLOORS", "FOLDS", "OF_KIND", "SHARED", "SIMPLE", "SMOOTHING", "constant", "dictionary", "echo", "encoder_probe", "longest", "lookup", "majority",
    "naive_bayes", "names_of", "nearest", "nothing", "of", "position", "prior", "question_of",
]  # fmt: skip

FLOORS: dict[str, Callable[..., list[Record]]] = {
    f.__name__: f for f in (majority, prior, naive_bayes, nearest, lookup, position, longest, constant, echo, nothing, dictionary)
}
OF_KIND: dict[str, tuple[str, ...]] = {
    "label": ("majority", "prior", "naive_bayes", "nearest"),
    "choice": ("prior", "position", "longest"),
    "number": ("majority", "nearest"),
    "program": ("majority", "nearest"),
    "spans": ("nothing", "dictionary"),
    "text": ("constant", "nearest", "echo"),
}
SIMPLE = ("majority", "position", "longest", "nothing")  # those that may be counted on the graded examples themselves
UNTAUGHT = ("longest", "nothing")  # those that need no training split
SAID = ("number", "program", "text")  # kinds whose floors say a text, which the task reads


def names_of(task: Any) -> tuple[str, ...]:
    """The floors of a task: those of its kind, then those that it names.

    Raises: FinloraError for a floor that there is not.
    """
    for name in task.floors:
        if name not in FLOORS:
            raise unknown("floor", name, FLOORS, f"task `{task.name}`")
    return tuple(dict.fromkeys((*OF_KIND[task.kind], *task.floors)))


def of(task: Any, train: Iterable[Example], test: Iterable[Example], names: Sequence[str] | None = None) -> dict[str, list[Record]]:
    """{name: records} of the task's floors on the test examples, in order.

    names: only these of them. Without training examples only the floors that learn nothing remain.
    Raises: FinloraError for a floor that there is not.
    """
    train, test = list(train), list(test)
    out = {}
    for name in names_of(task):
        if (names is None or name in names) and (train or name in UNTAUGHT):
            options = {"read": task.read} if task.kind in SAID else {}
            out[name] = FLOORS[name](train, test, task.mark, **options)
    return out
