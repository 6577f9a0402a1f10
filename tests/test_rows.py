"""Files to rows: where a split is found, what is refused and how it is told, splitting by cluster."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from finlora import rows as rows_module
from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.rows import file_digest, find, overlap, read_examples, read_rows, split_validation
from finlora.tasks import finlora_prompt
from finlora.text import Example

FPB, TFNS, HEADLINE = (pick("task", t) for t in ("fpb", "tfns", "headline"))


def context(text: str, target: str = "neutral") -> dict:
    return {"context": finlora_prompt("What is the sentiment of this news?", FPB.labels, text), "target": target}


def jsonl(path: Path, *values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    return path


def refused(task, split="test", dir=None, **more) -> str:
    """The one-line message of the refusal; it must come with a hint."""
    with pytest.raises(FinloraError) as e:
        read_examples(task, split, dir, **more)
    assert e.value.hint and "\n" not in str(e.value)
    return str(e.value)


# -- where files are found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["fpb_test.jsonl", "fpb_test_dev.jsonl", "fpb/test.jsonl", "fpb/fpb_test.jsonl", "test/fpb_test.jsonl", "test.jsonl", "test.json"],
)
def test_places_of_a_jsonl_file(tmp_path, name):
    path = jsonl(tmp_path / name, context("a b"), context("c d", "positive"))
    rows = read_rows(FPB, "test", tmp_path)
    assert [r["target"] for r in rows] == ["neutral", "positive"]
    assert [r["__place__"] for r in rows] == [f"{path}:1", f"{path}:2"]
    assert file_digest(FPB, "test", str(tmp_path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_named_file_is_preferred_to_the_general_one(tmp_path):
    jsonl(tmp_path / "test.jsonl", context("general"))
    jsonl(tmp_path / "fpb_test_dev.jsonl", context("half"))
    assert "half" in read_rows(FPB, "test", tmp_path)[0]["context"]
    jsonl(tmp_path / "fpb_test.jsonl", context("whole"))
    assert "whole" in read_rows(FPB, "test", tmp_path)[0]["context"]
    jsonl(tmp_path / "fpb" / "test.jsonl", context("own"))
    assert "own" in read_rows(FPB, "test", tmp_path)[0]["context"]


def test_a_users_own_two_files(tmp_path):
    jsonl(tmp_path / "train.jsonl", context("a"), context("b"), context("c"))
    jsonl(tmp_path / "test.jsonl", context("c"))
    train, test = (read_examples(FPB, s, tmp_path) for s in ("train", "test"))
    assert (len(train), len(test), overlap(train, test)) == (3, 1, 1)
    assert len(read_rows(FPB, "train", tmp_path, limit=2)) == 2


def test_formats_give_the_same_examples(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    values = [{"text": "Costs, \"net\",\nrose €5", "label": 0}, {"text": "Flat\u2028again", "label": 2}, {"text": "Up", "label": 1}]
    for d in ("jsonl", "gz", "array", "csv", "parquet", "shards", "bom"):
        (tmp_path / d).mkdir()
    jsonl(tmp_path / "jsonl" / "train.jsonl", *values)
    (tmp_path / "gz" / "train.jsonl.gz").write_bytes(gzip.compress((tmp_path / "jsonl" / "train.jsonl").read_bytes()))
    (tmp_path / "array" / "train.json").write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    cells = 'text,label\r\n"Costs, ""net"",\nrose €5",0\r\nFlat\u2028again,2\r\nUp,1\r\n'
    (tmp_path / "csv" / "sent_train.csv").write_bytes(cells.encode())
    (tmp_path / "bom" / "train.csv").write_bytes(b"\xef\xbb\xbf" + cells.encode())
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "parquet" / "train.parquet")
    pq.write_table(pa.Table.from_pylist(values[:2]), tmp_path / "shards" / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(values[2:]), tmp_path / "shards" / "train-00001-of-00002.parquet")
    wanted = read_examples(TFNS, "train", tmp_path / "jsonl")
    assert [e.gold for e in wanted] == ["negative", "neutral", "positive"]
    for d in ("gz", "array", "csv", "parquet", "shards", "bom"):
        assert read_examples(TFNS, "train", tmp_path / d) == wanted, d
    places = [r["__place__"].rpartition(":")[2] for r in read_rows(TFNS, "train", tmp_path / "csv")]
    assert places == ["2", "4", "5"]  # the first row takes two lines
    both = b"".join((tmp_path / "shards" / f"train-0000{k}-of-00002.parquet").read_bytes() for k in (0, 1))
    assert file_digest(TFNS, "train", tmp_path / "shards") == hashlib.sha256(both).hexdigest()


def test_a_file_with_all_splits(tmp_path):
    columns = "News,PriceOrNot,DirectionUp,DirectionConstant,DirectionDown,PastPrice,FuturePrice,PastNews,FutureNews,AssetComparision"
    (tmp_path / "headlines.csv").write_text(columns + "\n" + "".join(f"gold {k},1,0,0,0,0,0,0,0,0\n" for k in range(9131)), encoding="utf-8")
    test = read_rows(HEADLINE, "test", tmp_path)
    assert [r["News"] for r in test] == ["gold 9129", "gold 9130"]
    assert [r["News"] for r in read_rows(HEADLINE, "train", tmp_path, limit=2)] == ["gold 0", "gold 1"]
    assert len(read_rows(HEADLINE, "train", tmp_path)) == 9129
    assert len(read_examples(HEADLINE, "test", tmp_path, limit=1)) == 9


def test_rows_inside_the_package(tmp_path, monkeypatch):
    jsonl(tmp_path / "embedded" / "tasks" / "mine_test.jsonl", context("a"))
    monkeypatch.setattr(rows_module.resources, "files", lambda package: tmp_path)
    inside = replace(FPB, source=replace(FPB.source, package="mine", files={}))
    assert len(read_examples(inside, "test")) == len(read_examples(inside, "test", "")) == 1
    assert len(file_digest(inside, "test")) == 64
    assert "mine" in refused(replace(inside, name="mine"), "train")
    jsonl(tmp_path / "own" / "test.jsonl", context("b"), context("c"))
    assert len(read_rows(inside, "test", tmp_path / "own")) == 2  # a folder that was given comes first


# -- what is refused --------------------------------------------------------------------------------------------------


def test_missing_folders_and_files(tmp_path):
    assert "do not ship" in refused(FPB)
    assert "no folder" in refused(FPB, dir=tmp_path / "none")
    path = jsonl(tmp_path / "a.jsonl", context("a"))
    assert "is a file" in refused(FPB, dir=path)
    said = refused(FPB, dir=tmp_path)
    for part in ("no test file", "fpb_test.jsonl", "fpb/test.jsonl", "test.jsonl", "it holds a.jsonl"):
        assert part in said
    assert "no split named `tset`" in refused(FPB, "tset", tmp_path) and "`test`" in refused(FPB, "tset", tmp_path)
    assert "no split" in refused(FPB, "../test", tmp_path)
    (tmp_path / "fpb_test.jsonl").mkdir()
    assert "no test file" in refused(FPB, dir=tmp_path)
    with pytest.raises(FinloraError):
        file_digest(FPB, "test", tmp_path)
    for limit in (0, -1, 1.5, True):
        assert "limit" in refused(FPB, dir=tmp_path, limit=limit)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("test.jsonl", b"", "is empty"),
        ("test.jsonl", b" \n\n", "is empty"),
        ("test.jsonl", b'{"context": "a", "target": "neutral"}\n{"context": "b", "tar', "test.jsonl:2: not a whole JSON object"),
        ("test.jsonl", b'\n{"a": 1}{"b": 2}\n', "test.jsonl:2: not a whole JSON object"),
        ("test.jsonl", b"[" * 100_000, "test.jsonl:1: not a whole JSON object"),
        ("test.jsonl", b"[1, 2]\n", "test.jsonl:1: expected an object with named columns, got list"),
        ("test.jsonl", b'{"context": "a", "target": "neutral"}\n{"context": "caf\xe9", "target": "neutral"}\n', "test.jsonl:2: byte 17 of the line, 0xe9, is not UTF-8"),
        ("test.jsonl", b'{"context": "a"}\n', "test.jsonl:1: a context without an answer"),
        ("test.jsonl", b'{"context": "a", "target": "neutral"}\n{"context": "a", "target": "up"}\n', "test.jsonl:2: unknown label 'up'"),
        ("test.jsonl", b'{"headline": "a", "tone": 1}\n', "found: headline, tone"),
        ("test.jsonl.gz", gzip.compress(b'{"context": "a", "target": "neutral"}\n', mtime=0)[:-9], "not a whole gzip file"),
        ("test.jsonl.gz", b"plain", "not a whole gzip file"),
        ("test.json", b'[{"context": "a", "target": "neutral"},\n', "test.json:2: not a whole JSON array"),
        ("test.json", b"[]", "has no rows"),
        ("test.csv", b"sentence,label\n", "has no rows"),
        ("test.csv", b'sentence,label\na,1\n"b\nc', "test.csv:3: not a whole CSV row"),
        ("test.csv", b"sentence,label\na,1\nb,c,1\n", "test.csv:3: 3 cells, the header names 2"),
        ("test.csv", b"sentence,label\na,1\ncaf\xe9,1\n", "test.csv:3: byte 4 of the line, 0xe9, is not UTF-8"),
        ("test.csv", b"text;label\na;1\n", "found: text;label"),
        ("test.csv", b"sentence,label\n,1\n", "test.csv:2: column `sentence` should hold text but is blank"),
        ("test.parquet", b"PAR1 not really", "not a whole Parquet file"),
        ("test-00000-of-00001.parquet", b"", "not a whole Parquet file"),
    ],
)
def test_broken_files(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    said = refused(FPB, dir=tmp_path)
    assert words in said and len(said) < 600


def test_a_bare_name_of_a_file_without_permission(tmp_path):
    path = jsonl(tmp_path / "test.jsonl", context("a"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "cannot read" in refused(FPB, dir=tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path):
    outside = jsonl(tmp_path / "outside" / "secret.jsonl", context("a"))
    inside = tmp_path / "inside"
    (inside / "real").mkdir(parents=True)
    (inside / "test.jsonl").symlink_to(outside)
    assert "leads out of" in refused(FPB, dir=inside)
    (inside / "test.jsonl").unlink()
    (inside / "fpb").symlink_to(tmp_path / "outside")
    jsonl(tmp_path / "outside" / "test.jsonl", context("b"))
    assert "leads out of" in refused(FPB, dir=inside)
    (inside / "fpb").unlink()
    jsonl(inside / "real" / "mine.jsonl", context("c"))
    (inside / "test.jsonl").symlink_to(inside / "real" / "mine.jsonl")  # a link that stays inside is a file like another
    assert len(read_rows(FPB, "test", inside)) == 1
    (tmp_path / "alias").symlink_to(inside)
    assert len(read_rows(FPB, "test", tmp_path / "alias")) == 1  # and so is the folder's own name
    escaping = replace(FPB, source=replace(FPB.source, files={"test": ("../outside/secret.jsonl",)}))
    (inside / "test.jsonl").unlink()
    assert "leads out of" in refused(escaping, dir=inside)


def test_find_says_which_file(tmp_path):
    path = jsonl(tmp_path / "fpb_train.jsonl", context("a"))
    assert find(FPB, "train", tmp_path) == ([path], (0, None))


# -- splitting --------------------------------------------------------------------------------------------------------


def examples(sizes: dict[str, int]) -> list[Example]:
    return [Example(f"{c}-{k}", (("user", "?"),), "a", "a", c) for c, n in sizes.items() for k in range(n)]


def test_split_is_by_cluster_and_deterministic():
    all_ = examples({f"c{k}": 1 + k % 3 for k in range(300)})
    train, held = split_validation(all_, 0.1, 0)
    assert sorted(e.id for e in train + held) == sorted(e.id for e in all_)
    assert overlap(train, held) == 0 and overlap(held, train) == 0
    assert abs(len(held) - 60) <= 2  # 10% of 600 rows, by clusters of at most 3
    assert [e.id for e in train] == [e.id for e in all_ if e in train]  # order kept
    again = split_validation(list(reversed(all_)), 0.1, 0)
    assert {e.id for e in again[1]} == {e.id for e in held}  # the rows' order does not matter
    assert {e.id for e in split_validation(all_, 0.1, 1)[1]} != {e.id for e in held}
    more = split_validation(all_ + examples({"new": 1}), 0.1, 0)[1]
    assert len({e.cluster for e in more} ^ {e.cluster for e in held}) <= 2  # a new text moves the edge only


def test_split_edges():
    all_ = examples({"a": 1, "b": 50})
    assert split_validation(all_, 0.0, 0) == (all_, [])
    for seed in range(8):
        for fraction in (0.01, 0.5, 0.99):
            train, held = split_validation(all_, fraction, seed)
            assert train and held
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(FinloraError, match="share"):
            split_validation(all_, bad, 0)
    for few in ([], examples({"a": 9})):
        with pytest.raises(FinloraError, match="split"):
            split_validation(few, 0.1, 0)
    alone = [Example(f"e{k}", (), "a", "a") for k in range(10)]  # no cluster: each is its own
    assert len(split_validation(alone, 0.2, 0)[1]) == 2


def test_overlap_counts_texts():
    train, test = examples({"a": 3, "b": 1}), examples({"a": 2, "c": 5, "b": 1})
    assert overlap(train, test) == 2
    assert overlap(train, []) == overlap([], test) == 0


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "LARGEST", 1 << 16)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b" " * (1 << 20)))
    with pytest.raises(FinloraError, match="unpacks to more than 65,536 bytes"):
        read_rows(pick("task", "fpb"), "test", tmp_path)
