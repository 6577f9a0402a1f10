"""Pretraining: low rank against dense at the same width under every recomputation policy, and our loop against a plain one.

    python bench/pretrain.py                                  # GPT-2's shapes at width 768 and 1600, receipt: results/cpu/pretrain.json
    python bench/pretrain.py --part loop                      # one of its two parts
    python bench/pretrain.py --toy --out /dev/null            # only shows that it runs

Both parts run in one process and take turns: in each round every contestant takes its step on the same batch, in an order that
turns from round to round, and a ratio is taken within a round.

    structure   a dense GPT-2 and the same with every linear of its blocks at 1 / 2.64 of its parameters (`--structure`,
                `--compression`), each under every policy that means something for it.  A step is train.step, clipping and AdamW.
                Checked: on the same weights and batch every policy gives the loss and the gradient norm of `none`.  Memory is
                told three ways: state_bytes (parameters and moments, counted), kept_bytes (activations held for the backward
                pass, found by memory.activation_bytes) and peak_bytes (the resident set's peak over a step, above what it was).
    loop        our dense loop against a GPT-2 written out below with the loop that goes with it, as nanoGPT has them: whole logits,
                one cross entropy, fused AdamW over two groups.  Same weights, batches, rates and clipping.
                Checked: the losses of every step agree to 1e-4.

Few layers tell as much as many, for blocks are alike: what does not grow with them (embeddings and head) is told apart by
`block_share`, the blocks' share of the multiply-adds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _vocabulary import Vocabulary
from torch import nn

from finlora import measure, memory, optim, receipt, restructure, train
from finlora import model as models
from finlora.data import Batch, collate
from finlora.registry import pick
from finlora.spec import Train
from finlora.text import Tokens

AGREE = 1e-4  # nats: losses of the same step
TARGET = 0.95  # ours against the plain loop, tokens/s
HEADS = {768: 12, 1600: 25}
SIDES = ("ours", "plain")


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--part", nargs="+", default=["structure", "loop"], choices=("structure", "loop"))
    p.add_argument("--widths", nargs="+", type=int, default=[768, 1600])
    p.add_argument("--layers", nargs="+", type=int, default=[12, 4], help="blocks at each width")
    p.add_argument("--structure", default="lowrank")
    p.add_argument("--compression", type=float, default=2.64, help="of the parameters of every linear in the blocks")
    p.add_argument("--rows", type=int, default=1, help="rows of a step")
    p.add_argument("--row-tokens", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--vocabulary", type=int, default=50257)
    p.add_argument("--loop-width", type=int, default=768)
    p.add_argument("--loop-layers", type=int, default=4)
    p.add_argument("--loop-rows", type=int, default=4)
    p.add_argument("--loop-row-tokens", type=int, default=256)
    p.add_argument("--loop-rounds", type=int, default=8)
    p.add_argument("--activation", default="", help="activation function of the blocks; empty: what finlora's GPT-2 has")
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--toy", action="store_true", help="tiny shapes: shows that all of it runs")
    p.add_argument("--out", default="results/cpu/pretrain.json", help="the receipt")
    args = p.parse_args(argv)
    if args.toy:
        args.widths, args.layers, args.row_tokens, args.rounds, args.vocabulary = [32], [2], 64, 2, 500
        args.loop_width, args.loop_layers, args.loop_rows, args.loop_row_tokens, args.loop_rounds = 32, 2, 2, 32, 3
    if len(args.layers) != len(args.widths):
        p.error("--layers needs one number for each of --widths")
    return args


def settings(args: argparse.Namespace) -> Train:
    """What both loops train by."""
    return Train(lr=args.lr, weight_decay=0.1, beta2=0.95, clip=1.0)


def gpt2(args: argparse.Namespace, width: int, layers: int, positions: int) -> models.Model:
    """A GPT-2 of that shape as `finlora pretrain` makes it, without dropout."""
    config = {"n_embd": width, "n_layer": layers, "n_head": HEADS.get(width, max(1, width // 16)), "n_positions": positions}
    config |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    config |= {"activation_function": args.activation} if args.activation else {}
    made = models.new_model({"family": "gpt2", **config}, Vocabulary(args.vocabulary), 0, dtype="float32", device="cpu")
    return made.requires_grad_(True).train()


def batches(args: argparse.Namespace, rows: int, length: int, count: int) -> list[Batch]:
    """Rows of one random document each; tokens of Zipf's law, so that there is something to learn."""
    draw = torch.Generator().manual_seed(0)
    odds = 1.0 / torch.arange(1, args.vocabulary - 2)
    ids = torch.multinomial(odds, rows * (length + 1) * count, replacement=True, generator=draw).add(3).view(count, rows, length + 1)
    return [collate([[Tokens(tuple(row.tolist()), (1.0,) * (length + 1))] for row in step]) for step in ids]


def taker(model: models.Model, args: argparse.Namespace) -> tuple[Callable[[Batch], float], torch.optim.Optimizer]:
    """One step of our loop, which gives its loss in nats a token; and the optimiser."""
    told = settings(args)
    optimizer = optim.make(model, told)
    optim.set_rate(optimizer, told.lr, 1.0)

    def take(batch: Batch) -> float:
        nats, weight = train.step(model, [batch])
        torch.nn.utils.clip_grad_norm_(model.trainable().values(), told.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return nats / weight

    return take, optimizer


def spread(values: list[float]) -> dict[str, Any]:
    """{"rounds", "min", "median", "max"} of some values."""
    return {"rounds": values, "min": min(values), "median": statistics.median(values), "max": max(values)}


# -- low rank against dense ------------------------------------------------------------------------------------------


def structure(args: argparse.Namespace, width: int, layers: int) -> dict[str, Any]:
    """Both models at one width, every policy."""
    made = {name: gpt2(args, width, layers, args.row_tokens) for name in ("dense", args.structure)}
    record = pick("structure", args.structure)
    plan = restructure.plan(record, record.config(), restructure.shapes_of(made["dense"].body), keep=1 / args.compression)
    restructure.put(made[args.structure], plan)
    made[args.structure].train()
    out: dict[str, Any] = {"width": width, "layers": layers, "models": {}, "cases": {}, "ratios": {}}
    take, cases = {}, []
    warm, *work = batches(args, args.rows, args.row_tokens, args.rounds + 1)
    for name, model in made.items():
        notes = {policy: memory.apply(model, policy) for policy in memory.POLICIES}
        own = [policy for policy in memory.POLICIES if not notes[policy]]  # a policy that is another one is not timed twice
        same(model, own, warm)
        cases += [(name, policy) for policy in own]
        take[name], optimizer = taker(model, args)
        take[name](warm)  # the moments are made
        held = [*model.parameters(), *(t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))]
        out["models"][name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "state_bytes": sum(t.nbytes for t in {id(t): t for t in held}.values()),
            "flops_per_token": flops(model, plan if name != "dense" else {}, args.row_tokens),
        }
    found: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for k, batch in enumerate(work):
        for name, policy in [*cases[k % len(cases) :], *cases[: k % len(cases)]]:
            memory.apply(made[name], policy)
            meter = measure.meter(torch.device("cpu"))
            began, cpu = time.perf_counter(), time.process_time()
            loss = take[name](batch)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            told = meter.read(joules=False)
            found[name, policy].append(
                {
                    "seconds": seconds, "cpu_seconds": cpu, "loss": loss, "tokens_per_s": args.rows * args.row_tokens / seconds,
                    "peak_bytes": told["peak_bytes"] - told["start_bytes"], "peak_how": f"{told['peak_how']}, less the resident set before",
                }
            )  # fmt: skip
        print(f"width {width}, round {k}: " + "; ".join(f"{n} {p} {found[n, p][-1]['tokens_per_s']:,.0f} tokens/s" for n, p in cases), flush=True)
    for name, policy in cases:
        kept = memory.activation_bytes(made[name], (args.rows, args.row_tokens), policy)
        out["cases"][f"{name}, {policy}"] = {"kept_bytes": kept, "rounds": found[name, policy]}
    for what in ("tokens_per_s", "cpu_seconds", "peak_bytes"):
        ratios = {}
        for name, policy in cases:
            against = ("dense", policy if ("dense", policy) in found else "none")
            if name != "dense":
                ratios[f"{name} {policy} / dense {against[1]}"] = [a[what] / b[what] for a, b in zip(found[name, policy], found[against])]
            if policy != "none":
                ratios[f"{name} {policy} / {name} none"] = [a[what] / b[what] for a, b in zip(found[name, policy], found[name, "none"])]
        out["ratios"][what] = {key: spread(values) for key, values in ratios.items()}
    for name, policy in cases:
        case = out["cases"][f"{name}, {policy}"]
        print(f"  {name:8s} {policy:10s} kept {case['kept_bytes'] / 2**20:8.1f} MiB, peak above start {max(r['peak_bytes'] for r in case['rounds']) / 2**20:8.1f} MiB")
    for key, ratio in out["ratios"]["tokens_per_s"].items():
        print(f"  {key}: {ratio['median']:.3f}x tokens/s ({ratio['min']:.3f} to {ratio['max']:.3f})")
    return out


def same(model: models.Model, policies: list[str], batch: Batch) -> None:
    """Stops where a policy's loss or gradient norm on these weights is not that of `none`."""
    seen = {}
    for policy in policies:
        memory.apply(model, policy)
        nats, weight = train.step(model, [batch])
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.trainable().values() if p.grad is not None]))
        seen[policy] = nats / weight, norm
        model.zero_grad(set_to_none=True)
        apart = [abs(a - b) for a, b in zip(seen[policy], seen["none"])]
        assert apart[0] <= AGREE and apart[1] <= AGREE * seen["none"][1], f"{policy}: loss and gradient norm {seen[policy]}, without {seen['none']}"


def flops(model: models.Model, plan: restructure.Plan, row_tokens: int) -> dict[str, float]:
    """Multiply-adds of one token forward: the blocks' linears, their attention, the head; and the blocks' share of it."""
    shapes = restructure.shapes_of(model.body) or {name: linear.shape for name, linear in model.linears.items()}
    linears = sum(plan[n][0].flops(plan[n][1], i, o) if n in plan else o * i for n, (o, i) in shapes.items())
    attention = model.config.n_layer * model.config.n_embd * row_tokens  # q k and p v over half of the positions on average
    head = models.head(model).weight.numel()
    return {"linears": linears, "attention": attention, "head": head, "block_share": (linears + attention) / (linears + attention + head)}


# -- our loop against a plain one ------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block of the plain GPT-2."""

    def __init__(self, width: int, heads: int, layer: nn.Module):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        with torch.no_grad():
            for mine, theirs in ((self.ln_1, layer.ln_1), (self.ln_2, layer.ln_2)):
                mine.weight.copy_(theirs.weight), mine.bias.copy_(theirs.bias)
            pairs = ((self.c_attn, layer.attn.c_attn), (self.c_proj, layer.attn.c_proj), (self.c_fc, layer.mlp.c_fc), (self.down, layer.mlp.c_proj))
            for mine, theirs in pairs:
                mine.weight.copy_(theirs.weight.t()), mine.bias.copy_(theirs.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)."""
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.heads, D // self.heads).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.down(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """GPT-2 written out, with the weights of one of ours."""

    def __init__(self, model: models.Model):
        super().__init__()
        body, config = model.body.transformer, model.config
        self.wte, self.wpe = nn.Embedding(config.vocab_size, config.n_embd), nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config.n_embd, config.n_head, layer) for layer in body.h)
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        with torch.no_grad():
            self.wte.weight.copy_(body.wte.weight), self.wpe.weight.copy_(body.wpe.weight)
            self.ln_f.weight.copy_(body.ln_f.weight), self.ln_f.bias.copy_(body.ln_f.bias)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of (B, T) tokens."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        z = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(z.view(-1, z.shape[-1]), targets.view(-1))


def plain(model: models.Model, args: argparse.Namespace) -> Callable[[Batch], float]:
    """One step of the plain loop, which gives its loss in nats a token."""
    made, told = GPT(model).train(), settings(args)
    matrices, vectors = ([p for p in made.parameters() if (p.dim() >= 2) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": told.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=told.lr, betas=(told.beta1, told.beta2), eps=told.eps, fused=True)

    def take(batch: Batch) -> float:
        loss = made(batch.ids, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), told.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return take


def loop(args: argparse.Namespace) -> dict[str, Any]:
    """Both loops, in turns."""
    model = gpt2(args, args.loop_width, args.loop_layers, args.loop_row_tokens)
    take = {"plain": plain(model, args), "ours": taker(model, args)[0]}
    warm, *work = batches(args, args.loop_rows, args.loop_row_tokens, args.loop_rounds + 1)
    losses: dict[str, list[float]] = {side: [take[side](warm)] for side in SIDES}
    rounds = []
    for k, batch in enumerate(work):
        told: dict[str, Any] = {}
        for side in SIDES if k % 2 else SIDES[::-1]:
            meter = measure.meter(torch.device("cpu"))
            began, cpu = time.perf_counter(), time.process_time()
            losses[side].append(take[side](batch))
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            read = meter.read(joules=False)
            told[side] = {
                "seconds": seconds, "cpu_seconds": cpu, "loss": losses[side][-1], "tokens_per_s": args.loop_rows * args.loop_row_tokens / seconds,
                "peak_bytes": read["peak_bytes"] - read["start_bytes"],
            }  # fmt: skip
        rounds.append(told)
        print(f"loop, round {k}: " + "; ".join(f"{side} {told[side]['tokens_per_s']:,.0f} tokens/s, loss {told[side]['loss']:.4f}" for side in SIDES), flush=True)
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["plain"]))
    assert apart <= AGREE, f"the losses of a step are {apart:.2e} nats apart, so the work is not the same"
    assert all(math.isfinite(x) for x in losses["ours"])
    ratios = {what: spread([r["ours"][what] / r["plain"][what] for r in rounds]) for what in ("tokens_per_s", "cpu_seconds", "peak_bytes")}
    ratio = ratios["tokens_per_s"]
    print(f"  ours / plain: {ratio['median']:.3f}x tokens/s (rounds {ratio['min']:.3f} to {ratio['max']:.3f}), peak {ratios['peak_bytes']['median']:.2f}x, losses apart {apart:.1e}")
    return {
        "activation": str(model.config.activation_function), "largest_step_difference": apart, "losses": losses, "rounds": rounds,
        "ratios": ratios, "holds": {"no_slower": ratio["median"] >= TARGET, "target": TARGET},
    }  # fmt: skip


def main() -> None:
    """Both parts, and the receipt."""
    args = options()
    bench: dict[str, Any] = {"threads": torch.get_num_threads()}
    if "structure" in args.part:
        bench["structure"] = [structure(args, width, layers) for width, layers in zip(args.widths, args.layers)]
    if "loop" in args.part:
        bench["loop"] = loop(args)
    out = receipt.new("bench", "pretrain", {k: v for k, v in vars(args).items() if k != "out"})
    out["bench"] = bench
    if args.out != os.devnull:
        print(f"receipt: {receipt.write(Path(args.out), out)}")


if __name__ == "__main__":
    from finlora.errors import FinloraError

    try:
        main()
    except FinloraError as error:
        raise SystemExit(str(error)) from error
