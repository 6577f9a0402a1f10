"""Structures on the seam: how a map of trainable numbers takes a linear's place, in training and frozen.

    as_method(structure)      in training: a method that holds the whole map itself, so that groups, refresh, tend, checkpoints
                              and resuming are those of every method
    guided(structure, share)  the same with a dense guide: y = a x W^T + (1 - a) S(x), a from 1 to 0 by a cosine over the
                              first share of the steps; what is left is S alone (Wei et al. 2024, 2406.16450)
    rounded(structure)        quantisation-aware: every matrix is rounded in the forward pass as a codec will keep it, and its gradient
                              passes through as if it were not (straight-through, Bengio et al. 2013, 1308.3432)
    Composite                 frozen: each matrix of the structure under a codec, to adapters what a `Store` is
    Chain                     the two narrow linears that a low-rank map is made of, where each is to have adapters of its own

Adapters over a Composite stand over the product, B A x + s b a x; over a Chain each factor has its own.

Shapes: x_BTI, y_BTO, W_OI, A_RI, B_OR.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FinloraError
from .linear import Store
from .seam import Codec, Method, Stats, Structure

GUIDE, ALPHA = "guide", "alpha"  # what `guided` adds to a structure's parameters


@functools.cache
def as_method(structure: Structure) -> Method:
    """The structure as a method that keeps no base: its parameters are the map."""

    def apply(cfg, params, x, y0, base):
        return structure.apply(cfg, params, x)

    def merge(cfg, params, W_OI):
        return dense(structure, cfg, params)

    def refresh(cfg, params, W_OI, place, step, total):
        return structure.refresh(cfg, params, step, total, place.generator)

    def init(cfg, W_OI, place):
        if structure.fit is None:
            raise FinloraError(f"structure `{structure.name}` cannot be fitted to a weight", "train it from scratch")
        return structure.fit(cfg, W_OI, place.stats)

    return Method(
        structure.name, structure.config, init, apply, merge, groups=structure.groups, tend=structure.tend,
        refresh=refresh if structure.refresh else None, trains_base=True, paper=structure.paper, frozen=structure.frozen,
        undecayed=structure.undecayed,
    )  # fmt: skip


def dense(structure: Structure, cfg: Any, params: Any) -> Tensor:
    """W_OI of the map.  Raises: FinloraError where it is not linear."""
    if structure.dense is None:
        raise FinloraError(
            f"structure `{structure.name}` is not one linear map, so it has no dense weight",
            "keep it as it is, or adapt it by a method that asks for no weight, such as lora",
        )
    return structure.dense(cfg, params)


# -- a dense guide ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guided:
    """inner: the structure's own settings. share: of all steps, over which the guide fades out."""

    inner: Any
    share: float

    def __getattr__(self, name: str) -> Any:  # `every` and `rewarm` of the structure are read by whoever refreshes
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


@functools.cache
def guided(structure: Structure) -> Structure:
    """The structure with a dense guide beside it while it is young; its settings are `Guided`.

    The guide begins as the structure's own product (where it has one), so that the map begins as it would without.
    """

    def init(cfg, n_in, n_out, std, generator):
        params = structure.init(cfg.inner, n_in, n_out, std, generator)
        if structure.dense is not None:
            W = structure.dense(cfg.inner, params).clone()
        else:
            W = torch.randn(n_out, n_in, generator=generator) * std
        return {**params, GUIDE: W, ALPHA: torch.ones(())}

    def apply(cfg, params, x):
        y, alpha = structure.apply(cfg.inner, params, x), params[ALPHA]
        if not torch.compiler.is_compiling() and not float(alpha):
            return y
        beside = nn.functional.linear(x, params[GUIDE].to(x.dtype))
        return alpha.to(x.dtype) * beside + (1 - alpha).to(x.dtype) * y

    def tend(pairs, step, total):
        for cfg, params in pairs:
            with torch.no_grad():
                params[ALPHA].fill_(fade(step + 1, total, cfg.share))
        if structure.tend is not None:
            structure.tend([(cfg.inner, params) for cfg, params in pairs], step, total)

    def groups(cfg, params):
        inner = {key: p for key, p in params.items() if key not in (GUIDE, ALPHA)}
        return {**structure.groups(cfg.inner, inner), GUIDE: 1.0, ALPHA: 1.0}

    def refresh(cfg, params, step, total, generator):
        new = structure.refresh(cfg.inner, {k: p for k, p in params.items() if k not in (GUIDE, ALPHA)}, step, total, generator)
        return None if new is None else {**new, GUIDE: params[GUIDE], ALPHA: params[ALPHA]}

    def inner(slot: Callable[..., Any]) -> Callable[..., Any]:
        return lambda cfg, *rest: slot(cfg.inner, *rest)

    return replace(
        structure, config=Guided, init=init, apply=apply, tend=tend, groups=groups, fit=None, chain=None, between=None,
        refresh=refresh if structure.refresh else None, count=inner(structure.count), flops=inner(structure.flops),
        sized=lambda cfg, *rest: replace(cfg, inner=structure.sized(cfg.inner, *rest)), frozen=(*structure.frozen, ALPHA),
        dense=inner(structure.dense) if structure.dense else None,
    )  # fmt: skip


# -- rounded as it will be kept ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounded:
    """inner: the structure's own settings. codec, how: the record and settings by which its matrices will be kept."""

    inner: Any
    codec: Codec
    how: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


@functools.cache
def rounded(structure: Structure) -> Structure:
    """The structure computed from matrices as a codec gives them back; its settings are `Rounded`."""

    def through(cfg: Rounded, params: Any) -> dict[str, Tensor]:
        out = dict(params)
        for key, p in params.items():
            if p.is_floating_point() and p.dim() == 2:
                kept = p.detach().float()
                back = cfg.codec.decode(cfg.how, cfg.codec.encode(cfg.how, kept), tuple(p.shape), torch.float32)
                out[key] = p + (back.to(p.dtype) - p).detach()
        return out

    def apply(cfg, params, x):
        return structure.apply(cfg.inner, through(cfg, params), x)

    def tend(pairs, step, total):
        structure.tend([(cfg.inner, params) for cfg, params in pairs], step, total)

    def inner(slot: Callable[..., Any]) -> Callable[..., Any]:
        return lambda cfg, *rest: slot(cfg.inner, *rest)

    return replace(
        structure, config=Rounded, init=inner(structure.init), apply=apply, groups=inner(structure.groups), fit=None, chain=None,
        between=None, tend=tend if structure.tend else None, refresh=inner(structure.refresh) if structure.refresh else None,
        count=inner(structure.count), flops=inner(structure.flops),
        sized=lambda cfg, *rest: replace(cfg, inner=structure.sized(cfg.inner, *rest)),
        dense=(lambda cfg, params: structure.dense(cfg.inner, through(cfg, params))) if structure.dense else None,
    )  # fmt: skip


def fade(step: int, total: int, share: float) -> float:
    """The guide's weight at a step (0-based) of `total`: a cosine from 1 to 0 over the first `share` of them."""
    last = share * total
    return 0.5 * (1 + math.cos(math.pi * step / last)) if step < last else 0.0


def settled(structure: Structure, cfg: Any, params: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """(settings, parameters) of the structure alone, without a guide.

    Raises: FinloraError where the guide still has a part in the map.
    """
    if isinstance(cfg, Rounded):
        cfg = cfg.inner
    if not isinstance(cfg, Guided):
        return cfg, params
    if float(params[ALPHA]):
        raise FinloraError(f"the guide still has {float(params[ALPHA]):.0%} of the map: training stopped before it had faded", "let the run go to its end")
    return cfg.inner, {key: p for key, p in params.items() if key not in (GUIDE, ALPHA)}


# -- frozen ----------------------------------------------------------------------------------------------------------


class _Again(torch.autograd.Function):
    """A frozen map whose decoded parameters are not kept from forward to backward."""

    @staticmethod
    def forward(ctx, x: Tensor, map: Composite) -> Tensor:
        ctx.save_for_backward(x)
        ctx.map = map
        return map.structure.apply(map.how, map.params(x.dtype), x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.map.structure.apply(ctx.map.how, ctx.map.params(x.dtype), x)
        return torch.autograd.grad(y, x, grad)[0], None


class Composite(nn.Module):
    """A frozen structured weight; to a `Linear` and its adapters it is a `Store`.

    structure, how: the record and its settings. params: its parameters; every matrix of floats is kept by `codec` (its
    settings: cfg), the rest as it is. parts: ready stores for some of them instead. shape: (out, in). dtype: the compute dtype.
    """

    def __init__(
        self, structure: Structure, how: Any, params: dict[str, Tensor], codec: Codec, cfg: Any, shape: tuple[int, int],
        dtype: torch.dtype, parts: dict[str, Store] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.structure, self.how, self.codec, self.cfg = structure, how, codec, cfg
        self.shape, self.dtype, self.edits, self.keys = (shape[0], shape[1]), dtype, 1, ()
        self.parts = nn.ModuleDict()
        if codec.needs(cfg):
            raise FinloraError(f"codec `{codec.name}` encodes by calibration, which factors of a structure do not have", "choose another codec")
        for key, value in params.items():
            if value.is_floating_point() and value.dim() == 2:
                self.parts[key] = Store(codec, cfg, value, dtype)
            else:
                self.register_buffer(f"raw_{key}", value.detach().to(dtype) if value.is_floating_point() else value.detach())
        for key, store in (parts or {}).items():
            self.parts[key] = store

    def raw(self) -> dict[str, Tensor]:
        """The parameters that no codec keeps."""
        return {key.removeprefix("raw_"): value for key, value in self._buffers.items()}

    def params(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The decoded parameters. Read only."""
        raw = {key: value.to(dtype) if value.is_floating_point() else value for key, value in self.raw().items()}
        return {**{key: store.dense(dtype) for key, store in self.parts.items()}, **raw}

    def under(self, codec: Codec, cfg: Any) -> Composite:
        """The same parameters kept by another codec."""
        return Composite(self.structure, self.how, self.params(torch.float32), codec, cfg, self.shape, self.dtype)

    @torch.no_grad()
    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """W_OI.  Raises: FinloraError where the map is not linear."""
        return dense(self.structure, self.how, self.params(torch.float32)).to(dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x_BTI -> y_BTO."""
        if self.structure.chain is None:
            return _Again.apply(x, self)
        z = self.parts["A"](x)
        z = z if self.structure.between is None else self.structure.between(self.how, z)
        return self.parts["B"](z)

    def put(self, W_OI: Tensor, stats: Stats | None = None) -> None:
        """Raises: FinloraError; a structured weight is not edited."""
        raise FinloraError(
            f"this weight is kept as `{self.structure.name}` factors, and the method edits the weight itself",
            "choose a method that leaves the base alone, such as lora, or export the model dense first",
        )

    @property
    def size(self) -> int:
        """Weights that are kept."""
        return sum(store.size for store in self.parts.values()) + sum(b.numel() for b in self._buffers.values() if b.is_floating_point())

    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(store.nbytes() for store in self.parts.values()) + sum(b.nbytes for b in self._buffers.values())

    def extra_repr(self) -> str:
        return f"{self.structure.name} under {self.codec.name}, shape={self.shape}, dtype={self.dtype}"


class Chain(nn.Module):
    """y = B between(A x) + b of two linears, each to be adapted by itself.

    A, B: modules of (rank, in) and (out, rank). weight: none, it is nobody's linear.
    """

    def __init__(self, A: nn.Module, B: nn.Module, between: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.A, self.B, self.between = A, B, between

    def forward(self, x: Tensor) -> Tensor:
        """x_BTI -> y_BTO."""
        z = self.A(x)
        return self.B(z if self.between is None else self.between(z))
