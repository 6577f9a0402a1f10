"""A study done: its jobs in three stages (search, untuned base, graded runs), and study.json, which says what became of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import receipt
from .. import spec as specs
from ..check import check
from ..errors import FinloraError, Problems
from .grid import Cell, Study, cells, group, searches, spec_of, told, untuned
from .guess import Costs
from .work import Job, failure, local, said, verb

Launch = Callable[[Sequence[Job], Callable[[Job], int]], Iterator[tuple[int, dict[str, Any]]]]


def job(study: Study, out: Path, kind: str, keys: Mapping[str, Any], spec: specs.Spec | None = None) -> Job:
    """The run at the given keys, in its own folder out/kind/<digest>."""
    spec = spec or spec_of(study, keys, "unused")
    where = out / kind / specs.digest(spec)[:16]
    tree = specs.as_dict(spec)
    tree["run"]["out"] = str(where)
    return Job(kind, dict(keys), tree)


def first_jobs(study: Study, out: Path, found: Sequence[Cell]) -> tuple[list[Job], list[Job]]:
    """(the search's runs, the gradings of the untuned base): what waits for nothing."""
    trials = [job(study, out, "search", keys) for some in searches(study, found).values() for keys in some]
    return trials, [job(study, out, "base", keys, spec) for keys, spec in untuned(study, found)]


def final_jobs(study: Study, out: Path, found: Sequence[Cell], chosen: Mapping[str, Any]) -> list[Job]:
    """The graded runs, at the values that the search chose; cells whose search failed are left out."""
    asked = []
    for cell in found:
        if cell.refused or (study.key and group(study, cell.keys) not in chosen):
            continue
        extra = {study.key: chosen[group(study, cell.keys)]["value"]} if study.key else {}
        asked.append(job(study, out, "runs", {**cell.keys, **extra}))
    return asked


def choose(study: Study, found: Sequence[Cell], outcome: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """{group: {"value", "loss", "at_edge"}} by the validation loss of the weights that each trial kept; outcome(keys) is what came of it."""
    chosen: dict[str, Any] = {}
    for name, some in searches(study, found).items():
        held = [_loss(outcome(keys)) for keys in some]
        best = min(range(len(held)), key=held.__getitem__)
        if math.isfinite(held[best]):
            value = some[best][study.key]
            losses = {keys[study.key] if isinstance(keys[study.key], int | float | str) else told({study.key: keys[study.key]}): loss for keys, loss in zip(some, held)}
            chosen[name] = {"value": value, "loss": losses, "at_edge": len(held) > 2 and best in (0, len(held) - 1)}
    return chosen


def finished(job: Job) -> bool:
    """Whether the run has its receipt."""
    return (job.folder / "receipt.json").is_file()


def run(study: Study, out: str | Path, jobs: int = 1, progress: Any = None, memory: float = 0, launch: Launch | None = None) -> dict[str, Any]:
    """Run all that is not finished yet, and return {"chosen", "runs", "failed", "refused"}.

    out/search, out/base and out/runs hold ordinary run folders; study.json says which cell each is.  jobs: processes
    at once, each with its share of the cores. memory: bytes for all of them, 0 for no limit. launch: another way to run them.
    A run that fails is told and does not stop the others.
    """
    out = Path(out)
    note = progress.note if progress else lambda line: None
    found = cells(study)
    costs = Costs(study.key)
    costs.read(out)
    start = launch or (lambda asked, guess: local(asked, jobs, memory, guess))
    trials, bases = first_jobs(study, out, found)
    _possible(trials or bases or final_jobs(study, out, found, {}))
    if study.text:
        receipt.write_text(out / "study.toml", study.text)
    many = "" if launch else f", {jobs} at a time" + (f" within {memory / 1e9:.1f} GB" if memory else "")
    done = _all([*trials, *bases], start, costs, note, many)
    losses = {repr(job.keys): outcome for job, outcome in zip(trials, done)}
    chosen = choose(study, found, lambda keys: losses[repr(keys)])
    finals = final_jobs(study, out, found, chosen)
    graded = _all(finals, start, costs, note, many)
    return write(study, out, found, chosen, [*zip(trials, done), *zip(bases, done[len(trials) :]), *zip(finals, graded)])


def _possible(asked: Sequence[Job]) -> None:
    """Raises: Problems when every run of the first stage would be refused, before any is tried: something that all share is missing."""
    refused: list[FinloraError] = []
    for one in asked:
        if finished(one) or not (problems := check(specs.spec_from_dict(one.tree), verb(one))):
            return
        refused = refused or problems
    if refused:
        raise Problems(refused)


def gather(study: Study, out: str | Path) -> dict[str, Any]:
    """study.json from what has finished so far, without running anything: for runs that another machine did."""
    out = Path(out)
    found = cells(study)
    trials, bases = first_jobs(study, out, found)
    losses = {repr(job.keys): _looked(job) for job in trials}
    chosen = choose(study, found, lambda keys: losses[repr(keys)])
    every = [*trials, *bases, *final_jobs(study, out, found, chosen)]
    return write(study, out, found, chosen, [(job, _looked(job)) for job in every])


def write(study: Study, out: Path, found: Sequence[Cell], chosen: Mapping[str, Any], ended: Iterable[tuple[Job, Mapping[str, Any]]]) -> dict[str, Any]:
    """Write and return study.json's value. A trial that failed is no failure of the study, but a cell left without a value is."""
    ended = list(ended)
    trials = {repr(job.keys): outcome for job, outcome in ended if job.kind == "search"}
    left = {name: some for name, some in searches(study, found).items() if name not in chosen}
    told_of = {
        kind: [{"keys": job.keys, "run": outcome["run"]} for job, outcome in ended if job.kind == kind and "error" not in outcome] for kind in ("runs", "base")
    }
    failed = [{"keys": job.keys, "error": outcome["error"]} for job, outcome in ended if "error" in outcome and job.kind != "search"]
    for cell in found:
        if not cell.refused and (some := left.get(group(study, cell.keys))):
            why = next((error for keys in some if (error := trials[repr(keys)].get("error"))), "no trial's validation loss is a number")
            failed.append({"keys": cell.keys, "error": f"no {study.key} could be chosen for it: {why}"})
    value = {
        "study": study.name, "key": study.key, "chosen": dict(chosen), **told_of, "failed": failed,
        "refused": [{"keys": cell.keys, "why": cell.refused} for cell in found if cell.refused], **{k: v for k, v in study.own.items() if k != "base"},
    }  # fmt: skip
    receipt.write_text(out / "study.json", json.dumps(value, indent=1) + "\n")
    return value


def _looked(job: Job) -> dict[str, Any]:
    if finished(job):
        return said(job.folder)
    try:
        why = json.loads(failure(job).read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError):
        why = "it has not finished"
    return {"run": job.folder.name, "error": why}


def _loss(done: Mapping[str, Any]) -> float:
    """The validation loss of what a trial kept; infinite where it failed."""
    loss = done.get("val")
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _all(asked: Sequence[Job], start: Launch, costs: Costs, note: Any, many: str) -> list[dict[str, Any]]:
    """What came of every asked run, in the order asked; only those without a receipt are run."""
    first: dict[Path, int] = {}  # arms may share a trial run
    for place, one in enumerate(asked):
        first.setdefault(one.folder, place)
    waiting = [place for place, one in enumerate(asked) if not finished(one) and first[one.folder] == place]
    done: dict[int, dict[str, Any]] = {place: said(one.folder) for place, one in enumerate(asked) if finished(one)}
    if waiting:
        note(f"{len(waiting)} of {len(asked)} runs to do{many}")
        for count, (at, outcome) in enumerate(start([asked[place] for place in waiting], costs.memory), 1):
            place = waiting[at]
            done[place] = outcome
            if outcome.get("peak_bytes"):
                costs.add(asked[place], outcome.get("seconds", math.nan), outcome["peak_bytes"])
            what = outcome.get("error") or ", ".join(f"{k} {v:.3f}" for k, v in outcome.get("accuracy", {}).items()) or f"validation loss {_loss(outcome):.4f}"
            note(f"{count}/{len(waiting)} {told(asked[place].keys)}: {what}")
    return [done[place] if place in done else done[first[one.folder]] for place, one in enumerate(asked)]


def plan(study: Study, out: str | Path | None = None) -> dict[str, Any]:
    """What a study asks for: {"search", "base", "runs": how many, "refused", "unmet", "jobs", "costs", "finished"}.

    jobs: [stage one, stage two], those still to do; the search's first value stands for what it will choose. costs: what
    is known from the runs that have finished in `out`.
    """
    found = cells(study)
    unmet = [f"{key} = {value!r}" for when, _ in study.rules for key, value in when.items() if value not in study.grid[key]]
    where = Path(out or f"runs/{study.name}")
    trials, bases = first_jobs(study, where, found)
    names = searches(study, found)
    finals = final_jobs(study, where, found, choose(study, found, lambda keys: {"val": study.values.index(keys[study.key])}))
    costs = Costs(study.key)
    measured = costs.read(where) if where.is_dir() else 0
    real = {repr(job.keys): _looked(job) for job in trials}
    graded = final_jobs(study, where, found, choose(study, found, lambda keys: real[repr(keys)])) if measured else []
    over = {repr({k: v for k, v in job.keys.items() if k != study.key}) for job in graded if finished(job)}
    left = [job for job in finals if repr({k: v for k, v in job.keys.items() if k != study.key}) not in over]
    todo = [[job for job in (*trials, *bases) if not finished(job)], left]
    return {
        "unmet": unmet, "search": len({one.folder for one in trials}), "base": len(bases), "runs": sum(not cell.refused for cell in found),
        "unsearched": [told(cell.keys) for cell in found if study.key and not cell.refused and group(study, cell.keys) not in names],
        "refused": [f"{told(cell.keys)}: {cell.refused}" for cell in found if cell.refused],
        "jobs": todo, "costs": costs, "measured": measured, "finished": len(trials) + len(bases) + len(finals) - len(todo[0]) - len(todo[1]),
    }  # fmt: skip


def makespan(seconds: Sequence[float], many: int) -> float:
    """Seconds until the last of the jobs ends, started in order on `many` workers."""
    ends = [0.0] * max(1, many)
    for each in seconds:
        first = min(range(len(ends)), key=ends.__getitem__)
        ends[first] += each
    return max(ends)
