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
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import receipt
from . import spec as specs
from .errors import FinloraError, Problems, unknown
from .fields import Text

SECTIONS = {"name": str, "base": dict, "grid": dict, "search": dict, "rule": list}
FORMS = {str: "text", dict: "a table", list: "a list of tables"}


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
    for key, value in told.items():
        if key not in SECTIONS:
            raise unknown("section", key, SECTIONS, str(path))
        if not isinstance(value, SECTIONS[key]):
            raise FinloraError(f"{path}: `{key}` must be {FORMS[SECTIONS[key]]}, got {value!r}", f"write {'[[rule]]' if key == 'rule' else f'[{key}]' if SECTIONS[key] is dict else 'name = ...'}")
    grid, search = told.get("grid") or {}, told.get("search") or {}
    for section, table in told.get("base", {}).items():
        if not isinstance(table, dict):
            raise FinloraError(f"{path}: `base.{section}` must be a table, got {table!r}", f"write [base.{section if section in specs.SECTIONS else 'run'}], then its keys")
    if not grid:
        raise FinloraError(f"{path} has no [grid]", 'write [grid] and "method.kind" = ["lora", "dora"]')
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise FinloraError(f"{path}: grid `{key}` must be a list of values, got {values!r}", "put them in [ ], and a key with a dot in quotes")
        if twice := [v for k, v in enumerate(values) if v in values[:k]]:
            raise FinloraError(f"{path}: grid `{key}` names {twice[0]!r} twice", "name each value once")
    for key in search:
        if key not in ("key", "values", "at"):
            raise unknown("key", key, ["key", "values", "at"], f"{path}: [search]")
    if search and not (search.get("key") and isinstance(search.get("values"), list) and search["values"]):
        raise FinloraError(f"{path}: [search] needs `key` and a list of `values`", 'for example key = "train.lr", values = [1e-4, 1e-3]')
    at = search.get("at", {})
    if not isinstance(at, dict):
        raise FinloraError(f"{path}: search.at must be a table of the grid's keys, got {at!r}", 'write at = { "run.seed" = 0 }')
    for key, value in at.items():
        if key not in grid:
            raise unknown("key", key, grid, f"{path}: search.at")
        if value not in grid[key]:
            raise FinloraError(f"{path}: search.at has {key} = {value!r}, which grid `{key}` lacks", "name one of its values")
    if search.get("key") in grid:
        raise FinloraError(f"{path}: `{search['key']}` is searched and stands in [grid] too", "leave it in one of the two")
    rules = []
    for rule in told.get("rule", []):
        if not isinstance(rule, dict) or set(rule) != {"when", "set"} or not all(isinstance(part, dict) for part in rule.values()):
            raise FinloraError(f"{path}: a [[rule]] has `when` and `set`, two tables, got {rule!r}", 'when = {"method.kind" = "dora"}, set = {"method.rank" = 4}')
        rules.append((rule["when"], rule["set"]))
    base, problems = told.get("base") or {}, []
    for text in overrides:
        place, equals, raw = text.partition("=")
        section, dot, key = place.partition(".")
        if not (equals and dot):
            raise FinloraError(f"cannot read the override `{text}`", "write section.key=value, such as data.dir=data")
        base.setdefault(section, {})[key] = Text.parse(raw.strip(), place, problems)
    if problems:
        raise Problems(problems)
    return Study(told.get("name", path.stem), base, grid, search.get("key", ""), tuple(search.get("values", ())), at, tuple(rules))


def _effective(study: Study, place: str) -> None:
    """Raises: FinloraError for what would silently change nothing: a rule that no cell meets, or a key that another decides."""
    for when, then in study.rules:
        for key, value in when.items():
            if key not in study.grid:
                raise unknown("key", key, study.grid, f"{place}: the `when` of a [[rule]]")
            if value not in study.grid[key]:  # of a grid that was cut short, if there is such a value at all
                try:
                    probe = spec_of(study, {**{k: v[0] for k, v in study.grid.items()}, key: value}, "unused")
                    specs.resolve(probe.method), specs.resolve(probe.codec), specs.resolve(probe.optimizer)
                except FinloraError as error:
                    raise FinloraError(f"{place}: a [[rule]] is for {key} = {value!r}: {error.problems[0].message}", error.problems[0].hint) from error
        for key in then:
            if key in study.grid or key == study.key:
                raise FinloraError(f"{place}: a [[rule]] sets `{key}`, which {'[search]' if key == study.key else '[grid]'} decides", "leave it out of the rule")
    for key in study.grid:
        section, _, name = key.partition(".")
        if section in study.base and name in study.base[section]:
            raise FinloraError(f"{place}: `{key}` stands in [base.{section}] and in [grid]", "leave it in one of the two")
    run_out = [where for where in (study.base.get("run", {}), study.grid) if "out" in where or "run.out" in where]
    if run_out:
        raise FinloraError(f"{place}: run.out is the study's own to choose", "leave it out, and name the study's folder with --out")


def spec_of(study: Study, keys: Mapping[str, Any], out: str) -> specs.Spec:
    """The spec of a run at the given dotted keys.  Raises: Problems with everything wrong in it."""
    tree: dict[str, dict[str, Any]] = {name: dict(table) for name, table in study.base.items()}
    changes = dict(keys)
    for when, then in study.rules:
        if all(changes.get(key) == value for key, value in when.items()):
            changes = {**then, **changes}
    for key, value in {**changes, "run.out": out}.items():
        section, _, name = key.partition(".")
        table = tree.setdefault(section, {})
        for part in name.split(".")[:-1]:
            table[part] = table = dict(table.get(part) or {})
        table[name.rpartition(".")[2]] = value
    return specs.spec_from_dict(tree, (), f"study {study.name}")


def cells(study: Study) -> list[Cell]:
    """Every combination of the grid, in the order of the file, with why some cannot be."""
    from .seam import check_over

    out: list[Cell] = []
    known: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*study.grid.values()):
        keys, refused = dict(zip(study.grid, combination)), ""
        try:
            for value in study.values or (None,):
                spec = spec_of(study, keys if value is None else {**keys, study.key: value}, "unused")
            other = known.setdefault(specs.digest(spec), keys)
            if other is not keys:
                raise FinloraError("the same run as " + told(other), "what tells them apart changes no result: leave it out of [grid]")
            (method, _), (codec, _) = specs.resolve(spec.method), specs.resolve(spec.codec)
        except FinloraError as error:
            first = error.problems[0]
            raise FinloraError(f"study {study.name} at {told(keys)}: {first.message}", first.hint) from error
        try:
            check_over(method, codec)
        except FinloraError as error:
            refused = error.message
        out.append(Cell(keys, refused))
    _effective(study, f"study {study.name}")
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
    """How many runs of each sort, which combinations are left out, what rules ask for in vain: {"search", "runs", "refused", "unmet"}."""
    found = cells(study)
    unmet = [f"{key} = {value!r}" for when, _ in study.rules for key, value in when.items() if value not in study.grid[key]]
    return {
        "unmet": unmet,
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
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,))
        try:
            futures = {pool.submit(one, *work[place]): place for place in waiting}
            for count, future in enumerate(as_completed(futures), 1):
                place = futures[future]
                try:
                    done[place] = future.result()
                except BrokenProcessPool as error:
                    raise FinloraError(f"the process of {told(asked[place][1])}, or of a run beside it, was killed", "memory may have run out: use fewer --jobs; the same command again goes on") from error
                what = done[place].get("error") or ", ".join(f"{k} {v:.3f}" for k, v in done[place].get("accuracy", {}).items()) or f"validation loss {_loss(done[place]):.4f}"
                note(f"{count}/{len(waiting)} {told(asked[place][1])}: {what}")
        finally:  # Ctrl-C reaches the runs too: each saves and stops; those that wait never begin
            pool.shutdown(wait=True, cancel_futures=True)
    return [(asked[place], done[place]) for place in range(len(asked))]


def _begin(threads: int) -> None:
    """A worker: its share of the cores (two threads on a busy core wait for each other), and no life of its own."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int, seconds: float = 1.0) -> None:
    """End this process when its parent has: a killed study leaves no run behind that nobody waits for."""
    while os.getppid() == parent:
        time.sleep(seconds)
    os._exit(1)


_stopped: list[str] = []


def one(tree: dict[str, Any], grade: bool) -> dict[str, Any]:
    """One run of a study, in whatever process: {"run", "val", "accuracy"} or {"run", "error"}."""
    from .train import Interrupted
    from .tune import finetune

    spec = specs.spec_from_dict(tree)
    if _stopped:
        raise Interrupted("stopped by the user before it began", "run the study again to go on")
    try:
        finetune(spec, grade=grade)
    except (KeyboardInterrupt, Interrupted):
        _stopped.append(spec.run.out)  # the pool holds runs for this process that it cannot take back
        raise
    except FinloraError as error:
        return {"run": Path(spec.run.out).name, "error": error.message}
    return _said(Path(spec.run.out))


def _said(folder: Path) -> dict[str, Any]:
    sheet = receipt.read(folder)
    accuracy = {task: result["metrics"]["accuracy"]["value"] for task, result in sheet.get("results", {}).items()}
    return {"run": folder.name, "val": sheet["train"].get("val"), "accuracy": accuracy}
