"""What a compression looks at: the text, the model's blocks, whether it is causal, and how much each block does.

Shapes: x, y (B, T, D), what goes into a block and what comes out of it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from .. import model as models
from ..corpus import Document, documents
from ..data import collate, pack, pieces
from ..errors import FinloraError
from ..text import Tokens, document
from ..weights import DTYPES, open_checkpoint
from .settings import Compress


def blocks_of(names: Iterable[str]) -> dict[str, list[str]]:
    """{block: its linears} in the model's order; a linear outside all blocks is a block of its own."""
    out: dict[str, list[str]] = {}
    for name in names:
        inside = re.match(r"(.*?\.\d+)\.", name)
        out.setdefault(inside[1] if inside else name, []).append(name)
    return out


def texts(settings: Compress, tokenizer: Any, length: int) -> tuple[list[Tokens], list[Tokens], dict[str, Any]]:
    """(rows to calibrate on, rows held out, what was read): whole documents in an order drawn by the seed.

    Where there are too few documents to hold one out, the last rows are. Raises: FinloraError where no text is left.
    """

    def draw(d: Document) -> float:
        return int.from_bytes(hashlib.sha256(f"{settings.seed}/{d.source}/{d.id}".encode()).digest()[:8], "big") / 2**64

    def drawn(key: str) -> list[Document]:
        try:
            return sorted((d for d in documents(getattr(settings, key), settings.sources, settings.exclude_sources) if d.text.strip()), key=draw)
        except FinloraError as error:
            raise FinloraError(error.message.replace("data.text", key, 1), error.hint) from error

    found = drawn("text")
    if not found:
        raise FinloraError("text: no document is left after sources and exclude_sources, or all are blank", "check the files and the names of the sources")
    apart = [] if settings.val_text else [d for d in found if draw(d) < settings.validation]
    held = _read(drawn("val_text") if settings.val_text else apart, tokenizer, length, settings.val_tokens)
    rows = _read(found[len(apart) :], tokenizer, length, settings.tokens)
    if settings.validation and not settings.val_text and not (rows and held):
        rows = _read(found, tokenizer, length, settings.tokens + settings.val_tokens)
        last = min(max(1, round(settings.validation * len(rows))), len(rows) - 1)
        rows, held = rows[: len(rows) - last], rows[len(rows) - last :]
    if not rows:
        raise FinloraError("text: it has less than two tokens, there is nothing to calibrate on", "give more text")
    hashed = hashlib.sha256("".join(f"{r.ids}" for r in rows).encode()).hexdigest()
    counts = {"tokens": sum(len(r.ids) - 1 for r in rows), "val_tokens": sum(len(r.ids) - 1 for r in held)}
    return rows, held, {"documents": len(found), "rows": len(rows), **counts, "sha256": hashed}


def _read(found: Sequence[Document], tokenizer: Any, length: int, most: int) -> list[Tokens]:
    """Rows of the documents, `most` tokens in all: one drawn row of each in their order, then, if need be, the others in rounds.

    A sample of few long documents measures those: sixteen rows each of 16 in place of one each of 246 cost the embedded base
    0.1 nats a token elsewhere, and draws then differed by 0.23 where they now differ by 0.03.
    """
    out: list[Tokens] = []
    later: list[list[Tokens]] = []
    tokens = kept = 0
    for d in found:
        name = f"{d.source}/{d.id}"
        cut = [t for t in pieces(document(d.text, tokenizer, name), length) if len(t.ids) > 1]
        random.Random(name).shuffle(cut)
        out += cut[:1]
        tokens += sum(len(t.ids) - 1 for t in cut[:1])
        if tokens >= most:
            return out
        later.append(cut[1:])
        kept += sum(len(t.ids) - 1 for t in cut[1:])
        if kept > 2 * most:  # what no round would reach is not held
            later = _rounds(later, most)
            kept = sum(len(t.ids) - 1 for rows in later for t in rows)
    later = _rounds(later, most - tokens)
    return out + [row for rows in zip_longest(*later) for row in rows if row is not None]


def _rounds(later: Sequence[Sequence[Tokens]], most: int) -> list[list[Tokens]]:
    """Of each document's rows those that are taken when all give one in turn until there are `most` tokens."""
    taken: list[list[Tokens]] = [[] for _ in later]
    tokens = 0
    for rows in zip_longest(*later):
        for mine, row in zip(taken, rows):
            if row is not None and tokens < most:
                mine.append(row)
                tokens += len(row.ids) - 1
    return taken


def short(rows: Sequence[Tokens], shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A note where fewer tokens were read than the widest linear has inputs; else nothing."""
    tokens = sum(len(r.ids) - 1 for r in rows)
    name = max(shapes, key=lambda n: shapes[n][1])
    if tokens >= (n_in := shapes[name][1]):
        return []
    return [
        f"the text to calibrate on has {tokens} tokens, fewer than the {n_in} inputs of {name}: what it does not show is cut away"
        " first; give more text, or options = {ridge = 0.01} where the decomposition has one"
    ]


@torch.no_grad()
def turned(model: models.Model, blocks: Mapping[str, Sequence[str]], rows: Iterable[Tokens], length: int) -> dict[str, float]:
    """1 - cos between what goes into each block and what comes out of it, mean over tokens (ShortGPT, 2403.03853); 0 for a
    linear outside all blocks."""
    sums, count = dict.fromkeys(blocks, 0.0), 0

    def hook(block: str) -> Callable[..., None]:
        def forward(module, args, kwargs, out):
            x, y = args[0] if args else kwargs["hidden_states"], out[0] if isinstance(out, tuple) else out
            sums[block] += float((1 - torch.cosine_similarity(x.float(), y.float(), dim=-1)).sum())

        return forward

    inside = [block for block, names in blocks.items() if [*names] != [block]]
    handles = [model.body.get_submodule(block).register_forward_hook(hook(block), with_kwargs=True) for block in inside]
    try:
        for row in pack(rows, length):
            batch = collate([row]).to(model.device)
            models.hidden(model, batch)
            count += batch.ids.numel()
    finally:
        for handle in handles:
            handle.remove()
    return {block: sums[block] / count for block in blocks}


def stored_type(name: str) -> torch.dtype | None:
    """The type in which most of a local model folder's floats are kept; None where it cannot be told."""
    where = models.locate(name, online=True)
    for kind in ("model", "structured"):
        checkpoint = open_checkpoint(where, kind)
        if checkpoint is not None:
            held: dict[torch.dtype, int] = {}
            for spot in checkpoint.spots.values():
                if (dtype := DTYPES[spot.dtype]).is_floating_point and dtype.itemsize > 1:
                    held[dtype] = held.get(dtype, 0) + spot.nbytes
            return max(held, key=lambda dtype: held[dtype]) if held else None
    return None
