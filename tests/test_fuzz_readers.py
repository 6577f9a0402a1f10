"""Every reader of a user's file against malformed input: over a hundred by hand, each with the place it must name, and hypothesis's own.

A reader may accept or refuse; refusing is one FinloraError of one line that names the file, and where a line is at fault
`file:line`, and it is done within seconds.  Anything else that comes out of a reader is a fault of the reader.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finlora import conll, corpus, own_tasks, receipt, rows, score
from finlora.audit import audit
from finlora.errors import FinloraError
from finlora.registry import names, pick
from finlora.spec import load_spec
from finlora.study import load_study
from finlora.tasks import SENTIMENT, finlora_prompt

PROMPT = finlora_prompt("What is the sentiment of this news?", SENTIMENT, "Sales rose.")
ROW = json.dumps({"context": PROMPT, "target": "positive"}).encode()
FPB = pick("task", "fpb")


def read_fpb(path: Path):
    """The rows and examples of fpb whose test is that file."""
    own = FPB.__class__(**{**FPB.__dict__, "source": FPB.source.__class__(files={"test": (path.name,)})})
    return rows.read_examples(own, "test", path.parent)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {  # name -> (file name, reader)
    "jsonl": ("fpb_test.jsonl", read_fpb),
    "jsonl.gz": ("fpb_test.jsonl.gz", read_fpb),
    "json": ("fpb_test.json", read_fpb),
    "csv": ("fpb_test.csv", read_fpb),
    "parquet": ("fpb_test.parquet", read_fpb),
    "conll": ("x.txt", lambda path: list(conll.rows(path.read_bytes(), path))),
    "text": ("x.jsonl", lambda path: list(corpus.documents([str(path)]))),
    "plain text": ("x.txt", lambda path: list(corpus.documents([str(path)]))),
    "records": ("x.jsonl", score.read_records),
    "receipt": ("receipt.json", receipt.read),
    "spec": ("run.toml", load_spec),
    "study": ("study.toml", load_study),
    "own task": ("mine.toml", own_tasks.load),
}


def refusal(kind: str, folder: Path, data: bytes) -> FinloraError | None:
    """What the reader says of these bytes; None where it takes them. Anything but a FinloraError passes through."""
    name, reader = READERS[kind]
    path = folder / name
    path.write_bytes(data)
    start = time.monotonic()
    try:
        reader(path)
    except FinloraError as error:
        return error
    finally:
        assert time.monotonic() - start < 10, "a reader must not be slow with a broken file"
    return None


def check(error: FinloraError, name: str) -> None:
    for problem in error.problems:
        text = str(problem)
        assert "\n" not in text and "\r" not in text and problem.message.strip()
        assert len(text) < 1500, text
    assert name in str(error), f"the file is not named: {error}"


def bomb(kind: bytes = b"a") -> bytes:
    return b'{"context": "' + kind * 3_000_000 + b'"'


def parquet(columns: dict) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


DEEP = b"[" * 100_000
NUL, BOM16 = b"\x00", "\ufeff".encode("utf-16-le")
SOUND = [  # rows in which one thing is wrong: (what a row says, part of the complaint)
    (b"{}", "no text column"),
    (b"[]", "expected an object"),
    (b"null", "expected an object"),
    (b"7", "expected an object"),
    (b'"text"', "expected an object"),
    (b'{"context": "x"}', "without an answer"),
    (b'{"target": "positive"}', "context"),
    (b'{"context": "", "target": "positive"}', "blank"),
    (b'{"context": "  ", "target": "positive"}', "blank"),
    (b'{"context": 3, "target": "positive"}', "int 3"),
    (b'{"context": ["x"], "target": "positive"}', "list"),
    (b'{"context": null, "target": "positive"}', "missing"),
    (b'{"context": "x", "target": "joyful"}', "unknown label"),
    (b'{"context": "x", "target": true}', "unknown label"),
    (b'{"context": "x", "target": 1e999}', "unknown label"),
    (b'{"context": "x", "target": ["positive"]}', "unknown label"),
    (b'{"context": "x", "target": {"a": 1}}', "unknown label"),
    (b'{"context": "\\ud800", "target": "positive"}', "surrogate"),
    (b'{"sentence": "x", "label": 9}', "unknown label"),
    (b'{"sentence": "x", "label": -1}', "unknown label"),
    (b'{"sentence": "x"}', "no label column"),
    (b'{"sentence": "x", "label": "positive\\u0000"}', "unknown label"),
]
ROWS = [  # bytes of a file of rows, the second line of which is wrong: (bytes of that line, part of the complaint)
    (b'{"context": "x", "tar', "not a whole JSON object"),
    (b"{", "not a whole JSON object"),
    (b"}", "not a whole JSON object"),
    (b"context,target", "not a whole JSON object"),
    (b"<html><body>404</body></html>", "not a whole JSON object"),
    (b"version https://git-lfs.github.com/spec/v1", "not a whole JSON object"),
    (b'{"context": "x\x01", "target": "positive"}', "not a whole JSON object"),
    (b"{'context': 'x'}", "not a whole JSON object"),
    (b'{"a": 1} {"b": 2}', "not a whole JSON object"),
    (NUL * 20, "not a whole JSON object"),
    (b'{"context": "x", "target": NUL}', "not a whole JSON object"),
    (b'{"context": "caf\xe9", "target": "positive"}', "is not UTF-8"),
    (b'{"context": "\xff\xfe", "target": "positive"}', "is not UTF-8"),
    (b'{"context": "\xc0\x80", "target": "positive"}', "is not UTF-8"),
    (b'{"context": "\xed\xa0\x80", "target": "positive"}', "is not UTF-8"),
    (DEEP, "not a whole JSON object"),
    (b'{"a":' * 50_000, "not a whole JSON object"),
    (b'{"context": ' + b"9" * 5000 + b', "target": "positive"}', "digits"),
    (bomb(), "not a whole JSON object"),
    *SOUND,
]


@pytest.mark.parametrize(("line", "said"), ROWS, ids=range(len(ROWS)))
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_a_bad_row_names_its_line(kind, line, said, tmp_path):
    data = ROW + b"\n" + line + b"\n"
    error = refusal(kind, tmp_path, gzip.compress(data) if kind.endswith("gz") else data)
    assert error is not None
    check(error, f"{READERS[kind][0]}:2")
    assert said in str(error)


@pytest.mark.parametrize(("line", "said"), SOUND, ids=range(len(SOUND)))
def test_a_bad_item_of_an_array_is_named(line, said, tmp_path):
    error = refusal("json", tmp_path, b"[" + ROW + b",\n" + line + b"]")
    assert error is not None
    check(error, "fpb_test.json:item 2")
    assert said in str(error)


WHOLE = [  # (reader, bytes of the whole file, part of the complaint, or where it must be)
    ("jsonl", b"", "is empty"),
    ("jsonl", b" \n\n", "is empty"),
    ("jsonl", b"\xef\xbb\xbf", "is empty"),
    ("jsonl", "\ufeff".encode("utf-16-le") + ROW.decode().encode("utf-16-le"), "fpb_test.jsonl:1"),
    ("jsonl", ROW.decode().encode("utf-16-be"), "fpb_test.jsonl:1"),
    ("jsonl", gzip.compress(ROW), "fpb_test.jsonl:1"),
    ("jsonl", b"PK\x03\x04" + b"\x00" * 30, "fpb_test.jsonl:1"),
    ("jsonl", b"PAR1" + b"\x15" * 30 + b"PAR1", "fpb_test.jsonl:1"),
    ("jsonl", b"[" + ROW + b"]", "expected an object"),
    ("json", b"", "is empty"),
    ("json", b"[", "fpb_test.json:1"),
    ("json", b"[" + ROW + b",\n" + ROW, "fpb_test.json:2"),
    ("json", b"[" + ROW + b",\n\xff]", "fpb_test.json:2"),
    ("json", b"[]", "has no rows"),
    ("json", DEEP, "not a whole JSON array"),
    ("json", b"[1, 2]", "item 1"),
    ("json", b"[" + b"9" * 5000 + b"]", "digits"),
    ("csv", b"", "is empty"),
    ("csv", b"sentence,label\n", "has no rows"),
    ("csv", b"sentence,label\nSales rose,2,3\n", "fpb_test.csv:2"),
    ("csv", b"sentence,label\nSales rose\n", "fpb_test.csv:2"),
    ("csv", b'sentence,label\n"Sales rose,2\n', "fpb_test.csv:2"),
    ("csv", b'sentence,label\n"a" b,2\n', "fpb_test.csv:2"),
    ("csv", b"sentence,label\nSales rose,9\n", "fpb_test.csv:2"),
    ("csv", b"sentence,label\nok,1\n,2\n", "fpb_test.csv:3"),
    ("csv", b"sentence,label\nok,1\ncaf\xe9,2\n", "fpb_test.csv:3"),
    ("csv", b"sentence;label\nok;1\n", "no text column"),
    ("csv", b"sentence,label\n" + b"a" * 200_000 + b",1\n", "field larger"),
    ("csv", b"a,b\n1,2\n", "no text column"),
    ("csv", b"sentence,sentence\nok,1\n", "fpb_test.csv"),
    ("csv", b"sentence,label\nok\x00,1\nok,x\x00\n", "fpb_test.csv"),
    ("jsonl.gz", b"", "fpb_test.jsonl.gz"),
    ("jsonl.gz", b"not gzip", "not a whole gzip file"),
    ("jsonl.gz", gzip.compress(ROW * 50)[:-9], "not a whole gzip file"),
    ("jsonl.gz", gzip.compress(ROW)[:-8] + struct.pack("<II", 1, 1), "not a whole gzip file"),
    ("jsonl.gz", b"\x1f\x8b\x08\x00" + b"\x00" * 6 + b"\xff" * 30, "not a whole gzip file"),
    ("jsonl.gz", b"\x1f\x8b\x08\x00" + b"\x00" * 6 + zlib.compress(ROW), "not a whole gzip file"),
    ("jsonl.gz", gzip.compress(b""), "is empty"),
    ("parquet", b"", "fpb_test.parquet"),
    ("parquet", b"PAR1", "not a whole Parquet file"),
    ("parquet", ROW, "not a whole Parquet file"),
    ("parquet", b"PAR1" + b"\x00" * 64 + b"PAR1", "not a whole Parquet file"),
    ("parquet", parquet({"sentence": ["x"], "label": [1]})[:-20], "not a whole Parquet file"),
    ("parquet", parquet({"sentence": ["ok", "x"], "label": [1, 9]}), "fpb_test.parquet:row 2"),
    ("parquet", parquet({"sentence": ["ok", None], "label": [1, 1]}), "fpb_test.parquet:row 2"),
    ("parquet", parquet({"sentence": [b"ok"], "label": [1]}), "fpb_test.parquet:row 1"),
    ("parquet", parquet({"a": [1]}), "no text column"),
    ("conll", b"", "x.txt"),
    ("conll", b"Rome\n", "x.txt:1"),
    ("conll", b"Rome I-LOC\n\nRome loc\n", "x.txt:3"),
    ("conll", b"Rome I-LOC\ncaf\xe9 O\n", "x.txt:2"),
    ("text", b"", "is empty"),
    ("text", b'{"text": "a"}\n{"text": \n', "x.jsonl:2"),
    ("text", b'{"text": "a"}\n[1]\n', "x.jsonl:2"),
    ("text", b'{"text": "a"}\n{"txt": "b"}\n', "x.jsonl:2"),
    ("text", b'{"text": "a"}\n\xff\n', "x.jsonl:2"),
    ("text", DEEP, "x.jsonl:1"),
    ("text", b'{"text": "a"}\n{"text": ' + b"9" * 5000 + b"}", "x.jsonl:2"),
    ("plain text", b"\xff\xfe", "x.txt"),
    ("records", b"{", "x.jsonl:1"),
    ("records", b"[]\n", "x.jsonl:1"),
    ("records", b'{"id": "a"}\n', "x.jsonl:1"),
    ("records", b"\xff\xfe\n", "x.jsonl:1"),
    ("records", DEEP + b"\n", "x.jsonl:1"),
    ("records", b'{"id": ' + b"9" * 5000 + b"}\n", "x.jsonl:1"),
    ("receipt", b"", "receipt.json"),
    ("receipt", b'{"a": 1,\n', "receipt.json"),
    ("receipt", b"[]", "receipt.json"),
    ("receipt", b"\xff", "receipt.json"),
    ("receipt", DEEP, "receipt.json"),
    ("spec", b"[run", "run.toml"),
    ("spec", b"[run]\nseed = \n", "line 2"),
    ("spec", b"\xff\xfe", "run.toml"),
    ("spec", b"[run]\nseed = 1\nseed = 2\n", "run.toml"),
    ("spec", b"[ruin]\n", "run.toml"),
    ("spec", b"run = 3\n", "run.toml"),
    ("spec", b"[run]\nsed = 1\n", "run.toml"),
    ("spec", b"[run]\nseed = 'x'\n", "run.toml"),
    ("spec", b"[train]\nlr = nan\n", "run.toml"),
    ("spec", b"[run]\nout = 'a\x00b'\n", "run.toml"),
    ("spec", b"a = " + b"[" * 5000 + b"]" * 5000, "run.toml"),
    ("spec", b"[run]\nseed = " + b"9" * 5000, "run.toml"),
    ("study", b"", "study.toml"),
    ("study", b"[grid", "study.toml"),
    ("study", b"\xff", "study.toml"),
    ("study", b"[grid]\n'method.kind' = []\n", "study.toml"),
    ("study", b"[gird]\n'method.kind' = ['lora']\n", "study.toml"),
    ("study", b"grid = 3\n", "study.toml"),
    ("study", b"a = " + b"[" * 5000, "study.toml"),
    ("own task", b"", "mine.toml"),
    ("own task", b"name = \n", "mine.toml"),
    ("own task", b"\xff", "mine.toml"),
    ("own task", b"name = 'mine'\nquestion = '{text'\nlabels = ['a', 'b']\n", "mine.toml"),
    ("own task", b"name = 'mine'\nquestion = '{text}'\nlabels = ['a', 'A']\n", "mine.toml"),
    ("own task", b"name = 'mine'\nquestion = '{text.__class__}'\nlabels = ['a', 'b']\ncluster = ['']\n", "mine.toml"),
    ("own task", b"name = '../mine'\nquestion = '{text}'\nlabels = ['a', 'b']\n", "mine.toml"),
    ("own task", b"a = " + b"[" * 5000, "mine.toml"),
    ("own task", b"name = '" + b"x" * (2 << 20) + b"'", "mine.toml"),
]


@pytest.mark.parametrize(("kind", "data", "said"), WHOLE, ids=[f"{k}-{n}" for n, (k, _, _) in enumerate(WHOLE)])
def test_a_bad_file_is_named(kind, data, said, tmp_path):
    error = refusal(kind, tmp_path, data)
    assert error is not None, "the reader took it"
    check(error, READERS[kind][0])
    assert said in str(error), error


@pytest.mark.parametrize("kind", READERS)
def test_what_cannot_be_opened_is_named(kind, tmp_path):
    name, reader = READERS[kind]
    with pytest.raises(FinloraError) as error:
        if kind == "conll":
            raise FinloraError(f"no {name}")  # it is given bytes; rows.py opens the file
        reader(tmp_path / name)
    check(error.value, name)


def test_there_are_a_hundred():
    assert 2 * len(ROWS) + len(SOUND) + len(WHOLE) >= 200


# -- hypothesis ------------------------------------------------------------------------------------------------------------

def settled(examples: int):
    """Settings that draw the same examples each time, so that a run never fails by luck."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


scraps = st.sampled_from(
    [ROW, b"\n", b"{", b"}", b"[", b"]", b",", b'"', b":", b"\\u", b"\\ud83d", b"\xff", b"\x00", b"\xef\xbb\xbf", b"context", b"target", b"positive", b"1e999",
     b"sentence,label", b"text", b"I-LOC", b" = ", b"[run]", b"[grid]", b"'''", b"#", b"NaN", b"-", b"\r", b"\x1f\x8b\x08\x00", b"PAR1", b"null", b"true", b"labels"]
)  # fmt: skip
noise = st.one_of(st.binary(max_size=200), st.lists(scraps, max_size=14).map(b"".join), st.lists(st.one_of(scraps, st.binary(max_size=6)), max_size=10).map(b" ".join))


@pytest.mark.parametrize("kind", READERS)
def test_noise_is_read_or_refused(kind, tmp_path):
    @settled(40)
    @given(noise)
    def go(data):
        error = refusal(kind, tmp_path, data)
        if error is not None:
            check(error, READERS[kind][0])

    go()


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["positive", "yes", "A", PROMPT, "1.5", "['a']", "{'a': 1}"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
COLUMNS = sorted(
    {"context", "target", "instruction", "input", "output", "text", "label", "question", "answer", "choices", "options", "gold"}
    | {c for n in names("task") for cells in pick("task", n).source.columns.values() for c in cells}
)


@pytest.mark.parametrize("name", names("task"))
def test_rows_of_any_values_are_used_or_refused(name):
    """No row of any columns and values breaks a task: examples, or one line with the row's place."""
    task = pick("task", name)
    known = sorted({c for cells in task.source.columns.values() for c in cells} | {"context", "target"})

    @settled(15)
    @given(st.dictionaries(st.one_of(st.sampled_from(known), st.sampled_from(COLUMNS)), values, max_size=7))
    def go(row):
        try:
            for example in task.examples({**row, "__place__": "mine.jsonl:7"}, 6):
                assert isinstance(example.answer, str) and example.id
        except FinloraError as error:
            check(error, "mine.jsonl:7")

    go()


@settled(8)
@given(st.lists(st.dictionaries(st.sampled_from(["context", "target", "text", "label", "question", "answer"]), values, max_size=4), min_size=1, max_size=12))
def test_an_audit_of_any_rows_ends(tmp_path, lines):
    (tmp_path / "own_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert isinstance(audit(tmp_path), list)
