"""finlora evaluate"""

from __future__ import annotations

from typing import Annotated

import typer

from . import shared


def command(
    model: shared.ModelName = None,
    adapter: shared.Adapter = None,
    task: shared.Tasks = None,
    data: shared.DataDir = None,
    codec: shared.Codec = None,
    way: Annotated[
        list[str] | None,
        typer.Option("--way", "-w", help="choose (likeliest label) or say (free text). Repeatable; both by default."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="The first so many rows of each task; all by default.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, validation or test (default).")] = None,
    shots: Annotated[int | None, typer.Option("--shots", "-k", help="Worked examples from the training split before each question; 0 by default, 64 at most.")] = None,
    out: shared.Out = None,
    set: shared.Sets = None,
    online: shared.Online = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run left in the folder.")
    ] = False,
) -> None:
    """Grade a model on tasks, with intervals, beside the floors that a model must beat.

    [dim]finlora evaluate -t tone[/dim]
    [dim]finlora evaluate -m finlora/base -a runs/fpb/adapter -t fpb --data data/ --codec nf4[/dim]
    """
    from ..check import check
    from ..spec import Spec, digest, with_overrides
    from .progress import Progress

    # the codec's name before its options, which are read as those of that codec
    wanted = with_overrides(Spec(), *([f"codec.kind={codec}"] if codec else []), *(set or ()))
    wanted = shared.with_flags(
        wanted, model__name=model, model__adapter=adapter, model__online=online or None, data__tasks=task, data__dir=data,
        evaluate__tasks=task, evaluate__ways=way, evaluate__limit=limit, evaluate__split=split, evaluate__shots=shots, run__out=out, run__overwrite=overwrite or None,
    )  # fmt: skip
    if codec is None and not any(text.startswith("codec.") for text in set or ()):
        wanted = shared.as_trained(wanted)
    if wanted.run.out == Spec().run.out:  # a folder for each different evaluation, so that the same one again resumes
        wanted = shared.with_flags(wanted, run__out=f"runs/evaluate-{digest(wanted)[:8]}")
    shared.refuse(check(wanted, "evaluate"))
    from ..evaluate import run

    with Progress() as progress:
        run(wanted, progress=progress)
    shared.show_receipt(wanted.run.out)
