"""Part `decompose` of pretrain_gpu.py: how long all linears of a 7B model take.

Shapes: W_OI, C_II, A_RI, B_OR; x (N, I), the inputs that a moment is of.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from _gpu_train import synchronise
from torch import Tensor

from finlora.decompose import _allocate
from finlora.decompose._shared import balanced, output_error, output_errors
from finlora.registry import pick
from finlora.seam import Stats
from finlora.sizes import SIZES

TOY = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
INPUT = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "heads", "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "inner"}
CLOSE = 1e-9  # share of the product's norm, and of an error: both sides are in float64


def shapes_of(size: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of the linears of one block."""
    D, F = size["hidden_size"], size["intermediate_size"]
    return {**dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (D, D)), **dict.fromkeys(("gate_proj", "up_proj"), (F, D)), "down_proj": (D, F)}


def moment(n: int, device: torch.device, seed: int) -> Tensor:
    """(n, n) E[x x^T] of 2 n inputs whose variances fall as a power, with some directions that all coordinates share; float32."""
    draw = torch.Generator(device).manual_seed(seed)
    scale = torch.arange(1, n + 1, device=device).pow(-0.5)[torch.randperm(n, generator=draw, device=device)]
    x = torch.randn(2 * n, n, generator=draw, device=device) * scale
    x += torch.randn(2 * n, 8, generator=draw, device=device) @ torch.randn(8, n, generator=draw, device=device) * 0.1
    return x.T @ x / len(x)


def solved(W: Tensor, C: Tensor, rank: int) -> tuple[dict[str, float], tuple[Tensor, Tensor], float]:
    """(seconds, balanced factors, relative output error) as a compression asks for them."""
    record, device = pick("decomposition", "swift"), W.device
    synchronise(device)
    began = time.perf_counter()
    found = record.whole(record.config(), W, Stats(C), rank)
    synchronise(device)
    solving = time.perf_counter() - began
    wide = W.double(), C.double()
    errors = output_errors(found.A, found.B, *wide)
    error = output_error(found.A, found.B, *wide)
    A, B = (x.float() for x in balanced(found.A, found.B))
    synchronise(device)
    return {"solve": solving, "whole": time.perf_counter() - began}, (A, B), float((error / errors[0]).sqrt())


def agree(device: torch.device) -> dict[str, float]:
    """A tall and a wide linear on the device against the CPU, both float64: relative differences of B A and of the errors."""
    record, out = pick("decomposition", "swift"), {}
    for O, I in ((192, 256), (256, 192)):
        W = torch.randn(O, I, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        C = moment(I, torch.device("cpu"), 2).double()
        there, here = (record.whole(record.config(), W.to(d), Stats(C.to(d)), 64) for d in (device, torch.device("cpu")))
        products = [f.B.cpu() @ f.A.cpu() for f in (there, here)]
        out[f"{O} x {I}, product"] = float((products[0] - products[1]).norm() / products[1].norm())
        out[f"{O} x {I}, errors"] = float((there.errors.cpu() - here.errors).abs().max() / here.errors[0])
    return out


def decompose(args: Namespace, device: torch.device, keep: Callable[..., None]) -> str:
    """All linears, block by block; then one plain SVD."""
    size = TOY if args.toy else SIZES["llama"]["7b"]
    shapes, layers = shapes_of(size), size["num_hidden_layers"]
    blocks = min(args.blocks or layers, layers)
    ranks = _allocate.uniform(shapes, args.keep)
    apart = agree(device)
    keep(agreement={"apart": apart, "limit": CLOSE, "holds": max(apart.values()) <= CLOSE}, ranks=ranks, shapes=shapes)
    warm = size["hidden_size"] // 8
    solved(torch.randn(warm, warm, device=device), moment(warm, device, 0), warm // 2)  # the library's handles are made
    seconds: list[dict[str, float]] = []
    errors: list[dict[str, float]] = []
    for block in range(blocks):
        widths = {INPUT[name]: n_in for name, (_, n_in) in shapes.items()}
        moments = {name: moment(n, device, 100 * block + k) for k, (name, n) in enumerate(widths.items())}
        spent, lost, alone = {}, {}, {}
        for k, (name, (n_out, n_in)) in enumerate(shapes.items()):
            draw = torch.Generator(device).manual_seed(100 * block + 10 + k)
            W = torch.randn(n_out, n_in, generator=draw, device=device) * 0.02
            clock, _, lost[name] = solved(W, moments[INPUT[name]], ranks[name])
            spent[name], alone[name] = clock["whole"], clock["solve"]
        seconds.append(spent)
        errors.append(lost)
        total = sum(sum(one.values()) for one in seconds)
        keep(seconds=seconds, last_block_solve_alone=alone, relative_errors=errors, blocks=block + 1, of=layers, total_seconds=total,
             all_blocks_seconds=total * layers / (block + 1), target=args.target)  # fmt: skip
        if block % 8 == 0:
            print(f"decompose: block {block}: {sum(spent.values()):.2f} s", flush=True)
    reach = total * layers / blocks
    line = f"{blocks} of {layers} blocks, {blocks * len(shapes)} linears in {total:.1f} s, all in {reach:.1f} s (target {args.target:.0f}: {'held' if reach <= args.target else 'missed'})"
    keep(holds=reach <= args.target, peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None, line=line)
    print(f"decompose: {line}", flush=True)
    svd: dict[str, float] = {}
    W = torch.randn(shapes["q_proj"], generator=torch.Generator(device).manual_seed(0), device=device) * 0.02
    for kind in (torch.float32, torch.float64):  # after all else, for the second may take longer than the part has
        given = W.to(kind)
        synchronise(device)
        began = time.perf_counter()
        torch.linalg.svd(given, full_matrices=False)
        synchronise(device)
        svd[str(kind).removeprefix("torch.")] = time.perf_counter() - began
        keep(plain_svd_seconds=svd, plain_svd_of=list(W.shape))
    ours = sum(one["q_proj"] for one in seconds) / blocks
    told = ", ".join(f"{s:.2f} s in {kind}" for kind, s in svd.items())
    return f"{line}; one {W.shape[0]} x {W.shape[1]}: {ours:.2f} s, plain SVD {told}; from the CPU's {max(apart.values()):.1e}"
