"""A user's own task from one TOML file, without code.

    name = "tickets"
    question = '''
    Which desk should answer this ticket? Please choose an answer from {{billing/shipping/returns}}.
    Ticket from {country}: {text}
    Answer:'''
    labels = ["billing", "shipping", "returns"]     or  answer = "number"  or  answer = "text"
    column = "desk"                                 the column of the right answer

`{country}` is a column of the file; `{{` and `}}` are braces. White space around the template goes, and one space is added
behind it, since a label follows as running text.  The rows lie beside the TOML file, or in data.dir: `tickets_train.jsonl`,
`tickets/test.csv`, `test.parquet` and so on (finlora.rows), or under the names that [files] gives.

Everything is checked when the file is read; a problem is one line with the file, the key, the value and the remedy, and all
problems are told at once.  The template is filled by plain replacement: it can neither call nor reach into anything.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import FinloraError, Problems, unknown
from .fields import convert, read_fields, setting
from .numbers import number_of, numbers_match, read_number
from .rows import SPLITS
from .score import METRICS, OF_KIND
from .tasks import (
    Source,
    Task,
    check_labels,
    cluster_of,
    column_of,
    label_in,
    mark_equal,
    normalise,
    place_of,
    read_label,
    text_in,
)
from .text import Example

ANSWERS = ("number", "text")
LARGEST = 1 << 20  # bytes of a task's file
_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Own:
    """What a task's TOML file may say; [files] is read apart."""

    name: str = setting("", "the task's name in tables and receipts")
    question: str = setting("", "the prompt, with {column} where the row's text goes")
    column: str = setting("answer", "the column that holds the right answer", filled=True)
    labels: tuple[str, ...] = setting((), "the answers offered, at least two")
    answer: str = setting("", "number or text, where there are no labels")
    codes: dict[str, str] = field(default_factory=dict)
    cluster: tuple[str, ...] = setting((), "columns that rows which belong together share, such as a company; else the texts of the prompt")
    system: str = setting("", "what stands above every question")
    metric: str = setting("", "the primary figure, such as accuracy, macro_f1 or numeric")
    max_new: int = setting(0, "tokens that a said answer needs; 0: as the run says", low=0, high=1 << 16)
    tolerance: float = setting(0.0, "share of the gold number by which an answer may miss it", low=0.0, below=1.0)
    licence: str = setting("", "the licence of the rows")
    errata: str = setting("", "what is known to be wrong with the rows")


def load(path: str | Path) -> Task:
    """The task that a TOML file describes.

    Raises: FinloraError (Problems for several) naming the file and the key, for whatever is wrong with it.
    """
    path = Path(path)
    table = _table(path)
    where = f" in {path}"
    problems: list[FinloraError] = []
    files = _files(table.pop("files", {}), where, problems)
    values = read_fields(Own, {k: v for k, v in table.items() if k != "codes"}, "task", where, problems)
    codes = _codes(table.get("codes", {}), values.get("labels", ()), where, problems)
    own = Own(**values, codes=codes)
    kind = "label" if own.labels else own.answer
    parts: list[tuple[str, str]] = []
    for check in (_check_name, _check_answer, _check_cluster, _check_metric):
        try:
            check(own, kind, where)
        except FinloraError as e:
            if not any(p.message.startswith(e.message.split(" ")[0]) for p in problems):
                problems.append(e)
    try:
        parts = template(own.question, where)
    except FinloraError as e:
        problems.append(e)
    if problems:
        raise problems[0] if len(problems) == 1 else Problems(problems)
    return Task(
        name=own.name,
        labels=own.labels,
        kind=kind,
        way="choose" if own.labels else "say",
        examples=_examples(own, kind, parts),
        read={"label": read_label, "number": read_number, "text": _read_text}[kind],
        mark={"label": mark_equal, "number": _near(own.tolerance), "text": _mark_text}[kind],
        source=Source(licence=own.licence or "not stated", files=files, home=str(path.resolve().parent)),
        errata=own.errata,
        metric=own.metric or OF_KIND[kind][0],
        max_new=own.max_new,
        group="own",
    )


record = load  # the registry's name for it


def template(question: str, where: str = "") -> list[tuple[str, str]]:
    """[(text, column)]: each text with the column that follows it, "" for none. One space ends the last text, no white space begins the first.

    Raises: FinloraError for a brace alone, an empty or nested hole, or no column at all.
    """
    question = question.strip()
    parts, text, end = [], "", 0
    for hole in _HOLE.finditer(question):
        text += question[end : hole.start()]
        end = hole.end()
        if hole[0] in ("{{", "}}"):
            text += hole[0][0]
        elif hole[1] is None or not hole[1].strip():
            shown = " ".join(question[max(0, hole.start() - 12) : hole.end() + 12].split())
            raise FinloraError(f"task.question has a brace that opens or closes no column{where}: `{shown}`", "write {column}, and {{ or }} for a brace")
        else:
            parts.append((text, hole[1].strip()))
            text = ""
    if not parts:
        raise FinloraError(f"task.question names no column{where}", "write {column} where the row's text goes, as in `Text: {text}`")
    return [*parts, (text + question[end:] + " ", "")]


def fill(parts: list[tuple[str, str]], row: Mapping[str, Any], place: str) -> tuple[str, list[str]]:
    """(the prompt, the row's texts in it). Numbers stand as Python writes them. Raises: FinloraError for a missing or blank cell."""
    prompt, texts = "", []
    for text, column in parts:
        prompt += text
        if column:
            value = row[column_of(row, (column,), place, f"`{column}`")]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            texts.append(str(value) if number else text_in(row, column, place))
            prompt += texts[-1]
    return prompt, texts


def _examples(own: Own, kind: str, parts: list[tuple[str, str]]) -> Callable[[Mapping[str, Any], int], Iterator[Example]]:
    above = (("system", own.system),) if own.system else ()

    def examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
        place = place_of(row, index)
        prompt, texts = fill(parts, row, place)
        value = row[column_of(row, (own.column,), place, "answer")]
        if kind == "label":
            gold = answer = label_in(value, own.labels, place, own.codes)
        elif kind == "number":
            if isinstance(value, bool) or number_of(value) is None:
                raise FinloraError(f"{place}: answer {value!r:.40} in column `{own.column}` is not a number", "such as 12.5, $1,577.00 or 14%")
            gold = answer = str(value).strip()
        else:
            gold = answer = " ".join(text_in(row, own.column, place).split())
        together = [str(row[column_of(row, (c,), place, "cluster")]) for c in own.cluster]
        yield Example(f"{own.name}-{index}", (*above, ("user", prompt)), gold, answer, cluster_of(*(together or texts)), own.labels)

    return examples


def _near(tolerance: float) -> Callable[[Any, Any], float]:
    return lambda gold, answer: float(numbers_match(gold, answer, rel=tolerance))


def _read_text(text: str, labels: Any = ()) -> str | None:
    return next((" ".join(line.split()) for line in text.splitlines() if re.search(r"\w", line)), None)


def _mark_text(gold: Any, answer: Any) -> float:
    return float(answer is not None and normalise(str(answer)) == normalise(str(gold)))


# -- reading the file --------------------------------------------------------------------------------------------------


def _table(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError) as e:
        raise FinloraError(f"cannot read task file {str(path)!r:.120}: {getattr(e, 'strerror', None) or e}", "name a TOML file, as in tasks/mine.toml") from None
    if data is None:
        raise FinloraError(f"task file {path} has more than {LARGEST} bytes", "the rows belong in a file of their own, beside it")
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise FinloraError(f"{path}:{line}: byte 0x{data[e.start]:02x} is not UTF-8", "save the file as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        told = re.search(r"line (\d+)", str(e))
        at = int(told[1]) if told else text.count("\n") + 1
        raise FinloraError(f"{path}:{at}: not TOML: {re.sub(r' *[(]at .*[)]', '', str(e))}", "texts stand in quotes, of several lines in three") from None
    except RecursionError:
        raise FinloraError(f"{path}: lists within lists too deep to read", "a task's file has none") from None


def _files(value: Any, where: str, problems: list[FinloraError]) -> dict[str, tuple[str, ...]]:
    """[files]: split -> names, which must stay in the folder."""
    out: dict[str, tuple[str, ...]] = {}
    if not isinstance(value, Mapping):
        problems.append(FinloraError(f"task.files = {value!r:.40}{where} is no table", 'write [files] and below it test = "test.csv"'))
        return out
    for split, names in value.items():
        if split not in SPLITS:
            problems.append(unknown("split", split, SPLITS, f"[files]{where}"))
            continue
        try:
            out[split] = convert(names, tuple[str, ...], f"task.files.{split}", where)
        except FinloraError as e:
            problems.append(e)
            continue
        for name in out[split]:
            parts = re.split(r"[/\\]", name)
            if not name.strip() or "\0" in name or ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", name):
                problems.append(FinloraError(f"task.files.{split} = {name!r:.60}{where} leads out of the folder", "name a file in the folder, or below it"))
    return out


def _codes(value: Any, labels: tuple[str, ...], where: str, problems: list[FinloraError]) -> dict[str, str]:
    """[codes]: what a cell says -> the label it means."""
    try:
        codes = convert(value, dict[str, Any], "task.codes", where)
    except FinloraError as e:
        problems.append(e)
        return {}
    for code, label in codes.items():
        if label not in labels:
            problems.append(FinloraError(f"task.codes.{code} = {label!r:.60}{where} is not one of the labels", f"there are: {', '.join(labels) or 'none'}"))
    return codes


def _check_name(own: Own, kind: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", own.name):
        raise FinloraError(f"task.name = {own.name!r:.60}{where} is no name", "letters, digits, `_`, `-` and `.`, as in `tickets`")


def _check_answer(own: Own, kind: str, where: str) -> None:
    if own.labels and own.answer:
        raise FinloraError(f"task.labels and task.answer both stand{where}", "labels are offered, or a number or text is asked for: keep one")
    if own.labels:
        check_labels(own.labels, f"task.labels{where}")
    elif not own.answer:
        raise FinloraError(f"task.labels is missing{where}", "list the answers, or write answer = \"number\" or \"text\"")
    elif own.answer not in ANSWERS:
        raise unknown("answer", own.answer, ANSWERS, f"task.answer{where}")
    if own.tolerance and kind != "number":
        raise FinloraError(f"task.tolerance = {own.tolerance}{where} is of numbers", "it needs answer = \"number\"")


def _check_cluster(own: Own, kind: str, where: str) -> None:
    if not all(c.strip() for c in own.cluster):
        raise FinloraError(f"task.cluster names an empty column{where}", "leave the key out: rows of the same text then belong together")


def _check_metric(own: Own, kind: str, where: str) -> None:
    if own.metric and own.metric not in METRICS:
        raise unknown("metric", own.metric, METRICS, f"task.metric{where}")
