"""finlora generate PROMPT"""

from __future__ import annotations

from typing import Annotated

import typer

from . import shared


def command(
    prompt: Annotated[str, typer.Argument(help="What the model continues; `-` reads it from stdin.")],
    model: shared.ModelName = None,
    adapter: shared.Adapter = None,
    codec: shared.Codec = None,
    max_new: Annotated[int, typer.Option("--max-new", help="Tokens at most.", min=1)] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest token; above 0 draws.", min=0.0)
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.", min=0)] = 0,
    online: shared.Online = False,
    device: Annotated[str | None, typer.Option("--device", help="auto (default), cpu, mps, cuda or cuda:1.")] = None,
) -> None:
    """Let a model write.

    [dim]finlora generate "Operating profit rose to EUR 13.1 mn from" --max-new 24[/dim]
    """
    import sys

    from ..check import check
    from ..errors import FinloraError
    from ..spec import Spec, resolve

    wanted = shared.with_flags(
        Spec(),
        model__name=model,
        model__adapter=adapter,
        model__online=online or None,
        codec__kind=codec,
        run__device=device,
    )
    if codec is None:
        wanted = shared.as_trained(wanted)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise FinloraError("the prompt is empty", 'write finlora generate "Revenue rose"')
    shared.refuse(check(wanted, "generate"))
    from ..generate import write
    from ..model import CACHE, open_model

    record, config = resolve(wanted.codec)
    opened = open_model(
        wanted.model.name,
        codec=record.name,
        codec_config=config,
        adapter=wanted.model.adapter or None,
        device=wanted.run.device,
        online=online,
        cache=CACHE[wanted.model.cache],
    )
    for piece in write(opened, text, max_new=max_new, temperature=temperature, seed=seed):
        typer.echo(piece, nl=False)
    typer.echo("")
