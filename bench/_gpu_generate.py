"""Part `generate` of pretrain_gpu.py: a large low-rank GPT-2 kept in INT8, its folder, and how fast it writes."""

from __future__ import annotations

import gc
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _gpu_train import TOY, Vocabulary, plan, spread, synchronise

from finlora import generate as writing
from finlora import model as models
from finlora import restructure, structure_folder
from finlora.data import Batch, collate
from finlora.text import Tokens

ROUNDS = 3
PROMPT = 64


def drawn(args: Namespace, device: torch.device) -> models.Model:
    """Random weights, made on the device in the compute type: the host never holds them."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device(device):
            shape = {**TOY, "n_positions": 1024} if args.toy else {"size": "1.5b"}
            return models.new_model({"family": "gpt2", **shape}, Vocabulary(args.vocabulary), 0, dtype=str(kind).removeprefix("torch."), device=str(device))
    finally:
        torch.set_default_dtype(before)


def ids_of(args: Namespace, rows: int) -> list[list[int]]:
    """Random prompts."""
    made = torch.randint(3, args.vocabulary, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
    return made.tolist()


def logits(model: models.Model, batch: Batch) -> torch.Tensor:
    """(B, T, V) of a batch, on the CPU."""
    with torch.no_grad():
        return models.logits(model, models.hidden(model, batch.to(model.device))).cpu()


def pace(args: Namespace, model: models.Model, rows: int) -> dict[str, Any]:
    """Tokens/s of `rows` prompts side by side, the prompt's own pass included; nothing ends a text early."""
    ids, told = ids_of(args, rows), []
    for k in range(ROUNDS + 1):
        synchronise(model.device)
        began = time.perf_counter()
        writing.continuations(model, ids, args.new_tokens, batch_tokens=rows * (PROMPT + args.new_tokens))
        synchronise(model.device)
        told += [rows * args.new_tokens / (time.perf_counter() - began)] if k else []
    return spread(told)


def generate(args: Namespace, device: torch.device, keep: Callable[..., None]) -> str:
    """Made, frozen in INT8, written, opened, compared, and let write."""
    model = drawn(args, device)
    dense = sum(p.numel() for p in model.body.parameters())
    restructure.put(model, plan(args, model, "lowrank"))
    params = sum(p.numel() for p in model.parameters())
    restructure.freeze(model, "int8").eval()
    batch = collate([[Tokens(tuple(ids), (1.0,) * PROMPT)] for ids in ids_of(args, 4)])
    z = logits(model, batch)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        began = time.perf_counter()
        structure_folder.save(model, folder)
        saving = time.perf_counter() - began
        written = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        kind = str(model.dtype).removeprefix("torch.")
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        model = models.open_model(str(folder), dtype=kind, device=str(device), cache=False)
        synchronise(device)
        opening = time.perf_counter() - began
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
        again = logits(model, batch)
    apart = float((again - z).abs().max())
    weights = written[structure_folder.WEIGHTS]
    told = {
        "parameters": params, "parameters_dense": dense, "compression": dense / params, "files": written, "bytes": sum(written.values()),
        "bits_per_parameter": 8 * weights / params, "bytes_dense_bfloat16": 2 * dense, "save_seconds": saving, "open_seconds": opening,
        "opened_bytes_on_device": held, "logits_apart": apart, "logits_equal": apart == 0.0, "logits_largest": float(z.abs().max()),
    }  # fmt: skip
    keep(**told)
    paces: dict[str, dict[str, Any]] = {}
    for rows in args.prompts:
        paces[str(rows)] = pace(args, model, rows)
        keep(tokens_per_s=paces, peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)
    if apart:
        raise AssertionError(f"the opened model's logits are {apart:.2e} from those before it was written")
    speeds = ", ".join(f"{p['median']:,.1f} with {rows}" for rows, p in paces.items())
    return (
        f"{params / 1e6:.0f}M of {dense / 1e6:.0f}M parameters in {weights / 2**20:.0f} MiB (dense bfloat16 {2 * dense / 2**20:.0f}), "
        f"logits equal, opened in {opening:.1f} s, tokens/s {speeds} prompts"
    )
