"""LoftQ: LoRA whose start makes good, as far as its rank can, what the codec rounds off; base and factors take turns.

    Q_t = codec(W - s B_{t-1} A_{t-1}),   s B_t A_t = SVD_r(W - Q_t),   t = 1 .. iterations,   B_0 A_0 = 0

with s = alpha / rank. The triple (Q_t, A_t, B_t) with the smallest |W - Q_t - s B_t A_t| is kept.
Source: 2310.08659. Differs from PEFT's in four ways: the factors are divided by s, so that the sum is right for every
alpha (PEFT's is for alpha = rank alone); the best round is kept, because rounding is no projection and a later round
can be worse; Q_t is the codec that the base is really kept in (PEFT takes NF4 without double quantisation); and it needs
no GPU. The stored weight is exactly Q_t: the edit is minus the factors of the round before.
Over a lossless store there is nothing to make good, and components of no weight start as plain LoRA's.

Shapes: W_OI, A_RI, B_OR; A_base (R, I), B_base (O, R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..linear import EDIT, Place, edited
from . import lora
from ._factors import check_count, fill, svd


@dataclass(frozen=True)
class LoftQ(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. iterations: how often base and factors take turns (1 to 20).

    One iteration leaves the base alone.
    """

    iterations: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_count("iterations", self.iterations, 1, 20, "5 is usual")


def init(cfg: LoftQ, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A, B and, with several iterations over a lossy store, the edit of the best round.

    Raises: FinloraError when the rank exceeds the layer.
    """
    start, s = lora.init(cfg, W_OI, place), lora.scale(cfg)
    if place.lossless:
        return start
    W = W_OI.float()
    edit = {"A_base": torch.zeros_like(start["A"]), "B_base": torch.zeros_like(start["B"])}
    best, least = None, float("inf")
    for _ in range(cfg.iterations):
        missing = W - place.roundtrip(edited(W, edit)).to(W)
        U, S, V = svd(missing, cfg.rank)
        params = fill(start, U, V, S, s, 1e-6 * float(W.norm()))
        far = float((missing - lora.delta(params, s)).norm())
        if far < least:
            best, least = {**params, **edit}, far
        edit = {"A_base": params["A"], "B_base": -s * params["B"]}
    assert best is not None
    return best if cfg.iterations > 1 else {key: best[key] for key in ("A", "B")}


# In PEFT's format it is plain LoRA over another base, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="loftq", config=LoftQ, init=init, peft=PEFT, paper="2310.08659", frozen=EDIT, undecayed=("A", "B"),
    start="nearer",
)  # fmt: skip
