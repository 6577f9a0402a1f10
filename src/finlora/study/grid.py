"""A study's file as values: what all its runs share, the grid, the search, the rules, and the cells they make.

    [study]     optional: price_per_hour = 0.79, currency = "USD", base = true (grade the untuned model too)
    [base]      what all runs share: the sections of a run's spec
    [grid]      "method.kind" = ["lora", "dora"], "data.tasks" = [["fpb"], ["fpb", "tfns"]], "run.seed" = [0, 1, 2] ...
    [axis.NAME] an axis of the grid whose values are names, and what each stands for: [axis.size.small] "model.config" = {...};
                then NAME = ["small", ...] in [grid]
    [search]    key = "train.lr", values = [...], at = {"codec.kind" = "none", "run.seed" = 0}; set = {"train.steps" = 50}: what the
                search's runs have else
    [[rule]]    when = {"method.kind" = "dora"}, set = {"method.rank" = 4}: what some cells need else
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import spec as specs
from ..errors import FinloraError, Problems, unknown
from ..fields import Text

SECTIONS = {"name": str, "study": dict, "base": dict, "grid": dict, "axis": dict, "search": dict, "rule": list}
OWN = {"price_per_hour": (int, float), "currency": str, "base": bool}
FORMS = {str: "text", dict: "a table", list: "a list of tables"}
SEED = "run.seed"


@dataclass(frozen=True)
class Study:
    """A study as its file says it. grid, rules, at, trial: by dotted keys of a run's spec. own: its [study] section.

    axes: axis -> name -> the dotted keys that it stands for. trial: what the search's runs have else.

    text, sets: the file and the overrides it was read from, kept with the runs.
    """

    name: str
    base: dict[str, Any]
    grid: dict[str, list[Any]]
    key: str = ""
    values: tuple[Any, ...] = ()
    at: dict[str, Any] = field(default_factory=dict)
    rules: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ()
    own: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    sets: tuple[str, ...] = ()
    axes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)


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
        text = path.read_text(encoding="utf-8")
        told = tomllib.loads(text)
    except OSError as error:
        raise FinloraError(f"cannot read the study {path}: {error.strerror}", "name a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise FinloraError(f"{path} is not TOML: {error}", "fix the line") from error
    for key, value in told.items():
        if key not in SECTIONS:
            raise unknown("section", key, SECTIONS, str(path))
        if not isinstance(value, SECTIONS[key]):
            raise FinloraError(f"{path}: `{key}` must be {FORMS[SECTIONS[key]]}, got {value!r}", f"write {'[[rule]]' if key == 'rule' else f'[{key}]' if SECTIONS[key] is dict else 'name = ...'}")
    for key, value in told.get("study", {}).items():
        if key not in OWN:
            raise unknown("key", key, OWN, f"{path}: [study]")
        if not isinstance(value, OWN[key]) or (isinstance(value, bool) and key != "base"):
            raise FinloraError(f"{path}: study.{key} = {value!r} is not {'true or false' if key == 'base' else 'text' if key == 'currency' else 'a number'}", 'such as price_per_hour = 0.79, currency = "USD", base = true')
        if key == "price_per_hour" and not 0 < value < 1e6:
            raise FinloraError(f"{path}: study.price_per_hour = {value!r} is out of range", "the price of an hour of the machine that a run has to itself")
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
    axes = _axes(told.get("axis") or {}, grid, path)
    for key in search:
        if key not in ("key", "values", "at", "set"):
            raise unknown("key", key, ["key", "values", "at", "set"], f"{path}: [search]")
    if not isinstance(search.get("set", {}), dict):
        raise FinloraError(f"{path}: search.set must be a table of a run's keys, got {search['set']!r}", 'write set = { "train.steps" = 50 }')
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
    for override in overrides:
        place, equals, raw = override.partition("=")
        section, dot, key = place.partition(".")
        if not (equals and dot):
            raise FinloraError(f"cannot read the override `{override}`", "write section.key=value, such as data.dir=data")
        base.setdefault(section, {})[key] = Text.parse(raw.strip(), place, problems)
    if problems:
        raise Problems(problems)
    return Study(told.get("name", path.stem), base, grid, search.get("key", ""), tuple(search.get("values", ())), at, tuple(rules), told.get("study", {}), text, tuple(overrides), axes, search.get("set", {}))


def _axes(told: dict[str, Any], grid: dict[str, list[Any]], path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The named axes, checked against the grid that uses them."""
    for name, values in told.items():
        if not isinstance(values, dict) or not all(isinstance(table, dict) for table in values.values()):
            raise FinloraError(f"{path}: [axis.{name}] holds one table for each of its values, got {values!r}", f'write [axis.{name}.small], then "model.config" = ...')
        if name not in grid:
            raise FinloraError(f"{path}: [axis.{name}] is no axis of [grid]", f"write {name} = {list(values)} there, or leave it out")
    for key, values in grid.items():
        if "." not in key and key not in told:
            raise FinloraError(f"{path}: grid `{key}` is neither a key of a run nor an axis", f'write a key such as "method.kind", or a table [axis.{key}.VALUE] for each value')
        for value in values if "." not in key else ():
            if value not in told[key]:
                raise unknown("value", str(value), told[key], f"{path}: grid `{key}`")
    return told


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
    for key in [*study.grid, *(key for values in study.axes.values() for table in values.values() for key in table)]:
        section, _, name = key.partition(".")
        if section in study.base and name in study.base[section]:
            raise FinloraError(f"{place}: `{key}` stands in [base.{section}] and in [grid]", "leave it in one of the two")
    run_out = [where for where in (study.base.get("run", {}), study.grid) if "out" in where or "run.out" in where]
    if run_out:
        raise FinloraError(f"{place}: run.out is the study's own to choose", "leave it out, and name the study's folder with --out")


def spec_of(study: Study, keys: Mapping[str, Any], out: str) -> specs.Spec:
    """The spec of a run at the given dotted keys.  Raises: Problems with everything wrong in it."""
    tree: dict[str, dict[str, Any]] = {name: dict(table) for name, table in study.base.items()}
    changes = {key: value for key, value in keys.items() if "." in key}
    for axis, value in keys.items():
        if "." not in axis:
            changes = {**study.axes[axis][value], **changes}
    for when, then in study.rules:
        if all({**keys, **changes}.get(key) == value for key, value in when.items()):
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
    from ..seam import check_over

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
            specs.resolve(spec.structure), specs.resolve(spec.optimizer)
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
    return ", ".join(f"{key.split('.')[-1] if key.split('.')[-1] != 'kind' else key.split('.')[0]} {shown(value)}" for key, value in keys.items())


def shown(value: Any) -> str:
    """A grid's value as text: a list of tasks as `fpb+tfns`."""
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def group(study: Study, keys: Mapping[str, Any]) -> str:
    """What a cell shares its search with: its keys but those of search.at."""
    return told({key: value for key, value in keys.items() if key not in study.at})


def searches(study: Study, found: Sequence[Cell] = ()) -> dict[str, list[dict[str, Any]]]:
    """{group: the dotted keys of its trial runs}; the group is `group` of every cell that will share the outcome."""
    out: dict[str, list[dict[str, Any]]] = {}
    if not study.key:
        return out
    found = found or cells(study)
    refused = {repr(cell.keys) for cell in found if cell.refused}
    for cell in found:
        at, name = {**cell.keys, **study.at}, group(study, cell.keys)
        if not cell.refused and name not in out and repr(at) not in refused:
            out[name] = [{**at, study.key: value, **study.trial} for value in study.values]
    return out


def untuned(study: Study, found: Sequence[Cell]) -> list[tuple[dict[str, Any], specs.Spec]]:
    """(keys, spec) of the gradings of the model as it is that [study] base = true asks for: one for each base, codec and set of tasks."""
    out: dict[str, tuple[dict[str, Any], specs.Spec]] = {}
    for cell in found if study.own.get("base") else ():
        first = {key: value for key, value in cell.keys.items() if key.partition(".")[0] in ("model", "codec", "data", "evaluate")}
        told_by = spec_of(study, {**cell.keys, **({study.key: study.values[0]} if study.key else {})}, "unused")
        tree = specs.as_dict(told_by)
        tree = {name: tree[name] for name in ("run", "model", "codec", "data", "evaluate")}
        tree["run"]["seed"] = 0
        tree["data"]["weights"] = []  # nothing is trained
        tree["data"]["tasks"] = tree["evaluate"]["tasks"] = tree["evaluate"]["tasks"] or tree["data"]["tasks"]
        spec = specs.spec_from_dict(tree, (), f"study {study.name}")
        out.setdefault(specs.digest(spec), (first, spec))
    return list(out.values())
