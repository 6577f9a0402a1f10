"""Low-rank pretraining on one GPU: speed and memory, loss at equal wall time, decomposing a 7B model, generating in INT8.

    python bench/pretrain_gpu.py --text train.jsonl --val val.jsonl     # an H200-class GPU; receipts: results/h200/pretrain_PART.json
    python bench/pretrain_gpu.py --part speed --policies none           # one part of it
    python bench/pretrain_gpu.py --toy --device cpu --out runs/toy      # does it run?

    speed       GPT-2 124M dense, and lowrank and cola with the whole model 2.64 times smaller, under every policy of
                recomputation that means something, compiled, bfloat16 over float32 masters.  In one process and in turns: in each
                round every case takes the same batches, in an order that turns; a ratio is taken within a round.
                Memory is state_bytes (parameters and moments, counted) and rise_bytes (the allocator's peak above the start of
                the steps: gradients and activations).  Checked: the policies of a structure give the same losses, to AGREE.
    curve       the same three on text, with the tokenizer of finlora/base, by train.fit for the same seconds of training:
                loss and held-out nats against seconds.  Steps are set by a trial, after compiling and before the clock.
    decompose   every linear of Llama 2 7B, random weights, with inputs' moments whose spectrum falls: swift at 0.6 of the
                parameters.  The clock runs from weight and moment on the GPU to balanced factors and their errors there.
                Checked: a small linear against float64 on the CPU.  One weight's plain SVD is timed beside it.
    generate    GPT-2 1.5B at 2.64 times fewer parameters, random weights, factors in INT8: its folder's bytes, and tokens/s from
                the opened folder.  Checked: its logits are those from before it was written.

    MFU = 6 M tokens/s / peak      M: multiply-adds of one token forward, attention and head included; recomputation is not counted

Each part runs in a process of its own and writes its receipt as it goes, a failure included.  A part whose receipt is there and
whole is not run again, unless --again.  On a machine rented by the minute call the parts one by one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

PARTS = {"speed": "_gpu_train", "curve": "_gpu_train", "decompose": "_gpu_decompose", "generate": "_gpu_generate"}


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    p.add_argument("--out", default="results/h200", help="folder of the receipts")
    p.add_argument("--again", action="store_true", help="run parts whose receipt is there already")
    p.add_argument("--device", default="cuda")
    p.add_argument("--toy", action="store_true", help="tiny shapes, nothing compiled: shows that all of it runs")
    p.add_argument("--limit", type=float, default=540.0, help="seconds that one part may take")
    p.add_argument("--peak-flops", type=float, default=989e12, help="the device's dense bfloat16 peak, FLOP/s")
    p.add_argument("--size", default="124m", help="GPT-2's size of speed and curve")
    p.add_argument("--structures", nargs="+", default=["dense", "lowrank", "cola"], help="the first is what the others are compared with")
    p.add_argument("--compression", type=float, default=2.64, help="of the whole model's parameters")
    p.add_argument("--vocabulary", type=int, default=50304, help="of speed and generate: GPT-2's 50257, filled up to a multiple of 64")
    p.add_argument("--row-tokens", type=int, default=1024)
    p.add_argument("--rows", type=int, default=32, help="rows of a step: one micro-batch")
    p.add_argument("--compile", default="on", choices=("on", "off"))
    p.add_argument("--lr", nargs="+", type=float, default=[6e-4], help="one for all structures, or one for each")
    p.add_argument("--policies", nargs="+", default=["none", "full", "selective", "narrow"], choices=("none", "full", "selective", "narrow"))
    p.add_argument("--rounds", type=int, default=6)
    p.add_argument("--steps", type=int, default=5, help="steps of a case in a round")
    p.add_argument("--compile-seconds", type=float, default=330.0, help="speed: no further case is compiled after so long")
    p.add_argument("--text", nargs="+", default=[], help="curve: files to train on; empty: the embedded ones, which are few")
    p.add_argument("--val", nargs="+", default=[], help="curve: files held out; empty: the end of the text")
    p.add_argument("--max-tokens", type=int, default=40_000_000, help="curve: most tokens that are read")
    p.add_argument("--seconds", type=float, default=90.0, help="curve: of training, for each structure")
    p.add_argument("--held-rows", type=int, default=256)
    p.add_argument("--looks", type=int, default=8, help="curve: looks at the held-out loss")
    p.add_argument("--keep", type=float, default=0.6, help="decompose: share of parameters")
    p.add_argument("--blocks", type=int, default=0, help="decompose: blocks to do; 0: all")
    p.add_argument("--target", type=float, default=300.0, help="decompose: seconds that are hoped for")
    p.add_argument("--new-tokens", type=int, default=128)
    p.add_argument("--prompts", nargs="+", type=int, default=[1, 16], help="generate: prompts side by side")
    p.add_argument("--case", default="", choices=("", *PARTS), help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if len(args.lr) not in (1, len(args.structures)):
        p.error("--lr takes one rate, or one for each of --structures")
    if args.toy:
        args.rows, args.row_tokens, args.vocabulary, args.compile, args.rounds, args.steps = 2, 32, 512, "off", 2, 1
        args.seconds, args.held_rows, args.looks, args.max_tokens, args.new_tokens, args.prompts = 1.0, 4, 2, 4000, 8, [1, 2]
        args.compression = min(args.compression, 1.1)  # so small a model is embeddings above all
    return args


def receipt_of(args: argparse.Namespace, part: str) -> Path:
    """Where a part's receipt is."""
    return Path(args.out) / f"pretrain_{part}.json"


def one(args: argparse.Namespace, part: str) -> str:
    """Run a part here; returns its line. Its receipt is written whenever it has something to tell, and when it fails."""
    from finlora import model as models
    from finlora import receipt

    path, bench = receipt_of(args, part), {"finished": False}

    def keep(**told: Any) -> None:
        bench.update(told)
        out = receipt.new("bench", f"pretrain_{part}", {k: v for k, v in vars(args).items() if k not in ("case", "part", "again", "out")})
        receipt.write(path, {**out, "bench": bench})

    try:
        line = getattr(importlib.import_module(PARTS[part]), part)(args, models.device_of(args.device), keep)
    except Exception as error:  # whatever it is, it is to be read in the receipt and not to be lost
        traceback.print_exc()
        message = (str(error) or "no message").strip()[:2000]
        keep(failed=f"{type(error).__name__}: {message}")
        return f"failed: {message.splitlines()[0]}"
    keep(finished=True, line=line)
    return line


def whole(path: Path) -> bool:
    """Whether a finished part's receipt is there."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["bench"]["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def noted(path: Path, why: str) -> None:
    """Write into a part's receipt, or in its place, why it ended without a word."""
    from finlora import receipt

    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else receipt.new("bench", path.stem, {})
    told["bench"] = {**told.get("bench", {}), "finished": False, "failed": why}
    receipt.write(path, told)


def main() -> None:
    """Every part in a process of its own."""
    args = options()
    if args.case:
        line = one(args, args.case)
        print(f"{args.case}: {line}", flush=True)
        raise SystemExit(line.startswith("failed: "))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    failed = []
    from finlora import model as models

    models.device_of(args.device)  # refuses one that is not there
    for part in args.part:
        path = receipt_of(args, part)
        if whole(path) and not args.again:
            print(f"{part}: `{path}` is there; --again runs it anew")
            continue
        before = path.read_bytes() if whole(path) else None
        path.unlink(missing_ok=True)
        try:
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--case", part], timeout=args.limit, env=environment, check=False)
            why = "" if done.returncode in (0, 1) and path.is_file() else f"its process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            why = f"took longer than {args.limit:.0f} s"
        if why:
            noted(path, why)
            print(f"{part}: failed: {why}", flush=True)
        if not whole(path):
            failed.append(part)
            if before is not None:
                path.write_bytes(before)
                print(f"{part}: `{path}` is again what it was")
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}")


if __name__ == "__main__":
    from finlora.errors import FinloraError

    try:
        main()
    except FinloraError as error:
        raise SystemExit(str(error)) from error
