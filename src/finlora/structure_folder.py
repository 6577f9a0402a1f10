"""Structured models as folders: config.json, the tokenizer, structured.safetensors and structure.json.

    save      writes one; `open_model` opens it
    opened    its tensors read into a body, structures kept or as two linears each
    as_dense  its state multiplied out, under the names that transformers knows

The weights have a name of their own, so that a tool which knows nothing of structures says that it finds no weights, instead
of drawing the missing ones at random.

Shapes: W_OI (out, in), A_RI, B_OR.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .checkpoint import atomic_folder
from .errors import FinloraError, Problems
from .fields import read_fields
from .linear import Store
from .registry import pick
from .restructure import stand
from .seam import Structure, check_finite
from .streaming import Source, place
from .structured import Chain, Composite, dense, settled
from .weights import Checkpoint
from .wiring import shape_of

if TYPE_CHECKING:
    from .model import Model

TOLD, WEIGHTS = "structure.json", "structured.safetensors"


def save(model: Model, folder: str | Path, replace: bool = False) -> None:
    """Write a structured model's folder. Weights are kept in the compute dtype, encoded ones as they are.

    Raises: FinloraError where the folder exists, the disk is full, a guide has not faded, or an adapter stands over the product.
    """
    atomic_folder(Path(folder), lambda t: write(model, t), replace)


def write(model: Model, folder: Path) -> None:
    """The files of `save`, into a folder that is there."""
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    codec = None
    for key, (structure, cfg) in model.structured.items():
        module = model.body.get_submodule(key)
        parts, shapes, cfg, encoded = _parts(model, key, module, structure, cfg)
        tensors.update({f"{key}.{name}": value for name, value in parts.items()})
        told[key] = {"structure": structure.name, "config": dataclasses.asdict(cfg), "shape": _shape(module), "params": shapes}
        codec = encoded or codec
        bias = module.B.bias if isinstance(module, Chain) else module.bias
        if bias is not None:
            tensors[f"{key}.bias"] = bias.detach()
    inside = tuple(f"{key}." for key in (*model.structured, *model.linears))
    for key, value in model.body.state_dict().items():
        if not key.startswith(inside):
            tensors[key] = value
    for key, linear in model.linears.items():
        if not key.startswith(tuple(f"{k}." for k in model.structured)) and key not in model.structured:
            W = linear.merged(model.route.active if model.route.active in linear.adapters else None)
            tensors[f"{key}.weight"] = W.T if key in model.turned else W
            if linear.bias is not None:
                tensors[f"{key}.bias"] = linear.bias.detach()
    kept: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for key, value in tensors.items():  # tied tensors are written once; opening ties them again
        value = value.detach()
        if seen.setdefault(value.data_ptr(), key) == key or not value.numel():
            float_ = value.is_floating_point() and not any(key.startswith(k) and codec for k in inside)
            kept[key] = (value.to(model.dtype) if float_ else value).contiguous().cpu()
    save_file(kept, folder / WEIGHTS, {"format": "pt"})
    record = {"format": 1, "codec": codec, "linears": told}
    (folder / TOLD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    write_settings(model, folder)


def write_settings(model: Model, folder: Path) -> None:
    """Write what stands beside the weights: config.json with the type that they are kept in, how the model generates, the tokenizer."""
    model.body.config.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "dtype": str(model.dtype).removeprefix("torch.")}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if model.body.generation_config is not None:
        model.body.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _shape(module: Any) -> list[int]:
    return [module.B.shape[0], module.A.shape[1]] if isinstance(module, Chain) else list(module.shape)


def _parts(model: Model, key: str, module: Any, structure: Structure, cfg: Any) -> tuple[dict[str, Tensor], dict[str, list[int]], Any, dict[str, Any] | None]:
    """({tensor name: tensor}, {parameter: shape}, settings, the codec where tensors are encoded) of one structured linear."""
    encoded = None
    if isinstance(module, Chain):  # adapters over the factors fold into them
        active = model.route.active
        parts = {leaf: linear.merged(active if active in linear.adapters else None) for leaf, linear in (("A", module.A), ("B", module.B))}
    elif module.store is None:
        cfg, parts = settled(structure, cfg, dict(module.adapters[module.sole].items()))
    elif model.route.active in module.adapters:
        raise FinloraError(
            f"{key}: adapter `{model.route.active}` stands over the product of the factors, which is then of a higher rank",
            "save the adapter beside the model, or export the model dense",
        )
    else:
        store = module.store
        parts = store.params(store.dtype) if store.codec.lossless else store.raw()
        if not store.codec.lossless:
            encoded = {"kind": store.codec.name, **dataclasses.asdict(store.cfg)}
            shapes = {name: list(part.shape) for name, part in store.parts.items()} | {name: list(t.shape) for name, t in parts.items()}
            return {**parts, **{f"{name}.{k}": getattr(part, k) for name, part in store.parts.items() for k in part.keys}}, shapes, cfg, encoded
    return parts, {name: list(tensor.shape) for name, tensor in parts.items()}, cfg, None


def told_of(folder: str | Path) -> dict[str, Any] | None:
    """What a folder's structure.json says; None where it has none.

    Raises: FinloraError for a file that is none of ours.
    """
    file = Path(folder) / TOLD
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        if told["format"] != 1 or not all(_well_formed(one) for one in told["linears"].values()):
            raise KeyError("format")
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise FinloraError(f"model.name: `{file}` does not describe a structured model", "save the model again, with this version of finlora") from error
    return told


def _well_formed(one: dict[str, Any]) -> bool:
    """Whether what is told of a linear is of the kinds that `_write` writes."""
    shapes = [one["shape"], *one["params"].values()]
    sound = all(isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape) for shape in shapes)
    return sound and len(one["shape"]) == 2 and isinstance(one["structure"], str) and isinstance(one["config"], dict)


def composites(told: dict[str, Any], get: Any, keys: Sequence[str], dtype: torch.dtype, where: Any) -> dict[str, Composite]:
    """The frozen structures of a folder, as `told_of` describes them. get(key) -> tensor; keys: what the checkpoint holds.

    Raises: FinloraError for tensors that are missing or not of the shapes that the settings say.
    """
    codec, codec_config = _codec(told)
    out = {}
    for name, one in told["linears"].items():
        structure, cfg = described(one, name)
        n_out, n_in = one["shape"]
        shapes = {key: tuple(shape) for key, shape in one["params"].items()}
        held = sum(math.prod(shape) for key, shape in shapes.items() if key not in structure.frozen)
        if held != (due := structure.count(cfg, n_in, n_out)):
            raise FinloraError(f"model.name: `{where}`: {name} holds {held:,} values, its settings say {due:,}", "its structure.json belongs to other weights")
        params, parts = {}, {}
        for key, shape in shapes.items():
            inner = [k for k in keys if k.startswith(f"{name}.{key}.")]
            if inner and not codec.lossless:
                encoded = {k.removeprefix(f"{name}.{key}."): get(k) for k in inner}
                parts[key] = Store.of(codec, codec_config, encoded, (shape[0], shape[1]), dtype)
            elif f"{name}.{key}" not in keys:
                raise FinloraError(f"model.name: `{where}`: the checkpoint lacks `{name}.{key}`", "it is not complete: fetch or save it again")
            else:
                params[key] = get(f"{name}.{key}")
                if tuple(params[key].shape) != shape:
                    raise FinloraError(f"model.name: `{where}`: `{name}.{key}` has shape {tuple(params[key].shape)}, its settings say {shape}", "its structure.json belongs to other weights")
        _check_map(structure, cfg, {**{key: torch.empty(s, device="meta") for key, s in shapes.items()}, **params}, (n_out, n_in), f"model.name: `{where}`: {name}")
        out[name] = Composite(structure, cfg, params, codec, codec_config, (n_out, n_in), dtype, parts)
    return out


def _check_map(structure: Structure, cfg: Any, params: dict[str, Tensor], shape: tuple[int, int], place: str) -> None:
    """Raises: FinloraError for parameters that do not make a map of this shape, indices outside it, and what is not finite."""
    n_out, n_in = shape
    for key, p in params.items():
        if p.is_floating_point() == (key in structure.frozen) or p.dtype == torch.bool:
            raise FinloraError(f"{place}: `{key}` holds {str(p.dtype).removeprefix('torch.')}", "its weights are damaged: fetch or save the model again")
        if not p.is_meta and p.is_floating_point():
            try:
                check_finite(p)
            except FinloraError as error:
                raise FinloraError(f"{place}: `{key}`: {error.message}", error.hint) from None
        elif not p.is_meta and p.numel() and not 0 <= int(p.min()) <= int(p.max()) < n_out * n_in:
            raise FinloraError(f"{place}: `{key}` points outside the weight", "its weights are damaged: fetch or save the model again")
    try:
        with FakeTensorMode():  # shapes without numbers
            outline = {key: torch.empty(p.shape, dtype=torch.float32 if p.is_floating_point() else p.dtype) for key, p in params.items()}
            fits = structure.apply(cfg, outline, torch.empty(1, n_in)).shape[-1] == n_out
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError):
        fits = False
    if not fits:
        raise FinloraError(f"{place}: its parameters make no {n_out} x {n_in} map by these settings", f"its {TOLD} belongs to other weights")


def described(one: Mapping[str, Any], name: str) -> tuple[Structure, Any]:
    """(record, config) of one linear of structure.json."""
    structure = pick("structure", one["structure"])
    problems: list[FinloraError] = []
    values = read_fields(structure.config, one["config"], name, f" in {TOLD}", problems)
    if problems:
        raise Problems(problems)
    return structure, structure.config(**values)


def _codec(told: dict[str, Any]) -> tuple[Any, Any]:
    options = told.get("codec") or {"kind": "none"}
    if not isinstance(options, dict) or not isinstance(options.get("kind"), str):
        raise FinloraError(f"{TOLD}: the codec is {options!r:.60}", "save the model again")
    record = pick("codec", options["kind"])
    problems: list[FinloraError] = []
    values = read_fields(record.config, {k: v for k, v in options.items() if k != "kind"}, "codec", f" in {TOLD}", problems)
    if problems:
        raise Problems(problems)
    return record, record.config(**values)


def chains(body: nn.Module, told: dict[str, Any], turned: set[str] | None = None) -> dict[str, tuple[Structure, Any]]:
    """Put a Chain of two linears without memory in the place of each structured linear, so that each factor can have adapters.

    Returns {linear: (structure, settings)}; turned: receives those that the family keeps as (in, out).  Raises: FinloraError for a structure that is no chain.
    """
    if told.get("codec"):
        raise FinloraError("the factors of this model are kept encoded, and are adapted as a product only", "set method.factors = false")
    out = {}
    for name, one in told["linears"].items():
        structure, cfg = described(one, name)
        if structure.chain is None:
            raise FinloraError(f"structure `{structure.name}` is not made of two factors that could be adapted", "set method.factors = false")
        n_out, n_in = one["shape"]
        old = body.get_submodule(name)
        if turned is not None and type(old).__name__ == "Conv1D":
            turned.add(name)
        with torch.device("meta"):
            rank = one["params"]["A"][0]
            A = nn.Linear(n_in, rank, bias=False, dtype=old.weight.dtype)
            B = nn.Linear(rank, n_out, bias=old.bias is not None, dtype=old.weight.dtype)
        between = None if structure.between is None else _between(structure, cfg)
        stand(body, name, Chain(A, B, between))
        out[name] = structure, cfg
    return out


def opened(body: nn.Module, checkpoint: Checkpoint, told: dict[str, Any], dtype: torch.dtype, device: torch.device, factors: bool) -> Source:
    """Read a structured folder's tensors into a body made without memory; its structures are for wiring to take.

    factors: two linears stand in the place of each structured one.
    Raises: FinloraError for a folder that is damaged, or a structure without factors.
    """
    for name, one in told["linears"].items():
        try:
            wanted = list(shape_of(body.get_submodule(name)))
        except AttributeError:
            wanted = "no such linear"
        if one["shape"] != wanted:
            raise FinloraError(f"model.name: `{checkpoint.folder}`: {name} is {one['shape']} in {TOLD}, by config.json {wanted}", "copy or save the model again")
    turned: set[str] = set()
    chained = chains(body, told, turned) if factors else {}
    whole = {} if factors else composites(told, checkpoint.get, list(checkpoint.spots), dtype, checkpoint.folder)
    moved = {f"{name}.{leaf}": f"{name}.{leaf}.weight" for name in chained for leaf in ("A", "B")}
    moved |= {f"{name}.bias": f"{name}.B.bias" for name in chained}
    source = place(body, checkpoint, dtype, device, rename=lambda key: moved.get(key, key), structured={k: v.to(device) for k, v in whole.items()})
    if source is None:
        raise FinloraError(f"model.name: `{checkpoint.folder}` does not fit its config.json", "save the model again")
    source.chained = chained
    source.turned |= turned
    return source


def multiplied(model: Model, adapter: str | None) -> dict[str, Callable[[], Tensor]]:
    """{linear: what makes its dense W_OI} of those in whose place a Chain stands, adapters over its factors folded in."""

    def make(key: str) -> Tensor:
        structure, cfg = model.structured[key]
        factors = {leaf: model.linears[f"{key}.{leaf}"] for leaf in ("A", "B")}
        return dense(structure, cfg, {leaf: linear.merged(adapter if adapter in linear.adapters else None) for leaf, linear in factors.items()})

    return {key: partial(make, key) for key in model.structured if f"{key}.A" in model.linears}


def as_dense(model: Model, state: dict[str, Any], adapter: str | None) -> dict[str, Any]:
    """A body's state whose chains are one weight again, under the names that transformers knows."""
    whole = multiplied(model, adapter)
    if not whole:
        return state
    inside = tuple(f"{key}.{leaf}." for key in whole for leaf in ("A", "B"))
    out = {key: value for key, value in state.items() if not key.startswith(inside)}
    out.update({f"{key}.bias": state[f"{key}.B.bias"] for key in whole if f"{key}.B.bias" in state})
    return {**out, **{f"{key}.weight": (lambda make=make, key=key: make().T if key in model.turned else make()) for key, make in whole.items()}}


def _between(structure: Structure, cfg: Any) -> Any:
    return lambda z: structure.between(cfg, z)
