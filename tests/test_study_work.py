"""A study's runs in processes: within a budget of memory, through the death of any of them, by Slurm's array and by Ray."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_bad_input import disk, home, toy  # noqa: F401  (fixtures)
from test_study import STUDY

from finlora import study
from finlora.cli import main
from finlora.cli.study import size
from finlora.errors import FinloraError
from finlora.study import guess, work

SMALL = STUDY.replace('"lora", "dora", "full"', '"lora"').replace('["none", "nf4"]', '["none"]')


@dataclass(frozen=True)
class Nap:
    """A job that only sleeps: as much of a Job as the workers look at."""

    name: str
    how: str = "sleep"
    seconds: float = 0.3
    until: str = ""  # the file of a job for whose beginning this one waits

    @property
    def folder(self):
        return Path(self.name)


def nap(pipe, threads):
    """A worker without torch."""
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        if job.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.time()
        Path(job.name).touch()
        time.sleep(job.seconds)
        while job.until and not Path(job.until).exists() and time.time() < began + 60:
            time.sleep(0.01)
        pipe.send({"run": job.name, "began": began, "ended": time.time(), "pid": os.getpid(), "threads": threads})


def done(jobs, many, budget, needs):
    found = dict(work.local(jobs, many, budget, lambda job: needs.get(job.name, 0) * 10**9, nap))
    return {jobs[place].name: outcome for place, outcome in found.items()}


def together(a, b):
    return a["began"] < b["ended"] and b["began"] < a["ended"]


def test_runs_are_together_only_where_their_peaks_fit(tmp_path, monkeypatch):
    # 10^9 bytes are far above what a napping process holds, so only the guesses decide
    monkeypatch.chdir(tmp_path)
    jobs = [Nap("a", until="c"), Nap("b"), Nap("c"), Nap("d")]
    found = done(jobs, 4, 10e9, {"a": 6, "b": 6, "c": 3, "d": 20})
    assert not together(found["a"], found["b"]) and together(found["a"], found["c"]), "c fits beside a, b does not"
    assert "needs about 20,000 MB, more than --memory 10,000 MB" in found["d"]["error"]


def test_what_is_not_known_runs_alone_and_corrects_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needs: dict[str, int] = {}
    jobs = [Nap("a"), Nap("b", until="c"), Nap("c")]
    found = {}
    for place, outcome in work.local(jobs, 3, 10e9, lambda job: needs.get(job.name, 0) * 10**9, nap):
        found[jobs[place].name] = outcome
        needs.update({"b": 5, "c": 5})  # a has told what it needed
    assert not together(found["a"], found["b"]) and not together(found["a"], found["c"]) and together(found["b"], found["c"])


def test_a_worker_that_dies_takes_only_its_own_run_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = done([Nap("a", seconds=1.0), Nap("b", "die"), Nap("c"), Nap("d")], 2, 0, {})
    assert "ended by SIGKILL; memory may have run out" in found["b"]["error"]
    assert all("error" not in found[name] for name in "acd") and found["a"]["pid"] in {found[n]["pid"] for n in "acd"}


def test_sizes_are_read():
    assert [size(t) for t in ("12GB", "800 MiB", "1e9", "2g", "1.5tb")] == [12e9, 800 * 2**20, 1e9, 2e9, 1.5e12]
    for text in ("12 parsecs", "", "GB", "3", "1..5GB", "-4GB"):
        with pytest.raises(FinloraError, match="not a size of memory"):
            size(text)


def test_costs_are_guessed_from_the_nearest_runs(home):
    (home / "study.toml").write_text(STUDY, encoding="utf-8")
    little = study.load_study(home / "study.toml")
    at = {(cell.keys["method.kind"], cell.keys["codec.kind"], cell.keys["run.seed"]): study.drive.job(little, home / "runs", "runs", {**cell.keys, "train.lr": 1e-3}) for cell in study.cells(little)}
    costs = guess.Costs("train.lr")
    assert costs.guess(at["lora", "none", 0]) is None and costs.memory(at["lora", "none", 0]) == 0
    costs.add(at["lora", "none", 0], 10.0, 500)
    costs.add(at["lora", "nf4", 0], 30.0, 900)
    same = costs.guess(at["lora", "none", 1])
    assert (same.level, same.peak_bytes) == (0, 500) and same.seconds == pytest.approx(10.0)
    longer = study.load_study(home / "study.toml", ["train.steps=4"])
    other = costs.guess(study.drive.job(longer, home / "runs", "runs", {"method.kind": "lora", "codec.kind": "none", "run.seed": 0, "train.lr": 1e-2}))
    assert other.level == 1 and 10.0 < other.seconds < 20.0, "training doubles, grading does not"
    assert (costs.guess(at["dora", "none", 0]).level, costs.memory(at["dora", "none", 0])) == (3, 900), "of an unknown method the largest peak"
    (home / "runs").mkdir()
    (home / "runs" / "costs.jsonl").write_text('{"run": "x", "sec\n[1]\n\n{"no": "run"}\n', encoding="utf-8")
    assert guess.Costs().read(home / "runs") == 0, "lines that a crash cut short are no costs"


def start(folder: Path, *more: str) -> subprocess.Popen:
    """A study in a process group of its own."""
    command = [sys.executable, "-m", "finlora", "study", "run", "study.toml", "-o", "runs", *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """A test that fails must not leave a study behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def receipts(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*/receipt.json")}


def killed(home: Path, times: int, seed: int) -> None:
    """SIGKILL the whole group `times` times at random moments; then finish: nothing that was finished is made again or lost."""
    rng = random.Random(seed)
    (home / "study.toml").write_text(SMALL.replace("steps = 2", "steps = 60\ncheckpoint_every = 10").replace("limit = 0", ""), encoding="utf-8")
    before: dict[str, bytes] = {}
    records: dict[str, bytes] = {}
    hits = 0
    while hits < times:
        process = start(home, "--jobs", "2", "--memory", "20GB")
        began = len(list((home / "runs").glob("*/*/log.jsonl")))
        for _ in range(600):  # until a run has begun or gone on, then a moment longer
            grown = [p for p in (home / "runs").glob("*/*/log.jsonl") if not (p.parent / "receipt.json").exists()]
            if grown and (len(grown) + len(before) > 0 or began) or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2.5))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        hits += 1
        now = receipts(home / "runs")
        assert all(now[name] == text for name, text in before.items()), "a finished run was made again or lost"
        assert all((home / "runs" / name).read_bytes() == text for name, text in records.items())
        before = now
        records = {str(p.relative_to(home / "runs")): p.read_bytes() for name in now for p in (home / "runs" / name).parent.glob("records/*.jsonl")}
    assert start(home).wait() == 0
    assert hits, "it ended before it could be killed"
    now = receipts(home / "runs")
    assert all(now[name] == text for name, text in before.items()) and len(now) == 2 + 2
    said = json.loads((home / "runs" / "study.json").read_text(encoding="utf-8"))
    assert len(said["runs"]) == 2 and not said["failed"]
    for run in said["runs"]:
        lines = [json.loads(line) for line in (home / "runs" / "runs" / run["run"] / "records" / "fpb.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(lines) == len({line["id"] for line in lines}) == 12
        curve = json.loads(now[f"runs/{run['run']}/receipt.json"])["train"]["curve"]
        assert [point[0] for point in curve] == list(range(1, 61)), "every step once"


@pytest.mark.slow
@pytest.mark.parametrize("times, seed", [(1, 0), (10, 1)])
def test_killed_at_random_moments(home, times, seed):
    killed(home, times, seed)


@pytest.mark.slow
@pytest.mark.parametrize("blow", ["SIGINT", "SIGKILL"])
def test_a_stopped_study_leaves_nothing_running_and_goes_on(home, blow):
    (home / "study.toml").write_text(SMALL.replace("steps = 2", "steps = 4000"), encoding="utf-8")
    command = [sys.executable, "-m", "finlora", "study", "run", "study.toml", "-o", "runs"]
    began = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list((home / "runs").glob("search/*/log.jsonl")):
            break
        time.sleep(0.1)
    time.sleep(1)
    group = os.getpgid(began.pid)
    if blow == "SIGINT":
        os.killpg(group, signal.SIGINT)  # as a terminal sends it
        assert began.wait(60) == 130 and "interrupted" in began.stderr.read()
    else:
        began.kill()
        began.wait(60)
    time.sleep(4)
    alive = subprocess.run(["ps", "-o", "args=", "-g", str(group)], capture_output=True, text=True).stdout
    assert "spawn_main" not in alive, alive
    (home / "study.toml").write_text(SMALL.replace("[0, 1]", "[0]").replace("steps = 2", "steps = 40").replace("[1e-3, 1e-2]", "[1e-3]"), encoding="utf-8")
    assert main(["study", "run", "study.toml", "-o", "runs"]) == 0
    assert json.loads((home / "runs" / "study.json").read_text(encoding="utf-8"))["failed"] == []


@pytest.mark.slow
def test_slurm_scripts_are_sound_and_do_the_study(home, capsys, monkeypatch):
    short = SMALL.replace("[1e-3, 1e-2]", "[1e-3]").replace("[0, 1]", "[0]").replace("[grid]", "[study]\nbase = true\n[grid]")
    (home / "study.toml").write_text(short, encoding="utf-8")
    assert main(["study", "run", "study.toml", "-o", "runs", "--launcher", "slurm", "--sbatch=--partition=gpu", "--jobs", "3", "--set", "train.steps=3"]) == 0
    assert "2 cells, then 1: submit them with  bash" in capsys.readouterr().out
    scripts = home / "runs" / "slurm"
    for name in ("submit.sh", "stage.sbatch", "gather.sbatch"):
        subprocess.run(["bash", "-n", scripts / name], check=True)
        assert "#SBATCH --partition=gpu" in (scripts / name).read_text() or name == "submit.sh"
    # a stand-in for sbatch that does at once what the array would do, each task by its script
    (home / "bin").mkdir()
    (home / "bin" / "finlora").write_text(f'#!/bin/bash\nexec {sys.executable} -m finlora "$@"\n')
    (home / "bin" / "sbatch").write_text(
        "#!/bin/bash\necho \"$*\" >> ../../sbatch.log\nfor word; do case $word in --array=*) range=${word#--array=}; range=${range%%%*};; esac; done\n"
        'script="${!#}"\nif [ -n "${range:-}" ]; then for at in $(seq ${range%-*} ${range#*-}); do SLURM_ARRAY_TASK_ID=$at bash $script >> ../../tasks.log 2>&1; done\n'
        "else bash $script >> ../../tasks.log 2>&1; fi\necho 17\n"
    )
    for name in ("finlora", "sbatch"):
        (home / "bin" / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", scripts / "submit.sh"], check=True, env=env, cwd="/", stdout=subprocess.DEVNULL)
    log = (home / "sbatch.log").read_text().splitlines()
    assert log == ["--parsable --array=0-1%3 stage.sbatch", "--parsable --dependency=afterany:17 --array=2-2%3 stage.sbatch", "--parsable --dependency=afterany:17 gather.sbatch"]
    said = json.loads((home / "runs" / "study.json").read_text(encoding="utf-8"))
    assert len(said["runs"]) == len(said["base"]) == 1 and not said["failed"], (home / "tasks.log").read_text()
    sheet = json.loads((home / "runs" / "runs" / said["runs"][0]["run"] / "receipt.json").read_text(encoding="utf-8"))
    assert sheet["train"]["steps"] == 3, "overrides reach the cells"
    before = disk(home / "runs")
    assert main(["study", "cell", "runs", "2"]) == 0 and main(["study", "gather", "runs"]) == 0
    assert disk(home / "runs") == before, "a cell that has finished is not done again"
    # the scripts ask for what the finished runs needed
    assert main(["study", "run", "study.toml", "-o", "runs", "--launcher", "slurm", "--set", "train.steps=3"]) == 0
    stage = (scripts / "stage.sbatch").read_text()
    assert re.search(r"#SBATCH --mem=\d+M\n#SBATCH --time=\d+\n", stage)


def test_cells_that_cannot_be_done_are_told(home, capsys):
    (home / "study.toml").write_text(SMALL, encoding="utf-8")
    assert main(["study", "run", "study.toml", "-o", "runs", "--launcher", "slurm"]) == 0
    for words, wanted in (
        (["cell", "runs", "99"], "there is no cell 99"), (["cell", "runs", "2"], "has no finished run"), (["cell", "runs"], "takes a number"),
        (["cell", "data", "0"], "holds no numbered cells"), (["gather", "runs", "1"], "takes no number"), (["run", "study.toml", "--launcher", "pbs"], "pbs"),
        (["run", "study.toml", "--sbatch=--x"], "without --launcher slurm"), (["run", "study.toml", "--launcher", "slurm", "--sbatch", "x"], "no option of sbatch"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["study", *words]) == 2
        assert wanted in capsys.readouterr().err
    assert main(["study", "gather", "runs"]) == 1
    assert json.loads((home / "runs" / "study.json").read_text(encoding="utf-8"))["runs"] == []


@pytest.mark.slow
def test_a_local_ray_cluster_does_the_study(home, capsys):
    pytest.importorskip("ray")
    (home / "study.toml").write_text(SMALL, encoding="utf-8")
    assert main(["study", "run", "study.toml", "-o", "rays", "--launcher", "ray", "--jobs", "2"]) == 0
    assert main(["study", "run", "study.toml", "-o", "here"]) == 0
    a, b = (json.loads((home / name / "study.json").read_text(encoding="utf-8")) for name in ("rays", "here"))
    assert a == b and len(a["runs"]) == 2
    for run in a["runs"]:
        assert [(home / name / "runs" / run["run"] / "records" / "fpb.jsonl").read_bytes() for name in ("rays",)] == [(home / "here" / "runs" / run["run"] / "records" / "fpb.jsonl").read_bytes()]
    before = disk(home / "rays")
    assert main(["study", "run", "study.toml", "-o", "rays", "--launcher", "ray"]) == 0
    assert disk(home / "rays") == before


def test_ray_that_is_missing_is_told(home, capsys, monkeypatch):
    (home / "study.toml").write_text(SMALL, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["study", "run", "study.toml", "-o", "runs", "--launcher", "ray"]) == 2
    assert "needs the package ray (hint: pip install ray)" in capsys.readouterr().err
