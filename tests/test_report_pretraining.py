"""The report of a pretraining study: made-up receipts whose figures can be worked out by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict

import pytest

from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.report import pretraining_compare as compare
from finlora.report import pretraining_sizes as sizes
from finlora.report.pretraining import FILES, is_pretraining, report
from finlora.report.pretraining_claim import MARGIN, judged, levels, signed
from finlora.report.pretraining_data import load

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


def write(folder, *, seeds=(0, 1, 2), only=CONFIGS, losses=None, leave_out=(), data="x", speed=SPEED):
    """A study's folder. losses: {(size, arm): difference to dense, or one for each seed}; leave_out: (size, arm, seed)."""
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
                (folder / "runs" / name).mkdir(parents=True)
                (folder / "runs" / name / "receipt.json").write_text(json.dumps(sheet))
                runs.append({"keys": {"arm": arm, "size": size, "run.seed": seed, "train.lr": 0.003}, "run": name})
    chosen = {f"arm {arm}, size {size}": {"value": 0.003, "loss": {"0.001": 6.0, "0.003": 5.9, "0.01": None}, "at_edge": arm == "fast"} for arm in SPEED for size in only}
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
    slow = row(said, "wall", "s", "slow")
    assert slow["difference"] is None and slow["dense"] is None, "800,000 tokens are beyond the longest budget: nothing is extrapolated"
    assert slow["why"] == "dense would need 800k tokens, it has 120k to 600k"


def test_equal_memory_is_a_line_over_sizes(said):
    said, _ = said
    arms = {(a["size"], a["arm"]): a for a in said["arms"]}
    small = row(said, "memory", "s", "slow")
    assert small["difference"] is None and "parameters" in small["why"]
    for size in "ml":
        params = arms[size, "slow"]["params"]
        own, there = dense_loss(size, TOKENS), 6.0 - 0.3 * math.log2(params / 1e6)
        assert row(said, "memory", size, "slow")["difference"]["value"] == pytest.approx(own - there)
        assert arms[size, "slow"]["state_bytes"] == 16 * params


def test_the_trend_is_by_doublings(said):
    said, _ = said
    widths = {s["size"]: s["non_embedding"] for s in said["sizes"]}
    assert widths["s"] == 544_608 - (VOCAB + 128) * 96
    xs, ys = [math.log2(widths[s]) for s in "sml" for _ in range(3)], [d for s in "sml" for d in LOSSES[s, "fast"]]
    found = {t["arm"]: t["slope"] for t in said["trend"]}
    assert found["fast"]["value"] == pytest.approx(compare.line(xs, ys)["value"]) and found["fast"]["low"] > 0
    assert found["slow"]["value"] == pytest.approx(0, abs=1e-9) and found["slow"]["low"] < 0 < found["slow"]["high"]


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


def test_the_verdicts_follow_the_rule(said):
    said, _ = said
    found = {(v["size"], v["arm"]): v for v in said["claim"]}
    assert len(found) == 6 and all(v["verdict"] == "contradicted" for v in found.values())
    assert found["s", "fast"]["loss"] == "a loss" and found["s", "fast"]["speed"] == "at least 1.3x"
    assert found["s", "slow"]["loss"] == "open" and found["s", "slow"]["speed"] == "below 1.3x"
    text = "\n".join(said["conclusion"])
    assert "Of 6 arms and sizes that are 2.64x smaller in their linears it holds in 0, is contradicted in 6 (a loss in 3, less than 1.3x the speed in 3), and is open in 0." in text
    assert "+0.100 [+0.075, +0.125] nats a token at equal tokens: a loss" in text and "1.50x [1.50, 1.50] the speed of dense" in text
    assert "At equal wall time, of 6 arms and sizes 3 could be measured: 0 have a lower loss than dense, 2 a higher one, and 1 cannot be told from it." in text
    assert "grows for 1 arms, shrinks for 0, and shows no trend for 1" in text
    assert any("at the edge" in note for note in said["notes"]) and any("3 seeds at most" in note for note in said["notes"])


@pytest.mark.parametrize(
    ("difference", "ratio", "verdict"),
    [
        ((-0.02, MARGIN), (1.3, 1.5), "holds"), ((-0.3, -0.2), (1.3, 1.5), "holds"), ((-0.02, 2 * MARGIN), (1.3, 1.5), "open"), ((-0.02, 0.0), (1.2, 1.5), "open"),
        ((0.001, 0.002), (1.3, 1.5), "contradicted"), ((-0.02, 0.0), (1.1, 1.29), "contradicted"), ((None, None), (1.3, 1.5), "open"), ((None, None), (None, None), "open"),
    ],
)  # fmt: skip
def test_each_verdict(difference, ratio, verdict):
    like = {"size": "s", "arm": "a"}
    for smaller, many in ((2.64, 1), (2.6, 1), (2.3, 0), (4.0, 0)):
        told = {
            "arms": [{**like, "compared": True, "smaller_linears": smaller}], "speeds": [{**like, "ratio": {"low": ratio[0], "high": ratio[1]}}],
            "comparisons": {"tokens": [{**like, "difference": {"low": difference[0], "high": difference[1]}}]},
        }  # fmt: skip
        assert [v["verdict"] for v in judged(told)] == [verdict] * many


def test_arms_of_about_one_compression_stand_together():
    arms = [{"structured": True, "smaller_linears": v} for v in (2.71, 1.5, 4.1, 1.52, 2.64, 4.0, 2.6)] + [{"structured": False, "smaller_linears": 1.0}]
    assert {k: [a["smaller_linears"] for a in rows] for k, rows in levels(arms).items()} == {"1.5x": [1.5, 1.52], "2.6x": [2.6, 2.64, 2.71], "4x": [4.0, 4.1]}


def test_the_files_say_the_same_and_name_no_folder(said):
    said, out = said
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    texts = {name: (out / name).read_text(encoding="utf-8") for name in FILES}
    assert json.loads(texts["report.json"])["conclusion"] == said["conclusion"]
    lines = list(csv.DictReader(texts["runs.csv"].splitlines()))
    assert len(lines) == 45 and float(lines[0]["nats_per_token"]) == pytest.approx(dense_loss("s", TOKENS)) and lines[0]["arm"] == "dense"
    for text in texts.values():
        assert "/some/where" not in text and "/a/tokenizer" not in text
    assert said["conclusion"][0] in texts["report.md"] and said["conclusion"][0] in texts["report.html"]
    assert texts["report.html"].count("<svg") >= 3 + 1 + 3 and "http" not in re.sub(r'<meta http-equiv="[^>]*>', "", texts["report.html"])
    for title in ("At equal tokens", "At equal training FLOPs", "At equal wall time", "At equal memory of training", "Trend over size", "GPT-2 at 2.64x", "Search of train.lr"):
        assert f"## {title}\n" in texts["report.md"] and title in texts["report.html"]
    assert all(line.count("|") >= 4 for line in texts["report.md"].splitlines() if line.startswith("|"))


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
    with pytest.raises(FinloraError, match="fast"):
        load(folder, "fast")


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
