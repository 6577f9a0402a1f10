"""A user's own task from a TOML file: what it becomes, and one line for whatever is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finlora.errors import FinloraError, Problems
from finlora.own_tasks import fill, load, template
from finlora.registry import pick
from finlora.rows import read_examples
from finlora.tasks import Source
from finlora.text import prompt_text

EXAMPLE = Path(__file__).resolve().parents[1] / "configs" / "task_example.toml"
LABEL = 'name = "mine"\nquestion = "Up or down? {text}\\nAnswer:"\nlabels = ["up", "down"]\ncolumn = "way"\n'
NUMBER = 'name = "sum"\nquestion = "{a} + {b} = "\nanswer = "number"\ncolumn = "total"\n'
TEXT = 'name = "who"\nquestion = "Who? {text}"\nanswer = "text"\ncolumn = "name"\n'


def task(tmp_path: Path, text: str | bytes, name: str = "mine.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path)


def test_the_shipped_example(tmp_path):
    mine = pick("task", str(EXAMPLE))
    assert (mine.name, mine.kind, mine.way, mine.metric, mine.group) == ("tickets", "label", "choose", "macro_f1", "own")
    assert len(EXAMPLE.read_text().splitlines()) <= 26
    rows = [{"text": "Charged {twice}", "country": "IT", "desk": k % 3, "customer": f"c{k // 2}"} for k in range(6)]
    (tmp_path / "desks_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    examples = read_examples(mine, "test", tmp_path)
    assert [e.gold for e in examples] == ["billing", "shipping", "returns"] * 2 and len({e.cluster for e in examples}) == 3
    assert prompt_text(examples[0]) == (
        "Which desk should answer this ticket? Please choose an answer from {billing/shipping/returns}.\nTicket from IT: Charged {twice}\nAnswer: "
    )
    assert examples[0].labels == mine.labels and examples[0].id == "tickets-0"


def test_a_label_task(tmp_path):
    mine = task(tmp_path, LABEL + 'licence = "CC0"\nsystem = "Be brief."\n')
    (e,) = mine.examples({"text": "It rose", "way": "UP"}, 3)
    assert prompt_text(e) == "Be brief.\n\nUp or down? It rose\nAnswer: " and e.gold == e.answer == "up" and e.id == "mine-3"
    assert mine.source.licence == "CC0" and mine.read("Up.", mine.labels) == "up" and mine.mark("up", "up") == 1.0 and mine.read("", mine.labels) is None
    assert e.cluster == next(iter(mine.examples({"text": "it ROSE!", "way": "down"}, 4))).cluster


def test_a_number_task(tmp_path):
    mine = task(tmp_path, NUMBER + "tolerance = 0.01\nmax_new = 9\n")
    assert (mine.kind, mine.way, mine.metric, mine.max_new, mine.labels) == ("number", "say", "numeric", 9, ())
    (e,) = mine.examples({"a": 1000, "b": 2.5, "total": 1002.5}, 0)
    assert prompt_text(e) == "1000 + 2.5 = " and e.gold == "1002.5" and mine.mark(e.gold, mine.read(e.answer, ())) == 1.0
    for said, mark in (("1,002.5", 1.0), ("$1003", 1.0), ("1020", 0.0), ("", 0.0), ("none", 0.0)):
        assert mine.mark(e.gold, mine.read(said, ())) == mark, said
    assert mine.read("", ()) is None
    for cell in ("$1,577.00", "12.5%", "2.3 million", -4, "(3.5)"):
        (e,) = mine.examples({"a": 1, "b": 1, "total": cell}, 0)
        assert mine.mark(e.gold, mine.read(e.answer, ())) == 1.0, cell


def test_a_text_task(tmp_path):
    mine = task(tmp_path, TEXT)
    (e,) = mine.examples({"text": "x", "name": " Ada\n Lovelace "}, 0)
    assert (mine.kind, mine.metric, e.gold, e.labels) == ("text", "token_f1", "Ada Lovelace", ())
    assert mine.mark(e.gold, mine.read("\n ada lovelace.\nmore", ())) == 1.0 and mine.read(" \n", ()) is None and mine.mark(e.gold, mine.read("Ada", ())) == 0.0


@pytest.mark.skipif("home" not in Source.__dataclass_fields__, reason="rows are found in data.dir only")
def test_rows_beside_the_file(tmp_path):
    mine = task(tmp_path, LABEL)
    (tmp_path / "mine_test.csv").write_text("text,way\nIt rose,up\n")
    assert [e.gold for e in read_examples(mine, "test")] == ["up"]


def test_rows_in_a_folder(tmp_path):
    mine = task(tmp_path, LABEL + '[files]\ntest = ["a.csv", "b.csv"]\n')
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "b.csv").write_text("text,way\nIt rose,up\nIt fell,sideways\n")
    with pytest.raises(FinloraError, match="b.csv:3"):
        read_examples(mine, "test", tmp_path / "rows")
    assert read_examples(mine, "test", tmp_path / "rows", limit=1)[0].gold == "up"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"way": "up"}, "no `text` column"),
        ({"text": "x"}, "no answer column"),
        ({"text": "", "way": "up"}, "blank"),
        ({"text": True, "way": "up"}, "bool"),
        ({"text": ["x"], "way": "up"}, "list"),
        ({"text": "x\ud800", "way": "up"}, "surrogate"),
        ({"text": "x", "way": "over"}, "unknown label"),
        ({"text": "x", "way": None}, "unknown label None"),
    ],
)
def test_bad_rows(tmp_path, row, words):
    with pytest.raises(FinloraError) as e:
        list(task(tmp_path, LABEL).examples({**row, "__place__": "some.csv:9"}, 0))
    assert words in str(e.value) and "some.csv:9" in str(e.value) and e.value.hint and "\n" not in str(e.value)


@pytest.mark.parametrize("value", ["high", None, True, "", "1 or 2", [1]])
def test_bad_numbers(tmp_path, value):
    with pytest.raises(FinloraError, match="some.csv:9"):
        list(task(tmp_path, NUMBER).examples({"a": 1, "b": 2, "total": value, "__place__": "some.csv:9"}, 0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "task.name"),
        ("name = ", "mine.toml:1: not TOML"),
        ('name = "a"\nname = "b"', "mine.toml:2: not TOML"),
        ("name = 'a'\n\0", "not TOML"),
        (b"name = 'a'\n# \xff\n", "mine.toml:2: byte 0xff"),
        (b"\x00" * 50, "not TOML"),
        ("a = " + "[" * 5000, "mine.toml"),
        ("x = '" + "y" * (1 << 20) + "'", "more than"),
        (LABEL.replace("mine", "my own task"), "task.name"),
        (LABEL.replace("mine", "../x"), "task.name"),
        (LABEL.replace('"mine"', "3"), "task.name"),
        (LABEL.replace("{text}", "text"), "names no column"),
        (LABEL.replace("{text}", "{text"), "brace"),
        (LABEL.replace("{text}", "{text}}"), "brace"),
        (LABEL.replace("{text}", "{}"), "brace"),
        (LABEL.replace("{text}", "{a{b}c}"), "brace"),
        (LABEL.replace("question", "quesion"), "did you mean `task.question`"),
        (LABEL.replace('["up", "down"]', '["up"]'), "two or more"),
        (LABEL.replace('["up", "down"]', '["up", "UP"]'), "two or more"),
        (LABEL.replace('["up", "down"]', '["up", 3]'), "task.labels"),
        (LABEL.replace('labels = ["up", "down"]', ""), "task.labels is missing"),
        (LABEL + 'answer = "number"\n', "both stand"),
        (NUMBER.replace('"number"', '"numbers"'), "did you mean `number`"),
        (LABEL + 'metric = "macrof1"\n', "did you mean `macro_f1`"),
        (LABEL + "max_new = -1\n", "task.max_new"),
        (LABEL + "tolerance = 0.1\n", "task.tolerance"),
        (NUMBER + "tolerance = nan\n", "task.tolerance"),
        (LABEL + "cluster = ''\n", "task.cluster"),
        (LABEL.replace('"way"', '""'), "task.column"),
        (LABEL + "[codes]\n0 = 'over'\n", "not one of the labels"),
        (LABEL + "codes = 3\n", "task.codes"),
        (LABEL + "files = 3\n", "task.files"),
        (LABEL + "[files]\ntests = 'a'\n", "did you mean `test`"),
        (LABEL + "[files]\ntest = '../a'\n", "leads out"),
        (LABEL + "[files]\ntest = '/etc/passwd'\n", "leads out"),
        (LABEL + "[files]\ntest = ''\n", "leads out"),
        (LABEL + '[files]\ntest = "a\\u0000b"\n', "leads out"),
        (LABEL + "[files]\ntest = 'C:\\x'\n", "leads out"),
        (LABEL + "[files]\ntest = 3\n", "task.files.test"),
        (LABEL + "import = 'os'\n", "no key named `task.import`"),
    ],
)
def test_bad_files(tmp_path, text, words):
    with pytest.raises(FinloraError) as e:
        task(tmp_path, text)
    assert words in str(e.value) and "mine.toml" in str(e.value) and "\n" not in str(e.value) and all(p.hint for p in e.value.problems)


def test_all_problems_at_once(tmp_path):
    with pytest.raises(Problems) as e:
        task(tmp_path, 'name = "a b"\nquestion = "x"\nlabels = ["up"]\nmetric = "x"\n')
    assert len(e.value.problems) == 4


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(FinloraError, match="cannot read task file"):
            load(path)
    with pytest.raises(FinloraError, match="cannot read task file"):
        pick("task", "a\0b.toml")


def test_a_template_reaches_into_nothing():
    parts = template("{x.__class__} {0} {x!r} {x:>3}")
    assert [column for _, column in parts] == ["x.__class__", "0", "x!r", "x:>3", ""]
    with pytest.raises(FinloraError, match="no `x.__class__` column"):
        fill(parts, {"x": "1"}, "here")
    assert fill(template(" {{a}} {x}\n"), {"x": "{y}"}, "here") == ("{a} {y} ", ["{y}"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode), st.sampled_from([LABEL, NUMBER]).flatmap(
    lambda base: st.tuples(st.integers(0, len(base)), st.text(max_size=6)).map(lambda cut: (base[: cut[0]] + cut[1] + base[cut[0] + 3 :]).encode("utf-8", "replace")))))
def test_any_bytes_are_a_task_or_one_line(tmp_path, data):
    try:
        task(tmp_path, data)
    except FinloraError as e:
        assert "\n" not in str(e) and "mine.toml" in str(e)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(st.sampled_from(["text", "way", "x"]), st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=9), st.lists(st.integers(), max_size=2))))
def test_any_row_is_an_example_or_one_line(tmp_path, row):
    try:
        (e,) = task(tmp_path, LABEL).examples({**row, "__place__": "some.csv:9"}, 0)
        assert e.gold in ("up", "down")
    except FinloraError as e:
        assert "some.csv:9" in str(e) and "\n" not in str(e)


def test_loads_no_torch():
    code = f"import sys; from finlora.own_tasks import load; load({str(EXAMPLE)!r}); sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
