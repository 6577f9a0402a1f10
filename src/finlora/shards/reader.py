"""Reading a folder of shards: sequences of text.Tokens over memory maps, as train.fit takes them.

Piece i of a document of t tokens is tokens i L .. (i + 1) L of it, L = row_tokens predictions, t - 1 in all: what
`data.pieces` cuts.  With `join` a shard counts as one document: rows are full whatever the length of texts, and the token
before a document is the end of another.

A piece is found in O(log n).  At most OPEN shards are mapped at a time and their pages are handed back every DROP bytes, so
that resident memory is what a few shards need, however large the corpus.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..errors import FinloraError, unknown
from ..text import Tokens
from . import plan
from . import words as wording
from .build import FORMAT, MANIFEST
from .unit import SPLITS, sizes_fit

OPEN, DROP, TOUCH = 64, 64 << 20, 1 << 16  # TOUCH: what the system maps at least when a page is read
_Open = tuple[tuple[np.ndarray, np.memmap], np.ndarray, np.ndarray]


class _Pieces(Sequence[Tokens]):
    """What is indexed like a list by way of `_at`: piece i, 0 <= i < len; from the end below 0; of a slice a list."""

    @overload
    def __getitem__(self, i: int) -> Tokens: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tokens]: ...
    def __getitem__(self, i):
        n = len(self)
        if isinstance(i, slice):
            return [self._at(k) for k in range(*i.indices(n))]
        if not -n <= i < n:
            raise IndexError(f"piece {i} of {n}")
        return self._at(i % n)

    @abstractmethod
    def _at(self, i: int) -> Tokens: ...


class Shards(_Pieces):
    """One split of a folder of shards as a sequence of pieces.

    documents, tokens, bytes ({source: bytes of text}) are those of the split, without weights; sha256: of its tokens, file by
    file; predictions: of all its pieces, without weights; id of a piece: SHARD.SPLIT:TOKEN.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], split: str, row_tokens: int, join: bool, weights: Mapping[str, float]):
        self.folder, self.split, self.row_tokens, self.join = folder, split, row_tokens, join
        self._dtype = np.dtype(manifest["dtype"])
        counts = manifest["counts"][split]
        self.documents, self.tokens, self.bytes = counts["documents"], counts["tokens"], counts["bytes"]
        files = "".join(shard[split]["sha256"] for shard in manifest["shards"] if shard[split]["documents"])
        self.sha256 = hashlib.sha256(files.encode()).hexdigest()
        self._held: OrderedDict[int, _Open] = OrderedDict()
        self._sizes: list[int] = []
        self._touched = 0
        self._names: list[str] = []
        by_source: list[list[int]] = [[] for _ in manifest["paths"]]  # pieces of each of its shards
        self._first = []  # number of the first shard of each source
        n_shards = 0
        for source, counted in enumerate(by_source):
            self._first.append(n_shards)
            for shard in manifest["shards"]:
                if shard["source"] == source and shard[split]["documents"]:
                    self._names.append(shard["name"])
                    self._sizes.append(shard[split]["tokens"])
                    counted.append(int(self._pieces(n_shards, shard[split]["tokens"])[-1]))
                    n_shards += 1
        self.predictions = self.tokens - (n_shards if join else self.documents)
        self._ends = [np.cumsum(counted, dtype=np.int64) for counted in by_source]
        self._copies: list[tuple[int, Fraction]] = []  # (source, share of its pieces)
        for source, weight in enumerate(weights.values()):
            times, rest = divmod(Fraction(round(weight * plan.FINEST), plan.FINEST), 1)
            self._copies += [(source, Fraction(1))] * int(times) + [(source, rest)] * bool(rest)
        sizes = [int(self._ends[s][-1] * share) if len(self._ends[s]) else 0 for s, share in self._copies]
        self._bounds = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def _at(self, i: int) -> Tokens:
        copy = int(self._bounds.searchsorted(i, "right"))
        source, share = self._copies[copy]
        piece = spread(i - (int(self._bounds[copy - 1]) if copy else 0), share)
        ends = self._ends[source]
        shard = int(ends.searchsorted(piece, "right"))
        return self._piece(self._first[source] + shard, piece - (int(ends[shard - 1]) if shard else 0))

    def __iter__(self) -> Iterator[Tokens]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self):
        raise TypeError("shards are opened anew in each process")

    def _piece(self, shard: int, piece: int) -> Tokens:
        (tokens, _), ends, counted = self._open(shard)
        if self.join:
            begin, end, k = 0, len(tokens), piece
        else:
            d = int(counted.searchsorted(piece, "right"))
            k = piece - (int(counted[d - 1]) if d else 0)
            begin, end = int(ends[d - 1]) if d else 0, int(ends[d])
        at = begin + k * self.row_tokens
        ids = tuple(tokens[at : min(at + self.row_tokens + 1, end)].tolist())
        self._touched += TOUCH + len(ids) * self._dtype.itemsize
        if self._touched > DROP:
            self._touched = 0
            for (_, mapped), *_ in self._held.values():
                _hand_back(mapped)
        return Tokens(ids, (1.0,) * len(ids), f"{self._names[shard]}.{self.split}:{at}")

    def _open(self, shard: int) -> _Open:
        """((tokens, their map), ends of documents, pieces up to the end of each document) of a shard."""
        if shard in self._held:
            self._held.move_to_end(shard)
            return self._held[shard]
        tokens = np.memmap(self._file(shard, ".tokens"), self._dtype, "r")  # a plain view of it is cut twice as fast
        if len(tokens) != self._sizes[shard]:
            raise FinloraError(f"`{self._file(shard, '.tokens')}` was replaced while it was read", "start again: the folder holds other shards now")
        ends = np.fromfile(self._file(shard, ".ends"), "<i8") if not self.join else np.zeros(0, np.int64)
        self._held[shard] = held = ((tokens.view(np.ndarray), tokens), ends, self._pieces(shard, len(tokens), ends))
        if len(self._held) > OPEN:
            self._held.popitem(last=False)
        return held

    def _pieces(self, shard: int, n_tokens: int, ends: np.ndarray | None = None) -> np.ndarray:
        """How many pieces there are up to the end of each document, or in join of the shard."""
        if self.join:
            lengths = np.array([n_tokens])
        else:
            lengths = np.diff(np.fromfile(self._file(shard, ".ends"), "<i8") if ends is None else ends, prepend=0)
        return np.cumsum(-(-np.maximum(lengths - 1, 0) // self.row_tokens))

    def _file(self, shard: int, ending: str) -> Path:
        return self.folder / f"{self._names[shard]}.{self.split}{ending}"


class _Thinned(_Pieces):
    def __init__(self, pieces: Sequence[Tokens], most: int):
        self.pieces, self.share = pieces, Fraction(most, len(pieces))

    def __len__(self) -> int:
        return int(len(self.pieces) * self.share)

    def _at(self, i: int) -> Tokens:
        return self.pieces[spread(i, self.share)]


def thinned(pieces: Sequence[Tokens], most: int) -> Sequence[Tokens]:
    """At most `most` of the pieces, evenly spread: enough of a large validation split to watch the loss."""
    return _Thinned(pieces, most) if 0 < most < len(pieces) else pieces


def spread(i: int, share: Fraction) -> int:
    """The i-th of the places that a share in (0, 1] takes evenly from 0, 1, 2, ...: the least k with (k + 1) share >= i + 1."""
    return -(-(i + 1) * share.denominator // share.numerator) - 1


def open_shards(
    folder: str | Path,
    row_tokens: int,
    *,
    join: bool = False,
    tokenizer: Any = None,
    weights: Mapping[str, float] | None = None,
    verify: bool = False,
) -> tuple[Shards, Shards]:
    """(train, validation) of a folder of shards, cut into pieces of `row_tokens` predictions.

    join: pieces run on from document to document. tokenizer: the one that the model has, to be compared.  weights: in place
    of those the folder was made with, by the same names.  verify: read everything, and compare with its sha256.
    Raises: FinloraError for what is no folder of shards, a file of another size than the manifest says, a source that has
    changed since (named), another tokenizer.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    if row_tokens < 1:
        raise FinloraError(f"row_tokens is {row_tokens}", "at least 1")
    if tokenizer is not None and wording.of(tokenizer).sha256 != manifest["tokenizer"]["sha256"]:
        raise FinloraError(f"the shards in `{folder}` were made with another tokenizer", f"use the one in {folder / 'tokenizer.json'}, or tokenise again")
    for shard in manifest["shards"]:
        for name in SPLITS:
            base = folder / f"{shard['name']}.{name}"
            if (file := sizes_fit(base, shard[name], manifest["dtype"])) is not None:
                raise FinloraError(f"`{file}` is missing or cut short", "copy the folder again, or tokenise again")
            if verify and shard[name]["documents"] and _digest(Path(f"{base}.tokens")) != shard[name]["sha256"]:
                raise FinloraError(f"`{base}.tokens` is altered: its sha256 is not the manifest's", "copy the folder again, or tokenise again")
    plan.check(manifest["sources"], manifest["paths"])
    mixed = dict(manifest["weights"])
    for name, weight in (weights or {}).items():
        if name not in mixed:
            raise unknown("source", name, mixed, "weights")
        plan.check_weight(name, weight)
        mixed[name] = float(weight)
    even = dict.fromkeys(mixed, 1.0)
    return Shards(folder, manifest, "train", row_tokens, join, mixed), Shards(folder, manifest, "validation", row_tokens, join, even)


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        form = manifest["format"]
        manifest["shards"], manifest["dtype"], manifest["counts"], manifest["weights"]  # noqa: B018
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FinloraError(f"`{folder}` is not a folder of shards: {file.name} {'is not there' if isinstance(error, FileNotFoundError) else 'cannot be read'}", "make one with shards.tokenise") from None
    if form != FORMAT:
        raise FinloraError(f"`{folder}` holds shards of format {form}, this version reads {FORMAT}", "tokenise again")
    return manifest


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hand_back(tokens: np.memmap) -> None:
    """Let the system take the map's pages from this process; they come back from the file when read."""
    held = getattr(tokens, "_mmap", None)
    if hasattr(held, "madvise"):
        held.madvise(mmap.MADV_DONTNEED)
