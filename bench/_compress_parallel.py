"""Part `parallel` of bench/compress.py: one model decomposed by one process and by several, in turns.

Each side is `finlora.compress` in a process of its own, in an order that turns from round to round; a ratio is taken within a
round.  Every process computes with one thread on both sides, so that what differs is the number of processes.  Two times
are told: `decomposing`, from the first weight handed out (calibration is over by then) to the last factor, workers that are
not up yet included; and `total`, all that compress.json calls seconds: opening, calibrating, decomposing, writing.
Checked: the folders of all sides and rounds hold the same bytes, and compress.json the same ranks and errors.

The weights are random and the text drawn words: what decomposing costs depends on shapes alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from finlora import model as models
from finlora import receipt
from finlora.compress import Compress, compress
from finlora.errors import FinloraError

TARGET = 1.6  # serial over parallel, with two workers
TIMES = ("decomposing", "total")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every round of both sides, and what they differ by."""
    home = work / "parallel"
    prepare(args, home)
    sides = (1, args.workers)
    rounds = []
    for k in range(args.rounds):
        order = sides if k % 2 == 0 else sides[::-1]
        told = {workers: once(args, home / f"round{k}-{workers}.json", workers) for workers in order}
        rounds.append({str(workers): told[workers] for workers in sides})
        print(f"round {k}: " + "; ".join(f"{n} process{'es' * (n > 1)} {told[n]['decomposing']:.2f} s decomposing, {told[n]['total']:.2f} s in all" for n in sides), flush=True)
    outputs = {one["output"] for r in rounds for one in r.values()}
    if len(outputs) != 1:
        raise FinloraError("the sides did not write the same bytes, so the work is not the same", f"compare the folders in {home}")
    ratios = {what: spread([r["1"][what] / r[str(args.workers)][what] for r in rounds]) for what in (*TIMES, "cpu_seconds")}
    return {
        "workers": args.workers, "threads": "one in every process, on both sides", "model": shape(args), "rounds": rounds, "ratios": ratios,
        "same_bytes": True, "output_sha256": outputs.pop(), "holds": {"target": TARGET, "met": ratios["decomposing"]["median"] >= TARGET},
    }  # fmt: skip


def table(figures: dict[str, Any]) -> str:
    """The ratios as Markdown."""
    n, lines = figures["workers"], [f"| 1 process over {figures['workers']} | median | rounds |", "|---|---|---|"]
    for what in TIMES:
        ratio = figures["ratios"][what]
        seconds = [statistics.median(r[side][what] for r in figures["rounds"]) for side in ("1", str(n))]
        lines.append(f"| {what}, {seconds[0]:.1f} s over {seconds[1]:.1f} s | {ratio['median']:.2f} | {ratio['min']:.2f} to {ratio['max']:.2f} |")
    return "\n".join(lines)


# -- the model and its text --------------------------------------------------------------------------------------------


def shape(args: argparse.Namespace) -> dict[str, Any]:
    """A Llama's settings at that width."""
    heads = max(1, args.width // 64)
    return {
        "family": "llama", "hidden_size": args.width, "intermediate_size": 64 * round(args.width * 8 / 3 / 64), "num_hidden_layers": args.layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip


def prepare(args: argparse.Namespace, home: Path) -> None:
    """The model of random weights and the text of drawn words, once.  Raises: FinloraError where the folder is of other settings."""
    asked = shape(args) | {"tokens": args.parallel_tokens, "keep": args.parallel_keep, "decomposition": args.parallel_decomposition}
    file = home / "asked.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != asked:
            raise FinloraError(f"`{home}` holds rounds of other settings", "name another --work, or remove that folder")
        return
    tokenizer = models.load_tokenizer(models.locate(models.BASE))
    models.save(models.new_model(shape(args), tokenizer, 0, dtype="float32", device="cpu"), home / "model", replace=True)
    words = sorted(w.removeprefix("Ġ") for w in tokenizer.get_vocab() if w.removeprefix("Ġ").isalpha())
    draw = torch.Generator().manual_seed(0)
    lines = []
    for k in range(64):  # a word is a token or more
        drawn = torch.randint(len(words), (args.parallel_tokens // 32,), generator=draw).tolist()
        lines.append(json.dumps({"source": "random", "id": str(k), "text": " ".join(words[i] for i in drawn)}))
    receipt.write_text(home / "text.jsonl", "\n".join(lines) + "\n")
    receipt.write_text(file, json.dumps(asked) + "\n")


# -- one side ----------------------------------------------------------------------------------------------------------


def once(args: argparse.Namespace, file: Path, workers: int) -> dict[str, Any]:
    """One side of one round in a process of its own, unless its file is there."""
    if not file.exists():
        passed = [flag for key in ("work", "parallel_keep", "parallel_tokens", "parallel_decomposition") for flag in (f"--{key.replace('_', '-')}", str(getattr(args, key)))]
        command = [sys.executable, str(Path(__file__).with_name("compress.py")), "--part", "parallel", "--side", str(workers), "--said", str(file), *passed]
        done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True)
        if done.returncode:
            raise FinloraError(f"the side of {workers} failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}", "run it again; rounds that are finished are kept")
    return json.loads(file.read_text(encoding="utf-8"))


def side(args: argparse.Namespace) -> None:
    """The work of one side; writes its figures to args.said."""
    torch.set_num_threads(1)
    home, file = Path(args.work) / "parallel", Path(args.said)
    out, clock = file.with_suffix(""), {"decomposing": 0.0}
    settings = Compress(
        model=str(home / "model"), out=str(out), text=(str(home / "text.jsonl"),), keep=args.parallel_keep, decomposition=args.parallel_decomposition,
        tokens=args.parallel_tokens, row_tokens=256, validation=0.0, workers=args.side, dtype="float32", device="cpu", overwrite=True,
    )  # fmt: skip
    before = cpu()
    with watched(clock):
        said = compress(settings)
    told = {
        "workers": args.side, "threads": torch.get_num_threads(), "total": said["seconds"], **clock, "cpu_seconds": cpu() - before,
        "weights": sum(one["seconds"] for one in said["linears"].values()), "linears": len(said["linears"]), "output": output(out, said),
    }  # fmt: skip
    shutil.rmtree(out)
    receipt.write_text(file, json.dumps(told) + "\n")


@contextmanager
def watched(clock: dict[str, float]) -> Iterator[None]:
    """Within it a compression adds to clock["decomposing"] the seconds from its first job handed out to its last answer."""
    module = importlib.import_module("finlora.compress")
    own = module.crew

    @contextmanager
    def crew(workers: int) -> Iterator[Any]:
        with own(workers) as solve:

            def timed(jobs: Iterable[Any]) -> Iterator[Any]:
                began: list[float] = []

                def seen() -> Iterator[Any]:
                    for job in jobs:  # the first is made when calibration is over
                        began.append(time.perf_counter())
                        yield job

                yield from solve(seen())
                clock["decomposing"] += time.perf_counter() - began[0]

            yield timed

    module.crew = crew
    try:
        yield
    finally:
        module.crew = own


def output(folder: Path, said: dict[str, Any]) -> str:
    """sha256 of what was written: every factor's bytes, ranks and errors."""
    import hashlib

    h = hashlib.sha256((folder / "model" / "structured.safetensors").read_bytes())
    h.update(json.dumps({name: [one["rank"], one["error"]] for name, one in said["linears"].items()}).encode())
    return h.hexdigest()


def cpu() -> float:
    """Processor seconds of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def spread(values: list[float]) -> dict[str, Any]:
    """{"rounds", "min", "median", "max"} of some values."""
    return {"rounds": values, "min": min(values), "median": statistics.median(values), "max": max(values)}
