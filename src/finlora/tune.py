"""Fine-tuning, from a spec to a receipt: examples -> tokens -> the one loop -> adapter -> graded on the test split.

    finetune(spec)     everything below, resumable, into one run folder
    words(spec, ...)   the training and validation tokens of a spec, and what is in them

This file composes; it holds no loop and no method of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from . import adapters, baselines, checkpoint, measure, perplexity, receipt, rows, runs, text
from . import model as models
from . import spec as specs
from .calibrate import calibration_of, collect
from .errors import FinloraError
from .logs import Logs
from .registry import pick
from .text import Tokens
from .train import fit


def finetune(spec: specs.Spec, progress: Any = None, grade: bool = True) -> dict[str, Any]:
    """Tune spec.model on spec.data with spec.method over spec.codec, grade it, and return the receipt.

    grade: False stops at the validation loss, for a search that must not see the test split. The run folder
    then holds adapter/ (PEFT's format; model/ for full fine-tuning), records/, log.jsonl and receipt.json.
    A run that was cut off goes on from its last checkpoint; one that has finished returns its receipt.
    Raises: FinloraError, with nothing of the user's written over.
    """
    if (several := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
        raise FinloraError(f"finetune works in one process, and WORLD_SIZE is {several}", "start it without torchrun")
    with ExitStack() as held_open:
        return _finetune(spec, progress, grade, held_open)


def _finetune(spec: specs.Spec, progress: Any, grade: bool, held_open: ExitStack) -> dict[str, Any]:
    from . import evaluate
    from .check import advice, require

    require(spec, "finetune")
    if progress:
        for line in advice(spec):
            progress.note(f"note: {line}")
    _, codec_config = specs.resolve(spec.codec)
    method, method_config = specs.resolve(spec.method)
    if (finished := runs.finished(spec)) is not None:
        if progress:
            progress.note(f"{spec.run.out} is finished already; this is its receipt")
        return finished
    torch.manual_seed(spec.run.seed)
    stats = calibrated(spec, progress)
    outside = baselines.is_baseline(spec.method.kind) and not spec.model.adapter
    model = models.open_model(
        spec.model.name, codec=None if outside else spec.codec.kind, codec_config=codec_config, device=spec.run.device, dtype=spec.run.dtype,
        method=None if outside or spec.model.adapter else spec.method.kind, method_config=method_config, targets=spec.method.targets,
        patterns=spec.method.patterns, also=spec.method.also, stats=stats, seed=spec.run.seed, online=spec.model.online,
        adapter=spec.model.adapter or None, cache=models.CACHE[spec.model.cache], factors=spec.method.factors,
    )  # fmt: skip
    for line in model.notes if progress else ():
        progress.note(f"note: {line}")
    del stats
    if outside:
        baselines.wrap(model, spec.method.kind.removeprefix(baselines.MARK), method_config, spec.method.targets, spec.run.seed)
    if spec.model.adapter:
        adapters.train_adapter(model)
    if (said := models.recompute(model, spec.train.recompute)) and progress:
        progress.note(f"note: {said}")
    train, held, told_data = words(spec, model)
    if progress:
        progress.note(f"{len(train)} examples to train on, {len(held)} to validate; template {told_data['template']}")
    folder, finished = held_open.enter_context(runs.begun(spec))  # not before: a model or data that cannot be opened should leave no folder behind
    if finished is not None:  # by another process, while this one opened the model
        return finished
    resumed = checkpoint.latest(folder / "checkpoints") is not None  # the joules of what ran before are not known
    meter = measure.meter(model.device)
    told = fit(
        model, train, spec.train, row_tokens=spec.data.row_tokens, seed=spec.run.seed, folder=folder, validation=held,
        optimizer=specs.resolve(spec.optimizer), progress=progress, logs=Logs(folder, spec.log.tensorboard, spec.log.wandb, folder.name),
    )  # fmt: skip
    told.update({k: v for k, v in meter.read(joules=not resumed).items() if k != "seconds"})
    _save(model, method, folder)
    results = {} if not grade else evaluate.results(
        model, spec.evaluate.tasks or spec.data.tasks, dir=spec.data.dir, split=spec.evaluate.split, ways=spec.evaluate.ways,
        limit=spec.evaluate.limit, max_new=spec.evaluate.max_new, batch_tokens=spec.evaluate.batch_tokens,
        template=told_data["template"], too_long=spec.data.too_long, folder=folder, shots=spec.evaluate.shots, think=spec.evaluate.think,
        seed=spec.run.seed, encoder=spec.evaluate.encoder, online=spec.model.online, progress=progress,
    )  # fmt: skip
    heard = perplexity.measured(model, spec.evaluate.text, spec.evaluate.batch_tokens, progress) if grade else None
    out = receipt.new("finetune", folder.name, specs.as_dict(spec))
    out.update(
        model={
            "name": spec.model.name,
            "sha256": evaluate.digest(model),
            "params": sum(p.numel() for p in model.parameters()) + _stored(model),
            "trainable": sum(p.numel() for p in model.trainable().values()),
            "bits_per_weight": models.bits_per_weight(model),
        },
        method=evaluate.describe(model)["method"] if spec.model.adapter else spec.method.kind,
        codec=spec.codec.kind,
        data=told_data["sets"],
        template=told_data["template"],
        cut=told_data["cut"],
        train=told,
        results=results,
    )
    if heard:
        out["text"] = heard
    receipt.write(folder / "receipt.json", out)
    return out


def calibrated(spec: specs.Spec, progress: Any = None) -> dict[str, Any] | None:
    """What the first training examples show of each linear, where the method or the codec begins from it; else None.

    The base is opened for it once more, kept by calibrate.codec, and closed again.
    """
    codec, codec_config = specs.resolve(spec.codec)
    needs = set(codec.needs(codec_config))
    if spec.model.adapter:  # a base that was encoded by calibration is so again by the same
        needs -= needs if calibration_of(spec.model.adapter, codec, codec_config) else set()
    else:
        method, method_config = specs.resolve(spec.method)
        needs |= set(method.needs(method_config))
    if not needs:
        return None
    if progress:
        progress.note(f"calibrating on {spec.calibrate.examples} training examples")
    model = models.open_model(
        spec.model.name, codec=spec.calibrate.codec, device=spec.run.device, dtype=spec.run.dtype, online=spec.model.online,
        cache=models.CACHE[spec.model.cache], factors=spec.method.factors,
    )
    tokens, _, _ = words(spec, model)
    chosen = _first(tokens, spec.calibrate.examples, spec.run.seed)
    return collect(model, chosen, sorted(needs), row_tokens=spec.data.row_tokens)


def words(spec: specs.Spec, model: models.Model) -> tuple[list[Tokens], list[Tokens], dict[str, Any]]:
    """(training tokens, validation tokens, {"template", "cut", "sets"}) of a spec's tasks.

    Validation is split off by cluster, before anything is left out; examples longer than a row are refused or cut as
    `data.too_long` says, and counted.
    """
    template = text.choose_template(model.tokenizer, spec.data.template)
    most = min(spec.data.row_tokens or model.max_tokens, model.max_tokens)
    train: list[Tokens] = []
    held: list[Tokens] = []
    sets, cut = [], 0
    for name, weight in zip(spec.data.tasks, spec.data.weights or [1.0] * len(spec.data.tasks)):
        task = pick("task", name)
        examples = rows.read_examples(task, "train", spec.data.dir or None)
        digest = rows.file_digest(task, "train", spec.data.dir or None)
        kept, out = rows.split_validation(examples, spec.data.validation, spec.run.seed)
        kept = _first(kept, spec.data.max_train, spec.run.seed)
        for chosen, into in ((kept, train), (out, held)):
            tokens = [text.render(e, model.tokenizer, True, template) for e in chosen]
            cut += sum(len(t.ids) - 1 > most for t in tokens)
            tokens = [text.fit(t, most, spec.data.too_long) for t in tokens]
            into.extend(_weighed(tokens, weight, spec.run.seed) if into is train else tokens)
        sets.append({"task": name, "split": "train", "rows": len(kept), "validation": len(out), "sha256": digest, "licence": task.source.licence})
        if weight != 1:
            sets[-1]["weight"] = weight
    if not train:
        raise FinloraError("data.tasks names no task", "for example data.tasks = [\"tone\"]")
    return train, held, {"template": template, "cut": cut, "sets": sets}


def _first(examples: Sequence[Any], most: int, seed: int) -> list[Any]:
    """`most` of the examples, drawn by the seed (0: all), in their first order."""
    if not most or most >= len(examples):
        return list(examples)
    from .data import order

    return [examples[i] for i in sorted(order(len(examples), seed, 0)[:most])]


def _weighed(examples: Sequence[Any], weight: float, seed: int) -> list[Any]:
    """Each example floor(weight) times, and a share of them, drawn by the seed, once more."""
    more = round((weight % 1) * len(examples))
    return [*(list(examples) * int(weight)), *(_first(examples, more, seed) if more else ())]


def _save(model: models.Model, method: Any, folder: Path) -> None:
    if "baseline" in model.__dict__:
        baselines.save(model, folder / "adapter", replace=True)
    elif method.trains_base:
        models.save(model, folder / "model", replace=True)
    else:
        adapters.save_adapter(model, folder / "adapter", replace=True)


def _stored(model: models.Model) -> int:
    """Weights that live in stores, which are buffers and not parameters."""
    return sum(linear.store.size for linear in model.linears.values() if linear.store is not None)
