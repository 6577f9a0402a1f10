"""What a study's report computes beyond its tables: groups of letters, ranks, fronts, errors."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from finlora.report import study_errors, study_plots, study_ranks
from finlora.report.study_data import frozen, public, settings, told


@pytest.mark.parametrize("seed", range(8))
def test_letters_are_shared_exactly_by_what_is_not_told_apart(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 9)
    different = [pair for pair in itertools.combinations(range(count), 2) if rng.random() < 0.4]
    found = study_ranks.letters(count, different)
    for i, j in itertools.combinations(range(count), 2):
        assert bool(set(found[i]) & set(found[j])) is ((i, j) not in different), (different, found)
    assert all(found)


def test_letters_are_few_and_begin_with_the_first():
    assert study_ranks.letters(4, []) == ["a", "a", "a", "a"]
    assert study_ranks.letters(3, [(0, 1), (0, 2), (1, 2)]) == ["a", "b", "c"]
    assert study_ranks.letters(3, [(0, 2)]) == ["a", "ab", "b"]
    assert study_ranks.letters(0, []) == [""] or study_ranks.letters(0, []) == []


def test_ranks_share_ties_and_friedman_is_scipys():
    from scipy.stats import friedmanchisquare, rankdata

    rng = np.random.default_rng(0)
    x_TR = np.round(rng.random((12, 5)) + np.linspace(0, 0.3, 5), 1)  # with ties
    rank_TR = np.array([study_ranks.ranks(list(row)) for row in x_TR])
    assert np.array_equal(rank_TR, np.array([rankdata(-row) for row in x_TR]))
    assert study_ranks.friedman_p(rank_TR) == pytest.approx(friedmanchisquare(*x_TR.T).pvalue, rel=1e-9)
    assert study_ranks.friedman_p(np.full((3, 2), 1.5)) == 1.0


def _row(value, seconds, run):
    return {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}, "seconds": seconds, "peak_bytes": 5.0, "dollars": None, "joules": None, "runs": [run]}


def test_a_front_is_what_nothing_beats_and_a_shared_run_costs_once():
    rows = [("a", 0.9, 10.0), ("b", 0.8, 5.0), ("c", 0.7, 7.0)]
    found = {"tasks": ["x", "y"], "rows": [{"method": m, "setting": {}, "mean": v, "cells": {t: _row(v, s, m) for t in "xy"}} for m, v, s in rows]}
    fronts = study_ranks.fronts(found)
    assert {(f["task"], f["cost"]) for f in fronts} == {(t, c) for t in ("", "x", "y") for c in ("seconds", "peak_bytes")}
    mean = next(f for f in fronts if not f["task"] and f["cost"] == "seconds")
    assert [(p["method"], p["front"], p["x"]) for p in mean["points"]] == [("a", True, 10.0), ("b", True, 5.0), ("c", False, 7.0)]
    found["rows"][0]["cells"]["y"] = _row(0.9, 10.0, "another run")
    assert study_ranks.fronts(found)[1]["points"][0]["x"] == 20.0, "two runs cost twice"


def test_energy_makes_a_front_only_where_all_measured_it_alike():
    def fronts(*told):
        rows = [{"method": m, "setting": {}, "cells": {"x": {**_row(v, s, m), "joules": j, "joules_how": how}}} for (m, v, s), (j, how) in zip([("a", 0.9, 10.0), ("b", 0.8, 5.0)], told)]
        return [f for f in study_ranks.fronts({"tasks": ["x"], "rows": rows}) if f["cost"] == "joules"]

    (front,) = fronts((70.0, "RAPL package-0"), (90.0, "RAPL package-0"))
    assert [(p["x"], p["front"]) for p in front["points"]] == [(70.0, True), (90.0, False)]
    assert fronts((70.0, "RAPL package-0"), (None, None)) == [], "one run without a figure"
    assert fronts((70.0, "RAPL package-0"), (90.0, "NVML GPU")) == [], "two kinds of counter"
    assert fronts((None, None), (None, None)) == []


def test_plots_of_nothing_are_nothing_and_texts_stay_texts():
    assert study_plots.intervals([], [], "x") == "" and study_plots.front([], [], [], "x", "y") == ""
    svg = study_plots.intervals([("a_$b$", 0.5, 0.4, 0.6, 0)], [("majority", 0.3)], "<t>")
    assert svg.startswith("<svg") and "a_$b$" in svg and "<t>" not in svg
    points = [{"x": k, "y": k / 40, "low": k / 40, "high": k / 40, "front": k == 20} for k in range(1, 21)]
    svg = study_plots.front(points, [f"run{p['x']}" for p in points], [0] * 20, "s", "t")
    assert "run20" in svg and "run3" not in svg, "of many runs only the front is named"


def test_values_of_a_grid_are_keys_and_texts():
    runs = [{"keys": {"data.tasks": tasks, "codec.kind": codec, "method.kind": "lora", "train.lr": 1}} for tasks in (["a"], ["a", "b"]) for codec in ("none", "nf4")]
    found = settings(runs, "train.lr")
    assert len(found) == 4 and told(found[-1]) == "tasks a+b, codec nf4"
    assert frozen({"b": [1, {"c": 2}]}) == (("b", (1, (("c", 2),))),)


def test_a_public_receipt_names_no_folder():
    sheet = {"train": {"curve": [1]}, "model": {"name": "/a/b/c"}, "spec": {"run": {"out": "/x/y"}, "data": {"dir": "/d/e"}, "model": {"name": "/a/b/c", "adapter": "/p/q"}}}
    told_of = public(sheet)
    assert "curve" not in told_of["train"] and told_of["spec"]["run"]["out"] == "y" and told_of["spec"]["data"]["dir"] == "e"
    assert told_of["spec"]["model"] == {"name": "c", "adapter": "q"} and told_of["model"]["name"] == "c"
    assert public({**sheet, "model": {"name": "finlora/base"}, "spec": {**sheet["spec"], "model": {"name": "finlora/base"}}})["spec"]["model"]["name"] == "finlora/base"
    spec = {"data": {"text_weights": {"/d/mine": 2}, "tasks": ["tone", "/d/mine.toml"], "text": ["/d/mine"]}, "evaluate": {"tasks": ["/d/mine.toml"]}}
    told_of = public({**sheet, "spec": {**sheet["spec"], **spec}, "data": [{"task": "/d/mine.toml"}]})
    assert "/d" not in str(told_of) and told_of["spec"]["data"]["text_weights"] == {"mine": 2} and told_of["spec"]["data"]["tasks"] == ["tone", "mine.toml"]
    assert sheet["train"]["curve"], "the receipt itself is as it was"


def test_long_answers_are_cut():
    assert study_errors._short("a  b\n" * 100, 10) == "a b a b a…"
