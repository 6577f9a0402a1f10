"""Files become rows: plain dicts, each with its place ("file:line") for messages. No torch.

    read_rows(task, "test", "data/finlora")        rows, as the file has them
    read_examples(task, "test", "data/finlora")    the same through task.examples
    split_validation(examples, 0.1, seed)          by cluster: no text on both sides
    overlap(train, test)                           texts of the test that were trained on

A file is found in the folder that was given, by the first of: `TASK/SPLIT.*` and `TASK/` + the names the task knows; those
names in the folder itself (`fpb_test.jsonl`, `sent_valid.csv`) or in its `SPLIT/`; a file with all splits of known extent;
`SPLIT.*` (a user's own two files, or a hub folder of parquet shards, also under `data/`).  A task that ships with the
package (`source.package`) is read from inside it where no folder is given.

How this differs from the usual way: nothing is repaired in silence.  A line cut short, another encoding, a missing
column, or a link that leads out of the folder stops the run with the file and line named.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from . import conll
from .errors import FinloraError, unknown
from .tasks import PLACE, Task
from .text import Example

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".conll")
LARGEST = 1 << 30  # bytes of an unpacked file: a small archive can hold any number of zeros
EMBEDDED = ("embedded", "tasks")


def read_rows(task: Task, split: str, dir: str | Path | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """The task's rows of that split, the first `limit` of them if given.

    Raises: FinloraError for a folder or file that is missing, empty, broken, in another encoding, or out of the folder.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise FinloraError(f"limit is {limit!r}", "give a whole number of rows, 1 or more")
    files, (start, stop) = find(task, split, dir)
    rows = list(islice((row for f in files for row in _read(f)), start, _end(start, stop, limit)))
    if not rows:
        raise FinloraError(f"{_names(files)} has no rows for {split}", "the file may be cut short; fetch it again")
    return rows


def read_examples(task: Task, split: str, dir: str | Path | None = None, limit: int | None = None) -> list[Example]:
    """The Examples of `read_rows`, in order. `limit` counts rows: one row of headline gives nine examples.

    Raises: as read_rows; FinloraError for a row that the task cannot use.
    """
    return [e for i, row in enumerate(read_rows(task, split, dir, limit)) for e in task.examples(row, i)]


def file_digest(task: Task, split: str, dir: str | Path | None = None) -> str:
    """sha256 of the file that read_rows reads (of its shards' bytes one after another), in hex."""
    digest = hashlib.sha256()
    for path in find(task, split, dir)[0]:
        digest.update(_bytes(path))
    return digest.hexdigest()


def find(task: Task, split: str, dir: str | Path | None = None) -> tuple[list[Path], tuple[int, int | None]]:
    """The files that hold the split, and the range of rows in them.

    Raises: FinloraError listing what was looked for.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    dir = dir or task.source.home
    if not dir:
        if not task.source.package:
            raise FinloraError(f"the rows of task `{task.name}` do not ship with finlora", "name the folder that holds them: data.dir, or --data DIR")
        root = Path(str(resources.files("finlora").joinpath(*EMBEDDED)))
        names = (*task.source.names(split), *(f"{task.source.package}_{split}{e}" for e in ENDINGS))
        candidates = [(root, name, (0, None)) for name in names]
    else:
        root = Path(dir)
        if not root.exists():
            raise FinloraError(f"no folder {root}", "give the folder that holds the data files")
        if not root.is_dir():
            raise FinloraError(f"{root} is a file, not a folder", f"give the folder it lies in: {root.parent}")
        candidates = list(_candidates(task, split, root))
    for folder, name, extent in candidates:
        files = [_inside(root, f) for f in sorted(folder.glob(name)) if f.is_file()] if folder.is_dir() else []
        if files:
            return files, extent
    names = [*task.source.names(split), *(n for n, extents in task.source.whole.items() if split in extents)]
    if not task.source.package or dir:
        names += [f"{task.stem}/{split}.jsonl", f"{split}.jsonl, .csv or .parquet"]
    try:
        here = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    except OSError as e:
        raise FinloraError(f"cannot read {root}: {e.strerror or e}", "check the folder and its permissions") from None
    found = ", ".join(here[:6]) + (f" and {len(here) - 6} more" if len(here) > 6 else "") if here else "nothing"
    raise FinloraError(f"no {split} file of task `{task.name}` in {root}: looked for {', '.join(names)}", f"it holds {found}")


def split_validation(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation): about `fraction` of the examples held out, in whole clusters, each in its first order.

    Clusters are ranked by a hash of seed and cluster, so that the split depends neither on the order of the rows nor on
    the other clusters' sizes; an example without a cluster is its own. A fraction of 0 holds out nothing.

    Raises: FinloraError if the fraction is not in [0, 1), or the examples have too few clusters to split.
    """
    if not 0 <= fraction < 1:
        raise FinloraError(f"a validation share of {fraction}", "at least 0 and below 1")
    if not fraction:
        return list(examples), []
    sizes: dict[str, int] = {}
    for e in examples:
        sizes[_cluster(e)] = sizes.get(_cluster(e), 0) + 1
    if len(sizes) < 2:
        raise FinloraError(f"{len(examples)} examples of {len(sizes)} different text(s) cannot be split for validation", "set data.validation = 0")
    held: set[str] = set()
    count, wanted = 0, fraction * len(examples)
    for cluster in sorted(sizes, key=lambda c: (hashlib.sha256(f"{seed}:{c}".encode()).digest(), c)):
        if held and (count + sizes[cluster] / 2 > wanted or len(held) + 1 == len(sizes)):
            break
        held.add(cluster)
        count += sizes[cluster]
    return [e for e in examples if _cluster(e) not in held], [e for e in examples if _cluster(e) in held]


def overlap(train: Iterable[Example], test: Iterable[Example]) -> int:
    """How many clusters of the test also occur in train: texts whose answer was taught."""
    return len({_cluster(e) for e in train} & {_cluster(e) for e in test})


def _cluster(example: Example) -> str:
    return example.cluster or example.id


def _candidates(task: Task, split: str, root: Path) -> Iterator[tuple[Path, str, tuple[int, int | None]]]:
    """(folder, name or pattern, range of rows) of every place a split may be, in order."""
    own = root / task.stem
    known = task.source.names(split)
    general = [f"{s}{e}" for s in SPLITS[split] for e in ENDINGS] + [f"{s}-*.parquet" for s in SPLITS[split]]
    names = [f"{task.stem}_{s}{e}" for s in SPLITS[split] for e in ENDINGS]
    for folder, wanted in (
        (own, [*general, *known]),
        (own / "data", general),
        (root, [*known, *names]),
        (root / split, [*known, *names]),
    ):
        for name in wanted:
            yield folder, name, (0, None)
    for name, extents in task.source.whole.items():
        if split in extents:
            yield own, name, extents[split]
            yield root, name, extents[split]
    for folder in (root, root / "data"):
        for name in general:
            yield folder, name, (0, None)


def _inside(root: Path, path: Path) -> Path:
    """The path, if following its links does not lead out of the folder."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise FinloraError(f"{path} leads out of {root}", "copy the file into the folder, or give the folder it really lies in")
    return path


def _end(start: int, stop: int | None, limit: int | None) -> int | None:
    ends = [e for e in (stop, None if limit is None else start + limit) if e is not None]
    return min(ends) if ends else None


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise FinloraError(f"cannot read {path}: {e.strerror or e}", "check the file and its permissions") from None


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    data = _bytes(path)
    if path.suffix == ".gz":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as e:
            raise FinloraError(f"{path} is not a whole gzip file: {e}", "fetch it again") from None
        if len(data) > LARGEST:
            raise FinloraError(f"{path} unpacks to more than {LARGEST:,} bytes", "unpack it, and split it")
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise FinloraError(f"{path} is empty", "fetch it again, or give another folder")
    if path.suffix in (".txt", ".conll"):
        return conll.rows(data, path)
    if path.suffix == ".csv":
        return _csv(path, data)
    if path.suffix == ".json" and data.lstrip()[:1] == b"[":
        return _array(path, data)
    return _lines(path, data)


def _decode(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        begin = data.rfind(b"\n", 0, e.start) + 1
        line += data.count(b"\n", 0, begin)
        raise FinloraError(
            f"{path}:{line}: byte {e.start - begin + 1} of the line, 0x{data[e.start]:02x}, is not UTF-8",
            "write the file again as UTF-8; older sets are often Latin-1 or Windows-1252",
        ) from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FinloraError(f"{place}: expected an object with named columns, got {type(value).__name__}", 'such as {"context": ..., "target": ...}')
    return {**value, PLACE: place}


def _lines(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    for n, raw in enumerate(data.split(b"\n"), 1):  # not splitlines: a text may hold other line ends inside its quotes
        if not raw.strip():
            continue
        try:
            value = json.loads(_decode(raw, path, n))
        except (ValueError, RecursionError) as e:
            raise FinloraError(f"{path}:{n}: not a whole JSON object ({getattr(e, 'msg', e)})", "one object a line; the file may be cut short: fetch it again") from None
        yield _object(value, f"{path}:{n}")


def _array(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    try:
        values = json.loads(_decode(data, path, 1))
    except (ValueError, RecursionError) as e:
        line = getattr(e, "lineno", 1)
        raise FinloraError(f"{path}:{line}: not a whole JSON array ({getattr(e, 'msg', e)})", "fetch the file again") from None
    for n, value in enumerate(values, 1):
        yield _object(value, f"{path}:item {n}")


def _csv(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(_decode(data, path, 1), newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if header is None:
                header = [c.strip() for c in cells]
            elif cells:
                if len(cells) != len(header):
                    raise FinloraError(f"{path}:{line}: {len(cells)} cells, the header names {len(header)}", "quote cells that hold commas")
                yield {**dict(zip(header, cells)), PLACE: f"{path}:{line}"}
            line = reader.line_num + 1
    except csv.Error as e:
        raise FinloraError(f"{path}:{line}: not a whole CSV row ({e})", "the file may be cut short: fetch it again") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    n += 1
                    yield {**row, PLACE: f"{path}:row {n}"}
    except (pa.ArrowException, OSError) as e:
        raise FinloraError(f"{path} is not a whole Parquet file: {e}", "fetch it again") from None
