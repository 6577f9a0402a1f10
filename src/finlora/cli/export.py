"""finlora export merged|peft|bnb|encoded|lm-eval-pack SOURCE --out DIR"""

from __future__ import annotations

from typing import Annotated

import typer

from . import shared


def command(
    what: Annotated[str, typer.Argument(metavar="FORM", help="merged: a dense model; peft: an adapter folder; bnb: a bitsandbytes checkpoint; encoded: a low-rank model, its factors kept by a codec; lm-eval-pack: tasks for lm-evaluation-harness.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A run's folder, an adapter's folder, or a model; of a pack its tasks, with commas.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder to write; it must not exist.")],
    dtype: Annotated[str, typer.Option("--dtype", help="auto (as the base's checkpoint), bfloat16, float16 or float32.")] = "auto",
    shard_size: Annotated[str, typer.Option("--shard-size", help="Largest file of weights: 500MB, 2GB ...")] = "2GB",
    base: Annotated[str, typer.Option("--base", help="merged: into the `dequantised` weights that it was trained over, or the `original` ones.")] = "dequantised",
    rank: Annotated[int | None, typer.Option("--rank", help="peft: cut the adapter to this rank by SVD; exact by default.")] = None,
    codec: Annotated[str | None, typer.Option("--codec", metavar="KIND", help="bnb: nf4, nf4_dq, fp4 or int8; default: as trained. encoded: any codec without a calibration.")] = None,
    data: shared.DataDir = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="lm-eval-pack: the first rows of each split; all by default.")] = None,
    model: shared.ModelName = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, mps, cuda or cuda:1.")] = "auto",
) -> None:
    """Write a tuned model in the form that another tool reads.

    [dim]finlora export merged runs/finlora --out exported --dtype bfloat16[/dim]
    """
    from ..errors import FinloraError, unknown

    forms = {"merged": {"dtype", "shard_size", "base"}, "peft": {"rank"}, "bnb": {"dtype", "shard_size", "codec"}, "encoded": {"codec"}, "lm-eval-pack": {"data", "limit"}}
    if what not in forms:
        raise unknown("form", what, forms)
    given = {"dtype": dtype, "shard_size": shard_size, "base": base, "rank": rank, "codec": codec, "data": data, "limit": limit}
    default = {"dtype": "auto", "shard_size": "2GB", "base": "dequantised", "rank": None, "codec": None, "data": None, "limit": None}
    for key in given.keys() - forms[what]:
        if given[key] != default[key]:
            raise FinloraError(f"--{key.replace('_', '-')} has no effect on `export {what}`", f"leave it out; it belongs to {', '.join(f for f in forms if key in forms[f])}")
    if what == "lm-eval-pack":
        from ..export.lm_eval_pack import lm_eval_pack

        typer.echo(str(lm_eval_pack([t for t in source.replace(" ", "").split(",") if t], out, dir=data or "", limit=limit or 0)))
        return
    from .. import export

    folder = getattr(export, what)(source, out, model=model, device=device, **{key: given[key] for key in forms[what]})
    typer.echo(str(folder))
