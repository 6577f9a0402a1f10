"""finlora data audit|fetch|spool"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import shared


def command(
    what: Annotated[str, typer.Argument(metavar="audit|fetch|spool", help="audit: find what is wrong with a set; fetch: bring a task's files from the hub; spool: bring text of the hub to pretrain on, row by row.")],
    name: Annotated[str, typer.Argument(metavar="TASK|DIR|ID", help="A task of `finlora list tasks`; for audit also a folder, all of whose sets are looked at; for spool a data set of the hub.")],
    dir: Annotated[str | None, typer.Option("--data", "--dir", metavar="DIR", help="audit: the folder that holds the task's files.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="PATH", help="audit: a page to write, FILE.html or a folder; fetch: the folder that receives TASK/; spool: the folder of text.")] = None,
    json: Annotated[bool, typer.Option("--json", help="audit: the findings as JSON.")] = False,
    model: shared.ModelName = None,
    adapter: shared.Adapter = None,
    fresh: Annotated[str | None, typer.Option("--fresh", metavar="PATH", help="audit, with --model: texts of the test's kind that the model cannot have seen (.txt, or .jsonl with `text`); none by default.")] = None,
    online: shared.Online = False,
    accept: Annotated[bool, typer.Option("--accept-license", help="fetch: I may use data whose licence allows no commercial use.")] = False,
    split: Annotated[str, typer.Option("--split", help="spool: which split.")] = "train",
    column: Annotated[str, typer.Option("--column", help="spool: the column that holds the text.")] = "text",
    config: Annotated[str | None, typer.Option("--config", metavar="NAME", help="spool: the set's configuration, where it has several.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="spool: a branch, tag or commit of the set.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="spool: the first documents; 0: all.")] = 0,
) -> int:
    """Audit a set: repeats, leaks, contradictions, permuted labels, too few items; or fetch one; or bring text to pretrain on.

    [dim]finlora data audit tfns --data DIR -o audit.html[/dim]
    [dim]finlora data spool org/set --column text -o texts/set --online[/dim]
    """
    from ..errors import FinloraError, unknown

    serve = {
        "audit": ("--data", "--json", "--model", "--adapter", "--fresh"), "fetch": ("--accept-license",),
        "spool": ("--split", "--column", "--config", "--revision", "--limit"),
    }  # fmt: skip
    if what not in serve:
        raise unknown("step", what, serve, "finlora data")
    given = {
        "--data": dir, "--json": json, "--model": model, "--adapter": adapter, "--fresh": fresh, "--accept-license": accept,
        "--split": split != "train" and split, "--column": column != "text" and column, "--config": config, "--revision": revision, "--limit": limit,
    }  # fmt: skip
    for option, value in given.items():
        if value and option not in serve[what]:
            owner = next(step for step, options in serve.items() if option in options)
            raise FinloraError(f"{option} has no effect on `data {what}`", f"leave it out; it belongs to `data {owner}`")
    if (fresh or adapter) and not model:
        raise FinloraError(f"{'--fresh' if fresh else '--adapter'} needs --model", "name the model that is asked")
    if what == "fetch":
        return _fetch(name, out, online, accept)
    if what == "spool":
        return _spool(name, out, online, split, column, config, revision, limit)
    return _audit(name, dir, out, json, model, adapter, fresh, online)


def _fetch(name: str, out: str | None, online: bool, accept: bool) -> int:
    from .. import hub
    from ..errors import FinloraError
    from ..registry import pick

    task = pick("task", name)
    if not out:
        raise FinloraError("fetch needs --out DIR", "name the folder that receives the files")
    files = hub.fetch(task, out, online=online, accept=accept, tell=lambda line: typer.echo(line, err=True))
    typer.echo(f"{len(files)} files in {Path(out) / task.stem}; use them with --data {out}")
    return 0


def _spool(name: str, out: str | None, online: bool, split: str, column: str, config: str | None, revision: str | None, limit: int) -> int:
    from ..errors import FinloraError
    from ..shards import spool, streamed

    if not out:
        raise FinloraError("spool needs --out DIR", "name the folder that receives the text")
    found = streamed(name, split, config=config, revision=revision, column=column, online=online)
    which = [name, *(f"{key} {value}" for key, value in (("config", config), ("revision", revision)) if value), split, column]
    said = spool(found, out, ", ".join(which), most=limit)
    typer.echo(f"{said['documents']:,} documents in {len(said['files'])} files of {out}{'' if said['finished'] else ', the first of more'}; pretrain on them with data.text = [\"{out}\"]")
    return 0


def _audit(name: str, dir: str | None, out: str | None, json: bool, model: str | None, adapter: str | None, fresh: str | None, online: bool) -> int:
    from .. import audit, corpus

    texts = [d.text for d in corpus.documents([fresh])] if fresh else []
    opened = None
    if model:
        from ..model import open_model

        opened = open_model(model, adapter=adapter, online=online)
    seen = audit.look(name, dir, opened, fresh=texts)
    findings = [f for _, found in seen for f in found]
    if json:
        import json as js

        typer.echo(js.dumps([f.to_json() for f in findings], indent=1, ensure_ascii=False, default=str))
    else:
        for held, found in seen:
            sizes = ", ".join(f"{split} {len(items):,}" for split, items in held.splits.items())
            typer.echo(f"{held.name}: {sizes or 'no row could be read'}; {len(found)} findings")
            for f in found:
                typer.echo(f"  {f.severity}: {f.what.rpartition(' ')[2]}: {f.message}{f' ({f.where[0]})' if f.where else ''}")
                if f.advice and f.severity != "note":
                    typer.echo(f"    {f.advice}")
    if out:
        from ..audit.page import write

        typer.echo(f"page: {write(seen, out)}", err=json)
    return int(any(f.severity == "error" for f in findings))
