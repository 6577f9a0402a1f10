"""Laws of truth: what a grader must satisfy whatever it grades.  Each law raises AssertionError where it does not hold.

Functions of plain values, so that tests of other parts (tasks, mutations) can call them too.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

import finlora
from finlora import score
from finlora.score import intervals

LABELS = ("negative", "neutral", "positive")
F1S = ("balanced_accuracy", "macro_f1", "weighted_f1")


def record(id, gold, answer, cluster="", mark=None, way="say"):
    """A record whose mark is whether answer equals gold, unless given."""
    correct = float(gold == answer) if mark is None else mark
    return score.Record(str(id), cluster, "0" * 16, gold, answer, answer, None, None, correct, way)


def sample(n=300, accuracy=0.7, shares=(0.2, 0.5, 0.3), per=1, lost=0.05, seed=0):
    """n records in clusters of `per` with label likelihoods; a share `lost` of the wrong answers cannot be read."""
    rng = random.Random(seed)
    out = []
    for k in range(n):
        gold = rng.choices(LABELS, shares)[0]
        wrong = None if rng.random() < lost else rng.choice([label for label in LABELS if label != gold])
        made = record(k, gold, gold if rng.random() < accuracy else wrong, f"d{k // per}" if per > 1 else "")
        scores = {label: round(rng.gauss(2.0 if label == made.answer else 0.0, 1), 6) for label in LABELS}
        out.append(replace(made, scores=scores, choice=max(scores, key=scores.__getitem__)))
    return out


def sample_spans(n=200, per=1, seed=0):
    """n records of entities, each found with chance 0.7; some answers name more than there is, some cannot be read."""
    rng = random.Random(seed)
    out = []
    for k in range(n):
        gold = [[rng.choice(LABELS), f"w{j}", str(j)] for j in range(rng.randrange(4))]
        said = [e for e in gold if rng.random() < 0.7] + [[rng.choice(LABELS), "more", "9"]] * (rng.random() < 0.2)
        answer = None if rng.random() < 0.05 else said
        out.append(record(k, gold, answer, f"d{k // per}" if per > 1 else ""))
    return out


def sample_numbers(n=200, per=1, seed=0):
    """n records of numbers, marked by a tolerance."""
    rng = random.Random(seed)
    golds = [rng.randrange(1, 900) / 4 for _ in range(n)]
    answers = [None if rng.random() < 0.05 else g * rng.choice((1, 1.001, 100)) for g in golds]
    marks = [float(a is not None and abs(a / g - 1) < 0.01) for g, a in zip(golds, answers, strict=True)]
    return [record(k, g, a, f"d{k // per}" if per > 1 else "", m) for k, (g, a, m) in enumerate(zip(golds, answers, marks, strict=True))]


def graded(examples, read, mark, say):
    """Records of examples answered by say(example) -> text, as the evaluator grades them."""
    out = []
    for e in examples:
        answer = read(say(e), e.labels)
        out.append(record(e.id, e.gold, answer, e.cluster, float(mark(e.gold, answer)) if answer is not None else 0.0))
    return out


def metrics_of(records):
    """Names of the metrics that these records have: ECE needs likelihoods, entity F1 entities, BERTScore an encoder."""
    return [name for name, metric in score.METRICS.items() if not metric.lacks(records)]


def all_metrics(records, labels=None):
    """{name: value} of every metric that the records have."""
    return {name: score.METRICS[name](records, labels) for name in metrics_of(records)}


# -- laws of a task: examples, read(text, labels), mark(gold, answer) --------------------------------------------------


def gold_is_perfect(examples, read, mark, metrics=None):
    """The answer that training teaches, said back, scores 100% and is always readable.

    metrics: the task's own; by default all, where the examples have labels. Principled exceptions: a correlation of one
    label with itself is 0 / 0, and ROUGE-L knows ASCII words only.
    """
    records = graded(examples, read, mark, lambda e: e.answer)
    lost = [r.id for r in records if r.correct != 1]
    assert not lost, f"{len(lost)} of {len(records)} golds are marked wrong, the first is {lost[0]}"
    assert score.unreadable(records) == 0
    if metrics is None and not all(e.labels for e in examples):
        return
    one_label = len({str(r.gold) for r in records}) < 2
    ascii_only = all(str(r.gold).isascii() and any(map(str.isalnum, str(r.gold))) for r in records)
    for name in set(metrics_of(records)) & set(score.METRICS if metrics is None else metrics):
        if name == "mcc" and one_label or name == "rouge_l" and not ascii_only:
            continue
        value = score.METRICS[name](records)
        assert abs(value - 1) < 1e-12, f"{name} of gold answers is {value}"


def permuted_is_chance(examples, read, mark, seed=0, room=0.0):
    """Answers shuffled among the examples score what shuffling scores: the sum of squared shares for equal label lists.

    room: what a tolerance may add (numbers that are near each other), above only.
    """
    answers = [e.answer for e in examples]
    random.Random(seed).shuffle(answers)
    said = dict(zip((e.id for e in examples), answers, strict=True))
    records = graded(examples, read, mark, lambda e: said[e.id])
    chance = sum((k / len(examples)) ** 2 for k in Counter(json.dumps(e.gold, sort_keys=True) for e in examples).values())
    found = score.interval([record(r.id, r.gold, r.answer, "", r.correct) for r in records], level=0.999)
    assert found.low - room <= chance <= found.high, f"shuffled answers score {found}, chance is {chance:.4f}"


def strangers_score_less(examples, read, mark, most=0.5, seed=0):
    """Texts shuffled among the examples are marked far below the right ones: at most `most` where those have 1."""
    answers = [e.answer for e in examples]
    random.Random(seed).shuffle(answers)
    said = dict(zip((e.id for e in examples), answers, strict=True))
    value = score.accuracy(graded(examples, read, mark, lambda e: said[e.id]))
    assert value < most, f"shuffled texts score {value:.4f}"


def silence_is_zero(examples, read, mark):
    """Empty answers score 0 in every metric and are all counted unreadable; a correlation may go below."""
    records = graded(examples, read, mark, lambda e: "")
    assert score.unreadable(records) == len(records), "an empty text was read as an answer"
    assert score.accuracy(records) == 0
    for name, value in all_metrics(records).items():
        assert value == 0 or name == "mcc" and value < 0, f"{name} of empty answers is {value}"
    found = score.interval(records)
    assert found.low == 0 < found.high


# -- laws of the scorer ------------------------------------------------------------------------------------------------


def order_is_nothing(records, seed=0):
    """Metrics, intervals and paired differences are bitwise the same for any order of the records."""
    mixed = list(records)
    random.Random(seed).shuffle(mixed)
    other = [replace(r, answer=o.answer, correct=o.correct) for r, o in zip(records, records[1:] + records[:1], strict=True)]
    for name in metrics_of(records):
        assert score.METRICS[name](records) == score.METRICS[name](mixed)
        assert score.interval(records, name, draws=200) == score.interval(mixed, name, draws=200)
        assert score.paired(records, other, name, draws=200) == score.paired(mixed, other[::-1], name, draws=200)


def hash_seed_is_nothing(records):
    """Two interpreters with different string hashing print the same numbers."""
    program = (
        "import json, sys, dataclasses\nfrom finlora import score\n"
        "rs = [score.Record.from_json(line) for line in sys.stdin.read().splitlines()]\n"
        "flat = [dataclasses.replace(r, answer=r.gold, correct=1.0) for r in rs]\n"
        "names = [n for n, m in score.METRICS.items() if not m.lacks(rs)]\n"
        "out = [dataclasses.asdict(score.interval(rs, n, draws=200)) for n in names]\n"
        "out += [dataclasses.asdict(score.paired(rs, flat, n, draws=200)) for n in names]\n"
        "print(json.dumps([out, names, score.confusion(rs) if 'macro_f1' in names else 0]))"
    )
    text = "\n".join(r.to_json() for r in records)
    source = str(Path(finlora.__file__).parents[1])
    found = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", program], input=text, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]
    assert json.loads(found[0])[0][0]["n"] == len(records)


def never_certain(records_right, records_wrong):
    """All right and all wrong still have an interval with a width, for every metric; they are the ends of its scale.

    Principled exceptions: a correlation of wrong answers ends at -1 / (labels - 1), and errors of likelihoods are 0 only
    where the model was certain as well.
    """
    for records, value in ((records_right, 1.0), (records_wrong, 0.0)):
        for name in metrics_of(records):
            found = score.interval(records, name, draws=200)
            if not score.METRICS[name].lower_is_better:
                assert found.value == value or name == "mcc" and (not value and found.value < 0)
            assert found.low <= found.value <= found.high
            assert found.high - found.low > 1 / (2 * found.clusters), f"{name} of {found.clusters} clusters: {found}"


def copies_add_nothing(records, copies=7):
    """Repeating every record under its own cluster tells nothing new: values and intervals stay.

    Exactly for the bootstrap (all sums scale alike). Accuracy changes from Wilson's interval to that with effective trials,
    which is a little wider for its Student quantile (0.6% for 300 records, measured); were the copies counted as new
    records it would be 62% narrower.
    """
    one = [replace(r, id=str(r.id), cluster=f"own {r.id}") for r in records]
    many = [replace(r, id=f"{r.id} {k}") for r in one for k in range(copies)]
    for name in metrics_of(records):
        a, b = score.interval(one, name), score.interval(many, name)
        assert b.n == copies * a.n and b.clusters == a.clusters
        assert abs(a.value - b.value) < 1e-12
        wide, wider = a.high - a.low, b.high - b.low
        assert abs(wide - wider) < (0.02 * wide if a.how == "Wilson" else 1e-9), f"{name}: {a} became {b}"


def no_free_unreadable(accuracy=0.8, n=3000):
    """Wrong answers that cannot be read, or are no label, do not lift F1 to 2a / (1 + a); returns (ours, inflated).

    With equal labels and equal recall, F1 is the accuracy, whether the wrong answers are readable or not.
    """
    golds = [LABELS[k % 3] for k in range(n)]
    keep = [(k // 3) % 10 < accuracy * 10 for k in range(n)]
    value = sum(keep) / n
    inflated = 2 * value / (1 + value)
    for wrong in (None, "positive, because the outlook is good"):
        records = [record(k, g, g if right else wrong) for k, (g, right) in enumerate(zip(golds, keep, strict=True))]
        for name in ("macro_f1", "weighted_f1"):
            found = score.METRICS[name](records, LABELS)
            assert abs(found - value) < 1e-9, f"{name} {found:.4f}, accuracy {value:.4f}, the inflated one {inflated:.4f}"
    return value, inflated


# -- coverage ----------------------------------------------------------------------------------------------------------


def wilson_coverage(p, n, trials=20000, seed=0):
    """Share of simulated accuracies whose Wilson interval holds the truth."""
    hits = np.random.default_rng(seed).binomial(n, p, trials)
    ends = {k: score.wilson(int(k), n) for k in np.unique(hits)}
    return float(np.mean([ends[k][0] <= p <= ends[k][1] for k in hits]))


def _world(rng, clusters, per, shares, accuracy, alike):
    """Records of one draw: a cluster shares its gold, and its difficulty is Beta with intra-cluster correlation alike."""
    gold = rng.choice(len(shares), p=shares, size=clusters)
    ease = rng.beta(accuracy * (1 / alike - 1), (1 - accuracy) * (1 / alike - 1), clusters) if alike else np.full(clusters, accuracy)
    right = rng.random((clusters, per)) < ease[:, None]
    other = (gold[:, None] + rng.integers(1, len(shares), (clusters, per))) % len(shares)
    answer = np.where(right, gold[:, None], other)
    return gold, answer


def _truth(shares, accuracy):
    """(macro F1, accuracy) of the world that `_world` draws from."""
    share = np.array(shares)
    answered = share * accuracy + (1 - share) * (1 - accuracy) / (len(share) - 1)
    return float((2 * share * accuracy / (share + answered)).mean()), accuracy


def _records(gold, answer):
    return [
        record(f"{c} {j}", LABELS[gold[c]], LABELS[answer[c, j]], f"d{c}")
        for c in range(answer.shape[0])
        for j in range(answer.shape[1])
    ]


def bootstrap_coverage(clusters, per, shares, accuracy, alike, trials, draws=1000, seed=0):
    """Share of simulated worlds whose interval holds the truth: (macro F1, accuracy)."""
    rng = np.random.default_rng(seed)
    truth = _truth(shares, accuracy)
    hits = np.zeros(2)
    for _ in range(trials):
        records = _records(*_world(rng, clusters, per, shares, accuracy, alike))
        for k, name in enumerate(("macro_f1", "accuracy")):
            found = score.interval(records, name, draws=draws, labels=LABELS)
            hits[k] += found.low <= truth[k] <= found.high
    return tuple((hits / trials).tolist())


def clustered_coverage(clusters, per, accuracy, alike, trials, seed=0):
    """Share of simulated accuracies of clusters of `per` alike records whose interval holds the truth.

    Straight from the sums of clusters, as `score.interval` forms them.
    """
    rng = np.random.default_rng(seed)
    ease = rng.beta(accuracy * (1 / alike - 1), (1 - accuracy) * (1 / alike - 1), (trials, clusters))
    hits = 0
    for right in rng.binomial(per, ease):
        sums = np.stack([right, np.full(clusters, per)], axis=1).astype(float)
        found = intervals._clustered(sums, 0.95) or score.wilson(right.mean() / per * clusters, clusters)
        hits += found[0] <= accuracy <= found[1]
    return hits / trials


def paired_coverage(clusters, per, accuracies, trials, draws=1000, seed=0):
    """Share of simulated pairs of runs whose paired interval of the accuracy difference holds the truth.

    Half of the records are answered alike by both runs.
    """
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(trials):
        ease = rng.random((clusters, per))
        luck = np.where(rng.random((clusters, per)) < 0.5, ease, rng.random((clusters, per)))
        runs = [
            _records(np.zeros(clusters, int), (u >= p).astype(int)) for u, p in ((ease, accuracies[0]), (luck, accuracies[1]))
        ]
        found = score.paired(*runs, draws=draws).difference
        hits += found.low <= accuracies[0] - accuracies[1] <= found.high
    return hits / trials
