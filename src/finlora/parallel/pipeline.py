"""The pipeline: consecutive blocks on each process, activations handed on by PyTorch's schedules, replicas beside it.

Rows all have the full length, one example each, padded where it is shorter; padding has no weight, so the loss is that of
packed rows.  Stages are cut where the dearest is cheapest, by counted operations.  A weight that embeddings and head share
is on the first and on the last process, which add up its gradients and step it alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from .. import wiring
from ..data import Batch, collate
from ..errors import FinloraError
from ..model import Model, autocast
from ..text import Tokens
from . import VIRTUAL, bubble, shards, wires
from .copies import second
from .spread import Apart, add_gradients, check_weight, silent
from .stages import Stage, costs, cut, require

KINDS = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B}


def microbatches(rows: int, wanted: int, micro_rows: int, pipeline: int, schedule: str) -> int:
    """Into how many micro-batches a replica's rows are cut. wanted: 0 is as many as keep them at `micro_rows` rows or fewer.

    Raises: FinloraError where they cannot be.
    """

    def serves(m: int) -> bool:
        least = schedule != "1f1b" or m >= pipeline
        return rows % m == 0 and least and (schedule != "interleaved" or m % max(1, m // pipeline) == 0)

    fitting = [m for m in range(1, rows + 1) if serves(m)]
    if wanted and wanted not in fitting:
        if rows % wanted:
            raise FinloraError(f"parallel.microbatches is {wanted}, by which the {rows} rows of a replica's step cannot be divided", f"write one of {_listed(fitting)}, or 0")
        raise FinloraError(f"parallel.microbatches is {wanted}, too few or uneven for {pipeline} processes under `{schedule}`", f"write one of {_listed(fitting)}, or 0")
    if wanted:
        return wanted
    if not fitting:
        raise FinloraError(f"train.batch leaves a replica {rows} rows, too few for a pipeline of {pipeline} processes", f"give each {pipeline} or more")
    return next((m for m in fitting if rows // m <= micro_rows), fitting[-1])


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) or "none"


class Clock:
    """How long stages compute, and how long a schedule takes from its first moment to its last."""

    def __init__(self, device: torch.device):
        self.device, self.busy, self.span = device, 0.0, 0.0
        self._pairs: list[tuple[Any, Any]] = []

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def work(self) -> Iterator[None]:
        """Counts what is within as computing."""
        began = self._now()
        yield
        self._pairs.append((began, self._now()))

    @contextmanager
    def schedule(self, counts: bool) -> Iterator[None]:
        """One run of the schedule; counts: a first one, in which connections are made, is left out."""
        began = self._now()
        yield
        whole = (began, self._now())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if counts:
            self.busy += sum(map(self._seconds, self._pairs))
            self.span += self._seconds(whole)
        self._pairs.clear()

    def _seconds(self, pair: tuple[Any, Any]) -> float:
        a, b = pair
        return a.elapsed_time(b) / 1000 if self.device.type == "cuda" else b - a


class Timed(PipelineStage):
    """PyTorch's stage under a clock."""

    clock: Clock

    def forward_one_chunk(self, *args: Any, **options: Any) -> Any:
        """As PyTorch's, timed."""
        with self.clock.work():
            return super().forward_one_chunk(*args, **options)

    def backward_one_chunk(self, *args: Any, **options: Any) -> Any:
        """As PyTorch's, timed."""
        with self.clock.work():
            return super().backward_one_chunk(*args, **options)


class Pipeline(Apart):
    """One or, interleaved, two stages of the model in each process, and replicas of the whole pipeline."""

    def __init__(self, team: Any, model: Model, settings: Any, row_tokens: int):
        given = team.settings
        p, self.sharded = given.pipeline, given.data == "fsdp"
        replicas = team.size // p
        require(model)
        shards.require(model, "a pipeline")
        if not row_tokens:
            raise FinloraError("a pipeline needs rows of one length, and data.row_tokens is 0", "set it to the longest example's length")
        if settings.batch % replicas:
            raise FinloraError(f"train.batch is {settings.batch}, by which {replicas} replicas of the pipeline cannot be served alike", f"set it to a multiple of {replicas}")
        self.rows, self.T = settings.batch // replicas, row_tokens
        self.m = microbatches(self.rows, given.microbatches, settings.micro_rows, p, given.schedule)
        count = p * (VIRTUAL if given.schedule == "interleaved" else 1)
        self.costs = costs(model, row_tokens)
        self.spans = cut(self.costs, count)
        device = model.device
        # the stages of one pipeline stand far apart, replicas of one stage side by side: those have more to tell each other
        self.mesh = mesh = init_device_mesh(device.type, (p, replicas), mesh_dim_names=("pipeline", "data"))
        self.p, self.kind, self.pipe = p, given.schedule, mesh["pipeline"].get_group()
        self.at = mesh.get_local_rank("pipeline")
        self.given = model
        super().__init__(second(model), mesh.get_local_rank("data"), replicas, mesh["data"].get_group())

        self.tied = model.body.get_output_embeddings().weight is model.body.get_input_embeddings().weight
        with autocast(model):
            self.wire = torch.float32 if torch.is_autocast_enabled(device.type) else model.dtype
        mine = [k for k in range(count) if k % p == self.at]
        self.stages = [Stage(self.model, self.spans[k], k == 0, k == count - 1, self.wire) for k in mine]
        self.numbers, self.count = mine, count
        self.full = list(model.trainable())
        self.names = self._keep_own()
        self._park()
        if wires.totals([not self.model.trainable()], largest=True)[0]:
            raise FinloraError(f"one of the pipeline's {count} stages has nothing to train", "let the method reach every block, or set parallel.pipeline = 1")
        self.clock, self.total, self.ran = Clock(device), 1.0, 0
        self.schedule = self._schedule(device)

    # -- taking apart ------------------------------------------------------------------------------------------------

    def _keep_own(self) -> dict[str, str]:
        """Take out of this process's tree what none of its stages has; {name here: name in the whole} of what trains."""
        names = {id(p): name for name, p in self.given.named_parameters()}
        body, here = self.model.body, {id(m) for stage in self.stages for m in stage.modules()}
        away = [path for path, module in body.named_modules() if not any(id(m) in here for m in module.modules()) and any(True for _ in module.parameters())]
        for path in away:
            parent, _, leaf = path.rpartition(".")
            if parent not in away:
                body.get_submodule(parent)._modules[leaf] = nn.Module()
        self.model.linears = {key: linear for key, linear in self.model.linears.items() if id(linear) in here}
        return {name: names[id(p)] for name, p in self.model.trainable().items()}

    def _park(self) -> None:
        """Move what is other processes' from the GPU to the host."""
        if self.model.device.type == "cpu":
            return
        mine = {id(p) for p in self.model.parameters()} | {id(b) for b in self.model.buffers()}
        for p in self.given.parameters():
            if id(p) not in mine:
                p.data = p.data.cpu()
        for module in self.given.modules():
            for key, b in module._buffers.items():
                if b is not None and id(b) not in mine:
                    module._buffers[key] = b.cpu()

    def _schedule(self, device: torch.device) -> Any:
        micro = (self.rows // self.m, self.T)
        wide = torch.empty(*micro, self.model.config.hidden_size, dtype=self.wire, device=device, requires_grad=True)
        made = []
        for k, stage in zip(self.numbers, self.stages):
            x = torch.zeros(micro, dtype=torch.long, device=device) if stage.is_first else wide
            y = torch.zeros(1, device=device) if stage.is_last else wide
            timed = Timed(stage, k, self.count, device, input_args=(x,), output_args=(y,), group=self.pipe)
            timed.clock = self.clock
            made.append(timed)
        stages = made if self.kind == "interleaved" else made[0]
        return KINDS[self.kind](stages, self.m, loss_fn=lambda nats, _: nats.sum() / self.total, scale_grads=False)

    # -- a step ------------------------------------------------------------------------------------------------------

    def optimizer(self, settings: Any, kind: Any) -> torch.optim.Optimizer:
        if not self.sharded:
            return super().optimizer(settings, kind)
        return shards.dealt(self.given, self.model, {stage: stage.blocks for stage in self.stages}, self.mesh["data"], settings, kind)

    def batch(self, tokens: Sequence[Tokens]) -> Batch:
        """A replica's rows, one example each; rows without weight fill it up."""
        whole = collate([[t] for t in tokens] + [[] for _ in range(self.rows - len(tokens))], self.T)
        return whole.to(self.model.device)

    def step(self, tokens: Sequence[Tokens]) -> tuple[float, float]:
        batch = self.batch(tokens)
        self.total = check_weight(self.sum(float(batch.weights.sum())))
        for stage in self.stages:
            stage.train()
        args = (batch.ids,) if self.stages[0].is_first else ()
        last = self.stages[-1].is_last
        more = {"targets": batch.targets, "weights": batch.weights} if last else {}
        with self.clock.schedule(counts=self.ran > 0):
            nats = self.schedule.step(*args, target=torch.zeros(self.m) if last else None, **more)
        self.ran += 1
        if not self.sharded:
            add_gradients(self.model.trainable().values(), self.group)
        self._add_tied()
        return wires.totals([float(nats.detach().double().sum()) if last else 0.0])[0], self.total

    @torch.no_grad()
    def _add_tied(self) -> None:
        """Add up the two gradients of a weight that embeddings and head share, on both processes that have it."""
        ends = (0, self.p - 1)
        if not self.tied or self.at not in ends:
            return
        p = self._shared()
        if p is None or p.grad is None:
            return
        mine = shards.own(p.grad)
        other = torch.empty_like(mine)
        peer = dist.get_global_rank(self.pipe, ends[1] if self.at == 0 else 0)
        ops = [dist.P2POp(dist.isend, mine.contiguous(), peer, self.pipe), dist.P2POp(dist.irecv, other, peer, self.pipe)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        mine += other

    def _shared(self) -> nn.Parameter | None:
        body = self.model.body
        p = (body.get_input_embeddings() if self.at == 0 else body.get_output_embeddings()).weight
        return p if p.requires_grad else None

    def clip(self, limit: float) -> float:
        twice = self._shared() if self.tied and self.at == self.p - 1 else None
        grads = {id(p): p.grad for p in self.model.trainable().values() if p.grad is not None}
        own = shards.squares(g for key, g in grads.items() if twice is None or key != id(twice))
        if self.sharded:
            own = self.sum(own)
        norm = math.sqrt(wires.totals([own], self.pipe)[0])
        shards.scale(list(grads.values()), norm, limit)
        return norm

    def tend(self, name: str, step: int, total: int) -> None:
        (shards.tend if self.sharded else wiring.tend)(self.model, name, step, total)

    def refresh(self, name: str, step: int, total: int, seed: int) -> tuple[list[nn.Parameter], int]:
        renewed, rewarm = (shards.refresh if self.sharded else wiring.refresh)(self.model, name, step, total, seed)
        return renewed, int(wires.totals([rewarm], largest=True)[0])

    @torch.no_grad()
    def mean_nats(self, tokens: Sequence[Tokens]) -> float:
        """One micro-batch after another through all stages, each process computing its own in turn."""
        for stage in self.stages:
            stage.eval()
        mine, size = self.share(tokens), self.rows // self.m
        rounds = -(-len(tokens) // (self.replicas * size))
        nats = weight = 0.0
        for k in range(rounds):
            part = mine[k * size : (k + 1) * size]
            batch = self.batch(part or tokens[:1])
            batch = batch if part else silent(batch)
            part_of = {name: getattr(batch, name)[:size] for name in ("ids", "targets", "weights")}
            nats, weight = nats + self._through(**part_of), weight + float(batch.weights.sum())
        nats = wires.totals([nats])[0]
        return nats / self.sum(weight)

    def _through(self, ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> float:
        """Nats of a micro-batch where the last stage is, 0 elsewhere."""
        nats = 0.0
        for k, stage in zip(self.numbers, self.stages):
            x = ids
            if not stage.is_first:
                x = torch.empty(*ids.shape, self.model.config.hidden_size, dtype=self.wire, device=ids.device)
                dist.recv(x, dist.get_global_rank(self.pipe, (k - 1) % self.p), group=self.pipe)
            y = stage(x, targets, weights)
            if stage.is_last:
                nats = float(y)
            else:
                dist.send(y.contiguous(), dist.get_global_rank(self.pipe, (k + 1) % self.p), group=self.pipe)
        return nats

    # -- the whole ---------------------------------------------------------------------------------------------------

    def held(self, tensors: wires.Named) -> wires.Named:
        out: wires.Named = {}
        for group, named in tensors.items():
            for path, value in named.items():
                value = shards.whole(value.detach())
                name = self._outer(group, path)
                if self.replica == 0 and name is not None:
                    out.setdefault(group, {})[name] = value.cpu()
        return out

    def _outer(self, group: str, path: str) -> str | None:
        """A tensor's name in the whole model's checkpoint, None where another process answers for it."""
        if group not in ("trainable", "optimizer"):
            return path
        key, _, name = path.rpartition("/")
        outer = self.names[name]
        if self.at and self.tied and name != outer:
            return None
        return f"{key}/{outer}" if key else outer

    def local(self, tensors: wires.Named) -> wires.Named:
        if set(tensors["trainable"]) != set(self.full):
            return tensors  # of another run: whoever puts it back says so
        out: wires.Named = {"rng": super().local(tensors)["rng"]}
        out["trainable"] = {name: tensors["trainable"][outer] for name, outer in self.names.items()}
        inner = {outer: name for name, outer in self.names.items()}
        out["optimizer"] = {f"{key}/{inner[name]}": t for path, t in tensors["optimizer"].items() for key, _, name in [path.partition("/")] if name in inner}
        for group in tensors.keys() - out.keys():
            out[group] = {path: t for path, t in tensors[group].items() if path.rpartition("/")[0] in self.model.linears}
        return shards.parts(out, self.model.trainable()) if self.sharded else out

    def finish(self) -> None:
        """Every process gets every stage's parameters."""
        device, mine = self.model.device, {}
        for name, p in self.model.named_parameters():
            if name in self.names or ".adapters." in name:
                value = shards.whole(p.detach())
                if self._outer("trainable", name) if name in self.names else True:
                    mine[self.names.get(name, name)] = value.cpu()
        owners: list[Any] = [None] * self.p
        dist.all_gather_object(owners, [(name, tuple(t.shape), t.dtype) for name, t in mine.items()], group=self.pipe)
        table = dict(self.given.named_parameters())
        for at, some in enumerate(owners):
            for name, shape, dtype in some:
                value = mine[name] if at == self.at else torch.empty(shape, dtype=dtype)
                dist.broadcast(value, dist.get_global_rank(self.pipe, at), group=self.pipe)
                table[name].data = value.to(device)
        for p in self.given.parameters():
            p.data = p.data.to(device)
        for module in self.given.modules():
            for key, b in module._buffers.items():
                module._buffers[key] = None if b is None else b.to(device)

    def told(self) -> dict[str, Any]:
        idle = wires.totals([1 - self.clock.busy / self.clock.span if self.clock.span else 0.0])[0] / dist.get_world_size()
        whole = sum(self.costs)
        return {
            "parallel": {
                "processes": dist.get_world_size(), "replicas": self.replicas, "data": "fsdp" if self.sharded else "ddp", "pipeline": self.p,
                "schedule": self.kind, "microbatches": self.m, "blocks": [b - a for a, b in self.spans],
                "cost": [sum(self.costs[a:b]) / whole for a, b in self.spans], "bubble": idle, "bubble_balanced": bubble(self.p, self.m, self.kind),
            }
        }  # fmt: skip
