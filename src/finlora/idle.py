"""Settings that would have no effect: a spec that names them is refused, since its writer expects something of them.

    idle(...)           of sections and keys that a verb does not read, and of a method beside an adapter that brings its own;
                        values that stand at their defaults ask for nothing
    uncalibrated(...)   of a codec that would encode by a calibration which nobody makes
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .baselines import is_baseline
from .check_scratch import further
from .errors import FinloraError
from .spec import MethodPart, Spec, as_dict

TEXT = ("model.config", "model.tokenizer", "model.vocab_size", "data.text", "data.sources", "data.exclude_sources", "data.max_tokens", "train.compile",
        "structure", "parallel", "data.shards", "data.text_weights", "data.join", "data.dedup", "data.workers")
WORDS = ("data.row_tokens", "data.max_train", "data.validation")
UNREAD: dict[str, tuple[str, ...]] = {  # what each verb does not look at; a section's name stands for all of its keys
    "finetune": TEXT,
    "doctor": TEXT,
    "evaluate": ("method", "optimizer", "calibrate", "train", "log", *(key for key in TEXT if key != "train.compile"), *WORDS),
    "pretrain": (
        "codec", "method", "calibrate", "evaluate", "model.name", "model.adapter", "model.online", "model.cache",
        "data.tasks", "data.dir", "data.template", "data.too_long", "data.max_train",
    ),
    "pretrain further": (
        "calibrate", "evaluate", "structure", "model.config", "model.tokenizer", "model.vocab_size", "model.adapter",
        "data.tasks", "data.dir", "data.template", "data.too_long", "data.max_train",
    ),
}  # fmt: skip


def idle(spec: Spec, verb: str, found: dict[str, tuple[int, int]], method: tuple[Any, Any] | None) -> list[FinloraError]:
    """The problems. found: the model's linears and their shapes, as far as they are known. method: the resolved one."""
    out = _unread(spec, verb)
    if verb in ("finetune", "doctor") and is_baseline(spec.method.kind):
        for key in ("patterns", "also"):
            if getattr(spec.method, key):
                out.append(FinloraError(f'method.{key} has no effect with method.kind = "{spec.method.kind}", which PEFT puts on its layers', f"leave it out, or choose a method of `finlora list methods`{'; PEFT has patterns of its own, such as rank_pattern' if key == 'patterns' else ''}"))
    if method is not None and spec.model.adapter:
        out += _beside_adapter(spec, found, method)
    return out


def uncalibrated(spec: Spec, verb: str, codec: Any, config: Any) -> list[FinloraError]:
    """The problem where a codec encodes by calibration and will have none: neither training examples nor what an adapter keeps."""
    from .calibrate import calibration_of

    if not codec.needs(config) or verb == "finetune":
        return []
    kept = "there is no adapter that keeps one"
    if spec.model.adapter:
        try:
            if calibration_of(Path(spec.model.adapter).expanduser(), codec, config) is not None:
                return []
            kept = f"model.adapter `{spec.model.adapter}` keeps none for these settings"
        except FinloraError as error:
            return error.problems
    return [
        FinloraError(
            f'codec.kind = "{codec.name}" encodes by calibration, which `finlora {verb}` does not do, and {kept}',
            "choose settings of it that need none, or an adapter that was trained over it",
        )
    ]


def _unread(spec: Spec, verb: str) -> list[FinloraError]:
    given, usual, out = as_dict(spec), as_dict(Spec()), []
    unread = f"{verb} further" if verb == "pretrain" and further(spec) else verb
    for section, table in given.items():
        for key, value in table.items():
            name = f"{section}.{key}"
            if (section in UNREAD.get(unread, ()) or name in UNREAD.get(unread, ())) and (key not in usual[section] or value != usual[section][key]):
                if unread != verb and not {section, name} & {*UNREAD[verb]}:
                    out.append(FinloraError(f"{name} has no effect where a model is trained further", "leave it out, or describe a new model in model.config"))
                    continue
                others = [f"`finlora {v}`" for v in ("finetune", "pretrain") if v != verb and not {section, name} & {*UNREAD[v]}]
                out.append(FinloraError(f"{name} has no effect on `finlora {verb}`", f"leave it out; it is for {' and '.join(others)}"))
    return out


def _beside_adapter(spec: Spec, found: dict[str, tuple[int, int]], method: tuple[Any, Any]) -> list[FinloraError]:
    """What [method] asks for that the adapter to begin with does not have: it goes on as it was saved."""
    from .adapters import method_of, read_config
    from .wiring import config_at, matches

    if spec.method == MethodPart():
        return []
    folder = Path(spec.model.adapter).expanduser()
    try:
        (record, config), (_, own) = method_of(folder), read_config(folder)
    except FinloraError as error:
        return error.problems
    asked, wanted = method
    if asked.name != record.name:
        return [_other(f'method.kind = "{asked.name}"', f'it is of method.kind = "{record.name}"')]
    held = asdict(config)
    out = [
        _other(f"method.{key} = {value!r}", f"it has {key} = {held[key]!r}")
        for key, value in asdict(wanted).items()
        if key in spec.method.options and value != held[key]
    ]
    on = _adapted(folder, found)
    if spec.method.targets != MethodPart().targets and on and on != {name for name in found if matches(name, spec.method.targets)}:
        out.append(_other("method.targets", "it stands on other layers"))
    if spec.method.patterns and any(asdict(config_at(wanted, name, spec.method.patterns)) != {**held, **own.get("configs", {}).get(name, {})} for name in on):
        out.append(_other("method.patterns", "its layers have other settings"))
    if spec.method.also and not own.get("also"):
        out.append(_other(f"method.also = {[*spec.method.also]}", "it trained nothing whole"))
    return out


def _other(what: str, why: str) -> FinloraError:
    return FinloraError(f"{what} has no effect beside model.adapter, which goes on as it was saved: {why}", "leave it out, or begin without model.adapter")


def _adapted(folder: Path, found: dict[str, tuple[int, int]]) -> set[str]:
    """The linears that an adapter's file names; none where it cannot be read."""
    from .adapters import MAIN, PREFIX
    from .checkpoint import read_tensors

    try:
        keys = [key.removeprefix(PREFIX) for key in read_tensors(folder / MAIN)]
    except FinloraError:
        return set()
    return {name for name in found if any(key.startswith(f"{name}.") for key in keys)}
