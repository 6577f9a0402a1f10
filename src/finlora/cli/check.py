"""finlora check SPEC"""

from __future__ import annotations

from typing import Annotated

import typer

from . import shared


def command(
    spec: shared.SpecFile,
    set: shared.Sets = None,
    data: shared.DataDir = None,
    task: shared.Tasks = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved spec, each value with its meaning.")] = False,
) -> None:
    """Find everything wrong with a spec at once, without running it.

    [dim]finlora check run.toml --set method.rank=4096[/dim]
    """
    from ..check import check, verb_of
    from ..errors import FinloraError
    from ..spec import dump, load_spec

    problems: list[FinloraError] = []
    wanted = shared.with_flags(load_spec(spec, set or (), problems), data__dir=data, data__tasks=task)
    shared.refuse([*problems, *check(wanted, verb_of(wanted))])
    shared.advise(wanted)
    typer.echo(dump(wanted, notes=True) if show else f"{spec}: nothing wrong")
