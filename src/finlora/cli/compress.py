"""finlora compress MODEL --calibrate TEXT"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import shared


def command(
    model: Annotated[str, typer.Argument(help="finlora/base, a local model folder, or a hub id (with --online).")],
    calibrate: Annotated[list[str], typer.Option("--calibrate", metavar="TEXT", help="Text to calibrate on, best of the kind that the model is for: a file or folder. Repeatable.")],
    keep: Annotated[float | None, typer.Option("--keep", help="Share of the linears' parameters that stays; 0.6 by default.")] = None,
    decomposition: Annotated[str | None, typer.Option("--decomposition", metavar="KIND", help="See `finlora list decompositions`; swift by default.")] = None,
    allocation: Annotated[str | None, typer.Option("--allocation", metavar="uniform|spectrum|loss|search", help="How ranks are shared out: the same share everywhere (default), where errors fall most, by loss and importance, or the best of these on held-out text.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Processes that decompose, 1 by default; the result is the same.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Write dense weights for other tools, in place of the factors.")] = False,
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any other setting, such as sequential=true or options.ridge=1e-3. Repeatable.")] = None,
    out: shared.Out = None,
    online: shared.Online = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another run left in the folder.")] = False,
) -> None:
    """Make a trained model smaller: each linear becomes two narrow ones, the best for the inputs that the text gives it.

    [dim]finlora compress finlora/base --keep 0.6 --calibrate filings.jsonl -o runs/small[/dim]
    """
    from ..compress import Compress, compress
    from ..errors import FinloraError, Problems
    from ..fields import Text, read_fields

    problems: list[FinloraError] = []
    table: dict[str, Any] = {}
    for text in sets or []:
        key, equals, raw = text.partition("=")
        if not equals:
            raise FinloraError(f"cannot read `--set {text}`", "write key=value, such as --set sequential=true")
        section, dot, name = key.partition(".")
        value = Text.parse(raw.strip(), key, problems)
        if dot and section == "options":
            table.setdefault("options", {})[name] = value.value
        else:
            table[key] = value
    given = {
        "keep": keep, "decomposition": decomposition, "allocation": allocation, "workers": workers, "out": out,
        "form": "dense" if dense else None, "online": online or None, "overwrite": overwrite or None,
    }  # fmt: skip
    twice = [key for key in table if key in ("model", "text") or given.get(key) is not None]
    if twice:
        raise FinloraError(f"`{twice[0]}` is given by --set and by an argument of its own", "leave out the --set")
    values = read_fields(Compress, {**table, "model": model, "text": calibrate, **{k: v for k, v in given.items() if v is not None}}, "compress", "", problems)
    if problems:
        raise Problems(problems)
    with shared.live() as progress:
        told = compress(Compress(**values), progress=progress)
    size, before, after = told["model"], told["before"], told["after"]
    written = ", written out dense" if told["settings"].form == "dense" else ""
    typer.echo(f"linears: {size['linears_before']:,} parameters to {size['linears_after']:,} ({size['kept']:.1%}{written}); model: {size['params_before']:,} to {size['params_after']:,}")
    if before and after:
        typer.echo(f"held-out text: {before['nats']:.4f} nats a token before, {after['nats']:.4f} after (perplexity {before['perplexity']:.2f} to {after['perplexity']:.2f})")
    typer.echo(f"model: {Compress(**values).out}/model")
