"""What several commands share: the options' types, the specs they build, and the table of a receipt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..spec import Spec
    from .progress import Progress

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A TOML file, or the folder of an earlier run.")]
Sets = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value of the spec (of a study: of its [base]): --set method.rank=16. Repeatable.")]  # fmt: skip
DataDir = Annotated[str | None, typer.Option("--data", metavar="DIR", help="Folder of data files: FinLoRA's context/target jsonl, or the hub's columns; by default the sets that ship.")]  # fmt: skip
Tasks = Annotated[list[str] | None, typer.Option("--task", "-t", metavar="NAME", help="A task of `finlora list tasks`, or a TOML file of your own. Repeatable.")]  # fmt: skip
Out = Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder that receives everything written; by default one under runs/.")]
ModelName = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="finlora/base (default), a local Hugging Face folder, or with --online a hub id.")]  # fmt: skip
Adapter = Annotated[
    str | None, typer.Option("--adapter", "-a", metavar="DIR", help="Folder of a saved adapter (ours or PEFT's); none by default.")
]
Codec = Annotated[
    str | None, typer.Option("--codec", metavar="KIND", help="How the base is kept: see `finlora list codecs`; by default as the adapter was trained, else none.")
]
NAME = 28  # characters of a run's name in a table
Online = Annotated[bool, typer.Option("--online", help="Allow downloads from the hub.")]


def with_flags(spec: Spec, **flags: Any) -> Spec:
    """The spec with flags that were given: `with_flags(spec, run__out="runs/a")` sets run.out; None changes nothing."""
    from ..spec import replace

    changes: dict[str, dict[str, Any]] = {}
    for name, value in flags.items():
        section, _, key = name.partition("__")
        if value is not None and value != []:
            changes.setdefault(section, {})[key] = value
    return replace(spec, **changes) if changes else spec


def as_trained(spec: Spec) -> Spec:
    """The spec with the codec its adapter was trained over, for a user who named none."""
    from ..adapters import trained_over
    from ..spec import replace

    folder = Path(spec.model.adapter).expanduser()
    if not spec.model.adapter or not (folder / "adapter_config.json").is_file():
        return spec  # no adapter: `check` says so, together with whatever else is wrong
    return replace(spec, codec=trained_over(folder))


def refuse(problems: list[Any]) -> None:
    """Raise all problems at once, if there are any."""
    from ..errors import Problems

    if problems:
        raise Problems(problems)


def advise(spec: Spec) -> None:
    """Print what is not wrong but seldom wise."""
    from ..check import advice

    for text in advice(spec):
        typer.echo(f"note: {text}", err=True)


@contextlib.contextmanager
def live() -> Iterator[Progress]:
    """The live display for a verb that trains; a run that saved and stopped on Ctrl-C ends as an interrupted command."""
    from ..train import Interrupted
    from .progress import Progress

    try:
        with Progress() as progress:
            yield progress
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop.message}; {stop.hint}") from stop


def show_receipt(folder: str | Path) -> None:
    """The results in a run folder's receipt, what they cost, and where things lie."""
    import json

    folder = Path(folder)
    path = folder / "receipt.json"
    if not path.is_file():
        return
    receipt = json.loads(path.read_text(encoding="utf-8"))
    if receipt.get("results"):
        show_runs([path])
        lost = {task: found.get("unreadable") for task, found in receipt["results"].items() if found.get("unreadable")}
        for task, count in lost.items():
            typer.echo(
                f"{task}: {count} of {receipt['results'][task]['n']} answers could not be read and count as wrong"
            )
    train = receipt.get("train") or {}
    if train.get("steps"):
        parts = [f"{train['steps']:,} steps"]
        parts += (
            [f"loss {train['loss_first']:.3f} to {train['loss_last']:.3f}"]
            if train.get("loss_first") is not None and train.get("loss_last") is not None
            else []
        )
        parts += [f"{train['seconds']:.1f} s"] if train.get("seconds") else []
        parts += [f"{train['tokens_per_s']:,.0f} tokens/s"] if train.get("tokens_per_s") else []
        parts += (
            [f"peak {train['peak_bytes'] / 1e6:,.0f} MB ({train.get('peak_how', '')})"]
            if train.get("peak_bytes")
            else []
        )
        typer.echo("trained: " + ", ".join(parts))
    for what in ("adapter", "model"):
        if (folder / what).is_dir():
            typer.echo(f"{what}: {folder / what}")
    typer.echo(f"receipt: {path}")


def show_runs(paths: list[Path]) -> None:
    """One row a run, of every receipt in and under the folders; a table wider than the terminal is cut into several."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .. import receipt
    from ..report import tables

    found, warnings = receipt.find(paths)
    for text in warnings:
        typer.echo(f"note: {text}", err=True)
    header, rows = tables.terminal_rows(found)
    rows = [[row[0] if len(row[0]) <= NAME else row[0][: NAME - 1] + "…", *row[1:]] for row in rows]
    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no edge
        console = Console(highlight=False, width=1000)
    for k, part in enumerate(_parts(header, rows, console.width)):
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for at in part:
            table.add_column(
                Text(header[at]),
                no_wrap=True,
                style="cyan" if at == 0 else None,
                justify="left" if at == 0 else "right",
            )
        for row in rows:
            table.add_row(*(Text(row[at]) for at in part))
        if k:
            console.print()
        console.print(table)


def _parts(header: list[str], rows: list[list[str]], width: int) -> list[list[int]]:
    """Column numbers of each table: the first column and as many others as fit the width."""
    sizes = [max(len(cell) for cell in column) + 2 for column in zip(header, *rows)]
    parts, used = [[0]], sizes[0]
    for at, size in enumerate(sizes[1:], 1):
        if used + size > width and len(parts[-1]) > 1:
            parts.append([0])
            used = sizes[0]
        parts[-1].append(at)
        used += size
    return parts
