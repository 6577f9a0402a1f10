"""Part `quality` of bench/compress.py: what a model of fewer parameters reads and learns worse, by decomposition, size and healing.

    cell = model x share of the linears' parameters x arm; beside them the dense model, and the dense model trained like a healed one

    svd, asvd, svd_llm, swift    the same share of every linear
    swift, spectrum              ranks where they take most error
    swift, search                ranks by the allocation that does best on a tenth of the text calibrated on
    ... healed full              all weights trained on: factors, embeddings, norms
    ... healed lora              LoRA over each factor, folded into it afterwards

Every arm of a model starts from the same weights, is calibrated on the same tokens and measured on the same documents.  Healing is
`finlora pretrain` on the text that was calibrated on, with a fixed number of steps; its learning rate is chosen once a model and way
(at the middle share, on documents held out of that text).  What healing gives is in part what more training gives to anyone, so the
dense model is trained the same: that is what a healed arm is to be set beside.

Zero-shot answers of models this small are at the floor, so a task tells by what is learned: one short LoRA over each model, the
same examples, steps and rate (chosen once a model, on the dense one's validation split), several seeds.  Runs of all seeds are pooled,
an item's answers being one cluster, so that intervals are over items; the seeds' own differences stand beside them.

Validation text: documents whose middle 200 characters stand anywhere in the text calibrated on are left out, and counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finlora import corpus, figures, floors, perplexity, receipt, rows, score
from finlora import model as models
from finlora import spec as specs
from finlora.compress import Compress, compress
from finlora.corpus import Document
from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.scratch import pretrain
from finlora.tune import finetune

BASE = models.BASE
PROBE = 200  # characters of a document that are looked for in the other text
PARTS = 32  # no document gives more than one part in so many of the text calibrated on
DENSE, TRAINED = "dense", "dense, trained further"


@dataclass(frozen=True)
class Arm:
    """How a model is made smaller. healed: how its factors are trained after that; "": they are not."""

    decomposition: str
    allocation: str = "uniform"
    healed: str = ""

    @property
    def name(self) -> str:
        ranks = "" if self.allocation == "uniform" else f", {self.allocation}"
        return f"{self.decomposition}{ranks}{f', healed {self.healed}' if self.healed else ''}"


PLAIN = (Arm("svd"), Arm("asvd"), Arm("svd_llm"), Arm("swift"), Arm("swift", "spectrum"), Arm("swift", "search"))
HEALED = (Arm("swift", "spectrum", "full"), Arm("swift", "spectrum", "lora"), Arm("swift", "search", "full"))
HELD = {"search": 0.1}  # share of the calibration's text that an allocation wants held out


@dataclass
class Cell:
    """A model folder to be measured. label: its name among the model's cells. told: what is known of it."""

    label: str
    folder: str
    told: dict[str, Any]

    @property
    def slug(self) -> str:
        return self.label.replace(", ", "-").replace(" ", "_")


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every model's cells, measured; {"text", "models": {name: ...}}."""
    text, val, told = drawn(args, work)
    out: dict[str, Any] = {"text": told, "models": {}}
    for name, folder in named(args, work).items():
        print(f"\n{name}", flush=True)
        out["models"][name] = one(args, work / "models" / name, folder, text, val)
    return out


def one(args: argparse.Namespace, home: Path, folder: str, text: Path, val: Path) -> dict[str, Any]:
    """All cells of one model."""
    dense, cells, rates = Cell(DENSE, folder, {"keep": 1.0, "arm": DENSE}), [], {}
    of: dict[tuple[float, str], Cell] = {}
    for keep in args.keeps:
        for arm in PLAIN:
            of[keep, arm.name] = cell = compressed(args, home, folder, keep, arm, text)
            cells.append(cell)
    dense.told["params"] = dense_params(home, cells[0])
    if args.heal_steps:
        middle = sorted(args.keeps)[len(args.keeps) // 2]
        for arm in HEALED:
            start = dataclasses.replace(arm, healed="").name
            tried = args.full_lrs if arm.healed == "full" else args.lora_lrs
            rates[arm.name] = chosen_rate(args, home, of[middle, start], arm.healed, tried, text)
            cells += [healed(args, home, of[keep, start], arm.healed, rates[arm.name]["lr"], text) for keep in args.keeps]
        rates[TRAINED] = chosen_rate(args, home, dense, "full", args.full_lrs, text)
        cells.append(healed(args, home, dense, "full", rates[TRAINED]["lr"], text))
    cells = [dense, *cells]
    read = {cell.label: heard(home, cell, val) for cell in cells}
    for cell in cells:
        nats = read[cell.label]["nats_per_token"]
        cell.told |= {
            "nats_per_token": nats, "bits_per_byte": read[cell.label]["bits_per_byte"], "nats_by_document": [row[1] for row in read[cell.label]["each"]],
            "perplexity": {key: math.exp(nats[key]) for key in ("value", "low", "high")},
            "nats_minus": {other: figures.text_difference(read[cell.label], read[other])["nats_per_token"] for other in beside(cell, cells)},
        }  # fmt: skip
        print(f"  {cell.label}: {nats['value']:.4f} [{nats['low']:.4f}, {nats['high']:.4f}] nats a token", flush=True)
    each = read[DENSE]["each"]
    out = {
        "cells": {cell.label: cell.told for cell in cells}, "healing_rates": rates,
        "documents": {"context": read[DENSE]["context"], "sha256": read[DENSE]["sha256"], "id_tokens_bytes": [[r[0], r[2], r[3]] for r in each]},
    }  # fmt: skip
    if args.seeds:
        out["task"] = taught(args, home, cells)
    return out


def beside(cell: Cell, cells: Sequence[Cell]) -> list[str]:
    """The cells that a cell is compared with: dense, trained alike, and of its size the uniform Swift-SVD and what it was healed from."""
    others = [DENSE, *([TRAINED] if cell.told.get("healed") else []), f"{cell.told['keep']:g}, swift", cell.told.get("from", "")]
    labels = {c.label for c in cells}
    return [label for label in dict.fromkeys(others) if label in labels and label != cell.label]


# -- texts and models --------------------------------------------------------------------------------------------------


def drawn(args: argparse.Namespace, work: Path) -> tuple[Path, Path, dict[str, Any]]:
    """(text to calibrate and heal on, text to measure on, what they are), drawn once into the work folder.

    Raises: FinloraError for a work folder with other texts, or no document left to measure on.
    """
    if not args.text:
        args.text = [str(toy_text(work))]
    text, val, file = work / "text.jsonl", work / "val.jsonl", work / "texts.json"
    hashed = {Path(f).name: receipt.file_digest(f) for f in corpus.files(args.text)}
    asked = {
        "text": hashed, "val": [v if v == perplexity.EMBEDDED else Path(v).name for v in args.val], "sources": args.sources,
        "text_chars": args.text_chars, "val_each": args.val_each,
    }  # fmt: skip
    if file.exists():
        told = json.loads(file.read_text(encoding="utf-8"))
        if told["asked"] != asked:
            raise FinloraError(f"`{work}` holds texts drawn by other settings", "name another --work")
        return text, val, told
    found = sorted(corpus.documents(args.text), key=draw)
    wanted = [d for d in found if d.text.strip() and (not args.sources or d.source in args.sources)]
    kept, size = [], 0
    for d in wanted:
        if size < args.text_chars:
            kept.append(dataclasses.replace(d, text=cut(d.text, args.text_chars // PARTS)))
            size += len(kept[-1].text)
    held = [dataclasses.replace(d, text=cut(d.text, args.val_each)) for d in perplexity.texts(args.val) if not args.sources or d.source in args.sources]
    apart = [d for d in held if not known(d.text, found)]
    if len(apart) < 2:
        raise FinloraError(f"--val: {len(apart)} of {len(held)} documents are not in --text", "give text that the models have not read")
    told = {"asked": asked, "text": written(text, kept), "val": written(val, apart) | {"left_out": len(held) - len(apart)}}
    receipt.write_text(file, json.dumps(told) + "\n")
    return text, val, told


def draw(d: Document) -> str:
    """A document's place in an order that does not depend on its file."""
    return hashlib.sha256(f"{d.source}/{d.id}/{d.text}".encode("utf-8", "replace")).hexdigest()


def cut(text: str, most: int) -> str:
    """The beginning of a text, up to a space."""
    return text if len(text) <= most else text[: text.rfind(" ", 0, most) + 1 or most]


def known(text: str, found: Sequence[Document]) -> bool:
    """Whether a stretch from the middle of the text stands in one of the documents."""
    at = max(0, (len(text) - PROBE) // 2)
    probe = text[at : at + PROBE]
    return any(probe in d.text for d in found)


def written(path: Path, kept: Sequence[Document]) -> dict[str, Any]:
    """Write documents; what they are."""
    lines = [json.dumps({"source": d.source, "id": d.id, "text": d.text}, ensure_ascii=False) for d in kept]
    receipt.write_text(path, "\n".join(lines) + "\n")
    sources: dict[str, int] = {}
    for d in kept:
        sources[d.source] = sources.get(d.source, 0) + len(d.text)
    return {"documents": len(kept), "characters": sum(sources.values()), "sources": sources, "sha256": receipt.file_digest(path)}


def toy_text(work: Path) -> Path:
    """Drawn words, where a toy run was given no text."""
    import random

    tokenizer = models.load_tokenizer(models.locate(BASE))
    words = sorted(w.removeprefix("Ġ") for w in tokenizer.get_vocab() if w.removeprefix("Ġ").isalpha())
    r = random.Random(0)
    lines = [json.dumps({"source": "toy", "id": str(k), "text": " ".join(r.choices(words[:500], k=200))}) for k in range(100)]
    return receipt.write_text(work / "toy.jsonl", "\n".join(lines) + "\n")


def named(args: argparse.Namespace, work: Path) -> dict[str, str]:
    """{name: folder} of the models; GPT-2 is trained first."""
    out: dict[str, str] = {}
    for given in args.model:
        path = Path(given)
        name = path.parent.name if path.name == "model" else path.name
        if name in out or (args.train_gpt2 and name == "gpt2"):
            raise FinloraError(f"--model: two models would be called `{name}`", "rename one of the folders")
        out[name] = models.locate(given)
    if args.train_gpt2:
        out["gpt2"] = trained(args, work / "gpt2-pretrained")
    return out


def trained(args: argparse.Namespace, folder: Path) -> str:
    """The folder of a GPT-2 trained on the whole text, with the tokens of the embedded base."""
    steps, width = args.train_gpt2, args.gpt2_width
    config = {"family": "gpt2", "n_embd": width, "n_layer": args.gpt2_layers, "n_head": max(1, width // 64), "n_positions": args.row_tokens}
    config |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    spec = {
        "run": {"out": str(folder), "seed": 0, "dtype": args.dtype, "device": "cpu"},
        "model": {"config": config, "tokenizer": models.locate(BASE)},
        "data": {"text": args.text, "sources": args.sources, "row_tokens": args.row_tokens, "validation": 0.02},
        "train": {
            "steps": steps, "batch": 16, "micro_rows": 16, "lr": args.gpt2_lr, "min_lr_ratio": 0.05, "weight_decay": 0.1, "beta2": 0.95, "warmup": 0.04,
            "validate_every": max(1, steps // 4), "checkpoint_every": 100,
        },
    }  # fmt: skip
    finished(pretrain, spec, "gpt2")
    return str(folder / "model")


# -- making cells ------------------------------------------------------------------------------------------------------


def compressed(args: argparse.Namespace, home: Path, folder: str, keep: float, arm: Arm, text: Path) -> Cell:
    """A model decomposed, unless its folder is there.  Raises: FinloraError where it is of other settings."""
    cell = Cell(f"{keep:g}, {arm.name}", "", {"keep": keep, "arm": arm.name})
    out = home / "cells" / cell.slug
    cell.folder, file = str(out / "model"), out / "compress.json"
    settings = Compress(
        model=folder, out=str(out), text=(str(text),), keep=keep, decomposition=arm.decomposition, allocation=arm.allocation, tokens=args.tokens,
        row_tokens=args.row_tokens, validation=HELD.get(arm.allocation, 0.0), dtype="float32", device="cpu", overwrite=True,
    )  # fmt: skip
    if not file.exists():
        print(f"  compress {cell.label}", flush=True)
        compress(settings)
    said = json.loads(file.read_text(encoding="utf-8"))
    if said["settings"] != receipt.plain(settings):
        raise FinloraError(f"`{out}` holds a compression by other settings", "name another --work")
    errors = [one["error"] for one in said["linears"].values() if one["rank"]] or [0.0]
    cell.told |= {
        "kept": said["model"]["kept"], "params": said["model"]["params_after"], "calibrated": said["text"], "seconds": said["seconds"],
        "output_error": {"mean": statistics.mean(errors), "max": max(errors)}, "stored": said["stored"],
        "ranks": {name: one["rank"] for name, one in said["linears"].items()},
    }  # fmt: skip
    return cell


def dense_params(home: Path, cell: Cell) -> int:
    """The model's parameters before it was compressed."""
    return json.loads((home / "cells" / cell.slug / "compress.json").read_text(encoding="utf-8"))["model"]["params_before"]


def chosen_rate(args: argparse.Namespace, home: Path, start: Cell, how: str, rates: Sequence[float], text: Path) -> dict[str, Any]:
    """The learning rate with the least loss on documents held out of the text healed on; {"lr", "at", "tried"}."""
    tried = {}
    for rate in rates:
        try:
            tried[rate] = healed(args, home, start, how, rate, text).told["healed"]["val_nats"]
        except FinloraError as error:
            if not diverged(error):
                raise
            tried[rate] = math.inf
    best = min(tried, key=tried.__getitem__)
    if not math.isfinite(tried[best]):
        raise FinloraError(f"healing {start.label} by {how} diverged at every rate of {list(rates)}", "try lower ones")
    return {"lr": best, "at": start.label, "tried": {f"{rate:g}": nats for rate, nats in tried.items()}}


def diverged(error: FinloraError) -> bool:
    """Whether a run ended because its loss or gradient left all bounds."""
    return "the loss exploded" in error.message or "the loss became" in error.message or "the gradient's norm became" in error.message


def healed(args: argparse.Namespace, home: Path, start: Cell, how: str, rate: float, text: Path) -> Cell:
    """A cell trained further on the text: all its weights, or LoRA over its factors, which is then folded into them."""
    told = {key: start.told[key] for key in ("keep", "kept", "params", "ranks") if key in start.told}
    label = TRAINED if start.label == DENSE else f"{start.label}, healed {how}"
    cell = Cell(label, "", told | {"arm": label.partition(", ")[2] if start.label != DENSE else TRAINED, "from": start.label})
    out = home / "cells" / f"{cell.slug}-lr{rate:g}"
    method = {"kind": "full"} if how == "full" else {"kind": "lora", "factors": True, "rank": args.heal_rank, "alpha": 2.0 * args.heal_rank}
    spec = {
        "run": {"out": str(out), "seed": 0, "dtype": args.dtype, "device": "cpu"},
        "model": {"name": start.folder, "cache": "off"},
        "method": method,
        "data": {"text": [str(text)], "row_tokens": args.row_tokens, "validation": 0.05},
        "train": {
            "steps": args.heal_steps, "batch": args.heal_batch, "micro_rows": args.heal_batch, "lr": rate, "min_lr_ratio": 0.1, "beta2": 0.95,
            "warmup": 0.1, "validate_every": args.heal_steps, "checkpoint_every": 50, "keep": 1,
        },
    }  # fmt: skip
    said = finished(pretrain, spec, f"{label}, lr {rate:g}")
    cell.folder = str(out / "model" if how == "full" else folded(out, start.folder, args.dtype))
    cell.told["healed"] = {
        "how": how, "lr": rate, "steps": said["train"]["steps"], "tokens": said["train"]["tokens"], "trainable": said["model"]["trainable"],
        "seconds": said["train"]["seconds"], "val_nats": said["train"]["val"][-1][1],
    }  # fmt: skip
    return cell


def folded(out: Path, folder: str, dtype: str) -> Path:
    """The model with the run's adapter inside its factors, which keep their ranks."""
    target = out.with_name(f"{out.name}-folded")
    if not target.exists():
        models.save(models.open_model(folder, adapter=str(out / "adapter"), dtype=dtype, device="cpu"), target)
    return target


def finished(verb: Any, spec: Mapping[str, Any], name: str, **more: Any) -> dict[str, Any]:
    """The receipt of a run, which goes on where it was cut off; its checkpoints go when it is done."""
    said = verb(specs.spec_from_dict(spec), progress=Lines(name), **more)
    shutil.rmtree(Path(spec["run"]["out"]) / "checkpoints", ignore_errors=True)
    return said


class Lines:
    """Progress as plain lines, few of them."""

    def __init__(self, name: str):
        self.name = name

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        print(f"  {self.name}: {stage}, {total}", flush=True)

    def step(self, n: int, **values: float) -> None:
        """A step is done."""
        if "loss" in values and n % 100 == 0:
            print(f"  {self.name}: step {n}, loss {values['loss']:.3f}", flush=True)

    def note(self, text: str) -> None:
        """Something to say: not here."""

    def done(self) -> None:
        """The stage is over."""


# -- reading -----------------------------------------------------------------------------------------------------------


def heard(home: Path, cell: Cell, val: Path) -> dict[str, Any]:
    """What a cell reads of the held-out text, in float32 whatever its file holds; kept in a file of the cell's name."""
    file, key = home / "heard" / f"{cell.slug}.json", {"folder": Path(cell.folder).parent.name, "val": receipt.file_digest(val)}
    if file.exists():
        told = json.loads(file.read_text(encoding="utf-8"))
        if told["key"] == key:
            return told["text"]
    model = models.open_model(cell.folder, codec="none", dtype="float32", device="cpu", cache=False)
    text = perplexity.measured(model, [str(val)])
    assert text is not None
    receipt.write_text(file, json.dumps({"key": key, "text": text}) + "\n")
    return text


# -- learning a task ---------------------------------------------------------------------------------------------------


def taught(args: argparse.Namespace, home: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """LoRA on the task over every cell, with every seed; seeds are the outer loop, so that what is cut off is whole for those before."""
    task = pick("task", args.task)
    tried = {}
    for rate in args.lrs if len(args.lrs) > 1 else ():
        tried[rate] = learned(args, home / "rates" / f"{rate:g}", cells[0], args.seeds[0], rate, grade=False)["train"]["val"][-1][1]
    lr = min(tried, key=tried.__getitem__) if tried else args.lrs[0]
    records: dict[str, dict[int, list[score.Record]]] = {cell.label: {} for cell in cells}
    loss: dict[str, dict[int, float]] = {cell.label: {} for cell in cells}
    for seed in args.seeds:
        for cell in cells:
            said = learned(args, home / "task" / f"{cell.slug}-seed{seed}", cell, seed, lr)
            records[cell.label][seed] = score.read_records(home / "task" / f"{cell.slug}-seed{seed}" / said["results"][task.name]["records"])
            loss[cell.label][seed] = said["train"]["val"][-1][1]
    pooled = {label: pool(runs) for label, runs in records.items()}
    told: dict[str, Any] = {"task": task.name, "metric": "accuracy", "lr": lr, "lr_tried": {f"{r:g}": nats for r, nats in tried.items()}, "seeds": args.seeds, "cells": {}}
    for cell in cells:
        runs = records[cell.label]
        told["cells"][cell.label] = {
            "accuracy": dataclasses.asdict(score.interval(pooled[cell.label], "accuracy", labels=task.labels)),
            "by_seed": [statistics.mean(r.correct for r in runs[seed]) for seed in args.seeds],
            "val_nats_by_seed": [loss[cell.label][seed] for seed in args.seeds],
            "minus": {other: against(pooled[cell.label], pooled[other], task.labels) for other in beside(cell, cells)},
        }  # fmt: skip
    if not args.limit:
        train, test = (rows.read_examples(task, split, args.data or None) for split in ("train", "test"))
        told["floors"] = {
            name: dataclasses.asdict(score.interval(floors.FLOORS[name](train, test, task.mark), "accuracy", labels=task.labels))
            for name in ("majority", "naive_bayes")
        }  # fmt: skip
    return told


def learned(args: argparse.Namespace, out: Path, cell: Cell, seed: int, rate: float, grade: bool = True) -> dict[str, Any]:
    """The receipt of one run of LoRA over the product of the cell's factors."""
    spec = {
        "run": {"out": str(out), "seed": seed, "dtype": args.dtype, "device": "cpu"},
        "model": {"name": cell.folder, "cache": "off"},
        "method": {"kind": "lora", "rank": args.rank, "alpha": 2.0 * args.rank},
        "data": {"tasks": [args.task], "dir": args.data, "validation": 0.1, "too_long": "cut", "row_tokens": 2048},
        "train": {"steps": args.steps, "batch": args.batch, "lr": rate, "schedule": "linear", "warmup": 0.05, "validate_every": args.steps, "checkpoint_every": 50, "keep": 1},
        "evaluate": {"ways": ["choose"], "limit": args.limit},
    }  # fmt: skip
    return finished(finetune, spec, f"{args.task}, {cell.label}, seed {seed}, lr {rate:g}", grade=grade)


def pool(runs: Mapping[int, Sequence[score.Record]]) -> list[score.Record]:
    """The records of all seeds, an item's being one cluster."""
    return [dataclasses.replace(r, id=f"{seed}/{r.id}", cluster=r.cluster or r.id) for seed, records in runs.items() for r in records]


def against(a: Sequence[score.Record], b: Sequence[score.Record], labels: Sequence[str]) -> dict[str, Any]:
    """The paired difference in accuracy, over items; and each seed's own."""
    found = score.paired(a, b, "accuracy", labels=labels)
    seeds = dict.fromkeys(r.id.partition("/")[0] for r in a)
    mean = {s: [statistics.mean(r.correct for r in side if r.id.startswith(f"{s}/")) for side in (a, b)] for s in seeds}
    return {**dataclasses.asdict(found.difference), "mcnemar_p": found.mcnemar_p, "by_seed": [x - y for x, y in mean.values()]}


# -- the table ---------------------------------------------------------------------------------------------------------


def table(told: dict[str, Any]) -> str:
    """Every cell as a row of Markdown."""
    lines = []
    for name, one in told["models"].items():
        task = one.get("task")
        head = ["kept", name, "parameters", "nats a token", "perplexity", "nats above dense"] + ([f"{task['task']}, LoRA", "above dense"] if task else [])
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for label, cell in one["cells"].items():
            row = [f"{cell['keep']:g}", cell["arm"], f"{cell['params']:,}", between(cell["nats_per_token"], ".3f"), between(cell["perplexity"], ".1f")]
            row.append(between(cell["nats_minus"][DENSE], "+.3f") if label != DENSE else "")
            if task:
                row.append(between(task["cells"][label]["accuracy"], ".3f"))
                row.append(between(task["cells"][label]["minus"][DENSE], "+.3f") if label != DENSE else "")
            lines.append("| " + " | ".join(row) + " |")
        if task and "floors" in task:
            lines.append("\n" + ", ".join(f"{floor.replace('_', ' ')} {between(value, '.3f')}" for floor, value in task["floors"].items()))
        lines.append("")
    return "\n".join(lines)


def between(estimate: Mapping[str, Any], how: str) -> str:
    """A value with its interval."""
    value, low, high = (math.nan if estimate[key] is None else estimate[key] for key in ("value", "low", "high"))
    return f"{value:{how}} [{low:{how}}, {high:{how}}]"
