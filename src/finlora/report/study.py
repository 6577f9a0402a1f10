"""A study's receipts as tables: each method with its interval over seeds and examples, and against a reference, paired.

    study_report("runs/methods")      writes report.md, summary.json, receipts.jsonl and marks.json, and returns summary.json's value

Per task and per setting of the other grid keys, methods are compared with the reference on the same seeds and examples
(seeds.py); the p values of one table are one family, adjusted by Holm.  "Real" means an adjusted p below 0.05, nothing else.
receipts.jsonl holds every run's receipt without its curve and marks.json its marks, so that all of this can be computed again.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finlora import receipt
from finlora.errors import FinloraError, unknown

LEVEL = 0.05
ROW, SEED = "method.kind", "run.seed"


def study_report(folder: str | Path, out: str | Path | None = None, reference: str = "lora") -> dict[str, Any]:
    """Write the report of a study's folder into `out` (default: the folder itself) and return its numbers.

    reference: the method that the others are compared with.
    Raises: FinloraError where the folder holds no study, or nothing of it has finished.
    """
    folder = Path(folder)
    out = Path(out or folder)
    try:
        study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinloraError(f"`{folder}` holds no study: {error}", "finlora study run writes study.json") from error
    if not study["runs"]:
        raise FinloraError(f"no run of the study in `{folder}` has finished", "run it again to go on")
    if not all(ROW in r["keys"] for r in study["runs"]):
        raise FinloraError(f"the study in `{folder}` has no `{ROW}` in its [grid], by which a report tells its runs", f"add \"{ROW}\" = [\"lora\"] to it")
    methods = {r["keys"][ROW] for r in study["runs"]}
    if reference not in methods:
        raise unknown("method", reference, methods, f"the study in `{folder}`, to compare others with (--reference)")
    sheets = {r["run"]: public(receipt.read(folder / "runs" / r["run"])) for r in study["runs"]}
    tables = [
        _table(folder, study, sheets, task, dict(setting), reference)
        for task in sorted({task for sheet in sheets.values() for task in sheet["results"]})
        for setting in _settings(study["runs"], study["key"])
    ]
    across = [row for task in sorted({t["task"] for t in tables}) for row in _across(folder, study, sheets, task)]
    said = {"study": study["study"], "reference": reference, "tables": tables, "across": across, "chosen": study["chosen"], "failed": study["failed"], "refused": study["refused"]}
    lines = [json.dumps({"keys": r["keys"], "receipt": sheets[r["run"]]}, ensure_ascii=False) for r in study["runs"]]
    receipt.write_text(out / "receipts.jsonl", "\n".join(lines) + "\n")
    receipt.write_text(out / "marks.json", json.dumps(_marks(folder, study, sheets), indent=0) + "\n")
    receipt.write_text(out / "summary.json", json.dumps(receipt.plain(said), indent=1, ensure_ascii=False) + "\n")
    receipt.write_text(out / "report.md", _markdown(said, study))
    return said


def public(sheet: dict[str, Any]) -> dict[str, Any]:
    """The receipt without its curve and without the folders of the machine that made it."""
    told = json.loads(json.dumps(sheet))
    told["train"].pop("curve", None)
    for section, key in (("run", "out"), ("data", "dir"), ("model", "name")):
        value = told["spec"][section][key]
        told["spec"][section][key] = value if section == "model" and not Path(value).is_absolute() else Path(value).name
    return told


def _settings(runs: Sequence[Mapping[str, Any]], searched: str) -> list[tuple[tuple[str, Any], ...]]:
    """Values of every grid key but method and seed (and the searched key), each combination once."""
    shared = set.intersection(*(set(r["keys"]) for r in runs))
    varied = [k for k in runs[0]["keys"] if k in shared and k not in (ROW, SEED) and len({repr(r["keys"][k]) for r in runs}) > 1]
    varied = [k for k in varied if k != searched]
    return list(dict.fromkeys(tuple((k, r["keys"][k]) for k in varied) for r in runs))


def _of(study: Mapping[str, Any], method: str, setting: Mapping[str, Any]) -> dict[Any, str]:
    """{seed: run} of one method at one setting."""
    return {
        r["keys"].get(SEED, 0): r["run"]
        for r in study["runs"]
        if r["keys"][ROW] == method and all(r["keys"].get(k) == v for k, v in setting.items())
    }


def _records(folder: Path, sheets: Mapping[str, Any], run: str, task: str) -> list[Any]:
    from finlora import score

    return score.read_records(folder / "runs" / run / sheets[run]["results"][task]["records"])


def _table(folder: Path, study: Mapping[str, Any], sheets: Mapping[str, Any], task: str, setting: dict[str, Any], reference: str) -> dict[str, Any]:
    from finlora import score, seeds

    methods = list(dict.fromkeys(r["keys"][ROW] for r in study["runs"]))
    against = _of(study, reference, setting)
    rows = []
    for method in methods:
        runs = _of(study, method, setting)
        if not runs:
            continue
        held = {seed: _records(folder, sheets, run, task) for seed, run in sorted(runs.items())}
        x, _, clusters = seeds.marks(list(held.values()))
        found = seeds.over_seeds(x, clusters)
        both = [seed for seed in held if seed in against]
        row: dict[str, Any] = {
            "method": method, "seeds": len(held), "accuracy": _share(asdict(found.estimate)), "by_seed": [float(v) for v in x.mean(1)],
            "lr": next((r["keys"].get("train.lr") for r in study["runs"] if r["run"] in runs.values()), None),
            **_cost([sheets[run] for run in runs.values()]),
        }  # fmt: skip
        if method != reference and both:
            pair = seeds.paired_over_seeds([held[s] for s in both], [_records(folder, sheets, against[s], task) for s in both])
            row["difference"] = {**asdict(pair.estimate), "p": pair.p}
        rows.append(row)
    compared = [row for row in rows if "difference" in row]
    for row, p in zip(compared, score.holm([row["difference"]["p"] for row in compared])):
        row["difference"]["holm_p"] = p
    floors = {k: v["accuracy"]["value"] for k, v in (sheets[study["runs"][0]["run"]]["results"][task].get("floors") or {}).items() if "accuracy" in v}
    return {"task": task, "setting": setting, "rows": sorted(rows, key=lambda r: -r["accuracy"]["value"]), "floors": floors}


def _share(estimate: dict[str, Any]) -> dict[str, Any]:
    """The estimate of a share: with few seeds the interval can reach past 0 or 1, where there is nothing."""
    return {**estimate, "low": max(0.0, estimate["low"]), "high": min(1.0, estimate["high"])}


def _cost(sheets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of what a run cost."""
    n = len(sheets)
    return {
        "trainable": sheets[0]["model"]["trainable"],
        "bits_per_weight": sheets[0]["model"]["bits_per_weight"],
        "seconds": sum(s["train"]["seconds"] for s in sheets) / n,
        "val_loss": sum(s["train"]["val"][-1][1] for s in sheets) / n if all(s["train"].get("val") for s in sheets) else math.nan,
    }


def _across(folder: Path, study: Mapping[str, Any], sheets: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """Each method at one setting against itself at the first setting: what a codec costs."""
    from finlora import score, seeds

    settings = _settings(study["runs"], study["key"])
    out = []
    for other, method in itertools.product(settings[1:], dict.fromkeys(r["keys"][ROW] for r in study["runs"])):
        a, b = _of(study, method, dict(other)), _of(study, method, dict(settings[0]))
        both = sorted(set(a) & set(b))
        if both:
            pair = seeds.paired_over_seeds(*([_records(folder, sheets, runs[s], task) for s in both] for runs in (a, b)))
            out.append({"task": task, "method": method, "setting": dict(other), "against": dict(settings[0]), "difference": {**asdict(pair.estimate), "p": pair.p}})
    for row, p in zip(out, score.holm([row["difference"]["p"] for row in out])):
        row["difference"]["holm_p"] = p
    return out


def _marks(folder: Path, study: Mapping[str, Any], sheets: Mapping[str, Any]) -> dict[str, Any]:
    """{task: {"ids", "runs": {run: marks as a text of 0 and 1}}}, examples in the order of their ids."""
    out: dict[str, Any] = {}
    for r in study["runs"]:
        for task in sheets[r["run"]]["results"]:
            held = sorted(_records(folder, sheets, r["run"], task), key=lambda x: x.id)
            part = out.setdefault(task, {"ids": " ".join(x.id for x in held), "runs": {}})
            part["runs"][r["run"]] = "".join("1" if x.correct == 1 else "0" for x in held)
    return out


def _markdown(said: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    lines = [f"# {said['study']}", ""]
    lines += [
        "Accuracy in per cent, 95% interval over seeds and examples. Difference in points against "
        f"`{said['reference']}`, paired by seed and example; p adjusted by Holm within the table; **bold** where it is below {LEVEL}.", "",
    ]  # fmt: skip
    for table in said["tables"]:
        where = ", ".join(f"{k.split('.')[0]} {v}" for k, v in table["setting"].items())
        floors = ", ".join(f"{k.replace('_', ' ')} {100 * v:.1f}" for k, v in table["floors"].items())
        lines += [f"## {table['task']}{', ' + where if where else ''}", "", f"Floors: {floors}." if floors else "", ""]
        lines += ["| method | lr | accuracy | by seed | difference | p | val. loss | trainable | train s |", "|---|---:|---:|---|---:|---:|---:|---:|---:|"]
        lines += [_line(row) for row in table["rows"]] + [""]
    if said["across"]:
        lines += ["## What the codec costs", "", "| task | method | setting | difference | p |", "|---|---|---|---:|---:|"]
        for row in said["across"]:
            where = ", ".join(f"{v} against {row['against'].get(k)}" for k, v in row["setting"].items())
            lines.append(f"| {row['task']} | {row['method']} | {where} | {_difference(row['difference'])} | {row['difference']['holm_p']:.3f} |")
        lines.append("")
    if said["chosen"]:
        lines += [f"## Search: {study['key']} by validation loss", "", "| group | losses | chosen |", "|---|---|---:|"]
        for group, c in said["chosen"].items():
            losses = ", ".join(f"{k}: {v:.3f}" if v is not None and math.isfinite(float(v)) else f"{k}: failed" for k, v in c["loss"].items())
            lines.append(f"| {group} | {losses} | {c['value']}{' (at the edge)' if c.get('at_edge') else ''} |")
        lines.append("")
    for title, key in (("Failed", "failed"), ("Left out", "refused")):
        if said[key]:
            lines += [f"## {title}", ""] + sorted({f"- {', '.join(str(v) for v in r['keys'].values())}: {r.get('error') or r.get('why')}" for r in said[key]}) + [""]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    a = row["accuracy"]
    by = " ".join(f"{100 * v:.1f}" for v in row["by_seed"])
    d = row.get("difference")
    p = f"{d['holm_p']:.3f}" if d else ""
    return (
        f"| {row['method']} | {row['lr']} | {100 * a['value']:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}] | {by} | "
        f"{_difference(d) if d else 'reference'} | {p} | {row['val_loss']:.3f} | {row['trainable']:,} | {row['seconds']:.0f} |"
    )


def _difference(d: Mapping[str, Any]) -> str:
    text = f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"
    return f"**{text}**" if d.get("holm_p", 1) < LEVEL else text
