"""A pretraining study as one folder to publish: structured arms against dense at equal tokens, FLOPs, wall time and memory.

    report("runs/claim", "results/cpu/claim")      writes report.md, report.html, report.json, runs.csv and receipts.jsonl

The conclusion is made from the figures by a rule (pretraining_claim.py), so that it cannot say what they do not; how they were
measured, and what weakens them, stands beside it (pretraining_how.py); report.json holds all figures.  Nothing is trained or measured here; parameters without embeddings and bytes under codecs are counted on the
architecture's outline (pretraining_sizes.py).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finlora import receipt, registry
from finlora.errors import FinloraError
from finlora.report import (
    pretraining_claim,
    pretraining_compare,
    pretraining_how,
    pretraining_page,
    pretraining_sizes,
    pretraining_text,
)
from finlora.report.pretraining_compare import MOMENTS, TRAINED, interval
from finlora.report.pretraining_data import Study, Trained, load
from finlora.report.study_data import bare, public
from finlora.report.tables import part

FILES = ("report.md", "report.html", "report.json", "runs.csv", "receipts.jsonl")


def is_pretraining(folder: str | Path) -> bool:
    """Whether the first run of the study in a folder pretrained; False where there is none."""
    try:
        study = json.loads((Path(folder) / "study.json").read_text(encoding="utf-8"))
        return receipt.read(Path(folder) / "runs" / study["runs"][0]["run"])["kind"] == "pretrain"
    except (OSError, ValueError, LookupError, TypeError, FinloraError):
        return False


def report(folder: str | Path, out: str | Path | None = None, codecs: Sequence[str] = (), reference: str = "") -> dict[str, Any]:
    """Write the report of a pretraining study's folder into `out` (default: the folder itself) and return its figures.

    codecs: those that bytes are told for, none: the ones of fewest bits in 8 and in 4. reference: the dense arm to compare with, or a
    structured one that the others are compared with too.
    Raises: FinloraError where the folder holds no study, its runs cannot be compared, or a codec is unknown.
    """
    study, said = figures(folder, codecs, reference)
    held = study.held
    lines = [json.dumps({"keys": bare(r["keys"]), "receipt": public(held.raw[r["run"]])}, ensure_ascii=False) for r in held.study["runs"]]
    texts = {
        "report.md": pretraining_text.markdown(said),
        "report.html": pretraining_page.page(study, said),
        "report.json": json.dumps(receipt.plain(said), indent=1, ensure_ascii=False) + "\n",
        "runs.csv": pretraining_text.to_csv(study, {size["size"]: size for size in said["sizes"]}),
        "receipts.jsonl": "\n".join(lines) + "\n",
    }
    for name, text in texts.items():
        receipt.write_text(Path(out or folder) / name, text)
    return said


def figures(folder: str | Path, codecs: Sequence[str] = (), reference: str = "") -> tuple[Study, dict[str, Any]]:
    """(the study that was read, all that its report says), without writing anything; as `report`."""
    codecs = tuple(codecs) or pretraining_sizes.usual_codecs()
    for codec in codecs:
        registry.pick("codec", codec)
    study = load(folder, reference)
    sizes = [_size(study, size) for size in study.sizes]
    by_size = {size["size"]: size for size in sizes}
    structures = list(dict.fromkeys(r.kind for r in study.runs if r.linears))
    setting = pretraining_how.setting(study)

    def memory(run: Trained) -> float:
        return _state(run, by_size[run.size]["shapes"], setting["moments"]) + (run.activation or 0 if setting["activations"] else 0)

    said: dict[str, Any] = {
        "study": study.name, "reference": study.reference, "budgets": list(study.budgets), "searched": study.searched, "seeds": list(study.seeds), "codecs": list(codecs),
        "sizes": [{k: v for k, v in size.items() if k != "shapes"} for size in sizes],
        "arms": [_arm(study, size, arm, codecs, setting["moments"]) for size in sizes for arm in study.arms if study.of(size["size"], arm)],
        "comparisons": pretraining_compare.compare(study, memory), "power": pretraining_compare.power(study), "chords": pretraining_compare.chords(study, memory),
        "speeds": pretraining_compare.speeds(study), "beside": {"arm": study.beside, "rows": pretraining_compare.beside(study)},
        "trend": pretraining_compare.trends(study, {size["size"]: size["non_embedding"] for size in sizes}),
        "table_structure": structures[0] if structures else "", "table": pretraining_sizes.parameter_table(structures[0], codecs=codecs) if structures else [],
        "chosen": dict(study.chosen), "failed": list(study.failed), "missing": study.missing(),
        "setting": setting, "batch_tokens": setting["batch_tokens"], "machines": sorted({f"{part(s, 'device').get('gpu') or part(s, 'device').get('cpu') or 'unknown'}" for s in study.held.raw.values()}),
    }  # fmt: skip
    said["claim"] = pretraining_claim.judged(said)
    said["conclusion"] = pretraining_claim.sentences(said)
    said["notes"] = pretraining_how.notes(study, said)
    said["how"] = pretraining_how.facts(study, said)
    return study, said


def _size(study: Study, size: str) -> dict[str, Any]:
    """What the dense model of a size holds."""
    run = next(r for r in study.runs if r.size == size)
    vocabulary = pretraining_sizes.vocabulary(run.config, run.dense)
    shapes, embeddings, params = pretraining_sizes.layout(run.config, vocabulary)
    return {
        "size": size, "config": dict(run.config), "vocabulary": vocabulary, "params": params, "embeddings": embeddings, "non_embedding": params - embeddings,
        "linears": sum(o * i for o, i in shapes.values()), "shapes": shapes,
    }  # fmt: skip


def _arm(study: Study, size: Mapping[str, Any], arm: str, codecs: Sequence[str], moments: bool) -> dict[str, Any]:
    runs = list(study.of(size["size"], arm).values())
    first = runs[0]
    bits = [r.bits for r in runs if r.bits is not None]
    growth = [r.peak_bytes - r.start_bytes for r in runs if r.peak_bytes and r.start_bytes is not None]
    plain = next(r.optimizer for r in study.runs if r.arm == study.reference)
    return {
        "size": size["size"], "arm": arm, "kind": first.kind, "optimizer": first.optimizer, "structured": bool(first.linears), "compared": arm not in study.budgets,
        "budget": arm in study.budgets, "family": first.kind if first.optimizer == plain else f"{first.kind}, {first.optimizer}", "chosen": first.chosen,
        "seeds": len(runs), "loss": interval([r.loss for r in runs]), "bits_per_byte": interval(bits) if len(bits) == len(runs) else None,
        "tokens": statistics.fmean(r.tokens for r in runs), "steps": first.steps, "seconds": statistics.fmean(r.seconds for r in runs),
        "params": first.params, "non_embedding": first.params - size["embeddings"], "smaller": first.dense / first.params,
        "smaller_linears": size["linears"] / (size["linears"] - first.dense + first.params), "flops_per_token": 6 * first.work,
        "tokens_per_s": statistics.median(r.rate for r in runs), "growth_bytes": statistics.median(growth) if growth else None, "state_bytes": _state(first, size["shapes"], moments),
        "activation_bytes": first.activation, "at_edge": any(r.edge for r in runs), "ranks": sorted({told["rank"] for one in first.linears.values() if "rank" in (told := pretraining_sizes.unwrapped(one))}),
        "bytes": {codec or "16": pretraining_sizes.stored(codec, first.kind, first.linears, size["shapes"], first.params) for codec in ("", *codecs)},
        "runs": [r.run for r in runs],
    }  # fmt: skip


def _state(run: Trained, shapes: pretraining_sizes.Shapes, moments: bool) -> float:
    """Bytes that training holds for each value (a dense guide's among them), and what the structures hold and do not train.

    moments: whether the optimiser's are counted as the receipts tell (a guide that has faded keeps its own to the end); else AdamW's.
    """
    trained = run.params + sum(math.prod(shapes[name]) for name in pretraining_sizes.guides(run.linears))
    state = run.moments if moments and run.moments is not None else MOMENTS * trained
    return TRAINED * trained + state + pretraining_sizes.fixed_bytes(run.kind, run.linears, shapes)
