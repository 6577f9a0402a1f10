"""finlora study plan|run|report|cell|gather"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from . import shared

STEPS = {  # step -> the options that it takes
    "plan": ("--set", "--out", "--jobs", "--memory", "--probe"),
    "run": ("--set", "--jobs", "--out", "--memory", "--launcher", "--sbatch", "--address"),
    "report": ("--reference", "--out", "--show-text"),
    "cell": (),
    "gather": (),
}
UNITS = {"": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}


def command(
    what: Annotated[str, typer.Argument(metavar="plan|run|report|cell|gather", help="plan: count the runs and their cost; run: do them; report: write the tables; cell, gather: what a Slurm array calls.")],
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A study's TOML file; for report, cell and gather the folder of its runs.")],
    index: Annotated[int | None, typer.Argument(metavar="INDEX", help="cell: the number of the run in cells.json.")] = None,
    out: shared.Out = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time, each in its own process; 1 by default.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory for all runs together, such as 12GB: a run starts only when its expected peak fits; no limit by default.")] = None,
    sets: shared.Sets = None,
    probe: Annotated[str | None, typer.Option("--probe", metavar="none|one|all", help="plan: measure a few steps here where no run has finished yet: of one cell (default), or of each method and codec.")] = None,
    launcher: Annotated[str | None, typer.Option("--launcher", metavar="local|slurm|ray", help="run: on this machine (default), as a Slurm array to submit, or on Ray.")] = None,
    sbatch: Annotated[list[str] | None, typer.Option("--sbatch", metavar="OPTION", help="run --launcher slurm: a further option of sbatch, such as --sbatch=--partition=gpu. Repeatable.")] = None,
    address: Annotated[str | None, typer.Option("--address", metavar="ADDRESS", help="run --launcher ray: the cluster's address, or auto; a new local one by default.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="report: the method or arm that others are compared with; lora by default. In a study of pretraining a dense arm, by default the first, or another to be compared with besides.")] = None,
    show_text: Annotated[bool, typer.Option("--show-text", help="report: show the prompts of wrong answers also where their data do not ship with finlora; mind their licences.")] = False,
) -> None:
    """Run a grid of methods, codecs, tasks and seeds, and turn it into tables with paired intervals.

    [dim]finlora study run configs/small.toml -o runs/small --set data.dir=DIR --jobs 2 --memory 6GB[/dim]
    """
    from ..errors import FinloraError, unknown

    if what not in STEPS:
        raise unknown("step", what, list(STEPS), "finlora study")
    given = {
        "--jobs": jobs, "--set": sets, "--reference": reference, "--out": out, "--memory": memory, "--probe": probe,
        "--launcher": launcher, "--sbatch": sbatch, "--address": address, "--show-text": show_text,
    }  # fmt: skip
    for option, value in given.items():
        if value and option not in STEPS[what]:
            raise FinloraError(f"{option} has no effect on `study {what}`", f"leave it out; it belongs to {' and '.join(step for step in STEPS if option in STEPS[step])}")
    for option, value, needed in (("--sbatch", sbatch, "slurm"), ("--address", address, "ray")):
        if value and launcher != needed:
            raise FinloraError(f"{option} has no effect without --launcher {needed}", "leave it out")
    if (index is not None) != (what == "cell"):
        raise FinloraError(f"`study {what}` takes {'a number' if what == 'cell' else 'no number'}", "finlora study cell FOLDER INDEX")
    if what == "report":
        _report(file, out, reference, show_text)
        typer.echo(f"report: {Path(out or file) / 'report.html'}")
    elif what == "cell":
        from ..study.launch import cell

        typer.echo(f"done: {cell(file, index or 0)['run']}")
    elif what == "gather":
        from ..study import gather
        from ..study.launch import read_cells

        done = gather(read_cells(file)[0], file)
        _ended(done, file)
    else:
        _study(what, file, out, jobs or 1, size(memory) if memory else 0.0, sets or [], probe or "one", launcher or "local", sbatch or [], address or "")


def _report(folder: Path, out: str | None, reference: str | None, show_text: bool) -> None:
    """The pages of a study: of adapters by task, of models trained from scratch by loss and cost."""
    from ..report import pretraining

    if pretraining.is_pretraining(folder):
        pretraining.report(folder, out, ("int8", "nf4"), reference or "")
    else:
        from ..report.study import study_report

        study_report(folder, out, reference or "lora", show_text)


def size(text: str) -> float:
    """The bytes that `12GB`, `800 MiB` or `1e9` says. Raises: FinloraError for anything else."""
    from ..errors import FinloraError

    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    unit = found and (found[2] if found[2] in UNITS else f"{found[2]}b" if f"{found[2]}b" in UNITS else None)
    try:
        value = float(found[1]) * UNITS[unit] if found and unit is not None else 0.0
    except ValueError:
        value = 0.0
    if value < 1e6:
        raise FinloraError(f"--memory {text}: not a size of memory", "such as 12GB or 800MB")
    return value


def _study(what: str, file: Path, out: str | None, jobs: int, memory: float, sets: list[str], probe: str, launcher: str, sbatch: list[str], address: str) -> None:
    """plan and run."""
    from ..errors import unknown
    from ..study import load_study, plan, run

    if probe not in ("none", "one", "all"):
        raise unknown("probe", probe, ["none", "one", "all"], "finlora study plan --probe")
    if launcher not in ("local", "slurm", "ray"):
        raise unknown("launcher", launcher, ["local", "slurm", "ray"], "finlora study run")
    study = load_study(file, sets)
    folder = Path(out or f"runs/{study.name}")
    told = plan(study, folder)
    note = what == "run"
    base = f", {told['base']} gradings of the untuned base" if told["base"] else ""
    typer.echo(f"{told['search']} runs to choose {study.key or 'nothing'}, {told['runs']} runs to grade{base}{_finished(told)}", err=note)
    for line in told["refused"]:
        typer.echo(f"left out: {line}", err=note)
    for line in told["unsearched"]:
        typer.echo(f"left out: {line}: the search cannot be held at what search.at names", err=note)
    for line in told["unmet"]:
        typer.echo(f"note: a rule is for {line}, which the grid lacks", err=True)
    if what == "plan":
        _estimate(told, jobs, memory, probe)
        return
    if launcher == "slurm":
        from ..study.launch import slurm

        made = slurm(study, folder, sbatch, at_once=jobs if jobs > 1 else 0)
        typer.echo(f"{made['search']} cells, then {made['finals']}: submit them with  bash {made['submit']}")
        return
    launch = None
    if launcher == "ray":
        from ..study.launch import ray_launch

        launch = ray_launch(jobs, memory, address)
    with shared.live() as progress:
        done = run(study, folder, jobs, progress, memory, launch)
    _ended(done, folder)


def _ended(done: dict[str, Any], folder: Path) -> None:
    """Say what became of a study; one with failed runs exits with status 1."""
    for failed in done["failed"]:
        typer.echo(f"failed: {', '.join(map(str, failed['keys'].values()))}: {failed['error']}", err=True)
    typer.echo(f"{len(done['runs'])} runs done, {len(done['failed'])} failed; {folder / 'study.json'}")
    if done["failed"]:
        raise typer.Exit(1)


def _finished(told: dict[str, Any]) -> str:
    return f"; {told['finished']} are finished" if told["finished"] else ""


def _estimate(told: dict[str, Any], jobs: int, memory: float, probe: str) -> None:
    """Print what the remaining runs will take, and how that is known."""
    import math

    from ..study.drive import makespan
    from ..study.guess import LEVELS, distinct, sheet
    from ..study.guess import STEPS as FEW
    from ..study.guess import probe as measure

    todo, costs = told["jobs"], told["costs"]
    left = [job for stage in todo for job in stage]
    if not left:
        typer.echo("nothing is left to do")
        return
    how = f"from {told['measured']} finished runs in the folder"
    if not told["measured"]:
        if probe == "none":
            typer.echo("time and memory: not known before a run has finished; --probe one measures a few steps")
            return
        chosen = distinct(left)
        chosen = chosen[:1] if probe == "one" else chosen
        for line in measure(costs, chosen):
            typer.echo(f"note: the probe failed: {line}", err=True)
        if not costs.probed:
            typer.echo("time and memory: not known; no probe could be made here")
            return
        how = f"from a probe of {FEW} steps of {'one cell' if len(chosen) == 1 else f'{len(chosen)} cells'} on this machine, scaled by the characters trained on and graded"
    found = sheet(costs, left)
    many = min(jobs, max(1, int(memory // found["peak_bytes"]))) if memory and found["peak_bytes"] else jobs
    spans = [makespan([c.seconds for c in map(costs.guess, stage) if c and not math.isnan(c.seconds)], many) for stage in todo]
    unknown = f", without {found['unknown']} of which nothing is known" if found["unknown"] else ""
    typer.echo(f"time: about {_clock(sum(spans))} with {many} at a time, {_clock(found['seconds'])} of run time in all, {_clock(found['longest'])} the longest run{unknown}")
    fits = " (more than --memory: such runs will be refused)" if memory and found["peak_bytes"] > memory else ""
    typer.echo(f"memory: about {found['peak_bytes'] / 1e9:.2f} GB a run at its peak, {many * found['peak_bytes'] / 1e9:.2f} GB for {many}{fits}")
    told_by = "; ".join(f"{count} runs by {LEVELS[at]}" for at, count in enumerate(found["levels"]) if count)
    typer.echo(f"estimated {how}: {told_by}")


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
