"""Studies on other machines: a Slurm array of cells, and Ray. All of them must see the same folders under the same paths.

    slurm(study, "runs/x")      writes runs/x/slurm/: submit.sh, stage.sbatch, gather.sbatch, and runs/x/cells.json
    cell("runs/x", 3)           what one array task does: the run number 3 of cells.json
    ray_launch(jobs=2)          a launcher for `run`: each job is a Ray task; needs the package ray

The array is submitted in two stages: the graded runs wait for the search, since its outcome is part of their specs; which value
was chosen is read from the search's receipts by each of them.  A third job gathers study.json.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import receipt
from ..errors import FinloraError
from .drive import _looked, choose, final_jobs, finished, first_jobs
from .grid import Study, cells, load_study, told
from .guess import Costs
from .work import Job, cores, one

SPARE = 1.5  # memory and time asked of Slurm, over what is expected


def slurm(study: Study, out: str | Path, options: Sequence[str] = (), threads: int = 0, at_once: int = 0) -> dict[str, Any]:
    """Write the scripts of a Slurm array into out/slurm and return {"submit", "search", "finals", "lines"}.

    options: further #SBATCH options, such as "--partition=gpu". threads: cores of a task. at_once: array tasks at a time, 0 for
    any number. Memory and time are asked for where finished runs in `out` tell what is needed.
    Raises: FinloraError where the study has no text (it was not read from a file), or `out` cannot be written.
    """
    if not study.text:
        raise FinloraError("the study was not read from a file", "load_study(FILE) gives one that array tasks can read too")
    for option in options:
        if not option.startswith("--") or "\n" in option:
            raise FinloraError(f"`{option}` is no option of sbatch", "such as --partition=gpu or --gres=gpu:1")
    out = Path(out).absolute()
    found = cells(study)
    trials, bases = first_jobs(study, out, found)
    finals = [cell.keys for cell in found if not cell.refused]
    first = [*trials, *bases]
    rows = [{"index": at, "stage": 1, "kind": j.kind, "keys": j.keys} for at, j in enumerate(first)]
    rows += [{"index": len(first) + at, "stage": 2, "kind": "runs", "keys": keys} for at, keys in enumerate(finals)]
    lines = _resources(study, out, first, threads)
    limit = f"%{at_once}" if at_once else ""
    head = "\n".join(f"#SBATCH {line}" for line in (*lines, *options))
    folder = shlex.quote(str(out))
    stage = f"""#!/bin/bash
#SBATCH --job-name={_name(study)}
#SBATCH --output={out}/slurm/%A_%a.log
{head}
set -u
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
exec finlora study cell {folder} "$SLURM_ARRAY_TASK_ID"
"""
    collect = f"""#!/bin/bash
#SBATCH --job-name={_name(study)}-gather
#SBATCH --output={out}/slurm/gather.log
{chr(10).join(f"#SBATCH {option}" for option in options)}
exec finlora study gather {folder}
"""
    ranges = [f"0-{len(first) - 1}", f"{len(first)}-{len(rows) - 1}"]
    submit = ["#!/bin/bash", "# Submits the study: its search, then its graded runs, then what gathers them. Submit it again to do what failed.", "set -eu", f"cd {folder}/slurm"]
    after = ""
    if first:
        submit.append(f"first=$(sbatch --parsable --array={ranges[0]}{limit} stage.sbatch)")
        after = '--dependency=afterany:"${first%%;*}" '
    submit.append(f"second=$(sbatch --parsable {after}--array={ranges[1]}{limit} stage.sbatch)")
    submit.append('third=$(sbatch --parsable --dependency=afterany:"${second%%;*}" gather.sbatch)')
    submit.append(f'echo "{"search $first, " if first else ""}runs $second, gathered by $third"')
    receipt.write_text(out / "study.toml", study.text)
    receipt.write_text(out / "cells.json", json.dumps({"study": study.name, "sets": list(study.sets), "folder": str(Path.cwd()), "cells": rows}, indent=1) + "\n")
    receipt.write_text(out / "slurm" / "stage.sbatch", stage)
    receipt.write_text(out / "slurm" / "gather.sbatch", collect)
    receipt.write_text(out / "slurm" / "submit.sh", "\n".join(submit) + "\n")
    return {"submit": out / "slurm" / "submit.sh", "search": len(first), "finals": len(finals), "lines": lines}


def _name(study: Study) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in study.name)[:48]


def _resources(study: Study, out: Path, first: Sequence[Job], threads: int) -> list[str]:
    """#SBATCH options for cores and, where runs have finished, memory and time with room to spare."""
    lines = [f"--cpus-per-task={threads or cores()}"]
    costs = Costs(study.key)
    if out.is_dir() and costs.read(out):
        known = [c for c in map(costs.guess, first) if c]
        if peak := max((c.peak_bytes for c in known), default=0):
            lines.append(f"--mem={math.ceil(SPARE * peak / 2**20)}M")
        if seconds := max((c.seconds for c in known if not math.isnan(c.seconds)), default=0):
            lines.append(f"--time={max(5, math.ceil(2 * SPARE * seconds / 60))}")
    return lines


def read_cells(folder: str | Path) -> tuple[Study, list[dict[str, Any]], Path]:
    """(the study, its numbered cells, the folder that relative paths count from) of a folder that `slurm` has written.

    Raises: FinloraError where there is none.
    """
    folder = Path(folder)
    try:
        value = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
        return load_study(folder / "study.toml", value["sets"]), value["cells"], Path(value["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FinloraError(f"`{folder}` holds no numbered cells: {error}", "`finlora study run STUDY --launcher slurm -o FOLDER` writes them") from error


def cell(folder: str | Path, index: int) -> dict[str, Any]:
    """Do the run number `index`, unless it has finished; returns what came of it.

    Raises: FinloraError for a number that is not there, a search that is not finished, or a run that failed.
    """
    from ..train import Interrupted

    study, rows, home = read_cells(folder)
    if not 0 <= index < len(rows):
        raise FinloraError(f"there is no cell {index} in `{folder}`", f"they are numbered 0 to {len(rows) - 1}")
    folder, row = Path(folder).absolute(), rows[index]
    here = Path.cwd()
    if here != home:
        os.chdir(home)  # a study may name its data and models by relative paths
    try:
        found = cells(study)
        trials, bases = first_jobs(study, folder, found)
        if row["kind"] != "runs":
            asked = [j for j in (*trials, *bases) if j.kind == row["kind"] and j.keys == row["keys"]]
        else:
            outcome = {repr(j.keys): _looked(j) for j in trials}
            chosen = choose(study, found, lambda keys: outcome[repr(keys)])
            asked = [j for j in final_jobs(study, folder, found, chosen) if {k: v for k, v in j.keys.items() if k != study.key} == row["keys"]]
            if not asked:
                raise FinloraError(f"the search for {told(row['keys'])} has no finished run", "do the cells of stage 1 first; see failed/ for why they failed")
        done = _looked(asked[0]) if finished(asked[0]) else one(asked[0])
    finally:
        if here != home:
            os.chdir(here)
    if "stopped" in done:
        raise Interrupted(done["stopped"], "the same cell again goes on")
    if "error" in done:
        raise FinloraError(f"{told(asked[0].keys)}: {done['error']}", f"see {folder / 'failed'}")
    return done


def ray_launch(jobs: int = 0, memory: float = 0, address: str = "") -> Callable[[Sequence[Job], Callable[[Job], int]], Iterator[tuple[int, dict[str, Any]]]]:
    """A launcher for `run` that makes each job a Ray task, on the cluster at `address` ("auto" for a running one, "" for a new local one).

    jobs: tasks for each machine's cores (a task takes cores / jobs). memory: bytes that Ray may hand out on a new local cluster, 0
    for what it finds; each task asks for its expected peak. A job whose worker dies is told as failed.
    Raises: FinloraError where Ray is not installed or cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise FinloraError("the launcher `ray` needs the package ray", "pip install ray") from error

    def launch(asked: Sequence[Job], guess: Callable[[Job], int]) -> Iterator[tuple[int, dict[str, Any]]]:
        begun = not ray.is_initialized()
        if begun:
            fresh = {"num_cpus": cores(), "include_dashboard": False, **({"_memory": int(memory)} if memory else {})}
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", **({"address": address} if address else fresh))
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise FinloraError(f"no Ray cluster could be reached: {error}", "start one with `ray start --head`, or leave the address out") from error
        try:
            yield from _ray(ray, asked, guess, max(1, cores() // (jobs or 1)), Path.cwd())
        finally:
            if begun:
                ray.shutdown()

    return launch


def _ray(ray: Any, asked: Sequence[Job], guess: Callable[[Job], int], threads: int, home: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    task = ray.remote(_remote)
    held = {}
    for place, each in enumerate(asked):
        options = {"num_cpus": threads, "max_retries": 0, **({"memory": need} if (need := guess(each)) else {})}
        held[task.options(**options).remote(each, threads, str(home))] = place
    while held:
        ready, _ = ray.wait(list(held), num_returns=1)
        place = held.pop(ready[0])
        try:
            outcome = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            outcome = {"error": f"Ray lost it: {str(error).splitlines()[0]}"}
        if "stopped" in outcome:
            outcome = {"error": outcome["stopped"]}
        yield place, {"run": asked[place].folder.name, **outcome}


def _remote(each: Job, threads: int, home: str) -> Mapping[str, Any]:
    """A Ray task."""
    import torch

    os.chdir(home)
    torch.set_num_threads(threads)
    return one(each)
