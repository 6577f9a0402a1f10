"""Documents for pretraining, from files and folders: JSONL, Parquet and Arrow with a `text` column, or plain text.

Documents are read in sorted order of their files, so that the same folder gives the same run.  JSONL and plain text may be
packed (.gz, .zst).  Nothing is held but the document at hand: `read` walks a stretch of a file (a `Span`), and `spans` cuts
a file into stretches that can be read side by side and give, one after another, what the whole file gives.

A plain text file is one document, and its id the file's path within the folder that was named (or the file's name).  One of
more than PART bytes comes as several (`part` counts them, `last` marks the end), cut behind a line's end, all with one id:
what is held out by id is held out whole.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FinloraError

LINES, TABLES, PACKED = (".jsonl",), (".parquet", ".arrow", ".feather"), (".gz", ".zst")
ENDINGS = (*LINES, *TABLES, ".txt", *(a + b for a in (*LINES, ".txt") for b in PACKED))
PART, MARGIN = 1 << 20, 1 << 16  # bytes of a plain text's part, and how much further its line's end is looked for
LONGEST = 1 << 28  # bytes of one line of JSONL
ROWS = 256  # rows of a table that are unpacked at a time


@dataclass(frozen=True)
class Document:
    """A text with where it came from.  part, last: of a plain text file that comes in several."""

    id: str
    source: str
    text: str
    part: int = 0
    last: bool = True


@dataclass(frozen=True)
class Span:
    """A stretch of a file that is read by itself.

    start, stop: bytes of an unpacked text file, row groups of a Parquet file; stop None: to the end.
    first: number of its first line or row (from 1) or part (from 0).  size: its bytes on disk, roughly.
    name: id of a plain text; empty: the file's name.
    """

    file: str
    start: int = 0
    stop: int | None = None
    first: int = 0
    size: int = 0
    name: str = ""


def documents(paths: Sequence[str], sources: Sequence[str] = (), exclude: Sequence[str] = ()) -> Iterator[Document]:
    """The documents of files and folders, those of `sources` only (empty: all) and none of `exclude`.

    Raises: FinloraError for a missing path, an empty or non-UTF-8 file, a broken line (file:line named).
    """
    files(paths)  # says what is missing before anything is read
    for file, name in ((file, within(file, path)) for path in paths for file in files([path])):
        if not file.stat().st_size:
            raise FinloraError(f"data.text: `{file}` is empty", "remove it or give another file")
        for document in read(Span(str(file), name=name)):
            if (not sources or document.source in sources) and document.source not in exclude:
                yield document


def files(paths: Sequence[str]) -> list[Path]:
    """The files that `paths` name, folders expanded (less what is hidden in them), sorted.

    Raises: FinloraError for a path that is not there, a folder without a file of a known ending, or no path at all.
    """
    out: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.endswith(ENDINGS) and p.is_file() and not _hidden(p, path))
            if not found:
                raise FinloraError(
                    f"data.text: folder `{name}` holds no .jsonl, .txt, .parquet or .arrow file", "name the folder of your documents"
                )
            out.extend(found)
        elif path.is_file():
            out.append(path)
        else:
            raise FinloraError(f"data.text: there is no file or folder `{name}`", "give the path of your documents")
    if not out:
        raise FinloraError("data.text is empty: pretraining needs documents", 'for example data.text = ["my/texts"]')
    return out


def within(file: Path, path: str) -> str:
    """The file's path within the folder `path`; its name where it was named itself."""
    folder = Path(path).expanduser().absolute()
    return file.absolute().relative_to(folder).as_posix() if folder.is_dir() else file.name


def _hidden(file: Path, folder: Path) -> bool:
    """Whether the file lies in the folder under a name with a dot before it: what programs keep for themselves."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def spans(file: Path, most: int, name: str = "") -> list[Span]:
    """The file as stretches of about `most` bytes, cut at line ends, parts or row groups.  name: as of a Span.

    A packed or an Arrow file is one stretch: neither can be entered in its middle.
    Raises: FinloraError for an empty file, or a Parquet file that cannot be read.
    """
    with _whole(file):
        size = file.stat().st_size
    if not size:
        raise FinloraError(f"data.text: `{file}` is empty", "remove it or give another file")
    kind, packed, _ = _kind(file)
    if packed or kind == ".arrow" or (size <= most and kind != ".parquet"):
        return [Span(str(file), size=size, name=name)]
    with _whole(file):
        cuts = list({".parquet": _row_groups, ".jsonl": _line_ends, ".txt": _part_ends}[kind](file, most))
    return [
        Span(str(file), start, stop, first, size * (stop - start) // max(cuts[-1][0], 1), name)
        for (start, first), (stop, _) in zip(cuts, cuts[1:])
    ]


def read(span: Span) -> Iterator[Document]:
    """The documents of a stretch of a file, in order.

    Raises: FinloraError for what is not UTF-8, a broken line or row (file:line named), a missing `text` column, a packed
    file that is cut short.
    """
    file = Path(span.file)
    kind, _, stem = _kind(file)
    with _whole(file):
        if kind == ".txt":
            yield from _plain(file, span, stem)
            return
        for number, row in {".parquet": _parquet, ".arrow": _arrow, ".jsonl": _jsonl}[kind](file, span):
            yield row_document(row, number, stem, f"{file}:{number}")


def row_document(row: Any, number: int, stem: str, place: str) -> Document:
    """The document of a row: its `text`, with `id` and `source`, or its number and `stem` where it has none.

    Raises: FinloraError naming the place for what is no object with a string `text` that UTF-8 can hold.
    """
    if not isinstance(row, dict) or "text" not in row:
        raise FinloraError(f"{place} is not a JSON object with a `text` field", "fix or remove the line")
    text, id, source = row["text"], row.get("id"), row.get("source")
    if not isinstance(text, str):
        raise FinloraError(f"{place}: `text` is {'null' if text is None else type(text).__name__}, not a string", "fix or remove the line")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise FinloraError(f"{place}: `text` holds half of a surrogate pair, which is no character", "fix or remove the line") from None
    return Document(str(number if id is None else id), str(stem if source is None else source), text)


def _kind(file: Path) -> tuple[str, str, str]:
    """(kind: .jsonl .parquet .arrow or .txt; how it is packed, "" where it is not; the name without endings)."""
    packed = file.suffix if file.suffix in PACKED else ""
    bare = Path(file.name.removesuffix(packed))
    kind = ".arrow" if bare.suffix == ".feather" else bare.suffix if bare.suffix in (*LINES, *TABLES) else ".txt"
    if packed and kind in (".parquet", ".arrow"):
        raise FinloraError(f"data.text: `{file}` is a packed table", "unpack it: a table is compressed inside")
    return kind, packed, bare.stem


def _open(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return gzip.open(file)
    if file.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"), 1 << 18)
    return file.open("rb")


def _jsonl(file: Path, span: Span) -> Iterator[tuple[int, Any]]:
    with _open(file) as stream:
        if span.start:
            stream.seek(span.start)
        at, number = span.start, span.first or 1
        while span.stop is None or at < span.stop:
            line = stream.readline(LONGEST + 1)
            if not line:
                return
            if len(line) > LONGEST:
                raise FinloraError(f"{file}:{number} is a line of more than {LONGEST >> 20} MiB", "one document a line; cut what is longer")
            line, at = line.removeprefix(codecs.BOM_UTF8) if not at else line, at + len(line)
            if line.strip():
                try:
                    row = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise FinloraError(f"{file}:{number} is not UTF-8 ({error.reason})", "save the file as UTF-8") from error
                except (ValueError, RecursionError) as error:
                    raise FinloraError(f"{file}:{number} is not a JSON object with a `text` field", "fix or remove the line") from error
                yield number, row
            number += 1


def _plain(file: Path, span: Span, stem: str) -> Iterator[Document]:
    with _open(file) as stream:
        if span.start:
            stream.seek(span.start)
        at, number, held = span.start, span.first, b""
        while span.stop is None or at < span.stop:
            held += stream.read(PART + MARGIN + 1 - len(held))
            last = len(held) <= PART + MARGIN
            end = len(held) if last else PART + _reach(held[PART:])
            data, held = held[:end], held[end:]
            try:
                text = (data.removeprefix(codecs.BOM_UTF8) if not at else data).decode("utf-8")
            except UnicodeDecodeError as error:
                raise FinloraError(f"{file} is not UTF-8 (byte {at + error.start})", "save the file as UTF-8") from error
            yield Document(span.name or file.name, stem, text.replace("\r\n", "\n").replace("\r", "\n"), number, last)
            if last:
                return
            at, number = at + len(data), number + 1


def _reach(window: bytes) -> int:
    """How far into the MARGIN behind PART a part reaches: behind the first line end, else before a space or a character."""
    k = window.find(b"\n", 0, MARGIN) + 1
    if not k:
        k = max(window.find(b" ", 0, MARGIN), 0)
        while k < len(window) and window[k] & 0xC0 == 0x80:
            k += 1
    return k


def _line_ends(file: Path, most: int) -> Iterator[tuple[int, int]]:
    """(byte, number of the line there) of each cut, the file's ends included."""
    at, number, cut = 0, 1, 0
    yield cut, number
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            done = 0
            while (begin := max(cut + most - at, done)) < len(block) and (end := block.find(b"\n", begin) + 1):
                number, done, cut = number + block.count(b"\n", done, end), end, at + end
                yield cut, number
            number, at = number + block.count(b"\n", done), at + len(block)
    if at > cut:
        yield at, number


def _part_ends(file: Path, most: int) -> Iterator[tuple[int, int]]:
    """As _line_ends, of a plain text's parts."""
    size, at, number, begun = file.stat().st_size, 0, 0, 0
    yield 0, 0
    with file.open("rb") as stream:
        while size - at > PART + MARGIN:
            stream.seek(at + PART)
            at, number = at + PART + _reach(stream.read(MARGIN + 1)), number + 1
            if at - begun >= most:
                begun = at
                yield at, number
    yield size, number + 1


def _row_groups(file: Path, most: int) -> Iterator[tuple[int, int]]:
    """(row group, number of its first row) of each cut."""
    import pyarrow.parquet as pq

    held, row = 0, 1
    yield 0, 1
    with pq.ParquetFile(file) as table:
        groups = table.metadata.num_row_groups
        for k in range(groups):
            group = table.metadata.row_group(k)
            held, row = held + group.total_byte_size, row + group.num_rows
            if held >= most and k + 1 < groups:
                held = 0
                yield k + 1, row
    yield groups, row


def _parquet(file: Path, span: Span) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as pq

    number = span.first or 1
    with pq.ParquetFile(file, pre_buffer=False) as table:
        columns = _columns(table.schema_arrow.names, file)
        groups = range(span.start, table.metadata.num_row_groups if span.stop is None else span.stop)
        for batch in table.iter_batches(ROWS, row_groups=list(groups), columns=columns):
            yield from enumerate(batch.to_pylist(), number)
            number += batch.num_rows


def _arrow(file: Path, span: Span) -> Iterator[tuple[int, Any]]:
    """Either form of Arrow's file: the one with an index at its end (Feather), and the stream (Hugging Face datasets)."""
    import pyarrow as pa

    number = span.first or 1
    with file.open("rb") as stream:
        indexed = stream.read(6) == b"ARROW1"
    with pa.OSFile(str(file)) as stream:
        if indexed:
            table = pa.ipc.open_file(stream)
            batches = (table.get_batch(k) for k in range(table.num_record_batches))
        else:
            table = batches = pa.ipc.open_stream(stream)
        columns = _columns(table.schema.names, file)
        for batch in batches:
            for k in range(0, batch.num_rows, ROWS):
                yield from enumerate(batch.select(columns).slice(k, ROWS).to_pylist(), number + k)
            number += batch.num_rows


def _columns(names: Sequence[str], file: Path) -> list[str]:
    if "text" not in names:
        raise FinloraError(f"{file} has no column `text`", f"it has: {', '.join(names)}; rename the one that holds the text")
    return [name for name in ("text", "id", "source") if name in names]


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    """What a reader raises of a broken file, as one line that names it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | EOFError | zlib.error | ValueError) and not type(error).__module__.startswith("pyarrow"):
            raise
        raise FinloraError(f"{file} cannot be read whole: {_first_line(error)}", "it may be cut short or broken: fetch it again") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
