"""Perplexity on held-out text: how well a model still reads running language, in nats a token and bits a byte.

    nats/token = sum_d nats_d / sum_d tokens_d        bits/byte = sum_d nats_d / (ln 2 sum_d bytes_d)

A document is cut into pieces of at most CONTEXT predictions, or of what the model has positions for, each read by itself, so
that two models are compared with the same room to look back.  Positions that a model has but was not trained on are no
context: a base trained on rows of 256 read the text that ships at 4.02 nats a token in pieces of 256 and 4.35 in pieces of 1024
(`finlora/base`, trained on rows of 1024: 3.75 and 3.69), and what tuning does there is no forgetting.  Every token counts but a beginning token, and no end token is
asked for: a passage does not end where its document does, and tuning on short answers moves just that token.
The sums of each document are kept, so that two runs can be paired by document (figures.text_difference).
It differs from the usual figure, one mean with no interval, whose value depends on how texts were joined and cut.

Shapes: B pieces, T positions, D width.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import corpus, figures
from .corpus import Document
from .data import collate, pieces
from .errors import FinloraError
from .loss import token_sums
from .model import Model, head, hidden
from .text import Tokens, document

EMBEDDED = "embedded"  # the name of the text that ships
CONTEXT = 256  # most predictions of a piece


def texts(paths: Sequence[str] | str) -> list[Document]:
    """The documents that `evaluate.text` names, those without text left out; [] where it names nothing.

    paths: files and folders as data.text has them; `embedded` is the text that ships.
    Raises: FinloraError for a missing path, a broken line, or no document with text.
    """
    paths = [path for path in ([paths] if isinstance(paths, str) else paths) if path]
    if not paths:
        return []
    shipped = Path(__file__).parent / "embedded" / "general.jsonl"
    try:
        found = list(corpus.documents([str(shipped) if p == EMBEDDED else p for p in paths]))
    except FinloraError as error:
        raise FinloraError(error.message.replace("data.text", "evaluate.text", 1), error.hint) from error
    found = [d for d in found if d.text.strip()]
    if not found:
        raise FinloraError(f"evaluate.text: {', '.join(paths)} holds no document with text", "each row needs a `text`")
    return found


def measured(model: Model, paths: Sequence[str] | str, batch_tokens: int = 4096, progress: Any = None) -> dict[str, Any] | None:
    """The receipt's "text" section, None where `paths` names nothing.

    {"documents", "tokens", "bytes", "context", "sha256", "nats_per_token", "bits_per_byte" (estimates with intervals over
    documents), "each": [[id, nats, tokens, bytes], ...], "seconds"}. Rows of one source and id are one document.
    batch_tokens: positions computed at once. Raises: as texts.
    """
    found = texts(paths)
    if not found:
        return None
    began, context = time.perf_counter(), min(model.max_tokens, CONTEXT)
    if progress:
        progress.start("read held-out text", len(found))
    each: dict[str, list[float]] = {}
    digest = hashlib.sha256()
    was, done = model.training, 0
    model.eval()
    for part in _parts(found, model.tokenizer, context, batch_tokens):
        nats = _nats(model, [tokens for _, tokens in part])
        for (place, tokens), value in zip(part, nats, strict=True):
            d = found[place]
            if place >= done:  # the first piece of a document
                digest.update(f"{d.source}/{d.id}\n{d.text}\n".encode("utf-8", "replace"))
                done = place + 1
                sums = each.setdefault(f"{d.source}/{d.id}", [0.0, 0, 0])
                sums[2] += len(d.text.encode("utf-8", "replace"))
            sums = each[f"{d.source}/{d.id}"]
            sums[0] += value
            sums[1] += len(tokens.ids) - 1
        if progress:
            progress.step(done)
    model.train(was)
    if progress:
        progress.done()
    told = [[name, *sums] for name, sums in each.items()]
    return {
        "documents": len(told),
        "tokens": sum(row[2] for row in told),
        "bytes": sum(row[3] for row in told),
        "context": context,
        "sha256": digest.hexdigest(),
        **figures.text_figures(told),
        "each": told,
        "seconds": time.perf_counter() - began,
    }


def _parts(found: Sequence[Document], tokenizer: Any, context: int, batch_tokens: int) -> Iterator[list[tuple[int, Tokens]]]:
    """(place of the document, piece) in order, as many at once as fit `batch_tokens` when padded to the longest."""
    part: list[tuple[int, Tokens]] = []
    widest = 0
    for place, d in enumerate(found):
        for tokens in pieces(_without_end(document(d.text, tokenizer), tokenizer), context):
            width = max(widest, len(tokens.ids) - 1)
            if part and width * (len(part) + 1) > batch_tokens:
                yield part
                part, width = [], len(tokens.ids) - 1
            part.append((place, tokens))
            widest = width
    if part:
        yield part


def _without_end(tokens: Tokens, tokenizer: Any) -> Tokens:
    """The tokens of a text without the end token that `document` adds."""
    assert tokens.ids[-1] == tokenizer.eos_token_id
    return Tokens(tokens.ids[:-1], tokens.weights[:-1], tokens.id)


@torch.no_grad()
def _nats(model: Model, part: Sequence[Tokens]) -> list[float]:
    """The nats of each piece."""
    batch = collate([[tokens] for tokens in part]).to(model.device)
    x_BTD, out = hidden(model, batch), head(model)
    return [float(token_sums(x_BTD[b], out, batch.targets[b], batch.weights[b])[0]) for b in range(len(part))]
