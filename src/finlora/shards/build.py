"""Building a folder of shards: fingerprint, plan, hash or sign (where duplicates are dropped), tokenise, and put in place.

    sources -> units -> [hashes or signatures of texts -> which to drop] -> tokens -> manifest -> rename

All of it happens in `.NAME.part` beside the folder; a finished unit is kept there, so that a killed build goes on, and the
rename at the end makes the folder appear whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import locks
from ..errors import FinloraError, unknown
from . import plan, repeats, unit, workers
from . import words as wording
from .unit import SPLITS, WORK
from .workers import REQUEST, TOKENIZER

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "plan.jsonl"
DEDUP = {"exact": ("hash", "hashes", repeats.mark_equal), "near": ("sign", "signatures", repeats.mark_near)}  # what a unit does, leaves, and who reads it


def tokenise(
    sources: Sequence[str],
    tokenizer: Any,
    out: str | Path,
    *,
    workers: int = 1,
    dedup: str = "none",
    validation: float = 0.02,
    seed: int = 0,
    max_tokens: int = 0,
    weights: Mapping[str, float] | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    vocab: int = 0,
    whole: bool | None = None,
    unit_bytes: int = 0,
    overwrite: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """Tokenise files and folders into a folder of shards; returns its manifest, with "run" for how it went.

    tokenizer: its folder, or the object.  dedup: `exact` keeps the first of equal texts (white space aside), `near` of texts
    whose pieces of five words overlap by about four fifths (see repeats); all text is read once before.  validation: share of documents held out, by hash (see unit).  seed: of that hash.
    max_tokens: stop behind the document that brings so many to train on, in order of the sources; 0: all.
    weights: {source: how often its pieces count in an epoch} (2.5: twice, and every other piece a third time); 1 for others.
    only, exclude: of rows by their `source`.  vocab: entries of the model that will read them; 0: as the tokenizer says.
    whole: fingerprints of whole files; None: where all are below 1 GiB.  unit_bytes: of a shard's text; 0: by the size of all.
    The same call on a finished folder returns what is there; on a half-finished one it goes on; where another process
    writes the folder, as the runs of one study may, it waits for that one.
    Raises: FinloraError for sources that cannot be read or hold no document, settings that do not fit, a folder that holds
    something else, a full disk.
    """
    weights = _check(sources, dedup, validation, max_tokens, weights or {}, workers)
    words = _words(tokenizer, vocab, workers)
    found = plan.sources(sources)
    settings = {
        "format": FORMAT,
        "paths": [str(Path(p).expanduser().absolute()) for p in sources],
        "weights": weights,
        "sources": plan.fingerprints(found, whole),
        "tokenizer": {"sha256": words.sha256, "begin": words.begin, "end": words.end, "vocab": words.vocab, "unknown": words.unknown},
        "dtype": "<u2" if words.vocab <= 1 << 16 else "<u4",
        "dedup": dedup, "validation": validation, "seed": seed, "max_tokens": max_tokens,
        "only": sorted(only), "exclude": sorted(exclude), "unit_bytes": unit_bytes or plan.unit_bytes(found),
        "versions": {name: _version(name) for name in ("finlora", "numpy", "tokenizers")},
    }  # fmt: skip
    settings = json.loads(json.dumps(settings))  # as it will be read back
    out = Path(out)
    while True:
        if (finished := _finished(out, settings, overwrite)) is not None:
            return {**finished, "run": {"workers": workers, "reused": len(finished["shards"]), "peak_bytes": unit.peak_bytes(), "worker_peak_bytes": 0}}
        try:
            with _room(out, settings, words) as folder:
                if _finished(out, settings, overwrite) is not None:  # since we looked
                    shutil.rmtree(folder)
                    continue
                manifest, run = _fill(folder, found, settings, words, workers, progress)
                plan.check(settings["sources"], settings["paths"])  # nothing may have changed under our eyes
                unit.write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
                _put(folder, out)
            break
        except locks.Busy:
            time.sleep(0.2)
        except OSError as error:
            raise FinloraError(f"cannot write `{out}`: {error.strerror or error}", "free some disk space or choose another folder, then run again") from error
    for text in manifest["warnings"]:
        progress.note(text) if progress else warnings.warn(text, stacklevel=2)
    return {**manifest, "run": run}


def _check(sources, dedup, validation, max_tokens, weights, workers) -> dict[str, float]:
    """The settings' own rules; returns a weight for each source."""
    if isinstance(sources, str):
        raise FinloraError(f"data.text is the string `{sources}`", "give a list of paths")
    if dedup not in ("none", *DEDUP):
        raise unknown("way", dedup, ("none", *DEDUP), "dedup")
    if not 0 <= validation < 1:
        raise FinloraError(f"validation is {validation}", "a share of at least 0 and below 1")
    if max_tokens < 0 or workers < 1:
        raise FinloraError(f"max_tokens is {max_tokens} and workers {workers}", "at least 0 and 1")
    for name, weight in weights.items():
        if name not in sources:
            raise unknown("source", name, sources, "weights")
        plan.check_weight(name, weight)
    return {name: float(weights.get(name, 1.0)) for name in sources}


def _words(tokenizer: Any, vocab: int, workers: int) -> wording.Words:
    words = wording.of(tokenizer)
    if vocab and words.vocab > vocab:
        raise FinloraError(f"the tokenizer has {words.vocab} tokens, and the model only {vocab}", "train the tokenizer with fewer, or the model with more")
    if words.vocab > 1 << 32:
        raise FinloraError(f"the tokenizer has {words.vocab} tokens, more than 32 bits can number", "choose another tokenizer")
    if workers > 1 and not words.json:
        raise FinloraError(f"workers is {workers}, and this tokenizer ({type(tokenizer).__name__}) cannot be sent to another process", "set workers = 1, or give a tokenizer with a tokenizer.json")
    return words


def _fill(folder: Path, found: Any, settings: dict[str, Any], words: wording.Words, n: int, progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything of the folder but its manifest; returns (the manifest, how it went)."""
    work = folder / WORK
    if not (work / PLAN).exists():
        lines = (json.dumps(plan.as_dict(u)) + "\n" for u in plan.units(found, settings["paths"], settings["unit_bytes"]))
        unit.write(work / PLAN, "".join(lines).encode())
    total = sum(1 for _ in workers.units_of(work / PLAN))
    peak = 0
    if settings["dedup"] != "none":
        step, (what, left, mark) = _stepper(progress, "read", total), DEDUP[settings["dedup"]]
        todo = (u for u in workers.units_of(work / PLAN) if not (work / f"{u.name}.{left}").exists())
        peak = workers.work(what, todo, settings, words, folder, n, lambda u: step())
        mark(folder, workers.units_of(work / PLAN))
    told: dict[int, dict[str, Any]] = {}
    reached = _Reached(told, settings["max_tokens"])
    step, kept = _stepper(progress, "tokenise", total), []

    def todo() -> Iterator[plan.Unit]:
        for u in workers.units_of(work / PLAN):
            if reached.full():
                return
            if (whole := unit.done(u, settings, folder)) is not None:
                told[u.number] = whole
                kept.append(u.number)
                step()
            else:
                yield u

    def after(u: plan.Unit) -> bool:
        told[u.number] = unit.done(u, settings, folder)
        step()
        return not reached.full()

    peak = max(peak, workers.work("tokens", todo(), settings, words, folder, n, after, reached.lacking))
    last = _cut(folder, settings, words, told)
    shards = []
    for u in workers.units_of(work / PLAN):
        if u.number <= last:
            shards.append({"name": u.name, "source": u.source, **told[u.number]})
        else:
            for name in SPLITS:
                for ending in (".tokens", ".ends"):
                    (folder / f"{u.name}.{name}{ending}").unlink(missing_ok=True)
    run = {"workers": n, "reused": len(kept), "peak_bytes": unit.peak_bytes(), "worker_peak_bytes": peak}
    return _manifest(settings, shards), run


class _Reached:
    """How far the finished units reach from the first on without a gap, in tokens to train on."""

    def __init__(self, told: dict[int, dict[str, Any]], most: int):
        self.told, self.most = told, most
        self.next = self.tokens = 0

    def full(self) -> bool:
        """Whether max_tokens are reached."""
        while self.next in self.told and not (self.most and self.tokens >= self.most):
            self.tokens += self.told[self.next]["train"]["tokens"]
            self.next += 1
        return bool(self.most) and self.tokens >= self.most

    def lacking(self) -> int:
        """How many tokens are lacking; 0 where all are wanted."""
        return self.most and max(self.most - self.tokens, 1)


def _cut(folder: Path, settings: dict[str, Any], words: wording.Words, told: dict[int, dict[str, Any]]) -> int:
    """Do the unit in which max_tokens are reached again, up to there; returns the number of the last unit that counts."""
    most, tokens = settings["max_tokens"], 0
    for u in workers.units_of(folder / WORK / PLAN):
        if most and tokens + told[u.number]["train"]["tokens"] >= most:
            if told[u.number]["limit"] != most - tokens:
                told[u.number] = unit.write_tokens(u, settings, words, folder, most - tokens)
            return u.number
        tokens += told[u.number]["train"]["tokens"]
    return max(told)


def _manifest(settings: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    counts: dict[str, Any] = {key: sum(s[key] for s in shards) for key in ("blank", "duplicates", "unknown")}
    for name in SPLITS:
        sizes: dict[str, int] = {}
        for shard in shards:
            for source, size in shard[name]["bytes"].items():
                sizes[source] = sizes.get(source, 0) + size
        counts[name] = {**{k: sum(s[name][k] for s in shards) for k in ("documents", "tokens")}, "bytes": dict(sorted(sizes.items()))}
    if not counts["train"]["documents"]:
        held = counts["validation"]["documents"]
        raise FinloraError(
            f"data.text: no document is left to train on ({held} held out, {counts['blank']} blank, {counts['duplicates']} duplicates)",
            "check the files and the names of the sources, or lower validation",
        )
    warned = []
    n_tokens = sum(counts[name]["tokens"] for name in SPLITS)
    if counts["unknown"] > wording.UNKNOWN * n_tokens:
        warned.append(f"{counts['unknown'] / n_tokens:.0%} of the tokens are unknown to the tokenizer: it does not fit this text")
    return {**settings, "counts": counts, "warnings": warned, "shards": shards}


def _finished(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of a folder that holds just this already; None where there is room.

    Raises: FinloraError where the folder holds something else, unless it is shards and may be overwritten.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise FinloraError(f"`{out}` is a file", "name a folder")
    if not any(out.iterdir()):
        return None
    try:
        held = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        ours = held["format"] and held["shards"] and held["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = None
    if not ours:
        raise FinloraError(f"`{out}` holds files that are not shards", "name an empty or new folder")
    if overwrite:
        return None
    differs = next((key for key in settings if key != "versions" and _lasting(held.get(key)) != _lasting(settings[key])), None)
    if differs is None:
        shutil.rmtree(out / WORK, ignore_errors=True)  # a build that was killed just behind its rename
        return held
    remedy = "name another folder, or remove this one"
    if differs == "sources" and held["paths"] == settings["paths"]:
        plan.check(held["sources"], held["paths"])  # names the file
    raise FinloraError(f"`{out}` holds shards of another text or made otherwise (`{differs}` differs)", remedy)


def _lasting(value: Any) -> Any:
    """A setting without the times of files whose whole content is known."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{k: v for k, v in row.items() if k != "mtime_ns" or "sha256" not in row} for row in value]
    return value


@contextmanager
def _room(out: Path, settings: dict[str, Any], words: wording.Words) -> Iterator[Path]:
    """The folder to build in, with what a killed build of the same settings has done; nobody else builds there."""
    folder = out.parent / f".{out.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with locks.alone(folder):
        request = folder / WORK / REQUEST
        try:
            same = json.loads(request.read_text(encoding="utf-8")) == settings
        except (OSError, ValueError):
            same = False
        if not same:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            request.parent.mkdir()
            (folder / TOKENIZER).write_text(words.json, encoding="utf-8")
            unit.write(request, json.dumps(settings).encode())
        for leftover in [*folder.glob(".*.part"), *request.parent.glob(".*.part")]:
            leftover.unlink()
        yield folder


def _put(folder: Path, out: Path) -> None:
    """Rename the built folder to its name, and clear away what the build kept for itself."""
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    if out.exists():
        os.rename(out, old)
    os.rename(folder, out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _stepper(progress: Any, stage: str, total: int) -> Any:
    if progress:
        progress.start(stage, total)
    count = iter(range(1, total + 1))

    def step() -> bool:
        k = next(count, total)
        if progress:
            progress.step(k)
        return True

    return step


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
