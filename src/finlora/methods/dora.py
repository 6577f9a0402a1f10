"""DoRA: the weight is split into a trained length of each output row and a direction that LoRA adapts.

    W' = m * V / |V|,   V = W + (alpha / rank) B A,   |V| over the inputs of each row, m_O starts at |W|

Source: 2402.09353. |V| is held constant in the gradient (section 4.3), in `apply` and in `merge` alike. It is found from

    |V|^2 = |W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>      (row by row, s = alpha / rank)

so that V, as large as W, is never formed; only W is decoded, once more than LoRA does, and nothing of its size is kept.
The bias stays outside the gain. DoRA has no plain LoRA form: the gain m / |V| rescales W itself, a change of full rank,
so `to_lora` is None; merge instead.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR, m_O.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import Method, Peft, Place
from ..seam import by_shape
from . import lora


@dataclass(frozen=True)
class DoRA(lora.LoRA):
    """rank: inner width. alpha: strength; the product is scaled by alpha / rank. dropout: on the adapter's input."""


@by_shape
def init(cfg: DoRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """LoRA's A and B, and m = |W| of the weight as the store gives it back, so that training starts at the base."""
    params = lora.init(cfg, W_OI, place)
    kept = place.roundtrip(W_OI).float()
    return {**params, "m": norm(kept, params["A"], params["B"], lora.scale(cfg))}


@torch.no_grad()
def norm(W_OI: Tensor, A_RI: Tensor, B_OR: Tensor, s: float) -> Tensor:
    """(O,): the length of each row of W + s B A, without gradient, in W's dtype."""
    A, B = A_RI.to(W_OI.dtype), B_OR.to(W_OI.dtype)
    cross = (F.linear(W_OI, A) * B).sum(1)
    square = ((B @ (A @ A.t())) * B).sum(1)
    total = torch.linalg.vector_norm(W_OI, dim=1).square() + 2 * s * cross + s * s * square
    # a row of zeros keeps gain m / |V| finite, and rounding cannot make a length imaginary
    return total.clamp(min=torch.finfo(W_OI.dtype).tiny).sqrt()


def apply(cfg: DoRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """(m / |V|) * (y0 + s (x A^T) B^T)."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    gain = params["m"].to(work) / norm(base.dense(work), params["A"], params["B"], lora.scale(cfg))
    return lora.apply(cfg, params, x, y0, base) * gain.to(x.dtype)


def merge(cfg: DoRA, params, W_OI: Tensor) -> Tensor:
    """m * V / |V|."""
    V = lora.merge(cfg, params, W_OI)
    length = torch.linalg.vector_norm(V.detach(), dim=1).clamp(min=torch.finfo(V.dtype).tiny ** 0.5)
    return V * (params["m"] / length)[:, None]


PEFT = Peft(
    partial(lora.to_peft, use_dora=True),
    {**lora.PEFT_NAMES, "m": "lora_magnitude_vector"},
    partial(lora.from_peft, config=DoRA, use_dora=True),
)
METHOD = Method("dora", DoRA, init, apply, merge, peft=PEFT, paper="2402.09353")
