"""AdamW: Adam with weight decay apart from the gradient.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   p <- p - lr (m^ / (sqrt(v^) + eps) + decay p)

Source: 1711.05101. PyTorch's own fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import Optimizer, Pair
from ._apart import adamw


@dataclass(frozen=True)
class AdamW:
    """It has no options of its own: betas and epsilon stand in [train]."""


def make(cfg: AdamW, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.AdamW:
    """PyTorch's AdamW over the groups."""
    return adamw(groups, settings)


OPTIMIZER = Optimizer("adamw", AdamW, make, paper="1711.05101")
