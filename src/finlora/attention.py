"""Attention over packed rows: every document attends to itself alone, without a (T, T) mask.

    out_q = softmax_k( scale * q . k ) v      over k in the same document, k not after q, and branch(k) in {0, branch(q)}

The documents of a batch are gathered out of their rows into groups of similar length, each group attends in one call of
torch's scaled_dot_product_attention, and the results are put back.  The cost is the sum of squared document lengths, where
a masked row pays the square of the row: for sentences in rows of 2048 tokens that is the whole of the attention's cost.
Branches let several answers share one prompt in one forward pass (generate.choose).

Shapes: B rows, T positions, H heads, G key/value heads, D head width; N documents of length at most L in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .data import Batch


@dataclass
class Layout:
    """Where each document of a batch lies.

    groups: (index (N, L) into the B*T positions, mask (N, 1, L, L) or None for plain causal, position (N, L)).
    back: (B*T) into the concatenated groups. served: how many attention layers have used it, so that a model that
    drops the layout on its way is caught instead of silently attending across documents.
    """

    groups: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]
    back: torch.Tensor
    served: int = 0


def is_plain(batch: Batch) -> bool:
    """True where each row is one document from its start: plain causal attention then serves it."""
    return bool((batch.doc <= 0).all()) and not bool(batch.branch.any())


def layout(batch: Batch) -> Layout:
    """The layout of a packed batch, on the batch's device."""
    device = batch.ids.device
    n_positions = batch.ids.numel()
    doc = batch.doc.cpu()
    rows = torch.arange(doc.shape[0])[:, None].expand_as(doc)
    label = torch.where(doc >= 0, rows * (int(doc.max()) + 1) + doc, -1).flatten()
    inside = (label >= 0).nonzero().squeeze(1)
    ids, counts = torch.unique_consecutive(label[inside], return_counts=True)
    starts = inside[torch.cumsum(counts, 0) - counts]
    assert len(ids) == len(torch.unique(ids)), "a document must lie in one piece"
    branch, pos = batch.branch.cpu().flatten(), batch.pos.cpu().flatten()
    back = torch.zeros(n_positions, dtype=torch.long)
    groups, offset = [], 0
    bucket = torch.ceil(torch.log2(counts.clamp(min=16).double())).long()
    for size in bucket.unique():
        which = (bucket == size).nonzero().squeeze(1)
        n, first = counts[which], starts[which]
        width = int(n.max())
        step = torch.arange(width)
        valid = step[None] < n[:, None]
        index = torch.where(valid, first[:, None] + step, first[:, None])
        back[index[valid]] = offset + torch.arange(valid.numel()).view_as(index)[valid]
        offset += valid.numel()
        mask = None
        if branch[index].any():
            b = branch[index]
            mask = (b[:, None, :] == 0) | (b[:, None, :] == b[:, :, None])
            mask &= (step[:, None] >= step[None])[None] & valid[:, None, :]
            mask |= torch.eye(width, dtype=torch.bool)[None]  # a row without any key would be nan
            mask = mask[:, None].to(device)
        groups.append((index.to(device), mask, pos[index].to(device)))
    return Layout(groups, back.to(device))


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    where: Layout,
    scale: float | None,
    dropout: float = 0.0,
    window: int | None = None,
) -> torch.Tensor:
    """query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D).  window: positions a token sees back, itself too."""
    B, H, T, _ = query.shape
    flat = [x.transpose(1, 2).reshape(B * T, x.shape[1], x.shape[3]) for x in (query, key, value)]
    outs = []
    for index, mask, pos in where.groups:
        N, L = index.shape
        q, k, v = (x.index_select(0, index.flatten()).view(N, L, x.shape[1], x.shape[2]).transpose(1, 2) for x in flat)
        if k.shape[1] != H:
            k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
        if window is not None and L > window:
            near = pos[:, :, None] - pos[:, None, :] < window
            causal = torch.ones(L, L, dtype=torch.bool, device=index.device).tril() if mask is None else mask[:, 0]
            mask = (near & causal | torch.eye(L, dtype=torch.bool, device=index.device))[:, None]
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scale)
        outs.append(out.transpose(1, 2).reshape(N * L, H, -1))
    where.served += 1
    return torch.cat(outs).index_select(0, where.back).view(B, T, H, -1)
