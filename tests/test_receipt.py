"""Receipts: written whole or not at all, read with errors that name the place, and blind to torch."""

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finlora import receipt
from finlora.errors import FinloraError


def made(**more):
    return {**receipt.new("finetune", "a run", {"seed": 3}), **more}


def test_what_is_written_is_read(tmp_path):
    value = made(results={"fpb": {"n": 2, "metrics": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}}}})
    path = receipt.write(tmp_path / "deep" / "receipt.json", value)
    assert receipt.read(path) == value
    assert receipt.read(path.parent) == value
    assert [p.name for p in path.parent.iterdir()] == ["receipt.json"]
    assert value["schema"] == receipt.SCHEMA and value["spec"] == {"seed": 3} and value["created"].endswith("+00:00")


def test_full_disk_leaves_the_old_receipt(tmp_path, monkeypatch):
    path = receipt.write(tmp_path / "receipt.json", made())
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FinloraError, match="No space left on device") as caught:
        receipt.write(path, made(name="another"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["receipt.json"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        receipt.write(tmp_path / "receipt.json", made())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"schema": 1,\n "kind": ', ":2: not JSON"),
        (b"[]", "not a receipt"),
        (b'{"schema": 99, "kind": "bench", "name": "x"}', "schema 99"),
        (b'{"schema": 1, "kind": "lunch", "name": "x"}', "'lunch'"),
        (b'{"schema": 1, "kind": "bench", "name": 7}', "`name`"),
        (b'{"schema": 1, "kind": "bench", "name": "x", "data": {}}', "`data` is not a list"),
        (b'{"schema": 1, "kind": "bench", "name": "x", "results": {"t": 1}}', "results.t"),
        (b'{"schema": 1, "kind": "bench", "name": "x", "results": {"t": {"metrics": {"f": 1}}}}', "results.t.metrics.f"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_receipt_names_its_path(tmp_path, text, says):
    path = tmp_path / "receipt.json"
    path.write_bytes(text)
    with pytest.raises(FinloraError) as caught:
        receipt.read(path)
    assert str(path) in str(caught.value) and says in str(caught.value)


def test_missing_receipt_and_unknown_kind(tmp_path):
    with pytest.raises(FinloraError, match="no receipt at"):
        receipt.read(tmp_path)
    with pytest.raises(FinloraError, match="`lunch`"):
        receipt.new("lunch", "x", {})
    with pytest.raises(FinloraError, match="no folder"):
        receipt.find([tmp_path / "nowhere"])


def test_find_keeps_the_whole_and_names_the_broken(tmp_path):
    receipt.write(tmp_path / "b" / "receipt.json", made(created="2020-01-02", name="later"))
    receipt.write(tmp_path / "z" / "y" / "receipt.json", made(created="2020-01-01", name="first"))
    receipt.write(tmp_path / "bench.receipt.json", made(created="2020-01-03", name="third"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "receipt.json").write_text("{")
    found, warnings = receipt.find([tmp_path, tmp_path / "b"])  # the same receipt named twice counts once
    assert [f.receipt["name"] for f in found] == ["first", "later", "third"]
    assert found[0].path == tmp_path / "z" / "y" / "receipt.json"
    assert len(warnings) == 1 and str(tmp_path / "c" / "receipt.json") in warnings[0]


def test_plain_speaks_json():
    import numpy

    @dataclasses.dataclass
    class Point:
        x: float
        where: Path

    value = receipt.plain({1: Point(math.nan, Path("a/b")), "t": (numpy.float32(0.5), math.inf), "s": {"b", "a"}})
    assert value == {"1": {"x": None, "where": "a/b"}, "t": [0.5, None], "s": ["a", "b"]}
    json.dumps(value, allow_nan=False)


def test_digest_is_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    # the first test vector of FIPS 180-2
    assert receipt.file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FinloraError, match="gone"):
        receipt.file_digest(tmp_path / "gone")


def test_environment_needs_no_torch():
    program = (
        "import sys\nfrom finlora import receipt\nv, d, c = receipt.versions(), receipt.device(), receipt.code()\n"
        "assert v['torch'] and v['python'] and 'transformers' in v, v\n"
        "assert d['cores'] >= 1 and d['gpu'] is None and d['cpu'], d\n"
        "assert set(c) >= {'version', 'commit'}, c\n"
        "bad = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr


def test_commit_is_only_claimed_for_a_tracked_file(monkeypatch):
    receipt._code.cache_clear()
    monkeypatch.setattr(receipt, "_git", lambda folder, *arguments: None)
    assert receipt.code()["commit"] is None
    receipt._code.cache_clear()
    answers = {"ls-files": "receipt.py", "rev-parse": "abc123", "status": " M receipt.py"}
    monkeypatch.setattr(receipt, "_git", lambda folder, *arguments: answers[arguments[0]])
    assert receipt.code() == {"version": receipt._version("finlora"), "commit": "abc123", "dirty": True}
    answers["rev-parse"] = "later"
    assert receipt.code()["commit"] == "abc123", "what is imported does not change with the checkout"
    receipt._code.cache_clear()
