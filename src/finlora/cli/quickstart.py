"""finlora quickstart"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import shared


def command(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder that receives everything written.")
    ] = "runs/quickstart",
    fast: Annotated[bool, typer.Option("--fast", help="A few steps only: to see that all works.")] = False,
) -> None:
    """Tune and grade the embedded model four ways, on a laptop, with no network.

    Full fine-tuning, LoRA, and LoRA over an nf4 and an int8 base, on the embedded tasks; then a table and an HTML report.
    """
    from ..quickstart import run

    with shared.live() as progress:
        page = run(out, fast=fast, progress=progress)
    shared.show_runs([Path(out)])
    typer.echo(f"report: {page}")
