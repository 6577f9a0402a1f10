"""kill -9 at random moments: restarted until it ends, a run is bitwise the one that nobody disturbed.

This file is also the program that is killed: `python test_kill.py FOLDER OUT tune|scratch` fine-tunes the toy model in FOLDER, or
trains a low-rank one from scratch on text. The undisturbed run is made in the test's own process, so the test also holds that two processes compute the
same numbers.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from finlora.train import Interrupted

STEPS = 40
WORDS = {"positive": "rose", "negative": "fell", "neutral": "was unchanged"}


def prepare(folder: Path) -> Path:
    """A toy model and a small task on disk."""
    from conftest import SHAPES, new_tokenizer

    from finlora.model import new_model, save

    save(new_model({"family": "llama", **SHAPES["llama"]}, new_tokenizer(), 0, dtype="float32", device="cpu"), folder / "model")
    for split, n in (("train", 40), ("test", 12)):
        rows = [{"sentence": f"Net sales {list(WORDS.values())[k % 3]} by {k} %.", "label": list(WORDS)[k % 3]} for k in range(n)]
        (folder / f"fpb_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"id": k, "source": "notes", "text": " ".join(f"Net sales of unit {k} rose by {j} %." for j in range(k % 7 + 3))} for k in range(60)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


class Ready:
    """Says on stdout that the first stage begins."""

    told = False

    def start(self, *_):
        if not self.told:
            print("ready", flush=True)
        self.told = True

    def step(self, *_, **__):
        pass

    note = done = step


def tune(place: Path, out: Path, progress=None):
    """Forty steps of LoRA with dropout over nf4, a checkpoint every third, a look at held-out examples every tenth."""
    from finlora.spec import spec_from_dict
    from finlora.tune import finetune

    spec = spec_from_dict(
        {
            "run": {"out": str(out), "device": "cpu", "dtype": "float32", "seed": 1},
            "model": {"name": str(place / "model")},
            "codec": {"kind": "nf4"},
            "method": {"kind": "lora", "rank": 4, "dropout": 0.1},
            "data": {"tasks": ["fpb"], "dir": str(place), "row_tokens": 256, "validation": 0.2},
            "train": {"steps": STEPS, "batch": 4, "lr": 5e-3, "checkpoint_every": 3, "validate_every": 10},
            "evaluate": {"max_new": 2},
        }
    )
    return finetune(spec, progress)


def scratch(place: Path, out: Path, progress=None):
    """Forty steps of a guided low-rank model from mapped shards, its factors balanced anew every seventh, decayed by the product's norm."""
    from finlora.scratch import pretrain
    from finlora.spec import spec_from_dict

    llama = {"family": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 32, "attention_dropout": 0.1}  # fmt: skip
    spec = spec_from_dict(
        {
            "run": {"out": str(out), "device": "cpu", "dtype": "float32", "seed": 1},
            "model": {"config": llama, "tokenizer": str(place / "model")},
            "structure": {"kind": "lowrank", "keep": 0.5, "refactor": 7, "rewarm": 2, "frobenius": 0.01, "guided": 0.4},
            "data": {"text": [str(place / "notes.jsonl")], "shards": str(out.parent / f"{out.name}.shards"), "row_tokens": 32, "validation": 0.1},
            "train": {"steps": STEPS, "batch": 4, "lr": 5e-3, "checkpoint_every": 3, "validate_every": 10},
        }
    )
    return pretrain(spec, progress)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"tune": tune, "scratch": scratch}[sys.argv[3]](Path(sys.argv[1]), Path(sys.argv[2]), Ready())
    sys.exit(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def undisturbed(place):
    """(the run's folder, its receipt, seconds from the first step to the end)."""
    began = time.perf_counter()
    receipt = tune(place, place / "undisturbed")
    return place / "undisturbed", receipt, time.perf_counter() - began


@pytest.fixture(scope="module")
def undisturbed_scratch(place):
    began = time.perf_counter()
    receipt = scratch(place, place / "scratch")
    return place / "scratch", receipt, time.perf_counter() - began


def test_a_pretraining_receipt_tells_its_text_its_work_and_what_it_kept(undisturbed_scratch):
    _, receipt, _ = undisturbed_scratch
    told, (train, held) = receipt["train"], receipt["data"]
    assert 0 < told["cpu_seconds"] and told["threads"] >= 1
    assert told["activation_bytes"] is None, "its guide fades"
    assert train["rows"] > held["rows"] > 0 and len(train["sha256"]) == len(held["sha256"]) == 64 and train["sha256"] != held["sha256"]


def kill_it(place: Path, out: Path, times: int, rng: random.Random, seconds: float, verb: str) -> int:
    """Start the run `times` times and kill it -9 after a random part of `seconds`; how often that was before its end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, __file__, str(place), str(out), verb], stdout=subprocess.PIPE, env=env, text=True)
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        if first == "ready":  # a finished run only says so
            time.sleep(rng.uniform(0, seconds))
        process.kill()
        killed += process.wait() == -9
        process.stdout.close()
    return killed


def check(times: int, seed: int, place: Path, out: Path, undisturbed) -> None:
    folder, wanted, seconds = undisturbed
    # Half of an undisturbed run at most, and killed runs get on between kills: most kills find the run unfinished.
    verb = "scratch" if "results" in wanted and not wanted["results"] else "tune"
    assert kill_it(place, out, times, random.Random(seed), seconds / 2, verb)
    receipt = {"tune": tune, "scratch": scratch}[verb](place, out)
    made = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "records/fpb.jsonl")
    for name in made if verb == "tune" else ("model/structured.safetensors", "model/structure.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    for key in ("curve", "val", "steps", "tokens", "examples", "loss_first", "loss_last"):
        assert receipt["train"][key] == wanted["train"][key], key
    assert {task: r["metrics"] for task, r in receipt["results"].items()} == {task: r["metrics"] for task, r in wanted["results"].items()}
    left = [str(p.relative_to(out)) for p in out.rglob("*") if p.name.endswith((".part", ".old"))]
    assert not left, left


class Stops(Ready):
    """Asks the run to stop at a step, as Ctrl-C and a scheduler do."""

    def __init__(self, at: int, by: signal.Signals):
        self.at, self.by = at, by

    def step(self, n: int = 0, *_, **__):
        if n == self.at:
            os.kill(os.getpid(), self.by)


@pytest.mark.parametrize("at, by", [(7, signal.SIGINT), (STEPS, signal.SIGTERM)], ids=["midway", "last"])
def test_stopped_by_a_signal_it_goes_on_to_the_same_end(place, undisturbed, tmp_path, at, by):
    """At the last step too: grading would follow, which whoever asked does not want to wait for."""
    with pytest.raises(Interrupted, match=f"saved at step {at} of {STEPS}"):
        tune(place, tmp_path / "run", Stops(at, by))
    assert not (tmp_path / "run" / "receipt.json").exists()
    receipt = tune(place, tmp_path / "run")
    assert receipt["train"]["curve"] == undisturbed[1]["train"]["curve"]
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (undisturbed[0] / adapter).read_bytes()


def test_killed_three_times(place, undisturbed, tmp_path):
    check(3, 0, place, tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_killed_twenty_times(place, undisturbed, tmp_path):
    check(20, 1, place, tmp_path / "run", undisturbed)


def test_pretraining_killed_twice(place, undisturbed_scratch, tmp_path):
    check(2, 2, place, tmp_path / "run", undisturbed_scratch)


@pytest.mark.slow
def test_pretraining_killed_twenty_times(place, undisturbed_scratch, tmp_path):
    check(20, 3, place, tmp_path / "run", undisturbed_scratch)
