"""What a corpus is made of: sources, their fingerprints, and the units of work they are cut into.

A unit is what one process tokenises at a time and what a killed run keeps: stretches of neighbouring files of one source,
about `unit_bytes` of them.  Units follow from the files alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import corpus
from ..errors import FinloraError

END = 1 << 16  # bytes at a file's beginning and end that its quick fingerprint reads
WHOLE = 1 << 30  # bytes of all sources up to which fingerprints are whole, unless told otherwise
FINEST = 1000  # weights of sources are taken to a thousandth
LEAST, LARGEST, UNITS = 8 << 20, 256 << 20, 256  # bytes of a unit, and about how many there are between the two


@dataclass(frozen=True)
class Unit:
    """number: from 0. source: which of the paths it belongs to. spans: what is read, in order."""

    number: int
    source: int
    spans: tuple[corpus.Span, ...]

    @property
    def name(self) -> str:
        """Of its files in the folder of shards."""
        return f"{self.number:05d}"

    @staticmethod
    def from_dict(row: dict[str, Any]) -> Unit:
        """The unit that `dataclasses.asdict` took apart."""
        return Unit(row["number"], row["source"], tuple(corpus.Span(**span) for span in row["spans"]))


def sources(paths: Sequence[str]) -> list[list[Path]]:
    """The files of each path.

    Raises: FinloraError as corpus.files, and for a file that two paths name.
    """
    out, seen = [], {}
    for k, path in enumerate(paths):
        found = corpus.files([path])
        for file in found:
            if (other := seen.setdefault(file.resolve(), k)) != k:
                raise FinloraError(f"data.text: `{file}` is named by `{paths[other]}` and by `{path}`", "name it once, and give it a weight")
        out.append(found)
    if not out:
        corpus.files([])  # says what is missing
    return out


def unit_bytes(found: Sequence[Sequence[Path]]) -> int:
    """How large a unit is, by the size of all files."""
    return min(max(sum(f.stat().st_size for files in found for f in files) // UNITS, LEAST), LARGEST)


def units(found: Sequence[Sequence[Path]], paths: Sequence[str], most: int) -> Iterator[Unit]:
    """The units, in order of the sources (named by `paths`) and their files.

    Raises: FinloraError for a file that is empty or cannot be read.
    """
    number = 0
    for source, files in enumerate(found):
        held, size = [], 0
        for span in (span for file in files for span in corpus.spans(file, most, corpus.within(file, paths[source]))):
            if held and size + span.size > most:
                yield Unit(number, source, tuple(held))
                held, size, number = [], 0, number + 1
            held.append(span)
            size += span.size
        yield Unit(number, source, tuple(held))
        number += 1


def check_weight(name: str, weight: float) -> None:
    """Raises: FinloraError for a weight that is not from a thousandth to a thousand."""
    if not 1 / FINEST <= weight <= 1000:
        raise FinloraError(f"the weight of `{name}` is {weight}", f"from {1 / FINEST} to 1000")


def fingerprints(found: Sequence[Sequence[Path]], whole: bool | None) -> list[dict[str, Any]]:
    """One a file, with the number of its source; whole: with the sha256 of all of it (None: up to 1 GiB in all)."""
    if whole is None:
        whole = sum(f.stat().st_size for files in found for f in files) <= WHOLE
    return [{"source": k, **fingerprint(file, whole)} for k, files in enumerate(found) for file in files]


def fingerprint(file: Path, whole: bool) -> dict[str, Any]:
    """file, size, mtime_ns, ends (sha256 of both), and sha256 if `whole`.  Raises FinloraError where it cannot be read."""
    try:
        about = file.stat()
        with file.open("rb") as stream:
            h = hashlib.sha256(stream.read(END))
            stream.seek(max(about.st_size - END, 0))
            h.update(stream.read(END))
            out = {"file": str(file.absolute()), "size": about.st_size, "mtime_ns": about.st_mtime_ns, "ends": h.hexdigest()}
            if whole:
                stream.seek(0)
                out["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FinloraError(f"cannot read {file}: {error.strerror or error}", "check the file and its permissions") from None
    return out


def check(told: Sequence[dict[str, Any]], paths: Sequence[str]) -> None:
    """Compare the files of `paths` with their fingerprints.

    A file is unchanged if its size, its ends and its time are, or, at another time, its whole sha256.  A path that is not
    there any more is no change (shards travel without their text); a file that a folder lacks, or has more, is one.
    Raises: FinloraError naming the file.
    """
    remedy = "tokenise again into a new folder, or remove this one"
    for wanted in told:
        file = Path(wanted["file"])
        if not file.exists():
            if Path(paths[wanted["source"]]).is_dir():
                raise FinloraError(f"`{file}` is gone since its folder was tokenised", remedy)
            continue
        now = fingerprint(file, False)
        same = now["size"] == wanted["size"] and now["ends"] == wanted["ends"]
        if same and now["mtime_ns"] != wanted["mtime_ns"]:
            same = "sha256" in wanted and fingerprint(file, True)["sha256"] == wanted["sha256"]
        if not same:
            raise FinloraError(f"`{file}` has changed since it was tokenised", remedy)
    known = {wanted["file"] for wanted in told}
    for path in paths:
        for file in corpus.files([path]) if Path(path).is_dir() else ():
            if str(file.absolute()) not in known:
                raise FinloraError(f"`{file}` is new since its folder was tokenised", remedy)


def as_dict(unit: Unit) -> dict[str, Any]:
    """The unit as JSON keeps it."""
    return dataclasses.asdict(unit)
