"""`finlora xbrl build`: filings become task files, split by company, with proof that the facts decide.

    build(paths, out)     writes xbrl_{tag,value,formula,calc}_{train,test}.jsonl and manifest.json into `out`

Every row is answered again from its prompt by rule (attack.solve); what is not answered, or not as the row says, is left out
and counted.  The manifest tells sources with their digests, counts, what was left out, and what each attack that never
sees the facts reaches on the test, beside chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import FinloraError, Problems, unknown
from .attack import attack, solve
from .companyfacts import read_company
from .facts import Filing, read_filing
from .items import KINDS, SHOWN, make

MANIFEST = "manifest.json"
PER_FILING = 100


def build(
    paths: Iterable[str | Path],
    out: str | Path,
    tasks: Sequence[str] = KINDS,
    seed: int = 0,
    packages: str | Path | None = None,
    test_share: float = 0.3,
    per_filing: int = PER_FILING,
    facts: int = SHOWN,
) -> dict[str, Any]:
    """The manifest of the task files written into `out`.

    tasks: of items.KINDS. test_share: of the companies; 0 or 1 sends all to one side, and so does a single company (to test
    where the share is a half or more). per_filing: rows a task and filing at most. facts: shown in a prompt, or as many as the
    options need if that is more; fewer make shorter prompts, for a model of little context. The same arguments give the same bytes.

    Raises: FinloraError for bad arguments; all filings that cannot be read at once; none that gives an item.
    """
    tasks = tuple(dict.fromkeys(tasks))
    for task in tasks:
        if task not in KINDS:
            raise unknown("task", task, KINDS, "--tasks")
    if not tasks:
        raise FinloraError("--tasks names no task", f"there are: {', '.join(KINDS)}")
    if not 0 <= test_share <= 1:
        raise FinloraError(f"a test share of {test_share}", "from 0 to 1")
    if per_filing < 1:
        raise FinloraError(f"{per_filing} rows a filing", "at least 1")
    if facts < 1:
        raise FinloraError(f"{facts} facts in a prompt", "at least 1")
    filings = read_all(paths, packages)
    sides = split([f.entity for f in filings], test_share, seed)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {t: {"train": [], "test": []} for t in tasks}
    dropped = dict.fromkeys(tasks, 0)
    for filing in filings:
        for task in tasks:
            made, lost = rows_of(filing, task, seed, per_filing, facts)
            rows[task][sides[filing.entity]] += made
            dropped[task] += lost
    if not any(r for sides_ in rows.values() for r in sides_.values()):
        raise FinloraError(f"{len(filings)} filing(s) gave no item", "an item needs eight facts of one unit on either side of it by size; give larger filings")
    manifest = {
        "seed": seed,
        "test_share": test_share,
        "per_filing": per_filing,
        "facts": facts,
        "companies": {side: sorted({f"{f.company} ({f.entity})" for f in filings if sides[f.entity] == side}) for side in ("train", "test")},
        "counts": {task: {side: len(r) for side, r in sides_.items()} for task, sides_ in rows.items()},
        "unanswerable": dropped,
        "attacks": {task: {name: asdict(a) for name, a in attack(r["train"], r["test"]).items()} for task, r in rows.items()},
        "sources": [_told(f) for f in filings],
        "notes": [*_notes(filings, sides), *(f"{task} has no rows for {side}: the filings there are too small" for task, r in rows.items() for side in r if not r[side] and side in sides.values())],
    }
    _write(Path(out).expanduser(), rows, manifest)
    return manifest


def read_all(paths: Iterable[str | Path], packages: str | Path | None = None) -> list[Filing]:
    """The filings at the paths, a company-facts .json giving several; copies of one filing count once.

    Raises: FinloraError; several problems at once.
    """
    found: dict[tuple, Filing] = {}
    problems: list[FinloraError] = []
    for path in paths:
        try:
            for filing in read_company(path) if str(path).lower().endswith(".json") else [read_filing(path, packages)]:
                found.setdefault((filing.entity, frozenset(filing.facts)), filing)
        except FinloraError as e:
            problems.append(e)
    if problems:
        raise Problems(problems)
    if not found:
        raise FinloraError("no filing given", "finlora xbrl build FILING... --out DIR")
    return list(found.values())


def split(entities: Iterable[str], share: float, seed: int) -> dict[str, str]:
    """entity -> "train" or "test": a share of the companies, ranked by a hash of seed and entity, at least one on each side of two or more."""
    ranked = sorted(set(entities), key=lambda e: hashlib.sha256(f"{seed}:{e}".encode()).digest())
    count = round(share * len(ranked))
    if len(ranked) > 1 and 0 < share < 1:
        count = min(max(count, 1), len(ranked) - 1)
    elif len(ranked) == 1:
        count = int(share >= 0.5)
    return {e: "test" if i < count else "train" for i, e in enumerate(ranked)}


def rows_of(filing: Filing, task: str, seed: int, most: int, facts: int = SHOWN) -> tuple[list[dict[str, Any]], int]:
    """(rows, how many were left out because the prompt's facts do not lead to their gold alone)."""
    rng = random.Random(f"{seed} {task} {filing.entity} {filing.name}")
    rows: list[dict[str, Any]] = []
    lost = 0
    for made in make(task, filing, rng, 2 * most, facts):
        if len(rows) == most:
            break
        if solve(made) != made["target"]:
            lost += 1
            continue
        head = {"id": f"{filing.name}-{task}-{len(rows):04d}", "kind": task}
        more = {"company": filing.company, "entity": filing.entity, "filing": filing.name, "cluster": f"{filing.entity} {made['concept']}"}
        rows.append(head | made | more)
    return rows, lost


def _told(filing: Filing) -> dict[str, Any]:
    return {"filing": filing.name, "company": filing.company, "entity": filing.entity, "facts": len(filing.facts), "numbers": sum(f.number is not None for f in filing.facts),
            "calculation_arcs": len(filing.arcs), "sha256": dict(filing.sources), "unresolved": [os.path.basename(u) for u in filing.unresolved]}  # fmt: skip


def _notes(filings: Sequence[Filing], sides: dict[str, str]) -> list[str]:
    notes = []
    if len(set(sides.values())) == 1:
        side = next(iter(sides.values()))
        other = "train" if side == "test" else "test"
        count = len(sides)
        notes.append(f"{count} compan{'y' if count == 1 else 'ies'}, all in {side}: there is no {other} file of another company" + ("" if side == "test" else ", and no attack was made"))
    lost = sum(bool(f.unresolved) for f in filings)
    if lost:
        notes.append(f"{lost} filing(s) refer to schemas that are not here; their facts were read without (see `unresolved`)")
    return notes


def _write(out: Path, rows: dict[str, dict[str, list[dict[str, Any]]]], manifest: dict[str, Any]) -> None:
    """All files, each whole or not at all; a file of a side without rows is taken away, lest an older one stay."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for task, sides in rows.items():
            for side, made in sides.items():
                path = out / f"xbrl_{task}_{side}.jsonl"
                if made:
                    data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in made).encode()
                    manifest.setdefault("files", {})[path.name] = hashlib.sha256(data).hexdigest()
                    _replace(path, data)
                else:
                    path.unlink(missing_ok=True)
        _replace(out / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as e:
        raise FinloraError(f"cannot write {out}: {e.strerror or e}", "free some space, or choose another folder with --out") from None


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    os.replace(draft, path)
