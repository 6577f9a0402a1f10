"""finlora list methods|codecs|structures|optimizers|decompositions|tasks"""

from __future__ import annotations

from typing import Annotated, Any

import typer


def command(
    family: Annotated[
        str, typer.Argument(metavar="methods|codecs|structures|optimizers|decompositions|tasks", help="What to list.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="As JSON: a list of objects, each with `name`.")] = False,
) -> None:
    """Show what there is: methods, codecs, structures, optimizers, decompositions or tasks.

    [dim]finlora list codecs[/dim]
    """
    rows = members(family)
    if json:
        import json as js

        typer.echo(js.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold cyan")
    table.add_column()
    for row in rows:
        facts = (
            f"{_WORDS.get(key, key.replace('_', ' '))}: {_shown(value)}"
            for key, value in row.items()
            if key not in ("name", "about", "kind", *_JSON_ONLY) and value not in ("", {}, [])
        )
        table.add_row(row["name"], Text.assemble(row["about"], ("\n" + ", ".join(facts), "dim")))
    if family.removesuffix("s") == "method":
        table.add_row("peft:NAME", Text("a tuner of the package peft, trained by our loop as a baseline: peft:oft, peft:loha ..."))
    Console(highlight=False).print(table)


def members(family: str) -> list[dict[str, Any]]:
    """One object a member: name, a line about it, and what tells it from its kin.

    Raises: FinloraError for a family that is none.
    """
    from .. import registry
    from ..errors import unknown

    kind = family.removesuffix("s")
    if kind not in registry.FAMILIES:
        raise unknown("list", family, ["methods", "codecs", "structures", "optimizers", "decompositions", "tasks"])
    out = []
    for name in registry.names(kind):
        record = registry.pick(kind, name)
        out.append({"name": name, "about": _about(kind, name), **_FACTS[kind](record)})
        if kind == "task":
            import sys

            folder, _ = registry.FAMILIES[kind]
            variants = getattr(sys.modules[f"finlora.{folder}.{name}"], "VARIANTS", {})
            out += [
                {
                    "name": f"{name}@{variant}",
                    "about": getattr(task, "errata", "") or _about(kind, name),
                    **_FACTS[kind](task),
                }
                for variant, task in sorted(variants.items())
            ]
    return out


def _about(kind: str, name: str) -> str:
    """The first sentence of the member's module docstring."""
    import re
    import sys

    from ..registry import FAMILIES

    first = (sys.modules[f"finlora.{FAMILIES[kind][0]}.{name}"].__doc__ or "").split("\n\n")[0]
    words = re.sub(
        r" \((?=[^()]*(?:\d{4}|et al))[^()]*\)", "", " ".join(first.split())
    )  # without citations, whose full stops end no sentence
    return re.split(r"(?<=\w)\. ", words)[0].rstrip(".")


def _options(config: type) -> dict[str, Any]:
    import dataclasses

    return {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}


def _method(record: Any) -> dict[str, Any]:
    from ..traits import traits

    found = traits(record)
    return {
        "paper": record.paper,
        "adapter": not record.trains_base,
        "export": found.export,
        "to_lora": record.to_lora is not None,
        "over": record.over if not record.trains_base else "lossless",
        "needs": [*record.needs(record.config())],
        "extra_state": [*found.params],
        "refreshes": record.refresh is not None,
        "options": _options(record.config),
    }


def _codec(record: Any) -> dict[str, Any]:
    import torch

    bits = record.bits(record.config(), (1024, 1024), torch.float32)
    return {
        "paper": record.paper,
        "bits_per_weight": round(bits, 4),
        "lossless": record.lossless,
        "needs": [*record.needs(record.config())],
        "options": _options(record.config),
    }


def _structure(record: Any) -> dict[str, Any]:
    return {
        "paper": record.paper,
        "linear": record.dense is not None,
        "fits": record.fit is not None,
        "factors": record.chain is not None,
        "refreshes": record.refresh is not None,
        "tends": record.tend is not None,
        "options": _options(record.config),
    }


def _decomposition(record: Any) -> dict[str, Any]:
    return {"paper": record.paper, "needs": [*record.needs], "options": _options(record.config)}


def _optimizer(record: Any) -> dict[str, Any]:
    return {
        "paper": record.paper,
        "paired": record.paired,
        "invariant": record.invariant,
        "options": _options(record.config),
    }


def _task(record: Any) -> dict[str, Any]:
    source = record.source
    return {
        "kind": record.kind,
        "group": record.group,
        "labels": [*record.labels],
        "way": record.way,
        "metric": record.metric,
        "source": {k: v for k, v in (("hub", source.hub), ("revision", source.revision), ("url", source.url), ("finlora", source.finlora), ("package", source.package)) if v},
        "files": {split: [*source.names(split)] for split in source.files},
        "sha256": dict(source.sha256),
        "rows": {**{split: n for split, (_, _, n) in record.majority.items()}, **source.rows},
        "licence": source.licence,
        "noncommercial": source.noncommercial,
        "floor": {split: {"answer": label, "accuracy": round(share, 4)} for split, (label, share, _) in record.majority.items()},
        "errata": record.errata,
    }


_JSON_ONLY = ("source", "files", "sha256", "floor", "noncommercial")  # too long for a table
_FACTS = {"method": _method, "codec": _codec, "structure": _structure, "decomposition": _decomposition, "optimizer": _optimizer, "task": _task}
_WORDS = {"paired": "for low-rank pairs", "invariant": "independent of the factoring"}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "/".join(map(str, value))
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
