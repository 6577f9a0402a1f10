"""finlora fidelity RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import shared


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished `finlora finetune`.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="The first so many test examples of each task; 0 for all.")] = 200,
    codec: Annotated[list[str] | None, typer.Option("--codec", help="Codecs to encode the merged weights with again; every lossy one by default. Repeatable.")] = None,
) -> None:
    """Measure what a tuned model loses when it is merged, encoded again, or exported: KL, top token, task accuracy.

    [dim]finlora fidelity runs/fpb[/dim]
    """
    from ..fidelity import markdown
    from ..fidelity import run as measure

    with shared.live() as progress:
        said = measure(run, limit, codec, progress)
    typer.echo(markdown(said))
    typer.echo(f"\nwritten: {run / 'fidelity.json'}")
