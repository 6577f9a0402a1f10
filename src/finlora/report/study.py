"""A study's receipts as one folder to publish: each method with its interval over seeds and examples, and against a reference, paired.

    study_report("runs/methods")      writes report.html, report.md, table.tex, table.csv, summary.json, receipts.jsonl and marks.json

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

from finlora import receipt, score
from finlora.errors import FinloraError, unknown
from finlora.report import study_errors, study_forgetting, study_ranks
from finlora.report.study_data import Held, bare, load, public
from finlora.report.study_ranks import pair


def study_report(folder: str | Path, out: str | Path | None = None, reference: str = "lora", show_text: bool = False) -> dict[str, Any]:
    """Write the report of a study's folder into `out` (default: the folder itself) and return its numbers.

    reference: the method that the others are compared with. show_text: show the prompts of wrong answers even where
    the data do not ship with the package.
    Raises: FinloraError where the folder holds no study, or nothing of it has finished.
    """
    from finlora.report import study_page, study_text

    held = load(folder)
    out = Path(out or folder)
    study = held.study
    methods = held.methods()
    if reference not in methods:
        raise unknown("method", reference, methods, f"the study in `{folder}`, to compare others with (--reference)")
    tables = [_table(held, task, dict(setting), reference) for task in held.tasks for setting in held.settings(task)]
    across = [row for task in held.tasks for row in _across(held, task)]
    found = study_ranks.overview(tables)
    said = {
        "study": study["study"], "key": study["key"], "reference": reference, "tables": tables, "across": across,
        "overview": {"tasks": found["tasks"], "friedman": found["friedman"], "rows": [{k: v for k, v in row.items() if k != "cells"} for row in found["rows"]]},
        "fronts": study_ranks.fronts(found), "before_after": study_ranks.before_after(held), "text": study_forgetting.rows(held), "currency": study.get("currency", "USD"),
        "chosen": study["chosen"], "failed": study["failed"], "refused": study["refused"],
    }  # fmt: skip
    errors = {task: study_errors.of_task(held, task, show_text) for task in held.tasks}
    lines = [json.dumps({"keys": bare(r["keys"]), "receipt": held.sheets[r["run"]]}, ensure_ascii=False) for r in study["runs"]]
    lines += [json.dumps({"keys": bare(r["keys"]), "base": True, "receipt": public(held.raw[r["run"]])}, ensure_ascii=False) for r in held.base]
    texts = {
        "receipts.jsonl": "\n".join(lines) + "\n",
        "marks.json": json.dumps(_marks(held), indent=0) + "\n",
        "summary.json": json.dumps(receipt.plain(said), indent=1, ensure_ascii=False) + "\n",
        "report.md": study_text.markdown(said, found),
        "table.tex": study_text.latex(said, found),
        "table.csv": study_text.to_csv(said),
        "report.html": study_page.page(held, said, found, errors),
    }
    for name, text in texts.items():
        receipt.write_text(out / name, text)
    return said


def _table(held: Held, task: str, setting: dict[str, Any], reference: str) -> dict[str, Any]:
    from finlora import seeds

    against = held.marks(task, reference, setting)
    rows = []
    for method in held.methods(task):
        own = held.marks(task, method, setting)
        if own is None:
            continue
        found = seeds.over_seeds(own.x_SI, own.clusters)
        runs = held.of(task, method, setting)
        row: dict[str, Any] = {
            "method": method, "seeds": len(own.seeds), "accuracy": _share(asdict(found.estimate)), "by_seed": [float(v) for v in own.x_SI.mean(1)],
            "lr": next((r["keys"].get("train.lr") for r in held.study["runs"] if r["run"] in runs.values()), None),
            **_cost([held.sheets[run] for run in runs.values()], held.study.get("price_per_hour")), "runs": list(runs.values()),
        }  # fmt: skip
        if method != reference and against is not None and set(own.seeds) & set(against.seeds):
            between = pair(own, against)
            if between is None:
                raise FinloraError(f"the runs of `{method}` and `{reference}` on {task} do not share their records", "grade both on the same task, split and limit")
            row["difference"] = {**asdict(between.estimate), "p": between.p}
        rows.append(row)
    compared = [row for row in rows if "difference" in row]
    for row, p in zip(compared, score.holm([row["difference"]["p"] for row in compared])):
        row["difference"]["holm_p"] = p
    rows.sort(key=lambda r: -r["accuracy"]["value"])
    letters = study_ranks.groups(held, task, setting, [row["method"] for row in rows])
    for row in rows:
        row["group"] = letters.get(row["method"], "")
    result = held.sheets[rows[0]["runs"][0]]["results"][task] if rows else {}
    floors = {k: _floor(v) for k, v in (result.get("floors") or {}).items() if _floor(v) is not None}
    return {"task": task, "setting": setting, "rows": rows, "floors": floors, "metric": result.get("metric", "accuracy")}


def _floor(told: Mapping[str, Any]) -> float | None:
    """A floor's mark: its accuracy, or the first metric that it has."""
    metrics = told.get("metrics") or told
    found = metrics.get("accuracy") or next((m for m in metrics.values() if isinstance(m, dict)), None)
    return found["value"] if found and found.get("value") is not None else None


def _share(estimate: dict[str, Any]) -> dict[str, Any]:
    """The estimate of a share: with few seeds the interval can reach past 0 or 1, where there is nothing."""
    return {**estimate, "low": max(0.0, estimate["low"]), "high": min(1.0, estimate["high"])}


def _cost(sheets: Sequence[Mapping[str, Any]], price: float | None) -> dict[str, Any]:
    """Means over the seeds of what a run cost; dollars at `price` an hour, joules where they were measured."""
    n = len(sheets)

    def mean(key: str) -> float | None:
        values = [s["train"].get(key) for s in sheets]
        return None if any(v is None for v in values) else sum(values) / n

    seconds = mean("seconds")
    counters = {s["train"].get("joules_how") for s in sheets}
    held = [receipt.kept_loss(s["train"], s["spec"].get("train", {}).get("patience", 0)) for s in sheets]
    return {
        "trainable": sheets[0]["model"]["trainable"],
        "bits_per_weight": sheets[0]["model"]["bits_per_weight"],
        "seconds": seconds if seconds is not None else math.nan,
        "peak_bytes": mean("peak_bytes"),
        "dollars": seconds * price / 3600 if price and seconds is not None else None,
        "joules": mean("joules") if len(counters) == 1 else None,
        "joules_how": next(iter(counters)) if len(counters) == 1 else None,
        "val_loss": math.nan if any(loss is None for loss in held) else sum(held) / n,
    }


def _across(held: Held, task: str) -> list[dict[str, Any]]:
    """Each method at one setting against itself at the first setting: what a codec costs."""
    settings = held.settings(task)
    out = []
    for other, method in itertools.product(settings[1:], held.methods(task)):
        a, b = held.marks(task, method, dict(other)), held.marks(task, method, dict(settings[0]))
        between = pair(a, b) if a is not None and b is not None else None
        if between is not None:
            out.append({"task": task, "method": method, "setting": dict(other), "against": dict(settings[0]), "difference": {**asdict(between.estimate), "p": between.p}})
    for row, p in zip(out, score.holm([row["difference"]["p"] for row in out])):
        row["difference"]["holm_p"] = p
    return out


def _marks(held: Held) -> dict[str, Any]:
    """{task: {"ids", "runs": {run: marks}}}, examples in the order of their ids; marks a text of 0 and 1, or numbers where some lie between."""
    out: dict[str, Any] = {}
    for r in held.study["runs"]:
        for task in held.sheets[r["run"]]["results"]:
            rows = held.records(r["run"], task)
            part = out.setdefault(task, {"ids": " ".join(x.id for x in rows), "runs": {}})
            whole = all(x.correct in (0, 1) for x in rows)
            part["runs"][r["run"]] = "".join("1" if x.correct == 1 else "0" for x in rows) if whole else [round(x.correct, 6) for x in rows]
    return out
