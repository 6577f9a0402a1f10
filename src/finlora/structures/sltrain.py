"""SLTrain: a low-rank product plus a few single entries at places drawn once, W = (alpha / rank) B A + V on its support.

    W = (alpha / rank) B A + sum_k V_k e_row(k) e_col(k)^T,   y = x W^T;   `delta` of the entries have a V

Source: 2406.02214 (delta 0.03; 0.05 at 7B). The sparse part lends the product the rank it lacks. The support is drawn
uniformly and never trained; the start is the paper's, B = 0, A Kaiming-uniform, V uniform, so at first V alone carries
the signal and B alone of the factors has a gradient, as in LoRA. The paper's V lies in +-1/sqrt(in), which gives
outputs of delta times the variance of a dense layer drawn so. With variance = "dense" V's deviation is std /
sqrt(delta) instead, which gives a dense layer's variance; with "paper" it stays as written.

W is materialised in each pass and again in the backward pass, never kept between them (the paper's way): memory is the
factors', arithmetic the dense layer's and a little more: building W and taking its gradient to the factors costs
4 rank * in * out of a forward and backward pass, whatever the tokens. So `flops`, those of one token more, is in * out.
The support takes 4 bytes for each V when saved (8 beyond 2^31 entries), which `count`, of trained values, leaves out. Weight decay spares V, as it spares every vector, while A and B decay; the authors'
optimiser decays all three (train_utils.py), at 0 in all their runs.

Fit: the best product of the rank, then the entries where the rest is worst, each row's V solved by least squares, and
both again, three times in all (as in GoDec, Zhou and Tao 2011; more rounds gain little): no optimum, but never worse
than the product alone. The support is then chosen, not drawn.

Shapes: x (..., I), y (..., O), W_OI, A_RI, B_OR, V_K, support_K (row * in + column, int32 or int64, ascending), C_II.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs._choices import check_choices
from ..errors import FinloraError
from ..seam import Stats, Structure
from . import _factors

ROUNDS = 3


@dataclass(frozen=True)
class SLTrain:
    """rank: inner width. alpha: the product is scaled by alpha / rank. delta: share of the entries with a value of their
    own. variance: of the start, "dense" as a dense layer's or "paper" as written."""

    rank: int = 64
    alpha: float = 16.0
    delta: float = 0.03
    variance: Literal["dense", "paper"] = "dense"

    def __post_init__(self):
        check_choices(self)
        _factors.check_whole("rank", self.rank, 1, "a quarter of the width is usual")
        _factors.check_number("alpha", self.alpha, 0, True, "8 to 32 is usual")
        _factors.check_number("delta", self.delta, 0, True, "0.03 is usual")
        if self.delta > 1:
            raise FinloraError(f"delta must be at most 1, got {self.delta!r}", "0.03 is usual")


def entries(cfg: SLTrain, n_in: int, n_out: int) -> int:
    """How many entries have a value of their own: delta of them, rounded down, and at least one."""
    return max(1, int(cfg.delta * n_in * n_out))


def init(cfg: SLTrain, n_in: int, n_out: int, std: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """{"A": (R, I), "B": (O, R), "V": (K,), "support": (K,)}. Raises: FinloraError when the rank exceeds the layer."""
    _factors.check_rank(cfg.rank, n_in, n_out)
    device = generator.device if generator is not None else torch.device("cpu")
    K, total = entries(cfg, n_in, n_out), n_in * n_out
    A = nn.init.kaiming_uniform_(torch.empty(cfg.rank, n_in, device=device), a=math.sqrt(5), generator=generator)
    support = torch.randperm(total, generator=generator, device=device)[:K].sort().values
    end = math.sqrt(3 * total / K) * std if cfg.variance == "dense" else n_in**-0.5
    V = end * (2 * torch.rand(K, generator=generator, device=device) - 1)
    return {"A": A, "B": torch.zeros(n_out, cfg.rank, device=device), "V": V, "support": narrow(support, total)}


def narrow(support: Tensor, total: int) -> Tensor:
    """Indices below `total` in as few bytes as will do."""
    return support.to(torch.int32 if total <= 2**31 else torch.int64)


def places(support: Tensor, total: int) -> Tensor:
    """The support as int64; one that was cast to a float type with the other parameters is taken where that is exact."""
    if support.is_floating_point():
        assert total <= 2 / torch.finfo(support.dtype).eps, f"a support of {total} entries was rounded to {support.dtype}"
    return support.long()


def whole(A: Tensor, B: Tensor, V: Tensor, support: Tensor, scale: float) -> Tensor:
    """(alpha / rank) B A with V added on the support."""
    W = scale * (B @ A)
    return W.view(-1).index_add(0, places(support, W.numel()), V).view_as(W)


class Product(torch.autograd.Function):
    """x W^T; saves x and the parameters, never W."""

    @staticmethod
    def forward(ctx, x: Tensor, A: Tensor, B: Tensor, V: Tensor, support: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, A, B, V, support)
        ctx.scale = scale
        return F.linear(x, whole(A, B, V, support, scale))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, A, B, V, support = ctx.saved_tensors
        need, scale = ctx.needs_input_grad, ctx.scale
        gx = grad @ whole(A, B, V, support, scale) if need[0] else None
        if not any(need[1:4]):
            return gx, None, None, None, None, None
        gW = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        gA = scale * (B.t() @ gW) if need[1] else None
        gB = scale * (gW @ A.t()) if need[2] else None
        gV = gW.view(-1)[places(support, gW.numel())] if need[3] else None
        return gx, gA, gB, gV, None, None


def apply(cfg: SLTrain, params, x: Tensor) -> Tensor:
    """x W^T with W built for the occasion."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # the backward pass has none of its own: what both compute in is settled here
        x = x.to(torch.get_autocast_dtype(kind))
    return Product.apply(x, *_factors.cast(params, x, "A", "B", "V"), params["support"], cfg.alpha / cfg.rank)


def dense(cfg: SLTrain, params) -> Tensor:
    """(alpha / rank) B A + V on the support."""
    return whole(params["A"], params["B"], params["V"], params["support"], cfg.alpha / cfg.rank)


def fit(cfg: SLTrain, W_OI: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
    """Product and entries in turn, the best of the rounds. Raises: FinloraError on a rank above the layer or a weight that
    is not finite."""
    O, I = W_OI.shape
    _factors.check_rank(cfg.rank, I, O)
    W, C = W_OI.double(), _factors.moment(stats, W_OI)
    sparse, found = torch.zeros_like(W), []
    for _ in range(ROUNDS):
        A, B = _factors.best(W - sparse, C, cfg.rank)
        V, support = worst(W - B @ A, C, entries(cfg, I, O))
        sparse = torch.zeros_like(W).view(-1).index_add(0, support, V).view_as(W)
        found.append((_factors.loss(W, B @ A + sparse, C), A, B, V, support))
    _, A, B, V, support = min(found, key=lambda one: one[0])
    scale = math.sqrt(cfg.rank / cfg.alpha)
    return _factors.kept({"A": scale * A, "B": scale * B, "V": V, "support": narrow(support, O * I)}, W_OI)


def worst(rest_OI: Tensor, C_II: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """(V, support) of the entries that alone would each take most of the error away, and their values together."""
    pull = rest_OI if C_II is None else rest_OI @ C_II  # half the slope of the error in each entry
    gain = pull.square() if C_II is None else pull.square() / C_II.diagonal().clamp(min=torch.finfo(C_II.dtype).tiny)
    support = gain.view(-1).topk(count).indices.sort().values
    return rest_OI.view(-1)[support] if C_II is None else solved(pull, C_II, support), support


def solved(pull_OI: Tensor, C_II: Tensor, support_K: Tensor) -> Tensor:
    """V_K with the least error on its support: for each row, C over its columns times V = pull there."""
    I = len(C_II)
    rows, columns = support_K // I, support_K % I
    V = torch.empty(len(support_K), dtype=C_II.dtype, device=C_II.device)
    first = 0
    for row, size in zip(*(t.tolist() for t in rows.unique_consecutive(return_counts=True))):
        own = columns[first : first + size]
        V[first : first + size] = torch.linalg.pinv(C_II[own][:, own], hermitian=True) @ pull_OI[row, own]
        first += size
    return V


def sized(cfg: SLTrain, n_in: int, n_out: int, keep: float) -> SLTrain:
    """The largest rank beside the entries of `delta`. Raises: FinloraError where rank 1 is too large."""
    most, fixed = min(n_in, n_out), entries(cfg, n_in, n_out)
    return replace(cfg, rank=_factors.largest("sltrain", n_in, n_out, keep, n_in + n_out, most, fixed))


def count(cfg: SLTrain, n_in: int, n_out: int) -> int:
    """rank (in + out) + entries. Raises: FinloraError when the rank exceeds the layer."""
    _factors.check_rank(cfg.rank, n_in, n_out)
    return cfg.rank * (n_in + n_out) + entries(cfg, n_in, n_out)


def flops(cfg: SLTrain, n_in: int, n_out: int) -> int:
    """in * out: the product is that of a dense layer; what building W takes is a pass's and no token's."""
    return n_in * n_out


STRUCTURE = Structure(
    "sltrain", SLTrain, init, apply, count=count, flops=flops, sized=sized, dense=dense, fit=fit, paper="2406.02214",
    frozen=("support",),
)  # fmt: skip
