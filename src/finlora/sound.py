"""Whether an opened model is one that can be read, trained and trusted; each raises FinloraError with one line.

    tokenizer(...)   has tokens, and an embedding for each
    finite(...)      no NaN or infinity in what is not a codec's or a structure's to look at
    causal(...)      no state depends on later tokens, as an encoder's do
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .data import collate
from .errors import FinloraError
from .forward import hidden
from .seam import check_finite
from .text import Tokens

PROBE = 24  # tokens of the row by which a model is seen to be causal


def tokenizer(where: str, found: Any, body: nn.Module) -> None:
    """Raises: FinloraError where the tokenizer is empty, or a token that text can give has no embedding.

    Special tokens beyond the embeddings are let be (chat templates add some that a base never saw), but those that begin and
    end a document.
    """
    if not len(found):
        raise FinloraError(f"model.name: `{where}` has no tokenizer, or an empty one", "copy the model's tokenizer files (tokenizer.json, tokenizer_config.json) into the folder")
    rows = body.get_input_embeddings().weight.shape[0]
    if len(found) <= rows:
        return
    spared = set(found.all_special_ids) - {found.bos_token_id, found.eos_token_id}
    word, last = max(((word, k) for word, k in found.get_vocab().items() if k not in spared), key=lambda one: one[1])
    if last >= rows:
        raise FinloraError(f"model.name: `{where}`: its tokenizer has token {last} (`{word}`), its embeddings {rows:,} rows", "the tokenizer belongs to another model: copy this one's files into the folder")


def finite(where: str, body: nn.Module) -> None:
    """Raises: FinloraError for a parameter that holds NaN or infinity, by its name."""
    for name, p in body.named_parameters():
        if p.is_floating_point() and not p.is_meta:
            try:
                check_finite(p.detach())
            except FinloraError as error:
                raise FinloraError(f"model.name: `{where}`: `{name}`: {error.message}", error.hint) from None


@torch.no_grad()
def causal(model: Any) -> None:
    """Raises: FinloraError where a state depends on a later token, tried on one row."""
    rows = model.body.get_input_embeddings().weight.shape[0]
    ids = [k * 7 % rows for k in range(min(PROBE, model.max_tokens))]
    if len(ids) < 3 or rows < 2:
        return
    other = [*ids[:-2], (ids[-2] + 1) % rows, ids[-1]]
    a, b = (hidden(model, collate([[Tokens(tuple(one), (1.0,) * len(one))]]).to(model.device))[0, :-2].float() for one in (ids, other))
    if float((a - b).norm()) > 1e-5 * float(a.norm()):  # 0 in every decoder we tried; 6e-4 in a BERT that was never trained
        raise FinloraError(f"`{model.name}` is no causal language model: its states depend on later tokens", "choose a decoder such as Llama or GPT-2")
