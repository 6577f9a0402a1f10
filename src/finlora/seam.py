"""The seam's records: what a codec, a structure, a method, and PEFT's form of a method are, and what they may know of each other.

A `Codec` says how frozen numbers are kept; a `Structure` how trainable numbers make a map; a `Method` how a frozen base is
adapted. Members are one file each under codecs/, structures/ and methods/; `linear.py` joins a codec and a method,
`structured.py` brings a structure there. A slot is here because two members need it and a law checks it.

Shapes: x_BTI (batch, tokens, in; any leading dimensions), y_BTO, W_OI (out, in).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .errors import FinloraError


@dataclass(frozen=True)
class Stats:
    """What calibration saw of one linear, for the codecs and methods that ask for it (their `needs`).

    moment_II: E[x x^T] over the calibration tokens, fp32. grad_OI: dL/dW of the mean loss, fp32. tokens: how many.
    """

    moment_II: Tensor | None = None
    grad_OI: Tensor | None = None
    tokens: int = 0

    def on(self, device: torch.device, names: tuple[str, ...]) -> Stats:
        """The same with these fields on `device`; calibration keeps all of them on the CPU."""
        held = {name: getattr(self, name) for name in names}
        return replace(self, **{name: value.to(device) for name, value in held.items() if value is not None})


def nothing(cfg: Any) -> tuple[str, ...]:
    """`needs` of a member that no calibration serves; others name fields of `Stats`."""
    return ()


@dataclass(frozen=True)
class Codec:
    """How frozen numbers are kept. `config` is a frozen dataclass that checks itself.

    encode(cfg, W_OI, stats=None) -> dict[str, Tensor]; raises FinloraError on non-finite weights.
    decode(cfg, tensors, shape, dtype) -> W_OI of that dtype, rounded once.
    bits(cfg, shape, dtype=torch.float32) -> bits per weight with all metadata. `dtype` is the type a lossless codec
    keeps. lossless: decode returns what encode was given; its store keeps the compute dtype.
    paper: where it is from (arXiv number or the specification). needs(cfg) -> the fields of `Stats` that encode uses.
    """

    name: str
    config: type
    encode: Callable[..., dict[str, Tensor]]
    decode: Callable[..., Tensor]
    bits: Callable[..., float]
    lossless: bool
    paper: str = ""
    needs: Callable[[Any], tuple[str, ...]] = nothing


def ones(cfg: Any, params: dict[str, Tensor]) -> dict[str, float]:
    """Learning-rate multipliers of a method that treats all its parameters alike."""
    return {name: 1.0 for name in params}


@dataclass(frozen=True)
class Peft:
    """How PEFT's adapter folder holds a method.

    config(cfg) -> the fields of adapter_config.json that are the method's own. names: parameter -> PEFT's key suffix.
    read(fields) -> the method's config where adapter_config.json describes this method, else None. A parameter that
    `names` lacks is kept under our own name, which PEFT ignores. shared: parameter -> PEFT's key for a tensor that all
    linears share; each linear has its leading corner of it.
    """

    config: Callable[[Any], dict[str, Any]]
    names: dict[str, str]
    read: Callable[[dict[str, Any]], Any]
    shared: dict[str, str] = field(default_factory=dict)


# Frozen factors of what a method took from the weight (or added to it) before it was stored:
#     stored weight = codec(W + B_base A_base)
# A method that edits its base says so by these two parameters and by nothing else. They make the edit reproducible from
# the original weight, and the adapter exact over the original as plain LoRA (`over_original`).
EDIT = ("A_base", "B_base")


@dataclass(frozen=True)
class Place:
    """What a method may know of its linear beside the weight.

    roundtrip(W_OI) -> W as the store will give it back, fp32; W itself where it has been stored already. lossless: whether
    the store loses nothing. stats: what calibration saw, what the method needs of it on W's device. generator: the source of
    draws. largest: (out, in), each the largest among the linears that are adapted together.
    """

    roundtrip: Callable[[Tensor], Tensor]
    lossless: bool = True
    stats: Stats | None = None
    generator: torch.Generator | None = None
    largest: tuple[int, int] = (0, 0)


def by_shape(init: Callable) -> Callable:
    """Marks a method's `init` that asks W_OI for no more than its shape, its device and its roundtrip.

    Over a base that is kept encoded such an init is given a stand-in for W_OI, all NaN, whose roundtrip is the stored
    weight; the full-precision checkpoint is then not read at all.
    """
    init.by_shape = True
    return init


@dataclass(frozen=True)
class Method:
    """How a frozen base is adapted. `config` is a frozen dataclass that checks itself.

    init(cfg, W_OI, place) -> fp32 parameters on W's device. With A_base and B_base among them the base is edited (EDIT).
    apply(cfg, params, x, y0, base) -> y: y0 = x W^T without bias; base is the `Store`; params are masters of any float
    type, to be computed with in x's.
    merge(cfg, params, W_OI) -> W_OI, the stored weight with the adapter folded in, in W's dtype. Its gradient is that of
    `apply`.
    groups(cfg, params) -> {parameter: learning-rate multiplier}.
    refresh(cfg, params, W_OI, place, step, total) -> new parameters after `step` of `total` steps, or None when it is not
    time; W_OI is the stored weight. Trained parameters keep their shapes; EDIT may only grow at its end. Two settings of
    such a method are read by `wiring.refresh`: `every` (it is asked at multiples of that many steps alone, at every step where
    it has no such setting) and `rewarm` (steps over which the learning rate warms up after a renewal, 0 where it has none).
    to_lora(cfg, params) -> (A_RI, B_OR, scale), exactly the same map over the stored weight as plain LoRA; the slot is
    None where there is none.
    trains_base: the params hold the weight itself as "W" and the linear keeps no store.
    peft: how PEFT's adapter folder holds it, or None where PEFT has no such method.
    paper: arXiv number. frozen: parameters that do not train. undecayed: those that weight decay spares, because they
    carry pretrained weight. needs(cfg) -> the fields of `Stats` that init uses. over: "any" store, or "lossless" alone.
    plan(cfg, {linear: Stats}, {linear: shape}) -> {linear: cfg}, ranks shared out over the model, or None.
    tend([(cfg, params)], step, total): called with every linear's parameters between backward and the optimiser's step;
    it may change gradients and frozen parameters.
    start: where the adapter begins. "base": it moves nothing, or no more than storing an edited base anew does.
    "nearer": its product is no further from the weight's own than the bare store's. "descent": a step down grad_OI.
    """

    name: str
    config: type
    init: Callable[[Any, Tensor, Place], dict[str, Tensor]]
    apply: Callable[..., Tensor]
    merge: Callable[..., Tensor]
    groups: Callable[..., dict[str, float]] = ones
    refresh: Callable | None = None
    to_lora: Callable | None = None
    trains_base: bool = False
    peft: Peft | None = None
    paper: str = ""
    frozen: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()
    needs: Callable[[Any], tuple[str, ...]] = nothing
    over: str = "any"
    plan: Callable | None = None
    tend: Callable | None = None
    start: str = "base"


@dataclass(frozen=True)
class Structure:
    """How trainable numbers make a linear map. `config` is a frozen dataclass that checks itself.

    init(cfg, n_in, n_out, std, generator) -> fp32 parameters. std: the deviation that a dense weight would be drawn with;
    the map starts with outputs of the variance that such a weight gives.
    apply(cfg, params, x_BTI) -> y_BTO; params are masters of any float type, to be computed with in x's.
    dense(cfg, params) -> W_OI, the same map as one weight; the slot is None where the map is not linear.
    fit(cfg, W_OI, stats=None) -> the parameters of this structure that are nearest a given weight: in the weight's own norm,
    or with `stats` in E|x W^T - y|^2; the slot is None where no closed form is known.
    sized(cfg, n_in, n_out, keep) -> cfg with the most parameters that are no more than keep * n_in * n_out.
    count(cfg, n_in, n_out) -> trained values. flops(cfg, n_in, n_out) -> multiply-adds of one token's forward pass.
    groups, refresh(cfg, params, step, total, generator), tend([(cfg, params)], step, total), frozen, undecayed: as those of
    `Method`; a refreshed structure is the same map. Settings that have an `undecayed` of their own go before the record's.
    chain(cfg, params) -> (A_RI, B_OR), two weights of which the map is made: B between(A x). between(cfg, z) -> z; where it
    is None there is nothing between. paper: arXiv number.
    """

    name: str
    config: type
    init: Callable[..., dict[str, Tensor]]
    apply: Callable[..., Tensor]
    count: Callable[..., int]
    flops: Callable[..., int]
    sized: Callable[..., Any]
    dense: Callable[..., Tensor] | None = None
    fit: Callable[..., dict[str, Tensor]] | None = None
    groups: Callable[..., dict[str, float]] = ones
    refresh: Callable | None = None
    tend: Callable | None = None
    chain: Callable[..., tuple[Tensor, Tensor]] | None = None
    between: Callable[..., Tensor] | None = None
    frozen: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()
    paper: str = ""


def is_by_shape(method: Method) -> bool:
    """Whether the method's start needs no full-precision weight."""
    return getattr(method.init, "by_shape", False)


def edited(W_OI: Tensor, params: dict[str, Tensor]) -> Tensor:
    """The weight that is stored: W + B_base A_base, in fp32 (fp64 for fp64); W itself where the method edits nothing."""
    if EDIT[0] not in params:
        return W_OI
    work = torch.float64 if W_OI.dtype == torch.float64 else torch.float32
    A, B = (params[key].to(device=W_OI.device, dtype=work) for key in EDIT)
    return torch.addmm(W_OI.to(work), B, A)


def over_original(method: Method, cfg: Any, params: dict[str, Tensor]) -> tuple[Tensor, Tensor, float] | None:
    """(A_RI, B_OR, scale): the adapter as plain LoRA over the weight from before any edit; None where there is no such form.

    An edited base costs the edit's rank: A = [A; A_base], B = [s B, B_base], scale 1. Exact over a lossless base; over a
    lossy one the codec's own error, which the edit moved, stays out.
    """
    if method.to_lora is None:
        return None
    A, B, scale = method.to_lora(cfg, params)
    if EDIT[0] not in params:
        return A, B, scale
    A_base, B_base = (params[key].to(device=A.device, dtype=A.dtype) for key in EDIT)
    return torch.cat([A, A_base]), torch.cat([scale * B, B_base], 1), 1.0


def check_finite(W_OI: Tensor) -> None:
    """Raises FinloraError when a weight holds NaN or infinity, which no codec can keep."""
    # min and max carry NaN and infinity through, and unlike isfinite() need no second tensor of W's size
    if W_OI.numel() and not all(torch.isfinite(v) for v in torch.aminmax(W_OI)):
        bad = int((~torch.isfinite(W_OI)).sum())
        raise FinloraError(
            f"a weight of shape {tuple(W_OI.shape)} holds {bad} value(s) that are NaN or infinite",
            "the checkpoint is damaged or was saved after training diverged",
        )


def check_over(method: Method, codec: Codec) -> None:
    """Raises: FinloraError when the method cannot stand over the codec."""
    if codec.lossless or (method.over == "any" and not method.trains_base):
        return
    if method.trains_base:
        raise FinloraError(
            f"method `{method.name}` trains the weights themselves, which codec `{codec.name}` would round away",
            "use a lossless codec, or a method that adapts a frozen base",
        )
    raise FinloraError(
        f"method `{method.name}` is exact over a lossless base only, and codec `{codec.name}` is lossy",
        'write codec.kind = "none", or choose another method',
    )


def check_stats(name: str, needs: tuple[str, ...], stats: Stats | None) -> None:
    """Raises: FinloraError naming what calibration would have had to see."""
    lost = [key for key in needs if getattr(stats, key, None) is None]
    if lost:
        raise FinloraError(
            f"`{name}` starts from calibration and was given no {lost[0].split('_')[0]} of this linear",
            "calibrate first: finlora.calibrate.collect, or finlora finetune, which does it by itself",
        )
