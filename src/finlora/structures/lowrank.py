"""Low rank: two narrow linears in the place of one wide one, y = B (A x), trained from the first step.

    y = (x A^T) B^T,   A (rank, in), B (out, rank);   rank (in + out) values for in * out

Source: FinGPT-HPC, 2402.13533, which tells neither ranks nor starts. How A and B begin (`init`), std being the
deviation that a dense weight would be drawn with:

    auto      both Gaussian with deviation (std^2 / rank)^(1/4): entries of B A have deviation std
    spectral  B = U sqrt(S), A = sqrt(S) V^T of the leading singular directions of a drawn dense weight (Khodak et al.,
              2105.01029); needs that weight's SVD, 3 s at a width of 1024 on two cores
    xavier    each Gaussian with variance 2 / (ins + outs) of its own (LORO)
    cola      both Gaussian with deviation rank^(-1/4) (in + out)^(-1/4) (2502.10940)

Only auto knows std; what spectral cuts off is missing from the outputs. So with variance = "dense" both factors are
multiplied by one number that gives B A the mean square std^2 (cola is then auto), and with "paper" they stay as
written. No factor begins at zero, as in LoRA one does: without a weight beside it such a layer gives nothing, and the
poor figures of low-rank baselines in the literature are put down to it.

frobenius, lambda: the gradient of lambda / 2 |B A|^2 is added to the factors' own, exactly and at the cost of O(rank^2
(in + out)); the factors are then spared weight decay, whose place it takes (2105.01029). As there it joins the loss's
gradient and is clipped with it; here it then goes through Adam, where theirs meets SGD with momentum. So it is not
AdamW's decay, and a lambda of that size is far too much: at 0.1 its gradient alone has norm 55 on GPT-2-124M at rank
64, where 1 is a usual clip. The authors' is 1e-4.

refactor: every that many steps the factors of the same product are balanced anew (B = U sqrt(S), A = sqrt(S) V^T),
their moments dropped and the rate warmed up over `rewarm` steps (the weight refactorisation and momentum reset of
Glentis et al., 2505.22922; neither is in their public code, so the numbers are ours). lr_scale = "fan_in": A learns at
half the rate, B at in / (2 rank) times it.

Fit: the closed form of Swift-SVD, B = V, A = V^T W with V the leading eigenvectors of W C W^T, in float64 and then
balanced; without statistics C is the identity and it is the truncated SVD.

Shapes: x (..., I), y (..., O), W_OI, A_RI, B_OR, C_II.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs._choices import check_choices
from ..errors import FinloraError
from ..seam import Stats, Structure, ones
from . import _factors


@dataclass(frozen=True)
class LowRank:
    """rank: inner width. init: auto, spectral, xavier or cola. variance: of the start, "dense" as a dense layer's or
    "paper" as written. frobenius: strength of the decay of |B A|^2 / 2, a part of the gradient. refactor: steps between
    balancings, 0 for none. rewarm: steps of warm-up after each. lr_scale: "none" or "fan_in"."""

    rank: int = 64
    init: Literal["auto", "spectral", "xavier", "cola"] = "auto"
    variance: Literal["dense", "paper"] = "dense"
    frobenius: float = 0.0
    refactor: int = 0
    rewarm: int = 10
    lr_scale: Literal["none", "fan_in"] = "none"

    def __post_init__(self):
        check_choices(self)
        _factors.check_whole("rank", self.rank, 1, "a quarter of the width is usual")
        hint = "0 is none, 1e-4 is usual; it joins the gradient and is not AdamW's decay"
        _factors.check_number("frobenius", self.frobenius, 0, False, hint)
        _factors.check_whole("refactor", self.refactor, 0, "0 never does it; 200 to 1000 is usual")
        _factors.check_whole("rewarm", self.rewarm, 0, "0 goes on at the full rate; 5 to 50 is usual")
        if self.rewarm != type(self).rewarm and not self.refactor:
            raise FinloraError(f"rewarm = {self.rewarm} has no effect without refactor", "set refactor too (200 to 1000 is usual), or leave rewarm out")

    @property
    def every(self) -> int:
        """Steps between two times that it is asked whether to balance the factors."""
        return self.refactor or 1 << 62

    @property
    def undecayed(self) -> tuple[str, ...]:
        """The factors, where Frobenius decay takes the place of weight decay."""
        return ("A", "B") if self.frobenius else ()


def init(cfg: LowRank, n_in: int, n_out: int, std: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """{"A": (R, I), "B": (O, R)}. Raises: FinloraError when the rank exceeds the layer."""
    _factors.check_rank(cfg.rank, n_in, n_out)
    if cfg.init == "spectral":
        W = _factors.normal((n_out, n_in), std, generator)
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        root = S[: cfg.rank].sqrt()
        A, B = root[:, None] * Vh[: cfg.rank], U[:, : cfg.rank] * root
        size = float(S[: cfg.rank].norm()) / math.sqrt(n_in * n_out)
    else:
        s_A, s_B = deviations(cfg, n_in, n_out, std)
        A = _factors.normal((cfg.rank, n_in), s_A, generator)
        B = _factors.normal((n_out, cfg.rank), s_B, generator)
        size = math.sqrt(cfg.rank) * s_A * s_B
    gain = math.sqrt(std / size) if cfg.variance == "dense" else 1.0
    return {"A": (gain * A).contiguous(), "B": (gain * B).contiguous()}


def deviations(cfg: LowRank, n_in: int, n_out: int, std: float) -> tuple[float, float]:
    """The standard deviations of A and B as they are written."""
    if cfg.init == "xavier":
        return math.sqrt(2 / (cfg.rank + n_in)), math.sqrt(2 / (cfg.rank + n_out))
    one = (cfg.rank * (n_in + n_out)) ** -0.25 if cfg.init == "cola" else (std**2 / cfg.rank) ** 0.25
    return one, one


def apply(cfg: LowRank, params, x: Tensor) -> Tensor:
    """(x A^T) B^T."""
    A, B = _factors.cast(params, x, "A", "B")
    return F.linear(F.linear(x, A), B)


def dense(cfg: LowRank, params) -> Tensor:
    """B A."""
    return params["B"] @ params["A"]


def fit(cfg: LowRank, W_OI: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
    """The best product of the rank. Raises: FinloraError on a rank above the layer or a weight that is not finite."""
    _factors.check_rank(cfg.rank, W_OI.shape[1], W_OI.shape[0])
    A, B = _factors.best(W_OI.double(), _factors.moment(stats, W_OI), cfg.rank)
    return _factors.kept({"A": A, "B": B}, W_OI)


def sized(cfg: LowRank, n_in: int, n_out: int, keep: float) -> LowRank:
    """The largest rank. Raises: FinloraError where rank 1 is too large."""
    return replace(cfg, rank=_factors.largest("lowrank", n_in, n_out, keep, n_in + n_out, min(n_in, n_out)))


def count(cfg: LowRank, n_in: int, n_out: int) -> int:
    """rank (in + out). Raises: FinloraError when the rank exceeds the layer."""
    _factors.check_rank(cfg.rank, n_in, n_out)
    return cfg.rank * (n_in + n_out)


def groups(cfg: LowRank, params) -> dict[str, float]:
    """1 and 1, or 1 / 2 and in / (2 rank)."""
    if cfg.lr_scale == "none":
        return ones(cfg, params)
    R, I = params["A"].shape
    return _factors.fan_in(I, A=I, B=R)


@torch.no_grad()
def tend(pairs, step: int, total: int) -> None:
    """Add the gradient of frobenius / 2 |B A|^2: (B^T B) A to A's, B (A A^T) to B's."""
    for cfg, params in pairs:
        A, B = params["A"], params["B"]
        if cfg.frobenius and A.grad is not None and B.grad is not None:
            A.grad.add_((B.t() @ B) @ A, alpha=cfg.frobenius)
            B.grad.add_(B @ (A @ A.t()), alpha=cfg.frobenius)


@torch.no_grad()
def refresh(cfg: LowRank, params, step: int, total: int, generator: torch.Generator | None) -> dict[str, Tensor] | None:
    """Every `refactor` steps but the last: the same product in balanced factors."""
    if not cfg.refactor or step % cfg.refactor or step >= total:
        return None
    A, B = _factors.balanced(params["A"].double(), params["B"].double())
    return {**params, "A": A.to(params["A"].dtype), "B": B.to(params["B"].dtype)}


def chain(cfg: LowRank, params) -> tuple[Tensor, Tensor]:
    """(A, B), with nothing between."""
    return params["A"], params["B"]


STRUCTURE = Structure(
    "lowrank", LowRank, init, apply, count=count, flops=count, sized=sized, dense=dense, fit=fit, groups=groups, tend=tend,
    refresh=refresh, chain=chain, paper="2402.13533",
)  # fmt: skip
