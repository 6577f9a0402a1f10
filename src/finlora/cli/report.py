"""finlora report DIR..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import shared


def command(
    folder: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold runs, at any depth.")],
    out: shared.Out = None,
) -> None:
    """Turn receipts into one HTML page with plots, and Markdown, CSV and LaTeX tables.

    [dim]finlora report runs/ -o runs/report[/dim]
    """
    from ..report import build

    page = build(folder, Path(out) if out else folder[0] / "report")
    shared.show_runs(folder)
    typer.echo(f"report: {page}")
