"""Floors: counted by hand on small sets, and against the published ones on the real files where they are."""

import functools
import os
from pathlib import Path

import pytest

from finlora import floors, score
from finlora.errors import FinloraError
from finlora.floors import bayes, common
from finlora.text import Example

LABELS = ("down", "flat", "up")
DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "fin"
real = pytest.mark.skipif(not (DATA / "finlora").is_dir(), reason="the real files are not here (FINLORA_DATA)")


def ask(id, text, gold, labels=LABELS, question="Which way?", cluster=""):
    return Example(str(id), (("user", f"Instruction: {question}\nInput: {text}\nAnswer: "),), gold, str(gold), cluster, labels)


def answers(records):
    return [r.answer for r in records]


def test_majority_and_its_ties():
    train = [ask(1, "a", "up"), ask(2, "b", "flat"), ask(3, "c", "flat"), ask(4, "d", "up"), ask(5, "e", "down")]
    (found,) = floors.majority(train, [ask("t", "z", "up")])
    assert found.answer == "flat"  # as common as up, and earlier among the labels
    assert (found.way, found.correct, found.id, found.gold) == ("floor:majority", 0.0, "t", "up")
    assert len(found.prompt) == 16 and found.said is None
    assert answers(floors.majority(train, [ask("t", "z", "up", ("up", "flat", "down"))])) == ["up"]


def test_majority_never_answers_what_is_not_offered():
    train = [ask(k, "a", "up") for k in range(9)] + [ask(9, "b", "no", ("yes", "no"))]
    test = [ask("t", "z", "yes", ("yes", "no")), ask("u", "z", "flat", ("flat", "down")), ask("v", "z", "up", ())]
    assert answers(floors.majority(train, test)) == ["no", "flat", "up"]
    assert answers(floors.naive_bayes(train, test)) == ["no", "flat", "up"]


def test_an_instruction_that_many_share_is_counted_apart():
    price = [ask(f"p{k}", f"gold {k}", "yes", ("yes", "no"), "About price?") for k in range(60)]
    past = [ask(f"q{k}", f"gold {k}", "no", ("yes", "no"), "About the past?") for k in range(70)]
    rare = [ask(f"r{k}", f"gold {k}", "yes", ("yes", "no"), "About jobs?") for k in range(5)]
    test = [ask(0, "x", "yes", ("yes", "no"), q) for q in ("About price?", "About the past?", "About jobs?", "About rain?")]
    for floor in (floors.majority, floors.naive_bayes):
        assert answers(floor(price + past + rare, test))[:2] == ["yes", "no"]
    assert answers(floors.majority(price + past + rare, test))[2:] == ["no", "no"]  # too few: all with these labels


def test_names_in_quotes_do_not_make_an_instruction():
    one, two = (ask(1, "x", "up", question=f"What type is '{name}'?") for name in ("ACME", "O2 plc"))
    assert common.instruction(one) == common.instruction(two)


def words(n, start=0, swap=False):
    says = {"up": "profit rose", "down": "profit fell", "flat": "profit flat"}
    return [ask(start + k, f"company {start + k} {says[g]}", g) for k in range(n) for g in (LABELS[k % 3],)]


def test_naive_bayes_reads_words():
    train, test = words(60), words(30, 1000)
    found = floors.naive_bayes(train, test)
    assert score.accuracy(found) == 1 and {r.way for r in found} == {"floor:naive_bayes"}
    assert score.accuracy(floors.majority(train, test)) == pytest.approx(1 / 3)


def test_naive_bayes_sees_order_through_bigrams():
    """"not bad" against "bad not" have the same words."""
    train = [ask(k, ("costs not bad" if k % 2 else "bad costs not") + f" {k}", "up" if k % 2 else "down", ("down", "up")) for k in range(40)]
    test = [ask("a", "costs not bad", "up", ("down", "up")), ask("b", "bad costs not", "down", ("down", "up"))]
    assert score.accuracy(floors.naive_bayes(train, test)) == 1


def test_an_answer_depends_on_its_own_prompt_only():
    train, test = words(60), words(30, 1000)
    alone = [floors.naive_bayes(train, [e])[0] for e in test[:5]]
    assert alone == floors.naive_bayes(train, test)[:5]
    assert floors.naive_bayes(train[::-1], test) == floors.naive_bayes(train, test)


def test_odd_training_sets():
    with pytest.raises(FinloraError, match="needs training examples"):
        floors.majority([], words(3))
    with pytest.raises(FinloraError, match="needs training examples"):
        floors.naive_bayes([], words(3))
    assert answers(floors.naive_bayes(words(1), words(3))) == ["down"] * 3
    same = [ask(k, "x", "up") for k in range(10)]  # no word but those all share
    assert answers(floors.naive_bayes(same, same[:2])) == ["up", "up"]
    assert floors.naive_bayes(words(9), []) == []


def test_the_mark_is_the_tasks():
    found = floors.majority(words(3), words(3), mark=lambda gold, answer: 0.25)
    assert {r.correct for r in found} == {0.25}


def test_shared_ends_are_left_out():
    cut = common.shared(["Which way? it rose today Answer:", "Which way? it fell Answer:"])
    assert cut == (3, 1) and common.trim("Which way? it soared Answer:", cut) == "soared"


# -- the other floors ------------------------------------------------------------------------------------------------------


def test_prior_draws_the_shares_and_by_id_alone():
    train = [ask(k, "a", "up" if k % 4 else "down") for k in range(400)]
    test = [ask(f"t{k}", "z", "up") for k in range(2000)]
    found = floors.prior(train, test)
    assert sum(r.answer == "up" for r in found) / 2000 == pytest.approx(0.75, abs=0.03)  # three sigma 0.029
    assert "flat" not in answers(found) and floors.prior(train, test[5:6]) == found[5:6]
    strange = [ask(f"s{k}", "z", "yes", ("yes", "no")) for k in range(400)]
    assert sum(r.answer == "yes" for r in floors.prior(train, strange)) / 400 == pytest.approx(0.5, abs=0.08)


def test_nearest_takes_the_likest_prompt():
    train = [ask(1, "profit rose sharply", "up"), ask(2, "profit fell", "down"), ask(3, "the board met", "flat"), ask(4, "the board met", "up")]
    test = [ask("a", "sales and profit rose", "up"), ask("b", "sales fell", "down"), ask("c", "board met again", "flat"), ask("d", "xyz", "flat")]
    assert answers(floors.nearest(train, test)) == ["up", "down", "flat", "up"]  # c: two as near, the first label; d: the commonest
    assert answers(floors.nearest(train, [ask("e", "profit rose sharply", "no", ("yes", "no"))])) == ["yes"]  # never what is not offered
    assert floors.nearest(train[::-1], test) == floors.nearest(train, test)


def filing(k, company, ratio, year, gold, wording="What is"):
    prompt = f"You read filings.\nXML File: <a>{k * 7}</a><b>{company} {k}</b>\nQuestion: {wording} the {ratio} of {company} in {year}?\nAnswer:"
    return Example(f"{year}-{k}", (("user", prompt),), gold, gold, f"{company}-{ratio}-{year}")


def test_lookup_never_reads_the_input():
    e = filing(3, "Acme", "margin", 2021, "a / b")
    assert floors.question_of(e).split() == "you read filings. question: what is the margin of acme in #? answer:".split()
    paper = Example("p", (("user", "Answer briefly. Question: Why?\nDocument Pages Context:\nIn 2020\nwe sold\nAnswer:"),), "x", "x")
    assert floors.question_of(paper).split() == "answer briefly. question: why? answer:".split()
    table = {("Acme", "margin"): "a / b", ("Acme", "ratio"): "c / d", ("Bolt", "margin"): "a / e", ("Bolt", "ratio"): "c / d"}
    rows = [(k, *key, year, gold, w) for year in (2020, 2021, 2022) for k, (key, gold) in enumerate(table.items()) for w in ("What is", "Give")]
    train, test = [[filing(*r) for r in rows if (r[3] == 2022) == held] for held in (False, True)]
    assert score.accuracy(floors.lookup(train, test)) == 1
    new = filing(9, "Acme", "margin", 2023, "a / b", "Please state")
    assert answers(floors.lookup(train, [new])) == ["a / b"]  # the likest question of other words


def test_lookup_finds_the_formula_that_a_prompt_begins_with():
    """Golds that go with the named formula and with nothing else: the beginning is chosen by cross-validation."""
    names = {"growth": "0.05", "yield": "0.07", "cover": "3"}
    noise = "alpha beta gamma delta epsilon zeta".split()
    def make(k):
        name = list(names)[k % 3]
        tail = " ".join(noise[(k * j) % 6] for j in range(1, 7))
        gold = names[name] if k % 9 < 6 else str(k)
        return Example(f"m{k}", (("user", f"Use formula {name} to answer the question. Question: {tail} {k}. Answer:"),), gold, gold)

    found = floors.lookup([make(k) for k in range(90)], [make(k) for k in range(90, 120)])
    assert score.accuracy(found) == pytest.approx(2 / 3, abs=0.1)


def choice(id, labels, gold):
    return Example(str(id), (("user", f"q {id}"),), gold, gold, "", labels)


def test_position_and_longest():
    train = [choice(k, (f"a{k}", f"b{k}", f"c{k}"), f"b{k}") for k in range(4)] + [choice(9, ("x", "y"), "x")]
    test = [choice("t", ("one", "two", "a longer three"), "two"), choice("u", ("yes", "no"), "yes"), choice("v", ("1", "2", "3", "44"), "1")]
    assert answers(floors.position(train, test)) == ["two", "yes", "1"]
    assert answers(floors.longest([], test)) == ["a longer three", "yes", "44"]


def term(id, words, answer):
    return Example(str(id), (("user", f"Explain this term: {words}. Answer:"),), answer, answer)


def test_constant_and_echo():
    train = [term(1, "gross profit", "amount of profit"), term(2, "net profit", "amount of profit after tax"), term(3, "goodwill", "amount of an asset")]
    test = [term("t", "operating profit", "amount of operating profit")]
    (found,) = floors.constant(train, test)
    assert found.answer == "amount of profit" and found.said == found.answer and found.correct == 0
    (found,) = floors.echo(train, test)
    assert found.answer == "operating profit."
    (found,) = floors.echo(train, test, mark=lambda gold, said: score.token_f1(gold, said))
    assert found.correct == pytest.approx(2 * 2 / 6)


def spans(id, text, *gold):
    return Example(str(id), (("user", f"List the entities.\nInput: {text}\nAnswer: "),), [list(g) for g in gold], "-")


def test_dictionary_and_nothing():
    train = [
        spans(1, "Acme Corp. pays Smith", ("ORG", "Acme Corp.", 0), ("PER", "Smith", 0)),
        spans(2, "the Bank lends to Smith", ("PER", "Smith", 0)),
        spans(3, "a Bank in Bank Street", ("LOC", "Bank Street", 0)),
        spans(4, "one Bank", ("ORG", "Bank", 0)),
    ]
    test = [spans("t", "SMITH of Acme Corp. and Smith met the Bank in Bank Street"), spans("u", "nobody"), spans("v", "x", ("PER", "x", 0))]
    found = answers(floors.dictionary(train, test))
    assert found[0] == [["PER", "Smith", 0], ["ORG", "Acme Corp.", 0], ["PER", "Smith", 1], ["LOC", "Bank Street", 0]]
    assert found[1:] == [[], []] and answers(floors.nothing([], test)) == [[], [], []]


def test_floors_of_a_task():
    from dataclasses import replace

    from finlora.registry import pick

    task = replace(pick("task", "tone"), floors=("lookup",))
    train, test = words(30), words(9, 100)
    found = floors.of(task, train, test)
    assert list(found) == ["majority", "prior", "naive_bayes", "nearest", "lookup"] == list(floors.names_of(task))
    assert all([r.id for r in records] == [e.id for e in test] and {r.way for r in records} == {f"floor:{name}"} for name, records in found.items())
    assert list(floors.of(task, train, test, names=floors.SIMPLE)) == ["majority"] and floors.of(task, [], test) == {}
    with pytest.raises(FinloraError, match="no floor named `lookupp`.*did you mean `lookup`"):
        floors.names_of(replace(task, floors=("lookupp",)))
    said = replace(task, kind="number", labels=(), floors=(), read=lambda text, labels: float(text), mark=lambda gold, x: float(abs(gold - x) < 1))
    train = [Example(str(k), (("user", f"How many? {'a' if k % 2 else 'b'}"),), {0: 7.0, 1: 9.0}[k % 2], {0: "7.0", 1: "9.0"}[k % 2]) for k in range(5)]
    found = floors.of(said, train, [Example("t", (("user", "How many? a"),), 9.5, "9.5")])
    assert found["majority"][0].answer == 7.0 and found["nearest"][0].said == "9.0" and found["nearest"][0].correct == 1


def test_every_kind_has_floors_and_metrics():
    from finlora import tasks

    assert set(floors.OF_KIND) == set(score.OF_KIND) == set(tasks.KINDS)
    assert {x for names in floors.OF_KIND.values() for x in names} <= set(floors.FLOORS)
    assert {x for names in score.OF_KIND.values() for x in names} <= set(score.METRICS)


def test_encoder_probe():
    """Vectors that tell the classes apart, then ones that tell nothing: the commonest."""
    import numpy as np

    train, test = words(60), words(30, 1000)
    found = floors.encoder_probe(train, test, lambda texts: np.array([[("rose" in t), ("fell" in t)] for t in texts], float))
    assert score.accuracy(found) == 1 and found[0].way == "floor:encoder"
    blind = floors.encoder_probe(train + words(1, 500), test, lambda texts: np.ones((len(texts), 2)))
    assert set(answers(blind)) == {"down"}
    assert answers(floors.encoder_probe([ask(1, "a", "up")], test[:2], lambda t: np.ones((len(t), 2)))) == ["up", "up"]


# -- against the published figures -----------------------------------------------------------------------------------------


@functools.cache
def of_real(name, folder="finlora"):
    from finlora.registry import pick
    from finlora.rows import read_examples

    task = pick("task", name)
    return task, *(read_examples(task, split, DATA / folder) for split in ("train", "test"))


@functools.cache
def bayes_of(name):
    task, train, test = of_real(name)
    return floors.naive_bayes(train, test, task.mark)


@real
@pytest.mark.parametrize(
    "name,accuracy,macro,majority,published",
    [("fpb", 0.747, 0.678, 0.6153, 0.728), ("tfns", 0.820, 0.747, 0.6558, 0.820), ("fiqa", 0.706, 0.543, 0.6, 0.672)],
)
def test_floors_of_the_real_sets(name, accuracy, macro, majority, published):
    """Measured here with scikit-learn 1.9. By cross-validated smoothing we are never a point below the published naive Bayes,
    and 1.9 and 3.4 points above on FPB and FiQA; with 0.3, all questions together, its figures come out to 0.2 points."""
    task, train, test = of_real(name)
    found = bayes_of(name)
    assert score.accuracy(found) == pytest.approx(accuracy, abs=0.006) and score.accuracy(found) >= published - 0.01
    assert score.macro_f1(found) == pytest.approx(macro, abs=0.012)
    assert score.accuracy(floors.majority(train, test, task.mark)) == pytest.approx(majority, abs=1e-4)
    plain = bayes._guess(train, test, False, [0.3])[0]
    assert sum(answer == e.gold for answer, e in zip(plain, test)) / len(test) == pytest.approx(published, abs=0.002)


@real
def test_right_labels_fail_on_the_swapped_file():
    """Trained on right labels, graded on the published ones: 0.169."""
    swapped = {"positive": "neutral", "neutral": "positive", "negative": "negative"}
    found = [(r, swapped[r.gold]) for r in bayes_of("tfns")]
    assert sum(r.answer == gold for r, gold in found) / len(found) == pytest.approx(0.169, abs=0.01)


@real
def test_headline_floors():
    task, train, test = of_real("headline")
    assert score.accuracy(floors.majority(train, test, task.mark)) == pytest.approx(0.8285, abs=1e-4)
    assert score.accuracy(floors.naive_bayes(train, test, task.mark)) == pytest.approx(0.921, abs=0.01)


@real
def test_term_floors():
    """Token F1 / ROUGE-L published: echo .337 / .262, a constant .218 / .184, the nearest training term .633 / .610."""
    task, train, test = of_real("xbrl_term")
    found = floors.of(task, train, test)
    for name, f1, rouge in (("echo", 0.337, 0.262), ("constant", 0.218, None), ("nearest", 0.633, 0.610)):
        assert score.METRICS["token_f1"](found[name]) == pytest.approx(f1, abs=0.005), name
        assert rouge is None or score.METRICS["rouge_l"](found[name]) == pytest.approx(rouge, abs=0.002), name


@real
def test_mathematics_floors():
    """The commonest training answer 4.0%, that of each formula 13.5%."""
    task, train, test = of_real("finmath@finlora")
    assert score.accuracy(floors.majority(train, test, task.mark, task.read)) == pytest.approx(0.04)
    assert score.accuracy(floors.lookup(train, test, task.mark, task.read)) == pytest.approx(0.135)


def closed(rows):
    return [Example(str(k), (("user", f"Question: {r['question']}\nAnswer:"),), r["target"], r["target"], f"{r['company']} {r['year']} {r['target']}") for k, r in enumerate(rows)]


def lines(name):
    import json

    with open(DATA / "xbrl_extract" / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@real
def test_formulas_are_known_without_the_filing():
    """A table of (ratio, company) has 95.8%; looked up by the question alone 98.8%, to the letter (96.6% if ties fell the other way)."""
    found = floors.lookup(closed(lines("formula_tags_train")), closed(lines("formula_tags_test")))
    assert score.accuracy(found) == pytest.approx(0.988, abs=0.002)


@real
@pytest.mark.slow
def test_tags_are_known_without_the_filing():
    """Each company left out in turn: published 81.2% of all rows and 87.6% of those that ask for a tag; here 80.6 and 87.3."""
    rows = lines("tags_test")
    found = []
    for company in sorted({r["company"] for r in rows}):
        found += floors.lookup(closed([r for r in rows if r["company"] != company]), closed([r for r in rows if r["company"] == company]))
    assert score.accuracy(found) == pytest.approx(0.812, abs=0.01)
    assert score.accuracy([r for r in found if r.gold.startswith("us-gaap:")]) == pytest.approx(0.876, abs=0.01)


@real
def test_entity_dictionary():
    task, train, test = of_real("ner_spans", "orig")
    found = floors.of(task, train, test)["dictionary"]
    assert score.METRICS["entity_f1"](found) == pytest.approx(0.811, abs=0.005) and score.accuracy(found) == pytest.approx(0.888, abs=0.005)
