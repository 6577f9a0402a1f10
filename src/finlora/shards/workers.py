"""Units of work done side by side: one process for each worker, or none beside this one.

A worker is a process of its own (`python -m finlora.shards`), not a fork and not `multiprocessing`: it holds no model, needs
no guard in the caller's script, and its death is told with the unit it was at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import FinloraError
from . import unit as units
from . import words as wording
from .plan import Unit, as_dict

REQUEST, TOKENIZER = "request.json", "tokenizer.json"


def run(order: dict[str, Any], settings: dict[str, Any], words: wording.Words, folder: Path) -> None:
    """One order: {"do": "hash", "sign" or "tokens", "unit": a Unit taken apart, "limit": tokens}."""
    unit = Unit.from_dict(order["unit"])
    if order["do"] == "hash":
        units.hash_texts(unit, settings, folder)
    elif order["do"] == "sign":
        units.sign_texts(unit, settings, folder)
    else:
        units.write_tokens(unit, settings, words, folder, order["limit"])


def read_request(folder: Path) -> tuple[dict[str, Any], wording.Words]:
    """The settings and the tokenizer that a build left for its workers."""
    settings = json.loads((folder / units.WORK / REQUEST).read_text(encoding="utf-8"))
    told = settings["tokenizer"]
    content = (folder / TOKENIZER).read_text(encoding="utf-8")
    return settings, wording.Words(content, tuple(told["begin"]), tuple(told["end"]), told["vocab"], told["unknown"])


def work(
    what: str,
    todo: Iterable[Unit],
    settings: dict[str, Any],
    words: wording.Words,
    folder: Path,
    workers: int,
    after: Callable[[Unit], bool],
    limit: Callable[[], int] = lambda: 0,
) -> int:
    """Do the units; returns the largest peak of a worker's resident set in bytes (0: no worker).

    after: called as a unit is done, one call at a time; False: begin no further unit.  limit: tokens, asked of before a unit.
    Raises: the FinloraError of the first unit, by number, of those that failed; FinloraError for a worker that died.
    """
    if workers < 2:
        for unit in todo:
            run({"do": what, "unit": as_dict(unit), "limit": limit()}, settings, words, folder)
            if not after(unit):
                break
        return 0
    left = iter(todo)
    if (first := next(left, None)) is None:
        return 0
    left, lock, failed, peaks, open_ = chain([first], left), threading.Lock(), {}, [0], [True]
    processes = [_start(folder) for _ in range(workers)]

    def serve(process: subprocess.Popen) -> None:
        number = -1
        try:
            while True:
                with lock:
                    unit = next(left, None) if open_[0] else None
                if unit is None:
                    return
                number = unit.number
                answer = _ask(process, {"do": what, "unit": as_dict(unit), "limit": 0}, unit)
                with lock:
                    peaks.append(answer["peak"])
                    open_[0] = after(unit) and open_[0]
        except BaseException as error:
            with lock:
                failed[number], open_[0] = error, False

    threads = [threading.Thread(target=serve, args=(p,), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()
        for process in processes:
            with suppress(OSError):
                process.stdin.close()
            process.stdout.close()
    if failed:
        raise failed[min(failed)]
    return max(peaks)


def _start(folder: Path) -> subprocess.Popen:
    home = str(Path(__file__).parents[2])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "finlora.shards", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment,
    )  # fmt: skip


def _ask(process: subprocess.Popen, order: dict[str, Any], unit: Unit) -> dict[str, Any]:
    line = ""
    with suppress(OSError):
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    if not line:
        raise FinloraError(
            f"a worker died with status {process.wait()} at `{unit.spans[0].file}`", "run again: what is done is kept; with fewer workers if memory was short"
        )
    answer = json.loads(line)
    if "error" in answer:
        raise FinloraError(*answer["error"])
    return answer


def units_of(file: Path) -> Iterator[Unit]:
    """The units of a plan on disk, one at a time."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Unit.from_dict(json.loads(line))
