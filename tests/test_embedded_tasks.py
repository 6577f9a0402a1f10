"""The tasks that ship with the package: rebuilt byte for byte, disjoint, balanced, labelled as a rule reads them, hard to count."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from finlora.registry import pick
from finlora.rows import read_examples, read_rows
from finlora.tasks import finlora_prompt, normalise, words_of

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tasks"
SPLITS = ("train", "validation", "test")
LEAST = {"train": 1500, "validation": 200, "test": 400}
recipe = pytest.mark.skipif(not RECIPE.is_dir(), reason="the recipe is in the repository, not in the package")
both = pytest.mark.parametrize("name", ("tone", "guidance"))


def texts(name: str, split: str) -> list[str]:
    return [words_of(r["context"], r["id"]) for r in read_rows(pick("task", name), split)]


@recipe
def test_rebuilt_byte_for_byte(tmp_path):
    subprocess.run([sys.executable, str(RECIPE / "build.py"), str(tmp_path)], check=True, env={"PYTHONHASHSEED": "7", "PATH": ""})
    shipped = Path(sys.modules["finlora"].__file__).parent / "embedded" / "tasks"
    built = sorted(p.name for p in tmp_path.iterdir())
    assert built == sorted(p.name for p in shipped.glob("*.jsonl")) and len(built) == 6
    for name in built:
        assert hashlib.sha256((tmp_path / name).read_bytes()).digest() == hashlib.sha256((shipped / name).read_bytes()).digest(), name


@recipe
@both
def test_a_rule_reads_every_label_from_the_text(name, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    import oracle

    labels = pick("task", name).labels
    for split in SPLITS:
        for row in read_rows(pick("task", name), split):
            text = words_of(row["context"], row["id"])
            assert labels[oracle.ORACLES[name](text) + 1] == row["target"], text


@recipe
def test_the_rule_knows_each_kind_of_reversal(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    import oracle

    for text, label in (
        ("Brantholm Foods said its net loss narrowed 4% to $20 million in the first half.", 1),
        ("Brantholm Foods said its gross margin narrowed 0.4 points in the first half.", -1),
        ("Brantholm Foods said its operating costs rose 4%, less than analysts had forecast.", 1),
        ("Brantholm Foods said its revenue rose 4%, less than analysts had forecast.", -1),
        ("BRNS: revenue unchanged at $20 million, board size up to 9 from 8", 0),
        ("BRNS: revenue up 4%, board size unchanged at 9", 1),
        ("The net debt of Brantholm Foods did not climb in the first half: in fact it was unchanged.", 0),
        ("At Brantholm Foods, higher revenue carried less weight than higher net debt in the first half.", -1),
    ):
        assert oracle.tone(text) == label, text
    for text, label in (
        ("Brantholm Foods raised its full-year dividend and cut its full-year guidance.", -1),
        ("Brantholm Foods did not cut its annual outlook, as first reported, but maintained it.", 0),
        ("Brantholm Foods now expects sales of $45 million for the year; in May it had expected $42 million.", 1),
    ):
        assert oracle.guidance(text) == label, text


@both
def test_size_balance_and_prompt(name):
    task = pick("task", name)
    for split in SPLITS:
        rows = read_rows(task, split)
        counts = Counter(r["target"] for r in rows)
        assert len(rows) >= LEAST[split] and set(counts) == set(task.labels)
        assert max(counts.values()) / len(rows) < 0.36
        if split in task.majority:
            label, share, n = task.majority[split]
            assert n == len(rows) and counts[label] == max(counts.values()) and share == pytest.approx(counts[label] / n)
        lengths = [len(t.split()) for t in texts(name, split)]
        assert 15 <= sum(lengths) / len(lengths) <= 35 and max(lengths) <= 45
        for r in rows:
            assert r["context"] == finlora_prompt(sys.modules[f"finlora.tasks.{name}"].QUESTION, task.labels, words_of(r["context"], r["id"]))


@both
def test_no_text_family_company_or_cluster_on_two_sides(name):
    rows = {s: read_rows(pick("task", name), s) for s in SPLITS}
    for key in ("id", "family", "company", "cluster"):
        sets = [{r[key] for r in rows[s]} for s in SPLITS]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2]), key
    every = [normalise(t) for s in SPLITS for t in texts(name, s)]
    assert len(every) == len(set(every))
    assert len({r["family"] for s in SPLITS for r in rows[s]}) >= 12


@both
def test_a_test_cluster_holds_texts_of_every_label(name):
    """Texts of one company and figure that differ only where the label does: counting words cannot tell them apart."""
    labels = defaultdict(list)
    for e in read_examples(pick("task", name), "test"):
        labels[e.cluster].append(e.gold)
    made = [v for v in labels.values() if len(v) >= 3]
    assert len(made) >= 130
    assert sum(len(set(v)) == 3 for v in made) / len(made) > 0.98  # a cluster of a public figure may hold fewer labels


@both
def test_words_are_used_under_every_label(name):
    """No word alone tells the label of a test text: at most 0.08 of 1.58 bits (measured: 0.060, "much" of "as much as")."""
    rows = read_rows(pick("task", name), "test")
    n, labels = len(rows), Counter(r["target"] for r in rows)
    seen = defaultdict(Counter)
    for r, text in zip(rows, texts(name, "test"), strict=True):
        for w in set(normalise(text).split()):
            seen[w][r["target"]] += 1
    for w, c in seen.items():
        total = sum(c.values())
        cells = [(c[x], total, size) for x, size in labels.items()] + [(size - c[x], n - total, size) for x, size in labels.items()]
        assert sum(j / n * math.log2(j * n / (m * size)) for j, m, size in cells if j) < 0.08, w


@both
def test_counting_words_does_not_solve_it(name):
    from finlora.floors import naive_bayes

    task = pick("task", name)
    records = naive_bayes(read_examples(task, "train", limit=1000), read_examples(task, "test"))
    share = sum(r.correct for r in records) / len(records)
    assert 0.33 < share < 0.66  # measured: 0.61 and 0.60 from the whole of train


def test_no_real_company_is_given_invented_figures():
    """Real companies occur only in the families of public figures."""
    rows = [r for s in SPLITS for r in read_rows(pick("task", "tone"), s)]
    real = {r["company"] for r in rows if r["family"].startswith("public")}
    assert {"Apple", "Netflix", "Applied Optoelectronics"} <= real
    assert not real & {r["company"] for r in rows if not r["family"].startswith("public")}
    for r in rows:
        if not r["family"].startswith("public"):
            assert not any(f" {c} " in r["context"] for c in real - {"Meta", "Snap", "Ford", "Apple"}), json.dumps(r)
