"""Grading: task x model -> records -> estimates -> receipt.

Each example is answered in both ways where both exist: `choose` (the likeliest of its labels) and `say` (what the model
writes, read by the task).  The record keeps both; the task says which is the answer (`task.way`), and the receipt shows the
figures of each beside the floors that a model must beat.  What cannot be read is wrong, and counted.

    run("finlora/base", ["tone"], out="runs/base")     everything into one folder
    results(model, ["tone"], folder=...)               the same for a model in memory, without a receipt
    evaluate_task(model, task, examples)               one task: (records, result)

Records are appended in the order of the examples, a chunk at a time.  A grading that was killed goes on behind the last
whole chunk; records of another model, or of other examples, are refused.  Chunks always begin at the same examples, so that
a resumed grading yields the records of the undisturbed one to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import harness, measure, perplexity, receipt, rows, runs, score
from . import model as models
from . import spec as specs
from .errors import FinloraError, unknown
from .figures import LABELLED, floor_metrics, summary
from .generate import ask, choose, say
from .registry import pick
from .score import Record
from .shots import with_shots
from .tasks import Task
from .text import Example, by_bytes, choose_template, prompt_text, render, strip_thinking, thinking_open

WAYS = ("choose", "say")
CHUNK = 256  # examples between two appends to the records


@dataclass(frozen=True)
class How:
    """The settings of a grading. ways, limit, max_new, batch_tokens, shots, think: as spec.Evaluate. template, too_long: as
    spec.Data. seed: draws the shots. encoder: folder of BERTScore's."""

    ways: tuple[str, ...] = WAYS
    limit: int = 0
    max_new: int = 16
    batch_tokens: int = 4096
    template: str = "auto"
    too_long: str = "refuse"
    shots: int = 0
    think: int = 0
    seed: int = 0
    encoder: str = ""

    def __post_init__(self) -> None:
        for way in self.ways:
            if way not in WAYS:
                raise unknown("way", way, WAYS, "evaluate.ways")
        if not self.ways:
            raise FinloraError("evaluate.ways is empty", f"name one or both of {', '.join(WAYS)}")


def run(
    model: specs.Spec | models.Model | str,
    tasks: Sequence[str] | str = (),
    dir: str | Path = "",
    split: str = "test",
    *,
    ways: Sequence[str] = WAYS,
    limit: int = 0,
    out: str | Path | None = None,
    template: str = "auto",
    too_long: str = "refuse",
    batch_tokens: int = 4096,
    max_new: int = 16,
    adapter: str | Path | None = None,
    codec: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    online: bool = False,
    shots: int = 0,
    think: int = 0,
    text: Sequence[str] | str = (),
    train_floors: bool = True,
    progress: Any = None,
) -> dict[str, Any]:
    """Grade a model on tasks and return the receipt; with `out` also write records/ and receipt.json there.

    model: a Model, its name (as open_model takes it, with adapter, codec, device, dtype, online), or a Spec, which then
    brings everything and the folder as well. shots, think, text: as spec.Evaluate. dir: the folder of the data, "" for the sets that ship. limit: examples of
    each task, 0 for all. train_floors: False leaves naive Bayes out.
    Raises: FinloraError, before any record is written where it can be known; a folder of another grading is refused.
    """
    spec = model if isinstance(model, specs.Spec) else None
    if spec is None and out is not None:
        spec = _spec(model, tasks, dir, split, ways, limit, out, template, too_long, batch_tokens, max_new, adapter, codec, device, dtype, online, shots, think, text)
    if spec is not None and (finished := runs.finished(spec)) is not None:
        if isinstance(model, models.Model) and finished.get("model", {}).get("sha256") != digest(model):
            raise FinloraError(f"`{spec.run.out}` holds the grading of another model", "name another folder")
        if progress:
            progress.note(f"{spec.run.out} is finished already; this is its receipt")
        return finished
    if spec is not None and not isinstance(model, models.Model):
        _, config = specs.resolve(spec.codec)
        model = models.open_model(
            spec.model.name, codec=spec.codec.kind, codec_config=config, adapter=spec.model.adapter or None, device=spec.run.device,
            dtype=spec.run.dtype, seed=spec.run.seed, online=spec.model.online, cache=models.CACHE[spec.model.cache],
        )  # fmt: skip
    elif not isinstance(model, models.Model):
        model = models.open_model(model, codec=codec, adapter=adapter, device=device, dtype=dtype, online=online)
    for line in model.notes if progress else ():
        progress.note(f"note: {line}")
    text = spec.evaluate.text if spec is not None else text
    perplexity.texts(text)  # a file that is missing or broken should not cost a grading
    with nullcontext((None, None)) if spec is None else runs.begun(spec) as (folder, finished):
        if finished is not None:  # by another process, while this one opened the model
            return finished
        if spec is not None:
            e = spec.evaluate
            tasks, dir, split = e.tasks or spec.data.tasks, spec.data.dir, e.split
            ways, limit, max_new, batch_tokens, shots, think = e.ways, e.limit, e.max_new, e.batch_tokens, e.shots, e.think
            template, too_long = spec.data.template, spec.data.too_long
        meter = measure.meter(model.device)
        told = results(
            model, tasks, dir=dir, split=split, ways=ways, limit=limit, max_new=max_new, batch_tokens=batch_tokens, template=template,
            too_long=too_long, folder=folder, shots=shots, think=think, seed=spec.run.seed if spec is not None else 0,
            online=spec.model.online if spec is not None else online, encoder=spec.evaluate.encoder if spec is not None else "", train_floors=train_floors, progress=progress,
        )  # fmt: skip
        heard = perplexity.measured(model, text, batch_tokens, progress)
        settings = specs.as_dict(spec) if spec is not None else {}
        sheet = receipt.new("evaluate", folder.name if folder else model.name, settings)
        about = describe(model)
        sheet.update(
            model=about,
            method=about["method"],
            codec=about["codec"],
            data=[{"task": name, "split": split, "rows": found["n"], "sha256": found["data_sha256"]} for name, found in told.items()],
            template=choose_template(model.tokenizer, template),
            cost=meter.read(),
            results=told,
        )
        if heard:  # beside the results, all of which are of tasks
            sheet["text"] = heard
        if folder is not None:
            receipt.write(folder / "receipt.json", sheet)
        return receipt.plain(sheet)


def results(
    model: models.Model,
    tasks: Sequence[str] | str,
    *,
    dir: str | Path = "",
    split: str = "test",
    ways: Sequence[str] = WAYS,
    limit: int = 0,
    max_new: int = 16,
    batch_tokens: int = 4096,
    template: str = "auto",
    too_long: str = "refuse",
    folder: str | Path | None = None,
    shots: int = 0,
    think: int = 0,
    seed: int = 0,
    encoder: str = "",
    online: bool = False,
    train_floors: bool = True,
    progress: Any = None,
) -> dict[str, dict[str, Any]]:
    """The receipt's "results" section: {task: result of evaluate_task, with floors and where its records lie}.

    folder: the run's folder, whose records/ receives the records; None keeps them nowhere. online: whether tasks of
    lm-evaluation-harness (`lm-eval:boolq`) may fetch their data.
    Raises: as run.
    """
    how = How(tuple(ways), limit, max_new, batch_tokens, choose_template(model.tokenizer, template), too_long, shots, think, seed, encoder)
    names = list(dict.fromkeys([tasks] if isinstance(tasks, str) else tasks))
    if not names:
        raise FinloraError("there is no task to grade on", "`finlora list tasks` shows what there is")
    encode = opened(encoder)  # before the first is graded, too
    outside = [name for name in names if harness.is_outside(name)]
    asked: dict[str, tuple[Task, list[Example], list[Example]]] = {}
    for name in (n for n in names if n not in outside):  # all are read before the first is graded: a missing file should not cost an hour
        task = pick("task", name)
        examples = rows.read_examples(task, split, dir or None, limit or None)
        bare = examples[: limit or None]
        asked[name] = task, bare, with_shots(bare, rows.read_examples(task, "train", dir or None), shots, seed) if shots else bare
        _ways_of(task, how)
    if folder is not None:
        _claim(Path(folder) / "records", model, how, split)
    out: dict[str, dict[str, Any]] = {}
    for name, (task, bare, examples) in asked.items():
        path = None if folder is None else Path(folder) / "records" / f"{file_name(name)}.jsonl"
        records, told = evaluate_task(model, task, examples, how=how, path=path, progress=progress)
        told["floors"] = floor_metrics(task, bare, dir, split, limit, train_floors, progress, encode)
        told["records"] = None if path is None else f"records/{path.name}"
        told["data_sha256"] = rows.file_digest(task, split, dir or None)
        told["split"] = split
        out[name] = told
    if outside:
        options = {"template": how.template, "seed": seed, "batch_tokens": batch_tokens, "online": online}
        for name, (records, told) in harness.graded(model, outside, limit, shots or None, progress=progress, **options).items():
            if folder is not None and records:
                told["records"] = f"records/{file_name(name)}.jsonl"
                path = Path(folder) / told["records"]
                path.unlink(missing_ok=True)  # the harness grades a task whole: half of one is worth nothing
                score.append_records(path, records)
            out[name] = told
    return {name: out[name] for name in (*names, *(n for n in out if n not in names)) if name in out}


def evaluate_task(
    model: models.Model,
    task: Task,
    examples: Sequence[Example],
    ways: Sequence[str] = WAYS,
    *,
    how: How | None = None,
    path: str | Path | None = None,
    progress: Any = None,
) -> tuple[list[Record], dict[str, Any]]:
    """(records in the order of the examples, the task's part of a receipt).

    how: all settings at once, in place of `ways`. path: a JSONL file that is appended to, and resumed from where it holds
    the records of the first examples already.
    Raises: FinloraError for no examples, two of one id, a way that the task does not have, or records of other examples.
    """
    how = How(tuple(ways)) if how is None else how
    how = replace(how, template=choose_template(model.tokenizer, how.template))
    if not examples:
        raise FinloraError(f"task `{task.name}` has no examples to grade on", "check the split and the limit")
    _unique(task, examples)
    chosen = _ways_of(task, how)
    way = task.way if task.way in chosen else chosen[0]
    kept = _resume(path, examples) if path is not None else []
    if progress:
        progress.start(f"grade {task.name}", len(examples))
        progress.step(len(kept))
    records: list[Record] = []
    spent = dict.fromkeys(chosen, 0.0)
    computed = 0
    for k in range(0, len(examples), CHUNK):
        part = examples[k : k + CHUNK]
        have = kept[k : k + CHUNK]
        if len(have) < len(part):
            made = _answer(model, task, part, chosen, way, how, spent)
            computed += len(part)
            if path is not None:
                score.append_records(path, made[len(have) :])
            have = [*have, *made[len(have) :]]
        records += have
        if progress:
            progress.step(len(records))
    if progress:
        progress.done()
    seconds = sum(spent.values())
    encode = opened(how.encoder)
    told = summary(task, records, way, encode=encode)
    if encode is not None and "bertscore" in told["metrics"]:
        told["encoder"] = encode.about
    told["by_way"] = {w: summary(task, [as_way(task, r, e, w, how.think) for r, e in zip(records, examples)], w, short=True, encode=encode) for w in chosen}
    told.update(
        seconds=seconds,
        examples_per_s=computed / seconds if seconds else None,
        computed=computed,
        template=how.template,
        cut=_cut(model, task, examples, how, chosen) if how.too_long == "cut" else 0,
    )
    if task.errata:
        told["errata"] = task.errata
    return records, told


@cache
def opened(folder: str) -> Any:
    """The encoder in that folder, None for "".  Raises: FinloraError for what is none."""
    from .encoder import open_encoder

    return open_encoder(folder) if folder else None


# -- one chunk -------------------------------------------------------------------------------------------------------


def _answer(
    model: models.Model, task: Task, examples: Sequence[Example], ways: Sequence[str], way: str, how: How, spent: dict[str, float]
) -> list[Record]:
    options = {"template": how.template, "too_long": how.too_long}
    scores: Sequence[dict[str, float] | None] = [None] * len(examples)
    said: Sequence[str | None] = [None] * len(examples)
    if "choose" in ways:
        began = time.perf_counter()
        scores = choose(model, examples, how.batch_tokens, **options)
        spent["choose"] += time.perf_counter() - began
    if "say" in ways:
        began = time.perf_counter()
        said = say(model, examples, max(how.max_new, task.max_new), task.stop, batch_tokens=how.batch_tokens, think=how.think, **options)
        prompt = render(examples[0], model.tokenizer, False, how.template).ids
        if how.think and thinking_open(model.tokenizer.decode(prompt[-32:])):
            said = [f"<think>{text}" for text in said]  # the prompt began the thought; the record should hold it whole
        spent["say"] += time.perf_counter() - began
    out = []
    for e, s, text in zip(examples, scores, said, strict=True):
        s = None if s is None else {label: round(value, 6) for label, value in s.items()}
        compared = s if s is None or task.norm == "sum" else by_bytes(s)
        choice = None if compared is None else max(compared, key=compared.__getitem__)  # of equals the first label
        record = Record(e.id, e.cluster, prompt_hash(e), e.gold, text, None, s, choice, 0.0, way)
        out.append(as_way(task, record, e, way, how.think))
    return out


def as_way(task: Task, record: Record, example: Example, way: str, think: int = 0) -> Record:
    """The record as it reads when `way` is how the example is answered. think: above 0, thoughts are no part of an answer."""
    if way == "choose":
        answer = record.choice
    else:
        said = answer_of(record.said) if think and record.said is not None else record.said
        answer = None if said is None else task.read(said, example.labels)
    correct = 0.0 if answer is None else float(task.mark(example.gold, answer))
    return replace(record, answer=answer, correct=correct, way=way)


def answer_of(said: str) -> str | None:
    """What was said after thinking; None for a thought that did not end."""
    found = strip_thinking(said)
    return found.answer if found.finished else None


def prompt_hash(example: Example) -> str:
    """First 16 hex digits of the SHA-256 of the prompt's text."""
    return hashlib.sha256(prompt_text(example).encode("utf-8", "replace")).hexdigest()[:16]


def _ways_of(task: Task, how: How) -> tuple[str, ...]:
    """The ways asked for that the task has: text without labels can only be said."""
    ways = tuple(w for w in WAYS if w in how.ways and (w == "say" or task.kind in LABELLED))
    if not ways:
        raise FinloraError(f"task `{task.name}` is answered in free text, but evaluate.ways is {', '.join(how.ways)}", "add \"say\" to evaluate.ways")
    return ways


def _unique(task: Task, examples: Sequence[Example]) -> None:
    seen: set[str] = set()
    for e in examples:
        if e.id in seen:
            raise FinloraError(f"task `{task.name}` has two examples with the id `{e.id}`", "ids tell records apart: make them different")
        seen.add(e.id)


def _cut(model: models.Model, task: Task, examples: Sequence[Example], how: How, ways: Sequence[str]) -> int:
    """How many prompts lost tokens on their left, in one way or the other."""
    count = 0
    for e in examples:
        asked = ask(e, model.tokenizer, how.template) if "choose" in ways else None
        prompt = asked.prompt if asked else render(e, model.tokenizer, False, how.template).ids
        new = max([max(how.max_new, task.max_new) + how.think if "say" in ways else 1, *(map(len, asked.labels) if asked else ())])
        count += len(prompt) + new - 1 > model.max_tokens
    return count


# -- on disk ---------------------------------------------------------------------------------------------------------


def file_name(task: str) -> str:
    """A task's name as part of a file's name: `tfns@finlora` becomes `tfns-finlora`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", task)


def _claim(folder: Path, model: models.Model, how: How, split: str) -> None:
    """Note in records/ who makes them and how, or refuse where the note there names another.

    The number of examples is not part of it: more of the same may be graded into the same file.
    """
    free = ("limit", "batch_tokens", "encoder", *(() if how.shots else ("seed",)))  # what no record depends on
    mine = receipt.plain({"model": digest(model), "split": split, **{k: v for k, v in asdict(how).items() if k not in free}})
    unsaid = receipt.plain(asdict(How()))  # what a note did not say that was made before there was such a setting
    note = folder / "made-by.json"
    if not note.exists():
        if any(folder.glob("*.jsonl")):
            raise FinloraError(f"`{folder}` holds records without a note of the model that made them", "name another folder")
        receipt.write_text(note, json.dumps(mine, indent=1) + "\n")
        return
    try:
        other = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        other = None
    other = {**unsaid, **other} if isinstance(other, Mapping) else {}
    if odd := next((k for k in mine if other.get(k) != mine[k]), ""):
        what = "made by another model" if odd == "model" else f"made with another {odd}"
        raise FinloraError(f"the records in `{folder}` were {what}", "name another folder, or remove them to grade again")


def _resume(path: str | Path, examples: Sequence[Example]) -> list[Record]:
    """The records already in the file, which must be those of the first examples."""
    path = Path(path)
    if not path.exists():
        return []
    kept = score.read_records(path, repair=True)
    for k, record in enumerate(kept):
        wanted = examples[k] if k < len(examples) else None
        if wanted is None or (record.id, record.prompt) != (wanted.id, prompt_hash(wanted)):
            what = f"example `{record.id}`" + (f" where `{wanted.id}` should be" if wanted and record.id != wanted.id else "")
            raise FinloraError(f"{path}:{k + 1}: record of another {what}", "the data or the limit has changed: name another folder")
    return kept


def digest(model: models.Model) -> str:
    """sha256 (hex) of every parameter and buffer of the model by name, as it is held in memory.

    What was loaded, stored by a codec, adapted and trained all enter, so that one number tells two models apart however
    they came to be; a file's digest would not know of training since. Tied weights enter once for each name.
    """
    h = hashlib.sha256()
    for name, tensor in sorted(model.body.state_dict(keep_vars=True).items()):
        t = tensor.detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(memoryview(t.reshape(-1).view(torch.uint8).numpy()))
    active = model.route.active
    h.update(f"active {active}".encode())
    return h.hexdigest()


def describe(model: models.Model) -> dict[str, Any]:
    """The receipt's "model" section: name, sha256, params, trainable (an adapter's, and what trained whole beside it), bits_per_weight, method, codec."""
    linears = model.linears.values()
    own = [p for linear in linears for name, held in linear.adapters.items() for key, p in held.items() if key not in linear.how[name][0].frozen]
    own += [model.body.get_parameter(name) for name in sorted(set(model.also.values()))]
    inside = {id(p) for linear in linears for p in linear.parameters()}
    base = sum(p.numel() for p in model.body.parameters() if id(p) not in inside)
    base += sum(linear.shape[0] * linear.shape[1] + (0 if linear.bias is None else linear.bias.numel()) for linear in linears)
    active = model.route.active
    methods = [linear.how[active][0].name for linear in linears if active in linear.how]
    codecs = [linear.store.codec.name for linear in linears if linear.store is not None]
    return {
        "name": model.name,
        "sha256": digest(model),
        "params": base,
        "trainable": sum(p.numel() for p in own),
        "bits_per_weight": models.bits_per_weight(model),
        "method": methods[0] if methods else "base",
        "codec": codecs[0] if codecs else "none",
    }


def _spec(
    model: models.Model | str, tasks, dir, split, ways, limit, out, template, too_long, batch_tokens, max_new, adapter, codec, device, dtype, online,
    shots, think, text,
) -> specs.Spec:
    """The arguments of `run` as a spec, so that a folder holds what was asked for whoever asked."""
    from .adapters import trained_over

    in_memory = isinstance(model, models.Model)
    table = {
        "run": {"out": str(out), "device": device, "dtype": dtype},
        "model": {"name": model.name if in_memory else model, "adapter": str(adapter or ""), "online": online},
        "codec": {"kind": codec} if codec else trained_over(adapter) if adapter else {"kind": "none"},
        "data": {"tasks": [tasks] if isinstance(tasks, str) else list(tasks), "dir": str(dir or ""), "template": template, "too_long": too_long},
        "evaluate": {
            "tasks": [tasks] if isinstance(tasks, str) else list(tasks), "split": split, "ways": list(ways), "limit": limit,
            "max_new": max_new, "batch_tokens": batch_tokens, "shots": shots, "think": think,
            "text": [text] if isinstance(text, str) else list(text),
        },
    }  # fmt: skip
    return specs.spec_from_dict(table)
