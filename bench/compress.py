"""Compression of pretrained models: what each decomposition costs a model at several sizes, what healing gives back, and decomposing in parallel.

    python bench/compress.py --text train.jsonl --val val.jsonl --data DIR --model finlora/base runs/gpt2_4m/model
    python bench/compress.py --part parallel                                       # needs no data
    python bench/compress.py --toy --work runs/toy --out /dev/null                 # only shows that all of it runs

    quality    every model, dense and with `--keeps` of its linears' parameters: SVD, ASVD, SVD-LLM, Swift-SVD with the same share
               everywhere, with ranks by spectrum and by search, the last two also healed (factors trained whole, or by LoRA over them).
               Told: nats a token on held-out text with intervals over documents, paired by document; and the accuracy on a task
               after a short LoRA over each model, paired by item.  See _compress_quality.py.
    parallel   a Llama of random weights decomposed by one process and by two, in turns.  See _compress_parallel.py.

A cell that is finished is kept in `--work` and never made again, so that the same command goes on where it was cut off; other
settings want another folder.  The receipt holds every part whose figures lie there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import _compress_parallel as parallel
import _compress_quality as quality

from finlora import receipt

PARTS = {"quality": quality, "parallel": parallel}


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    p.add_argument("--work", default="runs/compress_bench", help="folder of finished cells; goes on from there")
    p.add_argument("--out", default="results/cpu/compress.json", help="the receipt")
    p.add_argument("--toy", action="store_true", help="tiny shapes: shows that all of it runs")
    g = p.add_argument_group("quality")
    g.add_argument("--model", nargs="*", default=["finlora/base"], help="model folders")
    g.add_argument("--train-gpt2", type=int, default=0, metavar="STEPS", help="also a GPT-2 trained on the text first, for so many steps of 16 rows")
    g.add_argument("--gpt2-width", type=int, default=256)
    g.add_argument("--gpt2-layers", type=int, default=4)
    g.add_argument("--gpt2-lr", type=float, default=2e-3)
    g.add_argument("--text", nargs="*", default=[], metavar="FILE", help="text to calibrate and heal on, and that GPT-2 is trained on")
    g.add_argument("--sources", nargs="*", default=[], help="only rows of these sources, of both texts")
    g.add_argument("--val", nargs="+", default=["embedded"], metavar="FILE", help="text to measure on; `embedded` is what ships")
    g.add_argument("--text-chars", type=int, default=6_000_000, help="characters drawn from the text, no document giving more than 1/32")
    g.add_argument("--val-each", type=int, default=6000, help="most characters of a document measured on")
    g.add_argument("--keeps", nargs="+", type=float, default=[0.8, 0.6, 0.4], help="shares of the linears' parameters")
    g.add_argument("--tokens", type=int, default=65536, help="tokens to calibrate on")
    g.add_argument("--row-tokens", type=int, default=256, help="tokens of a row of text")
    g.add_argument("--heal-steps", type=int, default=200)
    g.add_argument("--heal-batch", type=int, default=8, help="rows of a step")
    g.add_argument("--heal-rank", type=int, default=16, help="LoRA over the factors")
    g.add_argument("--full-lrs", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3], help="healing whole: tried once, at the middle of --keeps")
    g.add_argument("--lora-lrs", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2], help="healing by LoRA: the same")
    g.add_argument("--data", default="", help="folder of the task's files; empty: its embedded rows")
    g.add_argument("--task", default="", help="task; empty: fpb with --data, tone without")
    g.add_argument("--steps", type=int, default=200, help="LoRA on the task")
    g.add_argument("--batch", type=int, default=32)
    g.add_argument("--rank", type=int, default=16)
    g.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3], help="tried on the dense model's validation split, one for all")
    g.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the task's runs; none: no task")
    g.add_argument("--limit", type=int, default=0, help="test items of the task; 0: all")
    g.add_argument("--dtype", default="auto", help="training's compute type; reading and decomposing are in float32 and float64")
    g = p.add_argument_group("parallel")
    g.add_argument("--width", type=int, default=768)
    g.add_argument("--layers", type=int, default=4)
    g.add_argument("--rounds", type=int, default=5)
    g.add_argument("--workers", type=int, default=2)
    g.add_argument("--parallel-decomposition", default="swift")
    g.add_argument("--parallel-keep", type=float, default=0.6)
    g.add_argument("--parallel-tokens", type=int, default=8192, help="random tokens to calibrate on")
    g.add_argument("--side", type=int, default=0, help=argparse.SUPPRESS)
    g.add_argument("--said", default="", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.toy:
        toy(args)
    args.task = args.task or ("fpb" if args.data else "tone")
    if "quality" in args.part and not (args.text or args.toy):
        p.error("part quality needs --text: a model is calibrated on text (or leave it out: --part parallel)")
    if "quality" in args.part and not (args.model or args.train_gpt2):
        p.error("part quality needs --model or --train-gpt2")
    return args


def toy(args: argparse.Namespace) -> None:
    """Tiny shapes; what was asked for of text, parts and folders stays."""
    args.model, args.train_gpt2, args.gpt2_width, args.gpt2_layers = [], 4, 32, 2
    args.keeps, args.tokens, args.row_tokens, args.text_chars, args.val_each = [0.5], 2000, 64, 60_000, 600
    args.heal_steps, args.heal_batch, args.heal_rank, args.full_lrs, args.lora_lrs = 2, 4, 2, [1e-3], [1e-3]
    args.steps, args.batch, args.rank, args.lrs, args.seeds, args.limit = 2, 4, 2, [1e-3], [0, 1], 24
    args.width, args.layers, args.rounds, args.parallel_tokens = 64, 2, 2, 600


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The settings without the folders of the machine."""
    told = {k: v for k, v in vars(args).items() if k not in ("out", "side", "said", "work")}
    told |= {k: [Path(one).name if one != quality.BASE else one for one in told[k]] for k in ("text", "val", "model")}
    return told | {"data": Path(args.data).name}


def main() -> None:
    """The parts asked for, and the receipt."""
    args = options()
    if args.side:
        parallel.side(args)
        return
    work = Path(args.work)
    for name in args.part:
        began = time.perf_counter()
        figures = PARTS[name].run(args, work)
        told = {"asked": asked(args), "figures": figures, "seconds": time.perf_counter() - began}
        told |= {"versions": receipt.versions(), "device": receipt.device(), "code": receipt.code()}
        receipt.write_text(work / f"{name}.json", json.dumps(receipt.plain(told), indent=1) + "\n")
    out = receipt.new("bench", "compress", asked(args))
    out["bench"] = {name: json.loads((work / f"{name}.json").read_text(encoding="utf-8")) for name in PARTS if (work / f"{name}.json").exists()}
    for name, part in out["bench"].items():
        print(f"\n## {name}\n\n{PARTS[name].table(part['figures'])}", flush=True)
    if args.out != os.devnull:
        print(f"\nreceipt: {receipt.write(Path(args.out), out)}")


if __name__ == "__main__":
    from finlora.errors import FinloraError

    try:
        main()
    except FinloraError as error:
        raise SystemExit(str(error)) from error
