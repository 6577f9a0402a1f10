"""The tasks that ship with the package: rebuilt byte for byte, disjoint, balanced, labelled as a rule reads them, hard to count."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from finlora.registry import pick
from finlora.rows import read_examples, read_rows
from finlora.tasks import normalise

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tasks"
SPLITS = ("train", "validation", "test")
LEAST = {"train": 1500, "validation": 200, "test": 400}
recipe = pytest.mark.skipif(not RECIPE.is_dir(), reason="the recipe is in the repository, not in the package")
both = pytest.mark.parametrize("name", ("tone", "guidance"))


def texts(name: str, split: str) -> list[str]:
    return [bare(r) for r in read_rows(pick("task", name), split)]


def bare(row: dict) -> str:
    """The text of a row, without what is asked."""
    return row["context"].rsplit("\n", 1)[0]


@recipe
def test_rebuilt_byte_for_byte(tmp_path):
    subprocess.run([sys.executable, str(RECIPE / "build.py"), str(tmp_path)], check=True, env={"PYTHONHASHSEED": "7", "PATH": ""})
    shipped = Path(sys.modules["finlora"].__file__).parent / "embedded" / "tasks"
    built = sorted(p.name for p in tmp_path.iterdir())
    others = {p.name for p in shipped.glob("filings_*.jsonl")}  # made of filings, by another script
    assert built == sorted(p.name for p in shipped.glob("*.jsonl") if p.name not in others) and len(built) == 6
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
            text = bare(row)
            assert labels[oracle.ORACLES[name](text) + 1] == row["target"], text


@recipe
def test_the_rule_reads_what_a_person_reads(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    import oracle

    for text, label in (
        ("Orders at Fox Oil in May rose, in all.", 1),
        ("Orders at Fox Oil in May rose, in July fell, in all.", -1),
        ("Orders at Fox Oil in December fell; in January stayed flat, in real terms.", 0),
        ("Costs at Fox Oil in May rose, in July fell, in all.", 1),
        ("Fox Oil: sales in 2022 rose to $3.0 billion; operating costs in 2023 rose to $2.0 billion.", -1),
        ("Fox Oil: losses in Q2 2022 grew from $3.0 million to $9.0 million.", -1),
        ("Fox Oil: costs in 2022 rose to $3.0 billion, sales in 2023 were unchanged at $4.0 billion.", 0),
    ):
        assert oracle.tone(text) == label, text
    for text, label in (
        ("At Fox Oil, outlook was in May raised, in June cut, in full.", -1),
        ("At Fox Oil, outlook was in May raised, that of a rival in June cut, in full.", 1),
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
        assert 10 <= sum(lengths) / len(lengths) <= 22 and max(lengths) <= 40
        for r in rows:
            assert r["context"].endswith(f".\n{name.capitalize()}: ") and r["context"].count("\n") == 1


@both
def test_no_text_family_company_or_cluster_on_two_sides(name):
    rows = {s: read_rows(pick("task", name), s) for s in SPLITS}
    for key in ("id", "family", "company", "cluster"):
        sets = [{r[key] for r in rows[s]} for s in SPLITS]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2]), key
    every = [normalise(t) for s in SPLITS for t in texts(name, s)]
    assert len(every) == len(set(every))
    assert len({r["family"] for s in SPLITS for r in rows[s]}) == (11 if name == "tone" else 8)


def test_the_public_rows_and_their_companies():
    """About 15 rows in 100 of `tone`, in each split, state figures of real companies, which occur in no other row."""
    rows = {s: read_rows(pick("task", "tone"), s) for s in SPLITS}
    named = {"train": "Apple", "validation": "Netflix", "test": "Boston Beer"}
    for s in SPLITS:
        public = [r for r in rows[s] if r["family"].split("-")[-1] == "public"]
        rest = [r for r in rows[s] if r["family"].split("-")[-1] != "public"]
        assert 0.14 <= len(public) / len(rows[s]) <= 0.16, s
        assert named[s] in {r["company"] for r in public}
        assert not {r["company"] for r in public} & {r["company"] for r in rest}
        assert all(r["company"] in r["context"] and "$" in r["context"] for r in public)
        assert not any("$" in r["context"] for r in rest)
        counts = Counter(r["target"] for r in public)
        assert max(counts.values()) / len(public) < 0.36
    assert all("$" not in r["context"] for s in SPLITS for r in read_rows(pick("task", "guidance"), s))


@recipe
def test_a_public_row_states_the_facts(monkeypatch):
    """Every move of a public row is one of its company's, with its metric, direction and value."""
    monkeypatch.syspath_prepend(str(RECIPE))
    import facts
    import oracle

    for split, short in zip(SPLITS, ("train", "val", "test"), strict=True):
        for row in read_rows(pick("task", "tone"), split):
            if row["family"].split("-")[-1] != "public":
                continue
            known = {(m["metric"], m["period"]): m for m in facts.moves(facts.FACTS[short][row["company"]][1])}
            pattern = rf"(?:((?:\w+ )?(?:{oracle.METRIC.pattern})) )?in ((?:Q\d )?\d{{4}}) (.+?)(?: from (\$[\d.]+ \w+))? (?:to|at) (\$[\d.]+ \w+)"
            found, metric = re.findall(pattern, bare(row)), ""
            assert found, bare(row)
            for name, period, verb, start, value in found:
                metric = name or metric
                move = known[max((k for k in known if k[1] == period and metric.endswith(k[0])), key=lambda k: len(k[0]))]
                way = 1 if re.fullmatch(oracle.UP, verb) else -1 if re.fullmatch(oracle.DOWN, verb) else 0
                assert (way, value) == (move["way"], move["to"]) and start in ("", move["from"]), bare(row)


@both
def test_a_test_cluster_holds_texts_of_every_label(name):
    """Texts alike in company, things and months, and in most words: only their order tells the label."""
    labels = defaultdict(list)
    for e in read_examples(pick("task", name), "test"):
        labels[e.cluster].append(e.gold)
    made = [v for v in labels.values() if len(v) >= 3]
    assert len(made) >= 130 and all(len(set(v)) == len(v) == 3 for v in labels.values())


@both
def test_words_are_used_under_every_label(name):
    """No word alone tells the label of a test text: at most 0.08 of 1.58 bits (measured: 0.039, "flat")."""
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
    assert 0.33 < share < 0.66  # measured: 0.58 and 0.60 from the whole of train
