"""finlora xbrl build"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    what: Annotated[str, typer.Argument(metavar="build", help="build: filings become task files.")],
    filings: Annotated[list[Path], typer.Argument(metavar="FILING...", help="Instances, inline documents, folders, zips, or the SEC's company-facts .json.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the task files go.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Which of tag, value, formula, calc; with commas.")] = "tag,value,formula,calc",
    seed: Annotated[int, typer.Option("--seed", help="What is drawn: facts, options, order, and which companies are the test.")] = 0,
    packages: Annotated[Path | None, typer.Option("--packages", metavar="DIR", help="Taxonomies: package zips, or a cache laid out as https/xbrl.fasb.org/...; by default what the filings hold.")] = None,
    test_share: Annotated[float, typer.Option("--test-share", min=0.0, max=1.0, help="The share of companies in the test; 0 or 1 sends all to one side.")] = 0.3,
    facts: Annotated[int, typer.Option("--facts", min=1, help="Facts shown in a prompt; fewer for a model of little context.")] = 24,
    per_filing: Annotated[int, typer.Option("--per-filing", min=1, help="Rows of a task from a filing, at most.")] = 100,
) -> None:
    """Make questions from XBRL filings that cannot be answered without them; nothing is fetched.

    [dim]finlora xbrl build aapl-20230930_htm.xml nflx-20100930.xml --out runs/xbrl[/dim]
    """
    from ..errors import unknown

    if what != "build":
        raise unknown("step", what, ["build"], "finlora xbrl")
    from ..xbrl.build import MANIFEST, build

    told = build(filings, out, [t for t in tasks.replace(" ", "").split(",") if t], seed, packages, test_share, per_filing, facts)
    for task, counts in told["counts"].items():
        line = f"{task}: {counts['train']} train, {counts['test']} test"
        reached = told["attacks"][task]
        if reached:
            worst = max(reached, key=lambda name: reached[name]["accuracy"])
            line += f"; without the facts {reached[worst]['accuracy']:.1%} at most ({worst}), chance {reached[worst]['chance']:.1%}"
        typer.echo(line)
        if reached:
            typer.echo("  " + ", ".join(f"{name} {a['accuracy']:.1%}" for name, a in reached.items()))
    for side, names in told["companies"].items():
        typer.echo(f"{side}: {', '.join(names) or 'no company'}")
    for note in told["notes"]:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"manifest: {out / MANIFEST}")
