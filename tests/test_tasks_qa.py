"""Tasks with questions, programs, spans and exams: on rows of our own, on broken rows, and the counts of the real files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finlora import conll
from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.rows import read_examples
from finlora.tasks import exam, ner_spans, tatqa
from finlora.tasks._programs import mark, numeric_rows, read

ROWS = Path(__file__).parent / "fixtures"
DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "fin" / "orig"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not here (FINLORA_DATA)")
SIZES = {"finqa": 4, "convfinqa": 6, "tatqa": 5, "tatqa@f1": 5, "fomc": 6, "numclaim": 5, "exam": 5, "exam@shuffled": 5, "ner_spans": 3}


def conll_examples(path: Path):
    task = pick("task", "ner_spans")
    return [e for k, row in enumerate(conll.rows(path.read_bytes(), path)) for e in task.examples(row, k)]


def examples_of(name: str):
    if name == "ner_spans":
        return conll_examples(ROWS / "ner_spans" / "test.conll")
    return read_examples(pick("task", name), "test", ROWS)


# -- every task on rows of our own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_gold_is_right_and_silence_is_not(name):
    task, examples = pick("task", name), examples_of(name)
    assert len(examples) == len({e.id for e in examples}) == SIZES[name]
    for e in examples:
        assert task.mark(e.gold, task.read(e.answer, e.labels)) == 1.0
        assert task.mark(json.loads(json.dumps(e.gold)), json.loads(json.dumps(task.read(e.answer, e.labels)))) == 1.0
        assert task.read("", e.labels) is None and task.mark(e.gold, None) == 0.0
        assert e.messages[0][1].endswith("Answer: ") and hash(e.gold) is not None and e.cluster
    assert task.source.licence and task.errata and task.group
    assert {task.metric, *task.metrics} <= {"accuracy", "macro_f1", "weighted_f1", "mcc", "numeric", "entity_f1", "ece", "brier"}


def test_clusters_are_documents():
    count = {name: len({e.cluster for e in examples_of(name)}) for name in SIZES}
    assert count == {"finqa": 2, "convfinqa": 2, "tatqa": 1, "tatqa@f1": 1, "fomc": 6, "numclaim": 5, "exam": 4, "exam@shuffled": 4, "ner_spans": 3}


BROKEN = {
    "finqa": [{}, {"table": [["a"]], "qa": {}}, {"table": 5, "qa": {"question": "x"}}, {"table": [[1]], "qa": [], "id": 1}, {"context": "x", "target": "cheese"}]
    + [{"table": [], "qa": {"question": "x", "program": "add(1, 2)", "exe_ans": 4}}, {"table": [], "qa": {"question": "x", "program": "addd(1, 2)"}}],
    "convfinqa": [{}, {"doc": 5, "dialogue": {}}, {"doc": {"table": {"a": 1}}, "dialogue": {}}, {"doc": {"table": {}}, "dialogue": []}]
    + [{"doc": {"table": []}, "dialogue": {"conv_questions": ["x"], "turn_program": ["1", "2"], "executed_answers": [1]}}]
    + [{"doc": {"table": [], "pre_text": 5}, "dialogue": {"conv_questions": ["x"], "turn_program": ["1"], "executed_answers": [1]}}]
    + [{"doc": {"table": []}, "dialogue": {"conv_questions": ["x"], "turn_program": ["one"], "executed_answers": [1]}}],
    "tatqa": [{}, {"table": {"table": [[1]]}, "paragraphs": [], "questions": 5}, {"table": {"table": [[1]]}, "paragraphs": [{}], "questions": []}]
    + [{"table": [["x"]], "paragraphs": [], "questions": [{"question": "x", "answer_type": "guess", "scale": "", "answer": "x"}]}]
    + [{"table": [["x"]], "paragraphs": [], "questions": [{"question": "x", "answer_type": "span", "scale": "dozen", "answer": ["x"]}]}]
    + [{"table": [["x"]], "paragraphs": [], "questions": [{"question": "x", "answer_type": "span", "scale": "", "answer": {}}]}],
    "fomc": [{}, {"sentence": "x", "label": 3}, {"sentence": "x", "label": "doveish"}, {"sentence": "", "label": 1}],
    "numclaim": [{}, {"context": "x", "response": "MAYBE"}, {"context": 5, "response": "INCLAIM"}, {"context": "x"}],
    "ner_spans": [{}, {"tokens": "x", "tags": ["O"]}, {"tokens": ["x"], "tags": []}, {"tokens": [], "tags": []}, {"tokens": ["x"], "tags": ["B-DATE"]}],
    "exam": [{}, {"question": "x", "choices": ["a", "b"]}, {"question": "x", "choices": ["a"], "answer": "A"}, {"question": "x", "choices": ["a", "A"], "answer": "A"}]
    + [{"question": "x", "choices": ["a", "b"], "answer": "C"}, {"question": "x", "choices": "ab", "answer": "A"}, {"question": "x", "choices": ["a", "b"], "answer": True}]
    + [{"question": "x", "choices": ["a", None], "answer": "A"}, {"question": 5, "choices": ["a", "b"], "answer": "A"}, {"question": "x", "choices": ["y", "z"], "answer": 7}],
}


@pytest.mark.parametrize(("name", "row"), [(n, r) for n, rows in BROKEN.items() for r in rows])
def test_broken_rows_are_refused_in_one_line(name, row):
    with pytest.raises(FinloraError) as e:
        list(pick("task", name).examples({**row, "__place__": "some.jsonl:7"}, 0))
    assert "some.jsonl:7" in str(e.value) and "\n" not in str(e.value) and e.value.hint


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=5)
COLUMNS = ["table", "qa", "doc", "dialogue", "paragraphs", "questions", "question", "choices", "answer", "tokens", "tags", "context", "target", "response", "sentence", "label", "cur_dial", "pre_text", "id"]


@pytest.mark.parametrize("name", ["finqa", "convfinqa", "tatqa", "fomc", "numclaim", "ner_spans", "exam"])
@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6), st.text(max_size=40))
def test_no_row_and_no_answer_raises_otherwise(name, row, said):
    task = pick("task", name)
    task.mark(examples_of(name)[0].gold, task.read(said, task.labels or ("A", "B")))
    try:
        list(task.examples(row, 0))
    except FinloraError as e:
        assert "\n" not in str(e)


# -- programs ----------------------------------------------------------------------------------------------------------


def test_finqa_reads_all_its_forms():
    task = pick("task", "finqa")
    row = json.loads((ROWS / "finqa" / "test.json").read_text())[0]
    page = {k: row[k] for k in ("pre_text", "post_text", "table")}
    (original,) = task.examples(row, 0)
    assert original.answer == "subtract(5829, 5735), divide(#0, 5735)" and original.gold[1:3] == (0.01639, True)
    (nested,) = task.examples({**page, "question": row["qa"]["question"], "program_re": row["qa"]["program_re"], "final_result": "0.01639", "answer": "1.6%"}, 0)
    (bare,) = task.examples({**page, "question": row["qa"]["question"], "answers": "1.64%"}, 0)
    assert nested.gold[1:] == original.gold[1:] and nested.messages == bare.messages == original.messages
    assert bare.gold[:2] == ("", 0.0164) and bare.answer == "1.64%"
    prompt = f"Table: {row['table']}\n\nQuestion: {row['qa']['question']}\n\n Output:"
    (asked,) = task.examples({"context": prompt, "target": original.answer}, 0)
    assert asked.messages[0][1] == prompt and asked.gold == original.gold and asked.cluster == original.cluster
    assert "net sales | $ 5829 | $ 5735" in original.messages[0][1]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("subtract(5829, 5735), divide(#0, 5735)", 1),
        ("divide(subtract(5829, 5735), 5735)", 1),
        ("Program: `divide(94, 5735)`", 1),  # another way to the same result
        ("divide(5735, 94)", 0),
        ("multiply(divide(94, 5735), const_100)", 0),  # execution accuracy knows one result
        ("0.01639", 1),
        ("1.64%", 1),
        ("1.64", 1),
        ("The answer is 1.639 percent.", 1),
        ("1.6%", 0),  # two digits of what has more
        ("0.02", 0),
        ("164%", 0),
        ("yes", 0),
        ("add(1", 0),
        ("I would subtract first", 0),
    ],
)
def test_marks_of_a_percentage(said, right):
    gold = ("subtract(5829, 5735), divide(#0, 5735)", 0.01639, True, ())
    assert mark(gold, read(said)) == right


def test_marks_of_other_results():
    assert mark(("greater(2, 1)", "yes", False, ()), read("Yes, it was")) == 1
    assert mark(("greater(2, 1)", "yes", False, ()), read("greater(5, 1)")) == 1
    assert mark(("greater(2, 1)", "yes", False, ()), read("1")) == 0
    assert mark(("", 0.01639, False, ()), read("1.64")) == 0 and mark(("", 0.01639, False, ()), read("1.64%")) == 1
    assert mark(("", 12345678.0, False, ()), read("$12.3 million")) == 1 and mark(("", 12345678.0, False, ()), read("12.4 million")) == 0
    rows = (("net sales", "$ 5", "-3 ( 3 )"),)
    assert numeric_rows([["", "2021", "2020"], ["net  sales", "$ 5", "-3 ( 3 )"], ["rating", "aa", "a"], ["x"]]) == rows
    assert mark(("add(5, -3)", 2.0, False, rows), read("table_sum(net sales, none)")) == 1


def test_convfinqa_turns():
    examples = examples_of("convfinqa")
    assert [e.id for e in examples] == [f"convfinqa-{k}" for k in ("0-0", "0-1", "0-2", "0-3", "1-0", "1-1")]
    last = examples[3].messages[0][1]
    assert last.count("Earlier question: ") == 3 and "94" not in last.split("Earlier")[1]
    assert examples[3].gold[1:3] == (0.01639, True) and examples[5].gold[1] == "yes"
    turn = {"pre_text": ["x"], "post_text": [], "table": [["", "2021"], ["net sales", "5829"]], "filename": "ALP/2021/page_1.pdf"}
    (flat,) = pick("task", "convfinqa").examples({**turn, "annotation": {"cur_dial": ["a?", "b?"], "cur_program": "add(1, 2)", "exe_ans": 3.0}}, 4)
    assert flat.id == "convfinqa-4-1" and flat.cluster == examples[0].cluster and "Earlier question: a?\nQuestion: b?" in flat.messages[0][1]
    whole = {"annotation": {"dialogue_break": ["a?", "b?"], "turn_program": ["1", "add(1, 2)"], "exe_ans_list": [1.0, 3.0]}}
    assert len(list(pick("task", "convfinqa").examples({**turn, **whole}, 4))) == 2


# -- TAT-QA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "said", "em", "f1"),
    [
        ((("$1,452.4",), "million", "span"), "$1,452.4 million", 1, 1),
        ((("$1,452.4",), "million", "span"), "1452.4 million", 1, 1),
        ((("$1,452.4",), "million", "span"), "1,452,400,000", 1, 1),
        ((("$1,452.4",), "million", "span"), "1,452.4", 0, 0),  # the scale counts
        ((("-12.6",), "million", "arithmetic"), "(12.6) million", 1, 1),
        ((("-12.6",), "million", "arithmetic"), "12.6 million", 0, 0),
        ((("-22.22",), "percent", "arithmetic"), "-22.22%", 1, 1),
        ((("-22.22",), "percent", "arithmetic"), "-22.22 percent", 1, 1),
        ((("-22.22",), "percent", "arithmetic"), "-0.2222", 1, 1),
        ((("-22.22",), "percent", "arithmetic"), "-22.2%", 0, 0),
        ((("pumps", "valves"), "", "multi-span"), "The valves; pumps.", 1, 1),
        ((("pumps", "valves"), "", "multi-span"), "pumps", 0, 0.67),
        ((("19,911", "15,916"), "thousand", "multi-span"), "15,916; 19,911 thousand", 1, 1),
        ((("$480 million",), "", "span"), "$480 million", 1, 1),
        ((("sales of $65.9 million", "swaps of $52.4 million"), "", "multi-span"), "swaps of $52.4 million; sales of $65.9 million", 1, 1),
        ((("3",), "", "count"), "3", 1, 1),
        ((("3",), "", "count"), "3 3", 0, 0),
        ((("27 May 2019",), "", "span"), "27 may, 2019", 1, 1),
        ((("one; two",), "", "span"), "one; two", 1, 1),
    ],
)
def test_tatqa_marks(gold, said, em, f1):
    answer = tatqa.read(said)
    assert (tatqa.exact(gold, answer), tatqa.f1(gold, answer)) == (em, f1)


def test_tatqa_answers():
    assert [e.answer for e in examples_of("tatqa")] == ["$1,452.4 million", "pumps; valves", "-12.6 million", "-22.22 percent", "1"]
    assert tatqa.read("...") is None and tatqa.read("several million") == (("several million",), "")


# -- labels ------------------------------------------------------------------------------------------------------------


def test_codes():
    assert [e.gold for e in examples_of("fomc")] == ["hawkish", "dovish", "neutral", "hawkish", "dovish", "neutral"]
    assert [e.gold for e in examples_of("numclaim")] == ["in claim", "out of claim", "in claim", "out of claim", "out of claim"]
    read_label = pick("task", "numclaim").read
    labels = pick("task", "numclaim").labels
    assert read_label("In claim.", labels) == "in claim" and read_label("claim", labels) is None
    (named,) = pick("task", "fomc").examples({"sentence": "x", "label": "DOVISH"}, 0)
    assert named.gold == "dovish"


# -- spans -------------------------------------------------------------------------------------------------------------


def test_conll_spans():
    assert conll.spans(["O", "I-ORG", "I-ORG", "I-PER"]) == [("ORG", 1, 3), ("PER", 3, 4)]
    assert conll.spans(["B-PER", "B-PER", "I-PER", "O", "I-PER"]) == [("PER", 0, 1), ("PER", 1, 3), ("PER", 4, 5)]
    assert conll.spans(["B-ORG", "I-PER", "E-PER", "S-LOC"]) == [("ORG", 0, 1), ("PER", 1, 3), ("LOC", 3, 4)]
    assert conll.spans([]) == [] and conll.spans(["O"]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "I-LOC"]), max_size=12))
def test_spans_are_seqeval_s(tags):
    get_entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    assert [(k, a, b - 1) for k, a, b in conll.spans(tags)] == get_entities(tags)


def test_conll_rows():
    rows = list(conll.rows((ROWS / "ner_spans" / "test.conll").read_bytes(), "f.txt"))
    assert [(r["document"], r["__place__"], len(r["tokens"])) for r in rows] == [(1, "f.txt:3", 12), (1, "f.txt:16", 2), (2, "f.txt:21", 5)]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "f.txt has no sentences"), (b"-DOCSTART- O\n\n", "no sentences"), (b"a O\nb\n", "f.txt:2: `b`"), (b"a O\n\nb X-PER\n", "f.txt:3"), (b"a O\nb\xff O\n", "f.txt:2: byte 2")],
)
def test_conll_files_that_are_refused(data, words):
    with pytest.raises(FinloraError) as e:
        list(conll.rows(data, "f.txt"))
    assert words in str(e.value) and "\n" not in str(e.value)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("ab O-IPER\n\t", max_size=60).map(str.encode)))
def test_no_conll_file_raises_otherwise(data):
    try:
        assert all(len(r["tokens"]) == len(r["tags"]) > 0 for r in conll.rows(data, "f.txt"))
    except FinloraError as e:
        assert "f.txt" in str(e) and "\n" not in str(e)


def test_ner_spans_answers():
    examples = examples_of("ner_spans")
    assert examples[0].answer == "organization: Alpha Bank , Inc; person: Jane Roe; location: Rome"
    assert examples[1].answer == "none" and examples[1].gold == ()
    assert examples[2].gold == (("person", "borrower", 0), ("person", "borrower", 1))
    read = ner_spans.read
    assert read("ORG: Alpha Bank, Inc; per : JANE ROE; LOC: Rome.\nmore") == (*examples[0].gold[:2], ("location", "rome .", 0))
    assert read("organization: Alpha Bank, Inc; person: Jane Roe; location: Rome") == examples[0].gold
    assert read("None.") == () and read("there is nobody") is None and read("date: 1999") is None
    assert read("person: A; B") == (("person", "a", 0), ("", "b", 0))
    assert ner_spans.mark(examples[2].gold, read("person: Borrower")) == 0


# -- exams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "letter"),
    [("B", "B"), ("b.", "B"), ("(C) because", "C"), ("B. A company that", "B"), ("**A**", "A"), ("The correct answer is: C", "C"), ("A is right", "A"), ("Option B", "B")]
    + [("A company", None), ("I think B", None), ("A or B", None), ("A/B/C", None), ("D", None), ("Because", None), ("", None), ("a bond", None), ("A, B and C", None)],
)
def test_read_letter(said, letter):
    assert exam.read_letter(said, ("A", "B", "C")) == letter


def test_exams_are_shuffled_by_their_id():
    plain, mixed = examples_of("exam"), examples_of("exam@shuffled")
    assert [e.gold for e in plain] == ["C", "B", "A", "C", "A"] and all(e.labels == tuple("ABCD")[: len(e.labels)] for e in plain)
    for a, b in zip(plain, mixed, strict=True):
        right = [next(line[3:] for line in e.messages[0][1].splitlines() if line.startswith(f"{e.gold}. ")) for e in (a, b)]
        assert right[0] == right[1] and a.cluster == b.cluster and a.id == b.id
    assert plain[3].messages == mixed[3].messages  # "Both A and B" names places
    assert any(a.messages != b.messages for a, b in zip(plain, mixed, strict=True))
    row = {"id": "q9", "question": "x", "choices": ["w", "x", "y", "z"], "answer": "D"}
    assert list(pick("task", "exam@shuffled").examples(row, 0))[0].messages == list(pick("task", "exam@shuffled").examples(row, 8))[0].messages
    places = Counter(exam.order_of(f"q{k}", 4).index(0) for k in range(4000))
    assert all(abs(n - 1000) < 110 for n in places.values())  # four sigma of 4000 draws: 110


def test_exam_rows():
    task = pick("task", "exam")
    want = ("B", ("A", "B", "C"))
    for answer in ({"answer": "B"}, {"answer": "at par"}, {"answer": "B. at par"}, {"answer_index": 1}):
        for choices in ({"choices": ["cheap", "at par", "dear"]}, {"choices": ["A. cheap", "B. at par", "C. dear"]}, {"A": "cheap", "B": "at par", "C": "dear", "D": ""}, {"choices": {"A": "cheap", "B": "at par", "C": "dear"}}):
            (e,) = task.examples({"question": "x", **choices, **answer}, 0)
            assert (e.gold, e.labels) == want and "\nB. at par\n" in e.messages[0][1]


# -- the real files ----------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(("name", "examples", "clusters", "most"), [("finqa", 883, 299, 7), ("convfinqa", 1490, 218, 8), ("tatqa", 1668, 278, 29), ("tatqa@f1", 1668, 278, 29)])
def test_real_counts_floors_and_gold_in(name, examples, clusters, most):
    task = pick("task", name)
    found = read_examples(task, "test", DATA)
    assert (len(found), len({e.id for e in found}), len({e.cluster for e in found})) == (examples, examples, clusters)
    assert all(task.mark(e.gold, task.read(e.answer, e.labels)) == 1.0 for e in found)
    common = Counter(e.answer if name.startswith("tatqa") else str(e.gold[1]) for e in found).most_common(1)[0][0]
    assert sum(task.mark(e.gold, task.read(common, e.labels)) == 1.0 for e in found) == most


@real
@pytest.mark.parametrize(("file", "sentences", "entities", "without", "clusters"), [("ner_FIN5.txt", 1164, 1168, 651, 1115), ("ner_FIN3.txt", 303, 318, 203, 299)])
def test_real_spans(file, sentences, entities, without, clusters):
    examples = conll_examples(DATA / file)
    assert (len(examples), sum(len(e.gold) for e in examples), sum(not e.gold for e in examples), len({e.cluster for e in examples})) == (sentences, entities, without, clusters)
    assert all(ner_spans.mark(e.gold, ner_spans.read(e.answer)) == 1.0 for e in examples)
    if file == "ner_FIN3.txt":
        assert Counter(kind for e in examples for kind, _, _ in e.gold) == {"person": 216, "organization": 56, "location": 39, "miscellaneous": 7}
