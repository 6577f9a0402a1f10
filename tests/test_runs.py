"""A run's folder: who may work in it, and what a restart of torchrun finds there."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from finlora import receipt, runs
from finlora.errors import FinloraError
from finlora.scratch import pretrain, words
from finlora.spec import Data, Evaluate, Model, Run, Spec, spec_from_dict


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


def test_overwriting_removes_nothing_that_no_run_has_made(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    with pytest.raises(FinloraError, match=r"holds files that are not a run's \(`model`\)"), runs.begun(spec(tmp_path, overwrite=True)):
        pass
    assert (tmp_path / "model" / "mine.txt").exists()
    (tmp_path / "model").rename(tmp_path / "notes")
    with runs.begun(spec(tmp_path, overwrite=True)):
        pass
    assert (tmp_path / "notes" / "mine.txt").exists(), "a run goes beside what is not in its way"


def test_a_run_does_not_overwrite_what_it_reads(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "spec.toml").touch()
    for key, name in (("name", "model"), ("tokenizer", "model"), ("adapter", "model/..//model")):
        asked = Spec(model=Model(**{key: str(tmp_path / "run" / name)}), run=Run(out=str(tmp_path / "run"), overwrite=True))
        with pytest.raises(FinloraError, match=f"would remove .*, which model.{key} asks for"), runs.begun(asked):
            pass
    mine = str(tmp_path / "run" / "records" / "mine.toml")
    (tmp_path / "run" / "records").mkdir()
    Path(mine).touch()
    for section, key, value in (
        (Data, "text", [mine]), (Data, "dir", mine), (Data, "shards", mine), (Data, "tasks", ("tone", mine)),
        (Evaluate, "tasks", (mine,)), (Evaluate, "text", ("embedded", mine)), (Evaluate, "encoder", mine),
    ):  # fmt: skip
        part = section.__name__.lower()
        asked = Spec(**{part: section(**{key: value})}, run=Run(out=str(tmp_path / "run"), overwrite=True))
        with pytest.raises(FinloraError, match=f"would remove .*, which {part}.{key} asks for"), runs.begun(asked):
            pass
    assert (tmp_path / "run" / "model").exists()


def test_hidden_files_and_linked_folders_of_the_user_stay(tmp_path):
    (tmp_path / "run" / ".data.part").mkdir(parents=True)
    with pytest.raises(FinloraError, match="holds files that are not a run's"), runs.begun(spec(tmp_path / "run")):
        pass
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "kept").touch()
    with runs.begun(spec(tmp_path / "other")) as (folder, _):
        (folder / "checkpoints").symlink_to(tmp_path / "disk")
    with runs.begun(spec(tmp_path / "other", overwrite=True)) as (folder, _):
        assert not (folder / "checkpoints").is_symlink() and (tmp_path / "disk" / "kept").exists()


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


def test_training_as_it_will_be_kept_runs_whole(tmp_path):
    (tmp_path / "a.txt").write_text("Sales rose by 3 percent. " * 40, encoding="utf-8")
    (tmp_path / "b.txt").write_text("Profit fell by 4 percent. " * 40, encoding="utf-8")
    gpt2 = {"family": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    for codec in ("int8", "nf4"):
        out = tmp_path / codec
        told = pretrain(spec_from_dict({
            "run": {"out": str(out), "device": "cpu", "dtype": "float32"}, "model": {"config": gpt2, "vocab_size": 270},
            "structure": {"kind": "lowrank", "keep": 0.5, "rounded": codec},
            "data": {"text": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], "row_tokens": 16, "validation": 0.0}, "train": {"steps": 2, "batch": 2},
        }))  # fmt: skip
        assert told["train"]["steps"] == 2 and told["train"]["activation_bytes"] is None
        again = pretrain(spec_from_dict({
            "run": {"out": str(tmp_path / f"{codec}-more"), "device": "cpu", "dtype": "float32"}, "model": {"name": str(out / "model")},
            "data": {"text": [str(tmp_path / "a.txt")], "row_tokens": 16, "validation": 0.0}, "train": {"steps": 1, "batch": 2},
        }))  # fmt: skip
        assert again["method"] == "lora" and (tmp_path / f"{codec}-more" / "adapter").is_dir()


def test_the_text_told_is_the_text_taken(tmp_path):
    from conftest import new_tokenizer

    for k in range(4):
        (tmp_path / f"{k}.txt").write_text(f"Sales rose by {k} percent. " * 20, encoding="utf-8")
    whole, some = (words.corpus(Spec(data=Data(text=[str(tmp_path)], row_tokens=16, max_tokens=most, validation=0.0)), new_tokenizer()) for most in (0, 30))
    assert (whole.told[0]["rows"], some.told[0]["rows"]) == (4, 1) and some.told[0]["bytes"] == {"0": (tmp_path / "0.txt").stat().st_size}
    assert receipt.plain(some.told)[0]["tokens"] == some.predictions < whole.predictions


def test_a_tokenizer_is_named_by_the_base_or_by_a_folder_of_the_home(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Sales rose by 3 percent. " * 40, encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    gpt2 = {"family": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    for name, out in (("finlora/base", "first"), ("~/first/model", "second")):
        told = pretrain(spec_from_dict({
            "run": {"out": str(tmp_path / out), "device": "cpu", "dtype": "float32"}, "model": {"config": gpt2, "tokenizer": name},
            "data": {"text": [str(tmp_path / "a.txt")], "row_tokens": 16, "validation": 0.0}, "train": {"steps": 1, "batch": 2},
        }))  # fmt: skip
        assert told["train"]["steps"] == 1 and (tmp_path / out / "model" / "tokenizer.json").is_file()
