"""The laws of truth over the scorer, a toy task, and every task of the package whose rows are at hand."""

import importlib
import math
import os
from pathlib import Path

import laws_truth as law
import pytest

from finlora import registry, score
from finlora.errors import FinloraError
from finlora.rows import find, read_examples
from finlora.text import Example

N = 900
DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
FOLDERS = [DATA / name for name in ("fin/finlora", "fin/xbrl_extract", "fin/orig", "general")]
ROOM = 0.05  # what a tolerance adds to chance: measured 0 to 0.02 over the numeric tasks


def _tasks():
    """Names of every task and of its variants."""
    for name in registry.names("task"):
        yield name
        for variant in getattr(importlib.import_module(f"finlora.tasks.{name}"), "VARIANTS", {}):
            yield f"{name}@{variant}"


def _read(text, labels):
    word = text.strip().strip(".").lower()
    return word if word in labels else None


def _mark(gold, answer):
    return float(gold == answer)


@pytest.fixture(scope="module")
def examples():
    shares = [0] * 3 + [1] * 5 + [2] * 2
    return [
        Example(f"e{k}", (("user", f"news {k}"),), law.LABELS[shares[k % 10]], law.LABELS[shares[k % 10]], "", law.LABELS)
        for k in range(N)
    ]


def test_gold_is_perfect(examples):
    law.gold_is_perfect(examples, _read, _mark)


def test_permuted_is_chance(examples):
    law.permuted_is_chance(examples, _read, _mark)


def test_silence_is_zero(examples):
    law.silence_is_zero(examples, _read, _mark)


def test_the_task_laws_can_fail(examples):
    with pytest.raises(AssertionError):  # a label that is read as another
        law.gold_is_perfect(examples, lambda t, labels: labels[1] if t == "positive" else _read(t, labels), _mark)
    with pytest.raises(AssertionError):  # a grader that leaks the gold
        law.permuted_is_chance(examples, _read, lambda g, a: 1.0)
    with pytest.raises(AssertionError):  # garbage counts as neutral
        law.silence_is_zero(examples, lambda t, labels: _read(t, labels) or "neutral", _mark)


def _rows_at_hand(task):
    """Up to 600 rows' examples of the test split, else the validation split, of the first folder that has them."""
    for split in ("test", "validation"):
        for folder in [None] if task.source.package else FOLDERS:
            try:
                find(task, split, folder)
            except FinloraError:
                continue
            return read_examples(task, split, folder, limit=600)
    pytest.skip("no file of this task is here (FINLORA_DATA)")


@pytest.mark.parametrize("name", _tasks())
def test_tasks_of_the_package(name):
    """Up to 600 rows: embedded ones, or the real files where they are."""
    task = registry.pick("task", name)
    rows = _rows_at_hand(task)
    shown = {task.metric, *task.metrics} or score.OF_KIND[task.kind]
    law.gold_is_perfect(rows, task.read, task.mark, shown)
    law.silence_is_zero(rows, task.read, task.mark)
    if task.kind == "text":
        law.strangers_score_less(rows, task.read, task.mark)
    else:
        law.permuted_is_chance(rows, task.read, task.mark, room=ROOM if task.kind in ("number", "program") else 0.0)


SAMPLES = {"labels": law.sample, "spans": law.sample_spans, "numbers": law.sample_numbers}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("per", [1, 4])
def test_order_is_nothing(per, kind):
    law.order_is_nothing(SAMPLES[kind](per=per))


def test_order_is_nothing_for_fractional_marks():
    records = [law.record(k, "x", "y", f"d{k % 50}", mark=math.sin(k) ** 2) for k in range(400)]
    assert score.accuracy(records) == score.accuracy(records[::-1])
    assert score.interval(records, draws=200) == score.interval(records[::-1], draws=200)


@pytest.mark.parametrize("kind", SAMPLES)
def test_hash_seed_is_nothing(kind):
    law.hash_seed_is_nothing(SAMPLES[kind](per=3))


@pytest.mark.parametrize("n,per", [(2, 1), (40, 1), (40, 4)])
def test_never_certain(n, per):
    right = [law.record(k, law.LABELS[k % 3], law.LABELS[k % 3], f"d{k // per}" if per > 1 else "") for k in range(n)]
    law.never_certain(right, [law.record(r.id, r.gold, None, r.cluster) for r in right])


@pytest.mark.parametrize("kind", SAMPLES)
def test_copies_add_nothing(kind):
    law.copies_add_nothing(SAMPLES[kind]())


def test_no_free_unreadable():
    value, inflated = law.no_free_unreadable()
    assert inflated - value > 0.08  # the trap is wide enough to be seen


def test_the_published_f1_is_the_inflated_one():
    """What the trap looks like: raw wrong strings in the usual weighted F1 give 2a / (1 + a)."""
    metrics = pytest.importorskip("sklearn.metrics")
    golds = [law.LABELS[k % 3] for k in range(3000)]
    raw = [g if (k // 3) % 10 < 8 else f" {g}?" for k, g in enumerate(golds)]
    assert metrics.f1_score(golds, raw, average="weighted", zero_division=0) == pytest.approx(2 * 0.8 / 1.8, abs=1e-9)
    records = [law.record(k, g, r) for k, (g, r) in enumerate(zip(golds, raw))]
    assert score.weighted_f1(records, law.LABELS) == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize("p,n", [(0.5, 150), (0.65, 577), (0.8, 150), (0.9, 577)])
def test_wilson_covers(p, n):
    """0.94 to 0.96 with three sigma of Monte Carlo (20,000 trials: 0.0046)."""
    assert 0.94 - 0.0046 <= law.wilson_coverage(p, n) <= 0.96 + 0.0046


def test_wilson_covers_near_the_edge():
    """p 0.95 of 50, where mean plus or minus 1.96 standard errors covers 0.92."""
    assert law.wilson_coverage(0.95, 50) >= 0.94


def test_the_intervals_of_clusters_cover():
    """Macro F1 and accuracy of 50 clusters of 4 alike records, 120 worlds (three sigma: 0.06).

    Measured 0.933 and 0.967; counting the records as independent covers 0.767 and 0.758.
    """
    for covered in law.bootstrap_coverage(50, 4, (0.2, 0.5, 0.3), 0.8, 0.6, trials=120, draws=300):
        assert covered >= 0.95 - 0.06


@pytest.mark.parametrize(
    "clusters,per,accuracy,alike,measured",
    [(98, 5, 0.98, 0.3, 0.977), (98, 5, 0.98, 0.7, 0.979), (30, 20, 0.95, 0.2, 0.947), (8, 10, 0.8, 0.3, 0.945), (50, 4, 0.5, 0.6, 0.953)],
)
def test_accuracy_in_clusters_covers(clusters, per, accuracy, alike, measured):
    """3000 worlds each (three sigma: 0.012), near the edge too, where the bootstrap has 0.91, 0.92 and 0.91."""
    covered = law.clustered_coverage(clusters, per, accuracy, alike, trials=3000)
    assert min(measured, 0.94) - 0.012 <= covered <= 0.985


WORLDS = [  # clusters, records of each, shares of the labels, accuracy, intra-cluster correlation, measured (macro F1, accuracy)
    (577, 1, (0.12, 0.6, 0.28), 0.75, 0, (0.932, 0.940)),
    (60, 5, (0.2, 0.5, 0.3), 0.8, 0.5, (0.960, 0.948)),
    (98, 17, (0.13, 0.7, 0.17), 0.9, 0.5, (0.950, 0.958)),
    (98, 5, (0.13, 0.7, 0.17), 0.98, 0.3, (0.965, 0.982)),
    (30, 20, (0.2, 0.5, 0.3), 0.95, 0.2, (0.950, 0.945)),
    (15, 4, (0.2, 0.5, 0.3), 0.8, 0.3, (0.967, 0.960)),
    (8, 10, (0.2, 0.5, 0.3), 0.8, 0.3, (0.962, 0.957)),
]


@pytest.mark.slow
@pytest.mark.parametrize("clusters,per,shares,accuracy,alike,measured", WORLDS)
def test_the_intervals_cover_everywhere(clusters, per, shares, accuracy, alike, measured):
    """600 worlds each (one sigma: 0.009), `measured` being (macro F1, accuracy): never three sigma below it or 0.94."""
    found = law.bootstrap_coverage(clusters, per, shares, accuracy, alike, trials=600)
    for covered, expected in zip(found, measured):
        assert covered >= min(expected, 0.94) - 0.027


@pytest.mark.slow
@pytest.mark.parametrize("clusters,per,accuracies", [(200, 1, (0.8, 0.75)), (60, 5, (0.9, 0.9))])
def test_the_paired_bootstrap_covers(clusters, per, accuracies):
    """600 pairs of runs each (one sigma: 0.009); measured 0.938 and 0.938."""
    assert law.paired_coverage(clusters, per, accuracies, trials=600) >= 0.94 - 0.027
