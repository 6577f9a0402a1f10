"""Data sets of the hub: streamed row by row when told to go online, and written down as JSONL, to be tokenised from there.

    spool(streamed("org/set", online=True), "texts/set", "org/set@main")

A spool that was killed goes on: what is in whole files is skipped in the stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..corpus import Document, row_document
from ..errors import FinloraError
from .unit import write

STATE = "spool.json"


def streamed(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    revision: str | None = None,
    column: str = "text",
    online: bool = False,
    load: Callable[..., Any] | None = None,
) -> Iterator[Document]:
    """The documents of a data set on the hub, row after row as they arrive; nothing of it is kept.

    column: which holds the text.  load: `datasets.load_dataset` by default.
    Raises: FinloraError without `online`, without the `datasets` package, for a row without that column, or a hub that
    does not answer.
    """
    if not online:
        raise FinloraError(f"data set `{name}` is on the hub, and nothing is asked of the network without --online", "add --online, or give files")
    if load is None:
        try:
            from datasets import load_dataset as load
        except ImportError:
            raise FinloraError(f"data set `{name}`: reading from the hub needs the package `datasets`", "pip install datasets") from None
    return _rows(load, name, split, config, revision, column)


def _rows(load: Callable[..., Any], name: str, split: str, config: str | None, revision: str | None, column: str) -> Iterator[Document]:
    try:
        for number, row in enumerate(load(name, config, split=split, revision=revision, streaming=True), 1):
            if column not in row:
                raise FinloraError(f"hub {name}, {split}: there is no column `{column}`", f"there are: {', '.join(sorted(map(str, row)))}")
            yield row_document({**row, "text": row[column]}, number, name, f"hub {name}, {split}, row {number}")
    except FinloraError:
        raise
    except Exception as error:  # the libraries beneath raise of many kinds
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FinloraError(f"cannot read `{name}` from the hub: {told}", "check its name and the network, then run again") from error


def spool(documents: Iterable[Document], folder: str | Path, name: str, file_bytes: int = 64 << 20, most: int = 0) -> dict[str, Any]:
    """Write the documents to `folder`/00000.jsonl, ...; returns {name, documents, files: {file: documents}, finished}.

    name: what the stream is (data set, revision, split): a folder goes on with the same one only.  most: documents; 0: all.
    The stream must give the same documents in the same order each time.
    Raises: FinloraError where the folder holds another stream, or the disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = _state(folder, name)
        if state["finished"] or (most and state["documents"] >= most):
            return state
        held: list[str] = []
        size = 0

        def flush() -> None:
            file = f"{len(state['files']):05d}.jsonl"
            write(folder / file, "".join(held).encode())
            state["files"][file] = len(held)
            state["documents"] += len(held)
            write(folder / STATE, json.dumps(state, indent=1).encode())

        for d in islice(documents, state["documents"], most or None):
            line = json.dumps({"id": d.id, "source": d.source, "text": d.text}, ensure_ascii=False) + "\n"
            held.append(line)
            size += len(line)
            if size >= file_bytes:
                flush()
                held, size = [], 0
        if held:
            flush()
        state["finished"] = not most or state["documents"] < most
        write(folder / STATE, json.dumps(state, indent=1).encode())
    except OSError as error:
        raise FinloraError(f"cannot write `{folder}`: {error.strerror or error}", "free some disk space or choose another folder, then run again") from error
    return state


def _state(folder: Path, name: str) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(not p.name.startswith(".") for p in folder.iterdir()):
            raise FinloraError(f"`{folder}` holds files that are not a spool's", "name an empty or new folder") from None
        state = {"name": name, "documents": 0, "files": {}, "finished": False}
        write(folder / STATE, json.dumps(state).encode())
    except ValueError as error:
        raise FinloraError(f"{folder / STATE} is not JSON ({error})", "remove the folder and begin again") from None
    if state["name"] != name:
        raise FinloraError(f"`{folder}` holds `{state['name']}`, not `{name}`", "name another folder")
    return state
