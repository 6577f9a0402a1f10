"""Put a finished pretraining run into the package: its weights as bfloat16, its tokenizer, and a card made of its receipt.

    python recipes/embed_base.py runs/base runs/base_lowrank

The runs after the first are its rivals: the card sets their figures beside its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import finlora
from finlora import figures, perplexity, receipt
from finlora.report.study_data import bare

PLACE = Path(__file__).parent.parent / "src" / "finlora" / "embedded" / "base"
CARD = """# finlora/base

A small Llama, trained from scratch by `finlora pretrain recipes/base.toml` on openly usable text, so that finlora can be
tried on a laptop with no network. It is a test bench and a teaching aid: it writes English-looking sentences about monetary
policy, knows nothing reliably, and must not be used for advice.

| | |
|---|---|
| parameters | {params:,} (tied embeddings; {body:,} in the linears) |
| shape | Llama: width {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} heads, feed-forward {intermediate_size}, vocabulary {vocab_size}, {positions} positions |
| tokenizer | byte-level BPE trained on the same text |
| training | {steps:,} steps of {batch} rows of {row} tokens: {tokens:,} tokens ({epochs:.2f} passes over {corpus:,}), {optimizer}, cosine from {lr:g}, seed {seed}, passes in {dtype} |
| validation loss | {val:.4f} nats a token, {bpb:.4f} bits a byte, on {held} whole documents held out |
| cost | {hours:.2f} hours on one core of {cpu} ({speed:,.0f} tokens/s) |
| weights | bfloat16, {megabytes:.1f} MB, sha256 `{digest}` |

{rivals}## Text

| source | bytes | rights |
|---|---|---|
{sources}

Sources as in `recipes/base.toml`: Federal Reserve speeches, FOMC minutes and press conferences, CFPB regulations and
presidential addresses are works of the US Government; the Gutenberg books (Smith, Veblen, Malthus and Mackay) are in the
public domain in the USA; WikiText-2 is Wikipedia text under CC BY-SA 3.0, by its contributors
(https://huggingface.co/datasets/Salesforce/wikitext). No text of any evaluation set was used.

## Making it again

    make base TEXT=path/to/train.jsonl

where each line of the file is {{"source", "id", "text"}} with the sources above. The run's receipt is `receipt.json` here; the
spec inside it and the hash of the text ({text_hash}) decide every number; another processor or torch rounds otherwise.
"""
RIVALS = """## Why this one

The first ships. One seed each, the same text, tokenizer, optimiser and rate; training FLOPs are six times the multiply-adds of a forward pass, attention's too.
On the embedded held-out text ({documents} documents, cut into pieces of {context} tokens), with 95% intervals over documents, and paired by document.

| | {names} |
|---|{line}|
{rows}

"""
RIGHTS = {"gutenberg": "public domain in the USA", "wikitext2": "CC BY-SA 3.0"}


def main(run: Path, rivals: list[Path]) -> None:
    """Copy, convert and describe the run."""
    told = _bare(receipt.read(run))
    PLACE.mkdir(parents=True, exist_ok=True)
    for file in (run / "model").iterdir():
        if file.suffix == ".json" or file.name == "merges.txt":
            shutil.copy(file, PLACE / file.name)
    weights = {k: v.to(torch.bfloat16) for k, v in load_file(run / "model" / "model.safetensors").items()}
    save_file(weights, PLACE / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((PLACE / "config.json").read_text(encoding="utf-8"))
    receipt.write_text(PLACE / "config.json", json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")
    told["spec"]["run"]["out"] = "runs/base"
    receipt.write(PLACE / "receipt.json", told)
    beside = compared([run, *rivals]) if rivals else ""
    (PLACE / "README.md").write_text(card(told, PLACE / "model.safetensors", beside), encoding="utf-8")
    print(f"{PLACE}: {sum(f.stat().st_size for f in PLACE.iterdir()) / 1e6:.1f} MB")


def compared(runs: list[Path]) -> str:
    """The card's table of the run and its rivals; each reads the embedded held-out text as it was saved."""
    sheets = [receipt.read(run) for run in runs]
    heard = []
    for run in runs:
        model = finlora.open_model(str(run / "model"), dtype="float32")
        heard.append(perplexity.measured(model, "embedded"))

    def row(name: str, values: list[str]) -> str:
        return f"| {name} | {' | '.join(values)} |"

    def interval(e: dict, sign: str = "") -> str:
        return f"{e['value']:{sign}.3f} [{e['low']:{sign}.3f}, {e['high']:{sign}.3f}]"

    shapes = [sheet["spec"]["model"]["config"] for sheet in sheets]
    rows = [
        row("shape", [f"width {c['hidden_size']}, {c['num_hidden_layers']} layers" for c in shapes]),
        row("parameters", [f"{s['model']['params']:,}" for s in sheets]),
        row("multiplied out", [f"{s['model']['params_dense']:,}" for s in sheets]),
        row("tokens", [f"{s['train']['tokens']:,}" for s in sheets]),
        row("training FLOPs", [f"{6 * s['model']['forward_multiply_adds'] * s['train']['tokens']:.3g}" for s in sheets]),
        row("hours of one core", [f"{s['train']['seconds'] / 3600:.2f}" for s in sheets]),
        row("bits a byte, documents held out of the training text", [f"{s['train']['val_bits_per_byte']:.4f}" for s in sheets]),
        row("bits a byte, embedded text", [interval(h["bits_per_byte"]) for h in heard]),
        row("less the first", ["", *(interval(figures.text_difference(h, heard[0])["bits_per_byte"], "+") for h in heard[1:])]),
    ]
    names = " | ".join(f"{s['structure']['kind']}" for s in sheets)
    return RIVALS.format(documents=heard[0]["documents"], context=heard[0]["context"], names=names, line="|".join("---:" for _ in runs), rows="\n".join(rows))


def _bare(told: dict) -> dict:
    told["train"]["curve"] = told["train"]["curve"][::5]
    return bare(told)


def card(told: dict, weights: Path, beside: str = "") -> str:
    """The model card, every number from the receipt."""
    train, spec, shape = told["train"], told["spec"], dict(told["spec"]["model"]["config"])
    text, held = told["data"]
    linears = shape["num_hidden_layers"] * (4 * shape["hidden_size"] ** 2 + 3 * shape["hidden_size"] * shape["intermediate_size"])
    sources = "\n".join(f"| {name} | {n:,} | {RIGHTS.get(name, 'US Government work')} |" for name, n in sorted(text["bytes"].items()))
    return CARD.format(
        params=told["model"]["params"], body=linears, vocab_size=spec["model"]["vocab_size"], positions=shape["max_position_embeddings"],
        steps=train["steps"], batch=spec["train"]["batch"], row=spec["data"]["row_tokens"], tokens=train["tokens"],
        epochs=train["tokens"] / text["tokens"], corpus=text["tokens"], lr=spec["train"]["lr"], seed=spec["run"]["seed"], dtype=spec["run"]["dtype"], rivals=beside,
        optimizer={"adamw": "AdamW", "muon": "Muon for the linears and AdamW for the rest"}[spec["optimizer"]["kind"]],
        val=train["val"][-1][1], bpb=train["val_bits_per_byte"], held=held["rows"], hours=train["seconds"] / 3600,
        cpu=told["device"].get("cpu", "a CPU"), speed=train["tokens_per_s"], megabytes=weights.stat().st_size / 1e6,
        digest=receipt.file_digest(weights), sources=sources, text_hash=text["sha256"][:16], **{k: shape[k] for k in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    )  # fmt: skip


if __name__ == "__main__":
    first, *others = [Path(name) for name in sys.argv[1:] or ["runs/base"]]
    main(first, others)
