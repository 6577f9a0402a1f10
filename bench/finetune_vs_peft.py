"""Fine-tuning on a CPU: ours against PEFT with transformers' Trainer, on the same work, one process each.

    python bench/finetune_vs_peft.py --data DIR --out results/cpu/finetune_vs_peft.json

Three sides, each in a process of its own, in an order that rotates from round to round:

    ours          finlora.train.fit: packed rows, the head only where a token has a weight, and what the examples of a row
                  begin with alike (the instruction) computed once, which changes neither loss nor gradient
    peft          get_peft_model + Trainer + DataCollatorForSeq2Seq, which pads to the longest of the batch
    peft-grouped  the same with Trainer's sampler that groups examples of like length
    ours-apart    on request (--apart): ours with each example laid out whole, to show what sharing the beginning brings

The work is the same, and this is checked rather than hoped: the same model folder, the same token ids and labels (both
sides render with finlora.text), the same initial adapter (written once a round in PEFT's format and read by each), the
same examples of each optimiser step (`peft` is fed in our order; `peft-grouped` orders by itself, that is its point), the
same AdamW (fused), learning rate of each step, clipping and number of steps.  Before it trains, each side reports its loss
on the examples of our first step, and these must agree to 1e-4; `peft`'s loss must then follow ours step by step.

What is measured: seconds of the training loop alone (ours: all of `fit`; Trainer: from on_train_begin to on_train_end, so
that its set-up is not held against it), examples a second, CPU seconds (all threads; what a busy machine does not blur), loading (imports, model, tokens) apart, and the peak resident
set of the whole process (VmHWM).  Round k uses seed k on every side, so that a round is a pair.  After the clock has stopped
each side reports its loss on the same held-out examples (a sampler that orders by length ends on examples of its own, so
training losses would not compare); their spread over the rounds is the noise that the sides' difference is judged by.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
SIDES = ("ours", "peft", "peft-grouped")
APART = "ours-apart"
TAIL = 10  # steps in the last training loss
HELD = 256  # examples held out, at most a tenth
AGREE = 1e-4  # nats: losses of the same step on two sides
TARGET = 2.0  # ratio of examples/s


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default="finlora/base", help="model folder")
    p.add_argument("--task", default="", help="task; empty: fpb with --data, tone without")
    p.add_argument("--data", default="", help="folder of data files; empty: the task's embedded rows")
    p.add_argument("--steps", type=int, default=100, help="optimiser steps")
    p.add_argument("--batch", type=int, default=16, help="examples of a step")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--codec", default="none", choices=("none", "nf4"), help="nf4: bitsandbytes on PEFT's side")
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=float, default=16.0)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--row-tokens", type=int, default=2048, help="ours: tokens of a packed row")
    p.add_argument("--micro-rows", type=int, default=1, help="ours: rows of one forward pass")
    p.add_argument("--out", default="results/cpu/finetune_vs_peft.json", help="the receipt")
    p.add_argument("--apart", action="store_true", help="also ours without shared beginnings")
    p.add_argument("--side", choices=(*SIDES, APART), help=argparse.SUPPRESS)
    p.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--adapter", default="", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    args.task = args.task or ("fpb" if args.data else "tone")
    return args


# -- what both sides share -------------------------------------------------------------------------------------------


def settings(args: argparse.Namespace) -> Any:
    """The training settings of both sides."""
    from finlora.spec import Train

    return Train(steps=args.steps, batch=args.batch, lr=args.lr, micro_rows=args.micro_rows)


def words(args: argparse.Namespace, tokenizer: Any, longest: int) -> tuple[list[Any], list[Any]]:
    """The task's training examples as tokens, as both sides see them: (to train on, held out)."""
    from finlora import rows, text
    from finlora.data import order
    from finlora.registry import pick

    template = text.choose_template(tokenizer)
    examples = rows.read_examples(pick("task", args.task), "train", args.data or None)
    tokens = [text.fit(text.render(e, tokenizer, True, template), min(args.row_tokens, longest), "cut") for e in examples]
    held = set(order(len(tokens), 0, 0)[: min(HELD, len(tokens) // 10)].tolist())  # the same in every round
    return [t for k, t in enumerate(tokens) if k not in held], [tokens[k] for k in sorted(held)]


def first_steps(args: argparse.Namespace, tokens: list[Any]) -> list[list[Any]]:
    """The examples of each optimiser step, as finlora.train.fit orders them."""
    from finlora.data import members

    return [[tokens[i] for i in members(s, args.batch, len(tokens), args.seed)] for s in range(args.steps)]


def tail(losses: list[float], weights: list[float]) -> float:
    """Mean of the last steps' losses, each token counted once."""
    pairs = list(zip(losses, weights))[-TAIL:]
    return sum(x * w for x, w in pairs) / sum(w for _, w in pairs)


def peak_bytes() -> int:
    """The largest resident set this process has had."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads VmHWM from /proc/self/status, which only Linux has")


def told(seconds: float, cpu: float, peak: int, loaded: float, initial: float, final: float, losses: list[float], weights: list[float], args: Any, **more: Any) -> dict[str, Any]:
    """One side's JSON line."""
    import torch

    return {
        "side": args.side,
        "seed": args.seed,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "examples_per_s": args.steps * args.batch / seconds,
        "load_seconds": loaded,
        "peak_bytes": peak,
        "loss_initial": initial,
        "loss_first": losses[0],
        "loss_last": tail(losses, weights),
        "loss_held_out": final,
        "losses": losses,
        "threads": torch.get_num_threads(),
        **more,
    }


# -- ours ------------------------------------------------------------------------------------------------------------


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """finlora.train.fit."""
    import torch

    from finlora import adapters, data, loss, train
    from finlora import model as models

    torch.manual_seed(args.seed)
    model = models.open_model(args.model, codec=args.codec, adapter=args.adapter, dtype="float32", device="cpu")
    adapters.train_adapter(model)
    tokens, held = words(args, model.tokenizer, model.max_tokens)
    steps = first_steps(args, tokens)
    with torch.no_grad():
        batch = data.collate(data.pack(steps[0], args.row_tokens))
        nats, weight = loss.token_sums(models.hidden(model, batch), models.head(model), batch.targets, batch.weights)
    loaded = time.perf_counter() - BEGAN
    if args.side == APART:
        data.SHARED = 1 << 30  # no beginning is as long as that
    began, cpu = time.perf_counter(), time.process_time()
    out = train.fit(model, tokens, settings(args), row_tokens=args.row_tokens, seed=args.seed)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_bytes()
    final = train.mean_nats(model, held, args.row_tokens)
    losses = [entry[1] for entry in out["curve"]]
    weights = [sum(sum(t.weights[1:]) for t in chosen) for chosen in steps]
    assert len(losses) == args.steps, "the curve was thinned: use at most 500 steps"
    return told(seconds, cpu, peak, loaded, float(nats / weight), final, losses, weights, args, tokens=sum(len(t) - 1 for s in steps for t in s))


# -- PEFT and transformers -------------------------------------------------------------------------------------------


def peft(args: argparse.Namespace) -> dict[str, Any]:
    """get_peft_model and transformers.Trainer."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training, set_peft_model_state_dict
    from safetensors.torch import load_file

    from finlora.optim import share

    transformers.logging.set_verbosity_error()
    transformers.set_seed(args.seed)
    grouped = args.side == "peft-grouped"
    options = {}
    if args.codec == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=False
        )
    where = folder_of(args.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    base = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options)
    if options:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config = LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    set_peft_model_state_dict(model, load_file(Path(args.adapter) / "adapter_model.safetensors"))
    tokens, held = words(args, tokenizer, base.config.max_position_embeddings)
    rows = [row_of(t) for step in first_steps(args, tokens) for t in step]
    collate = transformers.DataCollatorForSeq2Seq(tokenizer)

    @torch.no_grad()
    def loss_on(examples: list[dict[str, Any]]) -> float:
        # In training mode (there is no dropout): on some CPUs bitsandbytes repacks its weights for good at the first forward
        # in evaluation mode, and no gradient passes through them from then on.
        model.train()
        nats = weight = 0.0
        for k in range(0, len(examples), args.batch):
            inputs = collate([dict(e) for e in examples[k : k + args.batch]])
            count = int((inputs["labels"] != -100).sum())
            nats, weight = nats + float(model(**inputs).loss) * count, weight + count
        return nats / weight

    initial = loss_on(rows[: args.batch])

    losses: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    marks: dict[str, float] = {}

    class Recording(transformers.Trainer):
        """Trainer that keeps each step's loss."""

        def training_step(self, model, inputs, *rest):
            weights.append((inputs["labels"] != -100).sum())
            losses.append(super().training_step(model, inputs, *rest))
            return losses[-1]

    class Clock(transformers.TrainerCallback):
        """Marks the beginning and the end of the loop."""

        def on_train_begin(self, *_, **__):
            marks["began"], marks["cpu"] = time.perf_counter(), time.process_time()

        def on_train_end(self, *_, **__):
            marks["seconds"], marks["cpu"] = time.perf_counter() - marks["began"], time.process_time() - marks["cpu"]

    train = settings(args)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps,
        weight_decay=train.weight_decay, fused=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(min(step, args.steps - 1), args.steps, train))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Recording(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=scratch, max_steps=args.steps, per_device_train_batch_size=args.batch, max_grad_norm=train.clip,
                seed=args.seed, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
                dataloader_pin_memory=False, **sampling(grouped),
            ),
            train_dataset=rows,
            data_collator=collate,
            processing_class=tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        loaded = time.perf_counter() - BEGAN
        trainer.train()
    peak = peak_bytes()
    final = loss_on([row_of(t) for t in held])
    return told(marks["seconds"], marks["cpu"], peak, loaded, initial, final, [float(x) for x in losses], [float(w) for w in weights], args)


def row_of(tokens: Any) -> dict[str, Any]:
    """An example as Trainer takes it: labels are the ids where a token has a weight."""
    return {"input_ids": list(tokens.ids), "labels": [i if w else -100 for i, w in zip(tokens.ids, tokens.weights)]}


def sampling(grouped: bool) -> dict[str, Any]:
    """TrainingArguments that keep our order, or group by length, by the names that this transformers has."""
    import transformers

    if "train_sampling_strategy" in transformers.TrainingArguments.__dataclass_fields__:
        return {"train_sampling_strategy": "group_by_length" if grouped else "sequential"}
    raise SystemExit("this transformers has no TrainingArguments.train_sampling_strategy: use 5.17 or newer")


def folder_of(name: str) -> str:
    """The folder behind the model's name, for those that know no `finlora/base`."""
    from finlora.model import locate

    return locate(name)


# -- the rounds ------------------------------------------------------------------------------------------------------


def draw_adapters(args: argparse.Namespace, root: Path) -> list[str]:
    """One initial adapter a round, in PEFT's format, drawn by this package with the round's seed."""
    code = (
        "import sys, json; from finlora import adapters, model as m; from finlora.methods.lora import LoRA\n"
        "name, codec, rank, alpha, *folders = json.loads(sys.argv[1])\n"
        "for seed, folder in enumerate(folders):\n"
        "    made = m.open_model(name, codec=codec, method='lora', method_config=LoRA(rank, alpha), dtype='float32', device='cpu', seed=seed)\n"
        "    adapters.save_adapter(made, folder)\n"
    )
    folders = [str(root / f"adapter-{k}") for k in range(args.rounds)]
    subprocess.run([sys.executable, "-c", code, json.dumps([args.model, args.codec, args.rank, args.alpha, *folders])], check=True)
    return folders


def run(args: argparse.Namespace, side: str, seed: int, adapter: str) -> dict[str, Any]:
    """One side of one round, in a fresh process."""
    mine = {"side": side, "seed": seed, "adapter": adapter}
    given = {k: v for k, v in vars(args).items() if k not in ("out", "rounds", "apart", *mine)}
    command = [sys.executable, __file__]
    for key, value in {**given, **mine}.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "BITSANDBYTES_NOWELCOME": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **quiet}, check=False)
    if done.returncode:
        raise SystemExit(f"{side} of round {seed} ended with exit code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> dict[str, Any]:
    """{"rounds", "min", "median", "max"} of some values."""
    return {"rounds": values, "min": min(values), "median": statistics.median(values), "max": max(values)}


def compare(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Ratios by round, and whether the work was the same.  A disagreement of losses stops here: then nothing is compared."""
    out: dict[str, Any] = {}
    for k, r in enumerate(rounds):
        for side in set(r) - {"ours"}:
            apart = abs(r[side]["loss_initial"] - r["ours"]["loss_initial"])
            assert apart <= AGREE, f"round {k}: {side} begins {apart:.2e} nats away from ours, so the work is not the same"
        apart = abs(r["peft"]["loss_first"] - r["ours"]["loss_first"])
        assert apart <= AGREE, f"round {k}: the first step's losses are {apart:.2e} nats apart"
    against = [side for side in rounds[0] if side != "ours"]
    noise = statistics.stdev([r["ours"]["loss_held_out"] for r in rounds]) if len(rounds) > 1 else None
    for side in against:
        ends = [r["ours"]["loss_held_out"] - r[side]["loss_held_out"] for r in rounds]
        out[side] = {
            "examples_per_s_ratio": spread([r["ours"]["examples_per_s"] / r[side]["examples_per_s"] for r in rounds]),
            "cpu_seconds_ratio": spread([r[side]["cpu_seconds"] / r["ours"]["cpu_seconds"] for r in rounds]),
            "peak_bytes_ratio": spread([r["ours"]["peak_bytes"] / r[side]["peak_bytes"] for r in rounds]),
            "loss_held_out_difference": spread(ends),
            "loss_within_noise": None if noise is None else abs(statistics.mean(ends)) <= noise,
        }
    out["peft"]["largest_step_difference"] = max(
        abs(a - b) for r in rounds for a, b in zip(r["ours"]["losses"], r["peft"]["losses"])
    )
    out["loss_noise"] = {"value": noise, "how": "standard deviation of our held-out loss over the rounds' seeds"}
    ratios = [out[side]["examples_per_s_ratio"]["min"] for side in SIDES[1:]]
    memory = [out[side]["peak_bytes_ratio"]["max"] for side in SIDES[1:]]
    grouped = out["peft-grouped"]["loss_held_out_difference"]["rounds"]
    out["holds"] = {
        "faster": min(ratios) >= TARGET,
        "no_more_memory": max(memory) <= 1.0,
        "same_losses": out["peft"]["loss_within_noise"] is not False,
        # grouping by length changes the course of training, often for the worse: that is not ours to reproduce
        "no_worse_than_grouped": noise is None or statistics.mean(grouped) <= noise,
    }
    return out


def main() -> None:
    """All rounds, the table, and the receipt."""
    args = options()
    if args.side:
        print(json.dumps((ours if args.side in ("ours", APART) else peft)(args)))
        return
    from finlora import receipt

    sides = [*SIDES, *([APART] if args.apart else [])]
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for k, adapter in enumerate(draw_adapters(args, Path(scratch))):
            found = {side: run(args, side, k, adapter) for side in [*sides[k % len(sides) :], *sides[: k % len(sides)]]}
            rounds.append({side: found[side] for side in sides})
            print(f"round {k}: " + "; ".join(line(found[side]) for side in sides), flush=True)
    bench = compare(rounds)
    for side in sides[1:]:
        r, found = bench[side]["examples_per_s_ratio"], bench[side]
        print(
            f"ours / {side}: {r['median']:.2f}x examples/s (rounds {r['min']:.2f} to {r['max']:.2f}; by CPU time "
            f"{found['cpu_seconds_ratio']['median']:.2f}x), memory {found['peak_bytes_ratio']['median']:.2f}x"
        )
    out = receipt.new("bench", "finetune_vs_peft", {k: Path(v).name if k == "data" and v else v for k, v in vars(args).items() if k not in ("side", "seed", "adapter", "out")})
    out["bench"] = {**bench, "rounds": [{side: thin(r[side]) for side in sides} for r in rounds]}
    print(f"receipt: {receipt.write(args.out, out)}; {bench['holds']}")


def line(r: dict[str, Any]) -> str:
    """One side of one round for the terminal."""
    return f"{r['side']} {r['examples_per_s']:.1f} examples/s, {r['peak_bytes'] / 2**20:.0f} MiB, loss {r['loss_first']:.3f} -> {r['loss_last']:.3f}, held out {r['loss_held_out']:.3f}"


def thin(r: dict[str, Any]) -> dict[str, Any]:
    """A side's numbers for the receipt: every tenth loss is enough there."""
    return {**r, "losses": r["losses"][::10]}


if __name__ == "__main__":
    from finlora.errors import FinloraError

    try:
        main()
    except FinloraError as error:
        raise SystemExit(str(error)) from error
