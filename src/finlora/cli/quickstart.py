"""finlora quickstart"""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder that receives everything written.")] = "runs/quickstart",
    fast: Annotated[bool, typer.Option("--fast", help="A few steps only: to see that all works.")] = False,
) -> None:
    """Tune and grade the embedded model four ways, on a laptop, with no network.

    Full fine-tuning, LoRA, and LoRA over an nf4 and an int8 base, on the embedded tasks; then a table and an HTML report.
    """
    from ..quickstart import run
    from .progress import Progress

    with Progress() as progress:
        run(out, fast=fast, progress=progress)
