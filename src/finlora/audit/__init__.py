"""What is wrong with a set of questions: repeats, leaks, contradictions, permuted labels, too few of them.

    findings = audit("tfns@finlora", "data/finlora")     one task, by its rows in that folder
    findings = audit("data/mine")                        every task and file of rows in a folder
    findings = audit("fpb", "data/finlora", model)       also a model's testimony; with fresh texts, membership

Nothing is known beforehand of any set: TASK names say how rows are read, never what is wrong with them.  Checks of one
split are in checks.py, of two in leaks.py, of labels in labels.py, of near texts in near.py, of a model in membership.py.
Figures are counted from the files that are there; a leak from a file that is not there cannot be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..errors import FinloraError
from . import checks, labels, leaks, read
from .findings import Finding, ordered
from .read import Item, Rows

__all__ = ["Finding", "audit", "examine", "look", "witnesses"]
Pool = dict[tuple[str, ...], dict[str, Any]]
ASKS = 2  # ways of asking, beyond which a set's labels answer different questions
ASKED = 400  # texts of a split that a language model is asked about as a witness


def audit(task_or_dir: str | Path, dir: str | Path | None = None, model: Any = None, *, fresh: Sequence[str] = (), near: str | Path | None = None) -> list[Finding]:
    """The findings, gravest first.

    task_or_dir: a task's name (dir: the folder of its rows, None for what ships), or a folder, all of whose sets are
    audited. model: a Model that testifies about labels, and with `fresh` (texts it cannot have seen, of the test's kind)
    is asked whether it has seen the test. near: the folder of other sets that may testify, by default the same folder.
    Raises: FinloraError where there are no rows.
    """
    return ordered(f for _, findings in look(task_or_dir, dir, model, fresh=fresh, near=near) for f in findings)


def look(task_or_dir: str | Path, dir: str | Path | None = None, model: Any = None, *, fresh: Sequence[str] = (), near: str | Path | None = None) -> list[tuple[Rows, list[Finding]]]:
    """As `audit`, each set with its own findings; what a page is made of."""
    folder = near or dir or (task_or_dir if Path(str(task_or_dir)).is_dir() else None)
    pool: Pool = {}
    return [(held, ordered(examine(held, folder, model, fresh, pool))) for held in read.sets(str(task_or_dir), dir)]


def examine(held: Rows, folder: str | Path | None = None, model: Any = None, fresh: Sequence[str] = (), pool: Pool | None = None) -> Iterator[Finding]:
    """The findings of one set, as they are made. pool: keeps what witnesses have learnt from one set to the next."""
    yield from checks.unread(held)
    for split, items in held.splits.items():
        yield from checks.of_split(held, split)
        if held.labels and all(i.gold in held.labels for i in items):
            yield from labels.questions(held, split)
            if 2 <= len(held.labels) <= labels.LABELS and len({i.ask for i in items}) <= ASKS:
                yield from labels.permuted(held, split, witnesses(held, split, folder, model, pool))
    yield from leaks.between(held)
    test = held.splits.get("test") or held.splits.get("validation")
    if model is not None and fresh and test:
        from . import membership

        yield membership.hint(model, [read.split_prompt(i.prompt)[1] for i in test], fresh, f"{held.name} test", getattr(model, "name", ""))


def witnesses(held: Rows, split: str, folder: str | Path | None = None, model: Any = None, pool: Pool | None = None) -> dict[str, np.ndarray]:
    """Who can testify about the split's labels: name -> its answers, long (N,).

    The set's own train rows, each other task with the same labels whose rows lie in the folder or ship (a variant only
    where the task itself has other labels), and the model.
    """
    items, out = held.splits[split], {}
    if split != "train" and "train" in held.splits and all(i.gold in held.labels for i in held.splits["train"]):
        out["its own train rows"] = labels.ask(labels.learn(held.splits["train"], held.labels), items)
    pool = {} if pool is None else pool
    if held.labels not in pool:
        pool[held.labels] = {name: labels.learn(rows, held.labels) for name, rows in _others(held.labels, folder)}
    for name, learnt in pool[held.labels].items():
        if name.partition("@")[0] != held.name.partition("@")[0]:
            out[f"naive Bayes of {name}"] = labels.ask(learnt, items)
    if model is not None:
        out[str(getattr(model, "name", "the model"))] = _chosen(model, items, held.labels)
    return out


def _others(wanted: Sequence[str], folder: str | Path | None) -> Iterator[tuple[str, list[Item]]]:
    """Each task with these labels, and rows to learn from: its train rows, else what there is."""
    for name in registry.names("task"):
        readings = [registry.pick("task", name), *read.variants(name)]
        task = next((t for t in readings if set(t.labels) == set(wanted)), None)
        for root in (folder, None) if task else ():
            if root is None and not task.source.package:
                continue
            try:
                found = read.of_task(task, root)
            except FinloraError:
                continue
            if found.splits and not any(found.broken.values()):
                yield task.name, found.splits.get("train") or next(iter(found.splits.values()))
                break


def _chosen(model: Any, items: Sequence[Item], names: Sequence[str]) -> np.ndarray:
    """What a language model chooses for some texts, evenly drawn; -1 for the others."""
    from ..generate import choose
    from ..text import Example

    picked = np.unique(np.linspace(0, len(items) - 1, min(ASKED, len(items))).astype(int))
    asked = [Example(items[k].id, (("user", items[k].prompt),), items[k].gold, str(items[k].gold), items[k].cluster, tuple(names)) for k in picked]
    out = np.full(len(items), -1)
    for k, scores in zip(picked, choose(model, asked, too_long="cut")):
        out[k] = list(names).index(max(scores, key=scores.__getitem__))
    return out
