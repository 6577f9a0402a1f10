"""Tasks: prompts, readings, labels and clusters on hand-written rows, and the counts of the real files where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from finlora.errors import FinloraError
from finlora.registry import pick
from finlora.rows import overlap, read_examples
from finlora.tasks import (
    SENTIMENT,
    Task,
    check_labels,
    cluster_of,
    finlora_prompt,
    label_rows,
    mark_equal,
    normalise,
    parse_finlora,
    read_label,
)
from finlora.tasks.fiqa import sentiment
from finlora.tasks.headline import QUESTIONS
from finlora.tasks.ner import ner_prompt, parse_ner
from finlora.tasks.nwgi import LEVELS, sign

ALL = ("fpb", "fiqa", "tfns", "tfns@finlora", "nwgi", "nwgi@3", "headline", "headline@finlora", "ner")
DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "fin"
real = pytest.mark.skipif(not (DATA / "finlora").is_dir(), reason="the real files are not here (FINLORA_DATA)")


def one(task: str, row: dict, index: int = 0):
    (example,) = pick("task", task).examples(row, index)
    return example


def finlora(text: str, target: str, labels=SENTIMENT, noun: str = "news", **more) -> dict:
    return {"context": finlora_prompt(f"What is the sentiment of this {noun}?", labels, text), "target": target, **more}


# -- reading and marking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("positive", "positive"),
        (" Positive.", "positive"),
        ("**NEGATIVE**", "negative"),
        ('"neutral"', "neutral"),
        ("\n\n negative\npositive", "negative"),
        ("positive because costs fell", "positive"),
        ("positive/negative", None),  # an echo of the choices names several
        ("negative/neutral/positive", None),
        ("neutral or positive", None),
        ("positively", None),
        ("not negative", None),
        ("The sentiment is positive", None),
        ("positive2", None),
        ("", None),
        (" \n ", None),
        ("...", None),
    ],
)
def test_read_label(said, answer):
    assert read_label(said, SENTIMENT) == answer


def test_read_label_longest_first_and_whole_words():
    assert read_label("moderately negative", LEVELS) == "moderately negative"
    assert read_label("Moderately  Negative!", LEVELS) == "moderately negative"
    assert read_label("moderately", LEVELS) is None
    assert read_label("negative", LEVELS) is None  # a level is wanted, half of one is no answer
    assert read_label("not bad at all", ("not", "not bad")) == "not bad"
    for said in ("nothing", "know", "now", "None"):
        assert read_label(said, ("Yes", "No")) is None
    assert read_label("no", ("Yes", "No")) == "No"


@pytest.mark.parametrize("name", ALL)
def test_every_label_reads_as_itself(name):
    task = pick("task", name)
    assert task.name == name and task.way == "choose" and task.kind == "label"
    assert task.source.licence and task.errata and task.majority
    for gold in task.labels:
        read = [task.mark(gold, task.read(label, task.labels)) for label in task.labels]
        assert sum(read) == 1.0 and read[task.labels.index(gold)] == 1.0
    assert mark_equal("a", None) == 0.0


def test_labels_are_checked():
    make = label_rows("mine", ("a", "b"), "?")
    for bad in ((), ("up",), ("up", "UP"), ("up", ""), ("up", "!")):
        with pytest.raises(FinloraError):
            Task(name="mine", labels=bad, examples=make)
        with pytest.raises(FinloraError):
            check_labels(bad, "here")


# -- prompts and clusters ---------------------------------------------------------------------------------------------


def test_finlora_prompt_and_its_inverse():
    prompt = finlora_prompt("Is it?", ("Yes", "No"), "a {b}\nAnswer: c")
    assert prompt == "Instruction: Is it? Please choose an answer from {Yes/No}.\nInput: a {b}\nAnswer: c\nAnswer: "
    assert parse_finlora(prompt) == ("Is it?", ("Yes", "No"), "a {b}\nAnswer: c")
    assert parse_finlora("Is it? Yes or no:") is None
    assert parse_finlora(finlora_prompt("Is it?", (), "x")) == ("Is it?", (), "x")


def test_clusters():
    a = cluster_of("Costs ROSE 5% at $ABC — again. https://t.co/abc")
    assert len(a) == 16 and int(a, 16) >= 0
    assert a == cluster_of("costs rose 5% at $abc, again  https://t.co/xyz")
    assert a != cluster_of("costs rose 6% at $abc, again")
    assert cluster_of("https://t.co/abc") != cluster_of("https://t.co/xyz")  # nothing but a link: the link is the text
    assert cluster_of("利益が増えた") != cluster_of("利益が減った")  # not only ASCII letters count
    assert cluster_of("ab", "c") != cluster_of("a", "bc")
    assert normalise("ﬁve") == "five"


# -- both formats give the same example -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "hub", "context"),
    [
        ("fpb", {"sentence": "Sales grew .", "label": 2}, finlora("Sales grew .", "positive")),
        ("fpb", {"sentence": "Sales grew .", "label": "positive"}, finlora("Sales grew .", "positive")),
        ("tfns", {"text": "$XY up", "label": 1}, finlora("$XY up", "positive", noun="tweet")),
        ("tfns", {"text": "$XY flat", "label": "2"}, finlora("$XY flat", "neutral", noun="tweet")),
        ("tfns", {"text": "$XY down", "label": "Bearish"}, finlora("$XY down", "negative", noun="tweet")),
        ("tfns@finlora", {"text": "$XY up", "label": 1}, finlora("$XY up", "positive", noun="tweet", target_finlora="neutral")),
        ("tfns@finlora", {"text": "$XY flat", "label": 2}, finlora("$XY flat", "positive", noun="tweet")),
        ("tfns@finlora", {"text": "$XY flat", "label": "neutral"}, finlora("$XY flat", "positive", noun="tweet")),
        ("fiqa", {"sentence": "Up", "sentiment_score": 0.1, "format": "headline"}, finlora("Up", "positive")),
        ("fiqa", {"sentence": "Up", "target": "ABC", "score": "-0.1", "format": "post"}, finlora("Up", "neutral", noun="tweet")),
        ("fiqa", {"text": "Up", "answer": "negative"}, finlora("Up", "negative")),
        ("nwgi", {"news": "Up", "label": "strong positive"}, finlora("Up", "strong positive", LEVELS)),
        ("nwgi@3", {"news": "Up", "label": "mildly negative"}, finlora("Up", "mildly negative", LEVELS)),
        ("ner", {"sentence": "ABC of Rome", "entity": "Rome", "type": "LOC"}, {"context": ner_prompt("Rome", "ABC of Rome"), "target": "location"}),
    ],
)
def test_both_formats_give_the_same_example(task, hub, context):
    a, b = one(task, hub, 7), one(task, context, 7)
    assert a == b and a.id == f"{task.partition('@')[0]}-7"
    assert a.gold == a.answer and a.gold in a.labels == pick("task", task).labels


def test_fingpt_form():
    row = {"instruction": "What is it? Please choose an answer from {negative/neutral/positive}.", "input": "Up", "output": "positive"}
    assert one("fpb", row).messages == (("user", finlora_prompt("What is it?", SENTIMENT, "Up")),)


def test_a_context_is_kept_letter_for_letter():
    context = "Say what this is:  Up\nAnswer: "
    example = one("fpb", {"context": context, "target": "Positive "})
    assert example.messages == (("user", context),) and example.gold == "positive"


def test_levels_fold_by_sign_in_label_and_choices():
    example = one("nwgi@3", finlora("Up", "moderately positive", LEVELS))
    assert example.gold == "positive" and parse_finlora(example.messages[0][1])[1] == SENTIMENT
    assert [sign(level) for level in LEVELS] == ["negative"] * 3 + ["neutral"] + ["positive"] * 3
    assert [sentiment(s) for s in (-1, -0.11, -0.1, 0, 0.099, 0.1, 1)] == ["negative"] * 2 + ["neutral"] * 3 + ["positive"] * 2


def wide(**columns) -> dict:
    return {"News": "gold falls again", **dict.fromkeys(QUESTIONS, "0"), **columns}


def test_headline_wide_row_gives_nine_examples():
    right = list(pick("task", "headline").examples(wide(PriceOrNot="1", DirectionDown="1"), 3))
    published = list(pick("task", "headline@finlora").examples(wide(PriceOrNot="1", DirectionDown="1"), 3))
    assert [e.gold for e in right] == ["Yes", "No", "No", "Yes", "No", "No", "No", "No", "No"]
    assert [e.gold for e in published] == ["No", "No", "No", "Yes", "No", "No", "No", "No", "No"]
    assert len({e.id for e in right}) == 9 and len({e.cluster for e in right}) == 1
    for k, (column, question) in enumerate(QUESTIONS.items()):
        row = {"context": finlora_prompt(question, ("Yes", "No"), "gold falls again"), "target": right[k].gold}
        same = one("headline", row, 3)
        assert same == right[k] and same.id == f"headline-3-{column}"


def test_headline_published_labels():
    row = {"context": finlora_prompt(QUESTIONS["PriceOrNot"], ("Yes", "No"), "x"), "target": "Yes", "target_finlora": "No"}
    assert one("headline", row).gold == "Yes" and one("headline@finlora", row).gold == "No"


def test_ner_clusters_are_sentence_and_entity():
    sentence = "Alpha Bank's loan to Beta in Rome"
    rows = [
        (f"Instruction: {ask}\nOptions: location, person, organization\nInput: {sentence}\nAnswer: ", kind)
        for ask, kind in (
            ("What is the entity type of 'Beta' in the input sentence.", "organization"),
            ("In the input sentence, determine the entity type for 'Beta'.", "organization"),
            ("In the input sentence, determine the entity type for 'Rome'.", "location"),
        )
    ]
    clusters = [one("ner", {"context": c, "target": t}).cluster for c, t in rows]
    assert clusters[0] == clusters[1] != clusters[2]
    assert parse_ner(rows[0][0]) == ("Beta", sentence)
    assert parse_ner(ner_prompt("Alpha's", sentence)) == ("Alpha's", sentence)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("fpb", {"context": "x"}, "without an answer"),
        ("fpb", {"context": "x", "target": ""}, "without an answer"),
        ("fpb", {"target": "positive"}, "context"),
        ("fpb", {"context": "x", "target": "bullish"}, "unknown label 'bullish'"),
        ("fpb", {"context": "x", "target": 3}, "unknown label 3"),
        ("fpb", {"context": 5, "target": "neutral"}, "int"),
        ("fpb", {"sentence": "x", "label": 3}, "unknown label 3"),
        ("fpb", {"sentence": "x", "label": True}, "unknown label True"),
        ("fpb", {"sentence": "x", "label": None}, "unknown label None"),
        ("fpb", {"sentence": " ", "label": 1}, "blank"),
        ("fpb", {"sentence": "\ud800", "label": 1}, "surrogate"),
        ("fpb", {"headline": "x", "label": 1}, "found: headline, label"),
        ("fpb", {"sentence": "x", "gold": 1}, "found: sentence, gold"),
        ("fpb", finlora("x", "neutral", ()), "label list"),
        ("fiqa", {"sentence": "x", "score": "high"}, "-1 to 1"),
        ("fiqa", {"sentence": "x", "score": float("nan")}, "-1 to 1"),
        ("fiqa", {"sentence": "x", "score": 1.5}, "-1 to 1"),
        ("nwgi", {"news": "x", "label": "positive"}, "unknown label"),
        ("nwgi@3", {"context": "x", "target": "neutral"}, "choices"),
        ("headline", {"News": "x", "PriceOrNot": 1}, "DirectionUp"),
        ("headline", wide(PastNews="2"), "unknown label '2'"),
        ("ner", {"sentence": "x", "type": "PER"}, "no entity column"),
        ("ner", {"sentence": "x", "entity": "x", "type": "MISC"}, "unknown label 'MISC'"),
    ],
)
def test_bad_rows_are_refused_with_their_place(task, row, words):
    with pytest.raises(FinloraError) as e:
        list(pick("task", task).examples({**row, "__place__": "some.jsonl:12"}, 0))
    assert words in str(e.value) and "some.jsonl:12" in str(e.value) and e.value.hint and "\n" not in str(e.value)
    assert "__place__" not in str(e.value)


def test_known_swapped_labels_are_refused(monkeypatch):
    from finlora.tasks import headline, tfns

    monkeypatch.setattr(tfns, "NEUTRAL", frozenset({cluster_of("$XY reports today")[:8]}))
    monkeypatch.setattr(headline, "PRICED", frozenset({cluster_of("gold falls")[:8]}))
    swapped, right = finlora("$XY reports today", "positive", noun="tweet"), finlora("$XY reports today", "neutral", noun="tweet")
    assert one("tfns", right).gold == "neutral" and one("tfns@finlora", swapped).gold == "positive"
    prompt = finlora_prompt(QUESTIONS["PriceOrNot"], ("Yes", "No"), "gold falls")
    yes, no = {"context": prompt, "target": "Yes"}, {"context": prompt, "target": "No"}
    assert one("headline", yes).gold == "Yes" and one("headline@finlora", no).gold == "No"
    for task, row in (("tfns", swapped), ("tfns@finlora", right), ("headline", no), ("headline@finlora", yes)):
        with pytest.raises(FinloraError, match="published"):
            one(task, row)


def test_tasks_load_no_torch():
    code = "import sys; from finlora.registry import pick\n"
    code += "".join(f"pick('task', '{t}')\n" for t in ALL)
    code += "import finlora.rows; sys.exit(bool({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- the real files ---------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("task", "split", "rows", "clusters", "label", "count"),
    [
        ("fpb", "train", 3628, 3625, "neutral", 2145),
        ("fpb", "test", 577, 577, "neutral", 355),
        ("fiqa", "train", 877, 874, "positive", 542),
        ("fiqa", "test", 235, 233, "positive", 141),
        ("tfns", "train", 9543, 9417, "neutral", 6178),
        ("tfns", "test", 2388, 2377, "neutral", 1566),
        ("tfns@finlora", "test", 2388, 2377, "positive", 1566),
        ("nwgi", "test", 2039, 2039, "moderately positive", 783),
        ("nwgi@3", "test", 2039, 2039, "positive", 1138),
        ("headline", "train", 8271, 881, "No", 5635),
        ("headline", "test", 20547, 2218, "No", 13985),
        ("headline@finlora", "test", 20547, 2218, "No", 15827),
        ("ner", "train", 800, 796, "person", 461),
        ("ner", "test", 3502, 98, "person", 2295),
    ],
)
def test_real_counts_floors_and_gold_in(task, split, rows, clusters, label, count):
    record = pick("task", task)
    examples = read_examples(record, split, DATA / "finlora")
    assert (len(examples), len({e.cluster for e in examples}), len({e.id for e in examples})) == (rows, clusters, rows)
    assert Counter(e.gold for e in examples).most_common(1) == [(label, count)]
    assert all(record.mark(e.gold, record.read(e.answer, e.labels)) == 1.0 for e in examples)
    wrong = [record.labels[(record.labels.index(e.gold) + 1) % len(record.labels)] for e in examples]
    assert not any(record.mark(e.gold, record.read(w, e.labels)) for e, w in zip(examples, wrong))
    for name, n in ((split, rows), (f"{split}_dev", rows), (f"{split}_sub", rows)):
        if name in record.majority and record.majority[name][2] == n:
            assert record.majority[name][:2] == (label, pytest.approx(count / rows))
            break
    else:
        raise AssertionError(f"{task} names no majority floor for these {rows} rows")


@real
def test_real_published_labels_differ_where_the_errata_say():
    for task, n in (("tfns", 2041), ("headline", 1842)):
        right = read_examples(pick("task", task), "test", DATA / "finlora")
        published = read_examples(pick("task", f"{task}@finlora"), "test", DATA / "finlora")
        assert sum(a.gold != b.gold for a, b in zip(right, published, strict=True)) == n


@real
def test_real_overlaps():
    shared = {t: overlap(*(read_examples(pick("task", t), s, DATA / "finlora") for s in ("train", "test"))) for t in ("fpb", "fiqa", "tfns", "headline", "ner")}
    assert shared == {"fpb": 0, "fiqa": 2, "tfns": 43, "headline": 0, "ner": 0}


@real
def test_real_headline_csv_equals_the_prompts():
    for task in ("headline", "headline@finlora"):
        record = pick("task", task)
        a, b = (read_examples(record, "test", DATA / d) for d in ("finlora", "orig"))
        assert [(e.gold, e.cluster, e.id.split("-")[2]) for e in a] == [(e.gold, e.cluster, e.id.split("-")[2]) for e in b]
    train = read_examples(pick("task", "headline"), "train", DATA / "orig", limit=400)
    assert len(train) == 3600


@real
def test_real_pairs_of_ner():
    by = {e.cluster: e.gold for e in read_examples(pick("task", "ner"), "test", DATA / "finlora")}
    assert Counter(by.values()) == {"person": 69, "organization": 17, "location": 12}


@real
def test_the_published_tfns_file_is_refused():
    import json

    task = pick("task", "tfns")
    lines = (DATA / "finlora" / "tfns_test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    published = [{"context": r["context"], "target": r["target_finlora"]} for r in rows]
    with pytest.raises(FinloraError, match="swapped"):
        for i, row in enumerate(published):
            list(task.examples(row, i))
