"""Attention over packed rows: every document attends to itself alone, without a (T, T) mask.

    out_q = softmax_k( scale * q . k ) v      over k in the same document, k not after q, and branch(k) in {0, branch(q)}

The documents of a batch are gathered out of their rows into groups of similar length, each group attends in one call of
torch's scaled_dot_product_attention, and the results are put back.  The cost is the sum of squared document lengths, where
a masked row pays the square of the row: for sentences in rows of 2048 tokens that is the whole of the attention's cost.
Branches let several continuations share one beginning in one forward pass: the labels of a question (generate.choose), the
examples under one instruction (data.pack).  They attend in one of two ways, whichever costs less: short branches together
under a mask, long ones each behind a gathered copy of the trunk, in plain causal attention; only keys, values and queries
are copied, all else is computed once for the trunk.  A line of which only the end is wanted, since another line answers for
its beginning, asks with that end alone: M L products in place of L^2 / 2.

Shapes: B rows, T positions, H heads, G key/value heads, D head width; N lines (documents, or a trunk with one branch) of
length at most L in a group, M of whose positions ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .data import Batch

SHORT = 3  # a line asks with its end alone where that is less than one in so many of its positions


@dataclass(frozen=True)
class Lines:
    """Lines that attend in one call. index: (N, L) into the B*T positions. mask: (N, 1, M, L), None for plain causal. pos: (N, L).
    ask: (N, M) the columns that ask, None for all."""

    index: torch.Tensor
    mask: torch.Tensor | None
    pos: torch.Tensor
    ask: torch.Tensor | None = None

    def to(self, device: torch.device) -> Lines:
        """The same on that device."""
        return Lines(*(None if x is None else x.to(device) for x in (self.index, self.mask, self.pos, self.ask)))


@dataclass
class Layout:
    """Where each document of a batch lies.

    back: (B*T) into the concatenated groups; a trunk's results are taken from its first branch's line. served: how many attention layers have used it, so that a model that
    drops the layout on its way is caught instead of silently attending across documents.
    """

    groups: list[Lines]
    back: torch.Tensor
    served: int = 0

    def to(self, device: torch.device) -> Layout:
        """The same on that device."""
        return Layout([g.to(device) for g in self.groups], self.back.to(device))


def is_plain(batch: Batch) -> bool:
    """True where each row is one document from its start: plain causal attention then serves it."""
    return bool((batch.doc <= 0).all()) and not bool(batch.branch.any())


def layout(batch: Batch) -> Layout:
    """The layout of a packed batch, on the batch's device."""
    return trimmed(whole(batch), batch.ids.device)


def _grain(device: torch.device) -> int:
    return 4 if device.type == "cpu" else 1  # sizes told apart in a doubling: a GPU likes few calls, a CPU little padding


def whole(batch: Batch) -> Layout:
    """The layout in which every line asks with all of itself, on the CPU."""
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
    bucket = 2 * np.ceil(_grain(batch.ids.device) * np.log2(np.maximum(sizes, 16))).astype(int) + [masked for _, _, masked in lines]
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
            mask = (mask.tril() | torch.eye(width, dtype=torch.bool))[:, None]  # a row without any key would be nan
        groups.append(Lines(torch.from_numpy(index), mask, torch.from_numpy(pos.ravel()[index])))
    return Layout(groups, torch.from_numpy(back))


def trimmed(where: Layout, device: torch.device) -> Layout:
    """The layout (of the CPU) without the queries that nothing is taken from, in plain causal lines that ask with less than a third; on that device."""
    used = torch.zeros(sum(g.index.numel() for g in where.groups), dtype=torch.bool)
    used[where.back] = True
    moved = torch.full_like(used, -1, dtype=torch.long)
    groups: list[Lines] = []
    offset = size = 0
    for g in where.groups:
        N, L = g.index.shape
        wanted, old = used[offset : offset + N * L].view(N, L), torch.arange(offset, offset + N * L).view(N, L)
        offset += N * L
        first, last = wanted.int().argmax(1), L - 1 - wanted.flip(1).int().argmax(1)
        count = last - first + 1
        short = wanted.any(1) & (SHORT * count < L) if g.mask is None else torch.zeros(N, dtype=torch.bool)
        kept = wanted.any(1) & ~short
        if bool(kept.any()):
            groups.append(Lines(g.index[kept], None if g.mask is None else g.mask[kept], g.pos[kept]))
            moved[old[kept].flatten()] = torch.arange(size, size + int(kept.sum()) * L)
            size += int(kept.sum()) * L
        bucket = torch.where(short, torch.ceil(_grain(device) * torch.log2(count.clamp(min=8).float())).long(), -1)
        for kind in bucket[short].unique():
            rows = (bucket == kind).nonzero()[:, 0]
            M = int(count[rows].max())
            column = first[rows, None] + torch.arange(M)
            ask = column.clamp(max=L - 1)
            real = column < L
            moved[old[rows].gather(1, ask)[real]] = torch.arange(size, size + len(rows) * M).view(-1, M)[real]
            groups.append(Lines(g.index[rows], (torch.arange(L) <= ask[:, :, None])[:, None], g.pos[rows], ask))
            size += len(rows) * M
    return Layout(groups, moved[where.back]).to(device)


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
    for g in where.groups:
        (N, L), mask = g.index.shape, g.mask
        asking = g.index if g.ask is None else g.index.gather(1, g.ask)
        M = asking.shape[1]
        q, k, v = (x.index_select(0, i.flatten()).view(*i.shape, x.shape[1], x.shape[2]).transpose(1, 2) for x, i in zip(flat, (asking, g.index, g.index)))
        if k.shape[1] != H:
            k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
        if window is not None and L > window:
            own = g.pos if g.ask is None else g.pos.gather(1, g.ask)
            near = own[:, :, None] - g.pos[:, None, :] < window
            causal = torch.ones(L, L, dtype=torch.bool, device=near.device).tril() if mask is None else mask[:, 0]
            itself = torch.arange(L, device=near.device) == (torch.arange(L, device=near.device)[None] if g.ask is None else g.ask)[:, :, None]
            mask = (near & causal | itself)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scale)
        outs.append(out.transpose(1, 2).reshape(N * M, H, -1))
    where.served += 1
    return torch.cat(outs).index_select(0, where.back).view(B, T, H, -1)
