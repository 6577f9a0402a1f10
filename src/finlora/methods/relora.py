"""ReLoRA: LoRA that every so often folds its product into the base and starts again, so that the change's rank adds up.

    W <- W + (alpha / rank) B A,   A drawn anew, B = 0        every `every` steps

Source: 2307.05695. The map between restarts is LoRA's and a restart changes none of it. The moments of A and B are
dropped at a restart (the paper zeroes 99 % of them, by size) and the learning rate warms up again over `rewarm` steps.
Over a lossless base the product is folded in, in fp32 (bf16 would lose updates below its step); over a lossy one, where
folding would round it away, it stays beside the base as frozen factors, and the forward pass grows with the rounds. Such
an adapter is one LoRA of rank (rounds x rank), which the exporter can cut. No restart at the last step.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR; A_base, A_past (K, I), B_base, B_past (O, K).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..linear import Method, Place
from ..seam import by_shape
from . import _stack, lora


@dataclass(frozen=True)
class ReLoRA(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. every: steps between restarts. rewarm: steps of warm-up after each."""

    every: int = 50
    rewarm: int = 10

    def __post_init__(self):
        super().__post_init__()
        _stack.check_whole("every", self.every, 1, "a tenth of the run's steps is a start")
        _stack.check_whole("rewarm", self.rewarm, 0, "0 goes on at the full rate; 5 to 50 is usual")


@by_shape
def init(cfg: ReLoRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """LoRA's A and B, and kept factors of rank 0."""
    return {**lora.init(cfg, W_OI, place), **_stack.no_rounds(W_OI, place)}


def apply(cfg: ReLoRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + s (x A^T) B^T + (x A_past^T) B_past^T."""
    return _stack.apply(params, x, y0, lora.scale(cfg))


def merge(cfg: ReLoRA, params, W_OI: Tensor) -> Tensor:
    """W + s B A + B_past A_past."""
    return _stack.merge(params, W_OI, lora.scale(cfg))


def to_lora(cfg: ReLoRA, params) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale) over the stored weight, of rank R plus that of the past rounds beside it."""
    return _stack.whole(params, lora.scale(cfg))


def refresh(cfg: ReLoRA, params, W_OI: Tensor, place: Place, step: int, total: int) -> dict[str, Tensor] | None:
    """Every `every` steps but the last: the product joins what is kept, A is drawn anew and B is zero."""
    if step % cfg.every or step >= total:
        return None
    kept = _stack.grown(params, params["A"], lora.scale(cfg) * params["B"])
    return {**kept, **{key: p.to(params[key].dtype) for key, p in lora.init(cfg, W_OI, place).items()}}


METHOD = Method(
    "relora", ReLoRA, init, apply, merge, refresh=refresh, to_lora=to_lora, paper="2307.05695", frozen=_stack.KEPT,
)  # fmt: skip
