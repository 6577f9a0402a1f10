"""Grading end to end: gold in gives 100%, permuted answers chance, a killed grading resumes to the same bytes.

A model that answers as it is told stands in for `choose` and `say` where the grader itself is on trial.
"""

from __future__ import annotations

import json
import random

import pytest
import torch

import finlora
from finlora import evaluate, figures, receipt, registry, score
from finlora import model as models
from finlora.errors import FinloraError
from finlora.evaluate import How, as_way, evaluate_task, file_name, results, run
from finlora.tasks import SENTIMENT, Task, finlora_prompt, label_rows

TASK = Task(name="mood@here", labels=SENTIMENT, examples=label_rows("mood", SENTIMENT, "What is the mood?"), errata="none that we know of")
WORDS = {"negative": "fell", "neutral": "stayed", "positive": "rose"}


def rows_of(n: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    golds = [rng.choices(SENTIMENT, (2, 5, 3))[0] for _ in range(n)]
    return [{"context": finlora_prompt("What is the mood?", SENTIMENT, f"Sales of firm {seed}{k} {WORDS[g]}."), "target": g} for k, g in enumerate(golds)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with 40 test and 60 training rows, and the task known to the registry."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, n, seed in (("train", 60, 1), ("test", 40, 2)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows_of(n, seed)), encoding="utf-8")
    monkeypatch.setattr(evaluate, "pick", lambda kind, name: TASK if name == TASK.name else registry.pick(kind, name))
    monkeypatch.setattr(evaluate, "CHUNK", 8)
    monkeypatch.setattr(figures, "_FLOORS", {})
    return folder


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("llama")


def told(monkeypatch, answer):
    """Let answer(example) decide what is said and chosen; returns the list of examples that were asked."""
    asked = []

    def choose(_, examples, *args, **options):
        asked.extend(examples)
        return [{label: -0.5 if label == answer(e) else -9.0 for label in e.labels} for e in examples]

    monkeypatch.setattr(evaluate, "choose", choose)
    monkeypatch.setattr(evaluate, "say", lambda _, examples, *a, **o: [f" {answer(e)}." for e in examples])
    return asked


def test_gold_in_gives_all_right(model, data, monkeypatch):
    told(monkeypatch, lambda e: e.gold)
    found = results(model, TASK.name, dir=data)[TASK.name]
    for part in (found, *found["by_way"].values()):
        assert part["unreadable"] == 0
        for metric in (m for name, m in part["metrics"].items() if not score.METRICS[name].lower_is_better):
            assert metric["value"] == 1 and metric["low"] < 1, "all right is no proof of perfection"
    assert (found["n"], found["way"], found["clusters"], found["errata"]) == (40, "choose", 40, TASK.errata)
    assert sum(map(sum, found["confusion"]["matrix"])) == 40


def test_permuted_answers_are_chance(model, data, monkeypatch):
    examples = [e for k, r in enumerate(rows_of(400, 5)) for e in TASK.examples(r, k)]
    shuffled = [e.gold for e in examples]
    random.Random(0).shuffle(shuffled)
    said = {e.id: g for e, g in zip(examples, shuffled)}
    told(monkeypatch, lambda e: said[e.id])
    _, found = evaluate_task(model, TASK, examples)
    chance = sum((sum(e.gold == label for e in examples) / 400) ** 2 for label in SENTIMENT)
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["low"] < chance < accuracy["high"] and accuracy["high"] - accuracy["low"] < 0.11


def test_what_cannot_be_read_is_wrong_and_counted(model, data, monkeypatch):
    told(monkeypatch, lambda e: "know" if e.id.endswith("3") else e.gold)
    found = results(model, TASK.name, dir=data)[TASK.name]
    assert found["by_way"]["say"]["unreadable"] == 4
    assert found["by_way"]["say"]["metrics"]["accuracy"]["value"] == 0.9
    only = results(model, TASK.name, dir=data, ways=("say",))[TASK.name]
    assert only["unreadable"] == 4 and only["way"] == "say" and list(only["by_way"]) == ["say"]
    assert [row[-1] for row in only["confusion"]["matrix"]] and sum(row[-1] for row in only["confusion"]["matrix"]) == 4


def test_floors_are_learned_from_the_training_split(model, data, monkeypatch):
    told(monkeypatch, lambda e: e.gold)
    golds = [r["target"] for r in rows_of(40, 2)]
    train = [r["target"] for r in rows_of(60, 1)]
    commonest = max(SENTIMENT, key=train.count)
    floors = results(model, TASK.name, dir=data)[TASK.name]["floors"]
    assert floors["majority"]["metrics"]["accuracy"]["value"] == golds.count(commonest) / 40
    assert floors["naive_bayes"]["metrics"]["accuracy"]["value"] == 1, "one word tells the label here"
    assert "naive_bayes" not in results(model, TASK.name, dir=data, train_floors=False)[TASK.name]["floors"]
    (data / "train.jsonl").unlink()
    alone = results(model, TASK.name, dir=data)[TASK.name]["floors"]
    assert list(alone) == ["majority"] and "no training split" in alone["majority"]["how"]


def test_a_real_grading_and_its_receipt(model, make_model, data, tmp_path):
    out = tmp_path / "run"
    made = run(model, [TASK.name], data, out=out, max_new=4)
    assert made == receipt.read(out) and made["kind"] == "evaluate"
    found = made["results"][TASK.name]
    kept = score.read_records(out / found["records"])
    assert found["records"] == "records/mood-here.jsonl" and len(kept) == 40
    assert made["data"] == [{"task": TASK.name, "split": "test", "rows": 40, "sha256": receipt.file_digest(data / "test.jsonl")}]
    assert made["model"]["sha256"] == evaluate.digest(model) and made["model"]["params"] == sum(p.numel() for p in model.body.parameters())
    for r in kept:
        assert r.said is not None and set(r.scores) == set(SENTIMENT) and r.choice == r.answer == max(r.scores, key=r.scores.get)
    assert found["metrics"]["accuracy"]["value"] == sum(r.choice == r.gold for r in kept) / 40
    again = run(model, [TASK.name], data, out=out, max_new=4)
    assert again == made, "a finished grading returns its receipt"
    with pytest.raises(FinloraError, match="holds the grading of another model"):
        run(make_model("llama", 1), [TASK.name], data, out=out, max_new=4)
    assert finlora.evaluate(model, [TASK.name], data, max_new=4)["results"][TASK.name]["metrics"] == found["metrics"]


@pytest.mark.parametrize("kept_bytes", [0, 1, 700, 3000, 6000])
def test_a_cut_grading_resumes_to_the_same_bytes(model, data, tmp_path, monkeypatch, kept_bytes):
    options = {"dir": data, "max_new": 4, "train_floors": False}
    whole = results(model, TASK.name, folder=tmp_path / "whole", **options)[TASK.name]
    results(model, TASK.name, folder=tmp_path / "cut", **options)
    path = tmp_path / "cut" / "records" / "mood-here.jsonl"
    undisturbed = path.read_bytes()
    assert undisturbed == (tmp_path / "whole" / whole["records"]).read_bytes()
    path.write_bytes(undisturbed[:kept_bytes])
    whole_lines = undisturbed[:kept_bytes].count(b"\n")
    counted = []
    real = evaluate.choose
    monkeypatch.setattr(evaluate, "choose", lambda m, examples, *a, **o: (counted.extend(examples), real(m, examples, *a, **o))[1])
    resumed = results(model, TASK.name, folder=tmp_path / "cut", **options)[TASK.name]
    assert path.read_bytes() == undisturbed
    assert len(counted) == 40 - whole_lines // 8 * 8, "whole chunks are not computed again"
    assert {k: v for k, v in resumed.items() if k in ("metrics", "by_way", "confusion")} == {k: v for k, v in whole.items() if k in ("metrics", "by_way", "confusion")}


def test_records_of_another_are_refused(model, make_model, data, tmp_path):
    options = {"dir": data, "ways": ("choose",), "train_floors": False, "folder": tmp_path / "run"}
    results(model, TASK.name, **options)
    path = tmp_path / "run" / "records" / "mood-here.jsonl"
    before = path.read_bytes()
    with pytest.raises(FinloraError, match="made by another model"):
        results(make_model("llama", 1), TASK.name, **options)
    with pytest.raises(FinloraError, match="made with another max_new"):
        results(model, TASK.name, max_new=5, **options)
    rows = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (data / "test.jsonl").write_text("\n".join([rows[1], rows[0], *rows[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(FinloraError, match=r"mood-here.jsonl:1: record of another"):
        results(model, TASK.name, **options)
    with pytest.raises(FinloraError, match=r"mood-here.jsonl:\d+: record of another"):
        results(model, TASK.name, limit=3, **options)
    assert path.read_bytes() == before


def test_more_examples_go_on_where_fewer_ended(model, data, tmp_path):
    """limit 11, then all: the first eleven are kept, and all are as if graded at once."""
    options = {"dir": data, "ways": ("choose",), "train_floors": False, "folder": tmp_path / "run"}
    results(model, TASK.name, limit=11, **options)
    first = (tmp_path / "run" / "records" / "mood-here.jsonl").read_bytes()
    found = results(model, TASK.name, **options)[TASK.name]
    assert found["n"] == 40
    assert (tmp_path / "run" / "records" / "mood-here.jsonl").read_bytes().startswith(first)


def test_the_digest_tells_models_apart(make_model):
    a, b = make_model("llama"), make_model("llama")
    assert evaluate.digest(a) == evaluate.digest(b) != evaluate.digest(make_model("llama", 1))
    plain = evaluate.digest(a)
    adapted = models.rewire(a, codec="nf4", method="lora")
    first = evaluate.digest(adapted)
    with torch.no_grad():
        next(iter(adapted.trainable().values())).add_(1e-3)
    assert len({plain, first, evaluate.digest(adapted)}) == 3
    about = evaluate.describe(adapted)
    assert (about["method"], about["codec"]) == ("lora", "nf4") and about["trainable"] == sum(p.numel() for p in adapted.trainable().values())
    assert about["params"] == evaluate.describe(b)["params"]


def test_a_task_in_free_text_is_only_said(model, monkeypatch):
    free = Task(name="free", labels=(), examples=TASK.examples, kind="text", way="say", read=lambda text, labels: text.strip() or None)
    examples = [e for k, r in enumerate(rows_of(4, 5)) for e in TASK.examples(r, k)]
    told(monkeypatch, lambda e: e.gold)
    records, found = evaluate_task(model, free, examples)
    assert records[0].scores is None and records[0].answer == f"{records[0].gold}." and list(found["by_way"]) == ["say"]
    assert "confusion" not in found and set(found["metrics"]) == {"token_f1", "rouge_l", "exact", "accuracy"}
    with pytest.raises(FinloraError, match="answered in free text"):
        evaluate_task(model, free, examples, ("choose",))


def test_cut_prompts_are_counted(make_model, data):
    small = make_model("llama", max_position_embeddings=40)
    with pytest.raises(FinloraError, match="too_long"):
        results(small, TASK.name, dir=data, train_floors=False)
    found = results(small, TASK.name, dir=data, train_floors=False, too_long="cut", limit=5)[TASK.name]
    assert found["cut"] == 5
    assert results(make_model("llama"), TASK.name, dir=data, train_floors=False, too_long="cut", limit=5)[TASK.name]["cut"] == 0


def test_one_record_says_nothing_about_others(model, data, monkeypatch):
    told(monkeypatch, lambda e: e.gold)
    accuracy = results(model, TASK.name, dir=data, limit=1)[TASK.name]["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["low"], accuracy["high"], accuracy["n"]) == (1.0, 0.0, 1.0, 1)


def test_mistakes_are_told(model, data):
    with pytest.raises(FinloraError, match="no way named `sing`"):
        How(ways=("sing",))
    with pytest.raises(FinloraError, match="no task to grade on"):
        results(model, [])
    twice = [e for e in TASK.examples(rows_of(1, 5)[0], 0)] * 2
    with pytest.raises(FinloraError, match="two examples with the id `mood-0`"):
        evaluate_task(model, TASK, twice)


def test_a_record_read_the_other_way():
    example = next(TASK.examples(rows_of(1, 5)[0], 0))
    record = score.Record(example.id, "", "", example.gold, f" {example.gold}", "negative", None, "negative", 0.0, "choose")
    said = as_way(TASK, record, example, "say")
    assert (said.answer, said.correct, said.way, said.choice) == (example.gold, 1.0, "say", "negative")


def test_file_names():
    assert [file_name(n) for n in ("fpb", "tfns@finlora", "a/b c")] == ["fpb", "tfns-finlora", "a-b-c"]


@pytest.mark.parametrize(
    ("said", "answer"),
    [("<think>is it bad?\nno.</think>\npositive", "positive"), ("<think>is it positive", None), ("positive", "positive")],
)
def test_a_thought_is_no_part_of_an_answer(model, monkeypatch, said, answer):
    examples = [e for k, r in enumerate(rows_of(4, 5)) for e in TASK.examples(r, k)]
    told(monkeypatch, lambda e: e.gold)
    asked = {}

    def speak(model, some, max_new, stop, *, think, **options):
        asked.update(max_new=max_new, think=think, stop=stop)
        return [said for _ in some]

    monkeypatch.setattr(evaluate, "say", speak)
    records, _ = evaluate_task(model, TASK, examples, how=How(("say",), max_new=5, think=40))
    assert {r.answer for r in records} == {answer} and records[0].said == said
    assert asked == {"max_new": 5, "think": 40, "stop": ("\n",)}


def test_records_of_before_there_were_shots_go_on(model, data, tmp_path, monkeypatch):
    told(monkeypatch, lambda e: e.gold)
    results(model, TASK.name, dir=data, folder=tmp_path)
    note = tmp_path / "records" / "made-by.json"
    older = {k: v for k, v in json.loads(note.read_text()).items() if k not in ("shots", "think", "seed")}
    note.write_text(json.dumps({**older, "stop": ["\n"]}))
    assert results(model, TASK.name, dir=data, folder=tmp_path)[TASK.name]["computed"] == 0
    with pytest.raises(FinloraError, match="made with another think"):
        results(model, TASK.name, dir=data, folder=tmp_path, think=9)


def test_an_encoder_that_is_not_there_is_told_before_anything_is_graded(model, data, monkeypatch):
    asked = told(monkeypatch, lambda e: e.gold)
    with pytest.raises(FinloraError, match="no encoder in `nowhere`"):
        results(model, TASK.name, dir=data, encoder="nowhere")
    assert not asked
