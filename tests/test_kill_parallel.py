"""kill -9 of any of several processes, at random moments: torchrun starts all again, and the run ends with the numbers of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kill import prepare
from test_parallel import alive, port

TIMES = 10

SPEC = """
[run]
device = "cpu"
dtype = "float32"
seed = 1
[model]
tokenizer = "{place}/model"
config = {{ family = "gpt2", hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 4, max_position_embeddings = 32, attn_pdrop = 0.0, resid_pdrop = 0.0, embd_pdrop = 0.0 }}
[structure]
kind = "lowrank"
keep = 0.5
refactor = 7
rewarm = 2
frobenius = 0.01
[data]
text = ["{place}/notes.jsonl"]
shards = "{place}/shards"
row_tokens = 32
validation = 0.1
[train]
steps = {steps}
batch = 4
lr = 5e-3
checkpoint_every = 3
validate_every = 10
"""


def workers(out: Path) -> list[int]:
    """The processes that torchrun started for this folder, without torchrun itself."""
    found = []
    for pid in alive(out):
        try:
            words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"torch.distributed.run" not in words:
            found.append(pid)
    return found


def reached(out: Path) -> int:
    """The last step that the run's log tells of."""
    try:
        lines = (out / "log.jsonl").read_text().splitlines()
    except OSError:
        return 0
    steps = [0]
    for line in lines:
        try:
            steps.append(json.loads(line).get("step") or 0)
        except ValueError:  # being written
            continue
    return max(steps)


class Run:
    """A pretraining run of two processes under torchrun."""

    def __init__(self, place: Path, name: str, spread: str):
        self.place, self.out, self.log = place, place / name, place / f"{name}.log"
        self.command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port()), "--max-restarts", str(TIMES)]
        self.command += ["-m", "finlora", "pretrain", str(place / "spec.toml"), "-o", str(self.out), "--set", f"parallel.{spread}"]

    def __call__(self, during: Callable[[subprocess.Popen], Any]) -> Any:
        """Run it to its end; what `during`, called beside it, returns."""
        with self.log.open("w") as log:
            process = subprocess.Popen(self.command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
            try:
                value = during(process)
                code = process.wait(timeout=300)
                assert alive(self.out) == [], "a process was left behind"
            finally:
                for left in alive(self.out):
                    os.kill(left, signal.SIGKILL)
                process.wait()
        assert code == 0, self.log.read_text()[-2000:]
        return value

    def receipt(self) -> dict[str, Any]:
        return json.loads((self.out / "receipt.json").read_text())["train"]

    def timed(self, process: subprocess.Popen) -> tuple[float, float]:
        """Seconds until the first step, and from there to the end."""
        began = time.monotonic()
        while not reached(self.out) and process.poll() is None:
            time.sleep(0.02)
        first = time.monotonic()
        process.wait(timeout=300)
        return first - began, time.monotonic() - first

    def killed(self, process: subprocess.Popen, rng: random.Random, low: float, high: float) -> list[int]:
        """Kill one of the two processes -9, so many seconds after both stand, and again; the step that the log was at each time."""
        at: list[int] = []
        before: set[int] = set()
        while len(at) < TIMES and process.poll() is None:
            now = workers(self.out)
            if len(now) < 2 or before & set(now):
                time.sleep(0.02)
                continue
            time.sleep(rng.uniform(low, high))
            step = reached(self.out)
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(now), signal.SIGKILL)
                at.append(step)
            before = set(now)
        return at


@pytest.mark.slow
@pytest.mark.parametrize("spread, steps", [("pipeline=2", 600), ("data=fsdp", 200)], ids=["pipeline", "fsdp"])
def test_any_process_killed_ten_times(tmp_path, spread, steps):
    """Some of the kills come while the processes start, the others during training; the rounding of one spread is always the same, so its end is bitwise."""
    place = prepare(tmp_path)
    (place / "spec.toml").write_text(SPEC.format(place=place, steps=steps))
    wanted, run = Run(place, "undisturbed", spread), Run(place, "killed", spread)
    start, rest = wanted(wanted.timed)
    killed = run(lambda process: run.killed(process, random.Random(steps), start / 2, start + rest / 10))
    print(spread, start, rest, killed)
    assert len(killed) == TIMES and len(set(killed)) > 3, killed
    told, wanted_ = run.receipt(), wanted.receipt()
    for key in ("curve", "val", "steps", "tokens"):
        assert told[key] == wanted_[key], key
    for name in ("model/structured.safetensors", "model/structure.json"):
        assert (run.out / name).read_bytes() == (wanted.out / name).read_bytes(), name
