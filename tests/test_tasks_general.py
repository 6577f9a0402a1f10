"""General tasks: prompts of every format, readings, scoring of a gap, and the counts of the real files where they are."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from finlora.asking import ask
from finlora.errors import FinloraError
from finlora.generate import choose
from finlora.registry import pick
from finlora.rows import overlap, read_examples, read_rows
from finlora.tasks import read_label
from finlora.tasks._choice import read_choice, read_letter
from finlora.tasks.gsm8k import mark_number, read_solution
from finlora.tasks.hellaswag import tidy
from finlora.text import Example, by_bytes, prompt_text

NAMES = ("arc_easy", "arc_challenge", "boolq", "commonsense_qa", "copa", "gsm8k", "hellaswag", "mmlu", "openbookqa", "piqa", "winogrande")
VARIANTS = ("arc_easy@bytes", "arc_challenge@sum", "copa@lm_eval", "hellaswag@sum", "openbookqa@sum", "piqa@bytes")
DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "general"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not here (FINLORA_DATA)")

WHAT = "Which of these melts first?"
OPTIONS = ["a stone", "an ice cube", "a brick", "a spoon"]
HUB = {"choices": {"text": OPTIONS, "label": ["A", "B", "C", "D"]}, "answerKey": "B"}
INSTRUCTED = {
    "instruction": f"Please choose the correct answer to the question: {WHAT}\n\nAnswer1: a stone Answer2: an ice cube Answer3: a brick "
    "Answer4: a spoon\n\nAnswer format: answer1/answer2/answer3/answer4",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}


def one(task: str, row: dict, index: int = 0) -> Example:
    (example,) = pick("task", task).examples(row, index)
    return example


# -- all formats of a row give the same example -----------------------------------------------------------------------


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_arc(task):
    hub = one(task, {"id": "x", "question": WHAT, **HUB})
    assert prompt_text(hub) == f"Question: {WHAT}\nAnswer: " and hub.labels == tuple(OPTIONS) and hub.gold == hub.answer == "an ice cube"
    numbered = {"text": OPTIONS, "label": ["1", "2", "3", "4"]}
    stemmed = {"stem": WHAT, "choices": [{"text": t, "label": k} for t, k in zip(OPTIONS, "ABCD")]}
    for row in (
        {"question": WHAT, "choices": numbered, "answerKey": "2"},
        {"question": stemmed, "answerKey": "B"},
        {"query": f"Question: {WHAT}", "choices": OPTIONS, "gold": 1},
        INSTRUCTED,
    ):
        assert one(task, row) == hub
    assert one(f"{task}@{'bytes' if task == 'arc_easy' else 'sum'}", {"question": WHAT, **HUB}) == hub


def test_openbookqa():
    hub = one("openbookqa", {"question_stem": "The first to melt is", **HUB})
    assert prompt_text(hub) == "The first to melt is " and hub.gold == "an ice cube"
    assert one("openbookqa", {"query": "The first to melt is", "choices": OPTIONS, "gold": 1}) == hub


def test_commonsense_qa():
    hub = one("commonsense_qa", {"question": WHAT + " ", "question_concept": "melt", **HUB})
    assert prompt_text(hub) == f"Question: {WHAT}\nA. a stone\nB. an ice cube\nC. a brick\nD. a spoon\nAnswer: "
    assert hub.labels == ("A", "B", "C", "D") and hub.gold == "B"
    query = f"Question: {WHAT}\nChoices:\nA. a stone\nB. an ice cube\nC. a brick\nD. a spoon\nAnswer:"
    assert one("commonsense_qa", {"query": query, "choices": ["A", "B", "C", "D"], "gold": 1}) == hub


def test_mmlu():
    row = {"question": WHAT + "\n", "subject": "high_school_physics", "choices": OPTIONS, "answer": 1}
    e = one("mmlu", row, 7)
    head = "The following are multiple choice questions (with answers) about high school physics."
    assert prompt_text(e) == f"{head}\n\n{WHAT}\nA. a stone\nB. an ice cube\nC. a brick\nD. a spoon\nAnswer: "
    assert e.gold == "B" and e.id == "mmlu-high_school_physics-7" and e.messages[0] == ("system", head)
    assert one("mmlu", {**row, "answer": "B"}, 7) == one("mmlu", {**row, "answer": "1"}, 7) == e
    passage = "This question refers to the following information.\n\"Rates rose.\"\nA bank, 1980\n"
    first, second = (one("mmlu", {**row, "question": passage + q}) for q in ("Who?", "When?"))
    assert first.cluster == second.cluster != e.cluster


def test_hellaswag():
    row = {"activity_label": "Baking", "ctx_a": "A man kneads dough.", "ctx_b": "he", "ctx": "x", "endings": OPTIONS, "label": "1", "source_id": "a~v1"}
    e = one("hellaswag", row)
    assert prompt_text(e) == "Baking: A man kneads dough. He " and e.gold == "an ice cube"
    assert one("hellaswag", {**row, "label": 1}) == e and one("hellaswag", {**row, "ctx_a": "He sleeps."}).cluster == e.cluster
    assert tidy(" Tie it. [title] Now [step] go  on [x] ") == "Tie it.. Now go on "[:-1] + " "


def test_piqa():
    hub = one("piqa", {"goal": "melt ice", "sol1": "heat it", "sol2": "sing to it", "label": 0})
    assert prompt_text(hub) == "Question: melt ice\nAnswer: " and hub.gold == "heat it" and hub.labels == ("heat it", "sing to it")
    assert one("piqa", {"query": "Question: melt ice\n", "choices": ["heat it", "sing to it"], "gold": 0}) == hub


def test_boolq():
    hub = one("boolq", {"question": "is ice cold", "passage": "Ice is frozen water.", "answer": True})
    assert prompt_text(hub) == "Ice is frozen water.\nQuestion: is ice cold?\nAnswer: " and hub.gold == "yes" and hub.labels == ("no", "yes")
    assert one("boolq", {"question": "is ice cold", "passage": "Ice is frozen water.", "label": 1, "idx": 3}) == hub
    assert one("boolq", {"question": "is ice cold", "passage": "Ice is frozen water.", "answer": "true"}) == hub
    query = "Passage: Ice is frozen water.\nQuestion: is ice cold?"
    assert one("boolq", {"query": query, "choices": ["no", "yes"], "gold": 1}) == hub
    assert one("boolq", {"question": "is ice cold", "passage": "Ice is frozen water.", "answer": False}).gold == "no"


def test_copa():
    row = {"premise": "The bank raised rates.", "choice1": "Loans fell.", "choice2": "It rained.", "question": "effect", "idx": 0, "label": 0}
    hub = one("copa", row)
    assert prompt_text(hub) == "The bank raised rates therefore " and hub.labels == ("loans fell.", "it rained.") and hub.gold == "loans fell."
    assert one("copa", {"query": "The bank raised rates therefore", "choices": ["loans fell.", "it rained."], "gold": 0}) == hub
    assert prompt_text(one("copa", {**row, "question": "cause"})) == "The bank raised rates because "
    assert prompt_text(one("copa@lm_eval", row)).endswith("therefore  ")


def test_winogrande():
    row = {"sentence": "The cup did not fit the bag as the _ was too big.", "option1": "cup", "option2": "bag", "answer": "1"}
    hub = one("winogrande", row)
    assert prompt_text(hub) == "The cup did not fit the bag as the " and hub.labels == ("cup", "bag") and hub.gold == "cup"
    assert hub.after == " was too big." and hub.answer == "cup was too big."
    before = "The cup did not fit the bag as the "
    assert one("winogrande", {"context_options": [before + "cup", before + "bag"], "continuation": "was too big.", "gold": 0}) == hub
    near = {"context_options": ["I sold my home as the home", "I sold my home as the house"], "continuation": ".", "gold": 1}
    assert one("winogrande", near).labels == ("home", "house") and one("winogrande", near).after == " ."


def test_gsm8k():
    e = one("gsm8k", {"question": "What is 1,000 + 80?", "answer": "1000+80=<<1000+80=1080>>1080 in all.\n#### 1,080"})
    assert prompt_text(e) == "Question: What is 1,000 + 80?\nAnswer: " and e.gold == "1080" and e.answer.endswith("#### 1,080")
    task = pick("task", "gsm8k")
    assert task.mark(e.gold, task.read(e.answer, ())) == 1.0 and task.kind == "number" and task.way == "say" and task.labels == ()


def test_an_option_given_twice_is_one():
    e = one("arc_easy", {"question": WHAT, "choices": {"text": ["red", "blue", "red"], "label": ["A", "B", "C"]}, "answerKey": "C"})
    assert e.labels == ("red", "blue") and e.gold == "red"


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("B", "B"), (" B.", "B"), ("(b)", "B"), ("**C**", "C"), ("B. an ice cube", "B"), ("B) because", "B"), ("The answer is D.", "D"), ("Answer: A", "A"),
        ("B because", "B"), ("A bank", None), ("a", "A"), ("a bank", None), ("A/B", None), ("A or B", None), ("Because", None), ("E", None), ("", None),
        ("A-level", None), ("D's", None), ("None", None), ("\n\nC\n", "C"),
    ],
)  # fmt: skip
def test_read_letter(said, answer):
    assert read_letter(said, ("A", "B", "C", "D")) == answer


@pytest.mark.parametrize(
    ("said", "labels", "answer"),
    [
        ("-2", ("2", "-2"), "-2"), ("2", ("2", "-2"), "2"), ("it is 2", ("2", "-2"), None), (" an Ice  cube.", tuple(OPTIONS), "an ice cube"),
        ("an ice cube, as it is cold", tuple(OPTIONS), "an ice cube"), ("10.5", ("10", "10.5"), "10.5"), ("10", ("10", "10.5"), "10"), ("", ("a", "b"), None),
        ("a stone or a brick", tuple(OPTIONS), None), ("nothing", ("no", "yes"), None), (".", (".", "?"), "."),
    ],
)  # fmt: skip
def test_read_choice(said, labels, answer):
    assert read_choice(said, labels) == answer


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("so 3+4=7\n#### 7", "7"), ("#### 1,080.", "1080"), ("#### -$5", "-5"), ("It costs $1,577.00 in all.", "1577.00"), ("5-3=2", "2"), ("7 is right", "7"),
        ("#### 7\nQuestion: what of 9?", "7"), ("7\n\nQuestion: and 9?", "7"), ("####", None), ("none at all", None), ("", None), ("0.50", "0.50"), ("007", "7"),
        ("#### 12 apples of 15", "12"), ("−4", "-4"), ("page 3. Answer: 10-4", "4"),
    ],
)  # fmt: skip
def test_read_solution(said, answer):
    assert read_solution(said) == answer


def test_mark_number():
    assert mark_number("1080", "1080.00") == 1.0 and mark_number("1", "2") == 0.0 and mark_number("1", None) == 0.0 and mark_number("1", "x") == 0.0


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("arc_easy", {"question": WHAT, **HUB, "answerKey": ""}, "no answer"),
        ("arc_easy", {"question": WHAT, **HUB, "answerKey": "F"}, "none of 4"),
        ("arc_easy", {"question": WHAT, "choices": {"text": OPTIONS, "label": ["A"]}, "answerKey": "A"}, "4 choices with 1 labels"),
        ("arc_easy", {"question": WHAT, "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "A"}, "two or more"),
        ("arc_easy", {"question": WHAT, "choices": "x", "answerKey": "A"}, "list of texts"),
        ("arc_easy", {"question": " ", **HUB}, "blank"),
        ("arc_easy", {"text": WHAT}, "found: text"),
        ("arc_easy", {"instruction": "Choose!", "answer": "answer1"}, "unknown form"),
        ("arc_challenge", {"query": "Question: x", "choices": ["a", 3], "gold": 0}, "list of texts"),
        ("arc_challenge", {"query": "Question: x", "choices": ["a", "b"], "gold": 2}, "none of 2"),
        ("arc_challenge", {"query": "Question: x", "choices": ["a", "b"], "gold": True}, "none of 2"),
        ("arc_challenge", {"query": "Question: x", "choices": ["a", "\ud800"], "gold": 0}, "surrogate"),
        ("mmlu", {"question": WHAT, "choices": OPTIONS, "answer": 1}, "`subject`"),
        ("mmlu", {"question": WHAT, "subject": "x", "choices": OPTIONS, "answer": 4}, "none of 4"),
        ("hellaswag", {"ctx": "x", "endings": OPTIONS, "label": ""}, "no answer"),
        ("hellaswag", {"ctx": "x", "endings": ["[a]", "b"], "label": 1}, "brackets"),
        ("hellaswag", {"endings": OPTIONS, "label": 1}, "`ctx`"),
        ("piqa", {"goal": "x", "sol1": "a", "sol2": "b", "label": -1}, "no answer"),
        ("piqa", {"goal": "x", "sol1": "a", "label": 0}, "`sol2`"),
        ("winogrande", {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}, "gap"),
        ("winogrande", {"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}, "no answer"),
        ("winogrande", {"sentence": "_ b", "option1": "a", "option2": "b", "answer": "1"}, "before the gap"),
        ("boolq", {"passage": "x", "question": "y", "answer": "maybe"}, "unknown label"),
        ("boolq", {"passage": "x", "question": "y"}, "no answer column"),
        ("copa", {"premise": "x.", "choice1": "a", "choice2": "b", "question": "why", "label": 0}, "unknown label"),
        ("commonsense_qa", {"question": WHAT, **HUB, "answerKey": None}, "no answer"),
        ("gsm8k", {"question": "x", "answer": "so 7"}, "####"),
        ("gsm8k", {"question": "x", "answer": 7}, "int"),
    ],
)
def test_bad_rows_are_refused_with_their_place(task, row, words):
    with pytest.raises(FinloraError) as e:
        list(pick("task", task).examples({**row, "__place__": "some.jsonl:12"}, 0))
    assert words in str(e.value) and "some.jsonl:12" in str(e.value) and e.value.hint and "\n" not in str(e.value) and "__place__" not in str(e.value)


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_records_are_complete(name):
    task = pick("task", name)
    assert task.name == name and task.group == "general" and task.source.hub and task.source.licence and task.errata and task.majority
    assert task.read("", ("a", "b")) is None
    assert task.kind in ("choice", "label", "number") and task.norm == ("bytes" if task.stem in ("arc_challenge", "hellaswag", "openbookqa") else "sum") or "@" in name


def test_general_tasks_load_no_torch():
    code = "import sys; from finlora.registry import pick\n" + "".join(f"pick('task', '{t}')\n" for t in NAMES)
    assert subprocess.run([sys.executable, "-c", code + "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"]).returncode == 0


def test_validation_of_a_hub_folder(tmp_path):
    (tmp_path / "validation.jsonl").write_text(json.dumps({"goal": "melt ice", "sol1": "heat it", "sol2": "sing", "label": 0}) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({"goal": "melt ice", "sol1": "heat it", "sol2": "sing", "label": -1}) + "\n")
    assert read_examples(pick("task", "piqa"), "validation", tmp_path)[0].gold == "heat it"
    with pytest.raises(FinloraError, match="no answer") as e:
        read_examples(pick("task", "piqa"), "test", tmp_path)
    assert "test.jsonl:1" in str(e.value) and "validation" in e.value.hint


COLUMNS = (
    "query", "choices", "gold", "question", "question_stem", "answerKey", "answer", "instruction", "subject", "ctx", "ctx_a", "ctx_b", "activity_label", "endings",
    "label", "source_id", "goal", "sol1", "sol2", "sentence", "option1", "option2", "context_options", "continuation", "passage", "premise", "choice1", "choice2",
)  # fmt: skip


def test_any_row_is_an_example_or_one_line():
    """Random cells in whole rows, and random rows: an Example whose gold can be read, or one line with the place."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    text = st.one_of(st.text(max_size=12), st.sampled_from(["A", "B", "1", "0", "-1", "#### 7", "a _ b", "\ud800", "cause", "[x]", "yes", "nan", " ", ""]))
    cell = st.one_of(text, st.none(), st.booleans(), st.integers(-2, 6), st.floats(), st.lists(text, max_size=4), st.dictionaries(st.sampled_from(["text", "label", "stem", "choices"]), st.one_of(text, st.lists(text, max_size=3)), max_size=3))
    whole = {
        "question": WHAT, "choices": OPTIONS, "subject": "x", "answer": 1, "passage": "x", "goal": "x", "sol1": "a", "sol2": "b", "label": 1, "premise": "x.", "choice1": "a",
        "choice2": "b", "sentence": "a _ b", "option1": "c", "option2": "d", "endings": OPTIONS, "ctx": "x", "question_stem": "x", "answerKey": "A",
    }  # fmt: skip

    @hypothesis.settings(max_examples=400, deadline=None)
    @hypothesis.given(name=st.sampled_from([*NAMES, *VARIANTS]), base=st.sampled_from([whole, {}]), cells=st.dictionaries(st.sampled_from(COLUMNS), cell, max_size=5))
    def check(name, base, cells):
        task = pick("task", name)
        try:
            (e,) = task.examples({**base, **cells, "__place__": "some.jsonl:12"}, 0)
        except FinloraError as error:
            assert "some.jsonl:12" in str(error) and "\n" not in str(error)
            return
        assert task.read("", e.labels) is None
        assert task.kind == "number" or e.gold in e.labels and len(set(e.labels)) == len(e.labels) > 1
        if task.kind == "number" or all(any(c.isalnum() for c in x) for x in e.labels):
            assert task.mark(e.gold, task.read(e.answer, e.labels)) == 1.0 or len({" ".join(x.split()).casefold() for x in e.labels}) < len(e.labels)

    check()


# -- scoring ----------------------------------------------------------------------------------------------------------


def test_by_bytes():
    assert by_bytes({"ab": -4.0, "é": -4.0, "abcd": -4.0}) == {"ab": -2.0, "é": -2.0, "abcd": -1.0}


GAPS = [
    one("winogrande", {"sentence": f"The {a} did not fit the {b} as the _ was {c} big.", "option1": a, "option2": b, "answer": "1"}, k)
    for k, (a, b, c) in enumerate([("cup", "bag", "too"), ("old cup of tea", "bag", "too"), ("bag", "cup", "not so very")])
]


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_gap_is_judged_by_what_follows_it(make_model, monkeypatch, template, packed):
    """Against transformers' own logits over whole sentences, one at a time."""
    import torch

    model = make_model("llama")
    if template == "chat":
        monkeypatch.setattr(model, "tokenizer", copy.deepcopy(model.tokenizer))
        model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    found = choose(model, GAPS, template=template, packed=packed)
    for e, scores in zip(GAPS, found):
        asked = ask(e, model.tokenizer, template)
        assert asked.skip and list(scores) == list(e.labels)
        for label, ids, skip in zip(e.labels, asked.labels, asked.skip):
            whole = [*asked.prompt, *ids]
            with torch.no_grad():
                logp = model.body(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            n = len(asked.prompt)
            expected = sum(float(logp[n + j - 1, t]) for j, t in enumerate(ids) if j >= skip)
            assert scores[label] == pytest.approx(expected, abs=2e-4)
            said = model.tokenizer.decode(ids[skip:])
            assert said.strip() == e.after.strip() and model.tokenizer.decode(ids[:skip]).strip() == label


def test_end_tokens_only_where_wanted(make_model):
    model = make_model("llama")
    e = Example("x", (("user", "How many? "),), "10", "10", "", ("10", "10.5"))
    assert len(ask(e, model.tokenizer, "plain").labels[0]) == len(ask(e, model.tokenizer, "plain", disjoint=False).labels[0]) + 1


# -- the real files ---------------------------------------------------------------------------------------------------


def position(e: Example, row: dict) -> str:
    """The gold as `majority` names it; by the file's key, as two options of the same words are one label of an Example."""
    key = next((row[k] for k in ("gold", "label", "answer") if isinstance(row.get(k), int)), 0)
    return e.gold if e.labels[:1] in (("A",), ("no",)) or "answer" in row else f"option {key + 1}"


@real
@pytest.mark.parametrize(
    ("task", "split", "rows", "clusters", "label", "count"),
    [
        ("arc_easy", "test", 2376, 2371, "option 3", 634),
        ("arc_challenge", "test", 585, 584, "option 2", 151),
        ("openbookqa", "test", 500, 498, "option 1", 138),
        ("commonsense_qa", "test", 1221, 1221, "C", 492),
        ("mmlu", "test", 2381, 2337, "D", 653),
        ("hellaswag", "test", 1000, 704, "option 1", 267),
        ("piqa", "test", 1838, 1801, "option 2", 928),
        ("winogrande", "test", 621, 561, "option 2", 317),
        ("boolq", "test", 785, 760, "yes", 488),
        ("copa", "test", 100, 100, "option 1", 55),
        ("gsm8k", "test", 656, 656, "12", 20),
        ("arc_easy", "train", 2251, 2245, None, 0),
        ("arc_challenge", "train", 1119, 1118, None, 0),
        ("openbookqa", "train", 1200, 1192, None, 0),
        ("mmlu", "train", 285, 284, None, 0),
        ("gsm8k", "train", 7473, 7473, None, 0),
    ],
)
def test_real_counts_floors_and_gold_in(task, split, rows, clusters, label, count):
    record = pick("task", task)
    examples = read_examples(record, split, DATA)
    assert (len(examples), len({e.id for e in examples})) == (rows, rows)
    assert len({e.cluster for e in examples}) == clusters
    assert all(record.mark(e.gold, record.read(e.answer, e.labels)) == 1.0 for e in examples)
    assert all(record.mark(e.gold, record.read(str(e.gold), e.labels)) == 1.0 for e in examples)
    if record.kind != "number":
        wrong = [next(x for x in e.labels if x != e.gold) for e in examples]
        assert not any(record.mark(e.gold, record.read(w, e.labels)) for e, w in zip(examples, wrong))
    if label:
        assert Counter(map(position, examples, read_rows(record, split, DATA))).most_common(1) == [(label, count)]
        assert (label, pytest.approx(count / rows), rows) in [tuple(v) for v in record.majority.values()]


@real
def test_real_overlaps():
    shared = {t: overlap(*(read_examples(pick("task", t), s, DATA) for s in ("train", "test"))) for t in ("arc_easy", "arc_challenge", "openbookqa", "gsm8k")}
    assert shared == {"arc_easy": 7, "arc_challenge": 5, "openbookqa": 5, "gsm8k": 0}


def test_boolq_reads_labels():
    assert pick("task", "boolq").read is read_label
