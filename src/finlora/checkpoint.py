"""Checkpoints: safetensors and a manifest, written whole or not at all, verified when read.

A checkpoint is a folder.  It is written beside its place under a temporary name, flushed to disk, and renamed; the
manifest holds the sha256 of each file, so that a torn or altered one is never resumed from.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .errors import FinloraError

MANIFEST = "manifest.json"
STEP = re.compile(r"step-\d{8,}")
OURS = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(part|old)")  # what a killed write leaves; other hidden names are the user's


def atomic_folder(folder: Path, write: Callable[[Path], None], replace: bool = False) -> Path:
    """Make `folder` by calling `write(temporary)` and renaming: it appears complete or not at all.

    Raises: FinloraError when the disk is full or not writable; nothing is left behind and an existing folder is untouched.
    """
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
            _put_back(old)
        temporary.mkdir()
        write(temporary)
        mode = temporary.stat().st_mode & 0o666  # what the user's umask leaves; safetensors gives its files to their owner alone
        for file in [*temporary.rglob("*"), temporary]:
            if file.is_file():
                file.chmod(mode)
            _sync(file)
        old = None
        if folder.exists():
            if not replace:
                raise FinloraError(f"`{folder}` exists already", "name another folder, or ask for it to be overwritten")
            old = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
            os.rename(folder, old)
        try:
            os.rename(temporary, folder)
        except OSError:
            if old is not None:
                os.rename(old, folder)
            raise
        _sync(folder.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # safetensors raises its own kind for a failed write
        raise FinloraError(f"cannot write `{folder}`: {_first_line(error)}", "free some disk space or choose another folder, then run again") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise FinloraError(f"cannot write `{folder}`: {_first_line(error)}", "free some disk space or choose another folder, then run again") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def save(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], meta: dict[str, Any]) -> Path:
    """Write groups of named tensors and a JSON value as one checkpoint."""

    def write(temporary: Path) -> None:
        digests = {}
        for group, named in tensors.items():
            file = temporary / f"{group}.safetensors"
            save_file({k: v.detach().contiguous().cpu() for k, v in named.items()}, file)
            digests[file.name] = digest(file)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        digests["meta.json"] = digest(temporary / "meta.json")
        (temporary / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")

    return atomic_folder(Path(folder), write, replace=True)


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read what `save` wrote, after checking every file against the manifest.

    Raises: FinloraError naming the file that is missing or altered.
    """
    folder = Path(folder)
    try:
        manifest = _manifest(folder)
    except (OSError, ValueError) as error:
        raise FinloraError(f"`{folder}` is not a checkpoint: {_first_line(error)}", "remove the folder and resume from the one before") from error
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, wanted in manifest.items():
        file = folder / Path(name).name
        if not file.is_file() or digest(file) != wanted:
            raise FinloraError(f"checkpoint file `{file}` is missing or altered", "remove the checkpoint's folder and resume from the one before")
        if file.suffix == ".safetensors":
            tensors[file.stem] = read_tensors(file)
    return tensors, json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def latest(root: Path) -> Path | None:
    """The newest sound checkpoint under `root` (folders step-NNNNNNNN); unsound ones are passed over."""
    for folder in reversed(_steps(Path(root))):
        try:
            manifest = _manifest(folder)
            if all(digest(folder / Path(name).name) == wanted for name, wanted in manifest.items()):
                return folder
        except (OSError, ValueError):
            continue
    return None


def tidy(last: Path, keep: int, spare: set[str] = frozenset()) -> None:
    """Beside the checkpoint `last`, just written, drop all but the newest `keep` and those named in `spare`, and whatever a killed write left.

    Later ones go too: they were unsound, or the run would have gone on from there.
    """
    last = Path(last)
    root = last.parent
    there = _steps(root)
    kept = there[: there.index(last) + 1][-keep:]
    for folder in there:
        if folder not in kept and folder.name not in spare:
            shutil.rmtree(folder, ignore_errors=True)
    clear(root)


def _steps(root: Path) -> list[Path]:
    """The checkpoints' folders, oldest first; other names are the user's."""
    return sorted((p for p in root.glob("step-*") if STEP.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def clear(root: Path) -> None:
    """Take away what killed writes have left in `root`; a folder that was just being replaced is put back."""
    for leftover in leftovers(root):
        _put_back(leftover)
    for leftover in leftovers(root):
        remove(leftover)


def leftovers(root: Path) -> list[Path]:
    """What killed writes have left in a folder; none where there is no folder."""
    return [p for p in root.iterdir() if OURS.fullmatch(p.name)] if root.is_dir() else []


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link and nothing behind it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _put_back(old: Path) -> None:
    """Give a folder its name back, if nothing has taken it: the process died between the two renames."""
    found = OURS.fullmatch(old.name)
    if found and found[2] == "old" and not (old.parent / found[1]).exists():
        with contextlib.suppress(OSError):
            os.rename(old, old.parent / found[1])


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.  Raises FinloraError where it is not one."""
    try:
        with safe_open(file, framework="pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}
    except Exception as error:
        raise FinloraError(f"`{file}` is not a readable safetensors file: {_first_line(error)}", "save it again") from error


def digest(file: Path) -> str:
    """sha256 of a file, hexadecimal."""
    h = hashlib.sha256()
    with open(file, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def _manifest(folder: Path) -> dict[str, str]:
    """{file: sha256}.  Raises OSError or ValueError where there is no whole one."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or "meta.json" not in manifest:
        raise ValueError(f"{MANIFEST} is not a checkpoint's")
    return manifest


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
