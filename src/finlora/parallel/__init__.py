"""Training on several processes: data parallel (replicated or sharded), pipeline, or both, as torchrun starts them.

    torchrun --nproc-per-node 4 -m finlora pretrain spec.toml      with [parallel] data, pipeline, schedule, microbatches

The processes stand in a grid of `pipeline` stages times world / pipeline replicas.  Replicas share out each step's examples;
the divisor of the loss is the whole step's weight, summed over the replicas before any backward pass, and gradients are
summed, so the run is that of one process up to the order of additions (dropout is drawn by each process for itself).  Stages hold consecutive blocks of the body and
pass activations on, by PyTorch's own schedules:

    gpipe         all forwards, then all backwards                                    idle (p-1)/(m+p-1)
    1f1b          as soon as there is one, a backward after each forward              the same, activations of p, not m
    interleaved   1f1b with 2 stages a process (Narayanan et al. 2021, 2104.04473)    idle (p-1)/(2m+p-1)

for p stages' processes and m micro-batches.  Without torchrun's environment everything is as in one process, and no process
group exists.  Every process builds the whole model before it takes its part, so that must fit in its host's memory; and
all of them must see the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..errors import FinloraError, unknown
from . import wires
from .spread import Alone, Replicas, check_weight

__all__ = ["DATA", "SCHEDULES", "VIRTUAL", "Alone", "Settings", "Team", "bubble", "check_weight", "mesh"]

DATA = ("ddp", "fsdp")
SCHEDULES = ("gpipe", "1f1b", "interleaved")
VIRTUAL = 2  # stages of one process under the interleaved schedule


@dataclass(frozen=True)
class Settings:
    """data: "ddp", every replica holds the whole of its stage, or "fsdp", a shard of it. pipeline: processes in a row.
    schedule: of the pipeline. microbatches: parts of a replica's step that are on their way at once; 0: as train.micro_rows
    says."""

    data: str = "ddp"
    pipeline: int = 1
    schedule: str = "1f1b"
    microbatches: int = 0

    def __post_init__(self):
        if self.data not in DATA:
            raise unknown("data parallelism", self.data, DATA, "parallel.data")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES, "parallel.schedule")
        for name, low in (("pipeline", 1), ("microbatches", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise FinloraError(f"parallel.{name} must be a whole number of {low} or more, got {value!r}", f"{low} is its default")


def bubble(stages: int, microbatches: int, schedule: str) -> float:
    """The share of its time for which a process of a balanced pipeline is idle.

    stages: processes in a row. Raises: FinloraError for another schedule.
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES, "parallel.schedule")
    rounds = VIRTUAL if schedule == "interleaved" else 1
    return (stages - 1) / (rounds * microbatches + stages - 1)


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them. rank, size: its number among how many. local: its number on its machine.
    store: of the process group, where they find out what has been done."""

    rank: int = 0
    size: int = 1
    local: int = 0
    settings: Settings = field(default_factory=Settings)
    store: Any = None

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes logs, folders and receipts."""
        return self.rank == 0

    def device(self, name: str = "auto") -> str:
        """The device `run.device` means in this process: the GPUs of a machine are dealt out in turn."""
        return f"cuda:{self.local}" if not self.alone and name in ("auto", "cuda") and torch.cuda.is_available() else name

    def tell(self, work: Callable[[], Any]) -> Any:
        """What `work()` gives in the first process, in all of them; the others wait for it however long, and fail where it fails."""
        return work() if self.alone else wires.told(work if self.writes else None, self.store)

    def ahead(self, work: Callable[[], Any]) -> Any:
        """`work()` in every process, in the first one before the others: they find made what it made."""
        made: list[Any] = []
        self.tell(lambda: made.append(work()))
        return made[0] if self.writes else work()

    def spread(self, model: Any, settings: Any, *, row_tokens: int, cut: Callable[[Sequence[Any]], list[Any]], same: Any = None) -> Alone:
        """The model over the processes, ready to be stepped; see `spread.Alone` for what can be asked of it.

        settings: a spec.Train. row_tokens: of a row, as fit has it. cut(tokens) -> batches of this process's examples.
        same: anything that has to be alike in all processes, such as the number of examples.
        Raises: FinloraError where batch, stages and processes do not go together, or the method or model cannot be spread.
        """
        if self.alone:
            return Alone(model)
        wires.agree([same, settings, row_tokens, self.settings, {name: tuple(p.shape) for name, p in model.trainable().items()}])
        wires.broadcast(list(model.trainable().values()))
        if self.settings.pipeline > 1:
            from .pipeline import Pipeline

            return Pipeline(self, model, settings, row_tokens)
        replicas = self.size
        if settings.batch < replicas:
            raise FinloraError(f"train.batch is {settings.batch}, less than the {replicas} processes that would share it", f"set it to {replicas} or more")
        if self.settings.data == "ddp":
            return Replicas(model, cut, self.rank, self.size)
        from .shards import Shards

        return Shards(model, cut, self.rank, self.size)


@contextmanager
def mesh(settings: Settings | None = None, minutes: float = 30.0) -> Iterator[Team]:
    """The team that torchrun started this process in, for as long as the block lasts; a team of one without torchrun.

    settings: a Settings or anything with its fields. minutes: after which a process stops waiting for the others.
    Raises: FinloraError where the processes cannot be divided by the pipeline's stages, or do not find each other.
    """
    given = Settings() if settings is None else Settings(settings.data, settings.pipeline, settings.schedule, settings.microbatches)
    rank, size, local = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if size % given.pipeline:
        hint = f"start it as `torchrun --nproc-per-node {given.pipeline} -m finlora ...`" if size == 1 else "start a multiple of parallel.pipeline"
        raise FinloraError(f"parallel.pipeline is {given.pipeline}, by which {size} process{'es' if size > 1 else ''} cannot be divided", hint)
    if size == 1:
        yield Team(settings=given)
        return
    lost = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lost:
        raise FinloraError(f"WORLD_SIZE is {size} but {lost[0]} is not set, so the processes cannot find each other", "start the run with torchrun")
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(local)
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(minutes=minutes)))
        if os.environ.get("LOCAL_WORLD_SIZE", "") == str(size):
            # on one machine torchrun keeps the store when it starts all again, and in it the addresses of those that are gone
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=minutes))
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FinloraError(f"process {rank} of {size} did not reach the others: {first}", "check MASTER_ADDR and MASTER_PORT, and that all were started") from error
    whole = False
    try:
        yield Team(rank, size, local, given, store)
        whole = True
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise FinloraError(f"process {rank} of {size} lost touch with the others: {first}", "see what the others said; the same command resumes from the last checkpoint") from error
    finally:
        if dist.is_initialized() and (whole or not gpus):  # NCCL would wait for the others; the end of the process ends them too
            dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if value and not value.isdecimal():
        raise FinloraError(f"the environment's {name} is `{value}`, not a number", "start the run with torchrun, or unset it")
    return int(value) if value else default
