"""Wiring: which linears of a model are on the seam, and with what.

All linears but the output head take the codec; those that a rule names take the method.  Rules:

    all-linear            every one (QLoRA, 2305.14314)
    attention, mlp        those inside, or outside, the attention of a block
    q_proj, mlp.down_proj the end of the name
    re:layers\\.[0-3]\\..*  a regular expression of the full name

Ranks, alphas and any other setting of the method can differ by rule (`patterns`).  GPT-2's Conv1D, which keeps (in, out), is
turned round on its way in.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import FinloraError, unknown
from .linear import Linear, Method, Stats, build
from .registry import pick

if TYPE_CHECKING:
    from .model import Model

Saved = dict[str, tuple[Method, Any, dict[str, torch.Tensor]]]  # linear -> method, settings, parameters
BLOCK, ATTENTION = r"(^|\.)\d+\.", r"(^|\.)([a-z]*_)?att[a-z]*(\.|$)"


def find_linears(body: nn.Module) -> dict[str, nn.Module]:
    """Every nn.Linear and Conv1D of the body by name, but the output head and whatever shares an embedding's weight."""
    shared = {id(m.weight) for m in body.modules() if isinstance(m, nn.Embedding)}
    head_module = body.get_output_embeddings()
    return {
        name: module
        for name, module in body.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head_module
        and id(module.weight) not in shared
    }


def matches(name: str, rule: str | Sequence[str]) -> bool:
    """Whether a linear's name is named by the rule, or by one of several."""
    return any(_matches(name, r) for r in ([rule] if isinstance(rule, str) else rule))


def _matches(name: str, rule: str) -> bool:
    if rule.startswith("re:"):
        return re.fullmatch(rule[3:], name) is not None
    if rule in ("attention", "mlp"):
        attention = re.search(ATTENTION, name) is not None
        return attention if rule == "attention" else not attention and re.search(BLOCK, name) is not None
    return rule == "all-linear" or name == rule or name.endswith("." + rule)


def config_at(config: Any, name: str, patterns: Mapping[str, Mapping[str, Any]] | None) -> Any:
    """The method's settings at one linear: `config` with the values of the first pattern whose rule names it.

    Raises: FinloraError where a pattern sets what the method does not have.
    """
    for rule, values in (patterns or {}).items():
        if matches(name, rule):
            known = [f.name for f in dataclasses.fields(config)]
            for key in values:
                if key not in known:
                    raise unknown("key", key, known, f"method.patterns of `{rule}`")
            try:
                return dataclasses.replace(config, **values)
            except FinloraError as error:
                raise FinloraError(f"method.patterns of `{rule}`: {error.message}", error.hint) from error
    return config


def rewire(
    model: Model,
    *,
    codec: str = "none",
    codec_config: Any = None,
    method: str | None = None,
    method_config: Any = None,
    targets: str | Sequence[str] = "all-linear",
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
    also: Sequence[str] = (),
    seed: int = 0,
    stats: Mapping[str, Stats] | None = None,
    saved: Saved | None = None,
) -> Model:
    """Put the model's linears on the seam, in place, one at a time, and freeze what the method does not train.

    Each adapter is drawn from its own generator, seeded by (seed, name of the linear), so that neither the order of the
    linears nor what was drawn before can change it.  patterns: {rule: {setting: value}}.  also: `embeddings` and `head`,
    trained whole beside the adapter.  stats: what calibration saw, by linear.  saved: an adapter's own parameters, in place
    of a method to draw.
    Raises: FinloraError where the targets match no linear.
    """
    c, m = pick("codec", codec), pick("method", method) if method else None
    codec_config = c.config() if codec_config is None else codec_config
    method_config = (m.config() if m else None) if method_config is None else method_config
    found, saved = find_linears(model.body), saved or {}
    chosen = [name for name in found if matches(name, targets)]
    if m and not chosen:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in found})
        raise FinloraError(f"method.targets: `{targets}` matches no linear of {model.name}", f"its linears are called {', '.join(kinds)}")
    if m and m.trains_base and not c.lossless:
        raise FinloraError(f"method `{m.name}` trains the base itself and cannot do so over the lossy codec `{c.name}`", "write codec.kind = \"none\", or choose an adapter method such as lora")
    if m and m.trains_base:
        model.body.float()  # masters: an update smaller than bfloat16's step would be lost
    model.requires_grad_(bool(m and m.trains_base))
    plan = _plan(m, method_config, chosen, found, patterns, stats)
    shapes = [shape_of(found[name]) for name in chosen]
    largest = (max(O for O, _ in shapes), max(I for _, I in shapes)) if shapes else None
    for name in list(found):
        module = found.pop(name)  # the old linear is freed as soon as the new one stands
        W = module.weight.detach()
        if type(module).__name__ == "Conv1D":
            W = W.T.contiguous()
            model.turned.add(name)
        how, config, params = saved.get(name) or ((m, plan[name], None) if name in plan else (None, None, None))
        try:
            linear = build(
                W,
                None if module.bias is None else module.bias.detach(),
                codec=c,
                codec_config=codec_config,
                method=how,
                method_config=config,
                params=params,
                generator=generator_of(seed, name),
                stats=None if stats is None else stats.get(name),
                largest=largest,
                dtype=model.dtype,
                route=model.route,
            )
        except FinloraError as error:
            raise FinloraError(f"{name}: {error.message}", error.hint) from error
        parent, _, leaf = name.rpartition(".")
        setattr(model.body.get_submodule(parent), leaf, linear.to(model.device))
        model.linears[name] = linear
    model.route.active = "default" if m or saved else None
    return model


def generator_of(seed: int, name: str, step: int = 0) -> torch.Generator:
    """The source of a linear's draws: a function of the run's seed, the linear's name and the step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(f"{name}@{step}".encode() if step else name.encode())) % 2**63)


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of an nn.Linear or a Conv1D."""
    a, b = module.weight.shape
    return (b, a) if type(module).__name__ == "Conv1D" else (a, b)


def _plan(m: Method | None, config: Any, chosen: list[str], found: dict, patterns: Any, stats: Any) -> dict[str, Any]:
    """Settings of each chosen linear: what the patterns say, then what the method itself shares out."""
    if m is None:
        return {}
    if m.plan is None or stats is None:
        return {name: config_at(config, name, patterns) for name in chosen}
    shared = m.plan(config, {name: stats[name] for name in chosen}, {name: shape_of(found[name]) for name in chosen})
    return {name: config_at(shared[name], name, patterns) for name in chosen}


def refresh(model: Model, name: str, step: int, total: int, seed: int) -> list[nn.Parameter]:
    """Let methods renew the adapter `name` after a step; returns the trained parameters that are new."""
    renewed = []
    for key, linear in model.linears.items():
        if name in linear.adapters:
            held = linear.adapters[name]
            renewed += [held[k] for k in sorted(linear.refresh(name, step, total, generator_of(seed, key, step)))]
    return renewed


def tend(model: Model, name: str, step: int, total: int) -> None:
    """Let methods look after the adapter `name` between backward and the optimiser's step, the whole model at once."""
    layers: dict[str, tuple[Method, list]] = {}
    for linear in model.linears.values():
        if name in linear.adapters and linear.how[name][0].tend is not None:
            method, config = linear.how[name]
            layers.setdefault(method.name, (method, []))[1].append((config, linear.adapters[name]))
    for method, pairs in layers.values():
        method.tend(pairs, step, total)


def bits_per_weight(model: Model) -> float:
    """Stored bits per weight over the linears (not head, embeddings, norms or adapters), with all metadata."""
    total = bits = 0
    for module in list(model.linears.values()) or list(find_linears(model.body).values()):
        n = module.weight.numel() if not isinstance(module, Linear) else module.shape[0] * module.shape[1]
        kept = getattr(module, "store", None)
        bits += 8 * kept.nbytes() if kept is not None else n * 8 * model.dtype.itemsize
        total += n
    return bits / total
