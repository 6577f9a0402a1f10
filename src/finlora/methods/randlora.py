"""RandLoRA: a sum of random low-rank products, frozen and shared by all layers, whose diagonal scales are trained.

    y = x W^T + (alpha / rank) x (sum_n B_n diag(l_n) A diag(g_n))^T          n = 1 ... N = ceil(min(in, out) / rank)

(for in <= out; for out < in the sum is transposed, so that the trained scales are on the smaller side). N products of
rank R reach full rank. l starts at 0, g at 1 / max(N, min(in, out)); a layer trains N (R + min(in, out)) numbers, which
grow as the rank falls.

Source: 2502.00987, in PEFT's numbers: bases uniform, drawn in bfloat16 on the CPU from `key` (projection_prng_key) and
divided by their standard deviation; A (R, 1, min) and B (max, N, R) for the largest sides among the linears, of which
each uses the leading corner. PEFT lays A's products out by rank and B's by n before it multiplies them, so that a row
of A meets another column of B than in the sum above; the bases being random this is a sum of the same kind, and ours is
the same one. (PEFT draws in float16 on a GPU without bfloat16; such adapters carry their bases, which are read.)

The two factors are together larger than W; they are built again in backward and nothing of W's size is kept. The change
has full rank, so there is no plain LoRA form; merge instead.

Shapes: x (..., I), y0 (..., O), W_OI, basis_A (R, 1, m), basis_B (M, N, R), lambda l (R, N), gamma g (N, m), with m =
min(I, O) and M = max(I, O).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..linear import Method, Peft, Place
from ..seam import by_shape
from . import lora
from ._bases import check_key, dims, shared


@dataclass(frozen=True)
class RandLoRA(lora.LoRA):
    """rank: of each product. alpha: strength, scaled by 1 / rank. dropout: on the adapter's input. key: which bases."""

    rank: int = 16
    alpha: float = 320.0
    dropout: float = 0.0
    key: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_key(self.key)


def draw(generator: torch.Generator, rank: int, out: int, into: int) -> tuple[Tensor, Tensor]:
    """(basis_A (R, 1, m), basis_B (M, N, R)), fp32 tensors of bfloat16 numbers with a standard deviation near 1."""
    m, M = min(out, into), max(out, into)

    def uniform(*shape: int) -> Tensor:
        return nn.init.kaiming_uniform_(torch.empty(shape, dtype=torch.bfloat16), a=math.sqrt(5), generator=generator)

    A = uniform(rank, 1, m)
    B = torch.cat([uniform(M, 1, rank) for _ in range(-(-m // rank))], 1)
    return (A / A.std()).float(), (B / B.std()).float()


@by_shape
def init(cfg: RandLoRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """{"basis_A", "basis_B": views of the shared bases, "lambda": zeros, "gamma"}; place.generator is not used.

    Raises: FinloraError when the rank exceeds the layer.
    """
    O, I = W_OI.shape
    lora.check_rank(cfg.rank, O, I)
    m, M, N = min(O, I), max(O, I), -(-min(O, I) // cfg.rank)
    A, B = shared(draw, cfg.key, cfg.rank, *dims(place, (O, I)), str(W_OI.device))
    gamma = torch.full((N, m), 1 / max(N, m), device=W_OI.device)
    lam = torch.zeros(cfg.rank, N, device=W_OI.device)
    return {"basis_A": A[:, :, :m], "basis_B": B[:M, :N], "lambda": lam, "gamma": gamma}


def factors(A: Tensor, B: Tensor, lam: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(U (R N, m), V (M, N R)): the scaled smaller basis and the larger, in PEFT's two orders; the change is V U."""
    return (lam[:, :, None] * A * gamma).flatten(0, 1), B.flatten(1)


class Product(torch.autograd.Function):
    """y0 + s x (V U)^T, or y0 + s x (V U) where turned. Saves what U and V are made of, not U and V."""

    @staticmethod
    def forward(ctx, x, y0, lam, gamma, A, B, s: float, turned: bool) -> Tensor:
        ctx.save_for_backward(x, lam, gamma, A, B)
        ctx.s, ctx.turned = s, turned
        U, V = (t.to(x.dtype) for t in factors(A, B, lam, gamma))
        return torch.addmm(y0, x @ V, U, alpha=s) if turned else torch.addmm(y0, x @ U.t(), V.t(), alpha=s)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, lam, gamma, A, B = ctx.saved_tensors
        U, V = (t.to(x.dtype) for t in factors(A, B, lam, gamma))
        g = grad * ctx.s
        if ctx.turned:
            grad_x, grad_U = g @ U.t() @ V.t(), (x @ V).t() @ g
        else:
            inner = g @ V
            grad_x, grad_U = inner @ U, inner.t() @ x
        rows = grad_U.to(lam.dtype).view(*lam.shape, -1) * A  # (R, N, m)
        return grad_x, grad, (rows * gamma).sum(2), (rows * lam[:, :, None]).sum(0), None, None, None, None


def apply(cfg: RandLoRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + (alpha / rank) x (V U)^T, or x (V U) where there are fewer outputs than inputs."""
    work = torch.promote_types(x.dtype, torch.float32)
    lam, gamma = params["lambda"].to(work), params["gamma"].to(work)
    turned = y0.shape[-1] < x.shape[-1]
    flat = x.reshape(-1, x.shape[-1]), y0.reshape(-1, y0.shape[-1])
    bases = params["basis_A"], params["basis_B"]
    return Product.apply(*flat, lam, gamma, *bases, lora.scale(cfg), turned).view(y0.shape)


def merge(cfg: RandLoRA, params, W_OI: Tensor) -> Tensor:
    """W + (alpha / rank) V U, turned where there are fewer outputs than inputs."""
    U, V = factors(params["basis_A"], params["basis_B"], params["lambda"], params["gamma"])
    change = V @ U
    return W_OI + lora.scale(cfg) * (change.t() if W_OI.shape[0] < W_OI.shape[1] else change)


def to_peft(cfg: RandLoRA) -> dict[str, Any]:
    """The fields of PEFT's RandLoraConfig; the bases are saved, as PEFT advises."""
    own = {"randlora_alpha": cfg.alpha, "randlora_dropout": cfg.dropout, "projection_prng_key": cfg.key}
    dense = {"sparse": False, "very_sparse": False, "save_projection": True}
    return {"peft_type": "RANDLORA", "r": cfg.rank, **own, **dense}


def from_peft(fields: dict[str, Any]) -> RandLoRA | None:
    """The config where the fields describe a RandLoRA whose bases we can know, else None.

    Sparse bases are drawn in another way; they are served where the folder carries them.
    """
    sparse = fields.get("sparse") or fields.get("very_sparse")
    if fields.get("peft_type") != "RANDLORA" or (sparse and not fields.get("save_projection", True)):
        return None
    alpha, dropout = float(fields["randlora_alpha"]), float(fields.get("randlora_dropout") or 0.0)
    return RandLoRA(rank=fields["r"], alpha=alpha, dropout=dropout, key=fields.get("projection_prng_key", 0))


PEFT = Peft(
    to_peft,
    {"lambda": "randlora_lambda", "gamma": "randlora_gamma"},
    from_peft,
    shared={"basis_A": "base_model.randlora_A", "basis_B": "base_model.randlora_B"},
)
METHOD = Method("randlora", RandLoRA, init, apply, merge, frozen=("basis_A", "basis_B"), peft=PEFT, paper="2502.00987")
