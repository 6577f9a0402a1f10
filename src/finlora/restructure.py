"""Models whose linears are structures: which linears and how large, and putting them there.

    plan     which linears take a structure, at which rank: set by the settings, by the share of each linear's parameters that
             is kept, or so that the whole model is smaller by a factor
    put      structures in the linears' places: fresh ones to train from scratch, or the factors of a decomposition

A model without structures is never touched.  Their folders are in structure_folder.py.

Shapes: W_OI (out, in), A_RI, B_OR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import FinloraError
from .linear import Linear
from .registry import pick
from .seam import Structure
from .structured import Composite, Guided, Rounded, as_method, guided, rounded, settled
from .wiring import changed, find_linears, generator_of, matches, shape_of

if TYPE_CHECKING:
    from .model import Model

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
            rule, own = next(((rule, values) for rule, values in (patterns or {}).items() if matches(name, rule)), ("", {}))
            if not isinstance(own, Mapping):
                raise FinloraError(f"structure.patterns of `{rule}` must be a table of settings, got {own!r}", "write {rank = 4} or {keep = 0.5}")
            if "keep" in own and (isinstance(own["keep"], bool) or not isinstance(own["keep"], int | float) or not 0 < own["keep"] <= 1):
                raise FinloraError(f"structure.patterns of `{rule}`: keep must be above 0 and at most 1, got {own['keep']!r}", "0.5 halves the linear's parameters")
            if "keep" in own and "rank" in own:
                raise FinloraError(f"structure.patterns of `{rule}` sets keep and rank, which are two ways to say one thing", "leave one of them out")
            part, own = own.get("keep", 0.0 if "rank" in own else share), {k: v for k, v in own.items() if k != "keep"}
            cfg, (n_out, n_in) = changed(config, rule, own, "structure.patterns") if own else config, shapes[name]
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
        stand(model.body, key, linear.to(device))
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
        stand(model.body, key, fresh.to(model.device))
        model.linears[key], model.structured[key] = fresh, (structure, cfg)
    model.route.active = None
    return model.requires_grad_(False)


def stand(body: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of that name."""
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
    return inside + model.body.get_output_embeddings().weight.numel() + attention_width(model.config) * row_tokens


def attention_width(config: Any) -> int:
    """Values of all heads' queries over all layers: multiply-adds of a token's causal attention for each token of its row."""
    heads = config.num_attention_heads
    return config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


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
