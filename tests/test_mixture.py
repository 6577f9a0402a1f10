"""A mixture with weights: how often each task's examples are trained on, by data.weights."""

from __future__ import annotations

from collections import Counter

import pytest

from finlora import model as models
from finlora.spec import spec_from_dict
from finlora.tune import words


@pytest.fixture(scope="module")
def model():
    return models.open_model("finlora/base")


def counts(model, weights, seed=0):
    """How often each example of `tone` and `guidance` occurs: {task: Counter of occurrences}; held-out examples; sets."""
    data = {"tasks": ["tone", "guidance"], "max_train": 40, "validation": 0.1, "weights": weights}
    train, held, told = words(spec_from_dict({"run": {"seed": seed}, "data": data}), model)
    found = Counter(t.ids for t in train)
    tasks = {}
    for name in data["tasks"]:
        alone, _, _ = words(spec_from_dict({"run": {"seed": seed}, "data": {**data, "tasks": [name], "weights": []}}), model)
        tasks[name] = Counter(found[t.ids] for t in alone)
    return tasks, held, told["sets"]


def test_whole_weights_repeat_and_a_half_draws(model):
    tasks, held, sets = counts(model, [2.5, 1.0])
    assert tasks == {"tone": Counter({2: 20, 3: 20}), "guidance": Counter({1: 40})}
    assert [s.get("weight") for s in sets] == [2.5, None] and [s["rows"] for s in sets] == [40, 40]
    _, unweighted, _ = counts(model, [])
    assert [t.id for t in held] == [t.id for t in unweighted], "the validation split is never weighed"


def test_a_weight_below_one_leaves_examples_out_by_the_seed(model):
    first, _, _ = counts(model, [0.25, 1.0])
    assert first["tone"] == Counter({0: 30, 1: 10})
    kept = [{t.id for t in words(spec_from_dict({"run": {"seed": s}, "data": {"tasks": ["tone"], "validation": 0.0, "weights": [0.25]}}), model)[0]} for s in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
