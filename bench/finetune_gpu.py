"""Fine-tuning an 8B model on one GPU: tokens/s, model FLOPs utilisation and memory, beside PEFT on the same work.

    python bench/finetune_gpu.py --name finetune_8b            (an H200-class GPU; receipt: results/h200/finetune_8b.json)
    python bench/finetune_gpu.py --device cpu --toy --out /dev/null     (does it run?)

The model has the shape of Llama-3.1-8B and random weights, drawn on the device in its compute type, so that nothing is
downloaded and the host never holds it.  LoRA of rank 16 on every linear, over bfloat16 and over nf4; rows of 4096 tokens
packed with documents, every token weighted (so that leaving the head out where no token has a weight gains nothing here),
two rows a step.  Both sides get the same weights, the same initial adapter and the same batches, and take the same step:
forward, backward, clipping, fused AdamW.  PEFT's side is transformers' own forward under bfloat16 autocast, as Trainer
runs it, told of the packing by its position ids; its 4-bit layers are bitsandbytes'.  Each case runs in its own process.

    MFU = 4 N tokens/s / peak      N: weights of the linears and the head; LoRA needs 2 N forward and 2 N backward a token
                                   (no gradient of the weights); attention and recomputation are not counted

Seconds are medians over the timed steps (CUDA events on a GPU), memory is the allocator's high-water mark over the steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _vocabulary import Vocabulary

SIDES = ("ours", "peft")
LLAMA = {
    "family": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
VOCABULARY = 128256
TOY = {**LLAMA, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--name", default="finetune_gpu", help="the receipt's name")
    p.add_argument("--out", default="", help="the receipt; empty: results/h200/NAME.json")
    p.add_argument("--device", default="cuda")
    p.add_argument("--toy", action="store_true", help="a tiny model and short rows: shows that all of it runs")
    p.add_argument("--codecs", nargs="+", default=["none", "nf4"], choices=("none", "nf4"))
    p.add_argument("--recompute", nargs="+", default=["off", "on"], choices=("off", "on"), help="activations kept, or computed again")
    p.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--alpha", type=float, default=32.0)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--row-tokens", type=int, default=4096)
    p.add_argument("--document-tokens", type=int, default=512, help="mean length of the documents in a row")
    p.add_argument("--rows", type=int, default=2, help="rows of a step: one micro-batch")
    p.add_argument("--steps", type=int, default=10, help="timed steps")
    p.add_argument("--warmup", type=int, default=3, help="steps before them")
    p.add_argument("--peak-tflops", type=float, default=989.0, help="the device's dense bfloat16 peak")
    p.add_argument("--limit", type=float, default=240.0, help="seconds that one case may take")
    p.add_argument("--case", default="", help=argparse.SUPPRESS)
    p.add_argument("--adapter", default="", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.toy:
        args.row_tokens, args.document_tokens, args.steps, args.warmup = 128, 32, 3, 1
    args.out = args.out or f"results/h200/{args.name}.json"
    return args


# -- the work --------------------------------------------------------------------------------------------------------


@contextmanager
def drawn_on(device: Any, dtype: Any) -> Iterator[None]:
    """Inside, new parameters are made on the device and in the dtype: no copy in float32 on the host."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def base_model(args: argparse.Namespace) -> Any:
    """The random model, untouched: the same weights on both sides."""
    from finlora import model as models

    device = models.device_of(args.device)
    dtype = models.dtype_of("auto", device)
    with drawn_on(device, dtype):
        shape, size = (TOY, 512) if args.toy else (LLAMA, VOCABULARY)
        return models.new_model(shape, Vocabulary(size), 0, dtype=str(dtype).removeprefix("torch."), device=args.device)


def batches(args: argparse.Namespace, vocabulary: int) -> list[Any]:
    """A finlora Batch for each step: rows full of random documents, every token weighted."""
    import numpy as np

    from finlora.data import collate
    from finlora.text import Tokens

    draw = np.random.default_rng(0)
    out = []
    for _ in range(args.warmup + args.steps):
        rows = []
        for _ in range(args.rows):
            row, left = [], args.row_tokens
            while left:
                n = min(left, max(8, int(draw.exponential(args.document_tokens))))
                n = left if left - n < 8 else n
                row.append(Tokens(tuple(draw.integers(3, vocabulary, n + 1).tolist()), (1.0,) * (n + 1)))
                left -= n
            rows.append(row)
        out.append(collate(rows, args.row_tokens))
    return out


def timed(args: argparse.Namespace, device: Any, take: Callable[[Any], tuple[float, float]], work: list[Any]) -> dict[str, Any]:
    """Take all the steps; seconds, losses and gradient norms of the timed ones."""
    import torch

    from finlora import measure

    seconds, losses, norms, meter = [], [], [], measure.meter(device)
    for k, batch in enumerate(work):
        if k == args.warmup:
            meter = measure.meter(device)
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            loss, norm = take(batch)
            stop.record()
            torch.cuda.synchronize(device)
            spent = start.elapsed_time(stop) / 1e3
        else:
            began = time.perf_counter()
            loss, norm = take(batch)
            spent = time.perf_counter() - began
        seconds, losses, norms = [*seconds, spent], [*losses, loss], [*norms, norm]
    memory = meter.read()
    return {
        "seconds": seconds[args.warmup :],
        "losses": losses,
        "grad_norms": norms,
        "peak_bytes": memory["peak_bytes"],
        "start_bytes": memory["start_bytes"],
        "peak_how": memory["peak_how"],
    }


# -- the sides -------------------------------------------------------------------------------------------------------


def ours(args: argparse.Namespace, codec: str, recompute: bool) -> dict[str, Any]:
    """finlora: rewire, train.step, clipping, AdamW."""
    import torch

    from finlora import adapters, optim, train
    from finlora import model as models
    from finlora.methods.lora import LoRA
    from finlora.spec import Train

    model = models.rewire(base_model(args), codec=codec, method="lora", method_config=LoRA(args.rank, args.alpha))
    adapters.save_adapter(model, args.adapter, replace=True)
    models.recompute(model, recompute)
    weights = sum(linear.shape[0] * linear.shape[1] for linear in model.linears.values()) + models.head(model).weight.numel()
    optimizer = optim.adamw(model.train(), Train(lr=args.lr))

    def take(batch: Any) -> tuple[float, float]:
        nats, weight = train.step(model, [batch])
        norm = torch.nn.utils.clip_grad_norm_(model.trainable().values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return nats / weight, float(norm)

    work = batches(args, len(model.tokenizer))
    return {**timed(args, model.device, take, work), "weights": weights, "bits_per_weight": models.bits_per_weight(model)}


def peft(args: argparse.Namespace, codec: str, recompute: bool) -> dict[str, Any]:
    """transformers' forward with PEFT's LoRA, a plain loop."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    made = base_model(args)
    device, dtype, body = made.device, made.dtype, made.body
    vocabulary = len(made.tokenizer)
    weights = sum(m.weight.numel() for m in body.modules() if isinstance(m, torch.nn.Linear))
    body.set_attn_implementation("sdpa")
    del made
    if codec == "nf4":
        quantise(body, dtype)
    config = LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=list(ADAPTED), task_type="CAUSAL_LM")
    model = get_peft_model(body, config)
    state = load_file(Path(args.adapter) / "adapter_model.safetensors", device=str(device))
    set_peft_model_state_dict(model, state)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0, fused=True)

    def take(batch: Any) -> tuple[float, float]:
        batch = batch.to(device)
        # `shift_labels` are targets that need no shift; position ids that start again tell transformers of the packing
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = model(
                input_ids=batch.ids, position_ids=batch.pos, labels=batch.targets, shift_labels=batch.targets, use_cache=False
            )
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(out.loss.detach()), float(norm)

    return {**timed(args, device, take, batches(args, vocabulary)), "weights": weights}


def quantise(body: Any, dtype: Any) -> None:
    """Every linear but the head as bitsandbytes' 4-bit one, in place, as BitsAndBytesConfig makes them."""
    import bitsandbytes as bnb
    import torch

    for name, module in list(body.named_modules()):
        if not isinstance(module, torch.nn.Linear) or module is body.get_output_embeddings():
            continue
        with torch.device("meta"):
            made = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=dtype, compress_statistics=False, quant_type="nf4"
            )
        W = module.weight.data
        made.weight = bnb.nn.Params4bit(W, requires_grad=False, compress_statistics=False, quant_type="nf4", module=made).to(W.device)
        parent, _, leaf = name.rpartition(".")
        setattr(body.get_submodule(parent), leaf, made)
    body.is_loaded_in_4bit = True  # what PEFT looks at to choose its 4-bit layer


# -- the cases -------------------------------------------------------------------------------------------------------


def measured(case: dict[str, Any]) -> bool:
    """Whether a case has figures."""
    return not {"skipped", "failed"} & set(case)


def run(args: argparse.Namespace, side: str, codec: str, recompute: str, adapter: str) -> dict[str, Any]:
    """One case in a fresh process; {"skipped": why} where it cannot run here, {"failed": why} where it broke."""
    lacking = [name for name in needs(side, codec) if not installed(name)]
    if lacking:
        return {"skipped": f"{' and '.join(lacking)} not installed"}
    given = {k: v for k, v in vars(args).items() if k not in ("case", "adapter", "toy", "codecs", "recompute", "sides")}
    command = [sys.executable, __file__, "--case", f"{side} {codec} {recompute}", "--adapter", adapter, *(["--toy"] if args.toy else [])]
    for key, value in given.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {args.limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"skipped": "out of memory"} if "OutOfMemory" in last or "out of memory" in last else {"failed": last}
    return rates(args, json.loads(done.stdout.strip().splitlines()[-1]))


def needs(side: str, codec: str) -> list[str]:
    """The packages that a case needs beyond ours."""
    return [] if side == "ours" else ["peft", *(["bitsandbytes"] if codec == "nf4" else [])]


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    from importlib.util import find_spec

    return find_spec(name) is not None


def rates(args: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """The case with tokens/s and MFU, and the timed steps' loss and gradient norm."""
    seconds = statistics.median(case["seconds"])
    tokens_per_s = args.rows * args.row_tokens / seconds
    return {
        **case,
        "step_seconds": {"median": seconds, "min": min(case["seconds"]), "max": max(case["seconds"])},
        "tokens_per_s": tokens_per_s,
        "mfu": 4 * case["weights"] * tokens_per_s / (args.peak_tflops * 1e12),
        "loss_first": case["losses"][0],
        "loss_last": case["losses"][-1],
        "grad_norm_first": case["grad_norms"][0],
        "grad_norm_last": case["grad_norms"][-1],
    }


def main() -> None:
    """All cases, the table, and the receipt."""
    args = options()
    if args.case:
        side, codec, recompute = args.case.split()
        print(json.dumps((ours if side == "ours" else peft)(args, codec, recompute == "on")))
        return
    from finlora import model as models
    from finlora import receipt

    models.device_of(args.device)  # refuses a GPU that is not here before anything is built
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for codec in args.codecs:
            for recompute in args.recompute:
                # ours comes first: it draws the adapter that the other side reads
                found = {side: run(args, side, codec, recompute, f"{scratch}/{codec}") for side in SIDES if side in args.sides}
                cases[f"{codec}, recompute {recompute}"] = found
                for side, case in found.items():
                    print(f"{codec:5s} recompute {recompute:3s} {side:5s} {shown(case)}", flush=True)
                if set(found) == set(SIDES) and all(map(measured, found.values())):
                    pair = compare(found["ours"], found["peft"])
                    found["compare"] = pair
                    print(f"      ours / peft: {pair['tokens_per_s_ratio']:.2f}x tokens/s, {pair['peak_bytes_ratio']:.2f}x memory")
    if not any(measured(case) for found in cases.values() for case in found.values()):
        raise SystemExit("nothing was measured, and no receipt is written")
    out = receipt.new("bench", args.name, {k: v for k, v in vars(args).items() if k not in ("case", "adapter", "out")})
    out["bench"] = {"cases": cases, "mfu_how": "4 N tokens/s / peak; N: weights of linears and head; attention and recomputation not counted"}
    if args.out != os.devnull:
        print(f"receipt: {receipt.write(args.out, out)}")
    broken = [f"{name}, {side}" for name, found in cases.items() for side, case in found.items() if "failed" in case]
    if broken:
        raise SystemExit(f"failed: {'; '.join(broken)}")


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """Ours against PEFT's: ratios, and how far apart the losses are."""
    return {
        "tokens_per_s_ratio": a["tokens_per_s"] / b["tokens_per_s"],
        "peak_bytes_ratio": a["peak_bytes"] / b["peak_bytes"],
        "loss_first_difference": a["loss_first"] - b["loss_first"],
        "loss_largest_difference": max(abs(x - y) for x, y in zip(a["losses"], b["losses"])),
        "grad_norm_first_ratio": a["grad_norm_first"] / b["grad_norm_first"] if b["grad_norm_first"] else math.nan,
    }


def shown(case: dict[str, Any]) -> str:
    """A case for the terminal."""
    if not measured(case):
        return ", ".join(f"{how}: {why}" for how, why in case.items())
    return (
        f"{case['tokens_per_s']:,.0f} tokens/s, MFU {case['mfu']:.1%}, {case['peak_bytes'] / 2**30:.1f} GiB, "
        f"loss {case['loss_first']:.4f} -> {case['loss_last']:.4f}, gradient norm {case['grad_norm_first']:.4f}"
    )


if __name__ == "__main__":
    from finlora.errors import FinloraError

    try:
        main()
    except FinloraError as error:
        raise SystemExit(str(error)) from error
