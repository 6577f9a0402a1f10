"""How the model of a run lies over the processes: all of it here (`Alone`), or in every replica (`Replicas`).

`train.fit` asks a spread for everything that one process cannot answer by itself; in one process the answers are trivial
and nothing is sent.  Replicas reduce by hand, once a step after its last micro-batch, in messages of 32 MB: there is one
reduction a step to wait for, and no wrapper around the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .. import optim, wiring
from ..data import Batch
from ..errors import FinloraError
from ..loss import token_sums
from ..model import Model, head, hidden
from ..text import Tokens
from . import wires

Cut = Callable[[Sequence[Tokens]], list[Batch]]


def check_weight(total: float) -> float:
    """`total` itself.  Raises: FinloraError where a step has no weight."""
    if total <= 0:
        raise FinloraError("no token of this step has a weight: there is nothing to learn", "check that the examples have answers")
    return total


class Alone:
    """One process: nothing is spread.

    model: what is trained in this process; `finish` brings what it has learnt to the model that was given.
    """

    alone, writes = True, True

    def __init__(self, model: Model):
        self.model = model

    def optimizer(self, settings: Any, kind: Any) -> torch.optim.Optimizer:
        """As optim.make, over what this process trains; to be called once, before all else.

        Raises: FinloraError where the optimiser cannot step what this process holds.
        """
        return optim.make(self.model, settings, kind)

    def seed(self, seed: int) -> int:
        """The seed of this process's random state."""
        return seed

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """Those of a step's examples that are this process's."""
        return items

    def sum(self, value: float) -> float:
        """A number of this replica's examples, summed over all replicas."""
        return value

    def step(self, tokens: Sequence[Tokens]) -> tuple[float, float]:
        """(nats, weight) of the whole step, gradients left in `.grad`; tokens: this process's share."""
        raise AssertionError("one process steps by train.step")

    def mean_nats(self, tokens: Sequence[Tokens]) -> float:
        """Nats per weighted token over examples that all processes hold alike."""
        raise AssertionError("one process measures by train.mean_nats")

    def tend(self, name: str, step: int, total: int) -> None:
        """As wiring.tend."""
        wiring.tend(self.model, name, step, total)

    def refresh(self, name: str, step: int, total: int, seed: int) -> tuple[list[nn.Parameter], int]:
        """As wiring.refresh."""
        return wiring.refresh(self.model, name, step, total, seed)

    def clip(self, limit: float) -> Any:
        """Scale gradients down to a norm of `limit` (0: leave them); returns the norm of all of them together."""
        return torch.nn.utils.clip_grad_norm_(self.model.trainable().values(), limit or math.inf)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def agreed(self, value: Any) -> Any:
        """The writing process's value, after all it did before; the others wait for it."""
        return value

    def gathered(self, tensors: wires.Named) -> wires.Named:
        """A checkpoint's tensors of the whole model from those of this process; in the writing process alone."""
        return tensors

    def local(self, tensors: wires.Named) -> wires.Named:
        """This process's tensors from a checkpoint's."""
        return tensors

    def finish(self) -> None:
        """Bring what was learnt to the model that was given, in every process."""

    def told(self) -> dict[str, Any]:
        """What the receipt's "train" section has to say of it."""
        return {}


class Apart(Alone):
    """One of several processes; replica `replica` of `replicas`, whose processes of this stage are `group`."""

    alone = False

    def __init__(self, model: Model, replica: int, replicas: int, group: Any = None):
        super().__init__(model)
        self.replica, self.replicas, self.group = replica, replicas, group
        self.rank = dist.get_rank()
        self.writes = self.rank == 0

    def seed(self, seed: int) -> int:
        return seed + 1_000_003 * self.rank

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        return items[self.replica :: self.replicas]

    def sum(self, value: float) -> float:
        return wires.totals([value], self.group)[0]

    def any(self, flag: bool) -> bool:
        return wires.totals([flag], largest=True)[0] > 0

    def agreed(self, value: Any) -> Any:
        return wires.told((lambda: value) if self.writes else None)

    def gathered(self, tensors: wires.Named) -> wires.Named:
        drawn = {f"{name}-{self.rank}" if self.rank else name: t for name, t in tensors["rng"].items()}
        return wires.collected({"rng": drawn, **{key: some for key, some in self.held(tensors).items() if key != "rng"}}, True)

    def held(self, tensors: wires.Named) -> wires.Named:
        """The tensors that this process answers for in a checkpoint, whole and on the CPU; all processes ask together."""
        return tensors if self.writes else {}

    def local(self, tensors: wires.Named) -> wires.Named:
        kept = {name.removesuffix(f"-{self.rank}"): t for name, t in tensors["rng"].items() if name.endswith(f"-{self.rank}")}
        if not self.rank:
            kept = {name: t for name, t in tensors["rng"].items() if "-" not in name}
        if not kept:  # the run that wrote it had fewer processes
            fresh = sum(int(x) for x in tensors["rng"]["cpu"][:64]) + self.seed(1)
            kept = {"cpu": torch.Generator().manual_seed(fresh).get_state()}
        return {**tensors, "rng": kept}


class Loss(nn.Module):
    """The whole of a forward pass as one module, so that whoever wraps it finds where it begins and ends."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        """Nats of a batch, as a tensor that gradients flow from."""
        return token_sums(hidden(self.model, batch), head(self.model), batch.targets, batch.weights)[0]


class Replicas(Apart):
    """Every process holds the whole model and computes its share of the step."""

    def __init__(self, model: Model, cut: Cut, replica: int, replicas: int, group: Any = None):
        super().__init__(model, replica, replicas, group)
        self.cut, self.forward = cut, Loss(model)

    def even(self, batches: list[Batch]) -> list[Batch]:
        """The batches that this process computes; here its own, however many others have."""
        return batches

    def reduce(self) -> None:
        """Sum gradients over the replicas."""
        add_gradients(self.model.trainable().values(), self.group)

    def step(self, tokens: Sequence[Tokens]) -> tuple[float, float]:
        batches = self.cut(tokens)
        total = check_weight(self.sum(sum(float(b.weights.sum()) for b in batches)))
        nats = 0.0
        for batch in self.even(batches):
            part = self.forward(batch.to(self.model.device))
            (part / total).backward()
            nats += float(part.detach())
        self.reduce()
        return self.sum(nats), total

    @torch.no_grad()
    def mean_nats(self, tokens: Sequence[Tokens]) -> float:
        tokens = sorted(tokens, key=len)
        mine = self.share(tokens)
        batches = self.cut(mine) if mine else [silent(b) for b in self.cut(tokens[:1])]
        nats = weight = 0.0
        for batch in self.even(batches):
            batch = batch.to(self.model.device)
            nats, weight = nats + float(self.forward(batch)), weight + float(batch.weights.sum())
        nats, weight = wires.totals([nats, weight], self.group)
        return nats / weight

    def refresh(self, name: str, step: int, total: int, seed: int) -> tuple[list[nn.Parameter], int]:
        renewed, rewarm = super().refresh(name, step, total, seed)
        if renewed:  # a decomposition may part in its last bits between machines, and replicas must not
            wires.broadcast(renewed)
        return renewed, rewarm

    def told(self) -> dict[str, Any]:
        return {"parallel": {"processes": self.replicas, "replicas": self.replicas, "data": "ddp", "pipeline": 1}}


def silent(batch: Batch) -> Batch:
    """The batch without a weight anywhere."""
    return replace(batch, weights=torch.zeros_like(batch.weights))


@torch.no_grad()
def add_gradients(params: Any, group: Any) -> None:
    """Sum gradients over the processes of `group`; a parameter that none of them reached keeps none."""
    params = list(params)
    reached = wires.totals([p.grad is not None for p in params], group)
    for p, n in zip(params, reached):
        if n and p.grad is None:
            p.grad = torch.zeros_like(p)
    wires.add_up([p.grad for p in params if p.grad is not None], group)
