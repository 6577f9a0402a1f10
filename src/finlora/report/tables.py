"""Receipts as one table: a row a run (floors and the untuned base first), and its Markdown, CSV and LaTeX forms.

A value that was measured with an interval always travels with it: `72.8 [70.1, 75.3]`. Nothing here marks a winner:
two overlapping intervals decide nothing, and the test that does (paired, on the same examples) is in `compare.py`.
Accuracy and F1 are shown in percent, memory in MB of 10^6 bytes, time in seconds; the CSV keeps the raw numbers.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from finlora.receipt import Found

DASH = "–"
METRICS = {
    "accuracy": "accuracy %",
    "macro_f1": "macro F1 %",
    "weighted_f1": "weighted F1 %",
    "balanced_accuracy": "balanced accuracy %",
    "numeric": "right figures %",
    "token_f1": "token F1 %",
    "rouge_l": "ROUGE-L %",
    "entity_f1": "entity F1 %",
    "exact": "exact %",
    "bertscore": "BERTScore %",
}
FLOORS = {
    "majority": "majority floor", "prior": "prior floor", "naive_bayes": "naive Bayes floor", "nearest": "nearest neighbour floor", "lookup": "look-up floor",
    "position": "position floor", "longest": "longest option floor", "constant": "constant answer floor", "echo": "echo floor", "nothing": "no answer floor",
    "dictionary": "dictionary floor",
}  # fmt: skip
FLOOR_NOTES = {
    "majority": "always says the commonest label of the training split",
    "prior": "draws labels by their shares of the training split",
    "naive_bayes": "multinomial naive Bayes over one- and two-word counts",
    "nearest": "says what the likest training text has (TF-IDF cosine)",
    "lookup": "looks the question up in train without reading what it is about",
    "position": "always the place that is most often right",
    "longest": "always the longest option",
    "constant": "the training answer that is nearest to all others",
    "echo": "repeats the question",
    "nothing": "names no span",
    "dictionary": "marks the spans that train marks",
}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    DASH: "--",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """key: name in the CSV. group: the task it belongs to, or "". about: the tooltip."""

    key: str
    title: str
    group: str = ""
    numeric: bool = True
    estimate: bool = False
    about: str = ""


@dataclass(frozen=True)
class Cell:
    """text: what is shown. detail: the interval. sort: raw value, None where there is none. about: the tooltip."""

    text: str = DASH
    detail: str = ""
    sort: float | str | None = None
    low: float | None = None
    high: float | None = None
    about: str = ""


@dataclass(frozen=True)
class Line:
    """A row: kind is "floor", "base" or "run"; `found` is the receipt behind it (None for a floor)."""

    kind: str
    label: str
    cells: tuple[Cell, ...]
    found: Found | None = None


@dataclass(frozen=True)
class Table:
    """The columns and the rows under them, floors and base first."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


def as_found(receipts: Iterable[Found | Mapping[str, Any]]) -> list[Found]:
    """Receipts with their place; a bare dict gets an empty path."""
    return [item if isinstance(item, Found) else Found(PurePath(), dict(item)) for item in receipts]


def is_base(receipt: Mapping[str, Any]) -> bool:
    """Whether the receipt grades a model that was not tuned."""
    return receipt["kind"] == "evaluate" and (receipt.get("method") or "base") in ("base", "none")


def part(receipt: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A section of the receipt, empty where it is missing or null."""
    return receipt.get(key) or {}


def labels(found: Sequence[Found]) -> list[str]:
    """A distinct label for each run: its name, with the folder (then a number) where names repeat."""
    names = [f.receipt["name"] for f in found]
    count = Counter(names)
    out = [f"{n} ({f.path.parent.name})" if count[n] > 1 and f.path.parent.name else n for n, f in zip(names, found)]
    seen: Counter[str] = Counter()
    for at, label in enumerate(out):
        seen[label] += 1
        if seen[label] > 1:
            out[at] = f"{label} #{seen[label]}"
    return out


def ordered(found: Sequence[Found]) -> list[Found]:
    """The untuned base first, then the runs as given; benchmarks are no rows."""
    rows = [f for f in found if f.receipt["kind"] != "bench"]
    return sorted(rows, key=lambda f: not is_base(f.receipt))


def tasks_of(found: Iterable[Found]) -> list[str]:
    """Names of the graded tasks, in the order of their first appearance."""
    return list(dict.fromkeys(task for f in found for task in part(f.receipt, "results")))


def floor_of(found: Iterable[Found], task: str, floor: str) -> dict[str, dict[str, Any]]:
    """{metric: estimate} of a floor on a task, from the first receipt that has it; a bare estimate is an accuracy."""
    for f in found:
        value = part(part(part(f.receipt, "results"), task), "floors").get(floor)
        if value:
            metrics = {"accuracy": value} if "value" in value else value.get("metrics") or {}
            note = value.get("how") if "metrics" in value else None  # such as: learned from the graded examples
            return {m: e | {"how": ", ".join(filter(None, [e.get("how"), note]))} for m, e in metrics.items()}
    return {}


def metrics_of(found: Sequence[Found], task: str) -> list[str]:
    """The metrics shown for a task: accuracy and macro F1 where measured, otherwise the first one that is."""
    have = list(dict.fromkeys(m for f in found for m in part(part(part(f.receipt, "results"), task), "metrics")))
    return [m for m in ("accuracy", "macro_f1") if m in have] or have[:1]


def build(receipts: Iterable[Found | Mapping[str, Any]]) -> Table:
    """The table of all runs."""
    found = ordered(as_found(receipts))
    tasks = tasks_of(found)
    shown = {task: metrics_of(found, task) for task in tasks}
    columns = [Column("run", "run", numeric=False), Column("method", "method", numeric=False), Column("codec", "codec", numeric=False)]
    for task in tasks:
        about = f"{task}: value [95% interval]"
        columns += [Column(f"{task}.{m}", METRICS.get(m, m), task, estimate=True, about=about) for m in shown[task]]
        columns.append(Column(f"{task}.unreadable", "unreadable", task, about="answers that could not be read; they count as wrong"))
    columns += [
        Column("trainable", "trainable", about="trainable parameters"),
        Column("bits_per_weight", "bits/weight", about="bits kept for each frozen weight, with all metadata"),
        Column("peak_mb", "peak MB", about="peak memory of training, MB of 10^6 bytes; each cell says how it was measured"),
        Column("train_seconds", "train s", about="seconds of training"),
        Column("tokens_per_s", "tokens/s", about="training tokens a second"),
    ]
    lines = []
    for floor, label in FLOORS.items():
        cells = [Cell(label, sort=label, about=FLOOR_NOTES[floor]), Cell(), Cell()]
        for task in tasks:
            have = floor_of(found, task, floor)
            cells += [estimate(have.get(m)) for m in shown[task]] + [Cell()]
        if any(cell.sort is not None for cell in cells[1:]):
            lines.append(Line("floor", label, tuple(cells + [Cell()] * 5)))
    for f, label in zip(found, labels(found)):
        lines.append(Line("base" if is_base(f.receipt) else "run", label, _cells(f, label, tasks, shown), f))
    return Table(tuple(columns), tuple(lines))


def estimate(value: Mapping[str, Any] | None) -> Cell:
    """An estimate as percent with its interval; an empty cell where there is none."""
    if not value or value.get("value") is None:
        return Cell()
    low, high = value.get("low"), value.get("high")
    detail = f"[{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    about = [value.get("how") or "", f"{value['n']:,} examples" if value.get("n") else ""]
    if value.get("clusters") and value.get("clusters") != value.get("n"):
        about.append(f"{value['clusters']:,} clusters")
    return Cell(f"{100 * value['value']:.1f}", detail, value["value"], low, high, ", ".join(filter(None, about)))


def unreadable(result: Mapping[str, Any]) -> Cell:
    """A count (an integer) or a share (a float) of unreadable answers, as a count where the number of answers is known."""
    value, n = result.get("unreadable"), result.get("n")
    if value is None:
        return Cell()
    if isinstance(value, float) and n:
        value = round(value * n)
    text = f"{100 * value:.1f}%" if isinstance(value, float) else f"{value:,}"
    way = f", way: {result['way']}" if result.get("way") else ""
    return Cell(text, sort=value, about=f"{value} of {n:,} answers{way}" if n else way.lstrip(", "))


def number(value: float | None, form: str, scale: float = 1.0, about: str = "") -> Cell:
    """A plain number in the given format; an empty cell where there is none."""
    return Cell(about=about) if value is None else Cell(format(value * scale, form), sort=value * scale, about=about)


def _cells(f: Found, label: str, tasks: Sequence[str], shown: Mapping[str, list[str]]) -> tuple[Cell, ...]:
    receipt = f.receipt
    model, train, results = part(receipt, "model"), part(receipt, "train"), part(receipt, "results")
    about = ", ".join(filter(None, [label, receipt["kind"], str(receipt.get("created") or "")]))  # the name may be cut
    method = receipt.get("method") or ("base" if is_base(receipt) else receipt["kind"])
    codec = receipt.get("codec") or DASH
    cells = [Cell(label, sort=label, about=about), Cell(method, sort=method), Cell(codec, sort=codec)]
    for task in tasks:
        result = part(results, task)
        metrics = part(result, "metrics")
        cells += [*(estimate(metrics.get(m)) for m in shown[task]), unreadable(result)]
    graded = [r["seconds"] for r in results.values() if r.get("seconds") is not None]
    evaluation = f"grading took {sum(graded):,.1f} s" if graded else ""
    cost = part(receipt, "cost")  # of grading alone: not the memory that the column is about, so only in the tooltip
    peak = f"grading peaked at {cost['peak_bytes'] / 1e6:,.0f} MB, {cost.get('peak_how', '')}" if cost.get("peak_bytes") else ""
    cells += [
        number(model.get("trainable"), ",.0f", about=_share(model)),
        number(model.get("bits_per_weight"), ".2f"),
        number(train.get("peak_bytes"), ",.0f", 1e-6, train.get("peak_how") or peak),
        number(train.get("seconds"), ",.1f", about=evaluation),
        number(train.get("tokens_per_s"), ",.0f"),
    ]
    return tuple(cells)


def _share(model: Mapping[str, Any]) -> str:
    if not model.get("params") or model.get("trainable") is None:
        return ""
    return f"{100 * model['trainable'] / model['params']:.3g}% of {model['params']:,} parameters"


def terminal_rows(receipts: Iterable[Found | Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as plain text, for a terminal table; columns that are empty in every row are left out."""
    table = build(receipts)
    keep = [at for at, _ in enumerate(table.columns) if any(line.cells[at].sort is not None for line in table.lines)]
    header = [_title(table.columns[at]) for at in keep]
    return header, [[_words(line.cells[at]) for at in keep] for line in table.lines]


def to_markdown(table: Table) -> str:
    """A pipe table; pipes, backslashes and markup in names are escaped."""
    rows = [[_markdown(_title(c)) for c in table.columns], ["---:" if c.numeric else "---" for c in table.columns]]
    rows += [[_markdown(_words(cell)) for cell in line.cells] for line in table.lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def to_csv(table: Table) -> str:
    """Raw numbers, an estimate as three columns (value, _low, _high), an empty field where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names: list[str] = ["kind"]
    for c in table.columns:
        names += [c.key, f"{c.key}_low", f"{c.key}_high"] if c.estimate else [c.key]
    writer.writerow(names)
    for line in table.lines:
        row: list[Any] = [line.kind]
        for c, cell in zip(table.columns, line.cells):
            row += [cell.sort, cell.low, cell.high] if c.estimate else [cell.sort]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def to_latex(table: Table) -> str:
    """A booktabs `tabular`, tasks as a spanning first header line."""
    top, spans, at = [], [], 0
    while at < len(table.columns):
        group, end = table.columns[at].group, at
        while end < len(table.columns) and table.columns[end].group == group:
            end += 1
        top.append(rf"\multicolumn{{{end - at}}}{{c}}{{{latex(group)}}}" if group else " & ".join([""] * (end - at)))
        spans += [rf"\cmidrule(lr){{{at + 1}-{end}}}"] if group else []
        at = end
    lines = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in table.columns)}}}"]
    lines += [r"\toprule"]
    lines += [" & ".join(top) + r" \\", " ".join(spans)] if spans else []
    lines += [" & ".join(latex(c.title) for c in table.columns) + r" \\", r"\midrule"]
    before = None
    for line in table.lines:
        if before in ("floor", "base") and line.kind == "run":
            lines.append(r"\midrule")
        before = line.kind
        lines.append(" & ".join(latex(_words(cell)) for cell in line.cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """Text in which nothing is LaTeX."""
    return "".join(_LATEX.get(c, " " if c.isspace() else c) for c in text)


def _title(column: Column) -> str:
    return f"{column.group} {column.title}".strip()


def _words(cell: Cell) -> str:
    return f"{cell.text} {cell.detail}".strip()


def _markdown(text: str) -> str:
    for mark in "\\|`*_<>":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
