"""A long row of weights in slices, each slice on one thread of our own, for as many threads as PyTorch may use.

PyTorch shares every single operation among its threads and waits for the slowest after each; a codec is a dozen short
operations a slice, so on a busy machine most of the time is waiting, and a look-up (`index_select`) it does not share at
all.  Here a thread does all operations of its slices by itself.  What is computed for a weight is the same on any number
of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SMALL = 1 << 19  # weights below which handing them out costs more than it saves
_POOL: dict[int, ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which PyTorch's operations run alone. `set_num_threads` holds for the thread that calls it, but tells the
    linear algebra library of all: so the caller's own number is set again behind it."""
    if threads not in _POOL:
        pool, together = ThreadPoolExecutor(threads, "finlora-codec"), threading.Barrier(threads)

        def alone() -> None:
            torch.set_num_threads(1)
            together.wait()  # so that every thread takes one of these calls, and none two

        for each in [pool.submit(alone) for _ in range(threads)]:
            each.result()
        torch.set_num_threads(threads)
        _POOL.clear()
        _POOL[threads] = pool
    return _POOL[threads]


def over_slices(count: int, step: int, device: torch.device, worker: Callable[[], Callable[[int, int], None]]) -> None:
    """work(start, stop) for all of `count` in slices of at most `step`; on a CPU by several threads at once.

    worker: makes the function of one thread, with scratch of its own. It writes to its own part of the result alone.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    slices = [(start, min(start + step, count)) for start in range(0, count, max(step, 1))]
    if threads == 1 or count < SMALL or torch.compiler.is_compiling():
        work = worker()
        for start, stop in slices:
            work(start, stop)
        return
    inference = torch.is_inference_mode_enabled()

    def share(k: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work = worker()
            for start, stop in slices[k::threads]:
                work(start, stop)

    for each in [_pool(threads).submit(share, k) for k in range(threads)]:
        each.result()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.clear)  # a child has none of its parent's threads
