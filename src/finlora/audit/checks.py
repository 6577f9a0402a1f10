"""What can be told of one split by itself: repeats, answers that contradict each other, labels, lengths, and how much there really is.

Two prompts are exact repeats when they are equal letter for letter, repeats when their normalised forms are (tasks.normalise:
NFKC, lower case, links and punctuation away), near ones when four fifths of their pieces are shared (near.py).
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import FinloraError
from ..numbers import numbers_match
from ..tasks import Task, normalise
from . import near
from .findings import Finding, found
from .read import Item, Rows

LONG = 12_000  # characters of a prompt, about 3,000 tokens
WORDY = 200  # characters of an answer that is said, about 50 tokens
SHOWN_LABELS = 7
FEW_TEXTS = 200  # texts that, asked about four times each or more, make a set look far larger than it is
RARE = 30  # rows of a label below which an F1 of that label is luck
NOTHING = frozenset({"", "nan", "none", "null", "n a", "na", "undefined"})


def of_split(held: Rows, split: str) -> Iterator[Finding]:
    """The findings about one split alone."""
    items = held.splits[split]
    what = f"{held.name} {split}"
    yield from repeats(items, what)
    yield from conflicts(items, what)
    yield from few_items(items, what)
    yield from labels(items, held.labels, what)
    yield from lengths(items, held.labels, what)
    yield from wrong_golds(held, items, what)


def unread(held: Rows) -> Iterator[Finding]:
    """Rows and files that could not be read, those of one complaint together."""
    for split, errors in held.broken.items():
        kinds: dict[str, list[str]] = {}
        for error in errors:
            place, message = apart(error.message)
            kinds.setdefault(error.hint or message, []).append(f"{place}: {message}" if place else message)
        rows = len(errors) + len(held.splits.get(split, ()))
        for hint, said in kinds.items():
            places = tuple(apart(line)[0] for line in said[:5])
            first = apart(said[0])[1]
            alien = held.task is None and split not in held.splits  # a file of something else than questions
            message = f"not read as questions: {first}" if alien else f"{len(said):,} of {rows:,} rows are refused; the first: {first}"
            yield Finding("unread", "note" if alien else "error", f"{held.name} {split}", message, places, len(said), advice=hint)


def apart(message: str) -> tuple[str, str]:
    """("file:12", "what is wrong") of a message that begins with its place."""
    place, colon, rest = message.partition(": ")
    return (place, rest) if colon and " " not in place.rsplit("/", 1)[-1].rsplit(":", 1)[-1] else ("", message)


def by(items: Sequence[Item], key: Any) -> dict[Any, list[Item]]:
    """Items of one key together, in order."""
    out: dict[Any, list[Item]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out


def repeats(items: Sequence[Item], what: str) -> Iterator[Finding]:
    """Exact, normalised and near repeats of whole prompts, and near ones of different texts."""
    same = [group for group in by(items, lambda i: (i.prompt, tuple(sorted(i.labels)))).values() if len(group) > 1]
    if same:
        extra = [i for group in same for i in group[1:]]
        yield found(
            "duplicate", "warning", what, f"{len(extra):,} of {len(items):,} rows repeat another letter for letter", extra,
            "count each question once, or let intervals resample clusters", prompts=len(same),
        )  # fmt: skip
    normal = [g for g in by(items, lambda i: i.key).values() if len({i.prompt for i in g}) > 1]
    if normal:
        rows = [i for group in normal for i in group]
        yield found(
            "duplicate-normalised", "warning", what, f"{len(rows):,} rows are {len(normal):,} prompts that differ only in case, punctuation or links", rows,
            "count each question once, or let intervals resample clusters", prompts=len(normal),
        )  # fmt: skip
    texts = {i.text: i for i in reversed(items) if i.text}
    kept = list(texts.values())[::-1]
    alike = near.groups(near.prepare([i.text for i in kept]))
    if alike:
        rows = [kept[k] for group in alike for k in group]
        worst = max(alike, key=len)
        yield found(
            "near-duplicate", "note", what, f"{len(rows):,} of {len(kept):,} different texts are near another (Jaccard {near.ALIKE:g} or more), in {len(alike):,} groups, the largest of {len(worst):,}",
            rows, "look at the largest groups: one template may stand for many rows", groups=len(alike), largest=len(worst),
        )  # fmt: skip


def conflicts(items: Sequence[Item], what: str) -> Iterator[Finding]:
    """One prompt with several answers."""
    split = [g for g in by(items, lambda i: i.key).values() if len({repr(i.gold) for i in g}) > 1]
    if split:
        rows = [i for group in split for i in group]
        yield found(
            "conflict", "warning", what, f"{len(split):,} prompts, case, punctuation and links aside, have more than one answer ({len(rows):,} rows)", rows,
            "no model can have all of them right; correct or drop them", prompts=len(split),
        )  # fmt: skip


def few_items(items: Sequence[Item], what: str) -> Iterator[Finding]:
    """Many rows that are few questions."""
    clusters = {i.cluster for i in items}
    texts = {i.text for i in items}
    if not items or len(items) < 2 * len(clusters):
        return
    asks = len({i.ask for i in items})
    narrow = math.sqrt(len(items) / len(clusters))
    severity = "error" if len(texts) <= FEW_TEXTS and len(items) >= 4 * len(texts) else "note"
    repeated = [i for group in by(items, lambda i: i.cluster).values() for i in group[1:]]
    yield found(
        "few-items", severity, what,
        f"{len(items):,} rows are {len(clusters):,} independent items ({len(texts):,} different texts, {asks:,} phrasing{'s' if asks > 1 else ''}); an interval over rows is up to {narrow:.1f} times too narrow",
        repeated, "resample clusters, and state their number beside the rows", rows=len(items), clusters=len(clusters), texts=len(texts), asks=asks,
    )  # fmt: skip


def labels(items: Sequence[Item], known: Sequence[str], what: str) -> Iterator[Finding]:
    """Labels off the list, labels that are hardly or never used, and the strongest constant answer."""
    off = [i for i in items if i.named and str(i.gold) not in i.named]
    if off:
        shown = Counter(str(i.gold) for i in off).most_common(1)[0][0]
        yield found("gold-off-list", "error", what, f"{len(off):,} answers are not among those their prompt offers, such as `{shown:.40}`", off, "correct the answers, or the list")
    offered = [i for i in items if i.labels and not i.named and str(i.gold) not in map(str, i.labels)]
    if offered:
        yield found("gold-off-list", "error", what, f"{len(offered):,} answers are not among the labels, such as `{offered[0].gold!s:.40}`", offered, "correct the answers, or the list")
    if not known:
        return
    counts = Counter(str(i.gold) for i in items)
    folded = by([*counts], lambda label: normalise(label))
    mixed = [group for group in folded.values() if len(group) > 1]
    if mixed:
        names = {x for group in mixed for x in group}
        yield found("label-spelling", "error", what, f"one label is written in several ways: {', '.join(sorted(names))}", [i for i in items if i.gold in names], "write each label in one way")
    top, most = counts.most_common(1)[0]
    figures = ", ".join(f"{label} {many:,}" for label, many in counts.most_common(SHOWN_LABELS))
    figures += f" and {len(counts) - SHOWN_LABELS:,} more" if len(counts) > SHOWN_LABELS else ""
    share = most / len(items)
    yield Finding("balance", "warning" if share > 0.9 else "note", what, f"always `{top}` is right in {most:,} of {len(items):,} rows ({share:.4f}); {figures}", figures=(("label", top), ("share", share), *counts.items()))
    rare = [label for label in known if counts[label] < RARE]
    if rare and len(known) <= SHOWN_LABELS and len(items) >= RARE * len(known):
        told = ", ".join(f"{label} {counts[label]}" for label in rare)
        yield Finding("rare-label", "note", what, f"macro F1 rests on few rows of {told}", count=sum(counts[x] for x in rare), advice="read macro F1 with its interval")


def lengths(items: Sequence[Item], known: Sequence[str], what: str) -> Iterator[Finding]:
    """Texts without a word, answers that say nothing, and prompts or answers beyond what models are usually given."""
    empty = [i for i in items if not any(c.isalnum() for c in i.text)]
    if empty:
        yield found("empty", "warning", what, f"{len(empty):,} rows have a text without a letter or digit", empty, "drop them")
    mute = [i for i in items if normalise(str(i.answer)).replace("/", " ").strip() in NOTHING and str(i.answer) not in known]
    if mute:
        yield found("says-nothing", "error", what, f"{len(mute):,} answers say nothing, such as `{mute[0].answer}`", mute, "drop them, or find the answers")
    long = sorted((i for i in items if len(i.prompt) > LONG), key=lambda i: -len(i.prompt))
    if long:
        yield found("over-long", "note", what, f"{len(long):,} prompts are longer than {LONG:,} characters, the longest {len(long[0].prompt):,}", long, "small contexts cut them or refuse them")
    wordy = sorted((i for i in items if len(str(i.answer)) > WORDY), key=lambda i: -len(str(i.answer)))
    if wordy:
        yield found("long-answer", "note", what, f"{len(wordy):,} of {len(items):,} answers are longer than {WORDY} characters, about 50 tokens", wordy, "let answers be long enough to be said whole")


def wrong_golds(held: Rows, items: Sequence[Item], what: str) -> Iterator[Finding]:
    """Answers against a rule: that of the task's own file (`recompute(prompt)`, see tasks), the task's own
    reading of the rows where a variant is audited, and a long number that stands as the answer of neighbouring questions."""
    if held.task is not None:
        yield from _recomputed(held, items, what)
        yield from _mended(held, items, what)
    copied = [b for a, b in zip(items, items[1:]) if a.text != b.text and a.gold == b.gold and _digits(str(b.gold)) >= 3]
    if copied and (held.task.kind == "number" if held.task else not held.labels):
        yield found("repeated-answer", "warning", what, f"{len(copied):,} answers of three digits or more are those of the row above, whose question is another, such as {copied[0].gold!s:.30}", copied, "work them out again")


def _recomputed(held: Rows, items: Sequence[Item], what: str) -> Iterator[Finding]:
    assert held.task is not None
    recompute = getattr(_module(held.task.stem), "recompute", None)
    judged = [(i, right) for i in items if (right := recompute(i.prompt)) is not None] if recompute else []
    open_ = [i for i, right in judged if isinstance(right, float) and math.isnan(right)]
    wrong = [i for i, right in judged if i not in open_ and not _agrees(held.task, i.gold, right)]
    if wrong:
        yield found(
            "wrong-gold", "error", what, f"{len(wrong):,} of {len(judged):,} answers are not what the formula gives, such as {wrong[0].gold!s:.30}", wrong,
            "grade with the recomputed answers, and say so", judged=len(judged),
        )  # fmt: skip
    if open_:
        yield found(
            "no-answer", "error", what, f"{len(open_):,} of {len(judged):,} questions have an answer that their numbers do not decide, such as {open_[0].gold!s:.30}", open_,
            "leave them out", judged=len(judged),
        )  # fmt: skip


def _agrees(task: Task, gold: Any, right: Any) -> bool:
    """Whether a gold is the recomputed answer; a number may have lost a millionth to rounding on its way."""
    return bool(task.mark(gold, right)) or (isinstance(right, float) and numbers_match(gold, right, decimals=9, rel=1e-6))


def _mended(held: Rows, items: Sequence[Item], what: str) -> Iterator[Finding]:
    """What the task itself reads in the rows of its variant: other answers, or no question at all."""
    variant = held.task
    assert variant is not None
    task = getattr(_module(variant.stem), "TASK", None)
    if task is None or task.name == variant.name or (task.labels, task.kind) != (variant.labels, variant.kind):
        return
    right: dict[str, Any] = {}
    for k, row in enumerate(held.rows.get(what.rpartition(" ")[2], ())):
        try:
            right.update((e.id, e) for e in task.examples(row, k))
        except FinloraError:
            return  # rows that the task refuses say nothing about single answers
    mended = [i for i in items if i.id in right and not task.mark(right[i.id].gold, i.gold)]
    left_out = [i for i in items if i.id not in right]
    if mended or left_out:
        more = f", and {len(left_out):,} questions have no answer" if left_out else ""
        yield found(
            "known-erratum", "error", what, f"{len(mended):,} of {len(items):,} answers are not those that `{task.name}` reads in the same rows{more}: {task.errata}",
            [*mended, *left_out], f"grade with `{task.name}`", mended=len(mended), left_out=len(left_out),
        )  # fmt: skip


def _module(stem: str) -> Any:
    return importlib.import_module(f"finlora.tasks.{stem}")


def _digits(text: str) -> int:
    """Significant digits of a number, 0 of other text."""
    bare = re.sub(r"[,$%\s]", "", text)
    return len(re.sub(r"^0+|0+$", "", bare.lstrip("-").partition("e")[0].replace(".", ""))) if re.fullmatch(r"-?\d+(\.\d+)?", bare) else 0
