"""One unit of work: its documents' hashes, or its documents as tokens on disk.  Run in this process or in a worker.

What is held out is drawn from the hash of a document's source and id, so that the choice never moves:
u = sha256(source/id)[:8] / 2^64 < share, the draw of pretraining from memory.  Two texts are duplicates where they are equal
in Unicode's composed form with every run of white space as one space; of each the first 8 bytes of BLAKE2b are kept, by
which two of a hundred million different texts are taken for one with probability 3e-4.  The parts of a plain text above 1 MiB
are compared one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import corpus, minhash
from ..errors import FinloraError
from . import words as wording
from .plan import Unit

SPLITS = ("train", "validation")
WORK = ".work"  # what a build keeps for itself inside its folder
BATCH = 1 << 18  # characters that are tokenised at a time
NAMED = 256  # sources of rows whose bytes a unit counts one by one


@dataclass
class _Split:
    """The files of one split of a unit as they are written."""

    base: Path
    tokens: int = 0
    ends: array[int] = field(default_factory=lambda: array("q"))  # eight bytes a document
    bytes: dict[str, int] = field(default_factory=dict)
    sha: Any = field(default_factory=hashlib.sha256)
    stream: Any = None

    def add(self, ids: np.ndarray, source: str, n_bytes: int) -> None:
        """One document."""
        if self.stream is None:
            self.stream = _part(self.base, ".tokens").open("wb")
        data = ids.tobytes()
        self.stream.write(data)
        self.sha.update(data)
        self.tokens += len(ids)
        self.ends.append(self.tokens)
        key = source if source in self.bytes or len(self.bytes) < NAMED else ""
        self.bytes[key] = self.bytes.get(key, 0) + n_bytes

    def close(self, keep: bool) -> dict[str, Any]:
        """Put the files in their places (or away) and tell what they hold."""
        if self.stream is not None and keep:
            sync(self.stream)
            with _part(self.base, ".ends").open("wb") as file:
                file.write(np.asarray(self.ends).astype("<i8").tobytes())
                sync(file)
            for ending in (".tokens", ".ends"):
                os.replace(_part(self.base, ending), f"{self.base}{ending}")
        elif self.stream is not None:
            self.stream.close()
            _part(self.base, ".tokens").unlink()
        elif keep:  # of the same unit, when more of it was wanted
            for ending in (".tokens", ".ends"):
                Path(f"{self.base}{ending}").unlink(missing_ok=True)
        return {"documents": len(self.ends), "tokens": self.tokens, "bytes": self.bytes, "sha256": self.sha.hexdigest()}


def hash_texts(unit: Unit, settings: dict[str, Any], folder: Path) -> None:
    """Write the hash of each of the unit's documents, uint64, to `.work/NAME.hashes`."""
    out = np.fromiter((text_hash(d.text) for d in chosen(unit, settings)), np.uint64)
    write(folder / WORK / f"{unit.name}.hashes", out.tobytes())


def sign_texts(unit: Unit, settings: dict[str, Any], folder: Path) -> None:
    """Write the MinHash signature of each of the unit's documents to `.work/NAME.signatures`."""
    path = folder / WORK / f"{unit.name}.signatures"
    part = _part(path, "")
    with part.open("wb") as file:
        for d in chosen(unit, settings):
            file.write(minhash.signature(minhash.of_words(d.text)).astype("<u4").tobytes())
        sync(file)
    os.replace(part, path)


def write_tokens(unit: Unit, settings: dict[str, Any], words: wording.Words, folder: Path, limit: int = 0) -> dict[str, Any]:
    """Write the unit's tokens, and last of all `.work/NAME.json`, which says that they are whole.  Returns its content.

    limit: stop behind the document with which this many tokens to train on are reached (then it is told); 0: never.
    Raises: FinloraError as corpus.read; for tokens that the vocabulary does not have.
    """
    dtype = np.dtype(settings["dtype"])
    dropped = folder / WORK / f"{unit.name}.drop"
    drop = np.fromfile(dropped, np.int64) if settings["dedup"] != "none" else np.zeros(0, np.int64)
    told = {"blank": 0, "duplicates": len(drop), "unknown": 0, "limit": 0}
    splits = {name: _Split(folder / f"{unit.name}.{name}") for name in SPLITS}
    encode, (begin, end, nothing) = wording.encoder(words), (np.array(t, np.int64) for t in (words.begin, words.end, ()))
    whole = False
    try:
        for held in _batches(enumerate(chosen(unit, settings, told)), drop):
            slices = [wording.slices(d.text) for d in held]
            encoded = iter(encode([s for several in slices for s in several]))
            for d, several in zip(held, slices):
                parts = [np.asarray(next(encoded), np.int64) for _ in several]
                ids = np.concatenate([nothing if d.part else begin, *parts, end if d.last else nothing])
                if len(ids) and not 0 <= ids.min() <= ids.max() < words.vocab:
                    raise FinloraError(
                        f"the tokenizer makes token {ids.max()} of document `{d.id}` of {d.source}, but has only {words.vocab}",
                        "save the tokenizer again, or choose another",
                    )
                if words.unknown is not None:
                    told["unknown"] += int((ids == words.unknown).sum())
                name = SPLITS[held_out(d, settings["validation"], settings["seed"])]
                splits[name].add(ids.astype(dtype), d.source, len(d.text.encode()))
                if limit and splits["train"].tokens >= limit:
                    told["limit"] = limit
                    break
            if told["limit"]:
                break
        whole = True
    finally:
        told.update({name: split.close(whole) for name, split in splits.items()})
    write(folder / WORK / f"{unit.name}.json", json.dumps(told).encode())
    return told


def chosen(unit: Unit, settings: dict[str, Any], told: dict[str, int] | None = None) -> Iterator[corpus.Document]:
    """The unit's documents that are asked for and not blank; `told` counts the blank ones."""
    only, exclude = set(settings["only"]), set(settings["exclude"])
    for span in unit.spans:
        for d in corpus.read(span):
            if (only and d.source not in only) or d.source in exclude:
                continue
            if d.text.isspace() or not d.text:
                if told is not None:
                    told["blank"] += 1
                continue
            yield d


def held_out(d: corpus.Document, share: float, seed: int = 0) -> bool:
    """Whether the document is held out."""
    key = f"{seed}:{d.source}/{d.id}" if seed else f"{d.source}/{d.id}"
    return share > 0 and int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 < share


def text_hash(text: str) -> int:
    """64 bits of a text, the same for texts that count as duplicates."""
    normal = " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "little")


def done(unit: Unit, settings: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """What `write_tokens` told of the unit, if its files are there and whole."""
    try:
        told = json.loads((folder / WORK / f"{unit.name}.json").read_text(encoding="utf-8"))
        sound = all(sizes_fit(folder / f"{unit.name}.{name}", told[name], settings["dtype"]) is None for name in SPLITS)
    except (OSError, ValueError, KeyError):
        return None
    return told if sound else None


def sizes_fit(base: Path, told: dict[str, Any], dtype: str) -> Path | None:
    """The first of a split's files that has not the size it should have, or None."""
    for ending, size in ((".tokens", told["tokens"] * np.dtype(dtype).itemsize), (".ends", told["documents"] * 8)):
        file = Path(f"{base}{ending}")
        if size and (not file.is_file() or file.stat().st_size != size):
            return file
    return None


def peak_bytes() -> int:
    """The largest resident set of this process so far (VmHWM); 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def sync(stream: Any) -> None:
    """Flush to the disk, and close."""
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def write(path: Path, data: bytes) -> None:
    """A whole file or none."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(data)
        sync(file)
    os.replace(part, path)


def _batches(documents: Iterator[tuple[int, corpus.Document]], drop: np.ndarray) -> Iterator[list[corpus.Document]]:
    """The documents whose place is not in `drop` (ascending), about BATCH characters at a time."""
    held: list[corpus.Document] = []
    size = next_dropped = 0
    for place, d in documents:
        if next_dropped < len(drop) and place == drop[next_dropped]:
            next_dropped += 1
        else:
            held.append(d)
            size += len(d.text)
        if size >= BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


def _part(base: Path, ending: str) -> Path:
    return base.with_name(f".{base.name}{ending}.{os.getpid()}.part")
