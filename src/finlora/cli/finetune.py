"""finlora finetune SPEC"""

from __future__ import annotations

from typing import Annotated

import typer

from . import shared


def command(
    spec: shared.SpecFile,
    set: shared.Sets = None,
    data: shared.DataDir = None,
    task: shared.Tasks = None,
    out: shared.Out = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run left in the folder.")
    ] = False,
) -> None:
    """Tune a model on tasks, grade it, and write adapter, records and receipt.

    An interrupted run goes on where it stopped when the same command is given again.

    [dim]finlora finetune recipes/qlora.toml[/dim]
    [dim]finlora finetune run.toml --data data/ -t fpb -t tfns --set method.rank=16 -o runs/fpb[/dim]
    """
    from ..spec import load_spec

    wanted = shared.with_flags(
        load_spec(spec, set or ()), data__dir=data, data__tasks=task, run__out=out, run__overwrite=overwrite or None
    )
    from ..tune import finetune

    with shared.live() as progress:
        finetune(wanted, progress=progress)
    shared.show_receipt(wanted.run.out)
