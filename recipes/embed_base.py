"""Put a finished pretraining run into the package: its weights as bfloat16, its tokenizer, and a card made of its receipt.

    python recipes/embed_base.py runs/base
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from finlora import receipt

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
| training | {steps:,} steps of {batch} rows of {row} tokens: {tokens:,} tokens ({epochs:.2f} passes over {corpus:,}), AdamW, cosine from {lr:g}, seed {seed} |
| validation loss | {val:.4f} nats a token, {bpb:.4f} bits a byte, on {held} whole documents held out |
| cost | {hours:.2f} hours on one core of {cpu} ({speed:,.0f} tokens/s) |
| weights | bfloat16, {megabytes:.1f} MB, sha256 `{digest}` |

## Text

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
RIGHTS = {"gutenberg": "public domain in the USA", "wikitext2": "CC BY-SA 3.0"}


def main(run: Path) -> None:
    """Copy, convert and describe the run."""
    told = receipt.read(run)
    PLACE.mkdir(parents=True, exist_ok=True)
    for file in (run / "model").iterdir():
        if file.suffix == ".json" or file.name == "merges.txt":
            shutil.copy(file, PLACE / file.name)
    weights = {k: v.to(torch.bfloat16) for k, v in load_file(run / "model" / "model.safetensors").items()}
    save_file(weights, PLACE / "model.safetensors", metadata={"format": "pt"})
    told["train"]["curve"] = told["train"]["curve"][::5]
    told["spec"]["data"]["text"] = [Path(p).name for p in told["spec"]["data"]["text"]]
    told["spec"]["run"]["out"] = "runs/base"
    receipt.write(PLACE / "receipt.json", told)
    (PLACE / "README.md").write_text(card(told, PLACE / "model.safetensors"), encoding="utf-8")
    print(f"{PLACE}: {sum(f.stat().st_size for f in PLACE.iterdir()) / 1e6:.1f} MB")


def card(told: dict, weights: Path) -> str:
    """The model card, every number from the receipt."""
    train, spec, shape = told["train"], told["spec"], dict(told["spec"]["model"]["config"])
    text, held = told["data"]
    linears = shape["num_hidden_layers"] * (4 * shape["hidden_size"] ** 2 + 3 * shape["hidden_size"] * shape["intermediate_size"])
    sources = "\n".join(f"| {name} | {n:,} | {RIGHTS.get(name, 'US Government work')} |" for name, n in sorted(text["bytes"].items()))
    return CARD.format(
        params=told["model"]["params"], body=linears, vocab_size=spec["model"]["vocab_size"], positions=shape["max_position_embeddings"],
        steps=train["steps"], batch=spec["train"]["batch"], row=spec["data"]["row_tokens"], tokens=train["tokens"],
        epochs=train["tokens"] / text["tokens"], corpus=text["tokens"], lr=spec["train"]["lr"], seed=spec["run"]["seed"],
        val=train["val"][-1][1], bpb=train["val_bits_per_byte"], held=held["rows"], hours=train["seconds"] / 3600,
        cpu=told["device"].get("cpu", "a CPU"), speed=train["tokens_per_s"], megabytes=weights.stat().st_size / 1e6,
        digest=receipt.file_digest(weights), sources=sources, text_hash=text["sha256"][:16], **{k: shape[k] for k in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/base"))
