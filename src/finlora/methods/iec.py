"""IEC (of IR-QLoRA): LoRA whose halves also pass on what enters them, averaged or repeated, at two learned strengths.

    h = x A^T + beta1 pool(x)        y = x W^T + (alpha / rank) (h B^T + beta2 spread(h))

pool: g = gcd(in, rank) groups of neighbouring inputs, the mean of each, every mean used rank / g times. spread: the
same from rank to out with g = gcd(out, rank). Neither has parameters; beta1 and beta2 are scalars, both 0 at the start.

`layout` says how g numbers fill n places: `interleave` puts the copies of one side by side, as the authors' code does;
`tile` puts the whole vector n / g times end to end, as equations 12 to 14 of the paper do. Where the rank divides in
and out the two agree in pool, which is then the mean of rank groups, and differ in spread. The code fails where the
rank does not divide; the sum in equation 12 has the length of a group there and not the g that its text and its factor
g / in ask for, so we follow text and factor.

Both are linear, so they are folded into the factors before the product, A + beta1 P and B + beta2 Q, and a step costs
what LoRA's costs; unfused, an independent run found the step half as long again. The same fold is the plain LoRA form.
In the authors' code dropout is on the input of A alone; here it is on x, for A and pool alike. Their betas are lost
when PEFT loads the adapter; ours are parameters like any other.

Source: 2402.05445, section 3.3; IR-QLoRA is `iec` over `nf4_icq`.

Shapes: x (..., I), y0 (..., O), A_RI, B_OR, P_RI, Q_OR, beta1 and beta2 ().
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FinloraError, unknown
from ..linear import Method, Place
from ..seam import by_shape
from . import lora

LAYOUTS = ("interleave", "tile")


@dataclass(frozen=True)
class IEC(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. layout: `interleave` (the authors' code) or `tile` (the paper)."""

    layout: str = "interleave"

    def __post_init__(self):
        super().__post_init__()
        if self.layout not in LAYOUTS:
            if isinstance(self.layout, str):
                raise unknown("layout", self.layout, LAYOUTS)
            raise FinloraError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")


def pooling(n_in: int, n_out: int, layout: str, like: Tensor) -> Tensor:
    """(n_out, n_in): the means of gcd(n_in, n_out) groups of neighbours, repeated to n_out, on the device of `like`."""
    g = math.gcd(n_in, n_out)
    means = torch.eye(g, dtype=like.dtype, device=like.device).repeat_interleave(n_in // g, 1) * (g / n_in)
    return means.repeat_interleave(n_out // g, 0) if layout == "interleave" else means.repeat(n_out // g, 1)


def folded(cfg: IEC, params) -> dict[str, Tensor]:
    """{"A": A + beta1 P, "B": B + beta2 Q}: the same map as plain LoRA, with its gradient."""
    A, B = params["A"], params["B"]
    (R, I), O = A.shape, B.shape[0]
    P, Q = pooling(I, R, cfg.layout, A), pooling(R, O, cfg.layout, B)
    return {"A": A + params["beta1"] * P, "B": B + params["beta2"] * Q}


@by_shape
def init(cfg: IEC, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """LoRA's A and B, and both betas 0."""
    zero = torch.zeros((), device=W_OI.device)
    return {**lora.init(cfg, W_OI, place), "beta1": zero, "beta2": zero.clone()}


def apply(cfg: IEC, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + (alpha / rank) (x (A + beta1 P)^T) (B + beta2 Q)^T."""
    return lora.apply(cfg, folded(cfg, params), x, y0, base)


def merge(cfg: IEC, params, W_OI: Tensor) -> Tensor:
    """W + (alpha / rank) (B + beta2 Q) (A + beta1 P)."""
    return lora.merge(cfg, folded(cfg, params), W_OI)


def to_lora(cfg: IEC, params) -> tuple[Tensor, Tensor, float]:
    """(A + beta1 P, B + beta2 Q, alpha / rank)."""
    return lora.to_lora(cfg, folded(cfg, params))


METHOD = Method("iec", IEC, init, apply, merge, to_lora=to_lora, paper="2402.05445")
