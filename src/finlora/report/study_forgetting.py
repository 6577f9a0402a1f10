"""What tuning did to held-out general text: nats a token and bits a byte before and after, paired by document.

    x_SD = R_s + (delta_sd - R_s tokens_d) / mean tokens        R_s = sum_d delta_sd / sum_d tokens_d

delta_sd are the nats of document d after tuning with seed s less those of the untuned base.  The mean of x over documents is the
ratio R_s, and its spread that of a ratio (linearised), so that seeds.over_seeds gives an interval for another seed and other
documents.  A p is adjusted by Holm over all runs of the study.

Shapes: S seeds, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from finlora import figures, score, seeds
from finlora.errors import FinloraError
from finlora.report.study_data import Held, same_base, settings

FIGURES = {"nats_per_token": (2, 1.0, "nats/token"), "bits_per_byte": (3, math.log(2), "bits/byte")}  # name: (column of `each`, nats in its unit, unit)


def rows(held: Held) -> list[dict[str, Any]]:
    """Each method at each setting: {"method", "setting", "tasks", "documents", figure: {"before", "after", "difference"}}, figures as in FIGURES.

    All three are estimates; before and difference are None where no untuned base read the same text in the same tokens.
    """
    runs = [r for r in held.study["runs"] if held.sheets[r["run"]].get("text")]
    out = []
    for setting in settings(runs, held.study["key"]) if runs else ():
        for method in held.methods():
            chosen = [run for _, run in sorted(held.of(None, method, dict(setting)).items()) if held.sheets[run].get("text")]
            if chosen and (row := _row(held, method, dict(setting), chosen)) is not None:
                out.append(row)
    paired = [row for row in out if row["nats_per_token"]["difference"]]
    for name in FIGURES:
        for row, p in zip(paired, score.holm([row[name]["difference"]["p"] for row in paired])):
            row[name]["difference"]["holm_p"] = p
    return out


def _row(held: Held, method: str, setting: dict[str, Any], runs: list[str]) -> dict[str, Any] | None:
    """One row; None where there is a single document, or the seeds did not read the same."""
    own = [held.sheets[run]["text"] for run in runs]
    base = _base(held, held.raw[runs[0]])
    sizes = [row[2:] for row in own[0]["each"]]
    names = [row[0] for row in own[0]["each"]]
    if len(names) < 2 or any([row[2:] for row in text["each"]] != sizes for text in own):
        return None
    nats_SD = np.array([[row[1] for row in text["each"]] for text in own], dtype=float)
    try:
        delta_SD = None if base is None else np.array([[row[1] for row in figures.text_pairs(text, base)] for text in own])
    except FinloraError:  # another text, or another tokenizer
        base = delta_SD = None
    told: dict[str, Any] = {"method": method, "setting": setting, "tasks": list(held.raw[runs[0]]["spec"]["data"]["tasks"]), "documents": len(names), "seeds": len(runs)}
    for name, (column, unit, _) in FIGURES.items():
        size_D = np.array([row[column] for row in own[0]["each"]], dtype=float)
        told[name] = {
            "before": None if base is None else base[name],
            "after": _over(nats_SD / unit, size_D, names),
            "difference": None if delta_SD is None else _over(delta_SD / unit, size_D, names),
        }
    return told


def _base(held: Held, sheet: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the untuned base of a run read, None where that was not measured."""
    return next((text for b in held.base if (text := held.raw[b["run"]].get("text")) and same_base(held.raw[b["run"]], sheet)), None)


def _over(nats_SD: np.ndarray, size_D: np.ndarray, names: list[str]) -> dict[str, Any]:
    """The ratio of sums with its interval over seeds and documents, and p against zero."""
    if not nats_SD.any():
        return {"value": 0.0, "low": 0.0, "high": 0.0, "n": len(names), "clusters": len(names), "how": "the same in every document", "p": 1.0}
    ratio_S1 = nats_SD.sum(1, keepdims=True) / size_D.sum()
    between = seeds.over_seeds(ratio_S1 + (nats_SD - ratio_S1 * size_D) / size_D.mean(), names)
    return {**asdict(between.estimate), "p": between.p}


def shown(estimate: Mapping[str, Any], signed: bool = False) -> tuple[str, str]:
    """("+0.123", "[+0.100, +0.146]") of an estimate, with a true minus sign."""
    kind = "+.3f" if signed else ".3f"
    value, low, high = (f"{estimate[key]:{kind}}".replace("-", "\u2212") for key in ("value", "low", "high"))
    return value, f"[{low}, {high}]"
