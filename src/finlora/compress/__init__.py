"""Compression of a pretrained model: its linears decomposed into two narrow ones each, by what a text shows of their inputs.

    calibrate -> decompose each linear once -> share out ranks -> put the factors in place -> measure -> a model folder

One block of the model is looked at after the other: the second moments of a few blocks' inputs are in memory at a time, one
weight and its moment in each worker, and the factors wait on disk until all ranks are known.  A decomposition serves every
rank, so that a search over allocations decomposes nothing again.  With `sequential` a block is calibrated on what the
compressed blocks before it give, which costs a pass over the model for every block.

The folder that comes out holds model/ (factors, or with form = "dense" multiplied out for other tools) and compress.json.
Healing is training from that folder as from any other.

Shapes: W_OI (out, in), A_RI, B_OR; x_BTD, a block's input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import model as models
from .. import receipt, sound
from ..calibrate import collect
from ..checkpoint import leftovers, read_tensors
from ..decompose import Decomposition, _allocate
from ..decompose._solve import Answer, Job, crew
from ..errors import FinloraError, Problems
from ..fields import read_fields
from ..linear import Store
from ..registry import pick
from ..seam import Codec, Stats
from ..structured import Composite
from ..text import Tokens
from ..train import mean_nats
from .look import blocks_of, short, stored_type, texts, turned
from .settings import Compress

__all__ = ["Compress", "compress"]

MOMENTS = 4 << 30  # bytes of second moments gathered in one pass over the text


@dataclass
class Work:
    """What the steps share. keep: share of the dense parameters of `shapes` that is theirs. blocks: block -> names of its linears. shapes: linear -> (out, in). rows: the text to calibrate on, in
    rows of at most `length` tokens. needs: what the decomposition asks for. notes: what the user should know."""

    settings: Compress
    keep: float
    record: Decomposition
    config: Any
    model: models.Model
    blocks: dict[str, list[str]]
    shapes: dict[str, tuple[int, int]]
    rows: list[Tokens]
    length: int
    kind: torch.dtype
    notes: list[str]

    @property
    def needs(self) -> tuple[str, ...]:
        """Moments in any case: errors are told in the outputs' own measure whatever the decomposition minimises."""
        return tuple(dict.fromkeys(("moment_II", *self.record.needs)))


def compress(settings: Compress, progress: Any = None) -> dict[str, Any]:
    """Decompose a model as the settings say; writes OUT/model and OUT/compress.json, and returns the latter's value.

    Raises: FinloraError for a folder that is not free, a model that is not causal or holds what is not finite, a text that is
    empty, a share of parameters that no rank can keep, a codec that needs a calibration.
    """
    began = time.perf_counter()
    out, say = _free(settings), progress.note if progress else lambda line: None
    record = pick("decomposition", settings.decomposition)
    config, codec = _config(record, settings.options), pick("codec", settings.codec)
    if codec.needs(codec.config()):
        raise FinloraError(f"codec = {codec.name}: it encodes by calibration, which factors do not have", "choose another, such as int8 or nf4")
    model = models.open_model(settings.model, codec="none", dtype=settings.dtype, device=settings.device, online=settings.online)
    shapes = {name: linear.shape for name, linear in model.linears.items() if models.matches(name, settings.targets)}
    if not shapes:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in model.linears})
        raise FinloraError(f"targets: `{settings.targets}` matches no linear of {model.name}", f"its linears are called {', '.join(kinds)}")
    sound.causal(model)
    for name in shapes:
        if name in model.structured and (whole := model.structured[name][0]).dense is None:
            raise FinloraError(f"{name}: structure `{whole.name}` is not one linear map, which could be cut in two", "set targets to other linears, or compress the model that it was made from")
    params, dense = _size(model, shapes), sum(out * inner for out, inner in shapes.values())
    if settings.keep * dense >= params:
        raise FinloraError(f"keep = {settings.keep:g}: the linears of {model.name} hold {params / dense:.0%} of their dense parameters already", "keep is a share of the dense ones: choose a smaller")
    targeted, (shapes, keep) = shapes, _to_cut(model, shapes, settings.keep)  # refuses a share that no rank can keep, before anything is read
    even = _allocate.uniform(shapes, keep)
    length = min(settings.row_tokens or 2048, model.max_tokens)
    rows, held, told_text = texts(settings, model.tokenizer, length)
    kind = _kind(settings, model)
    work = Work(settings, keep, record, config, model, blocks_of(shapes), shapes, rows, length, kind, [*model.notes, *short(rows, shapes)])
    if settings.allocation == "search" and len(held) < 2:
        raise FinloraError("allocation = search compares allocations on held-out text, and there is too little of it", "give more text, or a larger validation")
    # what the choice was made on says nothing fair about the result, so half of the held-out text is kept out of it
    judge, held = (held[::2], held[1::2]) if settings.allocation == "search" else ([], held)
    for line in work.notes:
        say(f"note: {line}")
    whole, sizes = sum(p.numel() for p in model.body.parameters()) + _size(model), {name: _size(model, [name]) for name in targeted}
    tried: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    with crew(settings.workers) as solve, tempfile.TemporaryDirectory(prefix="finlora-") as scratch:
        said_before, kept = _measured(model, held, length), Kept(Path(scratch))
        if said_before and not math.isfinite(said_before["nats"]):
            raise FinloraError(f"{model.name} reads the held-out text at {said_before['nats']} nats a token", 'the model is damaged, or overflows: try dtype = "float32"')
        if settings.allocation == "uniform":
            ranks = even
            losses = decomposed(work, solve, {n: k for n, k in even.items() if k}, kept, seconds, say, put=settings.sequential)
        else:
            # every rank that could pay, by one decomposition; in a sequential run for the spectra alone
            losses = decomposed(work, solve, {n: k for n, s in shapes.items() if (k := _allocate.most(s))}, kept, seconds, say, put=False)
            ranks, tried = _shared_out(work, even, losses, kept, judge, say)
            if settings.sequential:
                losses = decomposed(work, solve, {n: k for n, k in ranks.items() if k}, kept, seconds, say, put=True)
        if not settings.sequential:
            for name, rank in ranks.items():
                if rank:
                    place(work, name, *kept.cut(name, rank))
    if settings.form == "dense":
        _multiplied(work)
    _rounded(work, codec)
    said_after = _measured(model, held, length)
    computed, model.dtype = model.dtype, kind  # what is written is what was measured: it has been rounded already
    models.save(model, out / "model", replace=settings.overwrite)
    model.dtype = computed
    linears = {
        name: {"shape": list(shape), "rank": (rank := ranks.get(name)), "params": _allocate.cost(shape, rank) if rank else sizes[name],
               "error": _relative(losses[name], rank) if rank else 0.0, "seconds": seconds.get(name, 0.0)}
        for name, shape in targeted.items()
    }  # fmt: skip
    now = sum(one["params"] for one in linears.values())
    written = dense if settings.form == "dense" else now
    said = {
        "schema": 1, "kind": "compress", "name": out.name, "settings": settings, "config": config,
        "model": {"name": model.name, "linears_before": params, "linears_after": now, "kept": now / dense,
                  "params_before": whole, "params_after": whole - params + written},
        "text": told_text, "before": said_before, "after": said_after, "search": tried, "linears": linears, "notes": work.notes,
        "error_how": "root of E|x W^T - x (B A)^T|^2 over E|x W^T|^2, on the text calibrated on, before rounding to `stored`",
        "stored": str(kind).removeprefix("torch."),
        "seconds": time.perf_counter() - began, "versions": receipt.versions(), "device": receipt.device(), "code": receipt.code(),
    }  # fmt: skip
    receipt.write_text(out / "compress.json", json.dumps(receipt.plain(said), indent=1, ensure_ascii=False) + "\n")
    return said


# -- decomposing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Factors that wait on disk for their rank; a file for each linear."""

    folder: Path

    def put(self, answer: Answer) -> None:
        """Raises: FinloraError where the disk is full."""
        try:
            save_file({"A": torch.from_numpy(answer.A), "B": torch.from_numpy(answer.B)}, self._file(answer.name))
        except Exception as error:  # safetensors raises kinds of its own
            raise FinloraError(f"cannot keep factors in `{self.folder}`: {error}", "free some space there, or set TMPDIR to another folder") from error

    def cut(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """(A_RI, B_OR) of one linear at that rank."""
        held = read_tensors(self._file(name))
        return held["A"][:rank].contiguous(), held["B"][:, :rank].contiguous()

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"


def decomposed(
    work: Work, solve: Callable, ranks: Mapping[str, int], kept: Kept, seconds: dict[str, float], say: Callable[[str], None], put: bool
) -> dict[str, Any]:
    """{linear: squared output errors at rank 0, 1, ... up to its own}; the factors are kept, or with `put` stand in the model
    before the next block is calibrated. seconds: what each linear took is added."""
    losses: dict[str, Any] = {}
    for blocks in [[b] for b in work.blocks] if put else _groups(work):
        names = [n for b in blocks for n in work.blocks[b] if n in ranks]
        if not names:
            continue
        for answer in solve(_jobs(work, names, ranks)):
            losses[answer.name] = answer.errors
            seconds[answer.name] = seconds.get(answer.name, 0.0) + answer.seconds
            if put:
                place(work, answer.name, torch.from_numpy(answer.A), torch.from_numpy(answer.B))
            else:
                kept.put(answer)
        say(f"decomposed {blocks[0]}{f' to {blocks[-1]}' if len(blocks) > 1 else ''}: {len(names)} linears")
    return losses


def _groups(work: Work) -> Iterator[list[str]]:
    """Neighbouring blocks whose moments fit the budget together: a pass over the text for each group."""
    group: list[str] = []
    total = 0
    for block, names in work.blocks.items():
        size = sum(4 * work.shapes[n][1] ** 2 for n in names)
        if group and total + size > MOMENTS:
            yield group
            group, total = [], 0
        group.append(block)
        total += size
    if group:
        yield group


def _jobs(work: Work, names: Sequence[str], ranks: Mapping[str, int]) -> Iterator[Job]:
    """A job for each linear, those with the most to compute first; what calibration saw of it is let go as it leaves."""
    model = work.model
    seen = collect(model, work.rows, work.needs, row_tokens=work.length, names=names, budget_bytes=MOMENTS)
    for at, name in enumerate(sorted(names, key=lambda n: -work.shapes[n][0] * work.shapes[n][1] ** 2)):
        stats: Stats = seen.pop(name)
        if not bool(torch.isfinite(stats.moment_II).all()):
            raise FinloraError(f"{name}: its inputs are not finite on this text", 'the model is damaged, or overflows: try dtype = "float32"')
        yield Job(name, work.record.name, dataclasses.asdict(work.config), *(_array(x) for x in (_weight(model, name), stats.moment_II, stats.grad_OI)), ranks[name], _device(work, at))


def _weight(model: models.Model, name: str) -> Tensor:
    """W_OI as it stands, fp32 (fp64 for fp64)."""
    linear = model.linears[name]
    kind = torch.promote_types(model.dtype, torch.float32)
    return linear.merged(linear.sole, kind).detach()


def _array(x: Tensor | None) -> Any:
    return None if x is None else x.cpu().contiguous().numpy()


def _device(work: Work, at: int) -> str:
    """Where a job is computed: on the model's GPU, with several workers on all of them in turn."""
    own = work.model.device
    if own.type != "cuda":
        return "cpu"
    return f"cuda:{at % torch.cuda.device_count()}" if work.settings.workers > 1 else str(own)


@torch.no_grad()
def place(work: Work, name: str, A_RI: Tensor, B_OR: Tensor) -> None:
    """Put the factors, rounded as they will be written, in the place of a linear's weight, frozen; the weight is let go."""
    structure, plain, linear = pick("structure", work.record.structure), pick("codec", "none"), work.model.linears[name]
    cfg, params = structure.config(rank=len(A_RI)), {"A": A_RI.to(work.kind), "B": B_OR.to(work.kind)}
    store = Composite(structure, cfg, params, plain, plain.config(), linear.shape, work.model.dtype)
    linear.store = store.to(work.model.device)
    work.model.structured[name] = structure, cfg


@torch.no_grad()
def _multiplied(work: Work) -> None:
    """Dense weights in the place of all structures, rounded as they will be written."""
    model, plain = work.model, pick("codec", "none")
    for name in [*model.structured]:
        W = model.linears[name].store.dense(torch.float32).to(work.kind)
        model.linears[name].store = Store(plain, plain.config(), W, model.dtype)
    model.structured.clear()


@torch.no_grad()
def _rounded(work: Work, codec: Codec) -> None:
    """Round all else as it will be written, and keep what stands as factors by the codec."""
    model, plain = work.model, pick("codec", "none")
    if work.kind != model.dtype:
        for p in model.body.parameters():
            p.copy_(p.to(work.kind))
        for linear in model.linears.values():
            if isinstance(linear.store, Store) and linear.store.codec.lossless:
                linear.store = Store(plain, plain.config(), linear.store.dense(torch.float32).to(work.kind), model.dtype)
    for name in model.structured:
        store = model.linears[name].store
        if work.kind != model.dtype and store.codec.lossless:
            params = {k: v.to(work.kind) if v.is_floating_point() else v for k, v in store.params(torch.float32).items()}
            store = Composite(store.structure, store.how, params, plain, plain.config(), store.shape, model.dtype)
        model.linears[name].store = store.under(codec, codec.config()) if not codec.lossless else store


# -- sharing out and measuring -----------------------------------------------------------------------------------------


def _shared_out(
    work: Work, even: dict[str, int | None], losses: Mapping[str, Any], kept: Kept, judge: Sequence[Tokens], say: Callable[[str], None]
) -> tuple[dict[str, int | None], list[dict[str, Any]]]:
    """(ranks, what was tried): of the allocation asked for, or the best of all on `judge`."""
    s, model, shapes = work.settings, work.model, work.shapes
    block = {n: b for b, names in work.blocks.items() for n in names}
    weight = {} if s.allocation == "spectrum" else _allocate.importances(turned(model, work.blocks, work.rows, work.length))

    def by_loss(alpha: float) -> dict[str, int | None]:
        left = {n: math.sqrt(losses[n][k]) if (k := even[n]) else 0.0 for n in shapes}
        return _allocate.scored(shapes, work.keep, {n: _allocate.score(weight[block[n]], left[n], alpha) for n in shapes}, s.floor)

    if s.allocation == "loss":
        return _smaller(model, shapes, by_loss(s.alpha)), []
    spectral = _smaller(model, shapes, _allocate.spectral(shapes, work.keep, losses, s.floor))
    if s.allocation == "spectrum":
        return spectral, []
    arms = [("uniform", even), ("spectrum", spectral), *((f"loss, alpha = {alpha:g}", _smaller(model, shapes, by_loss(alpha))) for alpha in s.alphas)]
    tried: list[dict[str, Any]] = []
    with _as_it_was(model, shapes) as restore:
        for arm, ranks in arms:
            restore()
            for name, rank in ranks.items():
                if rank:
                    place(work, name, *kept.cut(name, rank))
            tried.append({"allocation": arm, "nats": mean_nats(model, judge, work.length)})
            say(f"ranks by {arm}: {tried[-1]['nats']:.4f} nats a token on held-out text")
    best = min(range(len(arms)), key=lambda k: tried[k]["nats"])
    return dict(arms[best][1]), tried


def _to_cut(model: models.Model, shapes: Mapping[str, tuple[int, int]], keep: float) -> tuple[dict[str, tuple[int, int]], float]:
    """(the linears that become smaller, the share of their dense parameters that they keep).

    One that is narrow already stays as it is where its uniform rank would not be smaller, and what it holds comes off the budget of the others.
    Raises: FinloraError where even rank 1 is more than the budget.
    """
    left, budget = dict(shapes), keep * sum(o * i for o, i in shapes.values())
    while True:
        smaller = _smaller(model, left, _allocate.uniform(left, keep))
        if len(smaller) == len(left):
            return left, keep
        budget -= _size(model, left.keys() - smaller.keys())
        left = {name: left[name] for name in smaller}
        keep = min(budget / sum(o * i for o, i in left.values()), 1.0)  # more, where one is larger than dense and the rest may stay


def _smaller(model: models.Model, shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int | None]) -> dict[str, int | None]:
    """The ranks less those that would make a structured linear no smaller."""
    return {n: k for n, k in ranks.items() if n not in model.structured or _allocate.cost(shapes[n], k) < _size(model, [n])}


@contextmanager
def _as_it_was(model: models.Model, names: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """A function that takes all factors back; they are taken back at the end too."""
    stores = {name: model.linears[name].store for name in names}
    told = dict(model.structured)

    def restore() -> None:
        for name, store in stores.items():
            model.linears[name].store = store
        model.structured.clear()
        model.structured.update(told)

    try:
        yield restore
    finally:
        restore()


def _measured(model: models.Model, held: Sequence[Tokens], length: int) -> dict[str, Any]:
    """Nats a token and perplexity over the held-out rows; nothing where none are held out."""
    if not held:
        return {}
    nats = mean_nats(model, held, length)
    return {"nats": nats, "perplexity": math.exp(min(nats, 700)), "tokens": sum(len(t.ids) - 1 for t in held)}


def _relative(errors: Any, rank: int) -> float:
    """Root of the squared output error at a rank, over that of giving nothing."""
    return math.sqrt(float(errors[rank]) / float(errors[0])) if errors[0] > 0 else 0.0


def _size(model: models.Model, names: Collection[str] | None = None) -> int:
    """Values in the stores of these linears, or of all."""
    return sum(linear.store.size for name, linear in model.linears.items() if linear.store is not None and (names is None or name in names))


def _kind(settings: Compress, model: models.Model) -> torch.dtype:
    """The type that is written; by itself the file's own, or the compute type where that is narrower."""
    if settings.store != "auto":
        return getattr(torch, settings.store)
    found = stored_type(settings.model)
    return found if found is not None and found.itemsize <= model.dtype.itemsize else model.dtype


def _config(record: Decomposition, options: Mapping[str, Any]) -> Any:
    problems: list[FinloraError] = []
    values = read_fields(record.config, options, "options", "", problems)
    if problems:
        raise Problems(problems)
    return record.config(**values)


def _free(settings: Compress) -> Path:
    """The folder to write to.  Raises: FinloraError where it holds something."""
    out = Path(settings.out).expanduser()
    if out.is_file():
        raise FinloraError(f"out: `{out}` is a file", "name a folder")
    held = sorted({p.name for p in out.iterdir()} - {p.name for p in leftovers(out)}) if out.exists() else []
    if held and not settings.overwrite:
        raise FinloraError(f"out: `{out}` is not empty (`{held[0]}`)", "name a new folder, or set overwrite = true to replace what a compression left there")
    if (made := {"model", "compress.json"} & set(held)) and not _ours(out / "compress.json"):
        raise FinloraError(f"out: `{out}` holds a `{max(made)}` that no compression left there", "name another folder")
    if "spec.toml" in held:
        raise FinloraError(f"out: `{out}` holds a run, whose model would be overwritten", "name another folder")
    for name, why in ((settings.model, "is to be compressed"), *((text, "is to be read") for text in (*settings.text, *settings.val_text))):
        path = Path(name).expanduser()
        if path.exists() and any(path.resolve().is_relative_to((out / made).resolve()) for made in ("model", "compress.json")):
            raise FinloraError(f"overwrite would remove `{name}`, which {why}", "name another folder")
    return out


def _ours(file: Path) -> bool:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["kind"] == "compress"
    except (OSError, ValueError, LookupError, TypeError):
        return False
