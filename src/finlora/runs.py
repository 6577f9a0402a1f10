"""A run's folder: what is in it, who may write to it, and when it is finished.

    spec.toml  log.jsonl  checkpoints/  adapter/ or model/  records/  receipt.json

The receipt is written last, so a folder with a receipt is a finished run.  A folder that holds another run, or anything
else of the user's, is never written to unless `run.overwrite` says so; and then only what a run makes is removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import checkpoint, locks, receipt
from . import spec as specs
from .errors import FinloraError

OURS = ("receipt.json", "log.jsonl", "checkpoints", "adapter", "model", "records", "fidelity.json", "tensorboard", "tokenizer", "spec.toml")  # removed in this order
BEGUN = {"spec.toml", "tokenizer"}  # all that a run which was refused on its way has left: another may take its place


def finished(spec: specs.Spec) -> dict[str, Any] | None:
    """The receipt of the run's folder if the same spec has finished there already, else None; nothing is written.

    Raises: FinloraError as begun.
    """
    if (clash := refusal(spec)) is not None:
        raise clash
    path = Path(spec.run.out) / "receipt.json"
    return receipt.read(path) if path.exists() and not spec.run.overwrite else None


@contextmanager
def begun(spec: specs.Spec) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """(the run's folder, its receipt if the same spec has finished there already); no other process works there meanwhile.

    Raises: FinloraError where the folder belongs to another run, holds something else, cannot be made, or another process is
    at work in it.
    """
    folder = Path(spec.run.out)
    clash = refusal(spec)
    if clash is not None:
        raise clash
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinloraError(f"run.out: cannot make `{folder}`: {error.strerror or error}", "name another folder") from error
    with ExitStack() as held:
        try:
            held.enter_context(locks.alone(folder))
        except locks.Busy:
            raise FinloraError(f"run.out: another process is at work in `{folder}`", "wait for it, or name another folder") from None
        yield _begin(spec, folder)


def _begin(spec: specs.Spec, folder: Path) -> tuple[Path, dict[str, Any] | None]:
    if spec.run.overwrite and not _restarted(spec, folder):
        for name in OURS:
            checkpoint.remove(folder / name)
    checkpoint.clear(folder)
    if (folder / "receipt.json").exists():
        return folder, receipt.read(folder / "receipt.json")
    if (folder / "spec.toml").exists() and not _same(folder, spec):
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    receipt.write_text(folder / "spec.toml", specs.dump(spec))
    receipt.code()
    return folder, None


def _restarted(spec: specs.Spec, folder: Path) -> bool:
    """Whether torchrun has started this very run again: what it overwrites it has overwritten then."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and _same(folder, spec)


def _same(folder: Path, spec: specs.Spec) -> bool:
    """Whether the folder's run is this spec's."""
    try:
        return specs.digest(specs.load_spec(folder / "spec.toml")) == specs.digest(spec)
    except FinloraError:
        return False


def _reads(spec: specs.Spec, folder: Path) -> FinloraError | None:
    """Why a run may not overwrite a folder out of which it reads, or None."""
    keys = ("model.name", "model.adapter", "model.tokenizer", "data.dir", "data.shards", "data.text", "data.tasks", "evaluate.tasks", "evaluate.text", "evaluate.encoder")
    named = [(key, getattr(getattr(spec, key.partition(".")[0]), key.partition(".")[2])) for key in keys]
    for key, name in [(key, one) for key, value in named for one in ([value] if isinstance(value, str) else value)]:
        path = Path(name).expanduser() if name else None
        if path is not None and path.exists() and any(path.resolve().is_relative_to((folder / ours).resolve()) for ours in OURS):
            return FinloraError(f"run.overwrite would remove `{name}`, which {key} asks for", "name another folder for the run")
    return None


def refusal(spec: specs.Spec) -> FinloraError | None:
    """Why the run's folder may not be written to, or None."""
    folder = Path(spec.run.out)
    if not folder.exists():
        return None
    if not folder.is_dir():
        return FinloraError(f"run.out: `{folder}` is a file", "name a folder")
    held = {p.name for p in folder.iterdir()} - {p.name for p in checkpoint.leftovers(folder)}
    foreign = sorted(held & set(OURS) if spec.run.overwrite else held)
    if foreign and not (folder / "spec.toml").exists():  # even an overwriting run would remove only what a run has made
        return FinloraError(f"run.out: `{folder}` holds files that are not a run's (`{foreign[0]}`)", "name an empty or new folder")
    if spec.run.overwrite:
        return _reads(spec, folder)
    if not held:
        return None
    if held <= BEGUN:
        return None
    if not _same(folder, spec):
        return FinloraError(f"run.out: `{folder}` holds another run, with a different spec", "name another folder, or set run.overwrite = true to replace it")
    if spec.run.resume == "never":
        return FinloraError(f"run.out: `{folder}` holds this run already and run.resume is `never`", "set run.overwrite = true to start afresh")
    return None
