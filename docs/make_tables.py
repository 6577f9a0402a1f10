"""Writes docs/codecs.md, docs/methods.md, docs/structures.md and docs/tasks.md from the registry: python docs/make_tables.py

Nothing in the tables is typed by hand. Bits and options are what the code says, errors are computed here with fixed seeds,
speeds are read from results/cpu/codecs.json (bench/codecs.py writes it) and left out where it lacks a codec.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from finlora.cli.list import members
from finlora.codecs._choices import choices
from finlora.linear import Stats
from finlora.registry import names, pick

HERE = Path(__file__).parent
SPEEDS = HERE.parent / "results" / "cpu" / "codecs.json"
LAYER = (4096, 4096)  # whose bits are shown
SAMPLE = (512, 1024)  # whose error is measured
CODECS = """# Codecs

How frozen weights are kept. Written by `python docs/make_tables.py` from the code: do not edit.

- **bits**: a weight of {layer[0]} x {layer[1]}, with all scales and zeros, measured against the stored bytes by a law.
- **error**: |W' - W| / |W| (Frobenius) of {sample[0]} x {sample[1]} random weights of standard deviation 1/32: Gaussian, and
  Student's t with 5 degrees of freedom, whose tails are long.
- **needs**: what calibration must have measured before encoding.
- **Mweights/s**: encoding and decoding on two CPU cores, float32 (`bench/codecs.py`; those that bitsandbytes has at 4096 x 4096, the
  others at 1024 x 4096).

"""
METHODS = """# Methods

How a frozen base is adapted. Written by `python docs/make_tables.py` from `finlora list methods`: do not edit.

"""


TASKS = """# Tasks

What a model can be trained and graded on. Written by `python docs/make_tables.py` from `finlora list tasks`: do not edit.

`name@finlora` reads the same rows as FinLoRA (arXiv 2505.19819) published them, for comparison with its numbers alone. Rows are read from
your copy of the files (`data.dir`); nothing but the shipped tasks comes with the package. **NC**: the licence, or the want of one,
allows no commercial use. The errata are told in full in the task's own file and in [errata.md](errata.md).

"""


STRUCTURES = """# Structures, optimisers, decompositions

What stands in the place of a linear when a model is trained from scratch, what turns its gradients into steps, and how the linears of a
trained model become narrow ones. Written by `python docs/make_tables.py` from `finlora list`: do not edit. How to use them:
[pretraining.md](pretraining.md).

## Structures

- **linear**: one weight gives the same map, so the model can be written dense for tools that know no structures.
- **fits**: it can take over a trained weight. **factors**: it is two linears, each of which can have adapters of its own.

"""


def gaussian() -> torch.Tensor:
    """W_OI, standard deviation 1/32."""
    return torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0)) / 32


def student() -> torch.Tensor:
    """W_OI of Student's t with 5 degrees of freedom."""
    generator = torch.Generator().manual_seed(0)
    normal, chi = torch.randn(SAMPLE, generator=generator), torch.randn(5, *SAMPLE, generator=generator)
    return normal / (chi.square().sum(0) / 5).sqrt() / 32


def error(record: Any, cfg: Any, W: torch.Tensor) -> float:
    """Relative Frobenius error of a codec; calibration, where it is asked for, saw inputs that are all alike."""
    stats = Stats(moment_II=torch.eye(W.shape[1])) if record.needs(cfg) else None
    back = record.decode(cfg, record.encode(cfg, W, stats), tuple(W.shape), torch.float32)
    return float((back - W).norm() / W.norm())


def options(config: type) -> str:
    """`group = 64 (32, 128)`: each option, its default, its other values."""
    known, shown = choices(config), []
    for field in dataclasses.fields(config):
        others = ", ".join(str(value) for value in known.get(field.name, ()) if value != field.default)
        shown.append(f"{field.name} = {field.default}" + f" ({others})" * bool(others))
    return "; ".join(shown)


def variants(record: Any) -> Iterator[tuple[str, Any]]:
    """(`group = 32`, config) of each value of each listed option that is not the default."""
    default = record.config()
    for name, values in choices(record.config).items():
        for value in values:
            if value != getattr(default, name):
                yield f"{name} = {value}", record.config(**{name: value})


def needed(record: Any) -> str:
    """What `needs` asks for, and under which option."""
    asked = [*record.needs(record.config())]
    return ", ".join(asked + [f"{key} under {how}" for how, cfg in variants(record) for key in record.needs(cfg)])


def figures(record: Any, cfg: Any) -> dict[str, str]:
    """Bits and errors of one codec under one config."""
    return {
        "bits": f"{record.bits(cfg, LAYER):.3f}",
        "error, Gaussian": f"{error(record, cfg, gaussian()):.4f}",
        "error, Student-t": f"{error(record, cfg, student()):.4f}",
    }


def measured() -> dict[str, dict[str, float]]:
    """{codec: {"encode", "decode": million weights a second}} of float32 matrices, the smallest one that was timed."""
    out: dict[str, dict[str, float]] = {}
    cases = json.loads(SPEEDS.read_text(encoding="utf-8"))["bench"]["cases"] if SPEEDS.exists() else []
    for case in cases:
        if case["what"] in ("encode", "decode") and case["dtype"] == "float32":
            out.setdefault(case["codec"], {}).setdefault(case["what"], case["weights"] / case["ours_seconds"]["median"] / 1e6)
    return out


def codec_rows() -> list[dict[str, str]]:
    """One row a codec, by bits."""
    speeds = measured()
    about = {row["name"]: row["about"] for row in members("codecs")}
    rows = []
    for name in names("codec"):
        record = pick("codec", name)
        speed = {} if record.lossless else speeds.get(name, {})
        rows.append(
            {
                "codec": f"`{name}`",
                "about": about[name],
                "source": source(record.paper),
                **figures(record, record.config()),
                "lossless": "yes" if record.lossless else "",
                "needs": needed(record),
                "options": options(record.config),
                "encode Mweights/s": number(speed.get("encode")),
                "decode Mweights/s": number(speed.get("decode")),
            }
        )
    return sorted(rows, key=lambda row: (-float(row["bits"]), row["codec"]))


def variant_rows() -> list[dict[str, str]]:
    """One row a codec and option."""
    records = [pick("codec", name) for name in names("codec")]
    return [
        {"codec": f"`{record.name}`", "option": how, **figures(record, cfg)}
        for record, (how, cfg) in itertools.chain.from_iterable(((r, v) for v in variants(r)) for r in records)
    ]


def method_rows() -> list[dict[str, str]]:
    """One row a method; the columns are whatever `finlora list methods` tells."""
    return [
        {
            ("method" if key == "name" else key): f"`{value}`" if key == "name" else cell(value)
            for key, value in row.items()
        }
        for row in members("methods")
    ]


def task_rows(group: str) -> list[dict[str, str]]:
    """One row a task (and variant) of a group."""
    return [
        {
            "task": f"`{row['name']}`",
            "about": row["about"] if "@" not in row["name"] else "",
            "kind": row["kind"],
            "metric": row["metric"].replace("_", " "),
            "labels": _few(row["labels"]),
            "rows": cell(row["rows"]).replace("=", ""),
            "floor": "; ".join(f"{split} {100 * f['accuracy']:.2f} (always {f['answer']:.40})" for split, f in row["floor"].items()),
            "hub": row["source"].get("hub", ""),
            "licence": row["licence"] + " **NC**" * row["noncommercial"],
            "errata": row["errata"],
        }
        for row in members("tasks")
        if row["group"] == group
    ]


def _few(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) <= 9 else f"{len(labels)} labels"


def source(paper: str) -> str:
    """A link where it is an arXiv number."""
    return f"[{paper}](https://arxiv.org/abs/{paper})" if paper[:4].isdigit() else paper


def number(value: float | None) -> str:
    """Two digits or more, or nothing."""
    return "" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def cell(value: Any) -> str:
    """A value of `finlora list` as text."""
    if isinstance(value, dict):
        return "; ".join(f"{key} = {inner}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return ("", "yes")[value] if isinstance(value, bool) else str(value)


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table; columns that are empty throughout are left out."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if any(row.get(key) for row in rows)]
    lines = [keys, ["---"] * len(keys), *([row.get(key, "").replace("|", "\\|") for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def codecs_page() -> str:
    """docs/codecs.md."""
    intro = CODECS.format(layer=LAYER, sample=SAMPLE)
    return f"{intro}{table(codec_rows())}\n## Under other options\n\n{table(variant_rows())}"


def methods_page() -> str:
    """docs/methods.md."""
    return METHODS + table(method_rows())


def family_rows(family: str) -> list[dict[str, str]]:
    """One row a member of a family; the columns are whatever `finlora list` tells."""
    return [
        {(family if key == "name" else key): f"`{value}`" if key == "name" else source(value) if key == "paper" else cell(value) for key, value in row.items()}
        for row in members(f"{family}s")
    ]


def structures_page() -> str:
    """docs/structures.md."""
    return (
        STRUCTURES + table(family_rows("structure")) + "\n## Optimisers\n\n" + table(family_rows("optimizer"))
        + "\n## Decompositions\n\n" + table(family_rows("decomposition"))
    )  # fmt: skip


def tasks_page() -> str:
    """docs/tasks.md."""
    groups = dict.fromkeys(row["group"] for row in sorted(members("tasks"), key=lambda row: row["group"]))
    return TASKS + "\n".join(f"## {group.capitalize()}\n\n{table(task_rows(group))}" for group in groups)


def main(folder: Path) -> None:
    """Write the pages into `folder`."""
    (folder / "codecs.md").write_text(codecs_page(), encoding="utf-8")
    (folder / "methods.md").write_text(methods_page(), encoding="utf-8")
    (folder / "structures.md").write_text(structures_page(), encoding="utf-8")
    (folder / "tasks.md").write_text(tasks_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
