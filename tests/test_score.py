"""Records on disk, metrics against scikit-learn, intervals against scipy, paired tests against hand computation."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest

from finlora import score
from finlora.errors import FinloraError
from finlora.score import Record, intervals, metrics

LABELS = ("down", "flat", "up")


def rec(id, gold="up", answer="up", cluster="", mark=None):
    return Record(str(id), cluster, "ab" * 8, gold, answer, answer, None, None, float(gold == answer) if mark is None else mark, "say")


def many(n=400, seed=0, accuracy=0.7, labels=LABELS, per=1):
    rng = np.random.default_rng(seed)
    golds = rng.choice(labels, n, p=[0.2, 0.5, 0.3])
    return [
        rec(k, str(g), str(g) if rng.random() < accuracy else str(rng.choice(LABELS)), f"d{k // per}" if per > 1 else "")
        for k, g in enumerate(golds)
    ]


# -- records -----------------------------------------------------------------------------------------------------------


def test_records_come_back(tmp_path):
    path = tmp_path / "records" / "fpb.jsonl"
    first = Record("1", "c", "0" * 16, "up", "größer\u2028€", None, {"up": -0.25, "down": -1e-300}, "up", 0.0, "say")
    second = Record("2", "", "0" * 16, 3.5, None, 3.5, None, None, 0.5, "choose")
    score.append_records(path, [first])
    score.append_records(path, [second])
    assert score.read_records(path) == [first, second]


def test_half_a_line_is_named_then_repaired(tmp_path):
    path = tmp_path / "r.jsonl"
    score.append_records(path, [rec(1), rec(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(FinloraError, match=r"r\.jsonl:2: not a whole line of JSON"):
        score.read_records(path)
    with pytest.raises(FinloraError, match="half a line"):
        score.append_records(path, [rec(2)])
    assert score.read_records(path, repair=True) == [rec(1)]
    score.append_records(path, [rec(2)])
    assert path.read_bytes() == whole


def test_a_lost_newline_is_repaired(tmp_path):
    path = tmp_path / "r.jsonl"
    score.append_records(path, [rec(1)])
    path.write_bytes(path.read_bytes()[:-1])
    assert score.read_records(path) == [rec(1)]
    assert score.read_records(path, repair=True) == [rec(1)]
    assert path.read_bytes().endswith(b"}\n")


def test_repair_mends_only_the_last_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"id": "1"\n{rec(2).to_json()}\n')
    with pytest.raises(FinloraError, match=r"r\.jsonl:1"):
        score.read_records(path, repair=True)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"correct": 1.5}, "correct is 1.5"),
        ({"correct": True}, "correct is True"),
        ({"cluster": None}, "cluster is None"),
        ({"scores": [1]}, "scores is"),
        ({"anwser": 1}, "did you mean `answer`"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, change, message):
    import json

    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({**json.loads(rec(1).to_json()), **change}) + "\n")
    with pytest.raises(FinloraError, match=message) as caught:
        score.read_records(path)
    assert "r.jsonl:1" in str(caught.value) and "\n" not in str(caught.value)


def test_other_bad_files(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(FinloraError, match="cannot read records"):
        score.read_records(path)
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(FinloraError, match="r.jsonl:1: not UTF-8"):
        score.read_records(path)
    path.write_text("[1]\n")
    with pytest.raises(FinloraError, match="a record is a JSON object"):
        score.read_records(path)
    path.write_text('{"id": "1"}\n')
    with pytest.raises(FinloraError, match="lacks cluster, prompt"):
        score.read_records(path)
    path.write_text("")
    assert score.read_records(path) == []
    with pytest.raises(FinloraError, match="cannot be written"):
        replace(rec(1), scores={"up": math.nan}).to_json()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named():
    with pytest.raises(FinloraError, match="cannot write records /dev/full"):
        score.append_records("/dev/full", [rec(1)])


# -- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, ("down", "flat", "sideways", "up")])
def test_metrics_are_sklearns_when_every_answer_is_a_label(labels):
    m = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        records = many(60, seed, 0.5)
        gold, said = [r.gold for r in records], [r.answer for r in records]
        f1 = m.f1_score(gold, said, labels=labels, average="macro", zero_division=np.nan)
        assert score.macro_f1(records, labels) == pytest.approx(f1, abs=1e-12)
        f1 = m.f1_score(gold, said, labels=labels, average="weighted", zero_division=0)
        assert score.weighted_f1(records, labels) == pytest.approx(f1, abs=1e-12)
        assert score.balanced_accuracy(records, labels) == pytest.approx(m.balanced_accuracy_score(gold, said), abs=1e-12)
        assert score.accuracy(records) == pytest.approx(m.accuracy_score(gold, said), abs=1e-12)
        table = np.array(score.confusion(records, labels)["matrix"])
        assert (table[:, :-1] == m.confusion_matrix(gold, said, labels=labels)).all() and not table[:, -1].any()


def test_a_label_that_is_answered_but_never_gold_costs():
    records = [rec(1, "up", "up"), rec(2, "down", "flat")]
    assert score.macro_f1(records, LABELS) == pytest.approx(1 / 3)  # up 1, down 0, flat 0


def test_unreadable_by_hand():
    """gold up up up down; said up, nothing, garbage, down: the two misses are half a guess of... down, the only other."""
    records = [rec(1), rec(2, "up", None), rec(3, "up", "moon"), rec(4, "down", "down")]
    up, down = 2 * 1 / (1 + 3), 2 * 1 / (1 + 2 + 1)
    assert score.macro_f1(records) == pytest.approx((up + down) / 2)
    assert score.weighted_f1(records) == pytest.approx((3 * up + down) / 4)
    assert score.balanced_accuracy(records) == pytest.approx((1 / 3 + 1) / 2)
    assert score.unreadable(records) == 1
    three = [*records, rec(5, "flat", "flat")]  # now the blame is shared by two
    up, down, flat = 2 / (1 + 3), 2 / (1 + 1 + 1), 2 / (1 + 1 + 1)
    assert score.macro_f1(three) == pytest.approx((up + down + flat) / 3)


def test_false_alarms_equal_misses_whatever_is_unreadable():
    """Then micro F1 is accuracy: no way of failing is cheaper than another."""
    records = [replace(r, answer=None, correct=0.0) if k % 7 == 0 else r for k, r in enumerate(many())]
    hit, answered, gold = metrics._split(metrics._counts(records, LABELS).sum(0))
    assert answered.sum() == pytest.approx(gold.sum(), abs=1e-9)
    assert 2 * hit.sum() / (answered.sum() + gold.sum()) == pytest.approx(score.accuracy(records), abs=1e-12)


def test_confusion_shows_every_record():
    records = [rec(1), rec(2, "up", None), rec(3, "down", "moon"), rec(4, "down", "down")]
    table = score.confusion(records, LABELS)
    assert table["labels"] == [*LABELS, "moon"] and table["columns"] == [*LABELS, "moon", "unreadable"]
    assert sum(map(sum, table["matrix"])) == 4
    assert table["matrix"][0] == [1, 0, 0, 1, 0] and table["matrix"][2] == [0, 0, 1, 0, 1]


def test_bad_questions_are_named():
    for ask in (score.accuracy, score.macro_f1, score.confusion, score.interval):
        with pytest.raises(FinloraError, match="no records"):
            ask([])
    with pytest.raises(FinloraError, match="label list is empty"):
        score.macro_f1([rec(1)], [])
    with pytest.raises(FinloraError, match="no label named `upp`.*record `1`.*did you mean `up`"):
        score.macro_f1([rec(1, "upp")], LABELS)
    with pytest.raises(FinloraError, match="did you mean `macro_f1`"):
        score.interval([rec(1), rec(2)], "macro_f")
    with pytest.raises(FinloraError, match="at least 2 clusters, 2 records have 1"):
        score.interval([rec(1, cluster="d"), rec(2, cluster="d")])


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    """Brown, Cai and DasGupta's formula, worked for 8 of 10 with z = 1.959964: 0.4902 to 0.9433."""
    assert score.wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert score.wilson(0, 10)[0] == 0 and score.wilson(10, 10)[1] == 1
    assert score.wilson(0, 10)[1] == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)
    records = [rec(k, "up", "up" if k < 8 else "down") for k in range(10)]
    found = score.interval(records)
    assert (found.low, found.high) == score.wilson(8, 10) and found.how == "Wilson" and found.clusters == 10


def test_a_cluster_name_is_not_an_id():
    records = [rec("a"), rec("b", cluster="a"), rec("c", cluster="a", answer="down")]
    assert score.interval(records).clusters == 2


def test_bootstrap_is_scipys_bca():
    """Means of skewed marks in 500 clusters: ends differ by the Monte-Carlo error of 20,000 draws and the Student quantile.

    Over seeds 0 to 9 the ends differed by at most 1.3% of the width (mean 0.7%); the plain percentile interval is 3 to 5% off.
    """
    stats = pytest.importorskip("scipy.stats")
    marks = np.random.default_rng(0).beta(0.15, 3.0, 500)
    records = [rec(k, mark=float(v)) for k, v in enumerate(marks)]
    ours = score.interval(records, draws=20000)
    theirs = stats.bootstrap((marks,), np.mean, n_resamples=20000, method="BCa", rng=1, batch=500).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.025 * width and abs(ours.high - theirs.high) < 0.025 * width


def test_kinds_and_single_draws_agree():
    """The two ways of drawing give the same interval within Monte-Carlo error (4000 draws, 10% of the width)."""
    few = many(600, per=1)
    sums = metrics._counts(few, LABELS)
    merged = intervals._bootstrap(sums, score.macro_f1.finish, 0.95, 4000, 0)
    rng = np.random.default_rng(1)
    drawn = [float(score.macro_f1.finish(sums[rng.integers(0, 600, 600)].sum(0))) for _ in range(4000)]
    plain = np.quantile(drawn, [0.025, 0.975])
    assert np.abs(np.array(merged) - plain).max() < 0.1 * (plain[1] - plain[0])


def test_no_variation_between_clusters_is_not_certainty():
    """Every cluster has one right and one wrong: all draws are 0.5, ten clusters are still ten."""
    records = [rec(f"{k}{a}", "up", a, f"d{k}") for k in range(10) for a in ("up", "down")]
    found = score.interval(records)
    assert (found.low, found.high) == score.wilson(5, 10) and "no variation" in found.how


def test_more_level_is_wider_and_seed_repeats():
    records = many(per=4)
    for name in (n for n, m in score.METRICS.items() if not m.lacks(records)):
        tight, wide = (score.interval(records, name, level=level) for level in (0.8, 0.99))
        assert wide.low < tight.low <= tight.value <= tight.high < wide.high
        assert score.interval(records, name, seed=3) == score.interval(records, name, seed=3)


# -- paired ------------------------------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    """8 against 2: 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024."""
    a = [rec(k, "up", "up" if k >= 2 else "down") for k in range(30)]
    b = [rec(k, "up", "down" if 2 <= k < 10 else "up") for k in range(30)]
    found = score.paired(a, b)
    assert (found.only_a, found.only_b, found.n) == (8, 2, 30)
    assert found.mcnemar_p == pytest.approx(112 / 1024)
    assert found.difference.value == pytest.approx(6 / 30)
    swapped = score.paired(b, a)
    assert swapped.mcnemar_p == found.mcnemar_p and swapped.difference.value == -found.difference.value
    assert score.binomial_p(0, 0) == 1 and score.binomial_p(5, 5) == 1


def test_paraphrases_are_no_evidence():
    """One question asked 20 times that only a gets right is one cluster, not p = 2 / 2^20."""
    a = [rec(k, cluster=f"d{k // 20}") for k in range(60)]
    b = [rec(k, "up", "down" if k < 20 else "up", f"d{k // 20}") for k in range(60)]
    found = score.paired(a, b)
    assert found.only_a == 20 and found.mcnemar_p == 1


def test_pairing_is_tighter_than_two_intervals():
    """Two runs that share most of their mistakes: the interval of a lead of 3% excludes 0, though the two overlap."""
    a = many(1000, accuracy=0.7)
    lose = [k for k, r in enumerate(a) if r.correct][:30]
    b = [replace(r, answer="none", correct=0.0) if k in set(lose) else r for k, r in enumerate(a)]
    found = score.paired(a, b)
    assert found.difference.value == pytest.approx(0.03) and found.difference.low > 0.015
    assert score.interval(b).high > score.interval(a).low


def test_paired_interval_is_the_mean_of_differences():
    """Accuracy differences of 400 pairs against the normal interval: 1.96 standard errors, within 8% of the width."""
    a, b = many(400, 1), [replace(r, answer=s.answer, correct=float(r.gold == s.answer)) for r, s in zip(many(400, 1), many(400, 2))]
    lead = np.array([x.correct - y.correct for x, y in zip(a, b)])
    se = lead.std(ddof=1) / math.sqrt(len(lead))
    found = score.paired(a, b[::-1]).difference
    assert found.value == pytest.approx(lead.mean())
    assert abs(found.low - (lead.mean() - 1.96 * se)) < 0.08 * 3.92 * se
    assert abs(found.high - (lead.mean() + 1.96 * se)) < 0.08 * 3.92 * se


def test_equal_runs_have_a_width():
    a = many(100)
    found = score.paired(a, a, "macro_f1").difference
    assert found.value == 0 and found.low == -found.high and 0.03 < found.high < 0.05  # Wilson 0 of 100 ends at 0.037


def test_runs_that_do_not_match_are_refused():
    a = many(10)
    with pytest.raises(FinloraError, match="2 ids only in the first, 3 only in the second"):
        score.paired(a, a[2:] + [rec(f"new{k}") for k in range(3)])
    with pytest.raises(FinloraError, match="1 records of the second run repeat an id"):
        score.paired(a, [*a, a[0]])
    with pytest.raises(FinloraError, match="1 records have another gold"):
        score.paired(a, [replace(a[0], gold="sideways"), *a[1:]])


def test_holm_by_hand():
    assert score.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert score.holm([0.6, 0.5]) == [1.0, 1.0] and score.holm([]) == []
