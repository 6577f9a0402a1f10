"""LoRA-FA: LoRA whose A stays as it was drawn, so that backward keeps x A^T (rank wide) and not x.

    y = x W^T + (alpha / rank) (x A^T) B^T,   A frozen, B trained

Source: 2308.03303. `correct` replaces B's gradient by that of the step in B that comes nearest to a step along the whole
weight's gradient, g_B (A A^T)^-1 / s^2 (PEFT's create_lorafa_optimizer). Adam is blind to the factor 1 / s^2, and for a
drawn A the product A A^T is near I / 3: it matters with SGD or after an A that was not drawn (loaded, calibrated).
The saving is real only where nothing else of the layer keeps x: here the base product does not (linear.Matmul). It is
lost with dropout, which keeps the mask, a byte an entry.

Shapes: A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..errors import FinloraError
from . import lora


@dataclass(frozen=True)
class LoRAFA(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. correct: project B's gradient, g_B (A A^T)^-1 / s^2."""

    correct: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.correct, bool):
            raise FinloraError(f"correct must be true or false, got {self.correct!r}", "false is plain LoRA-FA")


@torch.no_grad()
def tend(pairs, step: int, total: int) -> None:
    """Project the gradients of B where the settings ask for it."""
    for cfg, params in pairs:
        grad = params["B"].grad
        if cfg.correct and grad is not None:
            A = params["A"]
            # the pseudo-inverse: directions that A lacks get no gradient instead of an infinite one
            grad.copy_(grad @ torch.linalg.pinv(A @ A.t(), hermitian=True) / lora.scale(cfg) ** 2)


# PEFT holds it as plain LoRA (what trains is the optimiser's affair), so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(lora.METHOD, name="lora_fa", config=LoRAFA, frozen=("A",), tend=tend, peft=PEFT, paper="2308.03303")
