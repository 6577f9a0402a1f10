"""Everything wrong with a spec, found before any work is done and without writing a byte.

    check(spec)            what would stop `finlora finetune`; check(spec, "pretrain" | "evaluate" | "generate" | "doctor")
    advice(spec)           what is not wrong, but seldom wise

Problems are collected, not raised one by one, so that a user mends them all at once. What needs a sound part (the rank
needs a model, the longest example needs data) is looked at only when that part is sound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import registry
from .check_scratch import pretraining
from .errors import FinloraError, Problems, gathered
from .fields import read_fields
from .idle import idle, uncalibrated
from .spec import Spec, as_dict, resolve, spec_from_dict

VERBS = ("finetune", "pretrain", "evaluate", "generate", "doctor")
LONGEST = 16  # of a task's examples, by characters, are counted in tokens


def check(spec: Spec, verb: str = "finetune") -> list[FinloraError]:
    """The problems that would stop `verb`, none if it can begin. Reads the data and the model's config, not its weights."""
    assert verb in VERBS, verb
    problems: list[FinloraError] = []
    gathered(problems, lambda: spec_from_dict(as_dict(spec)))
    if problems:
        return problems
    _device(spec, problems)
    method = folder = None
    optimizer = gathered(problems, lambda: resolve(spec.optimizer)) if verb in ("finetune", "pretrain", "doctor") else None
    if verb == "pretrain":
        pretraining(spec, problems)
    else:
        codec = gathered(problems, lambda: resolve(spec.codec))
        method = gathered(problems, lambda: resolve(spec.method)) if verb in ("finetune", "doctor") else None
        folder = _model(spec, problems)
        problems += uncalibrated(spec, verb, *codec) if codec else []
        if method:
            _fits(spec, codec, method, folder, problems)
            _begins(spec, verb, method, optimizer, problems)
        if verb != "generate":
            examples = _tasks(spec, verb, problems)
            if folder and examples and not problems:
                _lengths(spec, verb, folder, examples, problems)
    if verb in ("finetune", "evaluate") and spec.evaluate.text:
        from .perplexity import texts

        gathered(problems, lambda: texts(spec.evaluate.text))
    if verb in ("finetune", "pretrain", "evaluate"):
        _out(spec, problems)
    problems += idle(spec, verb, layers(_config(folder)) if folder is not None else {}, method)
    return list({str(problem): problem for problem in problems}.values())


def require(spec: Spec, verb: str) -> None:
    """Raises: Problems with everything that `check` finds; nothing when the verb can begin."""
    if problems := check(spec, verb):
        raise Problems(problems)


def advice(spec: Spec) -> list[str]:
    """What a sound spec would seldom want, with the usual value; nothing is changed."""
    record, config = resolve(spec.method)
    optimizer, _ = resolve(spec.optimizer)
    lr, out = spec.train.lr, []
    if record.trains_base and lr > 1e-3:
        out.append(f"train.lr = {lr:g} is high for a method that trains every weight; 1e-5 to 5e-4 is usual")
    if not record.trains_base:
        out += _rate(spec, record) + _placement(spec, record, config)
    if spec.data.validation == 0 and not spec.train.steps and spec.train.epochs > 5:
        out.append(
            f"train.epochs = {spec.train.epochs:g} without held-out examples: data.validation = 0.1 would show overfitting"
        )
    if optimizer.invariant and spec.train.clip:
        out.append(
            f"train.clip = {spec.train.clip:g} measures gradients as the factors have them, which optimizer.kind = "
            f'"{optimizer.name}" is independent of; 0 leaves that whole'
        )
    return out


def _rate(spec: Spec, record: Any) -> list[str]:
    """The learning rate of an adapter: about ten times that of full fine-tuning, whatever the rank."""
    # a method with undecayed factors begins with parts of the weight itself in them
    lr, start = spec.train.lr, bool(record.undecayed)
    share = 5 if start else 1
    low, high = 2e-5 / share, 1e-2 / share
    if lr < low or lr > high:
        what = "low" if lr < low else "high"
        return [
            f"train.lr = {lr:g} is {what} for {'such a start' if start else 'an adapter'}; {1e-4 / share:g} to {1e-3 / share:g} is usual"
        ]
    usual = usual_rate(_config_of(spec))
    if usual and not 1 / 5 <= lr * share / usual <= 5:
        return [
            f"train.lr = {lr:g} is far from {usual / share:.1e}, where adapters of this family and width are usually best: about ten times"
            f" the rate of full fine-tuning, whatever the rank{', less for a start at parts of the weight' if start else ''}"
        ]
    if start and lr >= 2e-4:
        return [
            f'train.lr = {lr:g}: method.kind = "{record.name}" begins with parts of the weight in its factors, where a rate 3 to 10 times below the usual is best'
        ]
    return []


def usual_rate(config: dict[str, Any]) -> float | None:
    """The best learning rate of LoRA by family and width H, 5e-5 * 10 * (2000 / H)^P; None where it was not fitted.

    Source: Thinking Machines, LoRA Without Regret (2025), and their cookbook's fit over Llama and Qwen models. No rank
    enters: the best rate hardly depends on it. Widths below 1024 are outside what was fitted.
    """
    kind, width = str(config.get("model_type", "")), config.get("hidden_size")
    power = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}.get(kind)
    if power is None or not isinstance(width, int) or width < 1024:
        return None
    return 5e-5 * 10 * (2000 / width) ** power


def _config_of(spec: Spec) -> dict[str, Any]:
    """The model's configuration where it is at hand, else nothing."""
    from .model import locate

    try:
        return _config(Path(locate(spec.model.name, spec.model.online)))
    except FinloraError:
        return {}


def _placement(spec: Spec, record: Any, config: Any) -> list[str]:
    """Where the adapter stands, and how its strength goes with the rank."""
    from .traits import traits
    from .wiring import matches

    out, targets = [], spec.method.targets
    found = layers(_config_of(spec))
    chosen = (
        [name for name in found if matches(name, targets)]
        if _rules([targets] if isinstance(targets, str) else [*targets], "", [])
        else []
    )
    if targets in ("attention", ("attention",)) or (chosen and all(matches(name, "attention") for name in chosen)):
        out.append(
            "method.targets names attention alone, which learns less than `mlp` or `all-linear` with as many parameters (LoRA Without Regret)"
        )
    rank, alpha = getattr(config, "rank", 0), getattr(config, "alpha", None)
    if rank >= 64 and alpha is not None and alpha < rank and traits(record).falls == 1:
        out.append(
            f"method.rank = {rank}: the strength alpha / rank = {alpha / rank:g} falls as the rank grows; a method whose scale falls"
            f" as 1/sqrt(rank), or alpha = {rank}, learns better at such ranks"
        )
    return out


def verb_of(spec: Spec) -> str:
    """The verb that a spec is meant for: `pretrain` where it names texts or an architecture, else `finetune`."""
    return "pretrain" if spec.data.text or spec.model.config else "finetune"


def _device(spec: Spec, problems: list[FinloraError]) -> None:
    from .model import device_of

    gathered(problems, lambda: device_of(spec.run.device))


def _model(spec: Spec, problems: list[FinloraError]) -> Path | None:
    """The model's local folder, None where it is not local or not sound."""
    from .model import locate

    where = gathered(problems, lambda: locate(spec.model.name, spec.model.online))
    if spec.model.adapter:
        adapter = Path(spec.model.adapter).expanduser()
        if not (adapter / "adapter_config.json").is_file():
            problems.append(
                FinloraError(
                    f"model.adapter: `{spec.model.adapter}` is not an adapter folder, it has no adapter_config.json",
                    "name the `adapter` folder of a run",
                )
            )
        elif not (adapter / "adapter_model.safetensors").is_file():
            problems.append(
                FinloraError(
                    f"model.adapter: `{spec.model.adapter}` holds no adapter_model.safetensors",
                    "pickled adapters are refused: convert them to safetensors first",
                )
            )
    if where is None or not Path(where).is_dir():
        return None
    return Path(where) if gathered(problems, lambda: _config(Path(where))) is not None else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
    except (OSError, ValueError):
        pass
    raise FinloraError(f"model.name: {folder / 'config.json'} is not a model's configuration", "fetch the model again")


def _fits(spec: Spec, codec: Any, method: Any, folder: Path | None, problems: list[FinloraError]) -> None:
    """Whether method, codec and the model's layers go together."""
    from .wiring import config_at, matches

    record, config = method
    if codec:
        _over(record, codec[0], problems)
    patterns = _patterns(spec, record, config, problems)
    found = layers(_config(folder)) if folder is not None else {}
    targets = [*spec.method.targets] if isinstance(spec.method.targets, tuple) else spec.method.targets
    if not _rules(targets, "method.targets", problems) or not found:
        return
    chosen = {name: shape for name, shape in found.items() if matches(name, targets)}
    kinds = sorted({name.rsplit(".", 1)[-1] for name in found})
    if not chosen:
        problems.append(
            FinloraError(
                f"method.targets = {json.dumps(targets)} names no layer of {spec.model.name}",
                f"its layers are called {', '.join(kinds)}",
            )
        )
        return
    for rule in patterns:
        if not any(matches(name, rule) for name in chosen):
            none = not any(matches(name, rule) for name in found)
            problems.append(
                FinloraError(
                    f"method.patterns: the rule `{rule}` names no "
                    + (f"layer of {spec.model.name}" if none else "layer that method.targets names"),
                    f"its layers are called {', '.join(kinds)}",
                )
            )
    ranks = {name: getattr(config_at(config, name, patterns), "rank", 0) for name in chosen}
    high = [name for name in chosen if ranks[name] > min(chosen[name])]
    if high:
        name = min(high, key=lambda name: min(chosen[name]))
        n_out, n_in = chosen[name]
        rule = next((rule for rule, values in patterns.items() if matches(name, rule) and "rank" in values), None)
        place = "method.rank" if rule is None else f"method.patterns of `{rule}`: rank"
        problems.append(
            FinloraError(
                f"{place} = {ranks[name]} is above the layer {name}, whose weight is {n_out} x {n_in}",
                f"use a rank of at most {min(n_out, n_in)}",
            )
        )


def _over(record: Any, codec: Any, problems: list[FinloraError]) -> None:
    """Whether the method can stand over the codec."""
    from .seam import check_over

    try:
        check_over(record, codec)
    except FinloraError as error:
        how, hint = "is exact over a lossless base only, and not", error.hint
        if record.trains_base:
            how, hint = (
                "trains the base itself and cannot do so",
                'write codec.kind = "none", or choose an adapter method such as lora',
            )
        problems.append(
            FinloraError(f'method.kind = "{record.name}" {how} over the lossy codec.kind = "{codec.name}"', hint)
        )


def _rules(rules: str | list[str], place: str, problems: list[FinloraError]) -> bool:
    """Whether all regular expressions among the rules can be read."""
    before = len(problems)
    for rule in [rules] if isinstance(rules, str) else rules:
        try:
            re.compile(rule.removeprefix("re:") if rule.startswith("re:") else "")
        except re.error as error:
            problems.append(
                FinloraError(f"{place}: `{rule}` is not a regular expression ({error})", 'fix what follows "re:"')
            )
    return len(problems) == before


def _patterns(spec: Spec, record: Any, config: Any, problems: list[FinloraError]) -> dict[str, Any]:
    """The sound ones of method.patterns; what is wrong with the others becomes problems."""
    from .baselines import is_baseline
    from .wiring import changed

    sound: dict[str, Any] = {}
    if is_baseline(spec.method.kind):  # told by `idle`
        return sound
    for rule, values in spec.method.patterns.items():
        place, before = f"method.patterns of `{rule}`", len(problems)
        if isinstance(values, dict):
            read_fields(record.config, values, "method", f" in {place}", problems)
        if _rules(rule, "method.patterns", problems) and len(problems) == before:
            if gathered(problems, lambda rule=rule, values=values: changed(config, rule, values)) is not None:
                sound[rule] = values
    return sound


def _begins(spec: Spec, verb: str, method: Any, optimizer: Any, problems: list[FinloraError]) -> None:
    """What the method needs beside its base: calibration, and an optimiser that can step it."""
    record, config = method
    gathered(problems, lambda: registry.pick("codec", spec.calibrate.codec))
    if verb != "finetune" and record.needs(config):
        problems.append(
            FinloraError(
                f'method.kind = "{record.name}" begins from calibration, which `finlora {verb}` does not do',
                "choose a method without, such as lora",
            )
        )
    if optimizer and optimizer[0].paired:
        from .baselines import is_baseline
        from .traits import traits

        if is_baseline(record.name) or not traits(record).paired:
            problems.append(
                FinloraError(
                    f'optimizer.kind = "{optimizer[0].name}" steps pairs of low-rank factors, and method.kind = "{record.name}" trains none',
                    'write optimizer.kind = "adamw", or choose a method such as lora',
                )
            )


def layers(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """{name of a linear: (out, in)} by a model's config.json, for the two shapes of name that we know; else empty."""
    if config.get("model_type") == "gpt2":
        d = config.get("n_embd", 768)
        inner = config.get("n_inner") or 4 * d
        of = {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "mlp.c_fc": (inner, d), "mlp.c_proj": (d, inner)}
        return {
            f"transformer.h.{k}.{name}": shape for k in range(config.get("n_layer", 12)) for name, shape in of.items()
        }
    if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3") or not isinstance(
        config.get("hidden_size"), int
    ):
        return {}
    d, heads = config["hidden_size"], config.get("num_attention_heads") or 1
    size = config.get("head_dim") or d // heads
    q, kv, inner = (
        heads * size,
        (config.get("num_key_value_heads") or heads) * size,
        config.get("intermediate_size") or 4 * d,
    )
    of = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q),
          "mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d), "mlp.down_proj": (d, inner)}  # fmt: skip
    return {
        f"model.layers.{k}.{name}": shape
        for k in range(config.get("num_hidden_layers", 1))
        for name, shape in of.items()
    }


def _tasks(spec: Spec, verb: str, problems: list[FinloraError]) -> dict[tuple[str, str], list[Any]]:
    """{(task, split): its examples} of all that the verb reads."""
    from .rows import read_examples
    from .tasks import HARNESS

    wanted: list[tuple[str, str, int]] = []
    if verb != "evaluate":
        wanted += [(name, "train", 0) for name in spec.data.tasks]
        if not spec.data.tasks:
            problems.append(
                FinloraError(
                    "data.tasks is empty: there is nothing to learn from", "`finlora list tasks` shows what there is"
                )
            )
    graded = [name for name in spec.evaluate.tasks or spec.data.tasks if not name.startswith(HARNESS)]  # that package checks its own
    wanted += [(name, spec.evaluate.split, spec.evaluate.limit) for name in graded]
    picked = {
        name: gathered(problems, lambda name=name: registry.pick("task", name))
        for name in dict.fromkeys(name for name, _, _ in wanted)
    }
    found: dict[tuple[str, str], list[Any]] = {}
    for name, split, limit in dict.fromkeys(wanted):
        task = picked[name]
        if task is None:
            continue
        examples = gathered(
            problems,
            lambda task=task, split=split, limit=limit: read_examples(task, split, spec.data.dir, limit or None),
        )
        found[name, split] = examples or []
    for name in dict.fromkeys(graded):
        task = picked.get(name)
        if task is not None and task.kind not in ("label", "choice") and "say" not in spec.evaluate.ways:
            problems.append(
                FinloraError(
                    f'evaluate.ways = ["choose"], but task `{name}` offers no labels: it is answered in free text',
                    'write evaluate.ways = ["say"]',
                )
            )
    return found


def _lengths(
    spec: Spec, verb: str, folder: Path, examples: dict[tuple[str, str], list[Any]], problems: list[FinloraError]
) -> None:
    """Whether the longest examples fit the row they are trained in, and the model's context they are graded in."""
    if spec.data.too_long == "cut":
        return
    from .model import load_tokenizer
    from .text import choose_template, prompt_text, render

    context = _config(folder).get("max_position_embeddings") or _config(folder).get("n_positions") or 1 << 30
    tokenizer = load_tokenizer(str(folder))
    template = gathered(problems, lambda: choose_template(tokenizer, spec.data.template))
    if template is None:
        return
    row = min(context, spec.data.row_tokens or context)
    for (name, split), some in examples.items():
        trained = verb != "evaluate" and split == "train" and name in spec.data.tasks
        room = row if trained else context
        place = f"data.row_tokens = {room}" if room < context else f"the model's context of {context}"
        spare = 0 if trained or "say" not in spec.evaluate.ways else max(spec.evaluate.max_new, registry.pick("task", name).max_new) + spec.evaluate.think
        for example in sorted(some, key=lambda e: -len(prompt_text(e)))[:LONGEST]:
            n = len(render(example, tokenizer, True, template).ids)
            if n - 1 > room:
                remedy = 'set data.too_long = "cut" to cut its context from the left' + (
                    ", or raise data.row_tokens" if room < context else ""
                )
                problems.append(
                    FinloraError(
                        f"example `{example.id}` of task `{name}` ({split}) has {n} tokens, more than {place}", remedy
                    )
                )
                break
            n = len(render(example, tokenizer, False, template).ids)
            if spare and n + spare - 1 > room:
                problems.append(
                    FinloraError(
                        f"example `{example.id}` of task `{name}` ({split}) has {n} tokens, which leaves no room for {spare} new tokens in {place}",
                        'lower evaluate.max_new or .think, or set data.too_long = "cut"',
                    )
                )
                break


def _out(spec: Spec, problems: list[FinloraError]) -> None:
    import os

    from .runs import refusal

    if (clash := refusal(spec)) is not None:
        problems.append(clash)
        return
    above = next(folder for folder in _upwards(Path(spec.run.out).absolute()) if folder.exists())
    if not above.is_dir():
        problems.append(
            FinloraError(f"run.out: `{above}` is a file, so nothing can be written below it", "name another folder")
        )
    elif not os.access(above, os.W_OK):
        problems.append(FinloraError(f"run.out: `{above}` cannot be written to", "name another folder"))


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents
