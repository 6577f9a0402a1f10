"""The only cross entropy: two sums, never a mean.

    nats = sum_n w_n (logsumexp(z_n) - z_n[target_n]),   z_n = softcap(scale * (W h_n + b)),   weight = sum_n w_n

Whoever knows the whole optimiser step divides, so cutting a step into micro-batches cannot change it (the mean of means
that most trainers took until 2024 does).  The head runs only at positions whose weight is not zero, and in chunks whose
gradient is formed at once, so that no (B, T, V) tensor ever exists: at most `chunk` x V.  That the gradient can be taken
in the forward pass is the observation of Liger's fused linear cross entropy; Cut Cross-Entropy (arXiv 2411.09009) goes
further with a kernel.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Head:
    """The output layer: weight (V, D), bias (V) or None; logits are cap * tanh(scale * (h W^T + b) / cap)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V), in the hidden state's dtype or wider."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        z = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        z = z * self.scale if self.scale != 1.0 else z
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def token_sums(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor, chunk: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of weighted nats and sum of weights.

    hidden: (..., D); targets, weights: (...). Returns two 0-dim tensors, float32 (float64 for float64 hidden); the
    first carries the gradient to `hidden` and, where it is trainable, to the head.
    """
    where = weights.reshape(-1).nonzero().squeeze(1)
    h = hidden.reshape(-1, hidden.shape[-1]).index_select(0, where)
    t, w = targets.reshape(-1).index_select(0, where), weights.reshape(-1).index_select(0, where)
    nats = _TokenSums.apply(h, head.weight, head.bias, t, w, head.scale, head.softcap, chunk)
    return nats, w.sum()


class _TokenSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_ND, W_VD, b_V, target_N, weight_N, scale, softcap, chunk):
        wants_h, wants_W, wants_b = ctx.needs_input_grad[:3]
        wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=h_ND.device)
        g_h = torch.empty_like(h_ND) if wants_h else None
        g_W = torch.zeros_like(W_VD, dtype=wide) if wants_W else None
        g_b = torch.zeros_like(b_V, dtype=wide) if wants_b else None
        W = W_VD.to(h_ND.dtype)
        for k in range(0, len(h_ND), chunk):
            z = g = narrow = None  # frees the last chunk before the next is made
            h, target, weight = h_ND[k : k + chunk], target_N[k : k + chunk], weight_N[k : k + chunk].to(wide)
            z = (h @ W.T).to(wide)
            if b_V is not None:
                z += b_V.to(wide)
            if scale != 1.0:
                z *= scale
            if softcap is not None:
                z = softcap * torch.tanh(z / softcap)
            lse = torch.logsumexp(z, dim=-1)
            total += (weight * (lse - z.gather(1, target[:, None]).squeeze(1))).sum()
            if not (wants_h or wants_W or wants_b):
                continue
            slope = None if softcap is None else 1 - (z / softcap).square()
            g = z.sub_(lse[:, None]).exp_()  # becomes the gradient at the logits: weight * (softmax - onehot)
            g.scatter_add_(1, target[:, None], torch.full_like(g[:, :1], -1.0))
            g *= weight[:, None] * scale
            if slope is not None:
                g *= slope
            narrow = g.to(h.dtype)
            if wants_h:
                g_h[k : k + chunk] = narrow @ W
            if wants_W:
                g_W += narrow.T @ h
            if wants_b:
                g_b += g.sum(0)
        ctx.save_for_backward(g_h, g_W.to(W_VD.dtype) if wants_W else None, g_b.to(b_V.dtype) if wants_b else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        g_h, g_W, g_b = (None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors)
        return g_h, g_W, g_b, None, None, None, None, None
