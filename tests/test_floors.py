"""Floors: counted by hand on small sets, and against the published ones on the real files where they are."""

import os
from pathlib import Path

import pytest

from finlora import floors, score
from finlora.errors import FinloraError
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
    assert floors._instruction(one) == floors._instruction(two)


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
    cut = floors._shared(["Which way? it rose today Answer:", "Which way? it fell Answer:"])
    assert cut == (3, 1) and floors._trim("Which way? it soared Answer:", cut) == "soared"


@real
@pytest.mark.parametrize(
    "name,accuracy,macro,majority",
    [("fpb", 0.747, 0.678, 0.6153), ("tfns", 0.820, 0.747, 0.6558), ("fiqa", 0.706, 0.543, 0.6)],
)
def test_floors_of_the_real_sets(name, accuracy, macro, majority):
    """Measured here with scikit-learn 1.9; another implementation, its smoothing unknown, had 0.728, 0.820 and 0.672."""
    from finlora.registry import pick
    from finlora.rows import read_examples

    task = pick("task", name)
    train, test = (read_examples(task, split, DATA / "finlora") for split in ("train", "test"))
    found = floors.naive_bayes(train, test, task.mark)
    assert score.accuracy(found) == pytest.approx(accuracy, abs=0.006)
    assert score.macro_f1(found) == pytest.approx(macro, abs=0.012)
    assert score.accuracy(floors.majority(train, test, task.mark)) == pytest.approx(majority, abs=1e-4)
