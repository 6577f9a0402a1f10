"""What a study's marks allow one to say of many methods at once: groups, ranks, fronts, and what tuning cost elsewhere.

Groups: two methods share a letter unless their paired difference (over seeds and examples, seeds.py) is clear after Holm's
adjustment over all pairs of the table (a compact letter display: Piepho, 2004, by insertion and absorption).
Ranks: 1 is best, ties share, averaged over tasks; Friedman's test asks whether the ranks differ at all.
Front: the runs that no other run beats in accuracy without costing more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from finlora import score, seeds
from finlora.report.study_data import Held, Marks, frozen, same_base, told

LEVEL = 0.05
COSTS = {"peak_bytes": ("peak memory, MB", 1e-6), "seconds": ("training time, s", 1.0), "dollars": ("price of training", 1.0), "joules": ("energy of training, kJ", 1e-3)}
GENERAL = ("general", "exam")


def pair(a: Marks, b: Marks) -> seeds.Seeded | None:
    """How a differs from b on the seeds that both have; None where they share none or were graded on other examples."""
    both = [seed for seed in a.seeds if seed in b.seeds]
    if not both or a.ids != b.ids:
        return None
    return seeds.over_seeds(a.at(both) - b.at(both), a.clusters)


def groups(held: Held, task: str, setting: Mapping[str, Any], methods: Sequence[str]) -> dict[str, str]:
    """{method: its letters} on one task at one setting; methods: best first."""
    found = {m: x for m in methods if (x := held.marks(task, m, setting)) is not None}
    names = list(found)
    pairs, ps = [], []
    for i, j in itertools.combinations(range(len(names)), 2):
        between = pair(found[names[i]], found[names[j]])
        if between is not None:
            pairs.append((i, j))
            ps.append(between.p)
    clear = [p for p, adjusted in zip(pairs, score.holm(ps)) if adjusted < LEVEL]
    return dict(zip(names, letters(len(names), clear)))


def letters(count: int, different: Sequence[tuple[int, int]]) -> list[str]:
    """A text of letters for each of `count` items: two items share one exactly where they are not a pair of `different`."""
    columns = [frozenset(range(count))]
    for i, j in different:
        split = [part for c in columns for part in ((c - {i}, c - {j}) if i in c and j in c else (c,))]
        split = list(dict.fromkeys(split))
        columns = [c for c in split if not any(c < other for other in split)]
    columns = sorted((c for c in columns if c), key=lambda c: sorted(c))
    return ["".join(_letter(k) for k, c in enumerate(columns) if at in c) for at in range(count)]


def _letter(k: int) -> str:
    return chr(97 + k) if k < 26 else f"({k + 1})"


def overview(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"tasks", "rows": [{"method", "setting", "cells": {task: row}, "mean", "rank"}], "friedman"}: methods by tasks."""
    tasks = list(dict.fromkeys(t["task"] for t in tables))
    rows: dict[Any, dict[str, Any]] = {}
    for table in tables:
        for row in table["rows"]:
            key = (tuple((k, frozen(v)) for k, v in table["setting"].items()), row["method"])
            rows.setdefault(key, {"method": row["method"], "setting": table["setting"], "cells": {}})["cells"][table["task"]] = row
    whole = [row for row in rows.values() if len(row["cells"]) == len(tasks)]
    for row in whole:
        row["mean"] = sum(c["accuracy"]["value"] for c in row["cells"].values()) / len(tasks)
    friedman = None
    if len(tasks) > 1 and len(whole) > 1:
        rank_TR = np.array([ranks([row["cells"][task]["accuracy"]["value"] for row in whole]) for task in tasks])
        for row, rank in zip(whole, rank_TR.mean(0)):
            row["rank"] = float(rank)
        friedman = friedman_p(rank_TR)
    return {"tasks": tasks, "rows": list(rows.values()), "friedman": friedman}


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, 1 for the largest; equal values share the mean of their ranks."""
    return [sum(v > x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def friedman_p(rank_TR: np.ndarray) -> float:
    """p of Friedman's test that T tasks rank R rows no better than at random (chi squared, corrected for ties)."""
    from scipy.special import chdtrc

    T, R = rank_TR.shape
    spread = float(((rank_TR.mean(0) - (R + 1) / 2) ** 2).sum())
    within = float(((rank_TR - (R + 1) / 2) ** 2).sum()) / (T * (R - 1))
    return float(chdtrc(R - 1, T * spread / within)) if within else 1.0


def fronts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each task (and their mean, "") and each cost: {"task", "cost", "points": [{"method", "setting", "x", "y", "low", "high", "front"}]}.

    Energy makes a front only where every compared run measured it, and by the same counters.
    """
    out = []
    tasks = [*([""] if len(found["tasks"]) > 1 else []), *found["tasks"]]
    for task, cost in itertools.product(tasks, COSTS):
        points, lacking, counters = [], False, set()
        for row in found["rows"]:
            cells = list(row["cells"].values()) if not task else [row["cells"][task]] if task in row["cells"] else []
            costs = [c.get(cost) for c in cells]
            if not cells or (not task and "mean" not in row):
                continue
            if any(c is None or math.isnan(c) for c in costs):
                lacking = True
                continue
            counters |= {c.get(f"{cost}_how") for c in cells}
            share = cells[0]["accuracy"] if task else {"value": row["mean"], "low": row["mean"], "high": row["mean"]}
            x = sum({frozen(c["runs"]): c[cost] for c in cells}.values()) if cost != "peak_bytes" else max(costs)  # runs that tasks share cost once
            points.append({"method": row["method"], "setting": row["setting"], "x": x, "y": share["value"], "low": share["low"], "high": share["high"]})
        for p in points:
            p["front"] = not any((q["y"] >= p["y"] and q["x"] <= p["x"]) and (q["y"] > p["y"] or q["x"] < p["x"]) for q in points)
        if points and not (cost == "joules" and (lacking or len(counters) > 1)):
            out.append({"task": task, "cost": cost, "points": points})
    return out


def before_after(held: Held) -> list[dict[str, Any]]:
    """Every method against the untuned base on every task both were graded on: {"task", "trained", "general", "method", "setting", "before", "after", "difference"}."""
    out = []
    for task in held.tasks:
        for setting, method in itertools.product(held.settings(task), held.methods(task)):
            own = held.marks(task, method, dict(setting))
            if own is None:
                continue
            run = next(iter(held.of(task, method, dict(setting)).values()))
            base = next((b["run"] for b in held.base if task in held.raw[b["run"]]["results"] and same_base(held.raw[b["run"]], held.raw[run])), None)
            records = held.records(base, task, "base") if base else []
            if [r.id for r in records] != list(own.ids):
                continue
            x_I = np.array([r.correct for r in records])
            between = seeds.over_seeds(own.x_SI - x_I, own.clusters)
            out.append({
                "task": task, "trained": task in held.sheets[run]["spec"]["data"]["tasks"], "general": group_of(task) in GENERAL, "method": method,
                "setting": dict(setting), "before": float(x_I.mean()), "after": float(own.x_SI.mean()), "difference": {**asdict(between.estimate), "p": between.p},
            })  # fmt: skip
    for row, p in zip(out, score.holm([row["difference"]["p"] for row in out])):
        row["difference"]["holm_p"] = p
    return out


def group_of(task: str) -> str:
    """The group of a task of the package, "" for others."""
    from finlora import registry
    from finlora.errors import FinloraError

    try:
        return registry.pick("task", task).group
    except FinloraError:
        return ""


def name(row: Mapping[str, Any]) -> str:
    """A row of the overview as text: its method, and its setting where there are several."""
    return ", ".join(filter(None, [row["method"], told(row["setting"])]))
