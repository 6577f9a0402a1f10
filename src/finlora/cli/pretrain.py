"""finlora pretrain SPEC"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from . import shared


def command(
    spec: shared.SpecFile,
    set: shared.Sets = None,
    out: shared.Out = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run left in the folder.")
    ] = False,
) -> None:
    """Train a model on text: a new one, low-rank or dense, or another one further. Under torchrun, on several processes.

    [dim]finlora pretrain recipes/base.toml --set train.steps=2000 -o runs/base
    torchrun --nproc-per-node 2 -m finlora pretrain recipes/base.toml --set parallel.pipeline=2[/dim]
    """
    from ..spec import load_spec

    wanted = shared.with_flags(load_spec(spec, set or ()), run__out=out, run__overwrite=overwrite or None)
    from ..scratch import pretrain

    with shared.live() as progress:
        pretrain(wanted, progress=progress)
    if os.environ.get("RANK", "0") == "0":  # of several processes one tells
        shared.show_receipt(wanted.run.out)
