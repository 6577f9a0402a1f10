"""Rows as an audit sees them: each with its place, its question apart from its text, and what was wrong with reading it.

    sets("tfns", "data/finlora")      the splits of one task
    sets("data/finlora")              every task, and every other file of rows, of a folder

A task's own `examples` read the rows.  A file of no known task is read by its columns: one with the prompt or text, one with the answer.
What a prompt asks about is told from how it asks by its form: the block after "Input:", else a long quoted passage, else
the prompt whole.  An unreadable row does not stop an audit; it is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import registry, rows
from ..errors import FinloraError
from ..tasks import PLACE, Source, Task, cluster_of, normalise, parse_finlora, place_of
from ..text import prompt_text

PROMPTS = ("context", "prompt", "question", "text", "sentence", "headline", "News", "input")
ANSWERS = ("target", "label", "answer", "output", "gold")
SPLITS = tuple(rows.SPLITS)
QUOTED = 0.2  # the share of a prompt that a quoted passage must have to be what it asks about: a page may quote as well
FEW = 20  # so many different short answers, or fewer, are labels
_INPUT = re.compile(r"(?P<ask>.*?)(?:^|\n)Input: ?(?P<text>.*?)\s*(?:\nAnswer: ?)?$", re.DOTALL)
_QUOTED = re.compile(r'"([^"]{24,})"|“([^”]{24,})”')
_OFFERED = re.compile(r"^Options: (?P<labels>.+)$", re.MULTILINE)
_NAMES = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")


@dataclass(frozen=True)
class Item:
    """One example: its place, id, whole prompt, what it is about (text, normalised) and how it asks (ask, names left out),
    gold, answer, the labels offered and those that the prompt itself names, its cluster, and its key: equal for prompts
    that offer the same and differ only in case, punctuation or links."""

    place: str
    id: str
    prompt: str
    text: str
    ask: str
    gold: Any
    answer: str
    labels: tuple[str, ...]
    named: tuple[str, ...]
    cluster: str
    key: str


@dataclass(frozen=True)
class Rows:
    """A set: splits -> its items; broken: split -> errors of rows and files that could not be read; task: None for a user's
    own file; rows: split -> its rows as the file has them, of a task."""

    name: str
    splits: Mapping[str, list[Item]]
    broken: Mapping[str, list[FinloraError]] = field(default_factory=dict)
    task: Task | None = None
    labels: tuple[str, ...] = ()
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def sets(what: str, dir: str | Path | None = None) -> list[Rows]:
    """The sets that a task's name, or a folder, stands for.

    Raises: FinloraError where it is neither, or holds no rows at all.
    """
    path = Path(what).expanduser()
    if path.is_dir() and (dir is None or str(dir) == ""):
        out = list(_folder(path))
        if not out:
            raise FinloraError(f"{path} holds no rows that can be read", f"files of rows end with {', '.join(rows.ENDINGS)}")
        return out
    if path.suffix or "/" in what.replace("\\", "/"):
        raise FinloraError(f"no folder `{what}`", "name a task of `finlora list tasks`, or a folder of rows")
    task = registry.pick("task", what)
    held = of_task(task, dir)
    if not held.splits and not held.broken:
        rows.find(task, "test", dir)  # says what was looked for
    return [held]


def of_task(task: Task, dir: str | Path | None = None) -> Rows:
    """The task's splits that are there; rows that it refuses are kept as errors."""
    splits: dict[str, list[Item]] = {}
    broken: dict[str, list[FinloraError]] = {}
    files: dict[str, Any] = {}
    raw: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        try:
            files[split] = rows.find(task, split, dir)
        except FinloraError as error:
            if not error.message.startswith(("no ", "the rows of")):
                broken[split] = [error]
    for split in files:
        if split == "validation" and any(_share_rows(files[split], files[other]) for other in ("train", "test") if other in files):
            continue  # rows that stand in for an absent split are one set of rows, not two that overlap
        try:
            raw[split] = rows.read_rows(task, split, dir)
        except FinloraError as error:
            broken[split] = [error]
            continue
        items, wrong = _items(task, raw[split])
        if items:
            splits[split] = items
        if wrong:
            broken[split] = wrong
    return Rows(task.name, splits, broken, task, task.labels, raw)


def _share_rows(a: tuple[list[Path], tuple[int, int | None]], b: tuple[list[Path], tuple[int, int | None]]) -> bool:
    (start, stop), (first, last) = a[1], b[1]
    return a[0] == b[0] and (stop is None or first < stop) and (last is None or start < last)


def _items(task: Task, found: Sequence[Mapping[str, Any]]) -> tuple[list[Item], list[FinloraError]]:
    items: list[Item] = []
    wrong: list[FinloraError] = []
    for i, row in enumerate(found):
        try:
            for e in task.examples(row, i):
                items.append(item(place_of(row, i), e.id, prompt_text(e) + getattr(e, "after", ""), e.gold, e.answer, e.labels, e.cluster or e.id))
        except FinloraError as error:
            wrong.append(error)
    return told_apart(items), wrong


def told_apart(items: list[Item]) -> list[Item]:
    """The items, each with its whole prompt as its text where what looked like the texts is the same in nearly all."""
    if 20 * len({i.text for i in items}) >= len({i.ask for i in items}):
        return items
    return [replace(i, text=normalise(i.prompt), ask="") for i in items]


def item(place: str, id: str, prompt: str, gold: Any, answer: str, labels: tuple[str, ...] = (), cluster: str = "") -> Item:
    """An Item from its prompt; the cluster is that of its text where none is given."""
    ask, text = split_prompt(prompt)
    return Item(place, id, prompt, normalise(text), normalise(_NAMES.sub(" ", ask)), gold, answer, labels, named(prompt), cluster or cluster_of(text), cluster_of(ask, text, *sorted(map(str, labels))))


def split_prompt(prompt: str) -> tuple[str, str]:
    """(how it asks, what it asks about); ("", prompt) for a prompt of no known form."""
    parsed = parse_finlora(prompt)
    if parsed:
        return parsed[0], parsed[2]
    found = _INPUT.fullmatch(prompt)
    if found and found["text"].strip():
        return found["ask"], found["text"]
    quoted = [next(filter(None, m.groups())) for m in _QUOTED.finditer(prompt)]
    text = max(quoted, key=len, default="")
    if text and len(text) >= QUOTED * len(prompt):
        return prompt.replace(text, " ", 1), text
    return "", prompt


def named(prompt: str) -> tuple[str, ...]:
    """The answers that a prompt itself offers, () where it names none."""
    parsed = parse_finlora(prompt)
    if parsed:
        return parsed[1]
    found = _OFFERED.search(prompt)
    return tuple(x.strip() for x in found["labels"].split(",")) if found else ()


# -- folders ---------------------------------------------------------------------------------------------------------


def _folder(root: Path) -> Iterator[Rows]:
    """Every task whose files lie there, as published where the task refuses them; then the other files."""
    taken: set[Path] = set()
    for name in registry.names("task"):
        task = registry.pick("task", name)
        files = {f.resolve() for split in SPLITS for f in _own_files(task, split, root)}
        if not files:
            continue
        taken |= files
        held = of_task(task, root)
        yield held
        refused = sum(map(len, held.broken.values()))
        for variant in variants(name) if refused else ():
            other = of_task(variant, root)
            if sum(map(len, other.broken.values())) < refused and other.labels == held.labels:
                yield other  # the rows as published, which the task itself does not take
                break
    yield from _files(root, taken)


def variants(name: str) -> list[Task]:
    """The other readings of a task's rows, in the order of its file."""
    import importlib

    return list(getattr(importlib.import_module(f"finlora.tasks.{name}"), "VARIANTS", {}).values())


def _own_files(task: Task, split: str, root: Path) -> list[Path]:
    """The files of that task: those that name it, not any `test.jsonl`."""
    try:
        found = rows.find(task, split, root)[0]
    except FinloraError:
        return []
    known = {*task.source.names(split), *task.source.whole}
    return [f for f in found if f.name in known or f.name.startswith(f"{task.stem}_") or f.parent.name == task.stem]


def _files(root: Path, taken: set[Path]) -> Iterator[Rows]:
    """Other files of rows, those of one stem as splits of one set."""
    stems: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(root.iterdir()):
        ending = next((e for e in sorted(rows.ENDINGS, key=len, reverse=True) if path.name.endswith(e)), "")
        if not ending or not path.is_file() or path.resolve() in taken:
            continue
        stem, split = _stem(path.name.removesuffix(ending))
        stems.setdefault(stem, {}).setdefault(split, []).append(path)
    for stem, splits in stems.items():
        held = _plain(root, stem, splits)
        if held.splits or held.broken:
            yield held


def _stem(name: str) -> tuple[str, str]:
    """("mine", "test") of mine_test; a file that names no split is its test."""
    for split, names in rows.SPLITS.items():
        found = re.fullmatch(rf"(?:(?P<stem>.*?)[_.-])?(?:{'|'.join(names)})(?:[_.-].*)?", name, re.IGNORECASE)
        if found:
            return found["stem"] or "rows", split
    return name, "test"


def _plain(root: Path, stem: str, splits: Mapping[str, list[Path]]) -> Rows:
    out: dict[str, list[Item]] = {}
    broken: dict[str, list[FinloraError]] = {}
    for split, paths in splits.items():
        for path in paths:
            bare = Task(name=stem, labels=(), kind="text", examples=lambda row, i: iter(()), source=Source(files={split: (path.name,)}))
            try:
                found = rows.read_rows(bare, split, root)
            except FinloraError as error:
                broken.setdefault(split, []).append(error)
                continue
            for i, row in enumerate(found):
                try:
                    one = _by_columns(row, i, path.stem)
                    out.setdefault(split, []).append(one)
                except FinloraError as error:
                    broken.setdefault(split, []).append(error)
    out = {split: told_apart(items) for split, items in out.items()}
    golds = {i.gold for items in out.values() for i in items}
    labels = tuple(sorted(golds)) if 1 < len(golds) <= FEW and max(map(len, golds)) <= 60 else ()
    return Rows(stem, out, broken, None, labels)


def _by_columns(row: Mapping[str, Any], index: int, stem: str) -> Item:
    place = place_of(row, index)
    names = [c for c in PROMPTS if isinstance(row.get(c), str)]
    answer = next((c for c in ANSWERS if row.get(c) is not None and c not in names[:1]), None)
    if not names or answer is None:
        shown = ", ".join(f"{k:.40}" for k in row if k != PLACE) or "none"
        raise FinloraError(f"{place}: no column of a prompt and one of an answer; found: {shown}", f"wanted one of {', '.join(PROMPTS)} and one of {', '.join(ANSWERS)}")
    prompt = row[names[0]] if names[0] != "question" or "context" in row else str(row["question"])
    value = row[answer]
    gold = value if isinstance(value, str) else repr(value)
    return item(place, f"{stem}-{index}", prompt, gold, gold)
