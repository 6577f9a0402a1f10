"""LoRA: y = x W^T + (alpha / rank) (x A^T) B^T, with W frozen, A drawn at random and B zero.

Source: 2106.09685. A ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming with a = sqrt 5), which is what PEFT draws. A and B are fp32
masters, computed in x's dtype; the sum with the base is part of the second product.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FinloraError
from ..linear import Method, Peft, Place
from ..seam import by_shape


@dataclass(frozen=True)
class LoRA:
    """rank: inner width. alpha: strength; the product is scaled by alpha / rank. dropout: on the adapter's input."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self):
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise FinloraError(f"rank must be a whole number of at least 1, got {self.rank!r}", "8 and 16 are usual")
        for name in ("alpha", "dropout"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int | float):
                raise FinloraError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise FinloraError(f"alpha must be a finite number above 0, got {self.alpha!r}", "twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise FinloraError(f"dropout must be in [0, 1), got {self.dropout!r}", "0 switches it off")


def scale(cfg: LoRA) -> float:
    """alpha / rank."""
    return cfg.alpha / cfg.rank


@by_shape
def init(cfg: LoRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """{"A": (R, I), "B": (O, R)}, fp32 on W's device.

    Drawn where the generator lives, so that a seed gives the same numbers on every device.
    Raises: FinloraError when the rank exceeds the layer.
    """
    O, I = W_OI.shape
    check_rank(cfg.rank, O, I)
    device = place.generator.device if place.generator is not None else "cpu"
    A = torch.empty(cfg.rank, I, dtype=torch.float32, device=device)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=place.generator)
    return {"A": A.to(W_OI.device), "B": torch.zeros(O, cfg.rank, device=W_OI.device)}


def check_rank(rank: int, O: int, I: int) -> None:
    """Raises: FinloraError when the rank exceeds the layer."""
    if rank > min(O, I):
        raise FinloraError(f"rank {rank} is above the layer, whose weight is {O} x {I}", f"use a rank of at most {min(O, I)}")


def add_product(params, x: Tensor, y0: Tensor, factor: float) -> Tensor:
    """y0 + factor * (x A^T) B^T; the sum is part of the second product, so it is rounded once."""
    h = F.linear(x, params["A"].to(x.dtype)).reshape(-1, params["A"].shape[0])
    y = torch.addmm(y0.reshape(-1, y0.shape[-1]), h, params["B"].to(x.dtype).t(), alpha=factor)
    return y.view(y0.shape)


def delta(params, factor: float) -> Tensor:
    """factor * B A, (O, I)."""
    return factor * (params["B"] @ params["A"])


def apply(cfg: LoRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + (alpha / rank) (x A^T) B^T."""
    return add_product(params, x, y0, scale(cfg))


def merge(cfg: LoRA, params, W_OI: Tensor) -> Tensor:
    """W + (alpha / rank) B A."""
    return W_OI + delta(params, scale(cfg))


def to_lora(cfg: LoRA, params) -> tuple[Tensor, Tensor, float]:
    """(A_RI, B_OR, alpha / rank)."""
    return params["A"], params["B"], scale(cfg)


PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight"}


def to_peft(cfg: LoRA, **flags: bool) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig."""
    common = {"peft_type": "LORA", "r": cfg.rank, "lora_alpha": cfg.alpha, "lora_dropout": cfg.dropout}
    return {**common, "use_rslora": False, "use_dora": False, **flags}


def from_peft(fields: dict[str, Any], config: type = LoRA, **flags: bool) -> LoRA | None:
    """The config where the fields describe a LoRA with exactly these flags, else None."""
    wanted = {"use_rslora": False, "use_dora": False, **flags}
    if fields.get("peft_type") != "LORA" or any(bool(fields.get(k)) != v for k, v in wanted.items()):
        return None
    return config(rank=fields["r"], alpha=float(fields["lora_alpha"]), dropout=float(fields.get("lora_dropout") or 0.0))


PEFT = Peft(to_peft, PEFT_NAMES, from_peft)
METHOD = Method("lora", LoRA, init, apply, merge, to_lora=to_lora, peft=PEFT, paper="2106.09685")
