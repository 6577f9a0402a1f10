"""LoRA-GA: LoRA whose first step moves the weight as nearly as its rank allows the way full fine-tuning would.

    G = dL/dW = U S V^T,   A = c V[:r],   B = c U[:, r:2r],   c = o^{1/4} / sqrt(gamma),   stored: codec(W - s B A)

with s = alpha / rank and o the number of outputs. The gradient of A is then B^T G and that of B is G A^T, whose first
steps span the 2r leading components of G.
Source: 2407.05000, direction ArB2r and scale "stable" as in the authors' code, where both factors carry c; PEFT scales B
alone and multiplies it by the singular values of a gradient (1e-3 and less) besides, which is another start. Where s B A
would outgrow W (a large alpha on a small layer) both are reduced until the largest entry is W's, the authors' norm_clip.
Only the direction of the gradient matters, not its size. The SVD is whole where authors and PEFT take a randomised one.
A rank above min(O, I) / 2 has no second set of r left vectors: the last r are taken, and meet the first.

Shapes: W_OI, G_OI, A_RI, B_OR; A_base (R, I), B_base (O, R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..linear import EDIT, Place
from . import lora
from ._factors import check_above, svd, with_edit


@dataclass(frozen=True)
class LoRAGA(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. gamma: the larger, the smaller the start."""

    gamma: float = 16.0

    def __post_init__(self):
        super().__post_init__()
        check_above("gamma", self.gamma, 0, "16 is usual")


def init(cfg: LoRAGA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A, B from the gradient's singular vectors, and the edit that takes their product from the base.

    Raises: FinloraError when the rank exceeds the layer.
    """
    O, I = W_OI.shape
    lora.check_rank(cfg.rank, O, I)
    s = lora.scale(cfg)
    c = O**0.25 / cfg.gamma**0.5
    U, _, V = svd(place.stats.grad_OI.to(W_OI.device).float(), min(2 * cfg.rank, O, I))
    A, B = c * V[: cfg.rank], c * U[:, -cfg.rank :]
    largest = W_OI.float().abs().max()
    if largest > 0:  # a weight of zeros has no size to keep to
        shrink = (largest / (s * (B @ A)).abs().max()).clamp(max=1).sqrt()
        A, B = shrink * A, shrink * B
    return with_edit({"A": A, "B": B}, s)


# In PEFT's format it is plain LoRA over another base, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="lora_ga", config=LoRAGA, init=init, peft=PEFT, paper="2407.05000", frozen=EDIT, undecayed=("A", "B"),
    needs=lambda cfg: ("grad_OI",),
)  # fmt: skip
