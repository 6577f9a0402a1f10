"""A run's folder: who may work in it, and what a restart of torchrun finds there."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from finlora import receipt, runs
from finlora.errors import FinloraError
from finlora.scratch import words
from finlora.spec import Data, Run, Spec


def spec(folder: Path, **more) -> Spec:
    return Spec(run=Run(out=str(folder), **more))


def hold(folder: str, ready, go) -> None:
    with runs.begun(spec(Path(folder))):
        ready.set()
        go.wait(30)


def test_one_process_works_in_a_folder_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "run"), ready, go))
    other.start()
    assert ready.wait(30)
    with pytest.raises(FinloraError, match="another process is at work in"), runs.begun(spec(tmp_path / "run", overwrite=True)):
        pass
    assert (tmp_path / "run" / "spec.toml").exists(), "nothing was overwritten"
    go.set()
    other.join()
    with runs.begun(spec(tmp_path / "run")) as (folder, finished):
        assert folder == tmp_path / "run" and finished is None


def test_what_torchrun_starts_again_does_not_overwrite_itself(tmp_path, monkeypatch):
    asked = spec(tmp_path, overwrite=True)
    with runs.begun(asked):
        (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with runs.begun(asked):
        assert (tmp_path / "checkpoints" / "step-00000001").exists()
    with runs.begun(replace(asked, run=replace(asked.run, seed=7))):
        assert not (tmp_path / "checkpoints").exists(), "that is another run"
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with runs.begun(asked):
        assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_on_other_shards_is_no_answer(tmp_path, raw_shards):
    asked = Spec(run=Run(out="runs/x"), data=Data(text=[], shards=str(raw_shards), row_tokens=16))
    sheet = {"data": [{"sha256": words.corpus(asked, None).told[0]["sha256"]}]}
    words.check_finished(asked, sheet)
    with pytest.raises(FinloraError, match="a run on other shards than"):
        words.check_finished(asked, {"data": [{"sha256": "0" * 64}]})


@pytest.fixture
def raw_shards(tmp_path):
    from conftest import new_tokenizer

    from finlora.shards import tokenise

    (tmp_path / "a.txt").write_text("Sales rose. " * 50, encoding="utf-8")
    tokenise([str(tmp_path / "a.txt")], new_tokenizer(), tmp_path / "shards", validation=0.0)
    return tmp_path / "shards"


def test_the_text_told_is_the_text_taken(tmp_path):
    from conftest import new_tokenizer

    for k in range(4):
        (tmp_path / f"{k}.txt").write_text(f"Sales rose by {k} percent. " * 20, encoding="utf-8")
    whole, some = (words.corpus(Spec(data=Data(text=[str(tmp_path)], row_tokens=16, max_tokens=most, validation=0.0)), new_tokenizer()) for most in (0, 30))
    assert (whole.told[0]["rows"], some.told[0]["rows"]) == (4, 1) and some.told[0]["bytes"] == {"0": (tmp_path / "0.txt").stat().st_size}
    assert receipt.plain(some.told)[0]["tokens"] == some.predictions < whole.predictions
