"""Model cards: what went into an exported folder, how it was merged, and what that costs where it was measured."""

from __future__ import annotations

from typing import Any

from .. import __version__
from ..linear import EDIT
from .source import Opened

LOAD = {
    "merged": 'AutoModelForCausalLM.from_pretrained("{out}")',
    "bnb": 'AutoModelForCausalLM.from_pretrained("{out}")          # with bitsandbytes installed',
}


def model(opened: Opened, what: str, adapter: str) -> str:
    """The card of a whole model. what: `merged` or `bnb`. adapter: where the adapter is."""
    stores = [linear.store for linear in opened.model.linears.values() if linear.store is not None]
    kept = f"{stores[0].codec.name}" if what == "bnb" and stores else "dense"
    facts = {"base model": opened.base, **opened.facts, "linears are kept as": kept, "adapter": adapter}
    lines = [*_head(opened, "transformers"), *_facts(facts), "", "## How to load it", "", "```python", "from transformers import AutoModelForCausalLM"]
    lines += [f"model = {LOAD[what].format(out='.')}"]
    if what == "bnb" and opened.adapter is not None:
        lines += ["from peft import PeftModel", 'model = PeftModel.from_pretrained(model, "./adapter")']
    return "\n".join([*lines, "```", *_fidelity(opened.fidelity)]) + "\n"


def encoded(opened: Opened, codec: str) -> str:
    """The card of a low-rank model whose factors are kept by a codec."""
    facts = {"made from": opened.base, **opened.facts, "factors are kept as": codec}
    load = ["", "## How to load it", "", "```python", "import finlora", 'model = finlora.open_model(".")', "```"]
    return "\n".join([*_head(opened, "finlora"), *_facts(facts), *load, *_fidelity(opened.fidelity)]) + "\n"


def adapter(opened: Opened, fields: dict[str, Any], rank: int | None, errors: dict[str, float]) -> str:
    """The card of an adapter. errors: relative error of each linear's change, where it was cut to `rank`."""
    facts = {"base model": opened.base, **opened.facts, "kind in PEFT": fields["peft_type"], "rank in PEFT": fields.get("r", fields.get("init_r", ""))}
    lines = [*_head(opened, "peft"), *_facts(facts), ""]
    if errors:
        worst = max(errors, key=lambda key: errors[key])
        mean = sum(errors.values()) / len(errors)
        lines += [
            f"Cut to rank {rank} by SVD: of each linear's change of weight, {100 * mean:.2f}% is left out in the mean (relative Frobenius error), "
            f"{100 * errors[worst]:.2f}% at most (`{worst}`).",
        ]
    elif opened.lossy and any(EDIT[0] in held for linear in opened.model.linears.values() for held in linear.adapters.values()):
        lines += [
            f"It edited its base before that was rounded to `{opened.facts['codec of the base']}`. Over the original weights this is the adapter with its edit, "
            "without the rounding that it was trained against; `finlora export bnb` keeps the very weights, where that codec is one of bitsandbytes'."
        ]
    else:
        lines += ["Exactly the adapter that was trained, over the original weights."]
        if opened.lossy:
            lines += [f"It was trained over `{opened.facts['codec of the base']}` weights; load the base in the same quantisation to compare like with like."]
    lines += ["", "## How to load it", "", "```python", "from peft import PeftModel", 'model = PeftModel.from_pretrained(base_model, ".")', "```"]
    return "\n".join([*lines, *_fidelity(opened.fidelity)]) + "\n"


def _head(opened: Opened, library: str) -> list[str]:
    tags = ["finlora", *([str(opened.facts["method"])] if "method" in opened.facts else [])]
    name = opened.facts.get("run") or opened.source.rstrip("/").rpartition("/")[2]
    return ["---", f"library_name: {library}", f"base_model: {opened.base}", f"tags: [{', '.join(tags)}]", "---", "", f"# {name}", "", f"Exported by finlora {__version__}.", ""]


def _facts(facts: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]


def _fidelity(said: dict[str, Any]) -> list[str]:
    """The table of a run's fidelity.json, all against the model as trained."""
    rows = [row for row in said.get("table") or [] if isinstance(row, dict)]
    if not rows:
        return []
    tasks = sorted({task for row in rows for task in row.get("tasks") or {}})
    lines = ["", "## What each step costs", "", "Against the model as it was trained, on the task's own test text.", ""]
    lines += ["| state | KL, nats/token | same top token |" + "".join(f" {task} accuracy |" for task in tasks), "|---|---:|---:|" + "---:|" * len(tasks)]
    for row in rows:
        cells = [f"{100 * row['tasks'][t]['accuracy']['value']:.1f}" if t in row.get("tasks", {}) else "" for t in tasks]
        lines.append(f"| {row.get('state')} | {row.get('kl', 0):.2e} | {100 * row.get('top1', 1):.2f}% |" + "".join(f" {cell} |" for cell in cells))
    lines += [f"\nwarning: {row.get('state')}: {row['warning']}" for row in rows if row.get("warning")]
    return lines
