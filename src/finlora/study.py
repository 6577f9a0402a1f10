"""Studies: a grid of fine-tuning runs from one file, planned, searched for learning rates, run in parallel, resumed.

    [base]      what all runs share: the sections of a run's spec
    [grid]      "method.kind" = ["lora", "dora"], "run.seed" = [0, 1, 2] ...: every combination is a cell
    [search]    key = "train.lr", values = [...], at = {"codec.kind" = "none", "run.seed" = 0}
    [[rule]]    when = {"method.kind" = "dora"}, set = {"method.rank" = 4}: what some cells need else

Each cell is an ordinary run, named by the digest of its spec, so that a longer grid runs only what is new and a killed study
goes on where it stopped.  A search trains every value with equal budget, with the keys in `at` held fixed, and takes the value of the lowest
validation loss; the test split is not read.  All cells that differ only in the keys of `at` share it.  A combination that cannot be
(a method that trains the base over a lossy codec) is left out and told, with the reason.
"""

from __future__ import annotations

import itertools
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import receipt
from . import spec as specs
from .errors import FinloraError, Problems, unknown
from .fields import Text

SECTIONS = ("name", "base", "grid", "search", "rule")


@dataclass(frozen=True)
class Study:
    """A study as its file says it. grid, rules, at: by dotted keys of a run's spec."""

    name: str
    base: dict[str, Any]
    grid: dict[str, list[Any]]
    key: str = ""
    values: tuple[Any, ...] = ()
    at: dict[str, Any] = field(default_factory=dict)
    rules: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class Cell:
    """One combination of the grid. keys: its dotted keys. refused: why it cannot be run, or ""."""

    keys: dict[str, Any]
    refused: str = ""


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """The study in a TOML file; overrides (`section.key=value`) change its [base].

    Raises: FinloraError naming the file and what is wrong in it.
    """
    path = Path(path)
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FinloraError(f"cannot read the study {path}: {error.strerror}", "name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FinloraError(f"{path} is not TOML: {error}", "mend the line") from error
    for key in told:
        if key not in SECTIONS:
            raise unknown("section", key, SECTIONS, str(path))
    grid, search = told.get("grid") or {}, told.get("search") or {}
    if not grid:
        raise FinloraError(f"{path} has no [grid]", 'write [grid] and "method.kind" = ["lora", "dora"]')
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise FinloraError(f"{path}: grid `{key}` must be a list of values, got {values!r}", "put them in [ ]")
    if search and not (search.get("key") and isinstance(search.get("values"), list) and search["values"]):
        raise FinloraError(f"{path}: [search] needs `key` and a list of `values`", 'for example key = "train.lr", values = [1e-4, 1e-3]')
    for key in search.get("at", {}):
        if key not in grid:
            raise unknown("key", key, grid, f"{path}: search.at")
    rules = []
    for rule in told.get("rule", []):
        if set(rule) != {"when", "set"}:
            raise FinloraError(f"{path}: a [[rule]] has `when` and `set`, got {', '.join(sorted(rule)) or 'nothing'}", 'when = {"method.kind" = "dora"}, set = {"method.rank" = 4}')
        rules.append((rule["when"], rule["set"]))
    base, problems = told.get("base") or {}, []
    for text in overrides:
        place, equals, raw = text.partition("=")
        section, dot, key = place.partition(".")
        if not (equals and dot):
            raise FinloraError(f"cannot read the override `{text}`", "write section.key=value, such as data.dir=data")
        base.setdefault(section, {})[key] = Text.parse(raw, place, problems)
    if problems:
        raise Problems(problems)
    return Study(
        told.get("name", path.stem), base, grid, search.get("key", ""), tuple(search.get("values", ())),
        search.get("at", {}), tuple(rules),
    )  # fmt: skip


def spec_of(study: Study, keys: Mapping[str, Any], out: str) -> specs.Spec:
    """The spec of a run at the given dotted keys.  Raises: Problems with everything wrong in it."""
    tree: dict[str, dict[str, Any]] = {name: dict(table) for name, table in study.base.items()}
    changes = dict(keys)
    for when, then in study.rules:
        if all(changes.get(key) == value for key, value in when.items()):
            changes = {**then, **changes}
    for key, value in {**changes, "run.out": out}.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return specs.spec_from_dict(tree, (), f"study {study.name}")


def cells(study: Study) -> list[Cell]:
    """Every combination of the grid, in the order of the file, with why some cannot be."""
    from .seam import check_over

    out = []
    for combination in itertools.product(*study.grid.values()):
        keys, refused = dict(zip(study.grid, combination)), ""
        try:
            spec = spec_of(study, keys, "unused")
            (method, _), (codec, _) = specs.resolve(spec.method), specs.resolve(spec.codec)
        except FinloraError as error:
            first = error.problems[0]
            raise FinloraError(f"study {study.name} at {told(keys)}: {first.message}", first.hint) from error
        try:
            check_over(method, codec)
        except FinloraError as error:
            refused = error.message
        out.append(Cell(keys, refused))
    return out


def told(keys: Mapping[str, Any]) -> str:
    """Keys as a line of text."""
    return ", ".join(f"{key.split('.')[-1] if key.split('.')[-1] != 'kind' else key.split('.')[0]} {value}" for key, value in keys.items())


def searches(study: Study) -> dict[str, list[dict[str, Any]]]:
    """{group: the dotted keys of its trial runs}; the group is `_group` of every cell that will share the outcome."""
    out: dict[str, list[dict[str, Any]]] = {}
    if study.key:
        for cell in cells(study):
            at = {**cell.keys, **study.at}
            if not cell.refused and _group(study, cell.keys) not in out and not _refused(study, at):
                out[_group(study, cell.keys)] = [{**at, study.key: value} for value in study.values]
    return out


def _refused(study: Study, keys: Mapping[str, Any]) -> str:
    return next((cell.refused for cell in cells(study) if cell.keys == dict(keys)), "")


def _group(study: Study, keys: Mapping[str, Any]) -> str:
    return told({key: value for key, value in keys.items() if key not in study.at})


def plan(study: Study) -> dict[str, Any]:
    """How many runs of each sort, and which combinations are left out: {"search", "runs", "refused"}."""
    found = cells(study)
    return {
        "search": sum(len(trials) for trials in searches(study).values()),
        "runs": sum(not cell.refused for cell in found),
        "refused": [f"{told(cell.keys)}: {cell.refused}" for cell in found if cell.refused],
    }


def run(study: Study, out: str | Path, jobs: int = 1, progress: Any = None) -> dict[str, Any]:
    """Run all that is not finished yet, and return {"chosen", "runs", "failed", "refused"}.

    out/search/<digest> and out/runs/<digest> are ordinary run folders; study.json says which cell each is.  jobs: processes
    at once, each with its share of the cores.  A run that fails is told and does not stop the others.
    """
    out = Path(out)
    note = progress.note if progress else lambda line: None
    found = cells(study)
    trials = searches(study)
    asked = [(out / "search", keys, False) for group in trials.values() for keys in group]
    losses = {_key(keys): done for (_, keys, _), done in _all(study, asked, jobs, note)}
    chosen: dict[str, Any] = {}
    for group, some in trials.items():
        held = {keys[study.key]: _loss(losses[_key(keys)]) for keys in some}
        best = min(held, key=held.__getitem__)
        if math.isfinite(held[best]):
            chosen[group] = {"value": best, "loss": held, "at_edge": len(held) > 2 and best in (study.values[0], study.values[-1])}
    asked = []
    for cell in found:
        if cell.refused or (study.key and _group(study, cell.keys) not in chosen):
            continue
        extra = {study.key: chosen[_group(study, cell.keys)]["value"]} if study.key else {}
        asked.append((out / "runs", {**cell.keys, **extra}, True))
    runs, failed = [], []
    for (_, keys, _), done in _all(study, asked, jobs, note):
        (failed if "error" in done else runs).append({"keys": keys, **({"error": done["error"]} if "error" in done else {"run": done["run"]})})
    said = {
        "study": study.name, "key": study.key, "chosen": chosen, "runs": runs, "failed": failed,
        "refused": [{"keys": cell.keys, "why": cell.refused} for cell in found if cell.refused],
    }  # fmt: skip
    import json

    receipt.write_text(out / "study.json", json.dumps(said, indent=1) + "\n")
    return said


def _key(keys: Mapping[str, Any]) -> str:
    return repr(sorted(keys.items()))


def _loss(done: Mapping[str, Any]) -> float:
    """The last validation loss of a trial; infinite where it failed."""
    looks = done.get("val") or []
    return looks[-1][1] if looks and looks[-1][1] is not None and math.isfinite(looks[-1][1]) else math.inf


def _all(study: Study, asked: list[tuple[Path, dict[str, Any], bool]], jobs: int, note: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Every asked run with what came of it, in the order asked."""
    done: dict[int, dict[str, Any]] = {}
    work = {}
    for place, (folder, keys, grade) in enumerate(asked):
        spec = spec_of(study, keys, "unused")
        where = folder / specs.digest(spec)[:16]
        work[place] = (specs.as_dict(specs.with_overrides(spec, f"run.out={where}")), grade)
    waiting = [place for place, (spec, _) in work.items() if not (Path(spec["run"]["out"]) / "receipt.json").is_file()]
    for place in work.keys() - set(waiting):
        done[place] = _said(Path(work[place][0]["run"]["out"]))
    if waiting:
        note(f"{len(waiting)} of {len(work)} runs to do, {jobs} at a time")
        import multiprocessing

        threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // jobs)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
            futures = {pool.submit(one, *work[place]): place for place in waiting}
            for count, future in enumerate(as_completed(futures), 1):
                place = futures[future]
                done[place] = future.result()
                what = done[place].get("error") or ", ".join(f"{k} {v:.3f}" for k, v in done[place].get("accuracy", {}).items()) or f"validation loss {_loss(done[place]):.4f}"
                note(f"{count}/{len(waiting)} {told(asked[place][1])}: {what}")
    return [(asked[place], done[place]) for place in range(len(asked))]


def _begin(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def one(tree: dict[str, Any], grade: bool) -> dict[str, Any]:
    """One run of a study, in whatever process: {"run", "val", "accuracy"} or {"run", "error"}."""
    from .tune import finetune

    spec = specs.spec_from_dict(tree)
    try:
        finetune(spec, grade=grade)
    except FinloraError as error:
        return {"run": Path(spec.run.out).name, "error": error.message}
    return _said(Path(spec.run.out))


def _said(folder: Path) -> dict[str, Any]:
    sheet = receipt.read(folder)
    accuracy = {task: result["metrics"]["accuracy"]["value"] for task, result in sheet.get("results", {}).items()}
    return {"run": folder.name, "val": sheet["train"].get("val"), "accuracy": accuracy}
