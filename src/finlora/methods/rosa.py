"""ROSA: trains a random component of the weight itself, and every so often another one.

    W = W_fixed + s B A,   s B A a rank-R component of W,   train A and B;   every `every` steps: again, of the new W

Source: 2407.07802 (Random Subspace Adaptation; the sparse-and-low-rank "RoSA" is another method). basis says which component:

    svd_random          a random subset of W's singular directions (the paper's)
    svd_top             the largest ones: PiSSA, restarted
    svd_bottom          the smallest ones
    random_orthonormal  A = Q^T, B = W Q / s for a random orthonormal Q: no SVD, O(out in rank)

All four leave the function as it is. The factors carry pretrained weight, so weight decay spares them; the paper has no
scale, which is alpha = rank here (the default); with another alpha the component is still s B A. As with PiSSA, learning
rates are 3 to 10 times below LoRA's. Moments are dropped at a new round and the rate warms up over `rewarm` steps.

Differs from the authors' code: the subset is a true one (theirs is a window that never reaches the last directions); no
mode that changes the function (their "add"); the SVD and the edited weight are fp32 whatever the model's type.
Over a lossless base W_fixed is stored. Over a lossy one the stored weight cannot be edited without rounding the edit away:
there the component is of the weight as stored, the base stays, and each round's factors minus their start stand beside it
frozen (rank 2R a round in the forward pass). After T rounds the adapter over the original weight is one LoRA of rank 2RT,
which the exporter can cut (`_stack.truncate`), or merge and encode once.

The paper's theorem, the optimum of full fine-tuning after ceil(rank of the change / R) rounds, holds where each round adds
rank R to what is there (`relora`). A component must be given back before the next is taken, so a round here spends rank on
what W had already: a Gaussian change of rank 10 of a Gaussian W of 20 x 30, at R = 4 and each round trained to its optimum, is
left with 13 % of itself after the theorem's three rounds and 2 % after twelve (means of 20 draws; random_orthonormal 21 and 5 %,
svd_bottom 3 and 1 %, svd_top 50 and 50 %: it returns to the same directions). The error never rises.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR; A_base, A_past (K, I), B_base, B_past (O, K).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FinloraError
from ..linear import Method, Place
from ..seam import by_shape
from . import _stack, lora

BASES = ("svd_random", "svd_top", "svd_bottom", "random_orthonormal")


@dataclass(frozen=True)
class ROSA(lora.LoRA):
    """rank, dropout: as in LoRA. alpha: the component is (alpha / rank) B A; the paper's is alpha = rank. basis: which
    component, svd_random, svd_top, svd_bottom or random_orthonormal. every: steps of a round. rewarm: steps of warm-up
    after each."""

    alpha: float = 8.0
    basis: str = "svd_random"
    every: int = 50
    rewarm: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.basis not in BASES:
            raise FinloraError(f"basis must be one of {', '.join(BASES)}, got {self.basis!r}", "svd_random is the paper's")
        _stack.check_whole("every", self.every, 1, "the paper's is an epoch's steps")
        _stack.check_whole("rewarm", self.rewarm, 0, "0 goes on at the full rate; 5 to 50 is usual")


def component(cfg: ROSA, W_OI: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """(A_RI, B_OR) with s B A the chosen component of W, in fp32 (fp64 for fp64).

    Drawn where the generator lives. Raises: FinloraError when the rank exceeds the layer.
    """
    O, I = W_OI.shape
    lora.check_rank(cfg.rank, O, I)
    s, R = lora.scale(cfg), cfg.rank
    W = W_OI.to(torch.promote_types(W_OI.dtype, torch.float32))
    device = place.generator.device if place.generator is not None else "cpu"
    if cfg.basis == "random_orthonormal":
        draw = torch.randn(I, R, generator=place.generator, device=device)
        Q = torch.linalg.qr(draw.to(W)).Q
        return Q.t().contiguous(), (W @ Q) / s
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    if cfg.basis == "svd_random":
        chosen = torch.randperm(min(O, I), generator=place.generator, device=device)[:R].sort().values.to(W.device)
    else:
        first = 0 if cfg.basis == "svd_top" else min(O, I) - R
        chosen = torch.arange(first, first + R, device=W.device)
    root = (S[chosen] / s).sqrt()  # shared out evenly, as in the paper's figure 1
    return root[:, None] * Vh[chosen], U[:, chosen] * root


@by_shape
def init(cfg: ROSA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A and B of the first round, taken out of the stored weight (lossless) or of what stands beside it (lossy)."""
    A, B = component(cfg, place.roundtrip(W_OI), place)
    return {"A": A, "B": B, **_stack.grown(_stack.no_rounds(A.new_empty(W_OI.shape), place), A, -lora.scale(cfg) * B)}


def apply(cfg: ROSA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + s (x A^T) B^T + (x A_past^T) B_past^T."""
    return _stack.apply(params, x, y0, lora.scale(cfg))


def merge(cfg: ROSA, params, W_OI: Tensor) -> Tensor:
    """W_fixed + s B A."""
    return _stack.merge(params, W_OI, lora.scale(cfg))


def to_lora(cfg: ROSA, params) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale) over the stored weight, of rank R plus that of the past rounds beside it."""
    return _stack.whole(params, lora.scale(cfg))


def refresh(cfg: ROSA, params, W_OI: Tensor, place: Place, step: int, total: int) -> dict[str, Tensor] | None:
    """Every `every` steps but the last: put the component back and take another out of the sum."""
    if step % cfg.every or step >= total:
        return None
    s, A, B = lora.scale(cfg), params["A"], params["B"]
    new_A, new_B = component(cfg, merge(cfg, params, W_OI), place)
    return {**_stack.grown(params, torch.cat([A, new_A]), torch.cat([s * B, -s * new_B], 1)), "A": new_A, "B": new_B}


METHOD = Method(
    "rosa", ROSA, init, apply, merge, refresh=refresh, to_lora=to_lora, paper="2407.07802", frozen=_stack.KEPT,
    undecayed=("A", "B"),
)  # fmt: skip
