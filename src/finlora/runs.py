"""A run's folder: what is in it, who may write to it, and when it is finished.

    spec.toml  log.jsonl  checkpoints/  adapter/ or model/  records/  receipt.json

The receipt is written last, so a folder with a receipt is a finished run.  A folder that holds another run, or anything
else of the user's, is never written to unless `run.overwrite` says so; and then only what a run makes is removed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from . import receipt
from . import spec as specs
from .errors import FinloraError

OURS = ("spec.toml", "log.jsonl", "checkpoints", "adapter", "model", "records", "receipt.json", "fidelity.json", "tensorboard", "tokenizer")
BEGUN = {"spec.toml", "tokenizer"}  # all that a run which was refused on its way has left: another may take its place


def finished(spec: specs.Spec) -> dict[str, Any] | None:
    """The receipt of the run's folder if the same spec has finished there already, else None; nothing is written.

    Raises: FinloraError as begin.
    """
    if (clash := refusal(spec)) is not None:
        raise clash
    path = Path(spec.run.out) / "receipt.json"
    return receipt.read(path) if path.exists() and not spec.run.overwrite else None


def begin(spec: specs.Spec) -> tuple[Path, dict[str, Any] | None]:
    """(the run's folder, its receipt if the same spec has finished there already).

    Raises: FinloraError where the folder belongs to another run or holds something else.
    """
    folder = Path(spec.run.out)
    clash = refusal(spec)
    if clash is not None:
        raise clash
    if folder.exists() and spec.run.overwrite:
        for name in OURS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for leftover in [*folder.glob(".*.part"), *folder.glob(".*.old")]:  # of a write that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    if (folder / "receipt.json").exists():
        return folder, receipt.read(folder / "receipt.json")
    if (folder / "spec.toml").exists() and not _same(folder, spec):
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    receipt.write_text(folder / "spec.toml", specs.dump(spec))
    receipt.code()
    return folder, None


def _same(folder: Path, spec: specs.Spec) -> bool:
    """Whether the folder's run is this spec's."""
    try:
        return specs.digest(specs.load_spec(folder / "spec.toml")) == specs.digest(spec)
    except FinloraError:
        return False


def refusal(spec: specs.Spec) -> FinloraError | None:
    """Why the run's folder may not be written to, or None."""
    folder = Path(spec.run.out)
    if not folder.exists():
        return None
    if not folder.is_dir():
        return FinloraError(f"run.out: `{folder}` is a file", "name a folder")
    held = {p.name for p in folder.iterdir() if not p.name.endswith((".part", ".old"))}
    if not held or spec.run.overwrite:
        return None
    if not (folder / "spec.toml").exists():
        return FinloraError(f"run.out: `{folder}` holds files that are not a run's (`{sorted(held)[0]}`)", "name an empty or new folder")
    if held <= BEGUN:
        return None
    if not _same(folder, spec):
        return FinloraError(f"run.out: `{folder}` holds another run, with a different spec", "name another folder, or set run.overwrite = true to replace it")
    if spec.run.resume == "never":
        return FinloraError(f"run.out: `{folder}` holds this run already and run.resume is `never`", "set run.overwrite = true to start afresh")
    return None
