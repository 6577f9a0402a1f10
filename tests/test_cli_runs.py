"""The commands from end to end on a toy model: tune, grade, write, report, pretrain; a command given twice does no harm."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import json

import pytest
from test_bad_input import disk, home, toy  # noqa: F401  (fixtures)

from finlora import memory
from finlora import model as models
from finlora.cli import main
from finlora.spec import digest, load_spec


@pytest.fixture
def tuned(home, capsys):
    """A folder in which `finlora finetune run.toml` has run."""
    assert main(["finetune", "run.toml"]) == 0
    return home, capsys.readouterr()


def test_finetune_writes_what_it_says(tuned):
    home, said = tuned
    receipt = json.loads((home / "out" / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["kind"] == "finetune" and receipt["results"]["fpb"]["n"] == 3 and receipt["train"]["steps"] == 2
    assert digest(load_spec(home / "out")) == digest(load_spec(home / "run.toml"))
    assert (home / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert "fpb accuracy" in said.out and "trained: 2 steps, loss " in said.out
    assert said.out.rstrip().endswith("receipt: out/receipt.json")
    assert "train 2/2" in said.err and "grade fpb" in said.err


def test_finetune_twice_is_finetune_once(tuned, capsys):
    home, said = tuned
    before = disk(home)
    assert main(["finetune", "run.toml"]) == 0
    again = capsys.readouterr()
    assert "finished already" in again.err and again.out == said.out
    assert disk(home) == before
    assert main(["finetune", "out"]) == 0  # the folder of a run names its spec


def test_overwrite_starts_afresh(tuned, capsys):
    home, _ = tuned
    assert main(["finetune", "run.toml", "--set", "train.steps=1"]) == 2
    assert main(["finetune", "run.toml", "--set", "train.steps=1", "--overwrite"]) == 0
    assert json.loads((home / "out" / "receipt.json").read_text(encoding="utf-8"))["train"]["steps"] == 1


def test_flags_win_over_the_file(home, capsys):
    assert (
        main(
            [
                "finetune",
                "run.toml",
                "--set",
                "method.rank=2",
                "--set",
                "train.steps=1",
                "--set",
                "codec.kind=nf4",
                "--out",
                "other",
            ]
        )
        == 0
    )
    spec = load_spec(home / "other")
    assert (spec.method.options["rank"], spec.train.steps, spec.codec.kind, spec.run.out) == (2, 1, "nf4", "other")
    assert not (home / "out").exists()


def test_evaluate_base_and_adapter_then_report(tuned, capsys):
    home, _ = tuned
    common = ["evaluate", "-m", "toy", "-t", "fpb", "--data", "data", "--limit", "4", "--way", "choose"]
    assert main([*common, "-o", "base"]) == 0
    assert main([*common, "-a", "out/adapter", "-o", "graded", "--codec", "int8"]) == 0
    lines = (home / "graded" / "records" / "fpb.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and set(json.loads(lines[0])["scores"]) == {"negative", "neutral", "positive"}
    assert json.loads((home / "graded" / "receipt.json").read_text(encoding="utf-8"))["codec"] == "int8"
    capsys.readouterr()
    assert main(["report", "base", "graded", "out", "-o", "page"]) == 0
    said = capsys.readouterr()
    assert said.out.rstrip().endswith("report: page/index.html") and (home / "page" / "index.html").is_file()
    assert all(name in said.out for name in ("base", "graded", "out", "majority floor"))


def test_evaluate_without_a_folder_finds_one_of_its_own(home, capsys):
    common = ["evaluate", "-m", "toy", "-t", "fpb", "--data", "data", "--way", "choose"]
    assert main([*common, "-n", "2"]) == 0
    assert main([*common, "-n", "3"]) == 0
    assert main([*common, "-n", "3"]) == 0
    assert len(list((home / "runs").glob("evaluate-*/receipt.json"))) == 2


def test_generate_says_the_same_twice(home, capsys, monkeypatch):
    before = disk(home)
    assert main(["generate", "Net sales rose", "-m", "toy", "--max-new", "5"]) == 0
    first = capsys.readouterr().out
    assert main(["generate", "Net sales rose", "-m", "toy", "--max-new", "5"]) == 0
    assert capsys.readouterr().out == first != ""
    draws = []
    for seed in ("1", "1", "2"):
        assert (
            main(["generate", "Net sales rose", "-m", "toy", "--max-new", "5", "--temperature", "1", "--seed", seed])
            == 0
        )
        draws.append(capsys.readouterr().out)
    assert draws[0] == draws[1] != draws[2]
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("Net sales rose"))
    assert main(["generate", "-", "-m", "toy", "--max-new", "5"]) == 0
    assert capsys.readouterr().out == first
    assert disk(home) == before


def test_pretrain_makes_a_model_that_opens(home, capsys):
    (home / "text.txt").write_text(
        "Net sales rose by 12 % to EUR 3.4 mn. Profit fell as costs went up. " * 40, encoding="utf-8"
    )
    (home / "pre.toml").write_text(
        '[run]\nout = "pre"\ndevice = "cpu"\n[model]\nvocab_size = 270\n'
        'config = {family = "llama", hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64}\n'
        '[data]\ntext = ["text.txt"]\nrow_tokens = 32\nvalidation = 0.0\n[train]\nsteps = 2\nbatch = 4\n',
        encoding="utf-8",
    )
    assert main(["check", "pre.toml"]) == 0
    assert main(["pretrain", "pre.toml"]) == 0
    assert "trained: 2 steps" in capsys.readouterr().out
    receipt = json.loads((home / "pre" / "receipt.json").read_text(encoding="utf-8"))
    rows, tokens, width = receipt["spec"]["train"]["micro_rows"], 32, 16
    assert receipt["train"]["activation_bytes"] == memory.activation_bytes(models.open_model("pre/model", method="full"), (rows, tokens)) > 4 * rows * tokens * width
    assert main(["generate", "Net", "-m", "pre/model", "--max-new", "2"]) == 0


def test_what_a_refused_run_left_is_in_nobodys_way(home, capsys):
    """Texts are read after the folder is begun; what they forbid must be mendable in the same folder, and with another tokenizer."""
    (home / "text.txt").write_text("Net sales rose by 12 %. " * 40, encoding="utf-8")
    (home / "pre.toml").write_text(
        '[run]\nout = "pre"\ndevice = "cpu"\n[model]\nvocab_size = 6000\nconfig = {family = "gpt2", n_embd = 16, n_layer = 1, n_head = 2, n_positions = 64}\n'
        '[data]\ntext = ["text.txt"]\nrow_tokens = 32\nvalidation = 0.0\n[train]\nsteps = 1\nbatch = 2\n',
        encoding="utf-8",
    )
    assert main(["pretrain", "pre.toml"]) == 2 and (home / "pre" / "spec.toml").exists()
    capsys.readouterr()
    assert main(["pretrain", "pre.toml", "--set", "model.vocab_size=262"]) == 0
    assert json.loads((home / "pre" / "receipt.json").read_text(encoding="utf-8"))["spec"]["model"]["vocab_size"] == 262
    assert main(["pretrain", "pre.toml", "--set", "model.vocab_size=261"]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_an_adapter_is_graded_over_the_codec_it_was_trained_over(home, capsys):
    """Unless told otherwise: the same weights, so the same scores as at the end of training."""
    assert main(["finetune", "run.toml", "--set", "codec.kind=nf4", "--out", "q"]) == 0
    common = ["evaluate", "-m", "toy", "-a", "q/adapter", "-t", "fpb", "--data", "data", "--way", "choose", "--limit", "3"]
    assert main([*common, "-o", "kept"]) == 0
    assert main([*common, "-o", "told", "--codec", "none"]) == 0
    codec = {name: json.loads((home / name / "receipt.json").read_text(encoding="utf-8"))["codec"] for name in ("q", "kept", "told")}
    assert codec == {"q": "nf4", "kept": "nf4", "told": "none"}
    scores = {
        name: [json.loads(line)["scores"] for line in (home / name / "records" / "fpb.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in codec
    }
    assert scores["kept"] == scores["q"] != scores["told"]


def test_a_tuner_of_peft_runs_as_a_baseline(home, capsys):
    pytest.importorskip("peft", reason="peft is not installed")
    assert main(["finetune", "run.toml", "--set", "method.kind=peft:loha", "--set", "method.r=2"]) == 0
    receipt = json.loads((home / "out" / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["method"] == "peft:loha" and receipt["train"]["loss_last"] > 0 and receipt["results"]["fpb"]["n"] == 3
    config = json.loads((home / "out" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LOHA" and config["r"] == 2
    capsys.readouterr()
    assert main(["finetune", "run.toml", "--set", "method.kind=peft:loha", "--set", "codec.kind=nf4", "-o", "b"]) == 2
    assert "lossless" in capsys.readouterr().err
    assert main(["finetune", "run.toml", "--set", "method.kind=peft:lohha", "-o", "b"]) == 2
    assert "did you mean `peft:loha`" in capsys.readouterr().err and not (home / "b").exists()


@pytest.mark.parametrize("kind", ["eva", "residual", "lora_ga"])
def test_a_method_that_calibrates_does_so_by_itself(home, capsys, kind):
    assert main(["finetune", "run.toml", "--set", f"method.kind={kind}", "--set", "codec.kind=nf4", "--set", "calibrate.examples=4"]) == 0
    assert "calibrating on 4 training examples" in capsys.readouterr().err
    before = disk(home / "out" / "adapter")
    assert main(["finetune", "run.toml", "--set", f"method.kind={kind}", "--set", "codec.kind=nf4", "--set", "calibrate.examples=4", "--overwrite"]) == 0
    assert disk(home / "out" / "adapter") == before, "the same spec gives the same adapter"


def test_another_optimiser(home, capsys):
    assert main(["finetune", "run.toml", "--set", "optimizer.kind=muon"]) == 0
    adam = disk(home / "out" / "adapter")
    assert main(["finetune", "run.toml", "--overwrite"]) == 0
    assert disk(home / "out" / "adapter") != adam, "[optimizer] has no effect"


def test_an_adapter_over_a_calibrated_codec_is_graded_continued_and_measured(home, capsys):
    """A codec that encodes by calibration gives the same base again, everywhere an adapter is opened."""
    assert main(["finetune", "run.toml", "--set", "codec.kind=nf4_icq", "--set", "codec.criterion=act_mse", "--out", "q"]) == 0
    common = ["evaluate", "-m", "toy", "-a", "q/adapter", "-t", "fpb", "--data", "data", "--way", "choose", "--limit", "3"]
    assert main([*common, "-o", "kept"]) == 0
    q, kept = ((home / name / "records" / "fpb.jsonl").read_text(encoding="utf-8") for name in ("q", "kept"))
    assert [json.loads(line)["scores"] for line in q.splitlines()] == [json.loads(line)["scores"] for line in kept.splitlines()]
    sheets = [json.loads((home / name / "receipt.json").read_text(encoding="utf-8")) for name in ("q", "kept")]
    assert sheets[0]["model"]["trainable"] == sheets[1]["model"]["trainable"]
    capsys.readouterr()
    assert main(["finetune", "run.toml", "--set", "codec.kind=nf4_icq", "--set", "codec.criterion=act_mse", "--set", "model.adapter=q/adapter", "--out", "more"]) == 0
    assert "calibrating" not in capsys.readouterr().err
    assert (home / "more/adapter/calibration.safetensors").read_bytes() == (home / "q/adapter/calibration.safetensors").read_bytes()
    assert main(["fidelity", "q", "-n", "3", "--codec", "nf4"]) == 0
    assert main(["generate", "Net", "-m", "toy", "-a", "q/adapter", "--max-new", "1", "--device", "cpu"]) == 0


def test_the_options_of_a_codec_named_by_a_flag_count(home, capsys):
    assert main(["evaluate", "-m", "toy", "-t", "fpb", "--data", "data", "--limit", "3", "--codec", "int4", "--set", "codec.group=32", "-o", "g"]) == 0
    assert json.loads((home / "g" / "receipt.json").read_text(encoding="utf-8"))["spec"]["codec"] == {"kind": "int4", "group": 32}


@pytest.mark.parametrize("verb", ["finetune", "evaluate"])
def test_the_cache_is_the_spec_s_to_choose(home, capsys, monkeypatch, verb):
    words = ["finetune", "run.toml"] if verb == "finetune" else ["evaluate", "-m", "toy", "-t", "fpb", "--data", "data", "--limit", "3"]
    monkeypatch.setenv("FINLORA_CACHE", str(home / "cache"))
    assert main([*words, "--set", "codec.kind=nf4", "--set", "model.cache=off", "-o", "a"]) == 0
    assert not (home / "cache").exists()
    assert main([*words, "--set", "codec.kind=nf4", "--set", "model.cache=on", "-o", "b"]) == 0
    assert list((home / "cache").rglob("*.safetensors"))
    (home / "file").write_text("x", encoding="utf-8")
    monkeypatch.setenv("FINLORA_CACHE", str(home / "file"))
    capsys.readouterr()
    assert main([*words, "--set", "codec.kind=nf4", "--set", "model.cache=on", "-o", "c"]) == 0
    assert "note: the encoded base is not kept for the next run" in capsys.readouterr().err and (home / "file").read_text(encoding="utf-8") == "x"


def test_an_adapter_that_goes_on_is_told_by_its_own_method(home, capsys):
    assert main(["finetune", "run.toml", "--set", "method.kind=dora", "-o", "d"]) == 0
    assert main(["finetune", "run.toml", "--set", "model.adapter=d/adapter", "-o", "e"]) == 0
    assert json.loads((home / "e" / "receipt.json").read_text(encoding="utf-8"))["method"] == "dora"


def test_a_card_does_not_tell_the_fidelity_of_an_earlier_run(tuned, home, capsys):
    (home / "out" / "fidelity.json").write_text(json.dumps({"spec": "of another", "table": [{"state": "merged", "kl": 1.0, "tasks": {}}]}), encoding="utf-8")
    assert main(["export", "peft", "out", "--out", "card"]) == 0
    assert "What each step costs" not in (home / "card" / "README.md").read_text(encoding="utf-8")
    assert main(["finetune", "run.toml", "--overwrite"]) == 0
    assert not (home / "out" / "fidelity.json").exists()
