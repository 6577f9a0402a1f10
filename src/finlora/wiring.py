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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import FinloraError, unknown
from .linear import EDIT, Linear, Method, Place, Stats, Store, build
from .registry import pick
from .seam import check_over, check_stats, is_by_shape
from .structured import Composite, as_method

if TYPE_CHECKING:
    from .model import Model
    from .weights import Source

Saved = dict[str, tuple[Method, Any, dict[str, torch.Tensor]]]  # linear -> method, settings, parameters
BLOCK, ATTENTION = r"(^|\.)\d+\.", r"(^|\.)([a-z]*_)?att(n|ention)[a-z0-9_]*(\.|$)"


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
        try:
            return re.fullmatch(rule[3:], name) is not None
        except re.error as error:
            raise FinloraError(f"`{rule}` is not a regular expression ({error})", 'fix what follows "re:"') from error
    if rule in ("attention", "mlp"):
        attention = re.search(ATTENTION, name) is not None
        return attention if rule == "attention" else not attention and re.search(BLOCK, name) is not None
    whole = name[:-2] if name.endswith((".A", ".B")) else name  # a factor goes by its linear's name too
    return rule == "all-linear" or any(n == rule or n.endswith("." + rule) for n in (name, whole))


def config_at(config: Any, name: str, patterns: Mapping[str, Mapping[str, Any]] | None) -> Any:
    """The method's settings at one linear: `config` with the values of the first pattern whose rule names it.

    Raises: FinloraError where a pattern sets what the method does not have.
    """
    for rule, values in (patterns or {}).items():
        if matches(name, rule):
            return changed(config, rule, values)
    return config


def changed(config: Any, rule: str, values: Mapping[str, Any], key: str = "method.patterns") -> Any:
    """The settings of a method (a structure) with those of one pattern.

    key: the spec's, of the patterns. Raises: FinloraError, naming the pattern's rule, where it sets what there is not or what is refused.
    """
    place = f"{key} of `{rule}`"
    if not isinstance(values, Mapping):
        raise FinloraError(f"{place} must be a table of settings, got {values!r}", "write {rank = 4}")
    known = [f.name for f in dataclasses.fields(config)]
    for name in values:
        if name not in known:
            raise unknown("key", name, known, place)
    try:
        return dataclasses.replace(config, **values)
    except FinloraError as error:
        raise FinloraError(f"{place}: {error.message}", error.hint) from error


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
    source: Source | None = None,
) -> Model:
    """Put the model's linears on the seam, in place, one at a time, and freeze what the method does not train.

    Each adapter is drawn from its own generator, seeded by (seed, name of the linear), so that neither the order of the
    linears nor what was drawn before can change it.  patterns: {rule: {setting: value}}.  also: `embeddings` and `head`,
    trained whole beside the adapter.  stats: what calibration saw, by linear.  saved: an adapter's own parameters, in place
    of a method to draw.  source: where the weights come from, one at a time, when the modules hold none.
    Raises: FinloraError where the targets, one of several, or the rule of a pattern match no linear.
    """
    c, m = pick("codec", codec), pick("method", method) if method else None
    codec_config = c.config() if codec_config is None else codec_config
    method_config = (m.config() if m else None) if method_config is None else method_config
    found, saved = find_linears(model.body), saved or {}
    chosen = [name for name in found if matches(name, targets)]
    if m and not chosen:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in found})
        raise FinloraError(f"method.targets: `{targets}` matches no linear of {model.name}", f"its linears are called {', '.join(kinds)}")
    for rule in () if m is None or isinstance(targets, str) else targets:
        if not any(matches(name, rule) for name in chosen):
            kinds = sorted({name.rsplit(".", 1)[-1] for name in found})
            raise FinloraError(f"method.targets: the rule `{rule}` matches no linear of {model.name}", f"its linears are called {', '.join(kinds)}")
    if m and m.trains_base and not c.lossless:
        raise FinloraError(f"method `{m.name}` trains the base itself and cannot do so over the lossy codec `{c.name}`", "write codec.kind = \"none\", or choose an adapter method such as lora")
    if m and m.trains_base:
        model.body.float()  # masters: an update smaller than bfloat16's step would be lost
    model.requires_grad_(bool(m and m.trains_base))
    plan = _plan(m, method_config, chosen, found, patterns, stats)
    shapes = [shape_of(found[name]) for name in chosen]
    largest = (max(O for O, _ in shapes), max(I for _, I in shapes)) if shapes else None
    device = model.device if source is None else source.device
    if source is not None:
        reads = [EDIT[0] in params for _, _, params in saved.values()] or [bool(plan) and not is_by_shape(m)]
        source.prepare(c, codec_config, {name: shape_of(module) for name, module in found.items()}, make=not any(reads))
    for name in list(found):
        module = found.pop(name)  # the old linear is freed as soon as the new one stands
        if type(module).__name__ == "Conv1D":
            model.turned.add(name)
        how, config, params = saved.get(name) or ((m, plan[name], None) if name in plan else (None, None, None))
        place = {
            "method": how,
            "method_config": config,
            "params": params,
            "generator": generator_of(seed, name),
            "stats": None if stats is None else stats.get(name),
            "largest": largest,
            "dtype": model.dtype,
            "route": model.route,
        }
        bias = None if module.bias is None else module.bias.detach()
        read = partial(_weight, module) if source is None else partial(source.weight, name)
        store = None if source is None else source.store(name, c, codec_config)
        try:
            if isinstance(store, Composite) and how is not None and how.trains_base:
                linear = Linear(None, bias, model.route, store.shape)
                linear.attach("default", as_method(store.structure), store.how, store.params(torch.float32))
            elif store is None:
                linear = build(read(), bias, codec=c, codec_config=codec_config, **place)
            else:
                linear = _build_over(store, read, bias, **place)
        except FinloraError as error:
            raise FinloraError(f"{name}: {error.message}", error.hint) from error
        parent, _, leaf = name.rpartition(".")
        setattr(model.body.get_submodule(parent), leaf, linear.to(device))
        model.linears[name] = linear
        if isinstance(store, Composite):
            model.structured[name] = store.structure, store.how
    model.route.active = "default" if m or saved else None
    train_also(model, also)
    return model


def train_also(model: Model, also: Sequence[str]) -> None:
    """Let the weights of `embeddings` and `head` train whole, and note them in `model.also` {module: parameter} by their names.

    A weight that both share is one tensor: naming either trains it, and both modules are noted.  Masters are fp32; where
    the model computes in less, the embeddings' output is rounded to the compute dtype and everything behind stays as it
    was.  A head's bias, which few families have, stays frozen.
    Raises: FinloraError for another name, or for a model without such a layer.
    """
    body, layers = model.body, {"embeddings": model.body.get_input_embeddings(), "head": model.body.get_output_embeddings()}
    for part in also:
        if part not in layers:
            raise unknown("part", part, layers, "method.also")
        if not isinstance(getattr(layers[part], "weight", None), nn.Parameter):
            raise FinloraError(f"method.also: {model.name} has no {part} of its own to train", "leave it out")
    names = {id(p): name for name, p in body.named_parameters()}
    for weight in {id(layers[part].weight): layers[part].weight for part in also}.values():
        weight.requires_grad_(True)
        narrow = weight.dtype.itemsize < 4
        for name, module in body.named_modules():
            if getattr(module, "weight", None) is not weight:
                continue
            model.also[name] = names[id(weight)]
            if narrow and module is layers["embeddings"]:
                module.register_forward_hook(partial(_rounded, model.dtype))
            elif narrow:
                module.register_forward_pre_hook(_widened)
        if narrow:
            weight.data = weight.data.float()


def _rounded(dtype: torch.dtype, module: nn.Module, given: Any, out: torch.Tensor) -> torch.Tensor:
    return out.to(dtype)


def _widened(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (given[0].to(module.weight.dtype), *given[1:])


def _weight(module: nn.Module) -> torch.Tensor:
    """W_OI of an nn.Linear or a Conv1D."""
    W = module.weight.detach()
    return W.T.contiguous() if type(module).__name__ == "Conv1D" else W


def _build_over(store: Store, read: Callable[[], torch.Tensor], bias: torch.Tensor | None, **place: Any) -> Linear:
    """As `build`, over a weight that is encoded already; the original is read only where the method looks at it or edits it."""
    method, params, shape = place["method"], place["params"], store.shape
    if method is not None:
        check_over(method, store.codec)
        if params is None:
            check_stats(method.name, method.needs(place["method_config"]), place["stats"])
            device = next(store.buffers()).device
            # NaN, so that a method that looks after all is found out
            W = torch.full((), torch.nan, device=device).expand(shape) if is_by_shape(method) else read().float()

            def roundtrip(V: torch.Tensor) -> torch.Tensor:
                again = store if V is W else Store(store.codec, store.cfg, V, store.dtype, place["stats"])
                return again.dense(torch.float32)

            stats = None if place["stats"] is None else place["stats"].on(device, method.needs(place["method_config"]))
            seen = Place(roundtrip, store.codec.lossless, stats, place["generator"], place["largest"] or shape)
            params = method.init(place["method_config"], W, seen)
        if EDIT[0] in params and isinstance(store, Composite):
            store.put(torch.empty(0))  # refuses
        if EDIT[0] in params:
            return build(read(), bias, codec=store.codec, codec_config=store.cfg, **{**place, "params": params})
    linear = Linear(store, bias, place["route"], shape)
    if method is not None:
        linear.attach("default", method, place["method_config"], params)
    return linear


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
    for rule in patterns or {}:
        if not any(matches(name, rule) for name in chosen):
            raise FinloraError(f"method.patterns: the rule `{rule}` names no linear that takes the method", "correct it, or leave it out")
    if m.plan is None or stats is None:
        return {name: config_at(config, name, patterns) for name in chosen}
    for name in chosen:
        try:
            check_stats(m.name, m.needs(config), stats.get(name))
        except FinloraError as error:
            raise FinloraError(f"{name}: {error.message}", error.hint) from error
    shared = m.plan(config, {name: stats[name] for name in chosen}, {name: shape_of(found[name]) for name in chosen})
    moved = {f.name for f in dataclasses.fields(config) for one in shared.values() if getattr(one, f.name) != getattr(config, f.name)}
    # a pattern that sets one of what the plan shares out sets all of it: a rank of its own beside an alpha that was meant for
    # another rank would be another strength
    for name in chosen:
        values = next((values for rule, values in (patterns or {}).items() if matches(name, rule)), {})
        shared[name] = config_at(config if moved & values.keys() else shared[name], name, patterns)
    return {name: shared[name] for name in chosen}


def refresh(model: Model, name: str, step: int, total: int, seed: int) -> tuple[list[nn.Parameter], int]:
    """Let methods renew the adapter `name` after a step.

    Returns the trained parameters that are new, and over how many steps their learning rate is to warm up again (the
    setting `rewarm` of those methods that have one). A method whose settings have an `every` is asked at its multiples
    alone: asking decodes the weight.
    """
    renewed, warm = [], 0
    for key, linear in model.linears.items():
        if name in linear.adapters and step % getattr(linear.how[name][1], "every", 1) == 0:
            held = linear.adapters[name]
            fresh = sorted(linear.refresh(name, step, total, generator_of(seed, key, step)))
            renewed += [held[k] for k in fresh]
            warm = max(warm, getattr(linear.how[name][1], "rewarm", 0) if fresh else 0)
    return renewed, warm


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
        n = module.size if isinstance(module, Linear) else module.weight.numel()
        kept = getattr(module, "store", None)
        bits += 8 * kept.nbytes() if kept is not None else n * 8 * model.dtype.itemsize
        total += n
    return bits / total
