"""Records: what became of each example, as lines of JSON that a crash cannot spoil."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import FinloraError, unknown


@dataclass(frozen=True)
class Record:
    """What became of one example.

    id: unique within a file. cluster: the document it shares with others, "" for none. prompt: first 16 hex digits of the
    SHA-256 of the prompt. gold: the right answer. said: the generated text, None where only labels were compared.
    answer: what was read, None when unreadable. scores: log-likelihood of each label in nats. choice: the likeliest
    label. correct: mark from 0 to 1. way: "choose" or "say", where `answer` comes from.
    """

    id: str
    cluster: str
    prompt: str
    gold: Any
    said: str | None
    answer: Any
    scores: dict[str, float] | None
    choice: str | None
    correct: float
    way: str

    def to_json(self) -> str:
        """One line of JSON, without the newline.

        Raises FinloraError for a score that is not finite: JSON has no such number.
        """
        try:
            return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise FinloraError(f"record `{self.id}` cannot be written: {error}", "a model that yields NaN is broken") from None

    @staticmethod
    def from_json(line: str, place: str = "records") -> Record:
        """The record of one line; place (file:line) goes into the message.

        Raises FinloraError when the line is not a whole record.
        """
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise FinloraError(f"{place}: not a whole line of JSON", "the file was cut while it was written") from None
        if not isinstance(row, dict):
            raise FinloraError(f"{place}: a record is a JSON object, this is a {type(row).__name__}")
        for key in row:
            if key not in _FIELDS:
                raise unknown("record field", key, _FIELDS, place)
        missing = [key for key in _FIELDS if key not in row]
        if missing:
            raise FinloraError(f"{place}: the record lacks {', '.join(missing)}", "was it written by `finlora evaluate`?")
        mark, scores = row["correct"], row["scores"]
        if isinstance(mark, bool) or not isinstance(mark, (int, float)) or not 0 <= mark <= 1:
            raise FinloraError(f"{place}: correct is {mark!r}", "a mark lies between 0 and 1")
        for key in ("id", "cluster", "prompt", "way"):
            if not isinstance(row[key], str):
                raise FinloraError(f"{place}: {key} is {row[key]!r}", "it must be a string")
        if scores is not None and not isinstance(scores, dict):
            raise FinloraError(f"{place}: scores is {scores!r}", "it must map each label to its log-likelihood")
        return Record(**row)


_FIELDS = tuple(f.name for f in fields(Record))


def read_records(path: str | os.PathLike, repair: bool = False) -> list[Record]:
    """The records of a JSONL file, in file order.

    repair: a last line cut by a crash is dropped, in the file too, so that `append_records` can go on after it.
    Raises FinloraError naming file:line for anything else that is no record, and for a missing or unreadable file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FinloraError(f"cannot read records {path}: {error.strerror}", "`finlora evaluate` writes them") from None
    *whole, tail = data.split(b"\n")
    records = [_parse(line, f"{path}:{n}") for n, line in enumerate(whole, 1) if line.strip()]
    if not tail.strip():
        return records
    try:
        records.append(_parse(tail, f"{path}:{len(whole) + 1}"))
    except FinloraError:
        if not repair:
            raise
        os.truncate(path, len(data) - len(tail))
        return records
    if repair:  # a whole record that only lacks its newline
        _append(path, b"\n")
    return records


def append_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Adds records to the end of a JSONL file, made with its folder if missing.

    Raises FinloraError when the file cannot be written, or ends in half a line (a new record would be glued to it).
    """
    path = Path(path)
    text = "".join(record.to_json() + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    raise FinloraError(f"{path} ends in half a line", "read it with repair=True first")
    except OSError as error:
        raise FinloraError(f"cannot write records {path}: {error.strerror}", "is the disk full or read-only?") from None
    _append(path, text.encode("utf-8", "replace"))


def _append(path: Path, data: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise FinloraError(f"cannot write records {path}: {error.strerror}", "is the disk full or read-only?") from None


def _parse(line: bytes, place: str) -> Record:
    try:
        return Record.from_json(line.decode("utf-8"), place)
    except UnicodeDecodeError:
        raise FinloraError(f"{place}: not UTF-8", "records are UTF-8 JSON lines") from None
