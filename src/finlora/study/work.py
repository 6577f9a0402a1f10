"""Jobs in processes of their own: at most so many at once, and none that would not fit into the memory that is left.

    for place, outcome in local(jobs, many=4, budget=12e9, guess=...): ...

A worker is one process that does one job after another, since starting one costs seconds.  A job starts when a worker and its
expected peak are free; what is expected is asked again before every start, so that each finished job corrects it.  Idle workers
give way when memory is short.  A worker that dies takes its own job with it and no other.  Workers end when their parent does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .. import receipt
from .. import spec as specs
from ..errors import FinloraError

KINDS = ("search", "runs", "base")  # also the folders of a study


@dataclass(frozen=True)
class Job:
    """One run. kind: one of KINDS. keys: its place in the grid. tree: its spec as nested values."""

    kind: str
    keys: dict[str, Any]
    tree: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.tree["run"]["out"])


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    place: int = -1  # the job it does, -1 none
    expects: int = 0  # bytes


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local(jobs: Sequence[Job], many: int, budget: float, guess: Callable[[Job], int], begin: Callable[..., None] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place of a job, what came of it) as each ends, on this machine.

    many: workers at once. budget: bytes for all of them, 0 for no limit. guess: the bytes a job is expected to need, 0 where
    nothing is known: such a job runs alone, so that it can be measured. A job that needs more than the budget is not started.
    Raises: Interrupted where a job was stopped by the user.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // many)
    waiting, workers = list(range(len(jobs))), []
    try:
        while waiting or any(w.place >= 0 for w in workers):
            for place, outcome in _start(jobs, waiting, workers, many, budget, guess, lambda: _hire(context, begin or _serve, threads)):
                yield place, outcome
            busy = [w for w in workers if w.place >= 0]
            if not busy:
                continue
            ready = wait([w.pipe for w in busy], timeout=60)
            for worker in [w for w in busy if w.pipe in ready]:
                place, worker.place = worker.place, -1
                try:
                    outcome = worker.pipe.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    worker.process.join(10)
                    yield place, {"run": jobs[place].folder.name, "error": _killed(worker.process.exitcode)}
                    continue
                if "stopped" in outcome:
                    from ..train import Interrupted

                    raise Interrupted(outcome["stopped"], "run the study again to go on")
                yield place, outcome
    finally:  # Ctrl-C reaches the runs too: each saves and stops, or goes on to its end where it was not reached
        for worker in workers:
            _part(worker)
        for worker in workers:
            worker.process.join()


def _killed(code: int | None) -> str:
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with status {code}"
    return f"its process ended {how}; memory may have run out: use fewer --jobs or --memory, the same command again goes on"


def _start(jobs: Sequence[Job], waiting: list[int], workers: list[_Worker], many: int, budget: float, guess: Callable[[Job], int], hire: Callable[[], _Worker]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Start what can start now, the first that fits first; yields the jobs that can never start."""
    for place in list(waiting):
        busy = [w for w in workers if w.place >= 0]
        if len(busy) >= many:
            return
        expects = guess(jobs[place]) if budget else 0
        if budget and expects > budget:
            waiting.remove(place)
            yield place, {"run": jobs[place].folder.name, "error": f"it needs about {expects / 1e6:,.0f} MB, more than --memory {budget / 1e6:,.0f} MB"}
            continue
        if budget and busy:
            held = sum(max(w.expects, _resident(w)) for w in busy)
            if not expects or any(not w.expects for w in busy) or held + expects > budget:
                continue  # a smaller one may fit
        workers[:] = [w for w in workers if w.place >= 0 or w.process.is_alive()]
        idle = [w for w in workers if w.place < 0]
        if budget and busy and idle:
            for worker in idle[1:] if held + sum(map(_resident, idle[1:])) + expects > budget else []:
                _part(worker)
                workers.remove(worker)
        worker = idle[0] if idle else hire()
        if not idle:
            workers.append(worker)
        worker.place, worker.expects = place, expects
        waiting.remove(place)
        try:
            worker.pipe.send(jobs[place])
        except OSError:  # it died this moment: `wait` finds that out
            pass


def _hire(context: Any, serve: Callable[..., None], threads: int) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, threads), name="finlora study")
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _part(worker: _Worker) -> None:
    worker.pipe.close()


def _resident(worker: _Worker) -> int:
    """Bytes that a worker's process holds now."""
    import psutil

    try:
        return psutil.Process(worker.process.pid).memory_info().rss
    except psutil.Error:
        return 0


# -- in the worker -----------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, threads: int) -> None:
    """A worker's life: its share of the cores (two threads on a busy core wait for each other), and no life beyond its parent's."""
    try:
        import torch

        torch.set_num_threads(threads)
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
        while True:
            pipe.send(one(pipe.recv()))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _follow(parent: int, seconds: float = 1.0) -> None:
    """End this process when its parent has: a killed study leaves no run behind that nobody waits for."""
    while os.getppid() == parent:
        time.sleep(seconds)
    os._exit(1)


def one(job: Job) -> dict[str, Any]:
    """One job, in whatever process: {"run", "val", "accuracy", "seconds", "peak_bytes"}, {"run", "error"} or {"stopped"}.

    What it cost is appended to the study's costs.jsonl, and why it failed is written to its failed/.
    """
    from ..train import Interrupted

    began, whole = time.perf_counter(), not (job.folder / "spec.toml").exists()
    top = _Top()
    try:
        with top:
            _do(job)
    except (KeyboardInterrupt, Interrupted) as stop:
        return {"stopped": getattr(stop, "message", "stopped by the user")}
    except FinloraError as error:
        note_failure(job, error.message)
        return {"run": job.folder.name, "error": error.message}
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)  # of a finished run nothing asks for them, and a grid has hundreds
    sheet = receipt.read(job.folder)
    how = sheet.get("train", {}).get("peak_how") or sheet.get("cost", {}).get("peak_how") or ""
    seen = max(sheet.get("train", {}).get("peak_bytes") or 0, sheet.get("cost", {}).get("peak_bytes") or 0)
    cost = {"seconds": time.perf_counter() - began, "peak_bytes": seen if "cuda" in how else max(seen, top.bytes)}
    note_cost(job, {**cost, "whole": whole})
    failure(job).unlink(missing_ok=True)
    return {**said(job.folder), **cost}


def verb(job: Job) -> str:
    """What the job does: evaluate, pretrain or finetune."""
    from ..check import verb_of

    return "evaluate" if job.kind == "base" else verb_of(specs.spec_from_dict(job.tree))


def _do(job: Job) -> None:
    """The run itself, by its kind."""
    spec = specs.spec_from_dict(job.tree)
    match verb(job):
        case "evaluate":
            from ..evaluate import run

            run(spec)
        case "pretrain":
            from ..scratch import pretrain

            pretrain(spec)
        case _:
            from ..tune import finetune

            finetune(spec, grade=job.kind == "runs")


class _Top:
    """The largest resident set while it is entered, looked at four times a second: loading and grading count too."""

    def __enter__(self) -> _Top:
        import psutil

        self.bytes, self._end, self._own = 0, threading.Event(), psutil.Process()
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        self.bytes = max(self.bytes, self._own.memory_info().rss)

    def _watch(self) -> None:
        while not self._end.wait(0.25):
            self._look()

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._look()


def said(folder: Path) -> dict[str, Any]:
    """What a finished run's receipt says that a study needs."""
    sheet = receipt.read(folder)
    marks = {}
    for task, result in sheet.get("results", {}).items():
        metrics = result["metrics"]
        name = result.get("metric") if result.get("metric") in metrics else next(iter(metrics), None)
        if name:
            marks[task] = metrics[name]["value"]
    return {"run": folder.name, "val": receipt.kept_loss(sheet.get("train", {}), sheet["spec"].get("train", {}).get("patience", 0)), "accuracy": marks}


def place_of(job: Job) -> Path:
    """The study's own folder, two above the run's."""
    return job.folder.parent.parent


def failure(job: Job) -> Path:
    """The file that says why a job failed."""
    return place_of(job) / "failed" / f"{job.kind}-{job.folder.name}.json"


def note_failure(job: Job, message: str) -> None:
    """Keep why a job failed, for whoever gathers the study later."""
    receipt.write_text(failure(job), json.dumps({"keys": job.keys, "error": message}) + "\n")


def note_cost(job: Job, cost: Mapping[str, Any]) -> None:
    """Append a line to costs.jsonl in one write, so that several processes can."""
    line = json.dumps({"kind": job.kind, "keys": job.keys, "run": job.folder.name, **cost}) + "\n"
    with open(place_of(job) / "costs.jsonl", "ab", buffering=0) as file:
        file.write(("\n" + line).encode())  # behind whatever a crash cut short
