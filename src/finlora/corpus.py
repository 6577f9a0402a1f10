"""Documents for pretraining: JSONL with a `text` field, or plain text files, from files and folders.

Documents are read in sorted order of their files, so that the same folder gives the same run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import FinloraError


@dataclass(frozen=True)
class Document:
    """A text with where it came from."""

    id: str
    source: str
    text: str


def documents(paths: Sequence[str], sources: Sequence[str] = (), exclude: Sequence[str] = ()) -> Iterator[Document]:
    """The documents of files and folders, those of `sources` only (empty: all) and none of `exclude`.

    Raises: FinloraError for a missing path, an empty or non-UTF-8 file, a broken line (file:line named).
    """
    for file in files(paths):
        if not file.stat().st_size:
            raise FinloraError(f"data.text: `{file}` is empty", "remove it or give another file")
        for document in _jsonl(file) if file.suffix == ".jsonl" else _plain(file):
            if (not sources or document.source in sources) and document.source not in exclude:
                yield document


def files(paths: Sequence[str]) -> list[Path]:
    """The text files that `paths` name, folders expanded, sorted."""
    out: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".txt") and p.is_file())
            if not found:
                raise FinloraError(f"data.text: folder `{name}` holds no .jsonl or .txt file", "name the folder of your documents")
            out.extend(found)
        elif path.is_file():
            out.append(path)
        else:
            raise FinloraError(f"data.text: there is no file or folder `{name}`", "give the path of your documents")
    if not out:
        raise FinloraError("data.text is empty: pretraining needs documents", 'for example data.text = ["my/texts"]')
    return out


def _jsonl(file: Path) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                text = row["text"]
            except UnicodeDecodeError as error:
                raise FinloraError(f"{file}:{number} is not UTF-8 ({error.reason})", "save the file as UTF-8") from error
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise FinloraError(f"{file}:{number} is not a JSON object with a `text` field", "mend or remove the line") from error
            yield Document(str(row.get("id", number)), str(row.get("source", file.stem)), str(text))


def _plain(file: Path) -> Iterator[Document]:
    try:
        yield Document(file.name, file.stem, file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FinloraError(f"{file} is not UTF-8 (byte {error.start})", "save the file as UTF-8") from error
