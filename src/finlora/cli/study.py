"""finlora study plan|run|report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import shared


def command(
    what: Annotated[str, typer.Argument(metavar="plan|run|report", help="plan: count the runs; run: do them; report: write the tables.")],
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A study's TOML file; for report the folder of its runs.")],
    out: shared.Out = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="run: runs at a time, each in its own process; 1 by default.")] = None,
    sets: shared.Sets = None,
    reference: Annotated[str | None, typer.Option("--reference", help="report: the method that others are compared with; lora by default.")] = None,
) -> None:
    """Run a grid of methods, codecs, tasks and seeds, and turn it into tables with paired intervals.

    [dim]finlora study run configs/methods_fpb_tfns.toml -o runs/methods --set data.dir=DIR[/dim]
    """
    from ..errors import FinloraError, unknown

    if what not in ("plan", "run", "report"):
        raise unknown("step", what, ["plan", "run", "report"], "finlora study")
    given = {"--jobs": jobs, "--set": sets, "--reference": reference, "--out": out}
    serve = {"plan": ("--set",), "run": ("--set", "--jobs", "--out"), "report": ("--reference", "--out")}
    for option, value in given.items():
        if value and option not in serve[what]:
            raise FinloraError(f"{option} says nothing to `study {what}`", f"leave it out; it belongs to {' and '.join(w for w in serve if option in serve[w])}")
    if what == "report":
        from ..report.study import study_report

        study_report(file, out, reference or "lora")
        typer.echo(f"report: {Path(out or file) / 'report.md'}")
        return
    from ..study import load_study, plan, run

    study = load_study(file, sets or ())
    told = plan(study)
    typer.echo(f"{told['search']} runs to choose {study.key or 'nothing'}, {told['runs']} runs to grade", err=what == "run")
    for line in told["refused"]:
        typer.echo(f"left out: {line}", err=what == "run")
    for line in told["unmet"]:
        typer.echo(f"note: a rule is for {line}, which the grid lacks", err=True)
    if what == "plan":
        return
    folder = Path(out or f"runs/{study.name}")
    with shared.live() as progress:
        done = run(study, folder, jobs or 1, progress)
    typer.echo(f"{len(done['runs'])} runs done, {len(done['failed'])} failed; {folder / 'study.json'}")
