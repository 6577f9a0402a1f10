"""One JSON file a run: what was asked, with which code, data and model, on which machine, and every number found.

A receipt is the only thing a report may read (with the records beside it), so it must never be half written: it goes to
a temporary file in the same folder, is forced to the disk, and then takes its name in one step. A reader sees the old
receipt or the new one. Quantities carry their unit in their key (`seconds`, `peak_bytes`) and how they were obtained
(`peak_how`). A number that is not finite is kept as null, because JSON has no word for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finlora.errors import FinloraError

SCHEMA = 1
KINDS = ("finetune", "evaluate", "pretrain", "bench")
PACKAGES = ("finlora", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn", "pyarrow")
OPTIONAL_PACKAGES = ("peft", "bitsandbytes", "lm-eval", "accelerate")
_SHAPES: dict[str, type] = {
    "spec": dict, "model": dict, "data": list, "versions": dict, "device": dict, "code": dict, "train": dict, "results": dict
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """A receipt and the file it came from; paths inside it are relative to that file's folder."""

    path: Path
    receipt: dict[str, Any]


def new(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt that knows its environment and awaits its numbers.

    Raises FinloraError for a kind that is not one of KINDS.
    """
    if kind not in KINDS:
        raise FinloraError(f"no receipt of kind `{kind}`", f"there are: {', '.join(KINDS)}")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "schema": SCHEMA,
        "kind": kind,
        "name": name,
        "created": now,
        "spec": plain(spec),
        "versions": versions(),
        "device": device(),
        "code": code(),
    }


def write(path: str | Path, receipt: Mapping[str, Any]) -> Path:
    """Writes a receipt so that `path` holds all of it or what it held before; returns the path.

    Raises FinloraError naming `path` where the disk is full, the folder cannot be written, or the receipt is not one.
    """
    path = Path(path)
    value = plain(receipt)
    _check(value, path)
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(path, text)


def write_text(path: str | Path, text: str) -> Path:
    """Atomic UTF-8 text: temporary file in the same folder, fsync, rename. Raises FinloraError naming `path`."""
    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid():08x}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise FinloraError(f"cannot write {path}: {why}", "free some space or choose another folder") from error
        raise
    return path


def read(path: str | Path) -> dict[str, Any]:
    """The receipt at `path` (a file, or a run folder that holds receipt.json).

    Raises FinloraError naming the path, and the line where the JSON breaks off.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "receipt.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FinloraError(f"no receipt at {path}", "name a run folder, or run `finlora finetune` first") from error
    except OSError as error:
        raise FinloraError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise FinloraError(f"{path}:{error.lineno}: not JSON: {error.msg}", "run it again to write it anew") from error
    except UnicodeDecodeError as error:
        raise FinloraError(f"{path}: not UTF-8 at byte {error.start}", "receipts are UTF-8 JSON") from error
    except (ValueError, RecursionError) as error:
        raise FinloraError(f"{path}: JSON that cannot be read: {error}", "run it again to write it anew") from error
    _check(value, path)
    return value


def find(dirs: str | Path | Iterable[str | Path]) -> tuple[list[Found], list[str]]:
    """All receipts (`receipt.json`, `*.receipt.json`) in and under the folders, and a warning for each broken one.

    The order is that of creation, then of the path, so that the same folders always make the same report.
    Raises FinloraError where a folder does not exist.
    """
    dirs = [dirs] if isinstance(dirs, str | Path) else list(dirs)
    paths: dict[Path, Path] = {}
    for folder in map(Path, dirs):
        if not folder.exists():
            raise FinloraError(f"no folder {folder}", "name a run folder or a folder of runs")
        hits = [folder] if folder.is_file() else [*folder.rglob("receipt.json"), *folder.rglob("*.receipt.json")]
        for hit in sorted(hits):
            paths.setdefault(hit.resolve(), hit)
    found, warnings = [], []
    for path in paths.values():
        try:
            found.append(Found(path, read(path)))
        except FinloraError as error:
            warnings.append(str(error))
    found.sort(key=lambda f: (str(f.receipt.get("created", "")), str(f.path)))
    return found, warnings


def versions() -> dict[str, str]:
    """Installed versions by package name, read from the package metadata: nothing is imported."""
    out = {"python": platform.python_version()}
    for name in (*PACKAGES, *OPTIONAL_PACKAGES):
        version = _version(name)
        if version is not None:
            out[name] = version
        elif name in PACKAGES:
            out[name] = "not installed"
    return out


def device() -> dict[str, Any]:
    """The machine: system, cpu, cores, cores_usable, ram_bytes, and gpu where torch is loaded already and sees one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "ram_bytes": _ram_bytes(),
        "gpu": None,
    }
    torch = sys.modules.get("torch")  # never imported for this: it costs seconds and this module serves light commands
    if torch is not None and torch.cuda.is_available():
        at = torch.cuda.current_device()
        out["gpu"] = torch.cuda.get_device_name(at)
        out["gpu_bytes"] = torch.cuda.get_device_properties(at).total_memory
        out["gpu_count"] = torch.cuda.device_count()
        out["cuda"] = torch.version.cuda
    return out


def code() -> dict[str, Any]:
    """version; commit (None outside a git checkout of this package); dirty: whether the package differs from it.

    As they were when this process first asked, which is when it began its first run: what it imported is that.
    """
    return dict(_code())


@functools.cache
def _code() -> dict[str, Any]:
    folder = Path(__file__).resolve().parent
    out: dict[str, Any] = {"version": _version("finlora"), "commit": None}
    # an installed copy may lie inside somebody else's checkout (.venv/): only a tracked file proves it is ours
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return out
    out["commit"] = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".")
    out["dirty"] = bool(changes) if changes is not None else None
    return out


def kept_loss(train: Mapping[str, Any], patience: int = 0) -> float | None:
    """The validation loss, in the run's nats a token, of the weights that it kept; None where it looked at none.

    train: a receipt's. patience: train.patience: with it a run goes back to its best look.
    """
    looks = train.get("val") or []
    kept = [value for step, value in looks if not patience or step == train.get("best_step")]
    return kept[-1] if kept else None


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, in hex. Raises FinloraError naming the path."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FinloraError(f"cannot read {path}: {error.strerror or error}") from error


def plain(value: Any) -> Any:
    """`value` in JSON's own types: dataclasses become objects, tuples lists, paths text, numbers that are not finite null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return plain(value.tolist())
    return str(value)


def _check(value: Any, path: Path) -> None:
    """Raises FinloraError where the value does not have a receipt's form."""
    if not isinstance(value, dict) or "schema" not in value:
        raise FinloraError(f"{path}: not a receipt (no `schema`)", "name a file that finlora wrote")
    if value["schema"] != SCHEMA:
        hint = f"this version reads schema {SCHEMA}; use the finlora that wrote it"
        raise FinloraError(f"{path}: schema {value['schema']!r} is unknown", hint)
    if value.get("kind") not in KINDS:
        raise FinloraError(f"{path}: kind {value.get('kind')!r} is unknown", f"there are: {', '.join(KINDS)}")
    if not isinstance(value.get("name"), str):
        raise FinloraError(f"{path}: `name` is {value.get('name')!r}, not text", "give the run a name")
    for key, shape in _SHAPES.items():
        if value.get(key) is not None and not isinstance(value[key], shape):
            raise FinloraError(f"{path}: `{key}` is not {'a list' if shape is list else 'an object'}")
    for task, result in (value.get("results") or {}).items():
        if not isinstance(result, dict):
            raise FinloraError(f"{path}: `results.{task}` is not an object")
        for name, estimate in (result.get("metrics") or {}).items():
            if not isinstance(estimate, dict) or "value" not in estimate:
                raise FinloraError(f"{path}: `results.{task}.metrics.{name}` is no estimate", "it needs a `value`")


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlive a power cut; systems that cannot sync a folder are left as they are."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return getattr(sys.modules.get(name), "__version__", None)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
