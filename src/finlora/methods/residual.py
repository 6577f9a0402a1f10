"""Activation-aware residual: LoRA that starts at the best correction, for the inputs at hand, of what the codec rounds off.

    D = W - codec(W),   D C D^T = V L V^T,   s B A = V_r V_r^T D,   C = E[x x^T] from calibration,   s = alpha / rank

Among all maps of rank r this one leaves the least output error: E|D x - s B A x|^2 = sum of the discarded eigenvalues L.
LoftQ's first round (the SVD of D) is the case C = I. No inverse is taken and C may be singular. The closed form is that
of Swift-SVD, put on the residual, as EoRA (2410.21271) and CLoQ (2501.18475) put theirs, which whiten by C first; ours
differs from those in needing neither Cholesky nor inverse, and in the balance: each component's A and B get equal
length, as LoftQ's do, where B = V and A = V^T D would differ by the size of D.
The base is left as the codec keeps it. Over a lossless store D = 0, and components of no weight start as plain LoRA's.

Shapes: W_OI, D_OI, C_II, V_OR, A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linear import Place
from . import lora
from ._factors import fill, lost, root


@dataclass(frozen=True)
class Residual(lora.LoRA):
    """rank: inner width. alpha: strength; the product is scaled by alpha / rank. dropout: on the adapter's input."""


def init(cfg: Residual, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A and B of the correction; components without weight are LoRA's.

    Raises: FinloraError when the rank exceeds the layer.
    """
    start = lora.init(cfg, W_OI, place)
    D = lost(W_OI, place).double()
    if not D.any():
        return start
    V, _ = directions(D, place.stats.moment_II.to(D), cfg.rank)
    rows = V.T @ D
    S = torch.linalg.vector_norm(rows, dim=1)
    unit = rows / S.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return fill(start, V, unit, S, lora.scale(cfg), 1e-6 * float(W_OI.norm()))


def directions(D_OI: Tensor, C_II: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(V_OR, all eigenvalues): the leading eigenvectors of D C D^T, largest first, in float64.

    A tall D goes by way of the smaller C^{1/2} D^T D C^{1/2}, of the same eigenvalues.
    """
    D, C = D_OI.double(), C_II.double()
    if D.shape[0] <= D.shape[1]:
        values, V = torch.linalg.eigh(D @ C @ D.T)
        values, V = values.flip(0), V.flip(1)[:, :rank]
    else:
        half = D @ root(C)
        values, right = torch.linalg.eigh(half.T @ half)
        values = values.flip(0)
        V = torch.linalg.qr(half @ right.flip(1)[:, :rank]).Q  # eigenvectors up to sign, orthonormal even where values vanish
    sign = torch.gather(V, 0, V.abs().argmax(0, keepdim=True)).sign()
    return V * sign, values


# PEFT holds it as plain LoRA over its own quantised base, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="residual", config=Residual, init=init, peft=PEFT, undecayed=("A", "B"), paper="2501.18475",
    needs=lambda cfg: ("moment_II",), start="nearer",
)  # fmt: skip
