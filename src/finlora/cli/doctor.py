"""finlora doctor SPEC"""

from __future__ import annotations

import typer

from . import shared


def command(
    spec: shared.SpecFile, set: shared.Sets = None, data: shared.DataDir = None, task: shared.Tasks = None
) -> None:
    """Prove on your own spec, in seconds, that training and grading do what they say.

    Accumulation and packing change nothing, the loss sees the answer and its end token only, a resumed run is the same
    run, gold answers score 100% and permuted ones chance.

    [dim]finlora doctor run.toml[/dim]
    """
    from ..check import check
    from ..spec import load_spec

    wanted = shared.with_flags(load_spec(spec, set or ()), data__dir=data, data__tasks=task)
    shared.refuse(check(wanted, "doctor"))
    from rich.console import Console
    from rich.text import Text

    from ..doctor import run

    with shared.live() as progress:
        found = run(wanted, progress=progress)
    console = Console(highlight=False)
    for finding in found:
        console.print(Text.assemble((" ok   " if finding.ok else " FAIL ", "green" if finding.ok else "bold red"), (finding.name, "bold"), f": {finding.detail}"))
        if finding.hint:
            console.print(Text(f"      {finding.hint}"))
        if finding.example:  # what carries a weight is what the loss sees
            console.print(Text.assemble("      ", *((text, "bold green underline" if weight else "dim") for text, weight in finding.example)))
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)
