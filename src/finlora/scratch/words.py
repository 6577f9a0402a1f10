"""The text of a pretraining run: its tokenizer, and its tokens in memory or, for text larger than that, mapped from shards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checkpoint, shards
from .. import model as models
from .. import spec as specs
from ..corpus import Document, documents
from ..data import pieces
from ..errors import FinloraError
from ..shards import order
from ..text import Tokens, document
from ..tokenizer import train_tokenizer

LEARNT = 256 << 20  # characters that a tokenizer is trained on
WATCHED = 4096  # pieces of held-out text whose loss is watched, of those that lie in shards


@dataclass(frozen=True)
class Corpus:
    """train, held: pieces. members(step, batch, n, seed): the order, None for the loop's own. told: for the receipt.
    predictions, held_predictions: of all pieces; held_bytes: of the text held out."""

    train: Sequence[Tokens]
    held: Sequence[Tokens]
    told: list[dict[str, Any]]
    predictions: int
    held_predictions: int
    held_bytes: int
    members: Callable[..., list[int]] | None = None

    def bits_per_byte(self, nats: float) -> float:
        """A loss in nats per token, per byte of the text held out: independent of the tokenizer."""
        return nats * self.held_predictions / math.log(2) / self.held_bytes


def tokenizer(spec: specs.Spec, folder: Path) -> Any:
    """The tokenizer asked for; one trained here, on what is not held out, is kept in the run's folder, so that a resumed run has the same.

    Raises: FinloraError for texts that cannot be read, or none.
    """
    if spec.model.tokenizer not in ("", "train"):
        return models.load_tokenizer(spec.model.tokenizer)
    if not (folder / "tokenizer").exists():
        config = spec.model.config
        longest = int(config.get("max_position_embeddings", config.get("n_positions", spec.data.row_tokens)))
        found = documents(spec.data.text, spec.data.sources, spec.data.exclude_sources)
        raw = train_tokenizer(_some(d for d in found if not shards.held_out(d, spec.data.validation)), spec.model.vocab_size)
        checkpoint.atomic_folder(folder / "tokenizer", lambda t: models.wrap_tokenizer(raw, longest).save_pretrained(t))
    return models.load_tokenizer(str(folder / "tokenizer"))


def _some(found: Iterator[Document]) -> Iterator[str]:
    """Texts up to LEARNT characters.  Raises: FinloraError where there are none."""
    read = 0
    for one in found:
        yield one.text
        read += len(one.text)
        if read >= LEARNT:
            break
    if not read:
        raise _none()


def corpus(spec: specs.Spec, tokenizer: Any, progress: Any = None) -> Corpus:
    """The tokens of data.text, in memory or in the folder data.shards.

    Raises: FinloraError for texts that cannot be read or are none, and a folder of shards that is of other text.
    """
    return _mapped(spec, tokenizer, progress) if spec.data.shards else _in_memory(spec, tokenizer)


def _in_memory(spec: specs.Spec, tokenizer: Any) -> Corpus:
    texts = list(documents(spec.data.text, spec.data.sources, spec.data.exclude_sources))
    if not texts:
        raise _none()
    held, train = _split(texts, spec.data.validation)
    if not train:
        raise FinloraError(f"data.validation = {spec.data.validation:g} holds all {len(texts)} documents out: nothing is left to train on", "lower it, or give more documents")
    taken, train_pieces = _pieces(train, tokenizer, spec.data.row_tokens, spec.data.max_tokens)
    _, val_pieces = _pieces(held, tokenizer, spec.data.row_tokens, 0)
    n_train, n_held = (sum(len(t.ids) - 1 for t in cut) for cut in (train_pieces, val_pieces))
    told = [_described("train", train[:taken], n_train), _described("validation", held, n_held)]
    return Corpus(train_pieces, val_pieces, told, n_train, n_held, sum(len(d.text.encode()) for d in held))


def _mapped(spec: specs.Spec, tokenizer: Any, progress: Any) -> Corpus:
    folder, data = Path(spec.data.shards).expanduser(), spec.data
    weights = {key: float(value) for key, value in data.text_weights.items()}
    if data.text:
        shards.tokenise(
            data.text, tokenizer, folder, workers=data.workers, dedup=data.dedup, validation=data.validation, max_tokens=data.max_tokens,
            weights=weights, only=data.sources, exclude=data.exclude_sources, progress=progress,
        )  # fmt: skip
    train, held = shards.open_shards(folder, data.row_tokens, join=data.join, tokenizer=tokenizer, weights=weights)
    if not len(train):
        raise _none()
    told = [
        {"task": "text", "split": split, "rows": part.documents, "tokens": part.predictions, "bytes": part.bytes, "sha256": part.sha256, "shards": folder.name}
        for split, part in (("train", train), ("validation", held))
    ]
    watched = shards.thinned(held, WATCHED) if len(held) else []
    return Corpus(train, watched, told, train.predictions, held.predictions, sum(held.bytes.values()), order.members)


def check_finished(spec: specs.Spec, sheet: dict[str, Any]) -> None:
    """Raises: FinloraError where a finished run of this spec was of other shards: they alone name its text if data.text is empty."""
    if spec.data.shards and not spec.data.text:
        train, _ = shards.open_shards(Path(spec.data.shards).expanduser(), spec.data.row_tokens, join=spec.data.join)
        if train.sha256 != sheet["data"][0]["sha256"]:
            raise FinloraError(f"run.out: `{spec.run.out}` holds a run on other shards than `{spec.data.shards}` holds now", "name another folder, or set run.overwrite = true to replace it")


def _none() -> FinloraError:
    return FinloraError("data.text: no document is left after sources and exclude_sources", "check the names of the sources")


def _split(texts: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(held out, train): whole documents, drawn as shards draw them."""
    return [d for d in texts if shards.held_out(d, share)], [d for d in texts if not shards.held_out(d, share)]


def _pieces(texts: list[Document], tokenizer: Any, length: int, most: int) -> tuple[int, list[Tokens]]:
    """(how many documents were taken until there were `most` tokens, all where `most` is 0; their pieces)."""
    out: list[Tokens] = []
    taken = total = 0
    for d in texts:
        cut = pieces(document(d.text, tokenizer, f"{d.source}/{d.id}"), length)
        out.extend(cut)
        taken, total = taken + 1, total + sum(map(len, cut))
        if most and total >= most:
            break
    return taken, out


def _described(split: str, texts: list[Document], predictions: int) -> dict[str, Any]:
    h = hashlib.sha256()
    for d in texts:
        h.update(d.text.encode())
    sources: dict[str, int] = {}
    for d in texts:
        sources[d.source] = sources.get(d.source, 0) + len(d.text.encode())
    return {"task": "text", "split": split, "rows": len(texts), "tokens": predictions, "bytes": sources, "sha256": h.hexdigest()}
