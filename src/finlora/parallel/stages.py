"""A body cut into stages: what each costs, where the cuts lie, and the module that is one stage.

A stage is the body's own forward pass with other stages' modules taken out: blocks that are elsewhere hand their input on,
a stage behind the first is given hidden states in place of embeddings (and adds no positions to them), one before the
last leaves out the final norm.  So nothing of a family's forward pass is written a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.flop_counter import FlopCounterMode

from ..errors import FinloraError
from ..loss import token_sums
from ..model import FAMILIES, Model, autocast, computed, head
from .copies import shell
from .shards import blocks_of


class Away(nn.Module):
    """Stands for a module of another stage: gives back what it is given."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """x."""
        return x


class Nowhere(nn.Module):
    """Stands for an embedding of another stage whose output would be added: gives zero."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """0, of no shape."""
        return torch.zeros((), device=ids.device)


def costs(model: Model, tokens: int) -> list[float]:
    """Floating-point operations of each block's forward pass over a row of so many tokens, counted as it runs, and in the last
    entry those of the head beside it."""
    base, found = model.body.base_model, []
    counter = FlopCounterMode(display=False)
    handles = []
    for block in blocks_of(model):
        handles.append(block.register_forward_pre_hook(lambda *_: found.append(-counter.get_total_flops())))
        handles.append(block.register_forward_hook(lambda *_: found.append(found.pop() + counter.get_total_flops())))
    was = model.training
    model.eval()  # dropout would draw
    try:
        with torch.no_grad(), autocast(model), counter:
            base(input_ids=torch.zeros(1, tokens, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    found[-1] += 2 * tokens * head(model).weight.numel()
    return [float(x) for x in found]


def cut(costs: Sequence[float], n: int) -> list[tuple[int, int]]:
    """[first, end) of n stages of consecutive blocks, none empty, of which the dearest is as cheap as can be.

    Raises: FinloraError where there are fewer blocks than stages.
    """
    L = len(costs)
    if n > L:
        raise FinloraError(f"parallel.pipeline asks for {n} stages, and the model has {L} blocks", f"ask for {L} stages at most")
    ahead = [0.0]
    for c in costs:
        ahead.append(ahead[-1] + c)
    best: list[tuple[float, list[int]]] = [(ahead[k], [0]) for k in range(L + 1)]  # of the first k blocks, in one stage
    for stages in range(2, n + 1):
        best = [
            min((max(best[j][0], ahead[k] - ahead[j]), [*best[j][1], j]) for j in range(stages - 1, k)) if k >= stages else (float("inf"), [])
            for k in range(L + 1)
        ]
    starts = best[L][1]
    return list(zip(starts, [*starts[1:], L]))


class Stage(nn.Module):
    """One stage of `model`: its blocks [first, end), with the embeddings before them or the head behind."""

    def __init__(self, model: Model, span: tuple[int, int], is_first: bool, is_last: bool, wire: torch.dtype):
        super().__init__()
        self.is_first, self.is_last, self.wire = is_first, is_last, wire
        self.__dict__["whole"] = model  # not a child: its other stages' parameters are not this one's
        self.base = without(model, span, is_first, is_last)
        if is_last:
            self.head = model.body.get_output_embeddings()

    @property
    def blocks(self) -> list[nn.Module]:
        """Those that are here."""
        return [m for m in _row(self.base) if not isinstance(m, Away)]

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) or hidden states (B, T, D) -> hidden states, or behind the last block the nats (1) of the rows."""
        model: Model = self.__dict__["whole"]
        model.route.rows = None
        with autocast(model):
            given = {"input_ids": x} if self.is_first else {"inputs_embeds": x}
            out = self.base(**given, use_cache=False).last_hidden_state
        if not self.is_last:
            out = out.to(self.wire)
            return out.clone() if isinstance(self, FSDPModule) else out  # FSDP's hook hangs on it, and would be lost on a view
        assert targets is not None and weights is not None
        return torch.stack([token_sums(computed(model, out), head(model), targets, weights)[0]])


def _row(base: nn.Module) -> nn.ModuleList:
    return next(m for m in base.children() if isinstance(m, nn.ModuleList))


def without(model: Model, span: tuple[int, int], is_first: bool, is_last: bool) -> nn.Module:
    """The body's base model as a shell that lacks what is not of this stage."""
    base, row = shell(model.body.base_model), blocks_of(model)
    before = True
    for name, child in model.body.base_model.named_children():
        if child is row:
            before = False
            base._modules[name] = here = shell(row)
            for k in range(len(row)):
                here._modules[str(k)] = row[k] if span[0] <= k < span[1] else Away()
        elif before and not is_first:
            base._modules[name] = Nowhere() if isinstance(child, nn.Embedding) else Away()
        elif not before and not is_last and any(True for _ in child.parameters()):
            base._modules[name] = Away()
    return base


def require(model: Model) -> None:
    """Raises: FinloraError for a family whose forward pass is not known to be embeddings, blocks, norm."""
    if model.config.model_type not in FAMILIES:
        raise FinloraError(f"a pipeline cannot cut a model of the family `{model.config.model_type}`", f"families it can cut: {', '.join(FAMILIES)}; or set parallel.pipeline = 1")
