"""A pretraining study's folder as its report reads it: one `Trained` for each run, sorted by size, arm and seed.

The size of a run is its architecture, its arm all else that the grid varies but the seed.  The dense arm that others are
compared with is the one trained for as many steps as they; the dense arms that differ from it in the steps alone are its
budgets, by which dense is known at fewer and at more tokens.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finlora import receipt
from finlora.errors import FinloraError, unknown
from finlora.report import pretraining_sizes
from finlora.report.study_data import SEED, Held, frozen, read_study, told
from finlora.report.tables import part

EQUAL = 0.01  # two runs were trained on equally many tokens when they differ by no more than this share


@dataclass(frozen=True)
class Trained:
    """One finished run. loss: nats a token of held-out text; rate: tokens a second; work: multiply-adds of training a token, a third of all.

    params: trained values; dense: those of the same architecture with dense linears; linears: {linear: settings of its structure}.
    start_bytes, cpu_seconds, threads, activation, moments: None where the receipt does not say. activation: bytes that a
    micro-batch keeps for the backward pass; moments: of the optimiser's state. edge: whether its searched value lies at an end of the list.
    """

    run: str
    size: str
    arm: str
    seed: Any
    kind: str
    optimizer: str
    setup: Any
    chosen: Any
    loss: float
    bits: float | None
    tokens: int
    steps: int
    seconds: float
    rate: float
    peak_bytes: float | None
    params: int
    dense: int
    work: int
    linears: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    start_bytes: float | None = None
    cpu_seconds: float | None = None
    threads: int | None = None
    activation: float | None = None
    edge: bool = False
    moments: int | None = None


@dataclass(frozen=True)
class Study:
    """A study that was read. runs: in the order of sizes and arms; failed: [{"keys", "error"}]; held: for where the numbers are
    from; beside: a structured arm that the others are compared with too, or ""."""

    name: str
    runs: tuple[Trained, ...]
    sizes: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[Any, ...]
    reference: str
    budgets: tuple[str, ...]
    searched: str
    chosen: Mapping[str, Any]
    failed: Sequence[Mapping[str, Any]]
    held: Held
    beside: str = ""

    def of(self, size: str, arm: str) -> dict[Any, Trained]:
        """{seed: run} of one arm at one size."""
        return {r.seed: r for r in self.runs if r.size == size and r.arm == arm}

    def compared(self) -> list[str]:
        """The arms that are compared with the reference: all but itself and its budgets."""
        return [arm for arm in self.arms if arm not in self.budgets]

    def missing(self) -> list[tuple[str, str, Any]]:
        """(size, arm, seed) of the runs that the others let one expect."""
        there = {(r.size, r.arm, r.seed) for r in self.runs}
        return [(s, a, n) for s in self.sizes for a in self.arms for n in self.seeds if (s, a, n) not in there]


def load(folder: str | Path, reference: str = "") -> Study:
    """The pretraining study in a folder. reference: the dense arm to compare with; "": the one of as many steps as the others; a
    structured arm: besides that one, at equal tokens.

    Raises: FinloraError where the folder holds no study or no finished run, a run did not pretrain, the runs were not held
    against the same text, none of them is dense, or there is no such arm.
    """
    folder = Path(folder)
    study = read_study(folder)
    raw = {r["run"]: receipt.read(folder / "runs" / r["run"]) for r in study["runs"]}
    for run, sheet in raw.items():
        if sheet["kind"] != "pretrain" or any(part(sheet, "model").get(key) is None for key in ("params_dense", "forward_multiply_adds")):
            raise FinloraError(f"run `{run}` of the study in `{folder}` did not train a model from scratch, or does not say its size", "make it with `finlora pretrain` of this version")
    _same_text(raw)
    searched = study.get("key") or ""
    size_keys, arm_keys = _keys(study["runs"], raw, searched)
    runs, unmeasured = [], []
    for each in study["runs"]:
        one = _trained(each, raw[each["run"]], size_keys, arm_keys, searched, study.get("chosen") or {})
        if math.isfinite(one.loss):
            runs.append(one)
        else:
            unmeasured.append({"keys": each["keys"], "error": "it has no validation loss"})
    if not runs:
        raise FinloraError(f"no run of the study in `{folder}` has a validation loss", "set data.validation above 0")
    width = {r.size: r.dense for r in runs}
    sizes = tuple(sorted(width, key=width.__getitem__))
    arms = tuple(dict.fromkeys(r.arm for r in runs))
    if reference and reference not in arms:
        raise unknown("arm", reference, arms, "the study, to compare others with (--reference)")
    base, budgets = _reference(runs, arms, reference)
    return Study(
        study["study"], tuple(sorted(runs, key=lambda r: (sizes.index(r.size), arms.index(r.arm), str(r.seed)))), sizes, arms,
        tuple(dict.fromkeys(r.seed for r in runs)), base, budgets, searched, study.get("chosen") or {},
        [*(study.get("failed") or []), *unmeasured], Held(folder, study, _without_folders(raw), raw, []),
        beside="" if reference in ("", base) else reference,
    )  # fmt: skip


def _same_text(raw: Mapping[str, Mapping[str, Any]]) -> None:
    """Losses a token are compared only on the same text in the same tokens: by its hash, and by its counts where a receipt has no hash."""
    seen: dict[str, dict[Any, str]] = {"hash": {}, "rows": {}, "tokens": {}, "bytes": {}}
    for run, sheet in raw.items():
        held = [d for d in sheet.get("data") or [] if d.get("split") == "validation"]
        for name, key in (("hash", "sha256"), ("rows", "rows"), ("tokens", "tokens"), ("bytes", "bytes")):
            value = frozen([d.get(key) for d in held])
            if name == "tokens" or None not in value:  # what an older receipt lacks, it does not contradict
                seen[name].setdefault(value, run)
    for found in seen.values():
        if len(found) < 2:
            continue
        a, b = list(found.values())[:2]
        raise FinloraError(f"runs `{a}` and `{b}` were validated on different text, or in other tokens", "use the same data and tokenizer for all runs of a study")


def _keys(runs: Sequence[Mapping[str, Any]], raw: Mapping[str, Mapping[str, Any]], searched: str) -> tuple[list[str], list[str]]:
    """(keys of the grid that tell the architecture, keys that tell the arm)."""
    configs = {r["run"]: frozen(raw[r["run"]]["spec"]["model"]["config"]) for r in runs}
    keys = [k for k in runs[0]["keys"] if k not in (SEED, searched)]
    sizes = []
    for key in keys:
        by: dict[Any, set[Any]] = {}
        for r in runs:
            by.setdefault(frozen(r["keys"].get(key)), set()).add(configs[r["run"]])
        if len(set(configs.values())) > 1 and all(len(found) == 1 for found in by.values()):
            sizes.append(key)
    rest = [k for k in keys if k not in sizes]
    varied = [k for k in rest if len({repr(r["keys"].get(k)) for r in runs}) > 1]
    return sizes, varied


def _trained(each: Mapping[str, Any], sheet: Mapping[str, Any], size_keys: Sequence[str], arm_keys: Sequence[str], searched: str, chosen: Mapping[str, Any]) -> Trained:
    model, train, spec, keys = sheet["model"], sheet["train"], sheet["spec"], each["keys"]
    structure = part(sheet, "structure")
    kind, optimizer = part(spec, "structure").get("kind") or structure.get("kind") or "", part(spec, "optimizer").get("kind") or ""
    loss = receipt.kept_loss(train, part(spec, "train").get("patience") or 0)
    loss = math.nan if loss is None else loss
    plain = {k: v for k, v in keys.items() if k in size_keys and not isinstance(v, dict)}
    return Trained(
        each["run"], _shown(plain) or f"{model['params_dense'] / 1e6:.3g}M", _shown({k: keys[k] for k in arm_keys}) or kind, keys.get(SEED, part(spec, "run").get("seed", 0)),
        kind, optimizer, _setup(spec, searched), keys.get(searched), loss, train.get("val_bits_per_byte"), train["tokens"], train["steps"], train["seconds"],
        train["tokens_per_s"], train.get("peak_bytes"), model["params"], model["params_dense"], _work(sheet, kind, structure.get("linears") or {}), structure.get("linears") or {},
        spec["model"]["config"], train.get("start_bytes"), train.get("cpu_seconds"), train.get("threads"), train.get("activation_bytes"), _at_edge(keys, chosen, searched), train.get("optimizer_bytes"),
    )  # fmt: skip


def _work(sheet: Mapping[str, Any], kind: str, linears: Mapping[str, Mapping[str, Any]]) -> float:
    """Multiply-adds of training a token, a third of forward and backward together, as torch counts what is computed.

    To those of a receipt, which are what the map asks for: what a structure does once a pass whatever its tokens, shared among
    those of a micro-batch, the half of attention that lies after each query (see restructure.multiply_adds), and a dense guide
    while it is there.
    """
    spec, model = sheet["spec"], sheet["model"]
    train, config = part(spec, "train"), spec["model"]["config"]
    length = part(spec, "data").get("row_tokens") or 0
    tokens = length * (train.get("micro_rows") or train.get("batch") or 1)
    vocabulary = pretraining_sizes.vocabulary(config, model["params_dense"])
    shapes = pretraining_sizes.layout(config, vocabulary)[0]
    once = pretraining_sizes.once_a_pass(kind, linears, shapes) if linears else 0
    guides = sum(share * math.prod(shapes[name]) for name, share in pretraining_sizes.guides(linears).items())
    return model["forward_multiply_adds"] + pretraining_sizes.attention(config, vocabulary, length) + guides + (once / 3 / tokens if tokens else 0)


def _at_edge(keys: Mapping[str, Any], chosen: Mapping[str, Any], searched: str) -> bool:
    """Whether the search of a run's group chose an end of its list; a group is named by some of the run's keys, in their order."""
    named = [f"{key.split('.')[-1] if not key.endswith('.kind') else key.split('.')[0]} {'+'.join(map(str, v)) if isinstance(v, list) else v}" for key, v in keys.items() if key != searched]
    names = (", ".join(some) for many in range(len(named), 0, -1) for some in itertools.combinations(named, many))
    return next((bool(chosen[name].get("at_edge")) for name in names if name in chosen), False)


def _shown(keys: Mapping[str, Any]) -> str:
    """An axis by the name of its value alone, a key of a run with its own name."""
    return ", ".join(str(value) if "." not in key else told({key: value}) for key, value in keys.items())


def _setup(spec: Mapping[str, Any], searched: str) -> Any:
    """What makes two arms the same but for the steps: the settings without place, seed, architecture, steps and the searched key."""
    tree = {name: dict(table) for name, table in spec.items() if name not in ("run", "model", "log") and isinstance(table, Mapping)}
    tree.get("train", {}).pop("steps", None)
    section, _, key = searched.partition(".")
    tree.get(section, {}).pop(key, None)
    return frozen(tree)


def _reference(runs: Sequence[Trained], arms: Sequence[str], asked: str) -> tuple[str, tuple[str, ...]]:
    """(the dense arm to compare with, it and its budgets). asked: an arm, or ""; one that is not dense chooses none."""
    plain = [arm for arm in arms if not any(r.linears for r in runs if r.arm == arm)]
    asked = asked if asked in plain else ""
    if not plain:
        raise FinloraError("no run of the study is dense: there is nothing to compare with", "add an arm that leaves structure.kind as it is")
    first = {arm: next(r for r in runs if r.arm == arm) for arm in plain}
    steps = Counter(r.steps for r in runs if r.linears)
    kin = [arm for arm in plain if first[arm].setup == first[asked or plain[0]].setup]
    base = asked or max(kin, key=lambda arm: steps[first[arm].steps])
    return base, tuple(arm for arm in plain if first[arm].setup == first[base].setup)


def _without_folders(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {run: {k: v for k, v in sheet.items() if k != "spec"} | {"results": {}} for run, sheet in raw.items()}
