"""Tagging, XBRL, maths and filings: rows of every format written by us, readings, marks, and the counts of the real files."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora.errors import FinloraError
from finlora.numbers import numbers_match
from finlora.programs import calculate
from finlora.registry import pick
from finlora.rows import overlap, read_examples, read_rows
from finlora.tasks import _tags, _xbrl, cluster_of, financebench, finer, finmath, fnxl, xbrl_term

DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "fin"
real = pytest.mark.skipif(not (DATA / "finlora").is_dir(), reason="the real files are not here (FINLORA_DATA)")
ALL = (
    "finer", "finer@finlora", "fnxl", "fnxl@finlora", "xbrl_term", "finmath", "finmath@finlora", "financebench", "financebench@finlora",
    *(f"xbrl_{k}{v}" for k in ("tag", "value", "formula", "calc") for v in ("", "@finlora", "@closed")),
)  # fmt: skip


def made(task: str, row: dict, index: int = 0) -> list:
    return list(pick("task", task).examples(row, index))


def one(task: str, row: dict, index: int = 0):
    (example,) = made(task, row, index)
    return example


def marked(task: str, gold: str, said: str, labels=()) -> float:
    record = pick("task", task)
    answer = record.read(said, labels)
    return 0.0 if answer is None else record.mark(gold, answer)


@pytest.mark.parametrize("name", ALL)
def test_records(name):
    task = pick("task", name)
    assert task.name == name and task.group in ("tagging", "xbrl", "math", "qa") and task.source.licence and task.source.files
    assert task.read("", task.labels) is None and task.read(" \n ", task.labels) is None and task.read("...", task.labels) is None
    assert task.max_new >= 24 and (task.kind in ("label", "choice")) == (task.way == "choose")
    assert task.errata or name in ("xbrl_tag", "xbrl_value", "xbrl_formula", "xbrl_calc")


# -- finer and fnxl ----------------------------------------------------------------------------------------------------

LINES = ['What is best tag for entity "7" in sentence: "We sold 7 units for $ 9 .?"', 'What is best tag for entity "9" in sentence: "We sold 7 units for $ 9 .?"']
BATCH = {"context": finer.batch_prompt(LINES), "target": "Revenues,Goodwill"}


def test_finer_one_question_a_number():
    a, b = made("finer", BATCH, 4)
    assert (a.id, b.id, a.gold, b.gold) == ("finer-4-0", "finer-4-1", "Revenues", "Goodwill")
    assert a.cluster == b.cluster == cluster_of("We sold 7 units for $ 9 .") and a.labels == finer.TAGS
    assert LINES[0] in a.messages[0][1] and LINES[1] not in a.messages[0][1] and a.messages[0][1].endswith("Output US GAAP tag: ")
    single = one("finer", {"context": LINES[1], "target": "us-gaap:Goodwill"}, 9)
    assert single.id == "finer-9" and single.messages == b.messages and single.gold == b.gold


def test_finer_batched_as_published():
    e = one("finer@finlora", BATCH, 2)
    assert e.messages == (("user", BATCH["context"]),) and e.gold == "Revenues,Goodwill" and e.labels == ()
    assert e.messages[0][1].endswith("\nOutput US GAAP tags:") and "140" not in e.messages[0][1]
    assert one("finer@finlora", {"context": LINES[0], "target": "Revenues"}).messages[0][1] == finer.batch_prompt(LINES[:1])
    for said, value in (("Revenues,Goodwill", 1), (" us-gaap:Revenues, Goodwill", 1), ("Revenues", 0.5), ("Goodwill,Revenues", 0), ("1. Revenues, 2. Goodwill", 1)):
        assert marked("finer@finlora", e.gold, said) == value, said
    assert marked("finer@finlora", e.gold, "x y z,Goodwill,Revenues") == 0.5
    assert pick("task", "finer@finlora").read("no tag here, or here", ()) is None
    assert _tags.mark_batch("A,B,C,D", None) == 0


def test_finer_hub_rows():
    b = finer.NAMES.index("B-DebtInstrumentTerm")
    row = {"id": 3, "tokens": ["Due", "in", "five", "years", ",", "$", "8", "."], "ner_tags": [0, 0, b, b + 1, 0, 0, finer.NAMES.index("B-LongTermDebt"), 0]}
    term, debt = made("finer", row, 5)
    assert (term.gold, debt.gold) == ("DebtInstrumentTerm", "LongTermDebt") and finer.NAMES[b + 1] == "I-DebtInstrumentTerm"
    assert 'entity "five years" in sentence: "Due in five years , $ 8 .?"' in term.messages[0][1] and term.cluster == debt.cluster
    named = {**row, "ner_tags": ["O", "O", "B-DebtInstrumentTerm", "I-DebtInstrumentTerm", "O", "O", "B-LongTermDebt", "O"]}
    assert made("finer", named, 5) == [term, debt]
    assert one("finer@finlora", row, 5).gold == "DebtInstrumentTerm,LongTermDebt"
    assert made("finer", {"tokens": ["No", "number"], "ner_tags": [0, 0]}) == made("finer@finlora", {"tokens": ["No"], "ner_tags": [0]}) == []
    assert len(finer.TAGS) == 139 and len(finer.NAMES) == 170 and finer.CODES == 279
    assert made("finer", {"tokens": ["3", "4"], "ner_tags": [finer.NAMES.index("B-LongTermDebt"), 200]})[0].messages[0][1].count('entity "3 4"') == 1


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        ("InterestExpense", "InterestExpense"),
        ("InterestExpenseDebt", "InterestExpenseDebt"),
        ("us-gaap:InterestExpenseDebt.", "InterestExpenseDebt"),
        ("us-gaap: Goodwill because it was bought", "Goodwill"),
        ("InterestExpenseDebts", None),
        ("Goodwill,InterestExpense", None),
        ("the tag is Goodwill", None),
    ],
)
def test_finer_reads_whole_tags(said, tag):
    assert pick("task", "finer").read(said, finer.TAGS) == tag


SENTENCE = 'Sales of the "Core" were $1.5 and $3.'
FNXL = {"sentence": SENTENCE, "numerals-tags": "{'us-gaap:Revenues': ['1.5', '3'], 'us-gaap:Goodwill': ['3']}", "company": "Ours Inc"}


def test_fnxl_of_all_forms():
    three = made("fnxl", FNXL, 1)
    assert [e.gold for e in three] == ["Revenues", "Revenues", "Goodwill"] and len({e.id for e in three}) == 3 and {e.cluster for e in three} == {cluster_of(SENTENCE)}
    line = fnxl.QUESTION.format(entity="1.5", sentence=SENTENCE)
    assert line in three[0].messages[0][1]
    single = one("fnxl", {"context": line, "target": "Revenues", "company": "Ours Inc"}, 8)
    assert single.messages == three[0].messages and single.cluster == three[0].cluster
    batch = {"context": "Choose.\nA, B\n" + line + "\n" + fnxl.QUESTION.format(entity="3", sentence="We had 3.") + "\n\nOutput US GAAP tags:", "target": "Revenues,Goodwill"}
    a, b = made("fnxl", batch)
    assert (a.gold, b.gold) == ("Revenues", "Goodwill") and a.messages == single.messages and b.cluster == cluster_of("We had 3.")
    assert one("fnxl@finlora", batch).messages == (("user", batch["context"]),) and one("fnxl@finlora", batch).gold == batch["target"]
    assert one("fnxl@finlora", FNXL).gold == "Revenues,Revenues,Goodwill"


def test_fnxl_csv_file(tmp_path):
    with open(tmp_path / "train_sample.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(FNXL))
        writer.writeheader()
        writer.writerow(FNXL)
    assert [e.gold for e in read_examples(pick("task", "fnxl"), "train", tmp_path)] == ["Revenues", "Revenues", "Goodwill"]


def test_fnxl_reads_one_tag_alone():
    read = pick("task", "fnxl").read
    for said in ("Revenues", " us-gaap:Revenues.", "`Revenues`\nbecause", "us_gaap: Revenues".replace("us_", "us-")):
        assert read(said, ()) == "Revenues", said
    for said in ("Revenues, Goodwill", "The tag is Revenues", "Revenues because", "1.5", "?", "x" * 300):
        assert read(said, ()) is None, said
    assert marked("fnxl", "Revenues", "revenues") == 0


# -- terms, maths, filings ---------------------------------------------------------------------------------------------


def test_xbrl_term():
    e = one("xbrl_term", {"term": "Widgets, Net", "definition": "Amount of widgets, after allowances."}, 3)
    assert e == one("xbrl_term", {"context": xbrl_term.term_prompt("Widgets, Net"), "target": "Amount of widgets, after allowances."}, 3)
    assert e.messages[0][1] == "Explain this XBRL term briefly in one sentence: Widgets, Net. Answer:" and e.cluster == cluster_of("widgets net")
    assert made("xbrl_term", {"term": "x", "definition": "nan"}) == made("xbrl_term", {"context": xbrl_term.term_prompt("nan"), "target": "nan"}) == []
    assert marked("xbrl_term", e.gold, "amount of widgets after allowances") == 1
    assert 0 < marked("xbrl_term", e.gold, "Widgets") < 0.5 and marked("xbrl_term", e.gold, "Trees") == 0


def maths(question: str, target: str, formula: str = "X = A / B", name: str = "Our Ratio") -> dict:
    return {
        "context": f"Use formula {name} to answer the question. Answer with a numerical answer with 2 decimal places and with no explanations or other text."
        f" Formula: {formula}, Explanation: A: one, B: other. Question:  {question}. Answer:",
        "target": target,
    }


@pytest.mark.parametrize(
    ("formula", "target", "right", "wrong"),
    [
        ("X = A / B", "0.06", ("0.06", "0.0564", "5.64%", "6%", "5.64 percent"), ("5.64", "0.05", "0.0656", "six", "0.06 or 0.07")),
        ("X = (A / B) × 100", "5.45", ("5.45", "5.45%", "0.0545", "5.4545", "about 5.45 %"), ("545", "0.05", "5.4", "5.46")),
        ("X = A - B", "-100000000.0", ("-100000000", "-$100 million", "(100,000,000)", "−0.1 billion"), ("100000000", "-100")),
        ("X = A × B", "1232.0", ("$1,232.00", "1232", "The answer is 1,232 dollars", "1.232e3"), ("1232.01", "123", "1230")),
    ],
)
def test_finmath_tolerance(formula, target, right, wrong):
    e = one("finmath", maths("How much?" if "-" in formula else "What is X?", target, formula))
    assert e.answer == target and e.cluster == cluster_of("Our Ratio")
    for said in right:
        assert marked("finmath", e.gold, said) == 1, said
    for said in wrong:
        assert marked("finmath", e.gold, said) == 0, said


def test_finmath_counts_are_no_percentages():
    assert one("finmath", maths("By how many people did it rise?", "500.0", "U = (A / B) × 100")).gold == "500.0"
    assert one("finmath", maths("What is the rate?", "5.0", "U = (A / B) × 100")).gold == "5.0%"


def test_finmath_errata(monkeypatch):
    key = cluster_of("What is the NPV of ours?")[:8]
    monkeypatch.setattr(finmath, "ERRATA", {key: ("9.99", "10 / 1.1 - 2"), cluster_of("Ill put?")[:8]: ("1.0", "")})
    row = maths("What is the NPV of ours?", "9.99")
    assert one("finmath", row).gold == "7.09" and one("finmath@finlora", row).gold == "9.99"
    assert one("finmath", {**row, "target": "7.09"}).gold == "7.09"  # a mended file
    with pytest.raises(FinloraError, match="neither the published 9.99 nor 7.09"):
        one("finmath", {**row, "target": "8"})
    assert made("finmath", maths("Ill put?", "1.0")) == [] and one("finmath@finlora", maths("Ill put?", "1.0")).gold == "1.0"


def test_finmath_errata_are_errata():
    for key, (old, how) in finmath.ERRATA.items():
        assert re.fullmatch("[0-9a-f]{8}", key) and math.isfinite(float(old))
        if how:
            assert abs(calculate(how) - float(old)) > 0.005, key


def test_financebench_of_both_forms():
    row = {
        "question": "What is the FY2018 margin, in units of percents?",
        "answer": "2.8%",
        "doc_name": "OURS_2018_10K",
        "evidence": [{"evidence_page_num": 4, "evidence_text": "Sales 100"}, {"evidence_page_num": 6, "evidence_text": "x", "evidence_text_full_page": "Profit 2.8"}],
    }
    e = one("financebench", row)
    assert e.messages[0][1].endswith("\nDocument Pages Context:\nPage 4:\nSales 100\n\nPage 6:\nProfit 2.8\n\nAnswer:") and e.gold == e.answer == "2.8%"
    published = {"context": e.messages[0][1], "target": "0.028", "url": "https://x/y.pdf", "pages": [4, 6]}
    assert one("financebench", published).gold == "2.8%" and one("financebench@finlora", published).gold == "0.028"
    for said, value in (("2.8%", 1), ("2.8", 1), ("0.028", 1), ("The answer is 2.84%", 1), ("28%", 0), ("2.9%", 0)):
        assert marked("financebench", "2.8%", said) == value, said
    million = financebench.mended("How much, in USD millions?", "$1577.00")
    for said, value in (("1577", 1), ("$1,577 million", 1), ("$1.577 billion", 1), ("1577 thousand", 0), ("1578", 0)):
        assert marked("financebench", million, said) == value, said
    assert financebench.mended("Is it 5% more?", "Yes, by 5%.") == "Yes, by 5%."
    assert marked("financebench", "Yes, sales grew.", "Sales grew, yes") == 1 and 0 < marked("financebench", "Yes, sales grew.", "Yes") < 1
    assert marked("financebench", "-0.02", "-2%") == 1 and marked("financebench", "-0.02", "0.02") == 0


# -- xbrl --------------------------------------------------------------------------------------------------------------


def row_of(kind: str, target: str, **more) -> dict:
    return {"id": "a-1", "kind": kind, "context": "XBRL facts ...\nAnswer: ", "target": target, "company": "Ours", "cluster": "ours Assets", **more}


BUILT = {
    "tag": row_of("tag", "us-gaap:Assets", choices=["us-gaap:AssetsCurrent", "us-gaap:Assets", "ours:Ships"]),
    "value": row_of("value", "352583000000", unit="USD", scale="6", decimals="-6"),
    "formula": row_of("formula", "f1 / f2", choices=["f1 / f2", "f1 / f12", "(f1 - f2) / f2", "f2 / f1"]),
    "calc": row_of("calc", "(500 - 400) / 400", choices=["(500 - 400) / 400", "1 / 2"]),
}


@pytest.mark.parametrize("kind", _xbrl.KINDS)
def test_built_rows(kind):
    task, row = pick("task", f"xbrl_{kind}"), BUILT[kind]
    e = one(task.name, row)
    assert (e.id, e.cluster, e.gold, e.answer) == ("a-1", "ours Assets", row["target"], row["target"]) and e.messages == (("user", row["context"]),)
    assert e.labels == (tuple(row["choices"]) if task.kind == "choice" else ())
    assert task.mark(e.gold, task.read(e.answer, e.labels)) == 1
    for other in _xbrl.KINDS:
        if other != kind:
            assert made(f"xbrl_{other}", row) == []  # a file may hold several kinds


def test_options_are_read_whole():
    tags, formulas = tuple(BUILT["tag"]["choices"]), tuple(BUILT["formula"]["choices"])
    for said, option in (("us-gaap:Assets", tags[1]), ("Assets", tags[1]), ("- us-gaap:AssetsCurrent", tags[0]), ("Ships.", tags[2]), ("AssetsCurrent because", tags[0])):
        assert _xbrl.read_option(said, tags) == option, said
    for said in ("us-gaap:Asset", "Assets or AssetsCurrent", "the Assets", "us-gaap:Assets/us-gaap:AssetsCurrent", ""):
        assert _xbrl.read_option(said, tags) is None, said
    for said, option in (("f1/f2", "f1 / f2"), ("f1 / f12.", "f1 / f12"), ("(f1 - f2) / f2", "(f1 - f2) / f2"), ("f1 / f2 as shown", "f1 / f2"), ("f1", None), ("f1 / f21", None)):
        assert _xbrl.read_option(said, formulas) == option, said
    for options in (tags, formulas):
        assert [_xbrl.read_option(o, options) for o in options] == list(options)


QUESTION = {"question": "What is the US GAAP XBRL tag for Total Assets as reported by Ours Inc?", "target": "us-gaap:Assets", "company": "OUR", "year": 2023, "context_id": "c-1"}
WITH_XML = {
    kind: {"context": _xbrl.closed_prompt(kind, "What is it?").replace("(not shown)", "<us-gaap:Assets>500</><us-gaap:Liabilities>400</>"), "target": target}
    for kind, target in (("tag", "us-gaap:Assets"), ("value", "500.0"), ("formula", "(us-gaap:Liabilities / us-gaap:Assets) * 100"), ("calc", "(400 / 500) * 100"))
}


@pytest.mark.parametrize("kind", _xbrl.KINDS)
def test_published_rows_with_and_without_facts(kind):
    e = one(f"xbrl_{kind}@finlora", WITH_XML[kind], 7)
    assert e.messages == (("user", WITH_XML[kind]["context"]),) and e.id == f"xbrl_{kind}-7" and e.gold == WITH_XML[kind]["target"]
    category = next(c for c, k in _xbrl.CATEGORIES.items() if k == kind)
    assert one(f"xbrl_{kind}@finlora", {**WITH_XML[kind], "category": category}, 7) == e
    for other in _xbrl.KINDS:
        if other != kind:
            assert made(f"xbrl_{other}@finlora", WITH_XML[kind]) == []
    question = {**QUESTION, "target": WITH_XML[kind]["target"]}
    closed = one(f"xbrl_{kind}@closed", question)
    assert "XML File: (not shown)\nQuestion: What is the US GAAP" in closed.messages[0][1] and closed.messages[0][1].endswith("\nAnswer:")
    assert closed.cluster == one(f"xbrl_{kind}@closed", {**question, "question": "In other words?"}).cluster  # five wordings of a fact
    for task in (f"xbrl_{kind}@finlora", f"xbrl_{kind}@closed"):
        assert marked(task, e.gold, e.answer) == 1


@pytest.mark.parametrize(
    ("kind", "gold", "right", "wrong"),
    [
        ("tag", "us-gaap:Assets", ("Assets", "us-gaap: Assets", "`us-gaap:Assets`", "US-GAAP:Assets"), ("us-gaap:AssetsCurrent", "ours:Assets", "the Assets", "Assets, Cash")),
        ("tag", "ours:Ships", ("ours:Ships",), ("us-gaap:Ships", "Ships")),
        ("tag", "4131000000.0", ("4131000000", "4,131 million"), ("us-gaap:Assets", "4131")),
        ("value", "-214000000.0", ("-214000000", "(214,000,000)", "-$214 million"), ("214000000", "-214", "-214000001")),
        (
            "formula",
            "(us-gaap:A1 / us-gaap:B1) * 100",
            ("us-gaap:A1 / us-gaap:B1 * 100", "100 * A1 / B1", "us-gaap:A1 / us-gaap:B1) * 100", "(A1/B1)*100"),
            ("us-gaap:A1 / us-gaap:B1", "(B1 / A1) * 100", "A1 * 100", "A1 B1 100", "(A1 / C1) * 100", "us-gaap:A1", "((A1 / B1 * 100"),
        ),
        ("formula", "(us-gaap:A1 - us-gaap:B1) / us-gaap:C1", ("(A1 - B1) / C1", "-(B1 - A1) / C1"), ("A1 - B1 / C1", "(A1 + B1) / C1")),
        (
            "calc",
            "(11311000000 / 45754000000) * 100",
            ("(11311000000 / 45754000000) * 100", "100 * 11311 / 45754", "(11311000000 / 45754000000) * 100 = 24.72", "24.72", "24.72%", "24.7", "0.2472", "24.7213358"),
            ("11311000000 / 45754000000", "25", "24.73", "2472", "0.25", "(11311 / 45755) * 100", "24.72 or 25", "(11311 / 45754"),
        ),
        ("calc", "36814 / 53223", ("36814/53223", "0.69", "0.6917", "69.17%", "$36,814 / $53,223"), ("0.7", "69.17", "53223 / 36814", "0.68")),
        ("calc", "137100000000 / -15848000000", ("137100 / -15848", "-8.65", "(8.65)"), ("8.65", "137100 / 15848")),
        ("calc", "855 / 855", ("855 / 855", "1", "1.00", "100%"), ("855", "0.9")),
        ("calc", "1 / 0.5", ("2", "2.0", "2.00"), ("0.5", "200")),
    ],
)
def test_xbrl_marks(kind, gold, right, wrong):
    for said in right:
        assert marked(f"xbrl_{kind}@finlora", gold, said) == 1, said
    for said in wrong:
        assert marked(f"xbrl_{kind}@finlora", gold, said) == 0, said


def test_nothing_written_is_run():
    for said in ("__import__('os').getcwd() / 2", "a" * 5000 + " / b", "(" * 3000 + "A1 / B1", "9**9**9**9 * A1", "A1 / 0 * B1", "A1 ** (A1 ** 99)"):
        assert _xbrl.read_formula(said) is None or _xbrl.mark_formula("A1 / B1", said) == 0
        assert _xbrl.read_calculation(said) is None


LONG = ("1 ", "(", "a", "1/", "-", "us-gaap:", "A1 / ", "a.", "[*", ",", '" ', "a:", "a-", "1 - ", "\\", "\u2212 ")


@pytest.mark.parametrize("name", ALL)
def test_reading_takes_no_time(name):
    """Measured at most 0.1 s for 100,000 characters; an expression that backtracks would take minutes."""
    task = pick("task", name)
    labels = finer.TAGS if task.kind == "label" else ("us-gaap:A", "f1 / f2") if task.kind == "choice" else ()
    began = time.process_time()
    for piece in LONG:
        answer = task.read(piece * (100_000 // len(piece)), labels)
        assert answer is None or 0 <= task.mark({"number": "2.8%", "program": "1 / 2"}.get(task.kind, "us-gaap:A / us-gaap:B"), answer) <= 1
    assert time.process_time() - began < 10


@given(st.text(max_size=60) | st.text("us-gap:ABC12.()/*+-%$, \n", max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_not(said):
    for name in ALL:
        task = pick("task", name)
        labels = finer.TAGS if task.kind == "label" else ("us-gaap:A", "us-gaap:AB", "A / B") if task.kind == "choice" else ()
        answer = task.read(said, labels)
        if answer is not None:
            json.dumps(answer)
            assert not labels or answer in labels
            assert 0 <= task.mark({"number": "2.8%", "program": "1 / 2"}.get(task.kind, "us-gaap:A / us-gaap:B"), answer) <= 1


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("finer", {"context": "Tag this: 7", "target": "Revenues"}, "no question"),
        ("finer", {**BATCH, "target": "Revenues"}, "2 questions but 1 answers"),
        ("finer", {**BATCH, "target": "Revenues,Sales"}, "unknown tag 'Sales'"),
        ("finer", {**BATCH, "target": None}, "column `target`"),
        ("finer", {"tokens": ["a"], "ner_tags": [0, 0]}, "lists of one length"),
        ("finer", {"tokens": ["a"], "ner_tags": [279]}, "unknown code 279"),
        ("finer", {"tokens": ["a"], "ner_tags": [True]}, "unknown code True"),
        ("finer", {"tokens": ["a"], "ner_tags": ["B-Sales"]}, "unknown code 'B-Sales'"),
        ("finer", {"tokens": ["a"], "ner_tags": [278]}, "continues a number"),
        ("finer@finlora", {"context": 5, "target": "Revenues"}, "int 5"),
        ("fnxl", {**FNXL, "numerals-tags": "{'us-gaap:Revenues': [__import__('os')]}"}, "numerals-tags"),
        ("fnxl", {**FNXL, "numerals-tags": "['3']"}, "numerals-tags"),
        ("fnxl", {**FNXL, "numerals-tags": "{" * 5000}, "numerals-tags"),
        ("fnxl", {**FNXL, "sentence": " "}, "blank"),
        ("fnxl", {"context": fnxl.QUESTION.format(entity="1", sentence="1."), "target": "two words"}, "unknown tag"),
        ("xbrl_term", {"term": "x", "meaning": "y"}, "no definition column"),
        ("xbrl_term", {"context": "x"}, "without an answer"),
        ("finmath", maths("What?", "about three"), "is not a number"),
        ("finmath", {"context": "x"}, "is not a number"),
        ("finmath", {"target": "3"}, "column `context`"),
        ("financebench", {"question": "x", "answer": "y"}, "column `evidence`"),
        ("financebench", {"question": "x", "answer": "y", "evidence": [{"evidence_page_num": 1}]}, "evidence_text"),
        ("xbrl_tag", {"context": "x", "target": "us-gaap:Assets"}, "no `kind`"),
        ("xbrl_tag", {**BUILT["tag"], "kind": "ratio"}, "unknown kind 'ratio'"),
        ("xbrl_tag", {**BUILT["tag"], "choices": ["us-gaap:Assets"]}, "`choices`"),
        ("xbrl_tag", {**BUILT["tag"], "choices": ["a", "b"]}, "not among the choices"),
        ("xbrl_formula", {**BUILT["formula"], "choices": "f1 / f2"}, "`choices`"),
        ("xbrl_value", {**BUILT["value"], "target": "much"}, "is not a number"),
        ("xbrl_calc", {**BUILT["calc"], "target": "1 / 0"}, "is not an arithmetic expression"),
        ("xbrl_tag@finlora", QUESTION, "without the facts"),
        ("xbrl_tag@finlora", {"context": "What is it?", "target": "us-gaap:Assets"}, "cannot tell what kind"),
        ("xbrl_value@finlora", {**WITH_XML["value"], "target": "us-gaap:Assets"}, "is not a number"),
        ("xbrl_formula@closed", QUESTION, "is not a formula"),
        ("xbrl_tag@closed", WITH_XML["tag"], "a row with a whole prompt"),
        ("xbrl_calc@closed", {"question": "x", "target": ""}, "column `target`"),
    ],
)
def test_bad_rows_are_refused_with_their_place(task, row, words):
    with pytest.raises(FinloraError) as e:
        made(task, {**row, "__place__": "some.jsonl:12"})
    assert words in str(e.value) and "some.jsonl:12" in str(e.value) and e.value.hint and "\n" not in str(e.value)


# -- the real files ----------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("task", "folder", "split", "rows", "clusters", "commonest"),
    [
        ("finer", "finlora", "train", 1500, 1045, 77),
        ("finer", "finlora", "test", 500, 358, 29),
        ("finer@finlora", "finlora", "test", 500, 358, 29),
        ("fnxl", "finlora", "train", 1240, 981, 18),
        ("fnxl", "finlora", "validation", 891, 891, 9),
        ("xbrl_term", "finlora", "train", 5850, 5840, 18),
        ("xbrl_term", "finlora", "test", 651, 651, 1),
        ("finmath", "finlora", "train", 795, 50, 30),
        ("finmath", "finlora", "test", 196, 50, 8),
        ("finmath@finlora", "finlora", "train", 800, 50, 36),
        ("finmath@finlora", "finlora", "test", 200, 50, 9),
        ("financebench", "finlora", "train", 86, 53, 2),
        ("financebench@finlora", "finlora", "test", 43, 36, 1),
        ("financebench", "orig", "test", 150, 84, 2),
        ("xbrl_tag@finlora", "xbrl_extract", "test", 100, 20, 5),
        ("xbrl_value@finlora", "xbrl_extract", "test", 90, 18, 5),
        ("xbrl_formula@finlora", "xbrl_extract", "train", 35, 7, 5),
        ("xbrl_formula@finlora", "xbrl_extract", "test", 35, 7, 5),
        ("xbrl_calc@finlora", "xbrl_extract", "test", 35, 7, 5),
        ("xbrl_tag@closed", "xbrl_extract", "test", 2945, 589, 150),
        ("xbrl_value@closed", "xbrl_extract", "test", 2515, 503, 15),
        ("xbrl_formula@closed", "xbrl_extract", "train", 3330, 666, 500),
        ("xbrl_formula@closed", "xbrl_extract", "test", 835, 167, 125),
        ("xbrl_calc@closed", "xbrl_extract", "test", 835, 167, 5),
    ],
)
def test_real_counts_and_gold_in(task, folder, split, rows, clusters, commonest):
    record = pick("task", task)
    examples = read_examples(record, split, DATA / folder)
    assert (len(examples), len({e.cluster for e in examples}), len({e.id for e in examples})) == (rows, clusters, rows)
    counts = Counter(e.gold for e in examples)
    assert counts.most_common(1)[0][1] == commonest
    assert all(record.mark(e.gold, record.read(e.answer, e.labels)) == 1.0 for e in examples)
    label, share, n = record.majority.get(split, ("", 0, rows))
    if folder != "orig" and label:
        assert n == rows and sum(record.mark(e.gold, label) for e in examples) == pytest.approx(share * n), "the floor that is stated"


@real
def test_stated_facts_about_the_tagging_files():
    train, test = (read_examples(pick("task", "finer"), s, DATA / "finlora") for s in ("train", "test"))
    assert sum(e.gold == Counter(t.gold for t in train).most_common(1)[0][0] for e in test) == 24
    seen, asked = {e.cluster for e in train}, {e.messages for e in train}
    assert (sum(e.cluster in seen for e in test), sum(e.messages in asked for e in test), overlap(train, test)) == (32, 20, 24)
    assert list(finer.TAGS) == json.loads((DATA / "finlora" / "finer_tags.json").read_text())
    train, dev = (read_examples(pick("task", "fnxl"), s, DATA / "finlora") for s in ("train", "validation"))
    known = {e.gold for e in train}
    assert (len(known), len({e.gold for e in dev}), len({e.gold for e in dev} - known), sum(e.gold in known for e in dev), overlap(train, dev)) == (731, 554, 364, 386, 10)


@real
def test_stated_facts_about_the_maths_files():
    published, mended = (read_examples(pick("task", n), "test", DATA / "finlora") for n in ("finmath@finlora", "finmath"))
    by_id = {e.id: e for e in mended}
    assert [e.id for e in published if e.id not in by_id] == [f"finmath-{k}" for k in (118, 142, 194, 195)]
    changed = [e.id for e in published if e.id in by_id and not numbers_match(by_id[e.id].gold, e.gold, decimals=2)]
    assert changed == [f"finmath-{k}" for k in (0, 1, 2, 3, 11, 140, 141, 149, 151, 153)]
    rows = [read_rows(pick("task", "finmath"), s, DATA / "finlora") for s in ("test", "train")]
    questions = [cluster_of(finmath.parse_finmath(r["context"])[2])[:8] for part in rows for r in part]
    assert all(questions.count(key) == 1 for key in finmath.ERRATA) and len(finmath.ERRATA) == 53
    assert sum(financebench.is_figure(r["target"]) for r in read_rows(pick("task", "financebench"), "test", DATA / "finlora")) == 15


@real
def test_financebench_is_mended_to_what_the_original_says():
    original = {r["question"].strip(): r["answer"] for r in read_rows(pick("task", "financebench"), "test", DATA / "orig")}
    changed = Counter()
    for split in ("train", "test"):
        for row in read_rows(pick("task", "financebench"), split, DATA / "finlora"):
            question = re.search(r"Question: (.*?)\nDocument Pages", row["context"], re.DOTALL)[1].strip()
            if financebench.is_figure(row["target"]):
                gold = financebench.mended(question, row["target"])
                assert gold.endswith("%") == original[question].endswith("%") and numbers_match(gold, original[question])
                changed[split] += gold.endswith("%")
    assert changed == {"train": 10, "test": 2}


@real
def test_the_published_formulas_are_known_by_name():
    """A table of (ratio, company) learned from train: 0.958 of the published test, the XML never read."""
    ratios = ("Equity Multiplier", "Operating Profit Margin", "Current Ratio", "Gross Profit Margin", "Net Profit Margin", "Quick Ratio", "Cash Flow Margin")
    train, test = (read_rows(pick("task", "xbrl_formula@closed"), s, DATA / "xbrl_extract") for s in ("train", "test"))
    name = {r["question"]: next(x for x in ratios if x in r["question"]) for r in (*train, *test)}
    table, by_name = defaultdict(Counter), defaultdict(Counter)
    for r in train:
        table[name[r["question"]], r["company"]][r["target"]] += 1
        by_name[name[r["question"]]][r["target"]] += 1
    best = {k: max(c, key=c.get) for k, c in (*table.items(), *by_name.items())}
    hits = [best.get((name[r["question"]], r["company"]), best[name[r["question"]]]) == r["target"] for r in test]
    assert sum(hits) / len(hits) == pytest.approx(0.958, abs=5e-4)
    assert sum(best[name[r["question"]]] == r["target"] for r in test) / len(test) == pytest.approx(0.647, abs=5e-4)
    assert {r["target"] for r in test} <= {r["target"] for r in train} and len({r["target"] for r in test}) == 18
    assert all(("* 100')" in r["question"]) == r["target"].endswith("* 100") for r in (*train, *test))
    tags = read_rows(pick("task", "xbrl_tag@closed"), "test", DATA / "xbrl_extract")
    assert (len(tags), sum(not re.search("[A-Za-z]", r["target"]) for r in tags), sum(r["target"].startswith("jpm:") for r in tags)) == (2945, 215, 10)
