"""Full fine-tuning: no adapter, the weight itself is trained. y = x W^T.

The linear keeps no store: an fp32 master of W is the one parameter, computed in x's dtype. It has no plain LoRA form
(its change of W has full rank), so `to_lora` is None.

Shapes: x (..., I), W_OI.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import Method, Place


@dataclass(frozen=True)
class Full:
    """Nothing to choose."""


def init(cfg: Full, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """{"W": fp32 copy of W_OI}."""
    return {"W": W_OI.detach().to(torch.float32, copy=True).contiguous()}


def apply(cfg: Full, params, x: Tensor, y0, base) -> Tensor:
    """x W^T."""
    return F.linear(x, params["W"].to(x.dtype))


def merge(cfg: Full, params, W_OI) -> Tensor:
    """The trained weight."""
    return params["W"]


METHOD = Method("full", Full, init, apply, merge, trains_base=True)
