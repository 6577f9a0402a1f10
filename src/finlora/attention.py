"""Attention over packed rows: every document attends to itself alone, without a (T, T) mask.

    out_q = softmax_k( scale * q . k ) v      over k in the same document, k not after q, and branch(k) in {0, branch(q)}

The documents of a batch are gathered out of their rows into groups of similar length, each group attends in one call of
torch's scaled_dot_product_attention, and the results are put back.  The cost is the sum of squared document lengths, where
a masked row pays the square of the row: for sentences in rows of 2048 tokens that is the whole of the attention's cost.
Branches let several continuations share one beginning in one forward pass: the labels of a question (generate.choose), the
examples under one instruction (data.pack).  They attend in one of two ways, whichever costs less: short branches together
under a mask, long ones each behind a gathered copy of the trunk, in plain causal attention; only keys, values and queries
are copied, all else is computed once for the trunk.

Shapes: B rows, T positions, H heads, G key/value heads, D head width; N lines (documents, or a trunk with one branch) of
length at most L in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .data import Batch


@dataclass
class Layout:
    """Where each document of a batch lies.

    groups: (index (N, L) into the B*T positions, mask (N, 1, L, L) or None for plain causal, position (N, L)).
    back: (B*T) into the concatenated groups; a trunk's results are taken from its first branch's line. served: how many attention layers have used it, so that a model that
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
    doc, branch, pos = (x.cpu().numpy() for x in (batch.doc, batch.branch, batch.pos))
    B, T = doc.shape
    lines: list[tuple[np.ndarray, int, bool]] = []  # positions, how many of them another line answers for, masked
    label = (np.arange(B)[:, None] * (doc.max() + 1) + doc).ravel()
    inside = np.flatnonzero(doc.ravel() >= 0)
    cuts = np.flatnonzero(np.diff(label[inside])) + 1
    assert len(cuts) + 1 == len(np.unique(label[inside])), "a document must lie in one piece"
    for where in np.split(inside, cuts):
        lines += _lines(where, branch.ravel()[where])
    back = np.zeros(B * T, np.int64)
    groups, offset = [], 0
    sizes = np.array([len(where) for where, _, _ in lines])
    grain = 4 if device.type == "cpu" else 1  # sizes told apart in a doubling: a GPU likes few calls, a CPU little padding
    bucket = 2 * np.ceil(grain * np.log2(np.maximum(sizes, 16))).astype(int) + [masked for _, _, masked in lines]
    for size in np.unique(bucket):
        group = [lines[k] for k in np.flatnonzero(bucket == size)]
        width = max(len(where) for where, _, _ in group)
        index = np.stack([np.pad(where, (0, width - len(where)), constant_values=where[0]) for where, _, _ in group])
        for n, (where, known, _) in enumerate(group):
            back[where[known:]] = offset + n * width + np.arange(known, len(where))
        offset += index.size
        mask = None
        if size % 2:
            b = torch.from_numpy(branch.ravel()[index])
            mask = (b[:, None, :] == 0) | (b[:, None, :] == b[:, :, None])
            mask = (mask.tril() | torch.eye(width, dtype=torch.bool))[:, None].to(device)  # a row without any key would be nan
        groups.append((torch.from_numpy(index).to(device), mask, torch.from_numpy(pos.ravel()[index]).to(device)))
    return Layout(groups, torch.from_numpy(back).to(device))


def _lines(where: np.ndarray, branch: np.ndarray) -> list[tuple[np.ndarray, int, bool]]:
    """A document's lines: itself, or each of its branches behind the trunk where that is less work than the mask."""
    if not branch.any():
        return [(where, 0, False)]
    trunk = where[branch == 0]
    own = [where[branch == k] for k in np.unique(branch[branch > 0])]
    if sum((len(trunk) + len(tail)) ** 2 for tail in own) > len(where) ** 2:
        return [(where, 0, True)]
    return [(np.concatenate([trunk, tail]), len(trunk) if k else 0, False) for k, tail in enumerate(own)]


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
