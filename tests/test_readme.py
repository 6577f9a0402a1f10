"""The README's blocks run: what a newcomer pastes must work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from finlora.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The words of every `finlora ...` line in the README's bash blocks, without the program and the comment."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("finlora ")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with the recipes and studies beside it, as after a clone."""
    for folder in ("recipes", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    texts = tmp_path / "my/texts"
    texts.mkdir(parents=True)
    for k in range(8):
        (texts / f"{k}.txt").write_text(" ".join(f"Net sales of segment {k} rose to {k * j} million in quarter {j}." for j in range(60)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_verb_is_shown():
    shown = {words[0] for words in commands()}
    assert {"list", "check", "doctor", "finetune", "evaluate", "report", "generate", "fidelity", "export", "study", "pretrain", "compress"} <= shown


def test_list_and_check_run(here, capsys):
    for words in commands():
        if words[0] in ("list", "check"):
            assert main(words) in (0, None), words
    assert "lora" in capsys.readouterr().out


def test_the_study_that_is_shown_can_be_planned(here, capsys):
    shown = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    (here / "ranks.toml").write_text(re.search(r"```toml\n(.*?)```", shown, re.DOTALL)[1], encoding="utf-8")
    assert main(["study", "plan", "ranks.toml", "--probe", "none"]) == 0
    assert "6 runs to choose train.lr, 12 runs to grade" in capsys.readouterr().out


@pytest.mark.slow
def test_the_blocks_run_in_order(here):
    """All commands but those that name the user's own data, cut to a few steps and examples."""
    for words in commands():
        if "my/folder" in words or words[0] == "list":
            continue
        if words[0] == "finetune":
            words = [*words, "--set", "train.steps=2", "--set", "evaluate.limit=8"]
        if words[0] == "pretrain":
            words = [*words, "--set", "train.steps=2", "--set", "train.compile=false", "--set", "model.vocab_size=400", "--out", "runs/pre"]
        if words[0] == "evaluate":
            words = [*words, "--limit", "8"]
        if words[0] == "fidelity":
            words = [*words, "--limit", "8", "--codec", "int8"]
        assert main(words) in (0, None), words


@pytest.mark.slow
def test_the_library_block_runs(here):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
