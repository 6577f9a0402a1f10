"""kill -9 at random moments: restarted until it ends, a run is bitwise the one that nobody disturbed.

This file is also the program that is killed: `python test_kill.py FOLDER` makes the toy run in FOLDER. The undisturbed run
is made in the test's own process, so the test also holds that two processes compute the same numbers.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

STEPS = 40


def toy_run(folder: Path, ready=lambda: None):
    """Forty steps of LoRA with dropout over nf4, a checkpoint every third, a look at held-out examples every tenth."""
    from conftest import SHAPES, new_tokenizer

    from finlora.methods.lora import LoRA
    from finlora.model import new_model, rewire
    from finlora.spec import Train
    from finlora.text import Example, render
    from finlora.train import fit

    tokenizer = new_tokenizer()
    model = new_model({"family": "llama", **SHAPES["llama"]}, tokenizer, 0, dtype="float32", device="cpu")
    rewire(model, codec="nf4", method="lora", method_config=LoRA(rank=4, dropout=0.1), seed=1)
    words = ("rose", "fell", "was unchanged")
    tokens = [render(Example(str(k), (("user", f"Net sales {words[k % 3]} by {k} %. Answer: "),), "", words[k % 3]), tokenizer, True) for k in range(30)]
    settings = Train(steps=STEPS, batch=4, lr=5e-3, checkpoint_every=3, validate_every=10, keep=2)
    ready()
    told = fit(model, tokens[:24], settings, row_tokens=64, seed=1, folder=folder, validation=tokens[24:])
    return {name: p.detach() for name, p in model.trainable().items()}, told


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    toy_run(where, ready=lambda: print("ready", flush=True))
    sys.exit(0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return toy_run(folder)


def killed_run(folder: Path, times: int, rng: random.Random, seconds: float) -> int:
    """Start the run `times` times and kill it -9 after a random part of `seconds`; how many were killed before their end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, env=env, text=True)
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        killed += process.wait() == -9
        process.stdout.close()
    return killed


def check(folder: Path, times: int, seed: int, undisturbed) -> None:
    wanted, told = undisturbed
    # A third of an undisturbed run's length at most, so that most kills find the run unfinished whatever the load.
    killed = killed_run(folder, times, random.Random(seed), told["seconds"] / 3)
    assert killed
    final, again = toy_run(folder)
    assert final.keys() == wanted.keys() and all(torch.equal(t, wanted[name]) for name, t in final.items())
    assert again["val"] == told["val"] and again["curve"] == told["curve"] and again["steps"] == STEPS
    left = [p.name for p in (folder / "checkpoints").iterdir() if not p.name.startswith("step-")]
    assert not left, left


def test_killed_three_times(undisturbed, tmp_path):
    check(tmp_path, 3, 0, undisturbed)


@pytest.mark.slow
def test_killed_twenty_times(undisturbed, tmp_path):
    check(tmp_path, 20, 1, undisturbed)
