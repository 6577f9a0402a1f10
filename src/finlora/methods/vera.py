"""VeRA: one random pair A, B for all layers, frozen; each layer trains two vectors, for the ranks and for the outputs.

    y = x W^T + b * (B (d * (A x)))          b starts at 0, d at d_initial

Source: 2310.11454. The pair is drawn as PEFT draws it: on the CPU from `key` (PEFT's projection_prng_key), as large as
the largest linear asks for, uniform within sqrt(6 / fan in); a linear uses the leading corner. All linears hold views
of one memory. A layer trains O + R numbers, so ranks are larger than LoRA's (256 in PEFT, up to 1024 in the paper) and
learning rates ten to a hundred times higher.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR, b_O, d_R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FinloraError
from ..linear import Method, Peft, Place
from ..seam import by_shape
from . import lora
from ._bases import check_key, dims, shared


@dataclass(frozen=True)
class VeRA:
    """rank: inner width. dropout: on the adapter's input. d_initial: what d starts at. key: which A and B are drawn."""

    rank: int = 16
    dropout: float = 0.0
    d_initial: float = 0.1
    key: int = 0

    def __post_init__(self):
        lora.LoRA(rank=self.rank, dropout=self.dropout)  # its checks are ours
        d = self.d_initial
        if isinstance(d, bool) or not isinstance(d, int | float) or not math.isfinite(d) or d == 0:
            raise FinloraError(f"d_initial must be a finite number other than 0, got {d!r}", "0.1 is usual")
        check_key(self.key)


def draw(generator: torch.Generator, rank: int, out: int, into: int) -> tuple[Tensor, Tensor]:
    """(A (R, into), B (out, R)), each uniform within sqrt(6 / its columns), A first."""
    return tuple(
        torch.empty(shape).uniform_(-math.sqrt(6 / shape[1]), math.sqrt(6 / shape[1]), generator=generator)
        for shape in ((rank, into), (out, rank))
    )


@by_shape
def init(cfg: VeRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """{"A", "B": views of the shared pair, "b": zeros (O,), "d": (R,)}, fp32 on W's device. The generator is not used.

    Raises: FinloraError when the rank exceeds the layer.
    """
    O, I = W_OI.shape
    lora.check_rank(cfg.rank, O, I)
    A, B = shared(draw, cfg.key, cfg.rank, *dims(place, (O, I)), str(W_OI.device))
    d = torch.full((cfg.rank,), float(cfg.d_initial), device=W_OI.device)
    return {"A": A[:, :I], "B": B[:O], "b": torch.zeros(O, device=W_OI.device), "d": d}


def scaled(params) -> dict[str, Tensor]:
    """{"A": diag(d) A, "B": diag(b) B}: the same map as plain LoRA."""
    return {"A": params["d"][:, None] * params["A"], "B": params["b"][:, None] * params["B"]}


def apply(cfg: VeRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + b * (B (d * (A x)))."""
    return lora.add_product(scaled(params), x, y0, 1.0)


def merge(cfg: VeRA, params, W_OI: Tensor) -> Tensor:
    """W + diag(b) B diag(d) A."""
    return W_OI + lora.delta(scaled(params), 1.0)


def to_lora(cfg: VeRA, params) -> tuple[Tensor, Tensor, float]:
    """(diag(d) A, diag(b) B, 1)."""
    both = scaled(params)
    return both["A"], both["B"], 1.0


def to_peft(cfg: VeRA) -> dict[str, Any]:
    """The fields of PEFT's VeraConfig; the pair is saved, as PEFT advises."""
    own = {"vera_dropout": cfg.dropout, "d_initial": cfg.d_initial, "projection_prng_key": cfg.key}
    return {"peft_type": "VERA", "r": cfg.rank, **own, "save_projection": True}


def from_peft(fields: dict[str, Any]) -> VeRA | None:
    """The config where the fields describe a VeRA, else None."""
    if fields.get("peft_type") != "VERA":
        return None
    d, key = fields.get("d_initial", 0.1), fields.get("projection_prng_key", 0)
    return VeRA(rank=fields["r"], dropout=float(fields.get("vera_dropout") or 0.0), d_initial=d, key=key)


PEFT = Peft(
    to_peft,
    {"b": "vera_lambda_b", "d": "vera_lambda_d"},
    from_peft,
    shared={"A": "base_model.vera_A", "B": "base_model.vera_B"},
)
METHOD = Method("vera", VeRA, init, apply, merge, to_lora=to_lora, frozen=("A", "B"), peft=PEFT, paper="2310.11454")
