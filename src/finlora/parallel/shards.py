"""Fully sharded data parallelism: PyTorch's FSDP2 over a second tree of the model's modules.

Every trained parameter lies in equal parts on the replicas, and so do its gradient and the optimiser's state; a block's
parameters are gathered before its forward and its backward pass.  What is frozen stays whole in every process.  Gradients
are summed, not averaged.  Replicas compute equally many micro-batches, of which the last may have no weight, because each
forward pass is a conversation.

Where a method looks at whole matrices between steps (Frobenius decay, balancing of factors), it is shown one linear at a time
gathered, and what it changes is dealt out again.  A run that ends by an error leaves the given model without what was dealt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .. import optim, wiring
from ..data import Batch
from ..errors import FinloraError
from ..linear import Linear
from ..model import Model
from . import wires
from .copies import second
from .spread import Cut, Replicas, silent


def require(model: Model, how: str) -> None:
    """Raises: FinloraError where a method changes, on its way, weights that this spread keeps elsewhere, or a compiled body."""
    if model.compiled is not None:
        raise FinloraError(f"train.compile: a compiled body cannot be spread by {how}", 'set compile = false, or parallel.data = "ddp" without a pipeline')
    for key, linear in model.linears.items():
        for method, _ in linear.how.values():
            if (method.refresh or method.tend) and not method.trains_base:
                raise FinloraError(f"method `{method.name}` of `{key}` looks at the whole model between steps, which {how} cuts up", 'write parallel.data = "ddp" and pipeline = 1')


def shard(root: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Deal the trained parameters of `root` out over the mesh, block by block, in place."""
    frozen = {p for p in root.parameters() if not p.requires_grad}
    for module in [*blocks, root]:
        made = fully_shard(module, mesh=mesh, ignored_params=frozen)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo knows no average


def whole(value: torch.Tensor) -> torch.Tensor:
    """The tensor gathered, where it is in parts; all replicas ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own(value: torch.Tensor) -> torch.Tensor:
    """This process's part, sharing memory with it."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor as `like` is: in parts where that is, of which each process takes its own."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts(tensors: wires.Named, params: dict[str, nn.Parameter]) -> wires.Named:
    """A checkpoint's trained parameters and their optimiser's state, in parts as the parameters are."""
    trained = {name: part(t, params[name]) if name in params else t for name, t in tensors["trainable"].items()}
    state = {path: part(t, params[name]) if (name := path.partition("/")[2]) in params else t for path, t in tensors["optimizer"].items()}
    return {**tensors, "trainable": trained, "optimizer": state}


def dealt(given: Model, model: Model, roots: dict[nn.Module, Iterable[nn.Module]], mesh: DeviceMesh, settings: Any, kind: Any) -> torch.optim.Optimizer:
    """Deal what `model` trains out over the mesh and let go of it in `given`; returns the optimiser of the parts.

    roots: {module: its blocks}. The optimiser is made while matrices are whole, for it looks at them.
    Raises: FinloraError where it does more than treat every number by itself.
    """
    optimizer = optim.make(model, settings, kind)
    if type(optimizer) is not torch.optim.AdamW:
        what = f"this optimizer ({type(optimizer).__name__})"
        raise FinloraError(f'{what} steps whole matrices, and parallel.data = "fsdp" keeps parts of them', 'write optimizer.kind = "adamw", or parallel.data = "ddp"')
    for root, blocks in roots.items():
        shard(root, blocks, mesh)
    params, kept = model.trainable(), dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [params[name] for name in group["names"]]
    for name, p in given.named_parameters():
        if isinstance(kept.get(name), DTensor):
            p.data = p.data.new_empty(0)
    return optimizer


@contextmanager
def gathered(linear: Linear, name: str) -> Iterator[dict[int, nn.Parameter]]:
    """The linear with whole parameters and gradients under adapter `name`; on leaving, each process takes its part of both.

    Gives {id of a whole parameter: the one in parts}.
    """
    held = linear.adapters[name]
    cut = {key: p for key, p in held.items() if isinstance(p, DTensor)}
    for key, p in cut.items():
        held[key] = nn.Parameter(whole(p.detach()), requires_grad=p.requires_grad)
        held[key].grad = None if p.grad is None else whole(p.grad)
    try:
        yield {id(held[key]): p for key, p in cut.items()}
    finally:
        for key, p in cut.items():
            full = held[key]
            own(p).copy_(own(part(full.detach(), p)))
            if p.grad is not None and full.grad is not None:
                own(p.grad).copy_(own(part(full.grad, p)))
            held[key] = p


def tend(model: Model, name: str, step: int, total: int) -> None:
    """wiring.tend, linear by linear."""
    for key, linear in model.linears.items():
        if name in linear.how and linear.how[name][0].tend is not None:
            with gathered(linear, name):
                wiring.tend(SimpleNamespace(linears={key: linear}), name, step, total)


def refresh(model: Model, name: str, step: int, total: int, seed: int) -> tuple[list[nn.Parameter], int]:
    """wiring.refresh, linear by linear."""
    renewed, rewarm = [], 0
    for key, linear in model.linears.items():
        if name in linear.how and linear.how[name][0].refresh is not None:
            with gathered(linear, name) as table:
                fresh, warm = wiring.refresh(SimpleNamespace(linears={key: linear}), name, step, total, seed)
            renewed, rewarm = [*renewed, *(table.get(id(p), p) for p in fresh)], max(rewarm, warm)
    return renewed, rewarm


@torch.no_grad()
def squares(grads: Iterable[torch.Tensor]) -> float:
    """The sum of squares of this process's parts."""
    norms = [torch.linalg.vector_norm(own(g), dtype=torch.float64) for g in grads if own(g).numel()]
    return float(torch.stack(norms).square().sum()) if norms else 0.0


@torch.no_grad()
def scale(grads: list[torch.Tensor], norm: float, limit: float) -> None:
    """Scale gradients of that norm down to `limit`, as torch.nn.utils.clip_grad_norm_ does."""
    if limit and grads:
        torch._foreach_mul_([own(g) for g in grads], min(1.0, limit / (norm + 1e-6)) if math.isfinite(norm) else math.nan)


class Shards(Replicas):
    """Every process computes its share of the step and holds its part of what trains."""

    def __init__(self, model: Model, cut: Cut, replica: int, replicas: int):
        require(model, "fsdp")
        self.given = model
        super().__init__(second(model), cut, replica, replicas)
        self.blocks = blocks_of(self.model)

    def optimizer(self, settings: Any, kind: Any) -> torch.optim.Optimizer:
        return dealt(self.given, self.model, {self.forward: self.blocks}, init_device_mesh(self.model.device.type, (self.replicas,)), settings, kind)

    def even(self, batches: list[Batch]) -> list[Batch]:
        most = int(wires.totals([len(batches)], largest=True)[0])
        return batches + [silent(batches[-1])] * (most - len(batches))

    def reduce(self) -> None:
        """FSDP has summed them on the way."""

    def tend(self, name: str, step: int, total: int) -> None:
        tend(self.model, name, step, total)

    def refresh(self, name: str, step: int, total: int, seed: int) -> tuple[list[nn.Parameter], int]:
        return refresh(self.model, name, step, total, seed)

    def clip(self, limit: float) -> float:
        grads = [p.grad for p in self.model.trainable().values() if p.grad is not None]
        norm = math.sqrt(self.sum(squares(grads)))
        scale(grads, norm, limit)
        return norm

    def held(self, tensors: wires.Named) -> wires.Named:
        out: wires.Named = {}
        for group, named in tensors.items():
            for name, value in named.items():
                full = whole(value.detach())
                if self.writes:
                    out.setdefault(group, {})[name] = full.cpu()
        return out

    def local(self, tensors: wires.Named) -> wires.Named:
        return parts(super().local(tensors), self.model.trainable())

    def finish(self) -> None:
        mine = dict(self.model.named_parameters())
        for name, p in self.given.named_parameters():
            if mine[name] is not p:
                p.data = whole(mine[name].detach())

    def told(self) -> dict[str, Any]:
        return {"parallel": {**super().told()["parallel"], "data": "fsdp"}}


def blocks_of(model: Model) -> nn.ModuleList:
    """The body's blocks.  Raises: FinloraError where it is no single row of them."""
    base = model.body.base_model
    rows = [m for m in base.children() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers]
    if len(rows) != 1:
        raise FinloraError(f"{type(base).__name__} is not one row of blocks, so it cannot be cut up over processes", 'write parallel.data = "ddp" and pipeline = 1')
    return rows[0]
