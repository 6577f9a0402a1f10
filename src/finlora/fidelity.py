"""Fidelity: what a tuned model loses on its way from training to use, measured on the task's own test text.

    as trained       the adapter over the base it was trained on; all else is compared with this
    merged, stored   merged into the weights as the codec gave them back, the ones it was trained against
    merged, original merged into the original weights
    <codec>          merged into the stored weights and encoded again
    exported         the folder that `finlora export merged` writes, read back

For each: the mean KL(trained || state) in nats a token and how often the likeliest token is the same, over every token of the
test text (prompt and answer), and the task's accuracy with its paired difference from the trained state.  A merge into a
quantised base is rounded again (PEFT warns of it), and a merge into the original weights meets weights that the adapter never
saw: neither is free, and how much each costs depends on adapter and base.  So it is measured, and a step whose cost leaves
its interval is marked.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import evaluate, receipt, rows, score, structure_folder, text
from . import model as models
from . import spec as specs
from .data import collate, pack
from .errors import FinloraError
from .linear import Linear, Store, edited
from .registry import names, pick
from .text import Tokens

CHUNK = 512  # positions whose logits are formed at once
ROW_TOKENS = 1024


@dataclass(frozen=True)
class Agreement:
    """kl: mean KL(trained || state), nats a token. top1: share of tokens with the same likeliest one. tokens: how many."""

    kl: float
    top1: float
    tokens: int


def run(folder: str | Path, limit: int = 200, codecs: Sequence[str] | None = None, progress: Any = None) -> dict[str, Any]:
    """Measure every state of the run in `folder`, write fidelity.json there, and return its value.

    limit: test examples of each task, 0 for all. codecs: those to encode again with; None takes every lossy one that needs
    no calibration.
    Raises: FinloraError where the folder holds no finished run with an adapter or a model.
    """
    folder = Path(folder)
    spec, trained = open_run(folder)
    asked = _codecs(codecs)
    tasks = {}
    for name in spec.evaluate.tasks or spec.data.tasks:
        task = pick("task", name)
        examples = rows.read_examples(task, spec.evaluate.split, spec.data.dir or None, limit or None)[: limit or None]
        tasks[name] = task, examples
    template = text.choose_template(trained.tokenizer, spec.data.template)
    tokens = [whole(e, trained, template, spec.data.too_long) for _, examples in tasks.values() for e in examples]
    how = evaluate.How(
        (*spec.evaluate.ways,), 0, spec.evaluate.max_new, spec.evaluate.batch_tokens, template, spec.data.too_long, spec.evaluate.shots,
        spec.evaluate.think, spec.run.seed, spec.evaluate.encoder,
    )  # fmt: skip
    kept = {name: evaluate.evaluate_task(trained, task, examples, how=how)[0] for name, (task, examples) in tasks.items()}
    table = [{"state": "as trained", "kl": 0.0, "top1": 1.0, "tasks": {name: _accuracy(r) for name, r in kept.items()}, "warning": ""}]
    for state, model in states(folder, spec, trained, asked):
        if progress:
            progress.note(f"measuring: {state}")
        agreed = agreement(trained, model, tokens)
        row: dict[str, Any] = {"state": state, "kl": agreed.kl, "top1": agreed.top1, "tasks": {}, "warning": ""}
        for name, (task, examples) in tasks.items():
            records, _ = evaluate.evaluate_task(model, task, examples, how=how)
            lost = asdict(score.paired(records, kept[name], "accuracy"))
            row["tasks"][name] = {**_accuracy(records), "difference": lost["difference"], "mcnemar_p": lost["mcnemar_p"]}
            if lost["difference"]["high"] < 0:
                row["warning"] = f"{name} falls by {-100 * lost['difference']['value']:.1f} points, more than chance explains"
        table.append(row)
        del model
        gc.collect()
    said = {
        "schema": 1, "run": folder.name, "spec": specs.digest(spec), "model": spec.model.name, "codec": spec.codec.kind, "method": spec.method.kind,
        "examples": {name: len(examples) for name, (_, examples) in tasks.items()}, "tokens": sum(len(t) - 1 for t in tokens), "table": table,
        "versions": receipt.versions(), "device": receipt.device(),
    }  # fmt: skip
    receipt.write_text(folder / "fidelity.json", json.dumps(receipt.plain(said), indent=1, ensure_ascii=False) + "\n")
    return said


def open_run(folder: Path) -> tuple[specs.Spec, models.Model]:
    """(spec, model as it was trained) of a finished run's folder.  Raises: FinloraError where it is none."""
    if not (folder / "spec.toml").is_file() or not (folder / "receipt.json").is_file():
        raise FinloraError(f"`{folder}` is not the folder of a finished run", "name the `run.out` of a finlora finetune")
    spec = specs.load_spec(folder / "spec.toml")
    common = {"device": spec.run.device, "dtype": spec.run.dtype, "online": spec.model.online, "cache": models.CACHE[spec.model.cache]}
    if (folder / "adapter").is_dir():
        _, config = specs.resolve(spec.codec)
        return spec, models.open_model(spec.model.name, codec=spec.codec.kind, codec_config=config, adapter=folder / "adapter", **common)
    if (folder / "model").is_dir():
        return spec, models.open_model(str(folder / "model"), codec="none", **common)
    raise FinloraError(f"`{folder}` holds neither an adapter nor a model", "train it again, or name another run")


def whole(example: text.Example, model: models.Model, template: str, too_long: str) -> Tokens:
    """The example's prompt and gold answer with a weight of 1 on every token."""
    tokens = text.fit(text.render(example, model.tokenizer, True, template), min(ROW_TOKENS, model.max_tokens), too_long)
    return Tokens(tokens.ids, (1.0,) * len(tokens.ids), tokens.id)


def states(folder: Path, spec: specs.Spec, trained: models.Model, codecs: Sequence[str]) -> Iterator[tuple[str, models.Model]]:
    """(name, model) of every state but the trained one; each is freed before the next is made."""
    stored = {name: (lambda name=name: merged(trained, name)) for name in trained.linears}
    stored |= structure_folder.multiplied(trained, "default")
    yield "merged, stored", dense(spec, trained, lambda name, own: stored[name]())
    if (folder / "adapter").is_dir():
        factors = _factors(spec, trained)
        yield "merged, original", dense(spec, trained, lambda name, own: factors[name]() if name in factors else on_original(trained, name, own))
    for codec in codecs:
        yield codec, dense(spec, trained, lambda name, own: stored[name](), codec)
    from . import export

    with tempfile.TemporaryDirectory(prefix="finlora-") as scratch:
        out = export.merged(folder, Path(scratch) / "model")
        yield "exported", models.open_model(str(out), device=spec.run.device, dtype=spec.run.dtype)


def merged(trained: models.Model, name: str) -> Tensor:
    """W_OI of one linear, the adapter folded into the weight as it is stored, fp32."""
    linear = trained.linears[name]
    return linear.merged("default" if "default" in linear.adapters else None)


def on_original(trained: models.Model, name: str, original_OI: Tensor) -> Tensor:
    """W_OI of one linear, the adapter folded into the original weight (with the method's own edit of it), fp32."""
    linear = trained.linears[name]
    if "default" not in linear.adapters:
        return original_OI.float()
    method, cfg = linear.how["default"]
    params = {key: p.detach().float() for key, p in linear.adapters["default"].items()}
    return method.merge(cfg, params, edited(original_OI.float(), params))


def _factors(spec: specs.Spec, trained: models.Model) -> dict[str, Callable[[], Tensor]]:
    """{linear: what makes its dense W_OI} of adapters over two factors, each folded into the original factor."""
    if not structure_folder.multiplied(trained, None):
        return {}
    base = models.open_model(spec.model.name, codec="none", device=spec.run.device, dtype=spec.run.dtype, online=spec.model.online, factors=True)
    for name, linear in base.linears.items():
        assert linear.store is not None
        linear.store.put(on_original(trained, name, linear.store.dense(torch.float32)))
    return structure_folder.multiplied(base, None)


@torch.no_grad()
def dense(spec: specs.Spec, trained: models.Model, weight: Callable[[str, Tensor], Tensor], codec: str = "none") -> models.Model:
    """The base with every linear's weight replaced by weight(name, the original), kept by `codec`."""
    source = trained.name if trained.name != spec.model.name else spec.model.name
    model = models.open_model(source, codec="none", device=spec.run.device, dtype=spec.run.dtype, online=spec.model.online)
    record = pick("codec", codec)
    for name, linear in model.linears.items():
        assert isinstance(linear, Linear) and linear.store is not None
        linear.store = Store(record, record.config(), weight(name, linear.store.dense(torch.float32)), model.dtype)
    _also(model, trained)
    return model


def _also(model: models.Model, trained: models.Model) -> None:
    """Embeddings and head, where they were trained beside the adapter."""
    own = dict(trained.body.named_parameters())
    for full in set(getattr(trained, "also", {}).values()):
        model.body.get_parameter(full).copy_(own[full])


@torch.no_grad()
def agreement(trained: models.Model, other: models.Model, tokens: Sequence[Tokens]) -> Agreement:
    """How far the next-token distributions of `other` are from those of `trained`, over every token."""
    kl = same = count = 0.0
    for row in pack(sorted(tokens, key=len), ROW_TOKENS):
        batch = collate([row])
        where = batch.weights.reshape(-1).nonzero().squeeze(1).to(trained.device)
        ours, theirs = (models.hidden(m, batch.to(m.device)).reshape(-1, m.config.hidden_size)[where] for m in (trained, other))
        for k in range(0, len(where), CHUNK):
            p = torch.log_softmax(models.logits(trained, ours[k : k + CHUNK]).double(), -1)
            q = torch.log_softmax(models.logits(other, theirs[k : k + CHUNK]).double(), -1)
            kl += float((p.exp() * (p - q)).sum())
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(where)
    return Agreement(kl / count, same / count, int(count))


def _accuracy(records: Sequence[score.Record]) -> dict[str, Any]:
    return {"accuracy": asdict(score.interval(records, "accuracy"))}


def _codecs(asked: Sequence[str] | None) -> list[str]:
    """The codecs to encode again with.  Raises: FinloraError for one that is none, or that needs calibration."""
    if asked is None:
        records = [(name, pick("codec", name)) for name in names("codec")]
        return [name for name, r in records if not r.lossless and not r.needs(r.config())]
    for name in asked:
        record = pick("codec", name)
        if record.needs(record.config()):
            raise FinloraError(f"codec `{name}` needs calibration and cannot encode a merged weight alone", "leave it out")
    return list(asked)


def markdown(said: dict[str, Any]) -> str:
    """The table as Markdown: for the terminal and for a model card."""
    tasks = list(said["examples"])
    lines = [
        "| state | KL, nats/token | same top token | " + " | ".join(f"{t} accuracy | {t} against trained" for t in tasks) + " |",
        "|---|---:|---:|" + "---:|---:|" * len(tasks),
    ]
    for row in said["table"]:
        cells = []
        for t in tasks:
            a, d = row["tasks"][t]["accuracy"], row["tasks"][t].get("difference")
            cells.append(f"{100 * a['value']:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]")
            cells.append(f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]" if d else "")
        lines.append(f"| {row['state']} | {row['kl']:.2e} | {100 * row['top1']:.2f}% | " + " | ".join(cells) + " |")
    lines += [f"\nwarning: {row['state']}: {row['warning']}" for row in said["table"] if row["warning"]]
    return "\n".join(lines)
