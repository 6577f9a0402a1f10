"""Tuned models in the forms that other tools read: a dense folder, a plain LoRA adapter, a bitsandbytes checkpoint.

    merged   a Hugging Face folder; the adapter is folded in in fp32 and the sum rounded once
    peft     an adapter folder over the original weights; plain LoRA wherever the method has that form, or cut to a rank
    bnb      a checkpoint that bitsandbytes has quantised, with the adapter beside it: the very weights it was trained over
    encoded  a low-rank model with its factors kept by a codec: the smallest file, for finlora itself

Each is written whole or not at all, never over what exists, with a model card (README.md) that says what went in and, where
the run's fidelity was measured, what that costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import structure_folder
from ..adapters import MAIN, write_folder
from ..bases import trained_whole
from ..bnb import check as check_bnb
from ..bnb import settings, write
from ..checkpoint import atomic_folder
from ..errors import FinloraError, unknown
from ..forms import PREFIX, common_fields, form, kept, plain_fields
from ..linear import EDIT, Linear, over_original
from ..structure_folder import as_dense
from . import card
from .factors import of_dense, shorter
from .folder import DTYPES, plain_state, write_model
from .source import Opened, open_source

BASES = ("dequantised", "original")


def merged(
    source: str | Path, out: str | Path, *, dtype: str = "auto", shard_size: str = "2GB", base: str = "dequantised",
    model: str | None = None, device: str = "auto",
) -> Path:  # fmt: skip
    """Write a run, an adapter or a model as a dense Hugging Face folder.

    dtype: of the weights: auto (as the base's checkpoint has them), bfloat16, float16, float32. base: fold the adapter into
    the `dequantised` weights that it was trained over, or into the `original` ones. model: the base, where it is not where the adapter says (so in all three).
    Raises: FinloraError for a source that is none, an `out` that exists, weights that the dtype cannot hold.
    """
    if base not in BASES:
        raise unknown("base", base, BASES, "--base")
    opened = open_source(source, codec="none" if base == "original" else None, model=model, device=device)
    body, name = opened.model, opened.adapter_name
    state = plain_state(body)
    for key, linear in body.linears.items():
        state[key + ".weight"] = lambda key=key, linear=linear: _turned(body, key, linear.merged(name if name in linear.adapters else None))
    state = as_dense(body, state, name)
    how = f"folded into the {base} weights in float32, then rounded once"
    return write_model(opened, out, state, dtype, shard_size, card.model(opened, "merged", how if name else "no adapter: the weights as they are kept, decoded"))


def peft(source: str | Path, out: str | Path, *, rank: int | None = None, model: str | None = None, device: str = "auto") -> Path:
    """Write a run's adapter as an adapter folder that PEFT reads over the original weights.

    Without a rank: plain LoRA that is exactly the adapter, of twice the rank where the method edited its base; the method's
    own format in PEFT where it has no LoRA form. rank: the best LoRA of that rank instead, by SVD; what it leaves out stands
    in the card.
    Raises: FinloraError for a source without an adapter, a method with neither form, an `out` that exists.
    """
    if rank is not None and rank < 1:
        raise FinloraError(f"--rank must be at least 1, got {rank}", "leave it out for the exact adapter")
    opened = open_source(source, model=model, device=device)
    body, held = opened.model, _held(opened)
    if any(key not in body.structured and key.rpartition(".")[0] in body.structured for key in held):
        raise FinloraError("the adapter stands over the factors of a structured model, whose layers no other tool has", "write the model with it: finlora export merged")
    method = next(iter(held.values())).how[opened.adapter_name][0]
    params = {key: _params(opened, linear) for key, linear in held.items()}
    configs = {key: linear.how[opened.adapter_name][1] for key, linear in held.items()}
    errors: dict[str, float] = {}
    if method.to_lora is not None:
        forms = {key: over_original(method, configs[key], params[key]) for key in held}
        if rank is not None:
            cut = {key: shorter(*plain, rank) for key, plain in forms.items()}
            forms, errors = {key: c[:3] for key, c in cut.items()}, {key: c[3] for key, c in cut.items()}
        fields, tensors = plain_fields(forms)
    elif rank is not None:
        original = open_source(source, codec="none", model=model, device=device)
        cut = {}
        for key in held:
            linear = original.model.linears[key]
            cut[key] = of_dense(linear.merged(opened.adapter_name) - linear.merged(None), rank)
        fields, tensors = plain_fields({key: c[:3] for key, c in cut.items()})
        errors = {key: c[3] for key, c in cut.items()}
    else:
        fields, tensors = _native(opened, configs, params)
    whole = trained_whole(body)
    tensors.update({f"{PREFIX}{key}.{leaf}": kept(v) for key, module in whole.items() for leaf, v in module.items()})
    fields = {**fields, **common_fields(body, set(held), sorted(whole), fields["peft_type"])}
    return write_folder(out, fields, {MAIN: tensors}, card=card.adapter(opened, fields, rank, errors))


def bnb(
    source: str | Path, out: str | Path, *, codec: str | None = None, dtype: str = "auto", shard_size: str = "2GB",
    model: str | None = None, device: str = "auto",
) -> Path:  # fmt: skip
    """Write a run, an adapter or a model as a checkpoint that bitsandbytes has quantised.

    The linears are kept as they are stored, an edit of the method's included, so nothing is rounded again; the adapter
    goes to `out`/adapter in PEFT's format, over these weights. codec: nf4, nf4_dq, fp4 or int8, by default the one that the
    run was trained over. dtype: of all other weights, and what transformers computes in.
    Raises: FinloraError for a codec that bitsandbytes lacks, a method that PEFT cannot hold, an `out` that exists.
    """
    opened = open_source(source, codec=codec, model=model, device=device)
    body = opened.model
    if body.structured:
        raise FinloraError("bitsandbytes keeps whole weights, and this model has linears of two factors", "write it dense first: finlora export merged")
    stores = {key: linear.store for key, linear in body.linears.items()}
    if not stores or None in stores.values():
        raise FinloraError("the linears of this model are kept as they are", "choose how: --codec nf4, nf4_dq, fp4 or int8")
    record = next(iter(stores.values())).codec
    try:
        check_bnb(record)
    except FinloraError as error:
        raise FinloraError(error.message, "choose another with --codec nf4, nf4_dq, fp4 or int8") from error
    compute = opened.dtype(dtype)
    state = plain_state(body)
    for key, store in stores.items():
        tensors = {name: store.get_buffer(name) for name in store.keys}
        state.update({f"{key}.{suffix}": value for suffix, value in write(store.codec, store.cfg, tensors, store.shape, compute).items()})
    linear_names = {key for key, m in body.body.named_modules() if isinstance(m, torch.nn.Linear) and key not in stores}
    extra = {"quantization_config": settings(record, compute, sorted(linear_names))}

    def beside(folder: Path) -> None:
        if opened.adapter_name is None:
            return
        held = _held(opened)
        params = {key: {p: v for p, v in _params(opened, linear).items() if p not in EDIT} for key, linear in held.items()}
        fields, tensors = _native(opened, {key: linear.how[opened.adapter_name][1] for key, linear in held.items()}, params)
        fields = {**fields, **common_fields(body, set(held), [], fields["peft_type"]), "base_model_name_or_path": str(out)}
        write_folder(folder / "adapter", fields, {MAIN: tensors})

    how = "beside it, in `adapter/`, over these very weights" if opened.adapter_name else "none"
    return write_model(opened, out, state, dtype, shard_size, card.model(opened, "bnb", how), extra, beside)


def encoded(source: str | Path, out: str | Path, *, codec: str | None = None, model: str | None = None, device: str = "auto") -> Path:
    """Write a low-rank model (a run's, a compressed one) with the factors of its linears kept by a codec, for finlora to open.

    codec: the codec's name; by default the one that the folder is kept by already. Embeddings, norms and biases stay as the
    checkpoint has them.
    Raises: FinloraError for a source with an adapter or without factors, a codec that keeps numbers as they are or needs a
    calibration, an `out` that exists.
    """
    if Path(out).exists():
        raise FinloraError(f"`{out}` exists already", "name another folder")
    opened = open_source(source, codec=codec, model=model, device=device)
    body = opened.model
    if opened.adapter_name is not None:
        raise FinloraError(f"`{source}` is an adapter over a base", "encode the base, which serves any number of adapters, or write both as one: finlora export merged")
    if not body.structured:
        raise FinloraError(f"`{source}` has no linears of two factors", "bitsandbytes keeps whole weights encoded: finlora export bnb")
    stores = [body.linears[key].store for key in body.structured]
    if any(store.codec.lossless for store in stores):
        raise FinloraError(f"codec `{stores[0].codec.name}` keeps numbers as they are", "choose one that makes them smaller, such as --codec int8 or nf4")
    body.dtype = opened.dtype("auto")

    def whole(folder: Path) -> None:
        structure_folder.write(body, folder)
        (folder / "README.md").write_text(card.encoded(opened, stores[0].codec.name), encoding="utf-8")

    return atomic_folder(Path(out), whole)


def _native(opened: Opened, configs: dict[str, Any], params: dict[str, dict[str, Tensor]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's fields and tensors of an adapter, in whichever of PEFT's forms there is."""
    method = next(iter(_held(opened).values())).how[opened.adapter_name][0]
    taken, fields, tensors, _ = form(opened.model, method, configs, params)
    if taken == "own":
        raise FinloraError(f"method `{method.name}` has no form in PEFT", "cut it to a LoRA by SVD with --rank 16, or export merged")
    return fields, tensors


def _held(opened: Opened) -> dict[str, Linear]:
    name = opened.adapter_name
    held = {key: linear for key, linear in opened.model.linears.items() if name is not None and name in linear.adapters}
    if not held:
        raise FinloraError(f"`{opened.source}` holds no adapter", "export merged writes whole models")
    return held


def _params(opened: Opened, linear: Linear) -> dict[str, Tensor]:
    return {p: kept(v) for p, v in linear.adapters[opened.adapter_name].items()}


def _turned(model: Any, key: str, W_OI: Tensor) -> Tensor:
    return W_OI.T if key in model.turned else W_OI


__all__ = ["BASES", "DTYPES", "bnb", "encoded", "merged", "peft"]
