"""Pretraining from scratch: text -> tokenizer -> tokens -> the one loop -> a Hugging Face folder.

Documents are cut into pieces of `data.row_tokens` predictions; a piece is an example of the loop, with weight 1 on every
token.  The text is held in memory as tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

from . import checkpoint, measure, receipt, restructure, runs
from . import model as models
from . import spec as specs
from .corpus import Document, documents
from .data import pieces
from .errors import FinloraError
from .logs import Logs
from .text import Tokens, document
from .tokenizer import train_tokenizer
from .train import fit


def pretrain(spec: specs.Spec, progress: Any = None) -> dict[str, Any]:
    """Train a model from scratch on `data.text` as the spec says; writes RUN/model and returns the receipt.

    Raises: FinloraError for texts that cannot be read, a folder that is not free, an exploding loss.
    """
    from .check import require

    require(spec, "pretrain")
    if spec.data.row_tokens < 8:
        raise FinloraError(f"data.row_tokens is {spec.data.row_tokens}: pretraining cuts documents into rows", "set it to 256 or more")
    folder, finished = runs.begin(spec)
    if finished is not None:
        return finished
    texts = list(documents(spec.data.text, spec.data.sources, spec.data.exclude_sources))
    if not texts:
        raise FinloraError("data.text: no document is left after sources and exclude_sources", "check the names of the sources")
    if progress:
        progress.note(f"{len(texts)} documents, {sum(len(d.text) for d in texts):,} characters")
    tokenizer = _tokenizer(spec, folder, texts)
    model = models.new_model(spec.model.config, tokenizer, spec.run.seed, dtype=spec.run.dtype, device=spec.run.device)
    model.requires_grad_(True)
    full = sum(p.numel() for p in model.parameters())
    structured(model, spec)
    if (said := models.recompute(model, spec.train.recompute)) and progress:
        progress.note(f"note: {said}")
    if spec.train.compile:
        models.compile_body(model)
    held, train = _split(texts, spec.data.validation)
    train_pieces = _pieces(train, tokenizer, spec.data.row_tokens, spec.data.max_tokens)
    val_pieces = _pieces(held, tokenizer, spec.data.row_tokens, 0)
    if progress:
        progress.note(f"{sum(map(len, train_pieces)):,} tokens to train on, {sum(map(len, val_pieces)):,} held out")
    resumed = checkpoint.latest(folder / "checkpoints") is not None
    meter = measure.meter(model.device)
    told = fit(
        model, train_pieces, spec.train, row_tokens=spec.data.row_tokens, seed=spec.run.seed, folder=folder,
        validation=val_pieces, optimizer=specs.resolve(spec.optimizer), progress=progress, logs=Logs(folder, spec.log.tensorboard, spec.log.wandb, folder.name),
    )  # fmt: skip
    told.update({k: v for k, v in meter.read(joules=not resumed).items() if k != "seconds"})
    told["val_bits_per_byte"] = _bits_per_byte(told, held, val_pieces)
    n = restructure.values(model)
    work = restructure.multiply_adds(model, spec.data.row_tokens)
    models.save(model, folder / "model")
    out = receipt.new("pretrain", folder.name, specs.as_dict(spec))
    ranks = {name: specs.bare(dataclasses.asdict(cfg)) for name, (_, cfg) in model.structured.items()}
    out.update(
        model={"name": model.name, "params": n, "trainable": n, "bits_per_weight": models.bits_per_weight(model), "params_dense": full,
               "forward_multiply_adds": work},
        structure={"kind": spec.structure.kind, "linears": ranks, "compression": full / n},
        method="pretrain",
        codec="none",
        data=[_described("train", train, train_pieces), _described("validation", held, val_pieces)],
        train=told,
        results={},
    )
    receipt.write(folder / "receipt.json", out)
    return out


def structured(model: models.Model, spec: specs.Spec) -> models.Model:
    """Put the spec's structure in the places of the model's linears; the default kind leaves them as they are.

    Raises: FinloraError for a rank above a linear, or a size that cannot be reached.
    """
    if spec.structure.kind == type(spec.structure)().kind:
        return model
    plan = restructure.planned(model.body, spec.structure, specs.resolve(spec.structure))
    return restructure.put(model, plan, spec.run.seed)


def _tokenizer(spec: specs.Spec, folder: Path, texts: list[Document]) -> Any:
    """The tokenizer asked for; one trained here is kept in the run's folder, so that a resumed run has the same."""
    if spec.model.tokenizer not in ("", "train"):
        return models.load_tokenizer(spec.model.tokenizer)
    if not (folder / "tokenizer").exists():
        raw = train_tokenizer((d.text for d in texts), spec.model.vocab_size)
        longest = int(spec.model.config.get("max_position_embeddings", spec.data.row_tokens))
        checkpoint.atomic_folder(folder / "tokenizer", lambda t: models.wrap_tokenizer(raw, longest).save_pretrained(t))
    return models.load_tokenizer(str(folder / "tokenizer"))


def _split(texts: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(held out, train): whole documents, chosen by the hash of their source and id, so that the choice never moves."""
    if not share:
        return [], texts

    def draw(d: Document) -> float:
        return int.from_bytes(hashlib.sha256(f"{d.source}/{d.id}".encode()).digest()[:8], "big") / 2**64

    held = [d for d in texts if draw(d) < share]
    return held, [d for d in texts if draw(d) >= share]


def _pieces(texts: list[Document], tokenizer: Any, length: int, most: int) -> list[Tokens]:
    out: list[Tokens] = []
    for d in texts:
        out.extend(pieces(document(d.text, tokenizer, f"{d.source}/{d.id}"), length))
        if most and sum(map(len, out)) >= most:
            break
    return out


def _bits_per_byte(told: dict[str, Any], held: list[Document], val_pieces: list[Tokens]) -> float | None:
    """Validation loss per byte of text, which does not depend on the tokenizer."""
    if not told["val"]:
        return None
    n_tokens = sum(len(t.ids) - 1 for t in val_pieces)
    return told["val"][-1][1] * n_tokens / math.log(2) / sum(len(d.text.encode()) for d in held)


def _described(split: str, texts: list[Document], cut: list[Tokens]) -> dict[str, Any]:
    h = hashlib.sha256()
    for d in texts:
        h.update(d.text.encode())
    sources: dict[str, int] = {}
    for d in texts:
        sources[d.source] = sources.get(d.source, 0) + len(d.text.encode())
    return {"task": "text", "split": split, "rows": len(texts), "tokens": sum(len(t.ids) - 1 for t in cut), "bytes": sources, "sha256": h.hexdigest()}

