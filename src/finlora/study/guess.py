"""What runs will cost: from the finished ones, else from a short probe on this machine.

    seconds(job) = sum of seconds / sum of sizes * size(job)        over the nearest runs that have finished
    size = optimiser steps * examples a step * mean characters an example

Nearest are those of the same cell but for seed and learning rate; then of the same method and codec; then of the same method;
then all.  Of memory the largest peak among them is expected.  A probe is the run itself cut to a few steps and a few graded
examples; what does not grow with them counts once.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import receipt
from .. import spec as specs
from ..errors import FinloraError
from .work import Job, verb

STEPS, GRADED = 4, 24
LEVELS = ("the same cell, another seed or learning rate", "the same method and codec", "the same method", "any other run")


@dataclass(frozen=True)
class Cost:
    """What a job cost or will cost. level: which of LEVELS it was taken from. seconds: nan where unknown."""

    seconds: float
    peak_bytes: int
    level: int
    count: int


class Costs:
    """Costs that are known, and guesses of those that are not. searched: the key that a search varies."""

    def __init__(self, searched: str = "") -> None:
        self.searched = searched
        self.probed = False
        self._known: dict[tuple[Any, ...], list[tuple[float, float, int]]] = {}
        self._sizes: dict[str, tuple[int, int, float]] = {}

    def read(self, folder: Path) -> int:
        """Take up what has finished in a study's folder; returns how many runs that were."""
        seen: dict[str, dict[str, Any]] = {}
        path = folder / "costs.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                told = json.loads(line)
                seen[told["run"]] = told
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a crash
        count = 0
        for kind in ("search", "runs", "base"):
            for sheet_path in sorted(folder.glob(f"{kind}/*/receipt.json")):
                try:
                    sheet = receipt.read(sheet_path)
                    tree = specs.as_dict(specs.spec_from_dict(sheet["spec"]))  # with what was added since
                except FinloraError:
                    continue
                cost = seen.get(sheet_path.parent.name) or {}
                train = sheet.get("train") or {}
                graded = sum(r.get("seconds") or 0 for r in sheet.get("results", {}).values())
                seconds = cost["seconds"] if cost.get("whole") else (train.get("seconds") or 0) + graded
                peak = max(cost.get("peak_bytes") or 0, train.get("peak_bytes") or 0, (sheet.get("cost") or {}).get("peak_bytes") or 0)
                self.add(Job(kind, cost.get("keys") or {}, tree), seconds, peak)
                count += 1
        return count

    def add(self, job: Job, seconds: float, peak_bytes: int) -> None:
        """A job that has ended. seconds: nan where only the memory is known."""
        for name in self._names(job):
            self._known.setdefault(name, []).append((seconds, self.size(job), peak_bytes))

    def guess(self, job: Job) -> Cost | None:
        """What a job is expected to cost, None where nothing is known."""
        for level, name in enumerate(self._names(job)):
            held = self._known.get(name)
            if held:
                timed = [(s, n) for s, n, _ in held if not math.isnan(s)]
                seconds = sum(s for s, _ in timed) / (sum(n for _, n in timed) or 1.0) * self.size(job) if timed else math.nan
                return Cost(seconds, max(p for _, _, p in held), level, len(held))
        return None

    def memory(self, job: Job) -> int:
        """Bytes that a job is expected to hold at its peak, 0 where nothing is known: of a search's run where no other is."""
        for kind in (job.kind, "runs", "search", "base"):
            cost = self.guess(replace(job, kind=kind))
            if cost and cost.peak_bytes and (cost.level < 3 or kind == "base"):
                return cost.peak_bytes
        every = [p for name, held in self._known.items() if len(name) == 1 for _, _, p in held]
        return max(every, default=0)

    def _names(self, job: Job) -> list[tuple[Any, ...]]:
        """The groups that a job belongs to, narrowest first."""
        tree = job.tree
        method, codec = tree.get("method", {}), tree.get("codec", {})
        parts = {name: dict(table) for name, table in tree.items() if name not in ("log", "parallel")}
        parts["run"] = {k: v for k, v in parts.get("run", {}).items() if k in ("device", "dtype")}
        section, _, key = self.searched.partition(".")
        if section in parts:
            parts[section].pop(key, None)
        for name in ("data", "model"):  # folders may be written in two ways
            parts[name] = {k: v for k, v in parts.get(name, {}).items() if k not in ("dir",)}
        own = json.dumps(receipt.plain(parts), sort_keys=True)
        if tree.get("structure"):
            method = {**method, "structure": tree["structure"], "model": tree.get("model", {}).get("config")}
        kind = method.get("kind"), str(tree.get("structure", {}).get("kind")), repr(tree.get("model", {}).get("config"))
        return [(job.kind, own), (job.kind, json.dumps(receipt.plain(method), sort_keys=True), codec.get("kind")), (job.kind, *kind), (job.kind,)]

    def size(self, job: Job) -> float:
        """Characters that the run trains on (or, for the untuned base, grades), 1.0 where its data cannot be read; tokens of
        a run that pretrains."""
        tree = job.tree
        if tree["data"]["text"] or tree["data"]["shards"]:
            return float(tree["train"]["steps"] * tree["train"]["batch"] * tree["data"]["row_tokens"]) or 1.0
        tasks = tuple(tree["data"]["tasks"])
        graded = tuple(tree["evaluate"]["tasks"]) or tasks
        try:
            train = [self._examples(task, "train", tree["data"]["dir"]) for task in tasks]
            test = [self._examples(task, tree["evaluate"]["split"], tree["data"]["dir"]) for task in graded]
        except FinloraError:
            return 1.0
        limit = tree["evaluate"]["limit"]
        read = sum(min(n, limit or n) * chars for n, chars in test)
        if job.kind == "base":
            return read
        most = tree["data"]["max_train"]
        counts = [min(n * (1 - tree["data"]["validation"]), most or n) for n, _ in train]
        mean = sum(c * chars for c, (_, chars) in zip(counts, train)) / (sum(counts) or 1)
        done = tree["train"]["steps"] * tree["train"]["batch"] or tree["train"]["epochs"] * sum(counts)
        # forward and backward against forward alone
        return done * mean + (read / 3 if job.kind == "runs" else 0)

    def _examples(self, task: str, split: str, dir: str) -> tuple[int, float]:
        """(examples, mean characters of one) of a task's split."""
        key = repr((task, split, dir))
        if key not in self._sizes:
            from ..registry import pick
            from ..rows import read_examples
            from ..text import prompt_text

            found = read_examples(pick("task", task), split, dir or None)
            self._sizes[key] = (len(found), sum(len(prompt_text(e)) + len(e.answer) for e in found) / len(found))
        return self._sizes[key]


def probe(costs: Costs, jobs: Sequence[Job]) -> list[str]:
    """Measure a few steps of each job on this machine, in a folder that is then removed; notes on those that failed."""
    notes = []
    for job in jobs:
        try:
            _probe(costs, job)
            costs.probed = True
        except FinloraError as error:
            notes.append(error.message)
    return notes


def _probe(costs: Costs, job: Job) -> None:
    from ..tune import finetune

    if verb(job) == "pretrain":
        return _probe_scratch(costs, job)
    with tempfile.TemporaryDirectory(prefix="finlora-probe-") as folder:
        spec = specs.spec_from_dict(job.tree)
        few = {"steps": STEPS, "validate_every": 10 * STEPS, "checkpoint_every": 10 * STEPS}
        limit = min(GRADED, spec.evaluate.limit or GRADED)
        most = min(STEPS * spec.train.batch, spec.data.max_train or 1 << 60)
        reading = _reading(costs, spec, most)
        for name in ("first", "second"):  # the first also does what a worker does once, such as the floors: the second is what each run costs
            short = specs.replace(spec, run={"out": str(Path(folder) / name)}, train=few, evaluate={"limit": limit}, data={"max_train": most})
            began = time.perf_counter()
            sheet = finetune(short)
            wall = time.perf_counter() - began
    train = sheet["train"]
    graded = [r for r in sheet["results"].values() if r.get("seconds") is not None]
    grading = sum(r["seconds"] for r in graded)
    each = grading / max(1, sum(r["n"] for r in graded))
    steps = spec.train.steps
    tasks = job.tree["evaluate"]["tasks"] or job.tree["data"]["tasks"]
    many = sum(min(costs._examples(t, spec.evaluate.split, spec.data.dir)[0], spec.evaluate.limit or 1 << 60) for t in tasks)
    if not steps:
        counts = [costs._examples(t, "train", spec.data.dir)[0] * (1 - spec.data.validation) for t in spec.data.tasks]
        steps = math.ceil(spec.train.epochs * sum(min(c, spec.data.max_train or c) for c in counts) / spec.train.batch)
    once = max(0.0, wall - train["seconds"] - grading) + reading
    training = once + train["seconds"] / train["steps"] * steps
    costs.add(replace(job, kind="search"), training, train["peak_bytes"])
    costs.add(replace(job, kind="runs"), training + each * many, train["peak_bytes"])
    costs.add(replace(job, kind="base"), once + each * many, train["peak_bytes"])


def _probe_scratch(costs: Costs, job: Job) -> None:
    """The same for a run that pretrains: its text is read whole, and its steps are scaled."""
    from ..scratch import pretrain

    with tempfile.TemporaryDirectory(prefix="finlora-probe-") as folder:
        spec = specs.spec_from_dict(job.tree)
        few = {"steps": STEPS, "validate_every": 10 * STEPS, "checkpoint_every": 10 * STEPS}
        short = specs.replace(spec, run={"out": str(Path(folder) / "probe")}, train=few)
        began = time.perf_counter()
        train = pretrain(short)["train"]
        once = time.perf_counter() - began - train["seconds"]
    seconds = once + train["seconds"] / train["steps"] * (spec.train.steps or STEPS)
    for kind in ("search", "runs"):
        costs.add(replace(job, kind=kind), seconds, train["peak_bytes"])


def _reading(costs: Costs, spec: specs.Spec, short: int) -> float:
    """Seconds that the whole run takes longer than its probe to turn its training examples into tokens."""
    from ..model import load_tokenizer, locate
    from ..registry import pick
    from ..rows import read_examples
    from ..text import choose_template, render

    tokenizer = load_tokenizer(str(locate(spec.model.name, spec.model.online)))
    template = choose_template(tokenizer, spec.data.template)
    total = 0.0
    for name in spec.data.tasks:
        many = costs._examples(name, "train", spec.data.dir)[0]
        some = read_examples(pick("task", name), "train", spec.data.dir or None, GRADED)[:GRADED]
        began = time.perf_counter()
        for example in some:
            render(example, tokenizer, True, template)
        total += (time.perf_counter() - began) / len(some) * max(0, min(many, spec.data.max_train or many) - short)
    return total


def sheet(costs: Costs, jobs: Iterable[Job]) -> Mapping[str, Any]:
    """Totals of the jobs still to do: {"seconds", "longest", "peak_bytes", "unknown", "levels"}."""
    found = [costs.guess(job) for job in jobs]
    known = [c for c in found if c is not None and not math.isnan(c.seconds)]
    levels = [sum(c.level == at for c in known) for at in range(len(LEVELS))]
    return {
        "seconds": sum(c.seconds for c in known), "longest": max((c.seconds for c in known), default=0.0),
        "peak_bytes": max((c.peak_bytes for c in known), default=0), "unknown": len(found) - len(known), "levels": levels,
    }  # fmt: skip


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """The first job of each model, codec and method: what one probe each would measure."""
    out: dict[str, Job] = {}
    for job in jobs:
        if job.kind != "base":
            own = [job.tree["model"][key] for key in ("name", "config")]
            out.setdefault(json.dumps([*own, job.tree["structure"], job.tree["codec"], job.tree["method"]], sort_keys=True), job)
    return list(out.values())
