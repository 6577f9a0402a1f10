"""What several commands share: the options' types, the specs they build, and the table of a receipt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from ..spec import Spec

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A TOML file, or the folder of an earlier run.")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value of the spec: --set method.rank=16. Repeatable.")]  # fmt: skip
DataDir = Annotated[Optional[str], typer.Option("--data", metavar="DIR", help="Folder of data files: FinLoRA's context/target jsonl, or the hub's columns.")]  # fmt: skip
Tasks = Annotated[Optional[list[str]], typer.Option("--task", "-t", metavar="NAME", help="A task of `finlora list tasks`. Repeatable.")]  # fmt: skip
Out = Annotated[Optional[str], typer.Option("--out", "-o", metavar="DIR", help="Folder that receives everything written.")]
ModelName = Annotated[Optional[str], typer.Option("--model", "-m", metavar="MODEL", help="finlora/base, a local Hugging Face folder, or with --online a hub id.")]  # fmt: skip
Adapter = Annotated[Optional[str], typer.Option("--adapter", "-a", metavar="DIR", help="Folder of a saved adapter (ours or PEFT's).")]
Codec = Annotated[Optional[str], typer.Option("--codec", metavar="KIND", help="How the base is kept: see `finlora list codecs`.")]
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


def show_receipt(folder: str | Path) -> None:
    """A table of the results in a run folder's receipt, and where things lie."""
    import json

    from rich.console import Console
    from rich.table import Table

    folder = Path(folder)
    path = folder / "receipt.json"
    if not path.is_file():
        return
    receipt = json.loads(path.read_text(encoding="utf-8"))
    console = Console(highlight=False)
    results = receipt.get("results") or {}
    if results:
        table = Table("task", "n", "accuracy", "macro F1", "unreadable", "majority", "naive Bayes", title=receipt.get("name") or folder.name, title_justify="left")
        for task, found in results.items():
            metrics, floors = found.get("metrics", {}), found.get("floors", {})
            table.add_row(task, f"{found.get('n', '')}", estimate(metrics.get("accuracy")), estimate(metrics.get("macro_f1")),
                          f"{found.get('unreadable', '')}", estimate(floors.get("majority")), estimate(floors.get("naive_bayes")))  # fmt: skip
        console.print(table)
    train = receipt.get("train") or {}
    if train.get("steps"):
        parts = [f"{train['steps']:,} steps"]
        parts += [f"loss {train['loss_first']:.3f} to {train['loss_last']:.3f}"] if train.get("loss_first") is not None and train.get("loss_last") is not None else []
        parts += [f"{train['seconds']:.1f} s"] if train.get("seconds") else []
        parts += [f"{train['tokens_per_s']:,.0f} tokens/s"] if train.get("tokens_per_s") else []
        parts += [f"peak {train['peak_bytes'] / 2**20:,.0f} MiB ({train.get('peak_how', '')})"] if train.get("peak_bytes") else []
        console.print("trained: " + ", ".join(parts), soft_wrap=True)
    for what in ("adapter", "model"):
        if (folder / what).is_dir():
            console.print(f"{what}: {folder / what}", soft_wrap=True)
    console.print(f"receipt: {path}", soft_wrap=True)


def estimate(found: Any) -> str:
    """`0.812 [0.78, 0.84]` of an estimate in a receipt; empty where there is none."""
    if not isinstance(found, dict) or found.get("value") is None:
        return ""
    if found.get("low") is None or found.get("high") is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} \\[{found['low']:.3f}, {found['high']:.3f}]"
