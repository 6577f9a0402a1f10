"""What a method is, found by trying it on a small weight: no list of members to keep in step.

    traits(pick("method", "dora"))     its parameters, the plain LoRA that it can be written as, how its scale falls

Shapes: W_OI of 32 x 48, A_RI, B_OR.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from . import registry
from .errors import FinloraError
from .linear import EDIT, Linear, Method, Route, Stats, build, over_original

O, I = 32, 48
STEPS = 100  # of a pretended run, so that whatever is renewed at some share of a run is renewed


@dataclass(frozen=True)
class Traits:
    """params: those beyond A and B, by name. export: what the trained adapter can be written as, in words.

    paired: whether A and B both train and enter as a product. falls: p where the scale goes as rank^-p, None where the
    method has no rank or no scale of its own.
    """

    params: tuple[str, ...]
    export: str
    paired: bool
    falls: float | None


def traits(method: Method, config: Any = None) -> Traits:
    """The traits of a method at its default settings, or at `config`, whose rank is lowered to fit the small weight."""
    config = _small(method.config() if config is None else config)
    kinds = [_codec(lossless=True)] + (
        [_codec(lossless=False)] if method.over == "any" and not method.trains_base else []
    )
    tried = [_linear(method, config, codec) for codec in kinds]
    names = {name for linear in tried for name in linear.adapters["default"]} - {"A", "B"}
    first = tried[0].adapters["default"]
    exports = list(dict.fromkeys(_export(method, config, linear) for linear in tried))
    return Traits(
        tuple(sorted(names)),
        exports[0] if len(exports) == 1 else f"{exports[0]}; over a lossy base {exports[1]}",
        pair(method, config, dict(first.items())) is not None,
        _falls(method, config),
    )


def pair(
    method: Method, config: Any, params: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """(A_RI, B_OR, scale) where the method trains two factors that enter its linear as scale * B A, else None.

    A method whose plain LoRA form is of other factors than its own A and B (it adds to them, or scales between) has
    none. Further rows and columns, of earlier rounds that stand beside the store, do no harm where A and B are not in
    them."""
    A, B = params.get("A"), params.get("B")
    if A is None or B is None or {"A", "B"} & set(method.frozen) or A.ndim != 2 or B.shape[1:] != A.shape[:1]:
        return None
    if method.to_lora is None and method.trains_base:
        return _product(method, config, params)
    if method.to_lora is None:
        return A, B, getattr(config, "alpha", 1.0) / getattr(config, "rank", 1.0)
    own_A, own_B, scale = method.to_lora(config, params)
    if own_A is A and own_B is B:
        return A, B, float(scale)
    led = _leading(method, config, params)
    return None if led is None else (A, B, led)


def _product(method: Method, config: Any, params: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """(A, B, s) where the whole weight is s B A and what knows nothing of them; None where it is not, or the map is not linear."""
    A, B = params["A"], params["B"]
    draw = torch.Generator().manual_seed(0)
    A2, B2 = (torch.rand(p.shape, generator=draw).to(p) + 0.5 for p in (A, B))
    empty = A.new_zeros(len(B), A.shape[1])
    try:
        with torch.no_grad():
            whole, rest = (method.merge(config, {**params, "A": A2, "B": b}, empty) for b in (B2, torch.zeros_like(B2)))
    except FinloraError:
        return None
    ratio = ((whole - rest) / (B2 @ A2)).double()
    s = float(ratio.median())
    return (A, B, s) if torch.allclose(ratio, ratio.new_tensor(s), rtol=1e-4, atol=0) else None


def _leading(method: Method, config: Any, params: dict[str, torch.Tensor]) -> float | None:
    """s where the plain LoRA form is [A; C], [s B, D] and C D knows nothing of A and B; None where it is not.

    Tried on drawn numbers, so that what is alike at a start (zeros, ones) is not taken to be alike for good."""
    draw = torch.Generator().manual_seed(0)
    drawn = {key: torch.rand(p.shape, generator=draw, dtype=torch.float64) + 0.5 for key, p in params.items()}
    R, rests, s = len(drawn["A"]), [], None
    for factor in (1.0, 3.0):
        A, B = factor * drawn["A"], 2 * factor * drawn["B"]
        own_A, own_B, scale = method.to_lora(config, {**drawn, "A": A, "B": B})
        if len(own_A) < R or not torch.equal(own_A[:R], A):
            return None
        ratio = scale * own_B[:, :R] / B
        s = float(ratio.mean())
        if not torch.allclose(ratio, ratio.new_tensor(s), rtol=1e-12, atol=0):
            return None
        rests.append((own_A[R:], scale * own_B[:, R:]))
    return s if all(torch.equal(a, b) for a, b in zip(*rests)) else None


def _small(config: Any) -> Any:
    rank = getattr(config, "rank", 0)
    return dataclasses.replace(config, rank=8) if rank > 8 else config


def _codec(lossless: bool) -> Any:
    """Any codec that asks for no calibration and loses nothing, or something."""
    records = (registry.pick("codec", name) for name in registry.names("codec"))
    return next(c for c in records if c.lossless == lossless and not c.needs(c.config()))


def _linear(method: Method, config: Any, codec: Any) -> Linear:
    draw = torch.Generator().manual_seed(0)
    W_OI, x_NI = torch.randn(O, I, generator=draw) / I**0.5, torch.randn(4 * I, I, generator=draw)
    seen = Stats(x_NI.t() @ x_NI / len(x_NI), torch.randn(O, I, generator=draw) / 100, len(x_NI))
    return build(
        W_OI, codec=codec, codec_config=codec.config(), method=method, method_config=config, generator=draw, stats=seen,
        dtype=torch.float32, route=Route(),
    )  # fmt: skip


def _export(method: Method, config: Any, linear: Linear) -> str:
    """What an adapter over this base can be written as."""

    def rank() -> tuple[int | None, bool]:
        params = dict(linear.adapters["default"].items())
        form = over_original(method, config, params)
        return (None if form is None else len(form[0])), EDIT[0] in params

    (before, edits), own = rank(), linear.adapters["default"]
    if before is None:
        return "the weights themselves" if method.trains_base else "merged weights only"
    for step in range(1, STEPS) if method.refresh is not None else ():
        linear.refresh("default", step, STEPS, torch.Generator().manual_seed(step))
    where = " over the original weights" if edits else ""
    if rank()[0] != before:
        return f"LoRA{where} whose rank grows with each renewal"
    held = len(own["A"]) if "A" in own else getattr(config, "rank", before)
    words = {held: "the same rank", 2 * held: "twice the rank"}.get(before, f"rank {before}")
    return f"LoRA of {words}{where}"


def _falls(method: Method, config: Any) -> float | None:
    """p where the scale of the plain LoRA form goes as rank^-p."""
    if method.to_lora is None or not hasattr(config, "rank"):
        return None
    scales = []
    for rank in (2, 8):
        at = dataclasses.replace(config, rank=rank)
        found = pair(method, at, dict(_linear(method, at, _codec(lossless=True)).adapters["default"].items()))
        if found is None:
            return None
        scales.append(found[2])
    return round(-math.log(scales[1] / scales[0], 4), 6)
