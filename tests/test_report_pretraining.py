"""The report of a pretraining study: made-up receipts whose figures can be worked out by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.report import plots, pretraining_text
from finlora.report import pretraining_compare as compare
from finlora.report import pretraining_sizes as sizes
from finlora.report.pretraining import FILES, _state, figures, is_pretraining, report
from finlora.report.pretraining_claim import MARGIN, _trend, judged, levels, signed
from finlora.report.pretraining_data import _work, load
from finlora.report.pretraining_plots import Line, lines

VOCAB, TOKENS = 2048, 400_000
CONFIGS = {name: {"family": "gpt2", "n_embd": d, "n_layer": n, "n_head": 1, "n_positions": 128} for name, (d, n) in {"s": (96, 3), "m": (144, 4), "l": (224, 5)}.items()}
BUDGETS = {"dense": 1.0, "dense long": 1.5, "dense short": 0.3}
WOBBLE = {0: 0.0, 1: 0.03, 2: -0.03}  # of the seeds: shared by the arms, so that differences do not have it
SPEED = {"dense": 1000.0, "dense long": 1000.0, "dense short": 1000.0, "fast": 1500.0, "slow": 500.0}
T2 = 4.302652729911275  # Student's 97.5% point at 2 degrees of freedom
KIND = "lowrank"


def dense_loss(size, tokens, seed=0):
    """A line in log tokens, and another in log parameters, so that chords are exact."""
    params = sizes.layout(CONFIGS[size], VOCAB)[2]
    return 6.0 - 0.2 * math.log2(tokens / TOKENS) - 0.3 * math.log2(params / 1e6) + WOBBLE[seed]


def plan(size, keep):
    record = pick("structure", KIND)
    shapes = sizes.layout(CONFIGS[size], VOCAB)[0]
    settings = {name: record.sized(record.config(), i, o, keep) for name, (o, i) in shapes.items()}
    inside = sum(record.count(settings[n], i, o) for n, (o, i) in shapes.items())
    return {n: asdict(c) for n, c in settings.items()}, inside - sum(o * i for o, i in shapes.values())


def write(folder, *, seeds=(0, 1, 2), only=CONFIGS, losses=None, leave_out=(), data="x", speed=SPEED, edge=("fast",), change=None):
    """A study's folder. losses: {(size, arm): difference to dense, or one for each seed}; leave_out: (size, arm, seed).

    edge: arms whose rate was chosen at the end of its list. change: (sheet, size, arm, seed) edits a receipt.
    """
    losses = losses or {}
    runs = []
    for size in only:
        shapes, embeddings, full = sizes.layout(CONFIGS[size], VOCAB)
        for arm in SPEED:
            share = BUDGETS.get(arm, 1.0)
            linears, fewer = ({}, 0) if arm in BUDGETS else plan(size, 1 / 2.64)
            work = sum(o * i for o, i in shapes.values()) + VOCAB * CONFIGS[size]["n_embd"]
            for seed in seeds:
                if (size, arm, seed) in leave_out:
                    continue
                more = losses.get((size, arm), 0.0)
                loss = dense_loss(size, TOKENS * share, seed) + (more[seed] if isinstance(more, tuple) else more)
                name = f"{size}-{arm}-{seed}".replace(" ", "_")
                tokens = int(TOKENS * share)
                sheet = {
                    "schema": 1, "kind": "pretrain", "name": name, "created": "2026-01-01T00:00:00+00:00", "versions": {}, "device": {"cpu": "a cpu"}, "code": {},
                    "spec": {
                        "run": {"seed": seed, "out": f"/some/where/{name}"}, "model": {"config": CONFIGS[size], "tokenizer": "/a/tokenizer"}, "optimizer": {"kind": "adamw"},
                        "structure": {"kind": KIND if linears else "dense"}, "train": {"steps": int(400 * share), "lr": 0.003, "batch": 8}, "data": {"row_tokens": 128},
                    },
                    "model": {"name": "gpt2", "params": full + fewer, "params_dense": full, "forward_multiply_adds": work + fewer},
                    "structure": {"kind": KIND if linears else "dense", "linears": linears},
                    "data": [{"task": "text", "split": "train", "sha256": "t", "tokens": 9}, {"task": "text", "split": "validation", "sha256": data if size != "l" else "x", "tokens": 7}],
                    "train": {"steps": int(400 * share), "tokens": tokens, "seconds": tokens / speed[arm], "tokens_per_s": speed[arm], "val": [[int(400 * share), loss]], "val_bits_per_byte": loss / 2, "peak_bytes": 1e8},
                    "results": {},
                }  # fmt: skip
                if change:
                    change(sheet, size, arm, seed)
                (folder / "runs" / name).mkdir(parents=True)
                (folder / "runs" / name / "receipt.json").write_text(json.dumps(sheet))
                runs.append({"keys": {"arm": arm, "size": size, "run.seed": seed, "train.lr": 0.003}, "run": name})
    chosen = {f"arm {arm}, size {size}": {"value": 0.003, "loss": {"0.001": 6.0, "0.003": 5.9, "0.01": None}, "at_edge": arm in edge} for arm in SPEED for size in only}
    study = {"study": "made up", "key": "train.lr", "chosen": chosen, "runs": runs, "base": [], "failed": [], "refused": []}
    (folder / "study.json").write_text(json.dumps(study))
    return folder


LOSSES = {
    **{(size, "fast"): (0.1 + at / 10, 0.11 + at / 10, 0.09 + at / 10) for at, size in enumerate("sml")},
    **{(size, "slow"): (-0.02, 0.0, 0.02) for size in "sml"},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("study"), losses=LOSSES)
    out = folder / "page"
    return report(folder, out, codecs=("int8", "nf4")), out


def row(said, way, size, arm):
    return next(r for r in said["comparisons"][way] if (r["size"], r["arm"]) == (size, arm))


def figured(*where, **how):
    """What the report of a study that is written there says, without its plots."""
    return figures(write(*where, **how), codecs=("int8",))[1]


def test_intervals_are_students():
    found = compare.interval([1.0, 2.0, 3.0])
    assert (found["value"], found["n"]) == (2.0, 3)
    assert found["high"] - 2 == pytest.approx(T2 / math.sqrt(3)) and 2 - found["low"] == pytest.approx(T2 / math.sqrt(3))
    assert compare.interval([T2 / math.sqrt(3) + v for v in (-1, 0, 1)])["p"] == pytest.approx(0.05), "an interval that just reaches 0"
    assert compare.interval([4.0]) == {"value": 4.0, "low": None, "high": None, "n": 1, "p": None}
    assert compare.interval([0.5, 0.5])["p"] == 0.0 and compare.interval([0.0, 0.0])["p"] == 1.0


def test_lines_are_in_log_and_end_where_they_were_measured():
    points = [(1.0, 10.0), (4.0, 8.0), (16.0, 7.0)]
    assert compare.between(points, 2.0) == pytest.approx(9.0) and compare.between(points, 8.0) == pytest.approx(7.5)
    assert compare.between(points, 16.0 * (1 + 1e-9)) == 7.0
    assert compare.between(points, 0.99) is None and compare.between(points, 17.0) is None and compare.between([], 1.0) is None


def test_a_slope_is_least_squares():
    found = compare.line([0.0, 1.0, 2.0], [0.0, 2.0, 1.0])  # slope 1/2, rest 1.5, error sqrt(1.5 / 1 / 2)
    assert found["value"] == pytest.approx(0.5) and found["n"] == 3
    assert found["high"] - 0.5 == pytest.approx(12.706204736432095 * math.sqrt(0.75))
    assert compare.line([0.0, 1.0], [0.0, 1.0]) is None and compare.line([1.0] * 3, [0.0, 1.0, 2.0]) is None


def test_equal_tokens_are_paired_by_seed(said):
    said, _ = said
    d = row(said, "tokens", "m", "fast")["difference"]
    assert d["value"] == pytest.approx(0.2) and d["high"] - d["value"] == pytest.approx(T2 * 0.01 / math.sqrt(3)), "the seeds' own wobble is not in it"
    tested = sorted(r["difference"]["p"] for r in said["comparisons"]["tokens"])
    assert len(tested) == 6 and min(r["difference"]["holm_p"] for r in said["comparisons"]["tokens"]) == pytest.approx(6 * tested[0])
    assert not any(r["arm"] in BUDGETS for rows in said["comparisons"].values() for r in rows)


def test_what_saw_more_tokens_is_not_compared_at_equal_ones(tmp_path):
    def longer(sheet, size, arm, seed):
        if arm == "fast":
            sheet["train"]["tokens"] = int(1.05 * TOKENS)

    said = figured(tmp_path / "study", only=["s"], change=longer)
    found = row(said, "tokens", "0.545M", "fast")
    assert found["difference"] is None and found["why"] == "dense has no run of the same seed and as many tokens"
    held = row(said, "memory", "0.545M", "fast")
    assert held["difference"] is None and held["bound"] is None and row(said, "tokens", "0.545M", "slow")["difference"]["n"] == 3


def test_equal_flops_and_wall_are_dense_on_what_they_buy(said):
    said, _ = said
    arms = {(a["size"], a["arm"]): a for a in said["arms"]}
    for size in "sml":
        share = arms[size, "fast"]["flops_per_token"] / arms[size, "dense"]["flops_per_token"]
        assert 0.3 < share < 0.9 and row(said, "flops", size, "fast")["dense"] == pytest.approx(share * TOKENS)
        # on a dense line of 0.2 nats a doubling, fewer tokens by `share` cost 0.2 log2(1 / share)
        assert row(said, "flops", size, "slow")["difference"]["value"] == pytest.approx(0.2 * math.log2(share))
        assert row(said, "wall", size, "fast")["dense"] == pytest.approx(TOKENS / 1.5)
    assert row(said, "wall", "s", "fast")["difference"]["value"] == pytest.approx(0.1 - 0.2 * math.log2(1.5))


def test_beyond_denses_runs_the_last_one_bounds_the_difference(said):
    said, _ = said
    slow = row(said, "wall", "s", "slow")
    assert slow["difference"] is None and slow["dense"] is None, "800,000 tokens are beyond the longest budget: nothing is extrapolated"
    assert slow["why"] == "dense would need 800k tokens, it has 120k to 600k" and slow["side"] == "at least"
    assert slow["bound"]["value"] == pytest.approx(0.2 * math.log2(1.5)), "the longest dense, at 1.5 times the tokens, is better by so much"
    assert slow["bound"]["holm_p"] < compare.ALPHA and compare.found_of(slow) == "higher"
    small = row(said, "memory", "s", "fast")
    assert small["side"] == "at most" and small["why"] == "dense would need 5.41 MB, it has 8.71 MB to 56.2 MB"
    assert small["bound"]["value"] == pytest.approx(0.1) and small["bound"]["holm_p"] < compare.ALPHA
    assert compare.found_of(small) == "unknown", "at most +0.1 is no higher loss"
    assert compare._reached([(1.0, 3.0), (2.0, 2.0)], 3.0) == (2.0, "at least") and compare._reached([(1.0, 3.0), (2.0, 2.0)], 0.5) == (3.0, "at most")
    assert compare._reached([(1.0, 2.0), (2.0, 3.0)], 3.0) == (None, ""), "dense's loss rose: its last run bounds nothing"
    assert compare._reached([(1.0, 2.0), (2.0, 3.0)], 0.5) == (None, "") and compare._reached([], 1.0) == (None, "")


def test_what_timing_wobbles_by_is_in_the_interval_at_equal_wall_time(tmp_path):
    rates = {0: 1000.0, 1: 1500.0, 2: 2250.0}  # of fast, by seed: their median is as before

    def wobbly(sheet, size, arm, seed):
        if arm == "fast":
            sheet["train"]["tokens_per_s"] = rates[seed]

    widths = []
    for change in (None, wobbly):
        d = row(figured(tmp_path / str(change is None), only=["s"], change=change), "wall", "0.545M", "fast")["difference"]
        assert d["value"] == pytest.approx(-0.2 * math.log2(1.5))
        widths.append(d["high"] - d["low"])
    assert widths[0] == pytest.approx(0, abs=1e-9) and widths[1] == pytest.approx(2 * T2 * 0.2 * math.log2(1.5) / math.sqrt(3))


def test_speeds_are_tested_against_the_claims(tmp_path):
    """Ratios about 1.3 differ from 1 and not from what is claimed; their median is no mean."""
    rates = {0: 1250.0, 1: 1300.0, 2: 1352.0}

    def near(sheet, size, arm, seed):
        if arm == "fast":
            sheet["train"]["tokens_per_s"] = rates[seed]

    found = next(r for r in figured(tmp_path / "study", only=["s"], change=near)["speeds"] if r["arm"] == "fast")
    assert found["ratio"]["value"] == pytest.approx(1.3) and found["median"] == pytest.approx(1.3, rel=1e-9)
    assert found["ratio"]["p"] < 0.01 and found["ratio"]["holm_p"] > 0.99


def test_equal_memory_is_a_line_over_sizes(said):
    said, _ = said
    arms = {(a["size"], a["arm"]): a for a in said["arms"]}
    for size in "ml":
        params = arms[size, "slow"]["params"]
        own, there = dense_loss(size, TOKENS), 6.0 - 0.3 * math.log2(params / 1e6)
        assert row(said, "memory", size, "slow")["difference"]["value"] == pytest.approx(own - there)
        assert arms[size, "slow"]["state_bytes"] == 16 * params == pytest.approx(row(said, "memory", size, "slow")["dense"])
    assert any("parameters and optimiser state alone" in note for note in said["notes"]), "these receipts do not say what is kept"


def test_an_optimiser_that_keeps_less_is_told_to(tmp_path):
    def keeps(sheet, size, arm, seed):
        sheet["train"]["optimizer_bytes"] = (2 if arm == "fast" else 8) * sheet["model"]["params"]

    said = figured(tmp_path / "all", change=keeps)
    arms = {a["arm"]: a for a in said["arms"] if a["size"] == "l"}
    assert [arms[name]["state_bytes"] / arms[name]["params"] for name in ("fast", "slow")] == [10, 16]
    assert any("the optimiser's state as it was" in text for _, text in said["how"])

    def some(sheet, size, arm, seed):
        if (size, arm, seed) != ("s", "slow", 2):
            keeps(sheet, size, arm, seed)

    said = figured(tmp_path / "some", change=some)
    assert all(a["state_bytes"] == 16 * a["params"] for a in said["arms"]), "one receipt that does not tell it: all are counted alike"
    assert any("other optimisers are counted alike" in text for _, text in said["how"])


def test_equal_memory_counts_what_is_kept_for_the_backward_pass(tmp_path):
    kept = {"s": 10e6, "m": 30e6, "l": 120e6}

    def keeps(sheet, size, arm, seed):
        sheet["train"] |= {"activation_bytes": int(kept[size] * (0.9 if arm == "fast" else 1)), "start_bytes": 4e7 + seed}

    said = figured(tmp_path / "all", change=keeps)
    arm = next(a for a in said["arms"] if (a["size"], a["arm"]) == ("l", "fast"))
    need = 16 * arm["params"] + 0.9 * kept["l"]
    found = row(said, "memory", "l", "fast")
    assert found["dense"] == pytest.approx(need) and arm["activation_bytes"] == 0.9 * kept["l"]
    full = {size: sizes.layout(CONFIGS[size], VOCAB)[2] for size in CONFIGS}
    held = {size: 16 * full[size] + kept[size] for size in CONFIGS}
    share = math.log(need / held["m"]) / math.log(held["l"] / held["m"])
    assert found["difference"]["value"] == pytest.approx((1 - share) * (dense_loss("l", TOKENS) - dense_loss("m", TOKENS)))
    assert arm["growth_bytes"] == pytest.approx(1e8 - 4e7 - 1), "the median seed's peak less what the process held before"
    assert not any("optimiser state alone" in note for note in said["notes"])

    def some(sheet, size, arm, seed):
        keeps(sheet, size, arm, seed)
        if (size, arm, seed) == ("s", "slow", 2):
            sheet["train"]["activation_bytes"] = None

    said = figured(tmp_path / "some", change=some)
    assert row(said, "memory", "l", "fast")["dense"] == pytest.approx(16 * arm["params"]) and any("optimiser state alone" in note for note in said["notes"])


def test_flops_are_those_that_are_computed(said):
    """Linears and head as the receipt has them, attention over the whole row, and a matrix built once a micro-batch."""
    said, _ = said
    dense = next(a for a in said["arms"] if (a["size"], a["arm"]) == ("s", "dense"))
    linears = next(s for s in said["sizes"] if s["size"] == "s")["linears"]
    assert dense["flops_per_token"] == 6 * (linears + VOCAB * 96 + 3 * 96 * 128)
    sheet = {"model": {"params_dense": 544_608, "forward_multiply_adds": 0}, "spec": {"model": {"config": CONFIGS["s"]}, "train": {"batch": 8, "micro_rows": 4}, "data": {"row_tokens": 128}}}
    shapes = sizes.layout(CONFIGS["s"], VOCAB)[0]
    for kind, once in (("sltrain", 4 * 4 * sum(o * i for o, i in shapes.values())), (KIND, 0)):
        assert _work(sheet, kind, dict.fromkeys(shapes, asdict(pick("structure", kind).config(rank=4)))) == pytest.approx(3 * 96 * 128 + once / 3 / (4 * 128))


def test_the_trend_is_by_doublings_with_a_point_for_each_size(said):
    said, _ = said
    widths = {s["size"]: s["non_embedding"] for s in said["sizes"]}
    assert widths["s"] == 544_608 - (VOCAB + 128) * 96
    found = {t["arm"]: t["slope"] for t in said["trend"]}
    means = compare.line([math.log2(widths[s]) for s in "sml"], [0.1, 0.2, 0.3])
    assert found["fast"]["n"] == 3 and found["fast"]["value"] == pytest.approx(means["value"]) and found["fast"]["low"] == pytest.approx(means["low"])
    assert found["slow"]["value"] == pytest.approx(0, abs=1e-9)
    text = next(t for t in said["conclusion"] if "doubling" in t)
    assert "grows for 1 arms, shrinks for 0, and shows no trend for 1" in text
    assert text.endswith("It is no trend of size alone: over these sizes tokens a parameter go from 0.73 to 0.11, and the whole model at 2.64x in its linears from 1.61x to 2.16x smaller.")


def test_an_offset_that_the_seeds_of_a_size_share_is_no_trend(tmp_path):
    """Nine points on three levels are three: by themselves they would have been a slope far from 0."""
    losses = {(size, "slow"): (at + 0.001, at, at - 0.001) for size, at in (("s", 0.0), ("m", 0.06), ("l", 0.05))}
    slope = next(t["slope"] for t in figured(tmp_path / "levels", losses=losses)["trend"] if t["arm"] == "slow")
    assert slope["value"] > 0.01 and slope["low"] < 0 and slope["p"] > 0.1


def test_a_trend_is_told_by_holm():
    for holm, told in ((0.06, "grows for 0 arms, shrinks for 0, and shows no trend for 1"), (0.04, "grows for 1 arms, shrinks for 0, and shows no trend for 0")):
        slope = {"value": 0.1, "low": 0.01, "high": 0.19, "p": 0.03, "holm_p": holm}
        arm = {"size": "s", "arm": "a", "structured": True, "compared": False}
        assert told in _trend({"trend": [{"arm": "a", "sizes": 3, "slope": slope}], "arms": [arm], "sizes": [{"size": "s"}], "reference": "dense"})


def test_bytes_are_counted_by_hand(said):
    said, _ = said
    for arm in (a for a in said["arms"] if a["size"] == "s" and a["compared"] or a["arm"] == "dense"):
        size = next(s for s in said["sizes"] if s["size"] == arm["size"])
        assert arm["bytes"]["16"] == 2 * arm["params"] and arm["non_embedding"] == arm["params"] - size["embeddings"]
        inside = size["linears"] - (size["params"] - arm["params"])
        assert arm["smaller_linears"] == pytest.approx(size["linears"] / inside)
        if not arm["structured"]:  # 4.5 bits; rows of 96, 288, ... make whole blocks of 64 in each matrix
            assert arm["bytes"]["nf4"] == pytest.approx(inside * 4.5 / 8 + 2 * (arm["params"] - inside), rel=2e-4)
        assert arm["bytes"]["nf4"] < arm["bytes"]["int8"] < arm["bytes"]["16"]


def test_a_fixed_support_has_bytes_but_no_parameters():
    record = pick("structure", "sltrain")
    cfg = record.config(rank=4)
    told = {"x": asdict(cfg)}
    K = int(cfg.delta * 64 * 32)
    values = record.count(cfg, 32, 64)
    assert sizes.fixed_bytes("sltrain", told, {"x": (64, 32)}) == 4 * K
    assert sizes.stored("", "sltrain", told, {"x": (64, 32)}, values) == 2 * values + 4 * K
    codec = pick("codec", "int8")
    bits = sum(o * i * codec.bits(codec.config(), (o, i)) for o, i in ((4, 32), (64, 4)))
    assert sizes.stored("int8", "sltrain", told, {"x": (64, 32)}, values) == bits / 8 + 2 * K + 4 * K, "entries in 16 bits"
    assert _state(SimpleNamespace(params=values, linears=told, kind="sltrain"), {"x": (64, 32)}, False) == 16 * values + 4 * K
    low = {"x": {"inner": asdict(pick("structure", KIND).config(rank=4)), "share": 0.5}}
    assert _state(SimpleNamespace(params=384, linears=low, kind=KIND), {"x": (64, 32)}, False) == 16 * (384 + 64 * 32), "and a guide while it lasts"


def test_the_verdicts_follow_the_rule(said):
    said, _ = said
    found = {(v["size"], v["arm"]): v for v in said["claim"]}
    assert len(found) == 6 and all(v["verdict"] == "not reproduced" for v in found.values())
    assert found["s", "fast"]["loss"] == "a loss" and found["s", "fast"]["speed"] == "at least 1.3x"
    assert found["s", "slow"]["loss"] == "open" and found["s", "slow"]["speed"] == "below 1.3x"
    text = "\n".join(said["conclusion"])
    assert said["conclusion"][0].startswith("An early-training comparison: models of 336k to 3.03M parameters without embeddings, dense trained on 400k tokens (400 steps of 1024 tokens), which are 0.11 to 0.73 tokens a parameter")
    assert (
        "Of 6 arms and sizes whose linears are 2.64x smaller, the whole model 1.61 to 2.16x, it is reproduced at these sizes in 0, "
        "not reproduced at these sizes in 6 (a loss in 3, less than 1.3x the speed in 3), and open in 0."
    ) in text
    assert "+0.100 [+0.075, +0.125] nats a token at equal tokens: a loss" in text and "1.50x [1.50, 1.50] the speed of dense, at least 1.3x" in text
    assert (
        "At equal wall time, of 6 arms and sizes 0 have a lower loss than dense, 5 a higher one (3 of them by a bound: dense would need more than it was given, "
        "and has the lower loss without), and 1 cannot be told from it, by Holm's p below 0.05."
    ) in text
    assert any("3 seeds at most" in note for note in said["notes"])


def test_what_was_chosen_at_the_edge_is_marked_where_it_is_named(said):
    said, out = said
    text = "\n".join(said["conclusion"])
    assert "fast * (the whole model 1.61x smaller), not reproduced" in text and "slow (the whole model" in text
    assert "In 3 of them (marked *) train.lr of the arm or of dense lies at an end of its list." in text
    assert any("chose a value at the edge of its list" in note and "fast at s; fast at m; fast at l" in note for note in said["notes"])
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "| s | fast * | 1.61x smaller | a loss | at least 1.3x | not reproduced |" in page and "| s | fast * | 3 | 400k |" in page


def test_a_dense_rate_at_the_edge_marks_all_that_is_compared_with_it(tmp_path):
    said = figured(tmp_path / "study", only=["s"], edge=("dense",))
    text = "\n".join(said["conclusion"])
    assert "fast * (" in text and "slow * (" in text


def test_only_holm_names_an_arm_as_lower_or_higher(tmp_path):
    """An interval of one arm that leaves out 0 is one of six that were looked at."""
    losses = {(size, arm): (0.05, -0.05, 0.0) for size in "sml" for arm in ("fast", "slow")}
    losses["m", "slow"] = (-0.030, -0.026, -0.020)
    found = row(figured(tmp_path / "study", losses=losses), "tokens", "m", "slow")
    d = found["difference"]
    assert d["high"] < 0 and d["p"] < compare.ALPHA < d["holm_p"] and compare.found_of(found) == "alike"
    losses["m", "slow"] = (0.030, 0.026, 0.020)
    said = figured(tmp_path / "other", losses=losses)
    assert row(said, "tokens", "m", "slow")["difference"]["low"] > MARGIN
    assert next(v for v in said["claim"] if (v["size"], v["arm"]) == ("m", "slow"))["loss"] == "open", "a loss by its interval alone"


@pytest.mark.parametrize(
    ("difference", "ratio", "verdict"),
    [
        ((-0.02, -0.005, MARGIN, 0.9), (1.4, 0.01), "reproduced"), ((-0.3, -0.25, -0.2, 0.001), (1.4, 0.01), "reproduced"), ((0.0007, 0.0012, 0.0017, 0.001), (1.4, 0.01), "reproduced"),
        ((-0.02, 0.0, 2 * MARGIN, 1.0), (1.4, 0.01), "open"), ((-0.02, -0.01, 0.0, 0.2), (1.35, 0.2), "open"), ((0.001, 0.01, 0.019, 0.2), (1.4, 0.01), "open"),
        ((0.001, 0.01, 0.019, 0.04), (1.4, 0.01), "not reproduced"), ((-0.02, -0.01, 0.0, 0.2), (1.2, 0.01), "not reproduced"), ((-0.02, -0.01, 0.0, 0.2), (1.2, 0.06), "open"),
        ((None, 0.0, None, None), (1.4, 0.01), "open"), ((None, 0.0, None, None), (1.4, None), "open"),
    ],
)  # fmt: skip
def test_each_verdict(difference, ratio, verdict):
    """difference: low, value, high, Holm's p against 0; ratio: value, Holm's p against 1.3."""
    like = {"size": "s", "arm": "a"}
    low, value, high, p = difference
    for smaller, many in ((2.64, 1), (2.6, 1), (2.3, 0), (4.0, 0)):
        told = {
            "arms": [{**like, "compared": True, "smaller_linears": smaller, "smaller": 1.6}], "speeds": [{**like, "ratio": {"value": ratio[0], "holm_p": ratio[1]}}],
            "comparisons": {"tokens": [{**like, "difference": {"low": low, "value": value, "high": high, "holm_p": p}}]},
        }  # fmt: skip
        assert [v["verdict"] for v in judged(told)] == [verdict] * many


def test_reproduced_and_open_are_said_with_what_was_measured(tmp_path):
    losses = {("s", "fast"): (-0.050, -0.051, -0.049), ("s", "slow"): (0.01, -0.01, 0.0)}
    said = figured(tmp_path / "study", only=["s"], losses=losses, speed=SPEED | {"slow": 1500.0}, edge=())
    text = "\n".join(said["conclusion"])
    assert "it is reproduced at these sizes in 1, not reproduced at these sizes in 0, and open in 1. Reproduced: fast at 0.545M." in text
    assert "fast (the whole model 1.61x smaller), reproduced: −0.050 [−0.052, −0.048] nats a token at equal tokens: no loss above the margin of 0.01; 1.50x [1.50, 1.50] the speed of dense, at least 1.3x" in text
    assert "slow (the whole model 1.61x smaller), open: 0.000 [−0.025, +0.025] nats a token at equal tokens: open, and a loss of up to 0.025 is not excluded" in text
    sd = math.sqrt((0.001**2 + 0.01**2) / 2)
    power = said["power"][0]
    assert power["paired_sd"] == pytest.approx(sd) and power["excluded"] == pytest.approx(T2 * sd / math.sqrt(3)) and power["dense_sd"] == pytest.approx(0.03)
    assert power["named"] == pytest.approx(6.205346816570 * sd / math.sqrt(3)), "Student's 98.75% point at 2 degrees of freedom: the first of two arms by Holm"
    assert f"The smallest loss that 3 seeds could have excluded at equal tokens, had none been measured, is {power['excluded']:.3f} at 0.545M nats a token" in text


def test_a_left_out_budget_says_how_far_the_line_errs(tmp_path):
    """Dense's middle budget lies 0.03 below the line through the outer two, and is the only one between two others."""

    def bent(sheet, size, arm, seed):
        if arm == "dense":
            sheet["train"]["val"][0][1] -= 0.03

    said = figured(tmp_path / "study", only=["s"], change=bent)
    assert said["chords"] == [{"line": "tokens", "size": "0.545M", "n": 3, "mean": pytest.approx(0.03), "worst": pytest.approx(0.03)}]


def test_a_lost_dense_run_is_noted_on_the_rows_that_lean_on_it(tmp_path):
    fast = row(figured(tmp_path / "upper", only=["s"], leave_out={("s", "dense short", 0), ("s", "dense", 2)}), "wall", "0.545M", "fast")
    assert fast["difference"] is None and fast["side"] == "at most" and fast["bound"]["n"] == 2, "a seed without the short budget bounds what it had been within"
    found = figured(tmp_path / "other", only=["s"], leave_out={("s", "dense", 2)})
    assert (fast := row(found, "wall", "0.545M", "fast"))["difference"]["n"] == 2 and fast["note"] == "dense lacks a run at 1 of 3 seeds, its line is coarser there; 1 of 3 seeds left out"
    assert row(found, "tokens", "0.545M", "fast")["note"] == "1 of 3 seeds left out, which dense lacks"


def test_how_it_was_measured_is_told_where_the_receipts_say_it(tmp_path):
    def says(sheet, size, arm, seed):
        sheet["train"] |= {"cpu_seconds": sheet["train"]["seconds"] * (0.8 if arm == "slow" and not seed else 0.97), "threads": 1, "resumed": seed == 1}
        sheet["spec"]["train"] |= {"weight_decay": 0.1, "schedule": "cosine"}
        sheet["spec"]["run"]["dtype"] = "float32"
        sheet["spec"]["optimizer"] = {"kind": "loro", "every": 40, "rewarm": 5} if arm == "fast" else {"kind": "adamw"}
        sheet["model"]["config"] = sheet["spec"]["model"]["config"]

    folder = write(tmp_path / "study", only=["s"], change=says)
    trial = json.loads((folder / "runs" / "s-dense-0" / "receipt.json").read_text())
    trial["train"] |= {"steps": 100, "tokens": 100_000, "seconds": 360.0}
    (folder / "search" / "one").mkdir(parents=True)
    (folder / "search" / "one" / "receipt.json").write_text(json.dumps(trial))
    said = figures(folder, codecs=("int8",))[1]
    how = dict(said["how"])
    assert said["setting"]["trials"]["flops"] == 6 * 100_000 * trial["model"]["forward_multiply_adds"]
    assert how["recipe"] == "schedule cosine, weight decay 0.1" and how["threads a run"] == "1" and how["resumed runs"] == "5"
    assert "fast: loro every 40 rewarm 5" in how["optimisers"] and how["dropout"] == "as the architecture has it by default"
    assert how["processor time"].startswith("0.97 processor seconds a second") and "1 runs of 100 steps, 0.10 h and" in how["search of train.lr"]
    assert any(note.startswith("1 of 15 runs had the processor for less than 90% of their seconds, the least for 80%") for note in said["notes"])
    assert any("of 100 steps: of dense's budgets, 120, 400, 600 steps and one value for all, that of 120 is tuned best" in note for note in said["notes"])
    told = dict(figured(tmp_path / "old", only=["s"])["how"])
    assert [told[k] for k in ("threads a run", "processor time", "resumed runs", "recipe")] == ["not recorded"] * 4


def test_runs_without_a_hash_are_held_to_their_counts(tmp_path):
    def unhashed(other):
        def change(sheet, size, arm, seed):
            for d in sheet["data"]:
                d.pop("sha256")
                d |= {"rows": 5, "bytes": {other if arm == "fast" else "a": 9}}

        return change

    said = figured(tmp_path / "same", seeds=(0, 1), only=["s"], change=unhashed("a"))
    assert any(note.startswith("10 runs do not say the hash of their data") for note in said["notes"])
    with pytest.raises(FinloraError, match="validated on different text"):
        figured(tmp_path / "other", seeds=(0,), only=["s"], change=unhashed("b"))


def test_arms_of_about_one_compression_stand_together():
    arms = [{"structured": True, "smaller_linears": v} for v in (2.71, 1.5, 4.1, 1.52, 2.64, 4.0, 2.6)] + [{"structured": False, "smaller_linears": 1.0}]
    assert {k: [a["smaller_linears"] for a in rows] for k, rows in levels(arms).items()} == {"1.5x": [1.5, 1.52], "2.6x": [2.6, 2.64, 2.71], "4x": [4.0, 4.1]}


def test_the_files_say_the_same_and_name_no_folder(said):
    said, out = said
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    texts = {name: (out / name).read_text(encoding="utf-8") for name in FILES}
    assert json.loads(texts["report.json"])["conclusion"] == said["conclusion"]
    rows = list(csv.DictReader(texts["runs.csv"].splitlines()))
    dense = next(a for a in said["arms"] if (a["size"], a["arm"]) == ("s", "dense"))
    assert float(rows[0]["flops_per_token"]) == dense["flops_per_token"] and int(rows[0]["non_embedding"]) == dense["non_embedding"]
    assert len(rows) == 45 and float(rows[0]["nats_per_token"]) == pytest.approx(dense_loss("s", TOKENS)) and rows[0]["arm"] == "dense"
    for text in texts.values():
        assert "/some/where" not in text and "/a/tokenizer" not in text
    assert said["conclusion"][0] in texts["report.md"] and said["conclusion"][0] in texts["report.html"]
    assert texts["report.html"].count("<svg") >= 3 + 1 + 3 and "http" not in re.sub(r'<meta http-equiv="[^>]*>', "", texts["report.html"])
    for title in ("At equal tokens", "At equal training FLOPs", "At equal wall time", "At equal memory of training", "Trend over size", "What these seeds and lines can tell", "How it was measured", "GPT-2 at 2.64x", "Search of train.lr"):
        assert f"## {title}\n" in texts["report.md"] and title in texts["report.html"]
    assert all(line.count("|") >= 3 for line in texts["report.md"].splitlines() if line.startswith("|"))


def test_bars_reach_from_the_low_end_to_the_high(monkeypatch):
    monkeypatch.setattr(plots, "_inline", lambda figure, title: figure)
    drawn = lines([Line("a", [(2.0, 5.0, 4.0, 8.0), (1.0, 3.0, 3.0, 3.0)], 0)], "x", "y", "t").axes[0].containers[0]
    assert [bar.tolist() for bar in drawn.lines[2][0].get_segments()] == [[[1.0, 3.0], [1.0, 3.0]], [[2.0, 4.0], [2.0, 8.0]]]


def test_one_seed_and_missing_arms_are_said(tmp_path):
    folder = write(tmp_path / "one", seeds=(0,), only=["s"], losses=LOSSES, leave_out=())
    said = report(folder, codecs=("int8",))
    assert is_pretraining(folder) and not is_pretraining(tmp_path)
    assert {v["verdict"] for v in said["claim"]} == {"open"} and "(one seed)" in " ".join(said["conclusion"])
    assert any(note.startswith("Fewer than 2 seeds") for note in said["notes"]) and (folder / "report.md").is_file()
    folder = write(tmp_path / "gap", only=["s", "m"], losses=LOSSES, leave_out={("m", "fast", 0), ("m", "fast", 1), ("m", "fast", 2), ("s", "dense", 2)})
    said = report(folder, codecs=("int8",))
    assert "4 runs are missing, of 2 arms" in " ".join(said["notes"])
    assert row(said, "tokens", "s", "fast")["difference"]["n"] == 2, "the seed that dense lacks is left out"
    assert not any((r["size"], r["arm"]) == ("m", "fast") for r in said["comparisons"]["tokens"])


def test_the_reference_is_the_dense_arm_of_as_many_steps(tmp_path):
    folder = write(tmp_path / "study", only=["s"], losses=LOSSES)
    study = load(folder)
    assert study.reference == "dense" and set(study.budgets) == set(BUDGETS) and study.compared() == ["fast", "slow"]
    assert study.sizes == ("0.545M",), "one architecture is told by its parameters"
    assert load(folder, "dense long").reference == "dense long"
    with pytest.raises(FinloraError, match="fastest"):
        load(folder, "fastest")


def test_a_structured_arm_may_be_compared_with_besides(tmp_path):
    folder = write(tmp_path / "study", only=["s"], losses=LOSSES)
    said = figures(folder, ("int8",), "fast")[1]
    assert said["reference"] == "dense" and said["beside"]["arm"] == "fast"
    found = {r["arm"]: r for r in said["beside"]["rows"]}
    assert set(found) == {"dense", "slow"}, "what saw other tokens is not compared"
    slow = found["slow"]["difference"]
    own = compare.interval([-0.12, -0.11, -0.07])
    assert (slow["value"], slow["low"], slow["p"]) == pytest.approx((own["value"], own["low"], own["p"]))
    assert slow["holm_p"] == pytest.approx(max(2 * min(slow["p"], (other := found["dense"]["difference"])["p"]), slow["p"]))
    assert other["value"] == pytest.approx(-0.1) and found["slow"]["speed"]["value"] == pytest.approx(1 / 3)
    table = next(t for t in pretraining_text.tables(said) if t.key == "beside")
    assert [r[1] for r in table.rows] == ["dense *", "slow *"] and "fast" in table.title and table.rows[1][3].startswith("−0.100 [")
    assert "or that of fast" in table.lead, "whose rate is at the end of its list here"
    assert not [t for t in pretraining_text.tables(figures(folder, ("int8",))[1]) if t.key == "beside"]


def test_a_guide_and_rounding_in_training_are_counted_as_what_they_are(tmp_path):
    """A guide: weights, gradients, moments, and its products over its share of the steps. Rounding: nothing of these."""
    shapes = sizes.layout(CONFIGS["s"], VOCAB)[0]
    dense = sum(o * i for o, i in shapes.values())
    wraps = {"plain": [], "guided": [{"share": 0.5}], "rounded": [{"codec": "nf4", "how": {}}], "both": [{"codec": "nf4", "how": {}}, {"share": 0.5}]}
    rows = {}
    for name, layers in wraps.items():
        for moments in (False, True):

            def wrap(sheet, size, arm, seed, layers=layers, moments=moments):
                own = arm == "fast"
                for layer in layers if own else ():
                    sheet["structure"]["linears"] = {k: {"inner": v, **layer} for k, v in sheet["structure"]["linears"].items()}
                if moments:
                    guide = dense if own and any("share" in layer for layer in layers) else 0
                    sheet["train"]["optimizer_bytes"] = 8 * (sheet["model"]["params"] + guide)

            said = figured(tmp_path / f"{name}{moments}", only=["s"], change=wrap)
            rows[name, moments] = next(a for a in said["arms"] if a["arm"] == "fast")
    for moments in (False, True):
        plain = rows["plain", moments]
        for name, guides in (("guided", 1), ("rounded", 0), ("both", 1)):
            one = rows[name, moments]
            assert one["state_bytes"] - plain["state_bytes"] == 16 * guides * dense, (name, moments)
            assert one["flops_per_token"] - plain["flops_per_token"] == pytest.approx(6 * 0.5 * guides * dense)
            assert one["ranks"] == plain["ranks"] and one["bytes"] == plain["bytes"]


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(FinloraError, match="holds no study"):
        report(tmp_path)
    folder = write(tmp_path / "text", seeds=(0,), only=["s", "l"], data="y")
    with pytest.raises(FinloraError, match="validated on different text"):
        report(folder)
    folder = write(tmp_path / "none", seeds=(0,), only=["s"], leave_out={("s", arm, 0) for arm in BUDGETS})
    with pytest.raises(FinloraError, match="no run of the study is dense"):
        report(folder)
    with pytest.raises(FinloraError, match="int8"):
        report(folder, codecs=("int88",))


def test_gpt2s_table_has_the_papers_figures():
    """FinGPT-HPC's 2.64x and 0.59 GB: rank 413 of GPT-2 1.5B with q, k, v fused, 367 apart; 52 and 46 of the smallest."""
    table = {(r["size"], r["fused"], r["choice"]): r for r in sizes.parameter_table(KIND, codecs=("int8", "nf4"))}
    assert {k: round(r["exact"]) for k, r in table.items() if "exact" in r} == {
        ("1.5b", True, "one rank"): 413, ("1.5b", False, "one rank"): 367, ("124m", True, "one rank"): 52, ("124m", False, "one rank"): 46,
    }  # fmt: skip
    assert table["1.5b", True, "dense"]["params"] == 1_557_611_200 and table["124m", True, "dense"]["params"] == 124_439_808
    assert table["1.5b", True, "dense"]["embeddings"] == (50257 + 1024) * 1600
    for r in table.values():
        if r["choice"] != "dense":
            assert 2.64 <= r["smaller"] < 2.66
            assert r["bytes"]["16"] == 2 * r["params"] and r["bytes"]["one each"] == r["params"]
    low = table["1.5b", True, "one rank"]
    assert low["params"] == 1_557_611_200 - 48 * 12 * 1600**2 + 412 * 48 * 25_600
    assert low["bytes"]["one each"] / 1e9 == pytest.approx(0.59, abs=0.002) and low["bytes"]["int8"] / 1e9 > 0.67, "embeddings in 16 bits"
    share = table["1.5b", True, "one share"]["ranks"]
    assert share["attn.c_attn"] == 412 and share["mlp.c_fc"] == share["mlp.c_proj"] == 440 and share["attn.c_proj"] == 275


def test_a_vocabulary_is_had_from_the_parameters():
    assert sizes.vocabulary(CONFIGS["s"], 544_608) == VOCAB
    with pytest.raises(FinloraError, match="does not fit"):
        sizes.vocabulary(CONFIGS["s"], 544_609)


def test_signs_are_true_minuses():
    assert (signed(-0.01), signed(0.01), signed(-0.0001), signed(0.00012, 4)) == ("−0.010", "+0.010", "0.000", "+0.0001")
