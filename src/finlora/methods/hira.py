"""HiRA: the stored weight times a low-rank matrix, entry by entry, so that the change has the weight's own high rank.

    y = x (W + W * (B A))^T          A drawn as in LoRA, B zero, no alpha

Entries of W are near 0.02, so learning rates lie some forty times above LoRA's (PEFT's benchmark has 4.5e-3). There is
no plain LoRA form, since W * (B A) has the rank of W; merge instead.

W is the weight as it is stored: over a quantised base the change is a multiple of the decoded values. The usual way
keeps W, B A and their product from forward to backward, three matrices of W's size; here backward decodes and
multiplies again.

Source: ICLR 2025, openreview TwJrTz9cRS; the layout is PEFT's (`hira_A`, `hira_B`).

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..linear import Method, Peft, Place
from ..seam import by_shape
from . import lora


@dataclass(frozen=True)
class HiRA:
    """rank: inner width of B A. dropout: on the adapter's input."""

    rank: int = 16
    dropout: float = 0.0

    def __post_init__(self):
        lora.LoRA(rank=self.rank, dropout=self.dropout)  # its checks are ours


class Product(torch.autograd.Function):
    """y0 + x (W * (B A))^T of a stored W. Saves x, A and B; backward decodes W and multiplies B A again."""

    @staticmethod
    def forward(ctx, x: Tensor, y0: Tensor, A: Tensor, B: Tensor, store) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.store, ctx.edits = store, store.edits
        return torch.addmm(y0, x, change(store.dense(x.dtype), A, B).t())

    @staticmethod
    def backward(ctx, grad: Tensor):
        assert ctx.edits == ctx.store.edits, "the stored weight was replaced between forward and backward"
        x, A, B = ctx.saved_tensors
        W = ctx.store.dense(x.dtype)
        grad_x = grad @ change(W, A, B) if ctx.needs_input_grad[0] else None
        grad_BA = (grad.t() @ x).to(A.dtype) * W
        return grad_x, grad, B.t() @ grad_BA, grad_BA @ A.t(), None


def change(W_OI: Tensor, A_RI: Tensor, B_OR: Tensor) -> Tensor:
    """(O, I): W * (B A) in W's dtype, rounded once."""
    return (W_OI * (B_OR @ A_RI)).to(W_OI.dtype)


def apply(cfg: HiRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + x (W * (B A))^T."""
    work = torch.promote_types(x.dtype, torch.float32)
    A, B = params["A"].to(work), params["B"].to(work)
    y = Product.apply(x.reshape(-1, x.shape[-1]), y0.reshape(-1, y0.shape[-1]), A, B, base)
    return y.view(y0.shape)


def merge(cfg: HiRA, params, W_OI: Tensor) -> Tensor:
    """W + W * (B A)."""
    return W_OI + W_OI * (params["B"] @ params["A"])


def to_peft(cfg: HiRA) -> dict[str, Any]:
    """The fields of PEFT's HiraConfig."""
    return {"peft_type": "HIRA", "r": cfg.rank, "hira_dropout": cfg.dropout, "init_weights": True}


def from_peft(fields: dict[str, Any]) -> HiRA | None:
    """The config where the fields describe a HiRA, else None."""
    if fields.get("peft_type") != "HIRA":
        return None
    return HiRA(rank=fields["r"], dropout=float(fields.get("hira_dropout") or 0.0))


@by_shape
def init(cfg: HiRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """LoRA's A and B. Raises: FinloraError when the rank exceeds the layer."""
    return lora.init(lora.LoRA(rank=cfg.rank), W_OI, place)


PEFT = Peft(to_peft, {"A": "hira_A", "B": "hira_B"}, from_peft)
METHOD = Method("hira", HiRA, init, apply, merge, peft=PEFT, paper="openreview TwJrTz9cRS")
