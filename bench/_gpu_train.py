"""Parts `speed` and `curve` of pretrain_gpu.py: dense against structured GPT-2 in training."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from finlora import measure, memory, optim, restructure, train
from finlora import model as models
from finlora.corpus import documents
from finlora.data import Batch, collate, pieces
from finlora.logs import Logs
from finlora.loss import token_sums
from finlora.registry import pick
from finlora.spec import Train
from finlora.text import Tokens, document

# nats, and share of the gradient's norm, of the first step: a compiler rounds to bfloat16 in other places where it computes again.
# Not compiled in float32, and traced without fused kernels in bfloat16, the toy model's differences are 0 (7 cases each).
AGREE = 5e-3
TOY = {"n_embd": 64, "n_layer": 2, "n_head": 2}
Keep = Callable[..., None]  # writes what it is given into the part's receipt


class Vocabulary:
    """A number of tokens, most of which no text has; what there is of words is finlora/base's."""

    def __init__(self, size: int):
        self.base, self.size = models.load_tokenizer(models.locate(models.BASE)), size

    def __len__(self) -> int:
        return self.size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock tells what it did."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpt2(args: Namespace, device: torch.device, tokenizer: Any, kind: str) -> models.Model:
    """A GPT-2 with a structure in its linears, to be trained: the same weights at each call."""
    shape = TOY if args.toy else {"size": args.size}
    config = {"family": "gpt2", "n_positions": 1024, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, **shape}
    model = models.new_model(config, tokenizer, 0, dtype="bfloat16" if device.type == "cuda" else "float32", device=str(device))
    model.requires_grad_(True)
    if kind != "dense":
        restructure.put(model, plan(args, model, kind))
    return model.train()


def plan(args: Namespace, model: models.Model, kind: str) -> restructure.Plan:
    """The structure at the ranks that make the whole model smaller by --compression."""
    record, shapes = pick("structure", kind), restructure.shapes_of(model.body)
    others = sum(p.numel() for p in model.body.parameters()) - sum(o * i for o, i in shapes.values())
    return restructure.plan(record, record.config(), shapes, compression=args.compression, others=others)


def rates(args: Namespace) -> dict[str, float]:
    """The learning rate of each structure."""
    return dict(zip(args.structures, args.lr if len(args.lr) > 1 else args.lr * len(args.structures)))


def stepper(model: models.Model, told: Train) -> tuple[Callable[[Sequence[Batch]], tuple[float, float]], torch.optim.Optimizer]:
    """A step on some micro-batches, which gives its loss in nats a token and its gradient's norm; and the optimiser."""
    optimizer = optim.make(model, told)
    optim.set_rate(optimizer, told.lr, 1.0)

    def take(batches: Sequence[Batch]) -> tuple[float, float]:
        nats, weight = train.step(model, batches)
        norm = torch.nn.utils.clip_grad_norm_(model.trainable().values(), told.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return nats / weight, float(norm)

    return take, optimizer


def compiling(model: models.Model, args: Namespace) -> None:
    """Compile the model, if that is asked for; many of them share the code that is compiled, and none may fall back."""
    if args.compile == "off":
        return
    config = torch._dynamo.config
    for name, value in (("recompile_limit", 128), ("accumulated_recompile_limit", 1024), ("fail_on_recompile_limit_hit", True)):
        if hasattr(config, name):
            setattr(config, name, value)
    models.compile_body(model)


def settings(args: Namespace, lr: float, **more: Any) -> Train:
    """How all of them are trained."""
    return Train(lr=lr, weight_decay=0.1, beta2=0.95, clip=1.0, batch=args.rows, micro_rows=args.rows, **more)


def spread(values: list[float]) -> dict[str, Any]:
    """{"rounds", "min", "median", "max"} of some values."""
    return {"rounds": values, "min": min(values), "median": statistics.median(values), "max": max(values)}


# -- speed -------------------------------------------------------------------------------------------------------------


def random_batches(args: Namespace, count: int) -> list[Batch]:
    """Rows of one random document each; tokens of Zipf's law, so that there is something to learn."""
    draw = torch.Generator().manual_seed(0)
    odds = 1.0 / torch.arange(1, args.vocabulary - 2)
    ids = torch.multinomial(odds, args.rows * (args.row_tokens + 1) * count, replacement=True, generator=draw).add(3)
    ones = (1.0,) * (args.row_tokens + 1)
    return [collate([[Tokens(tuple(row.tolist()), ones)] for row in step]) for step in ids.view(count, args.rows, -1)]


def speed(args: Namespace, device: torch.device, keep: Keep) -> str:
    """Tokens/s, MFU and memory of every structure under every policy, in turns."""
    tokenizer, began = Vocabulary(args.vocabulary), time.perf_counter()
    warm, *work = random_batches(args, 1 + args.rounds * args.steps)
    takes: dict[tuple[str, str], Any] = {}
    cases: dict[str, dict[str, Any]] = {}
    parameters: dict[str, int] = {}
    # the policy that all are compared with comes first: should time run out, it is there for all structures
    for policy in args.policies:
        for kind in args.structures:
            case = cases.setdefault(f"{kind}, {policy}", {})
            if time.perf_counter() - began > args.compile_seconds:
                case["skipped"] = "no time left to compile it"
                continue
            try:
                made = prepared(args, device, tokenizer, kind, policy, warm, case)
            except Exception as error:  # one case that cannot be compiled is no reason to lose the others
                case["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
                made = None
            if made is None:
                print(f"speed: {kind}, {policy}: {case.get('skipped') or case.get('failed')}", flush=True)
                continue
            parameters[kind] = case["parameters"]
            takes[kind, policy] = made
            print(f"speed: {kind}, {policy}: ready after {case['first_seconds']:.1f} s, loss {case['first_loss']:.5f}", flush=True)
            keep(cases=cases)
    order, rounds = list(takes), {case: [] for case in takes}
    for k in range(args.rounds):
        batches = work[k * args.steps : (k + 1) * args.steps]
        for case in [*order[k % len(order) :], *order[: k % len(order)]]:
            rounds[case].append(measured(args, device, takes[case], batches))
            cases[", ".join(case)]["rounds"] = rounds[case]
    for case, found in rounds.items():
        told = cases[", ".join(case)]
        told["tokens_per_s"] = spread([r["tokens_per_s"] for r in found])
        told["rise_bytes"] = max(r["rise_bytes"] for r in found)
        told["mfu"] = 6 * told["multiply_adds"] * told["tokens_per_s"]["median"] / args.peak_flops
    ratios = compared(args, rounds)
    apart = agreement(cases, order)
    keep(cases=cases, ratios=ratios, policies_apart=apart, agree={"limit": AGREE, "holds": all(max(x.values()) <= AGREE for x in apart.values())})
    for name, told in cases.items():
        if "mfu" in told:
            print(f"speed: {name:20s} {told['tokens_per_s']['median']:12,.0f} tokens/s  MFU {told['mfu']:6.1%}  state {told['state_bytes'] / 2**30:6.2f}"
                  f" + rise {told['rise_bytes'] / 2**30:6.2f} GiB", flush=True)  # fmt: skip
    told = [f"{name} {r['median']:.2f}x ({r['min']:.2f} to {r['max']:.2f})" for name, r in ratios.items() if name.count("none") == 2]
    worst = max((max(x.values()) for x in apart.values()), default=0.0)
    verdict = f"policies' losses and norms apart {worst:.1e}{'' if worst <= AGREE else f', MORE THAN {AGREE:g}'}"
    failed = sum("failed" in case for case in cases.values())
    return f"tokens/s {'; '.join(told)}; {verdict}; parameters {parameters}; {len(takes)} cases, {failed} failed"


def prepared(args: Namespace, device: torch.device, tokenizer: Any, kind: str, policy: str, warm: Batch, case: dict[str, Any]) -> Any:
    """A case's step, compiled and with its moments made; None where the policy is another one for this structure."""
    model = gpt2(args, device, tokenizer, kind)
    if said := memory.apply(model, policy):
        case["skipped"] = said
        return None
    compiling(model, args)
    take, optimizer = stepper(model, settings(args, rates(args)[kind]))
    torch._dynamo.utils.counters.clear()
    began = time.perf_counter()
    case["first_loss"], case["first_norm"] = take([warm])
    synchronise(device)
    case["first_seconds"] = time.perf_counter() - began
    case["graph_breaks"] = sum(torch._dynamo.utils.counters["graph_break"].values())
    held = [*model.parameters(), *(t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))]
    case["state_bytes"] = sum(t.nbytes for t in {id(t): t for t in held}.values())
    case["parameters"] = sum(p.numel() for p in model.parameters())
    case["multiply_adds"] = restructure.multiply_adds(model, args.row_tokens)
    if policy == "none":
        case["head_seconds"] = head_seconds(model, warm.to(device))
    return take


def head_seconds(model: models.Model, batch: Batch) -> float:
    """Of one step, what output layer and loss take forward and backward: they are the same in all structures."""
    x = models.hidden(model, batch).detach().requires_grad_()
    best = float("inf")
    for _ in range(3):
        synchronise(x.device)
        began = time.perf_counter()
        token_sums(x, models.head(model), batch.targets, batch.weights)[0].backward()
        synchronise(x.device)
        best = min(best, time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return best


def measured(args: Namespace, device: torch.device, take: Any, batches: list[Batch]) -> dict[str, Any]:
    """A case's turn in a round."""
    meter = measure.meter(device)
    synchronise(device)
    began = time.perf_counter()
    losses = [take([batch])[0] for batch in batches]
    synchronise(device)
    seconds = time.perf_counter() - began
    told = meter.read(joules=False)
    tokens = len(batches) * args.rows * args.row_tokens
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, "losses": losses, "rise_bytes": told["peak_bytes"] - told["start_bytes"],
            "peak_how": told["peak_how"]}  # fmt: skip


def compared(args: Namespace, rounds: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios of tokens/s within a round: each structure to the first one, each policy to `none`."""
    out, first = {}, args.structures[0]
    for (kind, policy), found in rounds.items():
        against = (first, policy) if (first, policy) in rounds else (first, "none")
        for other in ([against] if kind != first else []) + ([(kind, "none")] if policy != "none" else []):
            if other in rounds:
                pairs = zip(found, rounds[other])
                out[f"{kind} {policy} / {other[0]} {other[1]}"] = spread([a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs])
    return out


def agreement(cases: dict[str, dict[str, Any]], order: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """How far a policy's first step is from that of `none`: nats, and share of the gradient's norm."""
    out = {}
    for kind, policy in order:
        mine, plain = cases[f"{kind}, {policy}"], cases.get(f"{kind}, none", {})
        if policy != "none" and "first_loss" in plain:
            loss, norm = (abs(mine[k] - plain[k]) for k in ("first_loss", "first_norm"))
            out[f"{kind}, {policy}"] = {"nats": loss, "norm": norm / plain["first_norm"]}
    return out


# -- curve -------------------------------------------------------------------------------------------------------------


def rows_of(args: Namespace, paths: Sequence[str], tokenizer: Any, most: int) -> list[Tokens]:
    """The documents one after another, cut into rows of full length: no row has a seam that needs a mask, so all are compiled."""
    ids: list[int] = []
    for one in documents(paths):
        ids += document(one.text, tokenizer).ids
        if len(ids) >= most:
            break
    cut = pieces(Tokens(tuple(ids), (1.0,) * len(ids), "text"), args.row_tokens)
    return [t for t in cut if len(t.ids) == args.row_tokens + 1]


def curve(args: Namespace, device: torch.device, keep: Keep) -> str:
    """Loss against seconds of training, the same number of them for each structure."""
    base = Path(models.locate(models.BASE))
    tokenizer, embedded = models.load_tokenizer(str(base)), [str(base.parent / "general.jsonl")]
    rows = rows_of(args, args.text or embedded, tokenizer, args.max_tokens)
    if args.val:
        held = rows_of(args, args.val, tokenizer, args.held_rows * (args.row_tokens + 1))[: args.held_rows]
    else:
        n = min(args.held_rows, max(1, len(rows) // 20))
        rows, held = rows[:-n], rows[-n:]
    told = {"rows": len(rows), "tokens": len(rows) * args.row_tokens, "held_tokens": len(held) * args.row_tokens}
    runs: dict[str, dict[str, Any]] = {}
    for kind in args.structures:
        model = gpt2(args, device, tokenizer, kind)
        compiling(model, args)
        step_seconds = trial(args, device, model, rows, held)
        total = max(4, round(args.seconds / step_seconds))
        how = settings(args, rates(args)[kind], steps=total, warmup=0.05, min_lr_ratio=0.1, validate_every=max(1, -(-total // args.looks)))
        logs = Logs(None)
        done = train.fit(model, rows, how, row_tokens=args.row_tokens, seed=0, validation=held, logs=logs)
        at = {line["step"]: line["seconds"] for line in logs.lines if "seconds" in line}
        losses = [[line["step"], line["seconds"], line["loss"]] for line in logs.lines if "loss" in line]
        runs[kind] = {
            "parameters": restructure.values(model), "multiply_adds": restructure.multiply_adds(model, args.row_tokens), "lr": how.lr,
            "step_seconds_trial": step_seconds, "steps": total, "seconds": done["seconds"], "tokens": done["tokens"],
            "epochs": done["tokens"] / told["tokens"], "tokens_per_s": done["tokens_per_s"], "val_nats": done["val"][-1][1],
            "val": [[step, at[step], nats] for step, nats in done["val"]], "loss": losses[:: max(1, len(losses) // 200)],
        }  # fmt: skip
        keep(text=told, runs=runs, seconds=args.seconds)
        print(f"curve: {kind}: {total} steps in {done['seconds']:.1f} s, {done['tokens'] / 1e6:.1f}M tokens, held out {done['val'][-1][1]:.4f} nats", flush=True)
        del model
    return "; ".join(f"{kind} {r['val_nats']:.4f} nats after {r['seconds']:.0f} s ({r['tokens'] / 1e6:.1f}M tokens)" for kind, r in runs.items())


def trial(args: Namespace, device: torch.device, model: models.Model, rows: list[Tokens], held: list[Tokens]) -> float:
    """Seconds of a step once all is compiled; the weights are put back."""
    before = {name: p.detach().clone() for name, p in model.trainable().items()}
    take, _ = stepper(model, settings(args, 1e-5))
    seconds = []
    for k in range(15):
        synchronise(device)
        began = time.perf_counter()
        chosen = [rows[(k * args.rows + j) % len(rows)] for j in range(args.rows)]
        take(train.batches_of(chosen, args.row_tokens, args.rows, model.compiled is not None, model.max_tokens))
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    model.eval()
    train.mean_nats(model, held, args.row_tokens, args.rows)
    model.train()
    with torch.no_grad():
        for name, p in model.trainable().items():
            p.copy_(before[name])
    return statistics.median(seconds[5:])
