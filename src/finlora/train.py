"""The one loop, for pretraining and fine-tuning alike.

`step` is a function of (model, batches): it adds up nats and divides by the whole step's weight, known before any
backward pass, so that cutting a step into micro-batches changes neither loss nor gradient.  `fit` repeats it: schedule,
clipping, validation, checkpoints.  It knows neither tasks nor methods; who calls it composes those.

A run can be killed at any moment.  Everything that decides the next step is in the last checkpoint (trainable tensors, the
frozen ones and the stored weights that a method changes on its way, optimiser, step, torch's random state), the order of
the data is a function of (seed, step), and so a resumed run is bitwise the undisturbed one.

The same loop runs on several processes: what one of them cannot answer by itself it asks its `Spread` (see parallel/).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from . import checkpoint, optim
from .data import Batch, collate, members, pack
from .errors import FinloraError
from .linear import EDIT, Linear
from .logs import Logs
from .loss import token_sums
from .model import Model, head, hidden
from .parallel import Alone, Team, check_weight
from .text import Tokens

ADAPTER = "default"  # the adapter that trains


class Interrupted(FinloraError):
    """The user stopped the run; its state is saved."""


def step(model: Model, batches: Sequence[Batch]) -> tuple[float, float]:
    """One optimiser step's loss and gradient, left in `.grad`: (sum of nats, sum of weights).

    The gradient is that of nats / weight over all the batches together.
    """
    total = check_weight(sum(float(b.weights.sum()) for b in batches))
    nats = 0.0
    for batch in batches:
        batch = batch.to(model.device)
        x = hidden(model, batch)
        part, _ = token_sums(x, head(model), batch.targets, batch.weights)
        (part / total).backward()
        nats += float(part.detach())
    return nats, total


@torch.no_grad()
def mean_nats(model: Model, tokens: Sequence[Tokens], row_tokens: int, micro_rows: int = 1) -> float:
    """Nats per weighted token over held-out examples."""
    nats = weight = 0.0
    for batch in batches_of(sorted(tokens, key=len), row_tokens, micro_rows, model.compiled is not None, model.max_tokens):
        batch = batch.to(model.device)
        x = hidden(model, batch)
        part, w = token_sums(x, head(model), batch.targets, batch.weights)
        nats, weight = nats + float(part), weight + float(w)
    return nats / weight


def batches_of(tokens: Sequence[Tokens], row_tokens: int, micro_rows: int, fixed: bool = False, most: int = 1 << 30) -> list[Batch]:
    """The examples packed into rows of `row_tokens` (0: a row each) and cut into micro-batches of `micro_rows` rows.

    What examples of a row begin with alike (the instruction) is computed once; see data.pack.
    most: positions that the model has. fixed: every batch has the full shape (micro_rows, row_tokens), for a compiled body; nothing is shared.
    """
    if fixed and row_tokens:
        rows = pack(tokens, row_tokens)
        rows += [[] for _ in range(-len(rows) % micro_rows)]
        return [collate(rows[k : k + micro_rows], row_tokens) for k in range(0, len(rows), micro_rows)]
    rows = pack(tokens, row_tokens, share=True) if row_tokens else [[t] for t in tokens]
    out = [collate(rows[k : k + micro_rows], share=bool(row_tokens)) for k in range(0, len(rows), micro_rows)]
    return [_rounded(batch, most) for batch in out] if row_tokens else out


def _rounded(batch: Batch, most: int) -> Batch:
    """The batch with its rows padded to a multiple of 64 positions, where the model has so many: matrix libraries keep a kernel for each shape they
    meet (oneDNN in bfloat16 holds on to about 10 MB a step where every step has a shape of its own)."""
    more = -batch.ids.shape[1] % 64
    more = more if batch.ids.shape[1] + more <= most else 0
    padded = {name: F.pad(getattr(batch, name), (0, more), value=-1 if name == "doc" else 0) for name in batch.tensors()}
    return dataclasses.replace(batch, **padded)


@dataclass
class Progress:
    """Where a run stands; what a checkpoint keeps beside tensors."""

    step: int = 0
    tokens: int = 0
    examples: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this process, all threads: far fewer than seconds times threads tell of a busy machine
    first: list[float] = field(default_factory=list)
    best: float = math.inf
    best_step: int = -1
    worse: int = 0
    renewed: int = 0  # the last step after which a method renewed its parameters
    rewarm: int = 0  # steps over which their rate warms up again
    val: list[list[float]] = field(default_factory=list)
    stopped: str = ""
    data: str = ""  # which examples it trains on


def fit(
    model: Model,
    train: Sequence[Tokens],
    settings: Any,
    *,
    row_tokens: int,
    seed: int,
    folder: Path | None = None,
    validation: Sequence[Tokens] = (),
    progress: Any = None,
    logs: Logs | None = None,
    optimizer: tuple[Any, Any] | None = None,
    team: Team | None = None,
    order: Callable[[int, int, int, int], list[int]] | None = None,
) -> dict[str, Any]:
    """Train the model's trainable parameters on `train`; returns the receipt's "train" section.

    settings: a spec.Train. folder: the run's folder (checkpoints/, log.jsonl); None keeps nothing. validation: examples
    to watch. optimizer: its record and settings; None is adamw. A checkpoint found in the folder is resumed from.
    team: of processes that all call this with the same arguments, and all end with the same model; the first one alone
    writes. A checkpoint may be of another number of processes. order: which examples a step takes, as data.members, its default.
    Raises: FinloraError when the loss is not finite or explodes (the last good checkpoint is kept), or a checkpoint is of
    other examples; Interrupted on Ctrl-C, after saving.
    """
    if not train:
        raise FinloraError("there are no training examples", "check what is read of the data, and that data.validation does not hold it all out")
    if not model.trainable():
        raise FinloraError("nothing is trainable", "choose a method, such as lora")
    if settings.patience and folder is None:
        raise FinloraError("train.patience goes back to the best checkpoint, and a run without a folder keeps none", "give a folder, or set patience = 0")
    total = settings.steps or max(1, math.ceil(len(train) * settings.epochs / settings.batch))
    vocab, given, team = head(model).weight.shape[0], model, team or Team()

    def cut(tokens: Sequence[Tokens]) -> list[Batch]:
        return batches_of(tokens, row_tokens, settings.micro_rows, given.compiled is not None, given.max_tokens)

    data = _fingerprint(train)
    spread = team.spread(model, settings, row_tokens=row_tokens, cut=cut, same=(data, len(validation), total, seed))
    model = spread.model
    torch.manual_seed(spread.seed(seed))  # dropout's draws; a checkpoint brings its own state
    stepper = spread.optimizer(settings, optimizer)
    root = None if folder is None else folder / "checkpoints"
    at = _resume(stepper, root, spread, data) if root is not None else Progress(data=data)
    logs, progress = (logs or Logs(folder), progress) if spread.writes else (Logs(None), None)
    logs.rewind(at.step)
    look = settings.validate_every or max(1, math.ceil(len(train) / settings.batch))
    save_every = settings.checkpoint_every or look
    if progress:
        progress.start("train", total)
    with _Interrupt() as interrupt:
        while at.step < total and not at.stopped:
            began, worked = time.perf_counter(), time.process_time()
            drawn = (order or members)(at.step, settings.batch, len(train), seed)
            chosen = [train[i] for i in spread.share(drawn)]
            model.train()
            nats, weight = step(model, cut(chosen)) if spread.alone else spread.step(chosen)
            loss = nats / weight
            _check_loss(loss, at, settings, vocab, root)
            spread.tend(ADAPTER, at.step, total)
            norm = spread.clip(settings.clip)
            if not math.isfinite(norm):  # AdamW would carry it into every parameter, and the next checkpoint keep it
                raise _broken(f"the gradient's norm became {float(norm)}", at, root)
            rate = optim.set_rate(stepper, settings.lr, optim.share(at.step, total, settings) * _rewarming(at))
            stepper.step()
            stepper.zero_grad(set_to_none=True)
            at.step += 1
            if at.step < total:
                renewed, rewarm = spread.refresh(ADAPTER, at.step, total, seed)
                if renewed:
                    optim.forget(stepper, renewed)
                    at.renewed, at.rewarm = at.step, rewarm
            n_tokens = int(spread.sum(sum(len(t.ids) - 1 for t in chosen)))
            at.tokens, at.examples = at.tokens + n_tokens, at.examples + len(drawn)
            spent = time.perf_counter() - began
            at.seconds, at.cpu_seconds = at.seconds + spent, at.cpu_seconds + time.process_time() - worked
            at.first = [*at.first, loss][:5]
            if at.step % settings.log_every == 0 or at.step == total:
                logs.write(step=at.step, loss=loss, lr=rate, grad_norm=float(norm), tokens=at.tokens, seconds=at.seconds)
            if progress:
                progress.step(at.step, loss=loss, lr=rate, tokens_per_s=n_tokens / spent, eta=(total - at.step) * at.seconds / at.step)
            looked = bool(validation) and (at.step % look == 0 or at.step == total)
            if looked:
                model.eval()
                value = mean_nats(model, validation, row_tokens, settings.micro_rows) if spread.alone else spread.mean_nats(validation)
                _look(value, settings, at, logs, progress)
            asked = spread.any(interrupt.asked)
            if root is not None and (looked or at.step % save_every == 0 or at.step == total or at.stopped or asked):
                _save(stepper, root, at, settings, spread)
            if asked and (at.step < total or root is not None):  # at the last step too, with which more than training may begin
                spread.finish()
                where = f"saved at step {at.step} of {total} in `{folder}`" if folder else "nothing was saved: the run has no folder"
                raise Interrupted(f"stopped by the user, {where}", "run the same command again, without overwrite, to resume")
    if settings.patience and at.best_step not in (-1, at.step):
        _put(model, spread.local(checkpoint.load(spread.agreed(root / f"step-{at.best_step:08d}"))[0]))
    spread.finish()
    if progress:
        progress.done()
    given.eval()
    curve = logs.curve()
    return {
        "steps": at.step,
        "examples": at.examples,
        "tokens": at.tokens,
        "seconds": at.seconds,
        "cpu_seconds": at.cpu_seconds,
        "threads": torch.get_num_threads(),
        "optimizer_bytes": optim.state_bytes(stepper),
        "tokens_per_s": at.tokens / at.seconds,
        "loss_first": at.first[0],
        "loss_last": curve[-1][1] if curve else None,
        "curve": curve,
        "val": at.val,
        "best_step": at.best_step if validation else None,
        "stopped": at.stopped,
        **spread.told(),
    }


def _fingerprint(train: Sequence[Tokens]) -> str:
    """Of the examples: how many they are, and 64 of them from the first to the last."""
    h, n = hashlib.sha256(str(len(train)).encode()), min(len(train), 64)
    for k in range(n):
        one = train[k * (len(train) - 1) // max(n - 1, 1)]
        h.update(repr((one.ids, one.weights)).encode())
    return h.hexdigest()[:16]


def _look(value: float, settings: Any, at: Progress, logs: Logs, progress: Any) -> None:
    """Note a validation loss, and whether to go on."""
    at.val.append([at.step, value])
    logs.write(step=at.step, val_loss=value)
    if progress:
        progress.note(f"step {at.step}: validation loss {value:.4f}")
    if value < at.best:
        at.best, at.best_step, at.worse = value, at.step, 0
    else:
        at.worse += 1
        if settings.patience and at.worse >= settings.patience:
            at.stopped = f"no better validation loss in {at.worse} looks"


def _check_loss(loss: float, at: Progress, settings: Any, vocab: int, root: Path | None) -> None:
    """Refuse to take a step from a loss that is not a number, or far above where the run began."""
    first = sum(at.first) / len(at.first) if at.first else math.inf
    # Twice the uniform guess is the floor: a run that starts near zero may rise without harm.
    limit = settings.max_loss or max(4 * first, 2 * math.log(vocab))
    if math.isfinite(loss) and loss <= limit:
        return
    raise _broken(f"the loss exploded to {loss:.1f} nats (limit {limit:.1f})" if math.isfinite(loss) else f"the loss became {loss}", at, root)


def _broken(what: str, at: Progress, root: Path | None) -> FinloraError:
    last = checkpoint.latest(root) if root is not None else None
    kept = f"the last good checkpoint is `{last}`" if last else "no checkpoint had been written yet"
    return FinloraError(f"{what} at step {at.step + 1}; {kept}", "lower train.lr, or lengthen train.warmup, and run again")


def _rewarming(at: Progress) -> float:
    """The share of the scheduled rate while renewed parameters warm up again."""
    return min(1.0, (at.step - at.renewed + 1) / at.rewarm) if at.rewarm else 1.0


def _save(optimizer: torch.optim.Optimizer, root: Path, at: Progress, settings: Any, spread: Alone) -> None:
    model = spread.model
    rng = {"cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(model.device)
    tensors = {"trainable": dict(model.trainable()), "optimizer": optim.state_tensors(optimizer), "rng": rng}
    kept = {f"{key}/{name}": p for key, linear in _changing(model).items() for name, p in _frozen(linear).items()}
    # a run that may go back to its best needs the weights from before the first edit too
    stored = {
        f"{key}/{name}": getattr(linear.store, name)
        for key, linear in _changing(model).items()
        if _edits(linear) and (linear.store.edits > 1 or settings.patience)
        for name in linear.store.keys
    }
    begun = {f"{key}/{name}": p for key, linear in _edited_once(model).items() for name, p in _edit_of(linear).items()}
    tensors.update({group: named for group, named in (("frozen", kept), ("stored", stored), ("begun", begun)) if named})
    tensors = spread.gathered(tensors)
    if spread.writes:
        last = checkpoint.save(root / f"step-{at.step:08d}", tensors, vars(at))
        checkpoint.tidy(last, settings.keep, {f"step-{at.best_step:08d}"})


def _changing(model: Model) -> dict[str, Linear]:
    """The linears whose method may change, on its way, what does not train."""
    how = {key: linear.how[ADAPTER][0] for key, linear in model.linears.items() if ADAPTER in linear.how}
    return {key: model.linears[key] for key, method in how.items() if method.refresh or method.tend}


def _edited_once(model: Model) -> dict[str, Linear]:
    """The linears whose stored weight was edited as the run began, and is not kept by a checkpoint."""
    changing = _changing(model)
    mine = {key: linear for key, linear in model.linears.items() if ADAPTER in linear.how and key not in changing}
    return {key: linear for key, linear in mine.items() if EDIT[0] in linear.adapters[ADAPTER]}


def _edit_of(linear: Linear) -> dict[str, torch.nn.Parameter]:
    return {name: linear.adapters[ADAPTER][name] for name in EDIT}


def _check_begun(model: Model, given: dict[str, torch.Tensor]) -> None:
    """Refuse factors that were trained beside another part of the weight than this start took from it.

    A start that is calculated again is the same to the bit, unless it was calibrated by kernels that add in any order:
    noise of 1e-6 in a gradient moves the part by up to 4e-5 of itself, noise of 1e-3 by 5e-3. Another start moves it
    by more than itself.
    """
    for key, linear in _edited_once(model).items() if given else ():
        own = _edit_of(linear)
        kept = {name: given[f"{key}/{name}"].to(p.device) for name, p in own.items() if f"{key}/{name}" in given}
        if kept.keys() == own.keys() and all(torch.equal(kept[name], p) for name, p in own.items()):
            continue
        if kept.keys() == own.keys() and all(kept[name].shape == p.shape for name, p in own.items()):
            part = own[EDIT[1]] @ own[EDIT[0]]
            if float((kept[EDIT[1]] @ kept[EDIT[0]] - part).norm()) <= 1e-2 * float(part.norm()):
                continue
        raise FinloraError(f"the checkpoint's factors of `{key}` were taken from another part of its weight than this start takes", "set run.overwrite = true to start afresh")


def _frozen(linear: Linear) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in linear.adapters[ADAPTER].items() if not p.requires_grad}


def _edits(linear: Linear) -> bool:
    """Whether the method renews itself by editing the stored weight."""
    return linear.how[ADAPTER][0].refresh is not None and EDIT[0] in linear.adapters[ADAPTER]


def _resume(optimizer: torch.optim.Optimizer, root: Path, spread: Alone, data: str) -> Progress:
    folder = spread.agreed(checkpoint.latest(root) if spread.writes else None)
    if folder is None:
        return Progress(data=data)
    model = spread.model
    tensors, meta = checkpoint.load(folder)
    if meta.setdefault("data", data) != data:
        raise FinloraError(f"the checkpoints in `{root}` are of other training data", "bring that back, name another folder, or set run.overwrite = true to start afresh")
    tensors = spread.local(tensors)
    _put(model, tensors)
    optim.load_state(optimizer, tensors["optimizer"])
    torch.set_rng_state(tensors["rng"]["cpu"])
    if "cuda" in tensors["rng"] and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng"]["cuda"], model.device)
    return Progress(**meta)


def _put(model: Model, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
    """Put back a checkpoint's parameters and stored weights; frozen parameters may have grown.

    Raises: FinloraError, before anything is changed, where they are not this model's.
    """
    own, given = model.trainable(), tensors["trainable"]
    odd = {name for name in own.keys() | given.keys() if name not in own or name not in given or own[name].shape != given[name].shape}
    frozen = {f"{key}/{name}": (linear, name) for key, linear in _changing(model).items() for name in _frozen(linear)}
    kept = tensors.get("frozen", {})
    odd |= frozen.keys() ^ kept.keys()
    stored = {f"{key}/{name}": (linear, name) for key, linear in _changing(model).items() if _edits(linear) for name in linear.store.keys}
    odd |= tensors.get("stored", {}).keys() - stored.keys()
    if odd:
        raise FinloraError(f"the checkpoint does not fit this run: `{min(odd)}` differs or is on one side only", "set run.overwrite = true to start afresh")
    with torch.no_grad():
        _check_begun(model, tensors.get("begun", {}))
        for name, p in own.items():
            p.copy_(given[name])
        for path, (linear, name) in frozen.items():
            held = linear.adapters[ADAPTER]
            held[name] = torch.nn.Parameter(kept[path].to(held[name].device), requires_grad=False)
        for path, value in tensors.get("stored", {}).items():
            linear, name = stored[path]
            setattr(linear.store, name, value.to(model.device))
            linear.store.edits += 1


class _Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that is read between steps; a second one stops at once."""

    asked = False

    def __enter__(self) -> _Interrupt:
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)
