"""kill -9 at random moments: restarted until it ends, a fine-tuning is bitwise the one that nobody disturbed.

This file is also the program that is killed: `python test_kill.py FOLDER` runs finlora.finetune on the toy model and data
in FOLDER. The undisturbed run is made in the test's own process, so the test also holds that two processes compute the
same numbers.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    tune(Path(sys.argv[1]), Path(sys.argv[2]), Ready())
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


def kill_it(place: Path, out: Path, times: int, rng: random.Random, seconds: float) -> int:
    """Start the run `times` times and kill it -9 after a random part of `seconds`; how often that was before its end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, __file__, str(place), str(out)], stdout=subprocess.PIPE, env=env, text=True)
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
    assert kill_it(place, out, times, random.Random(seed), seconds / 2)
    receipt = tune(place, out)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "records/fpb.jsonl"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    for key in ("curve", "val", "steps", "tokens", "examples", "loss_first", "loss_last"):
        assert receipt["train"][key] == wanted["train"][key], key
    assert receipt["results"]["fpb"]["metrics"] == wanted["results"]["fpb"]["metrics"]
    left = [str(p.relative_to(out)) for p in out.rglob("*") if p.name.endswith((".part", ".old"))]
    assert not left, left


def test_killed_three_times(place, undisturbed, tmp_path):
    check(3, 0, place, tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_killed_twenty_times(place, undisturbed, tmp_path):
    check(20, 1, place, tmp_path / "run", undisturbed)
