"""rsLoRA: LoRA scaled by alpha / sqrt(rank), which keeps the size of outputs and gradients independent of the rank.

    y = x W^T + (alpha / sqrt(rank)) (x A^T) B^T

Source: 2312.03732. Differs from `lora` in the scale alone.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..linear import Method, Peft
from .lora import PEFT_NAMES, LoRA, add_product, delta, from_peft, init, to_peft


@dataclass(frozen=True)
class RsLoRA(LoRA):
    """rank: inner width. alpha: strength; the product is scaled by alpha / sqrt(rank). dropout: on the adapter's input."""


def scale(cfg: RsLoRA) -> float:
    """alpha / sqrt(rank)."""
    return cfg.alpha / math.sqrt(cfg.rank)


def apply(cfg: RsLoRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + (alpha / sqrt(rank)) (x A^T) B^T."""
    return add_product(params, x, y0, scale(cfg))


def merge(cfg: RsLoRA, params, W_OI: Tensor) -> Tensor:
    """W + (alpha / sqrt(rank)) B A."""
    return W_OI + delta(params, scale(cfg))


def to_lora(cfg: RsLoRA, params) -> tuple[Tensor, Tensor, float]:
    """(A_RI, B_OR, alpha / sqrt(rank))."""
    return params["A"], params["B"], scale(cfg)


PEFT = Peft(partial(to_peft, use_rslora=True), PEFT_NAMES, partial(from_peft, config=RsLoRA, use_rslora=True))
METHOD = Method("rslora", RsLoRA, init, apply, merge, to_lora=to_lora, peft=PEFT, paper="2312.03732")
