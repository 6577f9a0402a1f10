"""What the receipts allow one to say: paired differences, the summary, and the reasons for doubt.

Two runs graded on the same examples are compared example by example (`score.paired`): the interval of the difference is
narrower than two separate intervals suggest, and only where it leaves out zero is a difference called one. Every
difference is shown, the undecided ones too, since a table of only the clear ones would be a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finlora.errors import FinloraError
from finlora.receipt import Found
from finlora.report import tables
from finlora.report.tables import part

LISTED = 4  # differences that the summary spells out


def signed(share: float) -> str:
    """A difference in percentage points, with a true minus sign."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


@dataclass(frozen=True)
class Difference:
    """run minus reference on one task and metric, in shares (0.01 is one point). p: McNemar's exact test (accuracy only)."""

    run: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    only_run: int
    only_reference: int
    p: float | None
    how: str

    @property
    def verdict(self) -> str:
        """"higher" or "lower" where the interval leaves out zero, else "undecided"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "undecided"


def references(found: Sequence[Found], baseline: str | None = None) -> list[int]:
    """Which runs the others are compared with: the one named, else the untuned base and the first plain adapter run.

    The adapter run is the earliest of those that train a part of the model over the least compressed base: what
    a quantised run must not fall behind. Raises FinloraError when no run is named `baseline`.
    """
    names = tables.labels(found)
    if baseline is not None:
        if baseline not in names:
            raise FinloraError(f"no run is named `{baseline}`", f"there are: {', '.join(names) or 'none'}")
        return [names.index(baseline)]
    graded = [at for at, f in enumerate(found) if part(f.receipt, "results")]
    base = [at for at in graded if tables.is_base(found[at].receipt)][:1]
    tuned = [at for at in graded if at not in base and found[at].receipt["kind"] == "finetune"]
    adapters = [at for at in tuned if _is_adapter(found[at].receipt)] or tuned
    widest = max((_bits(found[at].receipt) for at in adapters), default=0.0)
    return base + [at for at in adapters if _bits(found[at].receipt) == widest][:1]


def differences(found: Sequence[Found], reference: int) -> tuple[list[Difference], list[str]]:
    """Every run against found[reference] on every task both have records of, and notes on those left out."""
    names = tables.labels(found)
    out: list[Difference] = []
    notes: list[str] = []
    for task in part(found[reference].receipt, "results"):
        others = [at for at, f in enumerate(found) if at != reference and task in part(f.receipt, "results")]
        if not others:
            continue
        try:
            kept = records(found[reference], task)
        except FinloraError as error:
            notes.append(f"{names[reference]}, {task}: {error}")
            continue
        with_f1 = "macro_f1" in part(part(found[reference].receipt, "results")[task], "metrics")
        for at in others:
            try:
                out += _paired(names[at], task, records(found[at], task), kept, with_f1)
            except FinloraError as error:
                notes.append(f"{names[at]}, {task}: {error}")
    return out, notes


def records(found: Found, task: str) -> list[Any]:
    """The records of a run on a task. Raises FinloraError where the receipt names no file or the file is broken."""
    where = part(part(found.receipt, "results"), task).get("records")
    if not where:
        raise FinloraError("its receipt names no records", "evaluate it again to keep them")
    from finlora import score  # needs numpy: only a report that compares pays for it

    return score.read_records(found.path.parent / where)


def summary(found: Sequence[Found], compared: Sequence[tuple[str, Sequence[Difference]]]) -> list[str]:
    """Sentences that say what was run and what it showed, no more than the intervals carry."""
    tasks = tables.tasks_of(found)
    runs = sum(not tables.is_base(f.receipt) for f in found)
    counted = f"{len(found)} receipts" if len(found) != 1 else "1 receipt"
    out = [f"{counted}: {_many(runs, 'run')}" + (" and the untuned base" if runs < len(found) else "") + f", {_many(len(tasks), 'task')}."]
    out += [text for task in tasks if (text := _on_task(found, task))]
    for reference, rows in compared:
        rows = [d for d in rows if d.metric == "accuracy"]
        clear = [d for d in rows if d.verdict != "undecided"]
        if not rows:
            continue
        text = f"Against {reference}, {len(clear)} of {_many(len(rows), 'paired accuracy difference')} {'has' if len(clear) == 1 else 'have'} an interval that leaves out zero"
        if not clear:
            out.append(f"{text}: no run is shown to be better or worse.")
            continue
        listed = [f"{d.run} on {d.task} {signed(d.value)} points [{signed(d.low)}, {signed(d.high)}]" for d in clear[:LISTED]]
        listed += [f"{len(clear) - LISTED} more in the table of differences"] if len(clear) > LISTED else []
        out.append(f"{text}: {'; '.join(listed)}.")
    return out


def doubts(found: Sequence[Found]) -> list[str]:
    """Where rows of the table are not measurements of the same thing."""
    out = []
    for task in tables.tasks_of(found):
        held = [f for f in found if task in part(f.receipt, "results")]
        sizes = {part(f.receipt, "results")[task].get("n") for f in held} - {None}
        data = [d for f in held for d in f.receipt.get("data") or [] if d.get("task") == task]
        digests = {d.get("sha256") for d in data if d.get("split") not in ("train", "validation")}
        digests |= {part(f.receipt, "results")[task].get("data_sha256") for f in held}
        if len(sizes) > 1 or len(digests - {None}) > 1:
            out.append(f"{task}: the runs were graded on different test examples; their accuracies are not comparable.")
        if len({part(f.receipt, "results")[task].get("way") for f in held} - {None}) > 1:
            out.append(f"{task}: some runs choose among labels, others write the answer; their accuracies are not comparable.")
    timed = [f for f in found if part(f.receipt, "train").get("seconds") is not None]
    if len({(d.get("cpu"), d.get("gpu"), d.get("cores_usable")) for d in (part(f.receipt, "device") for f in timed)}) > 1:
        out.append("The runs were timed on different devices; seconds and tokens/s are not comparable.")
    if len({part(f.receipt, "train").get("peak_how") for f in timed} - {None}) > 1:
        out.append("Peak memory was measured in different ways; hover over a cell to see how.")
    return out


def _on_task(found: Sequence[Found], task: str) -> str:
    """The range of the tuned runs' accuracy on a task, beside the base and the floors."""
    tuned = [r for f in found if not tables.is_base(f.receipt) and (r := _accuracy(f, task))]
    base = next((r for f in found if tables.is_base(f.receipt) and (r := _accuracy(f, task))), None)
    floors = {name: tables.floor_of(found, task, name).get("accuracy") for name in tables.FLOORS}
    said = []
    if tuned:
        low, high = min(r["value"] for r in tuned), max(r["value"] for r in tuned)
        span = f"{100 * low:.1f}%" if low == high else f"{100 * low:.1f}% to {100 * high:.1f}%"
        said.append(f"tuned models reach an accuracy of {span}")
    said += [f"the untuned base {100 * base['value']:.1f}%"] if base else []
    said += [f"the {tables.FLOORS[name]} is {100 * floor['value']:.1f}%" for name, floor in floors.items() if floor]
    if not said:
        return ""
    text = f"On {task}, {', '.join(said)}."
    known = [floor for floor in floors.values() if floor]
    sure = [r for r in tuned if r.get("low") is not None]
    if known and sure:
        bar = max(floor["value"] for floor in known)
        above = sum(r["low"] > bar for r in sure)
        text += f" The interval of {above} of {_many(len(sure), 'tuned model')} lies above {'the highest floor' if len(known) > 2 else 'the higher floor' if len(known) > 1 else 'that floor'}."
    return text


def _paired(run: str, task: str, a: list[Any], b: list[Any], with_f1: bool) -> list[Difference]:
    from finlora import score

    out = []
    for metric in ("accuracy", "macro_f1") if with_f1 else ("accuracy",):
        pair = score.paired(a, b, metric)
        d = pair.difference
        p = pair.mcnemar_p if metric == "accuracy" else None
        out.append(Difference(run, task, metric, d.value, d.low, d.high, d.n, pair.only_a, pair.only_b, p, d.how))
    return out


def _accuracy(found: Found, task: str) -> dict[str, Any] | None:
    value = part(part(part(found.receipt, "results"), task), "metrics").get("accuracy")
    return value if value and value.get("value") is not None else None


def _is_adapter(receipt: dict[str, Any]) -> bool:
    model = part(receipt, "model")
    return 0 < (model.get("trainable") or 0) < (model.get("params") or 0) / 2


def _bits(receipt: dict[str, Any]) -> float:
    return part(receipt, "model").get("bits_per_weight") or 0.0


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")
