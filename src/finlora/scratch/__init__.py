"""Pretraining: text -> tokenizer -> tokens -> the one loop -> a model folder; from scratch, or of a model further.

    model.config = {...}     a new model, with [structure] in the places of its linears
    model.name = "..."       without a config: that model goes on, by [method] over [codec]; so a compressed model is healed

Documents are cut into pieces of `data.row_tokens` predictions; a piece is an example of the loop, with weight 1 on every
token.  Where the text comes from is in words.py.  Under torchrun several processes do it together (see parallel/).
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import adapters, checkpoint, measure, memory, receipt, restructure, runs
from .. import model as models
from .. import parallel as several
from .. import spec as specs
from ..check_scratch import further
from ..logs import Logs
from ..train import fit
from . import words


def pretrain(spec: specs.Spec, progress: Any = None) -> dict[str, Any]:
    """Train a model on `data.text` as the spec says; writes RUN/model (RUN/adapter) and returns the receipt.

    Raises: FinloraError for texts that cannot be read, a folder that is not free, an exploding loss.
    """
    from ..check import require

    part = spec.parallel
    with several.mesh(several.Settings(part.data, part.pipeline, part.schedule, part.microbatches)) as team, ExitStack() as held_open:
        require(spec, "pretrain")
        return _pretrain(spec, progress if team.writes else None, team, held_open)


def _pretrain(spec: specs.Spec, progress: Any, team: several.Team, held_open: ExitStack) -> dict[str, Any]:
    folder, finished = team.tell(lambda: held_open.enter_context(runs.begun(spec)))
    if finished is not None:
        words.check_finished(spec, finished)
        return finished
    goes_on = further(spec)
    model = _opened(spec, team) if goes_on else None
    tokenizer = model.tokenizer if model else team.ahead(lambda: words.tokenizer(spec, folder))
    corpus = team.ahead(lambda: words.corpus(spec, tokenizer, progress))
    if model is None:
        model = models.new_model(spec.model.config, tokenizer, spec.run.seed, dtype=spec.run.dtype, device=team.device(spec.run.device))
        model.requires_grad_(True)
    full = sum(p.numel() for p in model.body.parameters())
    if not goes_on:
        structured(model, spec)
    for line in [*model.notes, models.recompute(model, spec.train.recompute)] if progress else ():
        if line:
            progress.note(f"note: {line}")
    if spec.train.compile:
        models.compile_body(model)
    if progress:
        what = f"{model.name} is trained further by {spec.method.kind}" if goes_on else f"a new model of {restructure.trained_values(model):,} parameters ({spec.structure.kind})"
        progress.note(f"{what}; {corpus.predictions:,} tokens to train on, {corpus.held_predictions:,} held out")
        if team.alone and spec.parallel.data != type(spec.parallel)().data:
            progress.note(f"note: parallel.data = {spec.parallel.data} has no effect in one process; torchrun starts several")
        if spec.data.validation and not corpus.held:
            progress.note(f"note: data.validation = {spec.data.validation:g} held no document out: there are too few")
    resumed = checkpoint.latest(folder / "checkpoints") is not None
    kept = _kept(model, spec) if team.alone else None
    meter = measure.meter(model.device)
    told = fit(
        model, corpus.train, spec.train, row_tokens=spec.data.row_tokens, seed=spec.run.seed, folder=folder, validation=corpus.held,
        optimizer=specs.resolve(spec.optimizer), progress=progress, logs=Logs(folder, spec.log.tensorboard, spec.log.wandb, folder.name) if team.writes else None,
        team=team, order=corpus.members,
    )  # fmt: skip
    told.update({k: v for k, v in meter.read(joules=not resumed).items() if k != "seconds"})
    told.update(activation_bytes=kept, resumed=resumed)
    loss = receipt.kept_loss(told, spec.train.patience)
    told["val_bits_per_byte"] = None if loss is None else corpus.bits_per_byte(loss)
    return team.tell(lambda: _written(spec, model, folder, told, corpus, full))


def _kept(model: models.Model, spec: specs.Spec) -> int | None:
    """Bytes that the forward pass of a full micro-batch keeps for the backward pass.

    None under torch.compile, which chooses for itself, beside a guide, of which less is kept as it fades, and where factors are
    rounded in every pass, which is not done without their values.
    """
    if model.compiled is not None or spec.structure.guided or spec.structure.rounded:
        return None
    return memory.activation_bytes(model, (spec.train.micro_rows, spec.data.row_tokens))


def _written(spec: specs.Spec, model: models.Model, folder: Path, told: dict[str, Any], corpus: words.Corpus, full: int) -> dict[str, Any]:
    """What came of the run, in its folder: the model or adapter, and the receipt."""
    goes_on, n = further(spec), restructure.trained_values(model)
    work = restructure.multiply_adds(model, spec.data.row_tokens)
    stored = sum(linear.store.size for linear in model.linears.values() if linear.store is not None)
    held = n if not goes_on else sum(p.numel() for p in model.parameters()) + stored
    if goes_on and not specs.resolve(spec.method)[0].trains_base:
        adapters.save_adapter(model, folder / "adapter", replace=True)
    else:
        models.save(model, folder / "model", replace=True)
    out = receipt.new("pretrain", folder.name, specs.as_dict(spec))
    ranks = {name: specs.bare(dataclasses.asdict(cfg)) for name, (_, cfg) in model.structured.items()}
    out.update(
        model={"name": model.name, "params": held, "trainable": n, "bits_per_weight": models.bits_per_weight(model),
               "params_dense": None if goes_on else full, "forward_multiply_adds": work},
        structure={"kind": spec.structure.kind, "linears": ranks, "compression": None if goes_on else full / n},
        method=spec.method.kind if goes_on else "pretrain",
        codec=spec.codec.kind if goes_on else "none",
        data=corpus.told,
        train=told,
        results={},
    )  # fmt: skip
    receipt.write(folder / "receipt.json", out)
    return out


def _opened(spec: specs.Spec, team: several.Team) -> models.Model:
    """The model that goes on, over its codec and with its method."""
    _, codec_config = specs.resolve(spec.codec)
    method, method_config = specs.resolve(spec.method)
    return models.open_model(
        spec.model.name, codec=spec.codec.kind, codec_config=codec_config, method=method.name, method_config=method_config,
        targets=spec.method.targets, patterns=spec.method.patterns, also=spec.method.also, dtype=spec.run.dtype,
        device=team.device(spec.run.device), seed=spec.run.seed, online=spec.model.online, cache=models.CACHE[spec.model.cache],
        factors=spec.method.factors,
    )  # fmt: skip


def structured(model: models.Model, spec: specs.Spec) -> models.Model:
    """Put the spec's structure in the places of the model's linears; the default kind leaves them as they are.

    Raises: FinloraError for a rank above a linear, or a size that cannot be reached.
    """
    if spec.structure.kind == type(spec.structure)().kind:
        return model
    plan = restructure.planned(model.body, spec.structure, specs.resolve(spec.structure))
    return restructure.put(model, plan, spec.run.seed)
