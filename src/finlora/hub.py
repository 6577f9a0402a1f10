"""Fetching a task's files from the hub, only when told to: the licence first, then the files, each checked.

    fetch(pick("task", "tfns"), "data", online=True, tell=print)      files under data/tfns/, where rows.py finds them

Nothing is asked of the network without `online`.  The licence is told before a byte arrives, and data that allow no
commercial use, or whose licence nobody states, need `accept`.  Files come from the pinned revision where the task names one, land whole or not at
all, and are compared with the digests that the task knows (`source.sha256`); a file that differs is removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import FinloraError
from .rows import ENDINGS
from .tasks import Task

_CLOSED = re.compile(r"\bNC\b|non-?commercial|unknown|not stated|none stated|research use", re.IGNORECASE)
REVISION = "main"  # where a task pins none; told, since it may change


def terms(task: Task) -> str:
    """The line about licence and source that is told before anything is fetched."""
    s = task.source
    limit = "; no commercial use" if closed(task) else ""
    pinned = s.revision or f"{REVISION}, not pinned"
    return f"{task.stem}: licence {s.licence or 'not stated'}{limit}; from hub {s.hub} at {pinned}"


def closed(task: Task) -> bool:
    """Whether the data allow no commercial use, by the task's word or its licence's, or state no licence."""
    return task.source.noncommercial or not task.source.licence or bool(_CLOSED.search(task.source.licence))


def fetch(
    task: Task,
    out: str | Path,
    *,
    online: bool = False,
    accept: bool = False,
    tell: Callable[[str], Any] = lambda line: None,
    listing: Callable[..., Sequence[str]] | None = None,
    download: Callable[..., str] | None = None,
) -> list[Path]:
    """Bring the task's files of rows to `out`/TASK/ and return their paths.

    tell: receives the licence and each file's line. listing, download: list_repo_files and hf_hub_download of
    huggingface_hub, by default.
    Raises: FinloraError without `online`, without `accept` where the licence wants it, for a task whose rows lie elsewhere, a
    file that exists, one that is not what its digest says, or a hub that does not answer.
    """
    s = task.source
    if s.package and not s.hub:
        raise FinloraError(f"the rows of task `{task.name}` ship with finlora", "there is nothing to fetch")
    if not s.hub:
        raise FinloraError(f"no place on the hub is known for task `{task.name}`", f"its files are at {s.url or s.finlora or 'its source'}; give the folder they lie in as data.dir")
    tell(terms(task))
    if not online:
        raise FinloraError("nothing is downloaded unless --online is given", "add --online, or get the files yourself from the source above")
    if closed(task) and not accept:
        raise FinloraError(f"the licence of `{task.stem}` ({s.licence or 'not stated'}) allows no commercial use, or nobody knows", "add --accept-license if you may use it")
    errors: tuple[type[Exception], ...] = (OSError, ValueError)
    if listing is None or download is None:
        listing, download, errors = _hub()
    where = {"repo_id": s.hub, "repo_type": "dataset", "revision": s.revision or REVISION}
    try:
        there = list(listing(**where))
    except errors as error:
        raise _no_answer(s.hub, error) from error
    wanted = _wanted(task, there)
    home = Path(out) / task.stem
    for name in wanted:
        if (home / name).exists() and not _same(home / name, _digest(task, name)):
            raise FinloraError(f"{home / name} exists", "name another folder, or remove it")
    done = []
    home.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if not (home / name).exists():
            with tempfile.TemporaryDirectory(dir=home) as part:
                try:
                    got = Path(download(**where, filename=name, local_dir=part))
                except errors as error:
                    raise _no_answer(f"{s.hub}/{name}", error) from error
                digest = _digest(task, name)
                if digest and not _same(got, digest):
                    raise FinloraError(f"{name} of {s.hub} has sha256 {_sha256(got)[:16]}..., not {digest[:16]}...", "the file is another than the one that was checked; tell who maintains the task")
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(got, got.with_name(got.name + ".whole"))
                os.replace(got.with_name(got.name + ".whole"), home / name)
        tell(f"{home / name}: {(home / name).stat().st_size:,} bytes, sha256 {_sha256(home / name)[:16]}{'' if _digest(task, name) else ' (no digest known)'}")
        done.append(home / name)
    return done


def _wanted(task: Task, there: Sequence[str]) -> list[str]:
    """Files of rows, those that the task names if the hub has any of them."""
    rows = []
    for name in sorted(there):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or any(p.startswith(".") for p in path.parts):
            continue
        if name.endswith(ENDINGS) and path.name not in ("dataset_infos.json", "dataset_info.json"):
            rows.append(name)
    known = {n for split in task.source.files for n in task.source.names(split)} | set(task.source.whole) | set(task.source.sha256)
    named = [n for n in rows if n in known or PurePosixPath(n).name in known]
    if not (named or rows):
        raise FinloraError(f"{task.source.hub} holds no file of rows: {', '.join(sorted(there)[:5]) or 'nothing'}", f"get it from {task.source.url or task.source.finlora or 'its source'}")
    return named or rows


def _digest(task: Task, name: str) -> str:
    return task.source.sha256.get(name) or task.source.sha256.get(PurePosixPath(name).name, "")


def _same(path: Path, digest: str) -> bool:
    return bool(digest) and _sha256(path) == digest.lower()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_answer(what: str, error: Exception) -> FinloraError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FinloraError(f"the hub did not give {what}: {first:.200}", "check the connection, and HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN")


def _hub() -> tuple[Callable[..., Sequence[str]], Callable[..., str], tuple[type[Exception], ...]]:
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise FinloraError("fetching needs the package huggingface_hub, which is not installed", "pip install huggingface_hub") from error
    try:
        from httpx import HTTPError
    except ImportError:
        HTTPError = HfHubHTTPError
    return HfApi().list_repo_files, hf_hub_download, (OSError, ValueError, HfHubHTTPError, HTTPError)
