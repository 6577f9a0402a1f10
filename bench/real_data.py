"""Tune the embedded base on a real task by LoRA and by QLoRA (nf4), and compare them with each other and with the floors.

    python bench/real_data.py --data DIR --tasks fpb tfns --out results/cpu/real_data

DIR holds FinLoRA's files (fpb_train.jsonl, fpb_test.jsonl ...).  Every run is an ordinary `finlora finetune`; the test
split is read once, at the end.  Written: one receipt a run, and OUT.json with paired differences (cluster bootstrap and
McNemar) of QLoRA against LoRA and of both against naive Bayes, on the same test items.  The records, which follow the data's
licence, stay in the run folders.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from finlora import floors, receipt, rows, score
from finlora import spec as specs
from finlora.registry import pick
from finlora.tune import finetune

CODECS = {"lora": "none", "qlora-nf4": "nf4"}
EPOCHS = {"fpb": 4.0, "tfns": 2.0}


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", nargs="+", default=["fpb", "tfns"])
    parser.add_argument("--model", default="finlora/base")
    parser.add_argument("--runs", default="runs/real_data")
    parser.add_argument("--out", default="results/cpu/real_data")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    told = receipt.new("bench", "real_data", {**vars(options), "data": Path(options.data).name, "runs": Path(options.runs).name})
    told["results"] = {}
    for task in options.tasks:
        told["results"][task] = compare(task, options)
    receipt.write(f"{options.out}.receipt.json", told)


def compare(name: str, options: argparse.Namespace) -> dict:
    """All runs of one task, and what they differ by."""
    task = pick("task", name)
    train, test = (rows.read_examples(task, split, options.data) for split in ("train", "test"))
    held = {"naive_bayes": floors.naive_bayes(train, test, task.mark), "majority": floors.majority(train, test, task.mark)}
    accuracy = {}
    for run, codec in CODECS.items():
        out = Path(options.runs) / f"{name}-{run}"
        spec = specs.spec_from_dict(settings(name, codec, str(out), options), options.set)
        said = finetune(spec, progress=Lines(f"{name} {run}"))
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        receipt.write(Path(options.out).parent / f"{name}-{run}.receipt.json", public(said))
        held[run] = score.read_records(out / said["results"][name]["records"])
    for run, records in held.items():
        accuracy[run] = dataclasses.asdict(score.interval(records, "accuracy", labels=task.labels))
    pairs = [("qlora-nf4", "lora"), ("lora", "naive_bayes"), ("qlora-nf4", "naive_bayes"), ("lora", "majority"), ("qlora-nf4", "majority")]
    differences = {
        f"{a} - {b}": {metric: dataclasses.asdict(score.paired(held[a], held[b], metric, labels=task.labels)) for metric in ("accuracy", "macro_f1")}
        for a, b in pairs
    }
    for pair, found in differences.items():
        d = found["accuracy"]["difference"]
        print(f"{name}: {pair}: {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], McNemar p = {found['accuracy']['mcnemar_p']:.3g}")
    return {"accuracy": accuracy, "paired": differences, "overlap": rows.overlap(train, test)}


def public(said: dict) -> dict:
    """The receipt without the folders of the machine that made it."""
    said["spec"]["run"]["out"] = Path(said["spec"]["run"]["out"]).name
    said["spec"]["data"]["dir"] = Path(said["spec"]["data"]["dir"]).name
    return said


def settings(name: str, codec: str, out: str, options: argparse.Namespace) -> dict:
    """The spec of one run; the learning rate was chosen on the validation split (LOG.md)."""
    return {
        "run": {"out": out, "seed": 0},
        "model": {"name": options.model},
        "codec": {"kind": codec},
        "method": {"kind": "lora", "rank": 16, "alpha": 32.0},
        "data": {"tasks": [name], "dir": options.data, "validation": 0.1},
        "train": {"epochs": EPOCHS.get(name, 3.0), "batch": 32, "lr": 2e-3, "schedule": "linear", "warmup": 0.05},
        "evaluate": {"max_new": 6},
    }


class Lines:
    """Progress as plain lines."""

    def __init__(self, name: str):
        self.name = name

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        print(f"{self.name}: {stage}, {total}", flush=True)

    def step(self, n: int, **values: float) -> None:
        """A step is done."""
        if n % 50 == 0:
            print(f"{self.name}: {n} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)

    def note(self, text: str) -> None:
        """Something to say."""
        print(f"{self.name}: {text}", flush=True)

    def done(self) -> None:
        """The stage is over."""


if __name__ == "__main__":
    main()
