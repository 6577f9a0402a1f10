"""The main job on what the package itself ships: grade the embedded base, tune it four ways, compare, report.

Every run is an ordinary `finetune` of an ordinary spec, kept under OUT/<name>/spec.toml to be changed and run again.  One
learning rate for full fine-tuning and one for the adapters, found on the validation split (LOG.md); all runs see the same
examples in the same order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import spec as specs
from .errors import FinloraError

TASKS = ("tone", "guidance")
GRADED = (*TASKS, "filings")  # real figures, which a base of this size does not learn to look up: graded, not trained on
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {"method": {"kind": "full"}, "train": {"lr": 1e-3}},
    "lora": {"method": {"kind": "lora", "rank": 16, "alpha": 32.0}},
    "lora-int8": {"method": {"kind": "lora", "rank": 16, "alpha": 32.0}, "codec": {"kind": "int8"}},
    "lora-nf4": {"method": {"kind": "lora", "rank": 16, "alpha": 32.0}, "codec": {"kind": "nf4"}},
}
COMMON: dict[str, dict[str, Any]] = {
    "data": {"tasks": list(TASKS), "validation": 0.05},
    "train": {"steps": 120, "batch": 32, "lr": 3e-3, "schedule": "linear", "warmup": 0.1, "validate_every": 60},
    "evaluate": {"tasks": list(GRADED), "max_new": 6},
}


def plan(out: str | Path, fast: bool = False) -> dict[str, specs.Spec]:
    """The specs that quickstart runs, by name."""
    made = {}
    for name, own in RUNS.items():
        table = {section: {**COMMON.get(section, {}), **own.get(section, {})} for section in {*COMMON, *own}}
        table["run"] = {"out": str(Path(out) / name), "seed": 0}
        if fast:
            table["train"] = {**table["train"], "steps": 4, "validate_every": 4}
            table["evaluate"] = {**table["evaluate"], "limit": 24}
        made[name] = specs.spec_from_dict(table)
    return made


def run(out: str | Path = "runs/quickstart", fast: bool = False, progress: Any = None) -> Path:
    """Do it all under `out`; returns the path of the HTML report.

    Runs that have finished there are kept, so a second call only makes the report again.
    Raises: FinloraError where `out` holds runs of other specs.
    """
    from . import evaluate, report, runs, tune
    from .model import BASE

    out, wanted = Path(out), plan(out, fast)
    clashes = [clash for spec in wanted.values() if (clash := runs.refusal(spec)) is not None]
    if clashes:
        raise FinloraError(f"`{out}` holds runs of another quickstart", f"name another folder with --out, or remove {out}")
    if progress:
        progress.note(f"1 of {len(wanted) + 1}: the base model as it is, on {', '.join(GRADED)}")
    settings = COMMON["evaluate"]
    evaluate.run(BASE, GRADED, out=out / "base", max_new=settings["max_new"], limit=24 if fast else 0, progress=progress)
    for k, (name, spec) in enumerate(wanted.items(), 2):
        if progress:
            progress.note(f"{k} of {len(wanted) + 1}: {name}")
        tune.finetune(spec, progress=progress)
    return report.build([out], out / "report")
