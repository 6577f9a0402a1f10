"""PiSSA: LoRA that starts at W's largest singular components and leaves the rest of W frozen.

    W = U S V^T,   A = S_r^{1/2} V_r^T / sqrt(s),   B = U_r S_r^{1/2} / sqrt(s),   stored: codec(W - s B A)

with s = alpha / rank.

Source: 2404.02948. Over a lossy codec this is its QPiSSA: what is stored is the residual, rounded once, whose largest
components are gone, so that the start is nearer to W than the rounded W. PEFT refuses a quantised base here and leaves
the rounding to the user. `niter` chooses a randomised SVD for small ranks (PEFT's pissa_niter_N draws exactly `rank`
columns, which loses accuracy on the flat spectra of weights; ours oversamples).
Traps: A and B carry W's own weight, so weight decay spares them, dropout would drop a part of W, and the learning rate
wants to be 3 to 10 times below LoRA's. Components that W lacks start as plain LoRA's: two zero factors would never learn.

Shapes: W_OI, A_RI, B_OR; A_base (R, I), B_base (O, R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..linear import EDIT, Place
from . import lora
from ._factors import check_count, fill, svd, with_edit


@dataclass(frozen=True)
class PiSSA(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. niter: power iterations of a randomised SVD; 0 takes the whole one."""

    niter: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_count("niter", self.niter, 0, 100, "0 takes the whole SVD, 16 is usual")


def init(cfg: PiSSA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A, B of the `rank` largest singular values, and the edit that takes them from the base.

    Raises: FinloraError when the rank exceeds the layer.
    """
    start, s = lora.init(cfg, W_OI, place), lora.scale(cfg)
    U, S, V = svd(W_OI.float(), cfg.rank, cfg.niter, place.generator)
    return with_edit(fill(start, U, V, S, s, 1e-6 * float(S[0])), s)


# In PEFT's format it is plain LoRA over another base, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="pissa", config=PiSSA, init=init, peft=PEFT, paper="2404.02948", frozen=EDIT, undecayed=("A", "B")
)
