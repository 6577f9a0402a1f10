"""Fidelity measures what it says: the trained state against itself is nothing, and known damage is found."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from test_bad_input import home, toy  # noqa: F401  (fixtures)

from finlora import fidelity
from finlora.cli import main
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.linear import Store
from finlora.model import hidden, logits
from finlora.registry import names, pick

TUNE = ["finetune", "run.toml", "--set", "run.dtype=float32", "--set", "train.steps=6", "--set", "train.lr=0.05", "--set", "evaluate.limit=0"]


@pytest.fixture
def run(home, capsys):
    """run(method, codec) -> the folder of a finished run."""

    def make(method="lora", codec="nf4"):
        assert main([*TUNE, "--set", f"method.kind={method}", "--set", f"codec.kind={codec}"]) == 0
        capsys.readouterr()
        return home / "out"

    return make


def tokens_of(folder):
    spec, model = fidelity.open_run(folder)
    from finlora.rows import read_examples

    examples = read_examples(pick("task", "fpb"), "test", spec.data.dir)
    return spec, model, [fidelity.whole(e, model, "plain", "refuse") for e in examples]


def test_agreement_by_hand(run):
    folder = run()
    _, model, tokens = tokens_of(folder)
    _, other, _ = tokens_of(folder)
    same = fidelity.agreement(model, other, tokens)
    assert same.kl == pytest.approx(0, abs=1e-12) and same.top1 == 1.0 and same.tokens == sum(len(t) - 1 for t in tokens)
    linear = next(iter(other.linears.values()))
    linear.store = Store(pick("codec", "none"), pick("codec", "none").config(), linear.store.dense() * 1.5, torch.float32)
    found = fidelity.agreement(model, other, tokens)
    kl, top = [], []
    for t in tokens:
        batch = collate([[t]])
        with torch.no_grad():
            p, q = (logits(m, hidden(m, batch))[0, : len(t) - 1].double() for m in (model, other))
        kl.append(F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1))
        top.append(p.argmax(-1) == q.argmax(-1))
    assert found.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4) and found.kl > 1e-3
    assert found.top1 == pytest.approx(float(torch.cat(top).double().mean()))


def test_the_table(run, capsys):
    folder = run("lora", "nf4")
    assert main(["fidelity", str(folder)]) == 0
    said = capsys.readouterr().out
    told = json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))
    rows = {row["state"]: row for row in told["table"]}
    lossy = [n for n in names("codec") if not pick("codec", n).lossless and not pick("codec", n).needs(pick("codec", n).config())]
    assert list(rows) == ["as trained", "merged, stored", "merged, original", *lossy, "exported"]
    assert rows["as trained"]["kl"] == 0 and rows["merged, stored"]["kl"] < 1e-7, "fp32 merging is exact up to rounding"
    assert rows["merged, original"]["kl"] > 100 * rows["merged, stored"]["kl"], "the original weights are not those of nf4"
    assert rows["int2"]["kl"] > rows["int4"]["kl"] > rows["int8"]["kl"] > 0, "fewer bits, further away"
    assert rows["exported"]["kl"] < 1e-6 and rows["exported"]["top1"] == 1.0
    assert all(row["tasks"]["fpb"]["difference"]["low"] <= row["tasks"]["fpb"]["difference"]["high"] for row in told["table"][1:])
    for state in rows:
        assert f"| {state} |" in said


@pytest.mark.parametrize("method", ["pissa", "dora", "full"])
def test_methods_that_are_no_plain_lora(run, method, capsys):
    folder = run(method, "none")
    assert main(["fidelity", str(folder), "--codec", "int8"]) == 0
    rows = {row["state"]: row for row in json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))["table"]}
    assert rows["merged, stored"]["kl"] < 1e-6 and rows["exported"]["kl"] < 1e-6 and rows["int8"]["kl"] > 0
    assert ("merged, original" in rows) == (method != "full")
    if method != "full":
        assert rows["merged, original"]["kl"] < 1e-6, "over a lossless base the original weights are the stored ones"


def test_a_step_that_costs_is_warned_of(run, monkeypatch, capsys):
    folder = run("lora", "none")
    real = fidelity.merged
    monkeypatch.setattr(fidelity, "merged", lambda trained, name: -3 * real(trained, name))
    spec, model, _ = tokens_of(folder)
    from finlora import evaluate

    # the trained state answers all, the broken ones nothing: what is compared is whether that is told
    broken = []

    def graded(model, task, examples, **how):
        from finlora.score import Record

        broken.append(model)
        right = 1.0 if len(broken) == 1 else 0.0
        return [Record(e.id, e.cluster, "", e.gold, None, e.gold if right else None, None, None, right, "choose") for e in examples], {}

    monkeypatch.setattr(evaluate, "evaluate_task", graded)
    said = fidelity.run(folder, codecs=["int8"])
    assert all("fpb falls by 100.0 points" in row["warning"] for row in said["table"][1:]) and not said["table"][0]["warning"]
    assert "warning: int8: fpb falls" in fidelity.markdown(said)


def test_what_is_no_run_is_refused(home, run):
    with pytest.raises(FinloraError, match="not the folder of a finished run"):
        fidelity.run(home / "data")
    folder = run()
    with pytest.raises(FinloraError, match="no codec named"):
        fidelity.run(folder, codecs=["nf5"])
    shutil.rmtree(folder / "adapter")
    with pytest.raises(FinloraError, match="neither an adapter nor a model"):
        fidelity.run(folder)
