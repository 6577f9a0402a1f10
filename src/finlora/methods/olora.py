"""OLoRA: LoRA that starts at the first columns of W's QR decomposition, B orthonormal.

    W = Q R,   B = Q[:, :r],   A = R[:r] / s,   stored: codec(W - s B A),   s = alpha / rank

Source: 2406.01775. One QR costs a fraction of PiSSA's SVD, but the first columns of W are its first inputs and not its
main directions. Differs from PEFT's where alpha is not the rank: PEFT does not divide by s, so that the base loses s
times the component that the adapter was to take over (with alpha = 2 rank it keeps its negative), and over a codec pays
for the larger base: at rank 3 and s = 2.7 an NF4 base of 33 x 65 has 1.13 times the error of the unedited one, at s = 5.3
2.04 times, and divided by s 0.93 times whatever alpha (means of 20 Gaussian weights).
Traps: as with PiSSA, weight decay spares A and B and the learning rate wants to be below LoRA's. Signs are fixed (R's
diagonal is not below zero), so that machines agree; PEFT leaves them to LAPACK. The product is the same.

Shapes: W_OI, A_RI, B_OR; A_base (R, I), B_base (O, R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linear import EDIT, Place
from . import lora
from ._factors import with_edit


@dataclass(frozen=True)
class OLoRA(lora.LoRA):
    """rank: inner width. alpha: strength; the product is scaled by alpha / rank. dropout: on the adapter's input."""


def init(cfg: OLoRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A = R[:r] / s, B = Q[:, :r], and the edit that takes Q_r R_r from the base.

    Raises: FinloraError when the rank exceeds the layer.
    """
    lora.check_rank(cfg.rank, *W_OI.shape)
    Q, R = torch.linalg.qr(W_OI.float())
    sign = torch.where(R.diagonal()[: cfg.rank] < 0, -1.0, 1.0)
    s = lora.scale(cfg)
    return with_edit({"A": R[: cfg.rank] * sign[:, None] / s, "B": Q[:, : cfg.rank] * sign}, s)


# In PEFT's format it is plain LoRA over another base, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="olora", config=OLoRA, init=init, peft=PEFT, paper="2406.01775", frozen=EDIT, undecayed=("A", "B")
)
