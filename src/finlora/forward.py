"""Forward passes of an opened model: hidden states of batches, the output layer as a value, and how activations are kept.

    hidden(model, batch)    (B, T, D), no document sees another; `head(model)` is the output layer, so that logits are never
                            formed whole

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import attention as packed
from .data import Batch
from .errors import FinloraError
from .loss import Head

if TYPE_CHECKING:
    from .model import Model


class Unserved(FinloraError):
    """The model's layers cannot keep packed examples apart."""

    def __init__(self, kind: str):
        super().__init__(
            f"packed rows: {kind} has layers that would see across the examples of a row",
            "set data.row_tokens = 0 to give each example its own row",
        )


def hidden(model: Model, batch: Batch) -> torch.Tensor:
    """The last hidden states (B, T, D) of a batch; no document sees another, positions restart in each.

    Raises: FinloraError where layers, rewired, turn out to read weights past their linears' forward (Mamba, RWKV).
    """
    try:
        with autocast(model):
            return _hidden(model, batch)
    except AttributeError as error:
        if not model.linears or "'Linear' object has no attribute 'weight'" not in str(error):
            raise
        kind = type(model.body.base_model).__name__
        raise FinloraError(
            f"`{model.name}`: {kind} reads weights of its linears itself, which a codec, method or decomposition takes from it",
            "it can be read as it is; to tune or compress, choose a model of attention layers such as Llama",
        ) from error


def autocast(model: Model) -> torch.autocast:
    """Mixed precision where float32 masters are trained on a device that computes in bfloat16."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=_mixed(model))


def computed(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Last hidden states as the output layer is to multiply them: the last norm of a mixed pass gives float32, in which a GPU
    is many times as slow; what is made of the product is float32 in any case."""
    return x.to(model.dtype) if _mixed(model) else x


def _mixed(model: Model) -> bool:
    apart = set(model.also.values())  # these and adapters are masters too, but what they give is rounded where it leaves them
    kinds = (p.dtype for name, p in model.body.named_parameters() if name not in apart and ".adapters." not in name)
    masters = next(kinds, torch.float32 if any(linear.store is None for linear in model.linears.values()) else model.dtype)
    return model.dtype == torch.bfloat16 and masters == torch.float32


def _hidden(model: Model, batch: Batch) -> torch.Tensor:
    if packed.is_plain(batch):
        model.route.rows = batch.rows
        call = model.body.base_model if model.compiled is None else model.compiled
        return computed(model, call(input_ids=batch.ids, use_cache=False).last_hidden_state)
    return packed_hidden(model, batch.ids, batch.pos, packed.layout(batch), batch.rows)


def packed_hidden(model: Model, ids: torch.Tensor, pos: torch.Tensor, where: packed.Layout, rows: list[str | None] | None = None) -> torch.Tensor:
    """The last hidden states (B, T, D) of tokens at given positions (B, T) that attend as `where` says.

    Raises: Unserved for a model that would let them see across.
    """
    model.route.rows = rows
    base = model.body.base_model
    if not getattr(base, "_supports_attention_backend", False):
        raise Unserved(type(base).__name__)
    # A ready-made 4-D mask keeps transformers from building its own; the attention function never reads it.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    with autocast(model):
        out = base(input_ids=ids, position_ids=pos, attention_mask=mask, use_cache=False, finlora_layout=where)
    if where.served != model.config.num_hidden_layers:  # layers of convolution or recurrence never asked for the layout
        raise Unserved(type(base).__name__)
    return computed(model, out.last_hidden_state)


def head(model: Model) -> Head:
    """The output layer as a value: weight, bias, and the scaling or soft cap that some families put on logits."""
    out, config = model.body.get_output_embeddings(), model.config
    scale = 1.0
    if getattr(config, "logit_scale", None):
        scale *= config.logit_scale
    if getattr(config, "logits_scaling", None):
        scale /= config.logits_scaling
    return Head(out.weight, getattr(out, "bias", None), scale, getattr(config, "final_logit_softcapping", None))


def logits(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of hidden states (..., D), in float32; for a few positions only."""
    return head(model).logits(x).float()


def recompute(model: Model, on: bool | str = True) -> str:
    """Compute activations again in the backward pass instead of keeping them; a policy of memory.py, True is `full`.

    Returns what there is to say about it, or "".
    """
    from . import memory

    return memory.apply(model, on if isinstance(on, str) else "full" if on else "none")


def compile_body(model: Model) -> None:
    """Compile the body for rows of one document (pretraining); packed rows keep the eager body."""
    # Not by plain assignment, which would register the compiled body as a second submodule.
    model.__dict__["compiled"] = torch.compile(model.body.base_model, dynamic=False)
