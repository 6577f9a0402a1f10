"""`finlora data audit`, `fetch` and `spool` from the command line. The hub here is a folder of our own: what is proved of
fetching is our side of it; that the real hub answers as huggingface_hub says is not."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from finlora import cli, corpus, hub, registry
from finlora.cli import data, main
from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.rows import read_examples
from finlora.tasks import SENTIMENT, finlora_prompt

TWEETS = [(f"$XY number {k} {'up' if k % 3 == 1 else 'down' if k % 3 == 0 else 'flat'} today", k % 3) for k in range(40)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    if not any(c.callback is data.command for c in cli.app.registered_commands):
        cli.app.command("data")(data.command)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a set of our own: fpb, one test row of which is also in train."""
    lines = [{"context": finlora_prompt("What is the sentiment of this news?", SENTIMENT, f"Sales of unit {k} {'rose' if k % 3 else 'fell'}."), "target": SENTIMENT[k % 3]} for k in range(60)]
    for name, part in (("train", lines[:40]), ("test", lines[39:])):
        (tmp_path / f"fpb_{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in part))
    return tmp_path


def test_audit_prints_writes_and_says_by_its_status(folder, capsys):
    assert main(["data", "audit", "fpb", "--data", str(folder), "-o", str(folder / "page.html")]) == 1
    out = capsys.readouterr().out
    assert "fpb: train 40, test 21; " in out and "error: test: 1 of 21 rows" in out and f"({folder}/fpb_test.jsonl:1)" in out
    assert "<h1>FinLoRA audit</h1>" in (folder / "page.html").read_text(encoding="utf-8")
    (folder / "fpb_train.jsonl").unlink()
    assert main(["data", "audit", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"kind", "severity", "what", "message", "where", "count", "ids", "advice", "figures"} == set(told[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "fbp"], "did you mean `fpb`"),
        (["audit", "no/such/folder"], "no folder `no/such/folder`"),
        (["audit", "fpb"], "do not ship with finlora"),
        (["adit", "fpb"], "did you mean `audit`"),
        (["audit", "fpb", "--accept-license"], "--accept-license has no effect on `data audit`"),
        (["audit", "fpb", "--fresh", "x.txt"], "--fresh needs --model"),
        (["fetch", "fpb", "--json", "-o", "x"], "--json has no effect on `data fetch`"),
        (["fetch", "tfns"], "fetch needs --out DIR"),
        (["fetch", "tfns", "-o", "x"], "nothing is downloaded unless --online is given"),
        (["fetch", "tone", "-o", "x"], "ship with finlora"),
        (["fetch", "ner_", "-o", "x"], "no task named"),
    ],
)
def test_one_line_for_what_cannot_be_done(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    err = capsys.readouterr().err.strip()
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and said in " ".join(err.split()), err
    assert not list(tmp_path.iterdir())


def test_membership_from_the_command_line(folder, make_model, capsys):
    from finlora.model import save

    save(make_model(), folder / "toy")
    (folder / "fresh.jsonl").write_text("".join(json.dumps({"text": f"Orders of plant {k} {'grew' if k % 3 else 'sank'}."}) + "\n" for k in range(40)))
    assert main(["data", "audit", "fpb", "--data", str(folder), "--model", str(folder / "toy"), "--fresh", str(folder / "fresh.jsonl")]) == 1
    assert "Min-20%++ AUC 0." in capsys.readouterr().out


# -- spooling -----------------------------------------------------------------------------------------------------------


def test_text_of_the_hub_is_spooled_once_and_only_when_told(tmp_path, monkeypatch, capsys):
    asked = []

    def load(name, config, *, split, revision, streaming):
        asked.append((name, config, split, revision, streaming))
        return ({"content": f"Document {k} of the set.", "id": k} for k in range(7))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    out = tmp_path / "texts"
    order = ["data", "spool", "org/set", "--column", "content", "--revision", "abc", "-o", str(out)]
    for wrong, wanted in ((order, "without --online"), (order[:-2] + ["--online"], "spool needs --out DIR"), ([*order, "--data", "x"], "--data has no effect on `data spool`")):
        assert main(wrong) == 2 and wanted in capsys.readouterr().err
    assert asked == [] and not out.exists()
    assert main([*order, "--online", "-n", "3"]) == 0
    assert "3 documents in 1 files" in capsys.readouterr().out and asked == [("org/set", None, "train", "abc", True)]
    assert main([*order, "--online"]) == 0 and "7 documents in 2 files" in capsys.readouterr().out
    found = list(corpus.documents([str(out)]))
    assert [d.text for d in found] == [f"Document {k} of the set." for k in range(7)] and {d.source for d in found} == {"org/set"}
    assert main([*order, "--online", "--split", "test"]) == 2 and "holds `org/set, revision abc, train, content`" in capsys.readouterr().err


# -- fetching -----------------------------------------------------------------------------------------------------------


class Hub:
    """A hub that is a folder."""

    def __init__(self, root: Path):
        self.root, self.asked = root, []

    def listing(self, **where) -> list[str]:
        self.asked.append(where)
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())

    def download(self, filename: str, local_dir: str, **where) -> str:
        self.asked.append({**where, "filename": filename})
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / filename, path)
        return str(path)


@pytest.fixture
def there(tmp_path) -> Hub:
    root = tmp_path / "hub"
    root.mkdir()
    for name, part in (("sent_train.csv", TWEETS[:30]), ("sent_valid.csv", TWEETS[30:])):
        (root / name).write_text("text,label\n" + "".join(f"{t},{x}\n" for t, x in part))
    (root / "README.md").write_text("a card")
    (root / ".gitattributes").write_text("x")
    return Hub(root)


def fetch(hub_: Hub, out: Path, task=None, **options):
    said: list[str] = []
    task = task or pick("task", "tfns")
    files = hub.fetch(task, out, tell=said.append, listing=hub_.listing, download=hub_.download, **options)
    return files, said


def test_fetched_files_are_read_as_they_lie(there, tmp_path):
    files, said = fetch(there, tmp_path / "data", online=True)
    assert [f.name for f in files] == ["sent_train.csv", "sent_valid.csv"]
    assert said[0].startswith("tfns: licence MIT (hub card); from hub zeroshot/twitter-financial-news-sentiment at ")
    assert there.asked[0]["repo_type"] == "dataset" and len(there.asked) == 3
    assert len(read_examples(pick("task", "tfns"), "train", tmp_path / "data")) == 30
    assert len(read_examples(pick("task", "tfns"), "test", tmp_path / "data")) == 10
    assert sorted(p.name for p in (tmp_path / "data" / "tfns").iterdir()) == ["sent_train.csv", "sent_valid.csv"]


def test_nothing_is_asked_of_the_network_without_online(there, tmp_path):
    with pytest.raises(FinloraError, match="unless --online"):
        fetch(there, tmp_path / "data")
    assert there.asked == [] and not (tmp_path / "data").exists()


def test_a_licence_without_commerce_must_be_accepted(there, tmp_path):
    task = pick("task", "tfns")
    for licence, closed in (("CC BY-NC 4.0", True), ("", False)):
        shut = replace(task, source=replace(task.source, licence=licence, noncommercial=closed))
        with pytest.raises(FinloraError, match="--accept-license"):
            fetch(there, tmp_path / "data", shut, online=True)
        assert there.asked == []
    assert "no commercial use" in hub.terms(replace(task, source=replace(task.source, noncommercial=True)))
    assert len(fetch(there, tmp_path / "data", shut, online=True, accept=True)[0]) == 2


def test_digests_are_checked_and_a_wrong_file_leaves_nothing(there, tmp_path):
    task = pick("task", "tfns")
    right = {n: hashlib.sha256((there.root / n).read_bytes()).hexdigest() for n in ("sent_train.csv", "sent_valid.csv")}
    pinned = replace(task, source=replace(task.source, revision="abc", sha256=right))
    files, said = fetch(there, tmp_path / "data", pinned, online=True)
    assert all("no digest" not in line for line in said) and there.asked[0]["revision"] == "abc"
    asked = len(there.asked)
    assert fetch(there, tmp_path / "data", pinned, online=True)[0] == files and len(there.asked) == asked + 1  # only the listing
    wrong = replace(task, source=replace(task.source, sha256={**right, "sent_valid.csv": "0" * 64}))
    with pytest.raises(FinloraError, match=r"sent_valid\.csv .* has sha256"):
        fetch(there, tmp_path / "other", wrong, online=True)
    assert [p.name for p in (tmp_path / "other" / "tfns").iterdir()] == ["sent_train.csv"]
    with pytest.raises(FinloraError, match="exists"):
        fetch(there, tmp_path / "data", online=True)  # no digest known: what lies there might be anything


def test_a_hub_of_shards_and_one_with_nothing(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    for split, part in (("train", TWEETS[:30]), ("test", TWEETS[30:])):
        pq.write_table(pa.table({"text": [t for t, _ in part], "label": [x for _, x in part]}), root / "data" / f"{split}-00000-of-00001.parquet")
    fetch(Hub(root), tmp_path / "out", online=True)
    assert len(read_examples(pick("task", "tfns"), "test", tmp_path / "out")) == 10
    shutil.rmtree(root / "data")
    (root / "README.md").write_text("x")
    with pytest.raises(FinloraError, match="holds no file of rows: README.md"):
        fetch(Hub(root), tmp_path / "more", online=True)


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/evil.csv", "a/../../evil.csv", ".hidden/x.csv", "c:\\evil.csv"])
def test_a_hub_cannot_name_files_elsewhere(name, there, tmp_path):
    there.listing = lambda **where: [name, "sent_train.csv"]
    files, _ = fetch(there, tmp_path / "data", online=True)
    assert [f.name for f in files] == ["sent_train.csv"] and not (tmp_path / "evil.csv").exists()


def test_a_hub_that_does_not_answer(tmp_path):
    def listing(**where):
        raise OSError("Connection refused\nwith many\nlines")

    with pytest.raises(FinloraError, match="did not give zeroshot/.*: Connection refused") as error:
        hub.fetch(pick("task", "tfns"), tmp_path / "data", online=True, listing=listing, download=lambda **w: "")
    assert "\n" not in str(error.value)


def test_every_task_says_its_terms():
    for name in registry.names("task"):
        task = pick("task", name)
        assert "\n" not in hub.terms(task) and task.source.licence
