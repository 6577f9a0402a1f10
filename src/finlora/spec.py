"""What a run is, as values: frozen dataclasses read from one TOML file, with `section.key=value` overrides.

    spec = load_spec("run.toml", ["method.rank=16"])     every problem of the file at once, each with its place
    open("spec.toml", "w").write(dump(spec))             the resolved spec, which loads back to an equal value
    digest(spec)                                         one hash of all that determines the result

The options of a codec, a method or an optimizer are declared in that member's own file: here they are an open table
(`Part.options`), and `resolve(part)` turns them into the member's config. No torch is needed until then.
How one value is read and judged is in `fields.py`. Paths are relative to the working folder.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from . import registry
from .errors import FinloraError, Problems, unknown
from .fields import Text, bare, fields_of, read_fields, setting, to_key, to_toml

DEVICE = r"auto|cpu|mps|cuda(:\d+)?"
TARGETS = "`all-linear`, `attention`, `mlp`, a list of layer names, or `re:` and a regular expression of full names"


@dataclass(frozen=True)
class Run:
    """[run]: where a run writes and what it runs on."""

    out: str = setting("runs/finlora", "folder that receives everything the run writes", filled=True, result=False)
    seed: int = setting(0, "seed of every random draw: adapter, order of examples, dropout", low=0, high=2**63 - 1)
    device: str = setting(
        "auto", "auto, cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one", match=DEVICE, result=False
    )
    dtype: str = setting(
        "auto",
        "compute type; auto is bfloat16 where the device has it natively, else float32",
        choices=("auto", "float32", "bfloat16", "float64"),
    )
    overwrite: bool = setting(False, "replace what another run left in the folder", result=False)
    resume: str = setting(
        "auto",
        "auto continues from the last checkpoint of the same spec, never starts again",
        choices=("auto", "never"),
        result=False,
    )


@dataclass(frozen=True)
class Model:
    """[model]: the base model, or for pretraining its architecture."""

    name: str = setting(
        "finlora/base", "finlora/base (embedded), a local Hugging Face folder, or a hub id (online only)", filled=True
    )
    online: bool = setting(False, "allow a hub id to be downloaded")
    adapter: str = setting("", "folder of a saved adapter to begin with; it brings its own method")
    cache: str = setting(
        "auto",
        "keep the encoded base on disk and map it the next time: auto does so from 64 MB of weights on",
        choices=("auto", "on", "off"),
        result=False,
    )
    config: dict[str, Any] = setting({}, "pretraining: the architecture, as {family = 'llama', hidden_size = 256, ...}")
    tokenizer: str = setting("", "pretraining: folder of a tokenizer, or `train` to make one from the text")
    vocab_size: int = setting(6144, "pretraining: entries of a tokenizer made from the text", low=256, high=1_000_000)


@dataclass(frozen=True)
class Part:
    """A member of a family by its name (`kind`), with the options that its own config declares."""

    family: ClassVar[str] = ""
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CodecPart(Part):
    """[codec]: how the frozen base is kept. `finlora list codecs` shows the kinds."""

    family: ClassVar[str] = "codec"
    kind: str = setting("none", "the codec's name", filled=True)


@dataclass(frozen=True)
class MethodPart(Part):
    """[method]: how the base is adapted. `finlora list methods` shows the kinds."""

    family: ClassVar[str] = "method"
    kind: str = setting("lora", "the method's name", filled=True)
    targets: str | tuple[str, ...] = setting("all-linear", f"the layers that are adapted: {TARGETS}", filled=True)
    patterns: dict[str, Any] = setting(
        {}, "settings that differ by layer, the first rule that names it counts: {attention = {rank = 4}, 're:.*down_proj' = {rank = 16}}"
    )
    also: tuple[str, ...] = setting(
        (), "trained whole beside the adapter", choices=("embeddings", "head")
    )


@dataclass(frozen=True)
class OptimizerPart(Part):
    """[optimizer]: what turns gradients into steps. `finlora list optimizers` shows the kinds."""

    family: ClassVar[str] = "optimizer"
    kind: str = setting("adamw", "the optimiser's name", filled=True)


@dataclass(frozen=True)
class Calibrate:
    """[calibrate]: a look at the training examples before training, for the methods and codecs that begin from one."""

    examples: int = setting(64, "training examples looked at", low=1)
    codec: str = setting("none", "how the base is kept meanwhile; a lossy codec saves memory on a large base", filled=True)


@dataclass(frozen=True)
class Data:
    """[data]: what is learned from."""

    tasks: tuple[str, ...] = setting(
        ("tone",), "tasks whose training examples are mixed; `finlora list tasks` shows them"
    )
    weights: tuple[float, ...] = setting(
        (), "how often each task's training examples count in an epoch (2.5: twice, and half of them a third time); empty: once", added=True
    )
    dir: str = setting("", "folder of data files; empty: the sets that ship with the package")
    text: tuple[str, ...] = setting((), "pretraining: text or jsonl files (field `text`), or folders of them")
    sources: tuple[str, ...] = setting((), "pretraining: only rows whose `source` is one of these; empty: all")
    exclude_sources: tuple[str, ...] = setting((), "pretraining: no rows whose `source` is one of these")
    template: str = setting(
        "auto", "auto: the tokenizer's chat template if it has one, else plain", choices=("auto", "plain", "chat")
    )
    too_long: str = setting(
        "refuse",
        "an example longer than the row: refuse it, or cut its context from the left",
        choices=("refuse", "cut"),
    )
    row_tokens: int = setting(
        2048, "tokens of a packed row; 0: no packing, each example has its own row", low=0, high=1_048_576
    )
    max_train: int = setting(0, "training examples of each task; 0: all", low=0)
    validation: float = setting(0.1, "share of the training examples held out to watch the loss", low=0.0, below=1.0)
    max_tokens: int = setting(0, "pretraining: tokens of text read; 0: all", low=0)


@dataclass(frozen=True)
class Train:
    """[train]: the loop. Packing and micro-batches change neither loss nor gradient."""

    epochs: float = setting(3.0, "passes over the training examples", above=0.0)
    steps: int = setting(0, "optimiser steps; 0: as many as the epochs take", low=0)
    batch: int = setting(16, "examples of one optimiser step", low=1)
    micro_rows: int = setting(1, "rows computed at once: memory and speed, not the result", low=1, result=False)
    lr: float = setting(2e-4, "peak learning rate", above=0.0, high=10.0)
    min_lr_ratio: float = setting(0.0, "last learning rate as a share of the peak", low=0.0, high=1.0)
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0.0, high=10.0)
    beta1: float = setting(0.9, "decay of Adam's first moment", low=0.0, below=1.0)
    beta2: float = setting(0.999, "decay of Adam's second moment", low=0.0, below=1.0)
    eps: float = setting(1e-8, "Adam's epsilon", above=0.0, high=1.0)
    schedule: str = setting(
        "cosine", "course of the learning rate after warm-up", choices=("cosine", "linear", "constant")
    )
    warmup: float = setting(0.06, "warm-up: share of all steps below 1, number of steps from 1 on", low=0.0)
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping", low=0.0)
    recompute: bool = setting(
        False, "compute activations again in the backward pass: less memory, more time", result=False
    )
    compile: bool = setting(False, "pretraining: torch.compile the model: slow to start, faster after")
    validate_every: int = setting(0, "steps between two looks at the held-out loss; 0: once an epoch", low=0)
    patience: int = setting(0, "stop after so many looks without a better held-out loss; 0: never", low=0)
    checkpoint_every: int = setting(
        0, "steps between two checkpoints; 0: at each look at the held-out loss", low=0, result=False
    )
    keep: int = setting(2, "checkpoints that are kept", low=1, result=False)
    log_every: int = setting(1, "steps between two lines of log.jsonl", low=1, result=False)
    max_loss: float = setting(
        0.0, "a loss above this stops the run, nats per token; 0: four times the first losses", low=0.0
    )


@dataclass(frozen=True)
class Evaluate:
    """[evaluate]: what the run is graded on when training ends."""

    tasks: tuple[str, ...] = setting((), "tasks; empty: those of [data]")
    split: str = setting("test", "which part of the data", filled=True)
    ways: tuple[str, ...] = setting(
        ("choose", "say"),
        "choose: the likeliest label; say: what the model writes",
        choices=("choose", "say"),
        filled=True,
    )
    limit: int = setting(0, "examples of each task; 0: all", low=0)
    max_new: int = setting(16, "tokens the model may write", low=1)
    batch_tokens: int = setting(4096, "tokens scored at once", low=64)
    shots: int = setting(0, "worked examples from the training split before each question", low=0, high=64, added=True)
    think: int = setting(0, "tokens a reasoning model may think, besides max_new; what stands in <think> is no answer", low=0, added=True)
    encoder: str = setting("", "folder of the encoder for BERTScore; empty: it is left out", added=True)


@dataclass(frozen=True)
class Log:
    """[log]: extra logs, each needs its own package."""

    tensorboard: bool = setting(False, "write TensorBoard events into the run folder", result=False)
    wandb: bool = setting(False, "send the curves to Weights & Biases", result=False)


@dataclass(frozen=True)
class Spec:
    """One run, complete. Build it with `load_spec`, `spec_from_dict`, or by naming sections: `Spec(train=Train(lr=1e-4))`."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    codec: CodecPart = field(default_factory=CodecPart)
    method: MethodPart = field(default_factory=MethodPart)
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    calibrate: Calibrate = field(default_factory=Calibrate)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)


SECTIONS: dict[str, type] = {
    "run": Run, "model": Model, "codec": CodecPart, "method": MethodPart,
    "optimizer": OptimizerPart, "calibrate": Calibrate, "data": Data, "train": Train, "evaluate": Evaluate, "log": Log,
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
        for f in fields_of(section):
            unused = f.metadata.get("added") and getattr(getattr(spec, name), f.name) == f.default
            if unused or not f.metadata.get("result", True):
                told[name].pop(f.name, None)
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
