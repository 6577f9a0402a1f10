"""What a run is, as values: frozen dataclasses read from one TOML file, with `section.key=value` overrides.

    spec = load_spec("run.toml", ["method.rank=16"])     every problem of the file at once, each with its place
    open("spec.toml", "w").write(dump(spec))             the resolved spec, which loads back to an equal value
    digest(spec)                                         one hash of all that determines the result

The options of a codec, a method or an optimizer are declared in that member's own file: here they are an open table
(`Part.options`), and `resolve(part)` turns them into the member's config. No torch is needed until then.
The sections are in `sections.py`; how one value is read and judged is in `fields.py`. Paths are relative to the working folder.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import registry
from .errors import FinloraError, Problems, unknown
from .fields import Text, bare, fields_of, read_fields, to_key, to_toml
from .sections import (
    Calibrate,
    CodecPart,
    Data,
    Evaluate,
    Log,
    MethodPart,
    Model,
    OptimizerPart,
    Parallel,
    Part,
    Run,
    StructurePart,
    Train,
)


@dataclass(frozen=True)
class Spec:
    """One run, complete. Build it with `load_spec`, `spec_from_dict`, or by naming sections: `Spec(train=Train(lr=1e-4))`."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    codec: CodecPart = field(default_factory=CodecPart)
    method: MethodPart = field(default_factory=MethodPart)
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    structure: StructurePart = field(default_factory=StructurePart)
    calibrate: Calibrate = field(default_factory=Calibrate)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    parallel: Parallel = field(default_factory=Parallel)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)


SECTIONS: dict[str, type] = {
    "run": Run, "model": Model, "codec": CodecPart, "method": MethodPart,
    "optimizer": OptimizerPart, "structure": StructurePart, "calibrate": Calibrate, "data": Data, "train": Train,
    "parallel": Parallel, "evaluate": Evaluate, "log": Log,
}  # fmt: skip


def load_spec(path: str | Path, overrides: Iterable[str] = (), problems: list[FinloraError] | None = None) -> Spec:
    """The spec in the TOML file `path` (or in a run folder's spec.toml), with `section.key=value` overrides.

    problems: a list that receives what is wrong, in place of an error; the spec then has defaults where values were wrong.
    Raises: Problems with everything wrong in the file and the overrides.
    """
    path = Path(path)
    if path.is_dir() and (path / "spec.toml").is_file():
        path = path / "spec.toml"
    return spec_from_dict(_read_toml(path), overrides, str(path), problems)


def spec_from_dict(
    values: Mapping[str, Any], overrides: Iterable[str] = (), place: str = "", found: list[FinloraError] | None = None
) -> Spec:
    """The spec of a nested mapping {section: {key: value}}; `place` is named in the problems.

    found: a list that receives the problems, in place of an error (see load_spec).
    Raises: Problems: unknown sections and keys, wrong types, values out of range.
    """
    problems: list[FinloraError] = []
    tree = {name: dict(table) if isinstance(table, Mapping) else table for name, table in values.items()}
    for text in overrides:
        _override(tree, text, problems)
    where = f" in {place}" if place else ""
    sections = {}
    for name, table in tree.items():
        if name not in SECTIONS:
            problems.append(_unknown_section(name, table, where))
        elif not isinstance(table, Mapping):
            problems.append(
                FinloraError(
                    f"`{name}`{where} must be a section, got {_shown(table)}",
                    f"write [{name}] on its own line, then its keys",
                )
            )
        else:
            sections[name] = _section(name, table, where, problems)
    spec = Spec(**sections)
    problems += _crossed(spec, where)
    if found is not None:
        found += problems
    elif problems:
        raise Problems(problems)
    return spec


def with_overrides(spec: Spec, *overrides: str) -> Spec:
    """`spec` with `section.key=value` texts applied, checked again.

    Raises: Problems.
    """
    return spec_from_dict(as_dict(spec), overrides)


def as_dict(spec: Spec) -> dict[str, dict[str, Any]]:
    """The spec as nested plain values (for TOML, JSON and receipts); a part's options stand beside its kind."""
    return {name: _table(getattr(spec, name)) for name in SECTIONS}


def dump(spec: Spec, notes: bool = False) -> str:
    """TOML text that loads back to an equal spec; `notes` adds each field's help as a comment."""
    lines = []
    for name, table in as_dict(spec).items():
        helps = {f.name: f.metadata.get("help", "") for f in fields_of(SECTIONS[name])}
        lines.append(f"[{name}]")
        for key, value in table.items():
            note = f"  # {helps[key]}" if notes and helps.get(key) else ""
            lines.append(f"{to_key(key)} = {to_toml(value)}{note}")
        lines.append("")
    return "\n".join(lines)


def digest(spec: Spec) -> str:
    """sha256 (hex) of the fields that determine the result: not the folder, the device, the logs or the checkpoints kept."""
    told = as_dict(spec)
    told["method"]["patterns"] = [*told["method"]["patterns"].items()]  # their order counts
    for name, section in SECTIONS.items():
        fresh = section()
        for f in fields_of(section):
            unused = f.metadata.get("added") and getattr(getattr(spec, name), f.name) == getattr(fresh, f.name)
            if unused or not f.metadata.get("result", True):
                told[name].pop(f.name, None)
        if not told[name] and getattr(section, "later", False):  # a section that came after runs were made without it
            told.pop(name)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def resolve(part: Part) -> tuple[Any, Any]:
    """(record, config) of a codec, a method or an optimizer: picked from the registry, its options read into its config dataclass.

    Raises: FinloraError for an unknown kind; Problems for unknown options, wrong types, values its config refuses.
    """
    record = registry.pick(part.family, part.kind)
    problems: list[FinloraError] = []
    values = read_fields(record.config, part.options, part.family, f" of {part.family} `{part.kind}`", problems)
    try:
        config = record.config(**values)
    except FinloraError as error:  # a config names its own field first: "rank must be ..."
        own = error.message.split()[0] in {f.name for f in fields_of(record.config)}
        problems.append(
            FinloraError(
                f"{part.family}.{error.message}" if own else f"{part.family} `{part.kind}`: {error.message}", error.hint
            )
        )
    if problems:
        raise Problems(problems)
    return record, config


def describe(section: str) -> list[tuple[str, Any, str]]:
    """[(key, default, help)] of a section, for documentation and the command line."""
    default = SECTIONS[section]()
    return [
        (f.name, getattr(default, f.name), f.metadata["help"])
        for f in fields_of(SECTIONS[section])
        if "help" in f.metadata
    ]


def _section(name: str, table: Mapping[str, Any], where: str, problems: list[FinloraError]) -> Any:
    """One section's dataclass; a part keeps the keys it does not know as options, for `resolve` to judge."""
    section = SECTIONS[name]
    options = {}
    if issubclass(section, Part):
        own = {f.name for f in fields_of(section)} - {"options"}
        options = {key: bare(value) for key, value in table.items() if key not in own}
        table = {key: value for key, value in table.items() if key in own}
    values = read_fields(section, table, name, where, problems)
    return section(**values, options=options) if issubclass(section, Part) else section(**values)


def _table(section: Any) -> dict[str, Any]:
    told = {f.name: bare(getattr(section, f.name)) for f in fields_of(type(section)) if f.name != "options"}
    return {**told, **{key: bare(value) for key, value in getattr(section, "options", {}).items()}}


def _crossed(spec: Spec, where: str) -> list[FinloraError]:
    """What no single field can tell."""
    problems = []
    part = spec.structure
    sizes = {"keep": part.keep, "compression": part.compression, "rank": part.options.get("rank", 0)}
    if len(said := [f"structure.{key} = {value!r}" for key, value in sizes.items() if value]) > 1:
        problems.append(FinloraError(f"{' and '.join(said)}{where} {'both' if len(said) == 2 else 'all'} set the ranks", f"give one of the {'two' if len(said) == 2 else 'three'}"))
    if 0 < part.compression < 1:
        problems.append(FinloraError(f"structure.compression = {part.compression:g}{where} would make the model larger", "2.64 makes it 2.64 times smaller; 0 leaves the size to keep or the rank"))
    if spec.train.patience and not spec.data.validation:
        problems.append(
            FinloraError(
                f"train.patience = {spec.train.patience}{where} needs held-out examples, but data.validation = 0.0",
                "set data.validation to 0.1, or train.patience to 0",
            )
        )
    weights, tasks = spec.data.weights, spec.data.tasks
    if weights and (len(weights) != len(tasks) or not all(0 < w <= 1000 for w in weights)):
        problems.append(
            FinloraError(
                f"data.weights = {_shown(list(weights))}{where} does not fit the {len(tasks)} tasks of data.tasks",
                "one number above 0, at most 1000, for each task, or leave it out",
            )
        )
    if both := sorted(set(spec.data.sources) & set(spec.data.exclude_sources)):
        problems.append(
            FinloraError(
                f"`{both[0]}` stands in both data.sources and data.exclude_sources{where}", "keep it in one of the two"
            )
        )
    return problems


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        if not near:
            raise FinloraError(f"no spec file named `{path}`", "give the path of a TOML file, such as recipes/qlora.toml") from None
        raise unknown("spec file", str(path), [str(path.parent / name) for name in near]) from None
    except IsADirectoryError:
        raise FinloraError(
            f"{path} is a folder without a spec.toml", "name a TOML file, or the folder of an earlier run"
        ) from None
    except UnicodeDecodeError as error:
        raise FinloraError(f"{path} is not UTF-8 text (byte {error.start})", "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:  # tomllib's own, and what it lets through
        raise FinloraError(
            f"{path} is not valid TOML: {error}",
            'text goes in quotes: name = "..."; lists in brackets: tasks = ["fpb"]',
        ) from None
    except OSError as error:
        raise FinloraError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None


def _override(tree: dict[str, Any], text: str, problems: list[FinloraError]) -> None:
    """Write `section.key=value` into the tree; the value is TOML, else plain text."""
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or len(keys) < 2 or not all(keys):
        known = [
            f"{name}.{f.name}" for name, section in SECTIONS.items() for f in fields_of(section) if f.name == keys[-1]
        ]
        problems.append(
            FinloraError(
                f"cannot read the override `{text}`",
                f"write {known[0] if known else 'method.rank'}={value.strip() or '...'}",
            )
        )
        return
    if keys[0] not in SECTIONS:
        problems.append(_unknown_section(keys[0], {}, f" in the override `{text}`"))
        return
    table = tree.setdefault(keys[0], {})
    if not isinstance(table, dict):
        return  # reported with the file
    for key in keys[1:-1]:
        inner = table.get(key) if isinstance(table, dict) else None
        table[key] = table = dict(inner) if isinstance(inner, Mapping) else {}
    table[keys[-1]] = Text.parse(value.strip(), f"{path.strip()}", problems)


def _unknown_section(name: str, table: Any, where: str) -> FinloraError:
    homes = [section for section, kind in SECTIONS.items() if name in {f.name for f in fields_of(kind)}]
    if not isinstance(table, Mapping) and homes:  # a key written above the first section
        return FinloraError(f"`{name}`{where} stands outside any section", f"put it under [{homes[0]}]")
    return unknown("section", name, SECTIONS, where.removeprefix(" in "))


def _shown(value: Any) -> str:
    return f"`{json.dumps(bare(value), default=str)}`"


def replace(spec: Spec, **sections: Mapping[str, Any]) -> Spec:
    """`spec` with fields of sections changed, checked again: replace(spec, train={"lr": 1e-4}, run={"seed": 1}).

    A section of another `kind` starts from that member's own defaults. Raises: Problems.
    """
    tree = as_dict(spec)
    for name, changes in sections.items():
        old = tree.get(name, {})
        if "kind" in changes and changes["kind"] != old.get("kind"):
            old = {key: old[key] for key in ("targets", "also") if key in old}
        tree[name] = {**old, **changes}
    return spec_from_dict(tree)
