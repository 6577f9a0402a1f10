"""Decomposing many weights, in this process or in several, with the same bits either way.

Each weight is decomposed by one thread, here as in a worker, from a copy in float64 that begins at an aligned address: how
a matrix library cuts a sum depends on nothing else, so the number of workers changes no bit.  A job holds one weight and what
calibration saw of it, and no more than workers + 1 jobs are unfinished at a time.  Answers come in the order of the jobs: one
that is ready early waits, and so that few do, a caller gives the largest jobs first (which also leaves no worker alone with a
long job at the end).  Arrays travel as bytes, never through shared memory, which small containers lack.

Shapes: W_OI, C_II, A_RI, B_OR; errors_K (R + 1,).
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import FinloraError
from ..registry import pick
from ..seam import Stats
from . import wide
from ._shared import balanced, output_error, output_errors

WAITING = 4  # answers for each worker that wait for an earlier one, at most


@dataclass(frozen=True)
class Job:
    """One weight to decompose. kind, options: the decomposition and its settings. W: (O, I), moment: (I, I), grad: (O, I) or
    None, float32 or float64. rank: the largest rank wanted. device: where it is computed."""

    name: str
    kind: str
    options: dict[str, Any]
    W: np.ndarray
    moment: np.ndarray
    grad: np.ndarray | None
    rank: int
    device: str = "cpu"


@dataclass(frozen=True)
class Answer:
    """A: (R, I), B: (O, R) of W's type, balanced. errors: (R + 1,) squared output errors at rank 0, 1, ... R. error: the same at
    rank R, from the difference itself. seconds: what it took."""

    name: str
    A: np.ndarray
    B: np.ndarray
    errors: np.ndarray = field(repr=False)
    error: float
    seconds: float


def solve(job: Job) -> Answer:
    """One job, by one thread.  Raises: FinloraError naming the linear."""
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        record = pick("decomposition", job.kind)
        W, C = (_tensor(x, job.device) for x in (job.W, job.moment))
        seen = Stats(C, None if job.grad is None else _tensor(job.grad, job.device))
        found = record.whole(record.config(**job.options), W, seen, job.rank)
        errors = output_errors(found.A, found.B, W, C)
        error = output_error(found.A, found.B, W, C)
        A, B = (x.cpu().to(torch.from_numpy(job.W).dtype).contiguous().numpy() for x in balanced(found.A, found.B))
        return Answer(job.name, A, B, errors.cpu().numpy(), float(error), time.perf_counter() - began)
    except FinloraError as problem:
        raise FinloraError(f"{job.name}: {problem.message}", problem.hint) from problem
    finally:
        torch.set_num_threads(threads)


@contextmanager
def crew(workers: int = 1) -> Iterator[Callable[[Iterable[Job]], Iterator[Answer]]]:
    """A function that gives the answers to jobs, in their order; workers: processes, 1 for this one alone.

    The function raises: FinloraError naming the linear that cannot be decomposed, or where a worker ended.
    """
    if workers <= 1:
        yield lambda jobs: map(solve, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks without their threads
    with ProcessPoolExecutor(workers, context, _begin, (os.getpid(),)) as pool:
        for _ in range(workers):  # workers take seconds to start, each as it is first needed: now, while the caller calibrates
            pool.submit(os.getpid)
        yield lambda jobs: _dealt(pool, jobs, workers)


def _dealt(pool: ProcessPoolExecutor, jobs: Iterable[Job], workers: int) -> Iterator[Answer]:
    waiting: deque[Future] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_guarded, job))
            del job  # the next one is made while this one is computed: its arrays need not be held twice
            while len(unfinished := [f for f in waiting if not f.done()]) > workers or len(waiting) > (WAITING + 1) * workers:
                wait(unfinished, return_when=FIRST_COMPLETED)
                while waiting and waiting[0].done():
                    yield _taken(waiting.popleft())
        while waiting:
            yield _taken(waiting.popleft())
    except BrokenProcessPool as error:
        raise FinloraError("a worker process ended in the middle of a weight; memory may have run out", "use fewer workers") from error
    finally:
        for future in waiting:
            future.cancel()


def _taken(future: Future) -> Answer:
    got = future.result()
    if isinstance(got, Answer):
        return got
    raise FinloraError(*got)


def _guarded(job: Job) -> Answer | tuple[str, str]:
    """In a worker: an error as its message and hint, since exceptions travel badly."""
    try:
        return solve(job)
    except FinloraError as problem:
        return problem.message, problem.hint


def _begin(parent: int) -> None:
    """In a new worker: one thread, and no life beyond the parent's."""
    torch.set_num_threads(1)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int, seconds: float = 1.0) -> None:
    while os.getppid() == parent:
        time.sleep(seconds)
    os._exit(1)


def _tensor(array: np.ndarray, device: str) -> torch.Tensor:
    return wide(torch.from_numpy(array)).to(device)
