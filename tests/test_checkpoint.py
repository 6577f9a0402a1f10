"""Checkpoints appear whole or not at all, are verified when read, and hold no pickle."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finlora import checkpoint
from finlora.errors import FinloraError

TENSORS = {"trainable": {"a.B": torch.arange(6.0).view(2, 3), "a.A": torch.zeros(0)}, "rng": {"cpu": torch.get_rng_state()}}
META = {"step": 3, "val": [[1, 2.5]], "best": float("inf")}
OTHER = {"trainable": {"a.B": torch.ones(2, 3), "a.A": torch.zeros(0)}}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path / "step-00000003", TENSORS, META)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# -- whole -----------------------------------------------------------------------------------------------------------


def test_what_goes_in_comes_out(saved, tmp_path):
    tensors, meta = checkpoint.load(saved)
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    for group in TENSORS:
        assert tensors[group].keys() == TENSORS[group].keys()
        assert all(torch.equal(t, TENSORS[group][n]) and t.dtype == TENSORS[group][n].dtype for n, t in tensors[group].items())
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def test_a_turned_tensor(tmp_path):
    turned = torch.arange(12.0).view(3, 4).T
    tensors, _ = checkpoint.load(checkpoint.save(tmp_path / "c", {"x": {"W": turned}}, {}))
    assert torch.equal(tensors["x"]["W"], turned)


def test_it_replaces_an_older_one(saved):
    checkpoint.save(saved, OTHER, {"step": 4})
    tensors, meta = checkpoint.load(saved)
    assert meta["step"] == 4 and tensors.keys() == {"trainable"}


# -- or not at all ---------------------------------------------------------------------------------------------------

PLACES = ["save_file", "os.rename", "os.fsync", "second os.rename", "Path.write_text", "Path.mkdir"]


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_leaves_the_old_one(place, saved, tmp_path, monkeypatch):
    before = tree(tmp_path)
    patched = {"os": os, "Path": Path, "second os": os}.get(place.rpartition(".")[0], checkpoint)
    name = place.rpartition(".")[2]
    real, calls = getattr(patched, name), [0]

    def failing(*args, **kwargs):
        calls[0] += 1
        return full() if calls[0] == (2 if "second" in place else 1) else real(*args, **kwargs)

    monkeypatch.setattr(patched, name, failing)
    with pytest.raises(FinloraError, match="cannot write.*step-00000003.*No space left.*free some disk space"):
        checkpoint.save(saved, OTHER, {"step": 4})
    monkeypatch.undo()
    assert calls[0] and tree(tmp_path) == before
    assert checkpoint.latest(tmp_path) == saved


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from finlora import checkpoint
from finlora.errors import FinloraError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"big": {"x": torch.zeros(1_000_000)}}, {})
except FinloraError as error:
    print(str(error)); sys.exit(2)
"""


def test_a_disk_that_is_really_full(saved, tmp_path):
    """The kernel itself refuses the write (a limit on file size), in a process of its own."""
    before = tree(tmp_path)
    out = subprocess.run([sys.executable, "-c", LIMITED, str(saved)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 2 and "cannot write" in out.stdout, out.stdout + out.stderr
    assert len(out.stdout.strip().splitlines()) == 1
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FinloraError, match="cannot write"):
        checkpoint.save(tmp_path / "file" / "step-1", TENSORS, META)
    with pytest.raises(FinloraError, match="exists already"):
        checkpoint.atomic_folder(tmp_path / "file", lambda t: None)
    assert (tmp_path / "file").read_text() == "mine"


def test_our_own_mistakes_pass_through(tmp_path):
    def wrong(_):
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        checkpoint.atomic_folder(tmp_path / "x", wrong)
    assert not list(tmp_path.iterdir())


# -- verified --------------------------------------------------------------------------------------------------------


def alter(folder: Path, how: str) -> None:
    file = folder / ("meta.json" if "meta" in how else "manifest.json" if "manifest" in how else "trainable.safetensors")
    data = bytearray(file.read_bytes())
    if "bit" in how:
        data[-1] ^= 1
    elif "cut" in how:
        data = data[: len(data) // 2]
    elif "empty" in how:
        data = bytearray()
    elif "list" in how:
        data = bytearray(b"[]")
    elif "object" in how:
        data = bytearray(b"{}")
    file.unlink() if "gone" in how else file.write_bytes(data)


HOW = ["bit", "cut", "empty", "gone", "meta bit", "meta cut", "meta gone", "manifest cut", "manifest empty", "manifest gone", "manifest list", "manifest object"]


@pytest.mark.parametrize("how", HOW)
def test_an_altered_one_is_neither_loaded_nor_resumed_from(how, saved, tmp_path):
    older = checkpoint.save(tmp_path / "step-00000002", OTHER, {"step": 2})
    alter(saved, how)
    with pytest.raises(FinloraError, match="step-00000003"):
        checkpoint.load(saved)
    assert checkpoint.latest(tmp_path) == older
    alter(older, how)
    assert checkpoint.latest(tmp_path) is None


def test_latest(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    for step in (9, 10, 100):
        checkpoint.save(tmp_path / f"step-{step:08d}", OTHER, {"step": step})
    (tmp_path / "step-00000200").mkdir()  # a folder that a copy tool had only begun
    (tmp_path / ".step-00000300.abcd.part").mkdir()
    (tmp_path / "step-00000400").write_text("not a folder")
    assert checkpoint.latest(tmp_path).name == "step-00000100"


def test_a_manifest_cannot_name_files_elsewhere(saved, tmp_path):
    save_file({"secret": torch.ones(1)}, tmp_path / "secret.safetensors")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["../secret.safetensors"] = checkpoint.digest(tmp_path / "secret.safetensors")
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FinloraError):
        checkpoint.load(saved)


# -- tidy ------------------------------------------------------------------------------------------------------------


def test_tidy_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path / f"step-{step:08d}", OTHER, {"step": step})
    (tmp_path / ".step-00000003.0123abcd.part").mkdir()
    (tmp_path / ".step-00000003.0123abcd.old").mkdir()
    (tmp_path / ".notes.2024.old").write_text("the user's own")
    for name in ("step-00000006-copy", "step-best"):
        (tmp_path / name).mkdir()
    mine = [".notes.2024.old", "step-00000006-copy", "step-best"]
    checkpoint.tidy(tmp_path / "step-00000007", 2, {"step-00000003"})
    assert {p.name for p in tmp_path.iterdir()} == {*mine, "step-00000003", "step-00000006", "step-00000007"}
    checkpoint.tidy(tmp_path / "step-00000007", 1)
    assert {p.name for p in tmp_path.iterdir()} == {*mine, "step-00000007"}


def test_tidy_spares_what_was_just_written_from_a_later_one_that_is_damaged(tmp_path):
    for step in (2, 4):
        checkpoint.save(tmp_path / f"step-{step:08d}", OTHER, {"step": step})
    (tmp_path / "step-00000004" / "meta.json").write_text("{}")
    assert checkpoint.latest(tmp_path).name == "step-00000002"
    last = checkpoint.save(tmp_path / "step-00000003", OTHER, {"step": 3})
    checkpoint.tidy(last, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"] and checkpoint.latest(tmp_path) == last


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path, monkeypatch):
    """The process dies between the two renames of `atomic_folder`."""
    mine = tmp_path / "mine"
    checkpoint.save(mine, OTHER, {"step": 1})
    (mine / "deep.er").mkdir()
    real = os.rename
    monkeypatch.setattr(checkpoint.os, "rename", lambda a, b: real(a, b) if b != mine else os._exit(9))
    if not (child := os.fork()):
        try:
            checkpoint.save(mine, OTHER, {"step": 2})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert not mine.exists()
    checkpoint.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"] and checkpoint.load(mine)[1] == {"step": 1} and (mine / "deep.er").is_dir()


# -- no pickle -------------------------------------------------------------------------------------------------------


def test_no_pickle_in_a_checkpoint(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["manifest.json", "meta.json", "rng.safetensors", "trainable.safetensors"]
    for file in saved.iterdir():
        data = file.read_bytes()
        assert data[:2] != b"PK" and data[:1] != b"\x80"  # neither torch.save's zip nor a bare pickle


def test_no_pickle_in_the_package():
    """Nothing in the package writes or reads one: no torch.save, no torch.load, no pickle module."""
    root = Path(checkpoint.__file__).parent
    for file in root.rglob("*.py"):
        source = file.read_text()
        assert not any(bad in source for bad in ("torch.save(", "torch.load(", "import pickle", "import dill", "joblib")), file


def test_a_broken_tensor_file_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}garbage")
    for name in ("x.safetensors", "none.safetensors"):
        with pytest.raises(FinloraError, match=name):
            checkpoint.read_tensors(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_what_is_written_is_for_those_whom_the_umask_lets(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = checkpoint.atomic_folder(tmp_path / "m", lambda t: save_file({"w": torch.zeros(2)}, t / "model.safetensors"))
    finally:
        os.umask(before)
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == mode
