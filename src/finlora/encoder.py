"""Sentence and token vectors by any local encoder (BERT and its kin): what BERTScore and the encoder floor need.

A text becomes the hidden states of one layer, each of unit length; the tokenizer's own marks ([CLS], [SEP]) keep their
vectors and have "" for a token, as BERTScore matches them and does not count them.  Texts are cut at the encoder's
length.  Which encoder and layer it was is part of every figure made with it: `about` goes into the receipt.

Shapes: x_TD (tokens, width), batches of texts padded to their longest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import model as models
from .errors import FinloraError

BATCH = 32


@dataclass(frozen=True)
class Encoder:
    """encode(texts) -> [(tokens, x_TD)]. name: of its folder and the one above. layer: whose output, counted from 1. sha256: of its weights' files."""

    name: str
    layer: int
    sha256: str
    tokenizer: Any
    body: torch.nn.Module
    longest: int

    @property
    def about(self) -> dict[str, Any]:
        """What a receipt says of it: name, layer, sha256."""
        return {"name": self.name, "layer": self.layer, "sha256": self.sha256}

    def __call__(self, texts: Sequence[str]) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """(tokens, x_TD of unit length) of each text, in order; float32."""
        out: list[tuple[tuple[str, ...], np.ndarray]] = [((), np.zeros((0, 0), np.float32))] * len(texts)
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            for k, coded in zip(rows, self._batch([texts[k].strip() for k in rows]), strict=True):
                out[k] = coded
        return out

    @torch.no_grad()
    def _batch(self, texts: list[str]) -> list[tuple[tuple[str, ...], np.ndarray]]:
        made = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt", return_special_tokens_mask=True)
        marks = made.pop("special_tokens_mask")
        device = next(self.body.parameters()).device
        state = self.body(**{k: v.to(device) for k, v in made.items()}, output_hidden_states=True).hidden_states[self.layer]
        state = torch.nn.functional.normalize(state.float(), dim=-1).cpu().numpy()
        out = []
        for ids, kept, mark, x_TD in zip(made["input_ids"], made["attention_mask"], marks, state, strict=True):
            here = kept.bool()
            tokens = self.tokenizer.convert_ids_to_tokens(ids[here].tolist())
            out.append((tuple("" if m else t for t, m in zip(tokens, mark[here].tolist(), strict=True)), x_TD[here.numpy()]))
        return out

    def mean(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width): the mean over a text's tokens, of unit length; zeros for a text without tokens."""
        out = []
        for tokens, x_TD in self(texts):
            kept = x_TD[[t != "" for t in tokens]]
            mean = kept.mean(0) if len(kept) else np.zeros(x_TD.shape[1], np.float32)
            out.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        return np.stack(out)


def open_encoder(folder: str | Path, layer: int = 0, device: str = "auto") -> Encoder:
    """The encoder of a local folder. layer: from 1 on, 0 for the last.

    Raises: FinloraError for a folder that holds none, or a layer that it does not have.
    """
    folder = Path(folder)
    tokenizer, body = models.load_encoder(folder)
    layers = int(body.config.num_hidden_layers)
    if not 0 <= layer <= layers:
        raise FinloraError(f"layer {layer} of the encoder in `{folder}`, which has {layers}", f"1 to {layers}, or 0 for the last")
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    longest = min(int(tokenizer.model_max_length), int(getattr(body.config, "max_position_embeddings", 512)))
    return Encoder("/".join(folder.resolve().parts[-2:]), layer or layers, digest.hexdigest(), tokenizer, body.to(models.device_of(device)).eval(), longest)
