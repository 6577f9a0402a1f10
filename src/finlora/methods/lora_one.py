"""LoRA-One: LoRA that starts one step down the full gradient, at that step's best approximation of its rank.

    -G = U S V^T,   B = U_r (S_r / S_0)^{1/2} / sqrt(gamma),   A = (S_r / S_0)^{1/2} V_r^T / sqrt(gamma)
    y = x W^T + (alpha / sqrt(rank)) (x A^T) B^T

with G = dL/dW of the calibration examples' mean loss, and the base unchanged.
Source: 2502.01235: after one step of full fine-tuning the adapter is aligned with what can be learnt, and the start need
not be found by training. It does not start at the base, and that is its point: to first order the loss has fallen, by
(alpha / sqrt(rank)) / gamma times sum(S_k^2) / S_0. The scale is rsLoRA's. The step has a set length and not the
gradient's, so a layer with a small gradient moves as far as any other. One version of the authors' code multiplies both
factors by the number of outputs to the 1/4 besides, with gamma 16: write gamma = 16 / sqrt(outputs) for that start.

Shapes: W_OI, G_OI, A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linear import Place
from ..seam import by_shape
from . import lora, rslora
from ._factors import check_above, fill, svd


@dataclass(frozen=True)
class LoRAOne(rslora.RsLoRA):
    """rank: inner width. alpha: strength; the product is scaled by alpha / sqrt(rank). dropout: on the adapter's input.

    gamma: the larger, the shorter the first step.
    """

    gamma: float = 128.0

    def __post_init__(self):
        super().__post_init__()
        check_above("gamma", self.gamma, 0, "128 is usual")


@by_shape
def init(cfg: LoRAOne, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A and B of the first step; components that the gradient lacks are LoRA's.

    Raises: FinloraError when the rank exceeds the layer.
    """
    start = lora.init(cfg, W_OI, place)
    U, S, V = svd(-place.stats.grad_OI.to(W_OI.device).float(), cfg.rank)
    part = S / S[0].clamp(min=torch.finfo(torch.float32).tiny)
    return fill(start, U, V, part / cfg.gamma, 1.0, 1e-6 / cfg.gamma)


# PEFT holds it as plain rsLoRA, so a folder of PEFT's is never read as this method.
PEFT = replace(rslora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    rslora.METHOD, name="lora_one", config=LoRAOne, init=init, peft=PEFT, paper="2502.01235", needs=lambda cfg: ("grad_OI",),
    start="descent",
)  # fmt: skip
