"""Models whose linears are structures: which linears and how large, putting them there, and their folders.

    plan     which linears take a structure, at which rank: set by the settings, by the share of each linear's parameters that
             is kept, or so that the whole model is smaller by a factor
    put      structures in the linears' places: fresh ones to train from scratch, or the factors of a decomposition
    save     config.json, the tokenizer, structured.safetensors and structure.json; `open_model` opens such a folder
    take     what a folder says of its structures, for whoever opens it

The weights have a name of their own, so that a tool which knows nothing of structures says that it finds no weights, instead
of drawing the missing ones at random.  A model without structures is never touched.

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

from .checkpoint import atomic_folder
from .errors import FinloraError, Problems
from .fields import read_fields
from .linear import Linear, Store
from .registry import pick
from .seam import Structure
from .streaming import Source, place
from .structured import Chain, Composite, Guided, Rounded, as_method, dense, guided, rounded, settled
from .weights import Checkpoint
from .wiring import changed, find_linears, generator_of, matches, shape_of

if TYPE_CHECKING:
    from .model import Model

TOLD, WEIGHTS = "structure.json", "structured.safetensors"
Shapes = Mapping[str, tuple[int, int]]
Plan = dict[str, tuple[Structure, Any]]  # linear -> its structure and settings


# -- which, and how large --------------------------------------------------------------------------------------------


def plan(
    structure: Structure,
    config: Any,
    shapes: Shapes,
    *,
    targets: str | Sequence[str] = "all-linear",
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
    keep: float = 0.0,
    compression: float = 0.0,
    others: int = 0,
) -> Plan:
    """The structure's settings at each linear that the targets name.

    shapes: linear -> (out, in). keep: the share of each linear's parameters that stays (0: as `config` says). compression: the
    model's parameters become at most their number divided by this, by one `keep` for all linears. others: parameters outside
    `shapes`. patterns: {rule: {setting: value}}, where a `keep` of its own counts too.
    Raises: FinloraError where no linear is named, a rank is above a linear, or no rank is small enough.
    """
    chosen = [name for name in shapes if matches(name, targets)]
    if not chosen:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in shapes})
        raise FinloraError(f"structure.targets: `{targets}` matches no linear of the model", f"its linears are called {', '.join(kinds)}")
    for rule in patterns or {}:
        if not any(matches(name, rule) for name in chosen):
            raise FinloraError(f"structure.patterns: the rule `{rule}` names no linear that takes the structure", "correct it, or leave it out")

    def at(share: float) -> Plan:
        out = {}
        for name in chosen:
            own = next((dict(values) for rule, values in (patterns or {}).items() if matches(name, rule)), {})
            part = own.pop("keep", share)
            cfg, (n_out, n_in) = changed(config, name, own) if own else config, shapes[name]
            try:
                cfg = structure.sized(cfg, n_in, n_out, part) if part else cfg
                structure.count(cfg, n_in, n_out)
                out[name] = structure, cfg
            except FinloraError as error:
                raise FinloraError(f"{name} ({n_out} x {n_in}): {error.message}", error.hint) from error
        return out

    if not compression:
        return at(keep)
    full = others + sum(o * i for o, i in shapes.values())
    most = full / compression

    def size(share: float) -> int | None:
        try:
            held = at(share)
        except FinloraError:
            return None  # smaller than the structure can be
        return others + sum(held[n][0].count(held[n][1], i, o) if n in held else o * i for n, (o, i) in shapes.items())

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        n = size(middle)
        low, high = (middle, high) if n is None or n <= most else (low, middle)
    n = size(low)
    if n is None or n > most:
        least = next((s for s in (size(k / 2000) for k in range(1, 2001)) if s is not None), full)
        raise FinloraError(
            f"structure.compression = {compression:g} cannot be reached: {others:,} of {full:,} parameters are embeddings, norms and biases,"
            f" and rank 1 leaves {least:,}",
            f"at most {full / least:.3g}; fewer entries in the vocabulary, or a wider model, would allow more",
        )
    return at(low)


def shapes_of(body: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that can take a structure."""
    return {name: shape_of(module) for name, module in find_linears(body).items()}


def planned(body: nn.Module, part: Any, resolved: tuple[Structure, Any]) -> Plan:
    """`plan` for a body and a spec's [structure] section with its resolved (record, config)."""
    shapes = shapes_of(body)
    inside = sum(o * i for o, i in shapes.values())
    others = sum(p.numel() for p in body.parameters()) - inside
    held = plan(
        *resolved, shapes, targets=part.targets, patterns=part.patterns, keep=part.keep, compression=part.compression, others=others
    )
    if part.guided:
        held = {name: (guided(structure), Guided(cfg, part.guided)) for name, (structure, cfg) in held.items()}
    if part.rounded:
        codec = pick("codec", part.rounded)
        how = codec.config()
        if codec.needs(how):
            raise FinloraError(f'structure.rounded = "{part.rounded}" encodes by calibration, which factors in training do not have', "choose another codec")
        held = {name: (rounded(structure), Rounded(cfg, codec, how)) for name, (structure, cfg) in held.items()}
    return held


# -- putting them there ----------------------------------------------------------------------------------------------


def put(
    model: Model, plan: Plan, seed: int = 0, params: Mapping[str, dict[str, Tensor]] | None = None, name: str = "default", std: float | None = None
) -> Model:
    """Put structures in the places of linears, to be trained; in place.

    params: linear -> its parameters; where there are none they are drawn, each linear by its own generator of (seed, name), at the
    deviation of the weight that it replaces (or `std`).  Biases stay what they are.
    """
    found = find_linears(model.body)
    for key, (structure, cfg) in plan.items():
        module = found.pop(key)
        if type(module).__name__ == "Conv1D":
            model.turned.add(key)
        n_out, n_in = shape_of(module)
        held = (params or {}).get(key)
        if held is None:
            spread = float(module.weight.detach().float().std()) if std is None else std
            held = structure.init(cfg, n_in, n_out, spread, generator_of(seed, key))
        device = model.device if module.weight.is_meta else module.weight.device
        bias = None if module.bias is None else module.bias.detach()
        linear = Linear(None, bias, model.route, (n_out, n_in))
        linear.attach(name, as_method(structure), cfg, held)
        _stand(model.body, key, linear.to(device))
        model.linears[key] = linear
        model.structured[key] = structure, cfg
    return model


def freeze(model: Model, codec: str = "none", codec_config: Any = None) -> Model:
    """Keep every trained structure by a codec, frozen; in place."""
    record = pick("codec", codec)
    for key, (structure, cfg) in model.structured.items():
        linear = model.body.get_submodule(key)
        if not isinstance(linear, Linear) or linear.store is not None:
            continue
        cfg, held = settled(structure, cfg, {k: p.detach() for k, p in linear.adapters[linear.sole].items()})
        structure = pick("structure", structure.name)
        store = Composite(structure, cfg, held, record, record.config() if codec_config is None else codec_config, linear.shape, model.dtype)
        fresh = Linear(store, linear.bias, model.route, linear.shape)
        _stand(model.body, key, fresh.to(model.device))
        model.linears[key], model.structured[key] = fresh, (structure, cfg)
    model.route.active = None
    return model.requires_grad_(False)


def _stand(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, module)


def trained_values(model: Model) -> int:
    """Trained values of a model that is being trained, without guides."""
    trained = {name for name in model.structured if name in model.linears and model.linears[name].store is None}
    inside = {id(p) for name in trained for p in model.linears[name].adapters.parameters()}
    others = sum(p.numel() for p in model.trainable().values() if id(p) not in inside)
    return others + sum(s.count(cfg, *reversed(model.linears[name].shape)) for name, (s, cfg) in model.structured.items() if name in trained)


def multiply_adds(model: Model, row_tokens: int) -> int:
    """Multiply-adds of one token's forward pass in a row of `row_tokens`: linears, output layer and causal attention.

    They are what the map asks for, as MFU counts: half of a row's attention is after the query, and what a structure does once a
    pass is not a token's (`once_a_pass`).  Training takes three times as many, and those two.
    """
    inside = 0
    for name, linear in model.linears.items():
        structure, cfg = model.structured.get(name, (None, None))
        n_out, n_in = linear.shape
        inside += n_out * n_in if structure is None else structure.flops(cfg, n_in, n_out)
    inside += sum(math.prod(shape_of(module)) for module in find_linears(model.body).values())
    head, config = model.body.get_output_embeddings().weight, model.config
    return inside + head.numel() + config.num_hidden_layers * config.hidden_size * row_tokens


def once_a_pass(structure: Structure, cfg: Any, n_in: int, n_out: int) -> int:
    """Multiply-adds of a forward and backward pass through one linear that do not grow with its tokens, as torch counts them.

    A structure that applies factors has none; one that builds its matrix has those of building it, and of its gradient's way back.
    """
    from torch.utils.flop_counter import FlopCounterMode

    params = {k: p.requires_grad_(p.is_floating_point() and k not in structure.frozen) for k, p in structure.init(cfg, n_in, n_out, 0.02, None).items()}
    counted = []
    for tokens in (8, 16):
        with FlopCounterMode(display=False) as counter:
            structure.apply(cfg, params, torch.zeros(tokens, n_in, requires_grad=True)).sum().backward()
        counted.append(counter.get_total_flops() // 2)
    return 2 * counted[0] - counted[1]


# -- folders ---------------------------------------------------------------------------------------------------------


def save(model: Model, folder: str | Path, replace: bool = False) -> None:
    """Write a structured model's folder. Weights are kept in the compute dtype, encoded ones as they are.

    Raises: FinloraError where the folder exists, the disk is full, a guide has not faded, or an adapter stands over the product.
    """
    atomic_folder(Path(folder), lambda t: _write(model, t), replace)


def _write(model: Model, folder: Path) -> None:
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
    model.body.config.save_pretrained(folder)
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
        if told["format"] != 1 or not all({"structure", "config", "shape", "params"} <= one.keys() for one in told["linears"].values()):
            raise KeyError("format")
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise FinloraError(f"model.name: `{file}` does not describe a structured model", "save the model again, with this version of finlora") from error
    return told


def composites(told: dict[str, Any], get: Any, keys: Sequence[str], dtype: torch.dtype, where: Any) -> dict[str, Composite]:
    """The frozen structures of a folder, as `told_of` describes them. get(key) -> tensor; keys: what the checkpoint holds.

    Raises: FinloraError for tensors that are missing or not of the shapes that the settings say.
    """
    codec, codec_config = _codec(told)
    out = {}
    for name, one in told["linears"].items():
        structure, cfg = described(one, name)
        n_out, n_in = (int(n) for n in one["shape"])
        shapes = {key: tuple(int(n) for n in shape) for key, shape in one["params"].items()}
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
        out[name] = Composite(structure, cfg, params, codec, codec_config, (n_out, n_in), dtype, parts)
    return out


def described(one: Mapping[str, Any], name: str) -> tuple[Structure, Any]:
    """(record, config) of one linear of structure.json."""
    structure = pick("structure", one["structure"])
    problems: list[FinloraError] = []
    values = read_fields(structure.config, one["config"], name, f" in {TOLD}", problems)
    if problems:
        raise Problems(problems)
    return structure, structure.config(**values)


def _codec(told: dict[str, Any]) -> tuple[Any, Any]:
    options = dict(told.get("codec") or {"kind": "none"})
    record = pick("codec", options.pop("kind"))
    return record, record.config(**options)


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
        n_out, n_in = (int(n) for n in one["shape"])
        old = body.get_submodule(name)
        if turned is not None and type(old).__name__ == "Conv1D":
            turned.add(name)
        with torch.device("meta"):
            rank = int(one["params"]["A"][0])
            A = nn.Linear(n_in, rank, bias=False, dtype=old.weight.dtype)
            B = nn.Linear(rank, n_out, bias=old.bias is not None, dtype=old.weight.dtype)
        between = None if structure.between is None else _between(structure, cfg)
        _stand(body, name, Chain(A, B, between))
        out[name] = structure, cfg
    return out


def opened(body: nn.Module, checkpoint: Checkpoint, told: dict[str, Any], dtype: torch.dtype, device: torch.device, factors: bool) -> Source:
    """Read a structured folder's tensors into a body made without memory; its structures are for wiring to take.

    factors: two linears stand in the place of each structured one.
    Raises: FinloraError for a folder that is damaged, or a structure without factors.
    """
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
