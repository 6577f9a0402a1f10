"""LoRA+: LoRA whose B learns `ratio` times faster than A.

    y = x W^T + (alpha / rank) (x A^T) B^T,   lr_B = ratio * lr_A

Source: 2402.12354, which shows that features are learnt efficiently at large width only when lr_B / lr_A is large, and
recommends about 16 with a base learning rate somewhat below LoRA's. The map is that of `lora`.

Shapes: A_RI, B_OR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import FinloraError
from . import lora


@dataclass(frozen=True)
class LoRAPlus(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. ratio: how many times faster than A B learns."""

    ratio: float = 16.0

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if not number or not (math.isfinite(self.ratio) and self.ratio > 0):
            raise FinloraError(f"ratio must be a finite number above 0, got {self.ratio!r}", "16 is usual, 1 is plain LoRA")


def groups(cfg: LoRAPlus, params) -> dict[str, float]:
    """A learns at the base rate, B at `ratio` times it."""
    return {"A": 1.0, "B": float(cfg.ratio)}


# PEFT holds it as plain LoRA (the ratio is the optimiser's), so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(lora.METHOD, name="lora_plus", config=LoRAPlus, groups=groups, peft=PEFT, paper="2402.12354")
