"""The audit: near texts against the exact Jaccard, leaks, contradictions, permuted labels and copied questions on sets of our own
sentences, and what it finds by itself in the real files where they are."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from finlora import minhash
from finlora.audit import audit, checks, labels, leaks, look, near, read, witnesses
from finlora.audit.findings import Finding, ordered
from finlora.audit.page import page, write
from finlora.errors import FinloraError
from finlora.tasks import SENTIMENT, finlora_prompt
from finlora.tasks.headline import QUESTIONS
from finlora.tasks.ner import ner_prompt

DATA = Path(os.environ.get("FINLORA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "fin"
real = pytest.mark.skipif(not (DATA / "finlora").is_dir(), reason="the real files are not here (FINLORA_DATA)")

NOUNS = "sales orders profit margin revenue output shipments bookings income turnover volume earnings".split()
MOVES = {
    "negative": "fell dropped shrank collapsed slid weakened".split(),
    "neutral": "stayed remained held kept paused rested".split(),
    "positive": "rose grew climbed jumped improved gained".split(),
}
TAILS = "in spring|over the year|at the plant|in the north|for the group|during the quarter|in retail|abroad|at home|after tax".split("|")


def news(n: int, seed: int) -> list[tuple[str, str]]:
    """n (sentence, label) pairs of our own; a tenth of the labels is wrong, as in life."""
    rng = random.Random(seed)
    out = []
    for k in range(n):
        label = rng.choices(SENTIMENT, (2, 5, 3))[0]
        words = f"{rng.choice(NOUNS)} {rng.choice(MOVES[label])} by {rng.randint(1, 99)}.{rng.randint(0, 9)} percent {rng.choice(TAILS)}, item {seed}{k}"
        out.append((words, rng.choice(SENTIMENT) if rng.random() < 0.1 else label))
    return out


def rows(path: Path, pairs, noun: str = "news", **more) -> None:
    question = f"What is the sentiment of this {noun}?"
    lines = [{"context": finlora_prompt(question, SENTIMENT, text), "target": label, **more} for text, label in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def jsonl(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def kinds(findings: list[Finding], split: str = "") -> set[str]:
    return {f.kind for f in findings if f.what.endswith(split)}


def only(findings: list[Finding], kind: str, split: str = "") -> Finding:
    (finding,) = [f for f in findings if f.kind == kind and f.what.endswith(split)]
    return finding


# -- near texts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def varied() -> list[str]:
    """240 texts: 60 of our sentences, each with three versions that have one to five words changed."""
    rng = random.Random(5)
    out = []
    for text, _ in news(60, 1):
        words = f"{text} while the board of the company left its guidance and the dividend as they were".split()
        for changes in (0, 1, 2, 5):
            version = list(words)
            for _ in range(changes):
                version[rng.randrange(len(version))] = rng.choice(NOUNS)
            out.append(" ".join(version))
    return out


def test_signatures_estimate_the_exact_jaccard(varied):
    pairs = list(itertools.combinations(range(len(varied)), 2))[::7]
    drawn = [near.prepare(varied, seed) for seed in range(8)]
    held = drawn[0]
    exact = np.array([near.jaccard(held.pieces[i], held.pieces[j]) for i, j in pairs])
    error = np.array([[minhash.agreement(h.signatures[i], h.signatures[j]) for i, j in pairs] for h in drawn]) - exact
    # 8 draws of 4,098 pairs: mean error 0.008, root mean square 0.044, worst 0.18; sqrt(J (1 - J) / 120) is 0.046 at J = 0.5,
    # and pairs err together, since all texts share an ending: the eight means lie between -0.019 and 0.036
    assert abs(error.mean()) < 0.02 and np.sqrt((error**2).mean()) < 0.05
    sets = [{t[k : k + 5] for k in range(len(t) - 4)} for t in varied[:40]]
    for i, j in itertools.combinations(range(40), 2):  # the hashed pieces stand for the real ones
        assert near.jaccard(held.pieces[i], held.pieces[j]) == pytest.approx(len(sets[i] & sets[j]) / len(sets[i] | sets[j]))


def test_groups_are_those_of_all_pairs(varied):
    held = near.prepare(varied)
    joined = {i: {i} for i in range(len(varied))}
    for i, j in itertools.combinations(range(len(varied)), 2):
        if near.jaccard(held.pieces[i], held.pieces[j]) >= near.ALIKE and joined[i] is not joined[j]:
            whole = joined[i] | joined[j]
            for k in whole:
                joined[k] = whole
    wanted = sorted({tuple(sorted(s)) for s in joined.values() if len(s) > 1})
    assert sorted(map(tuple, near.groups(held))) == wanted and len(wanted) > 20


def test_near_texts_across_two_sets(varied):
    held, cut = near.prepare(varied), 120
    found = near.across(held, cut)
    wanted = {i for i in range(cut, len(varied)) if any(near.jaccard(held.pieces[i], held.pieces[j]) >= near.ALIKE for j in range(cut))}
    assert set(found) == wanted
    assert all(near.jaccard(held.pieces[i], held.pieces[j]) >= near.ALIKE and j < cut for i, j in found.items())


@pytest.mark.parametrize("texts", [[], [""], ["", "a"], ["ab", "ab"], ["\ud800"], ["a" * 50_000, "a" * 40_000]])
def test_odd_texts_do_not_break_it(texts):
    held = near.prepare(texts)
    assert len(held.pieces) == len(texts) and near.groups(held) in ([], [[0, 1]])


# -- repeats, conflicts, labels ---------------------------------------------------------------------------------------


def test_repeats_conflicts_and_overlap(tmp_path):
    train, test = news(200, 1), news(60, 2)
    test[1] = (test[0][0], test[0][1])  # letter for letter
    test[2] = (test[0][0].upper() + "!", "negative" if test[0][1] != "negative" else "positive")
    test[3], test[4] = train[5], (train[6][0].replace("percent", "PERCENT"), train[6][1])
    test[7] = (train[8][0] + " today", train[8][1])
    rows(tmp_path / "fpb_train.jsonl", train)
    rows(tmp_path / "fpb_test.jsonl", test)
    found = audit("fpb", tmp_path)
    assert only(found, "duplicate", "test").count == 1
    assert only(found, "duplicate", "test").where == (f"{tmp_path}/fpb_test.jsonl:2",)
    assert only(found, "conflict", "test").count == 3 and dict(only(found, "conflict", "test").figures) == {"prompts": 1}
    overlap = only(found, "overlap", "test")
    assert overlap.severity == "error" and overlap.where == (f"{tmp_path}/fpb_test.jsonl:4", f"{tmp_path}/fpb_test.jsonl:5")
    assert dict(overlap.figures) == {"rows": 2, "texts": 2, "exact": 1, "agree": 2}
    assert f"{tmp_path}/fpb_test.jsonl:8" in only(found, "near-overlap", "test").where
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=("error", "warning", "note").index)
    assert only(found, "balance", "test").message.startswith("always `")


def test_a_sentence_of_test_in_dev_is_a_leak(tmp_path):
    """FNXL's leak in small: the same sentence under another number, in a user's own files."""
    ask = 'What is the best us gaap tag for entity "{}" in sentence: "{}"?'
    held = [f"The plant in town {k} cost {k + 3} million and is written off over {k % 9 + 2} years." for k in range(60)]
    jsonl(tmp_path / "tags_train.jsonl", [{"context": ask.format(k + 3, held[k]), "target": f"Tag{k % 30}"} for k in range(30)])
    jsonl(tmp_path / "tags_dev.jsonl", [{"context": ask.format(k + 3, held[k]), "target": f"Tag{k % 30}"} for k in range(30, 45)])
    jsonl(tmp_path / "tags_test.jsonl", [{"context": ask.format(k % 9 + 2, held[k]), "target": f"Tag{k % 30}"} for k in range(40, 60)])
    found = audit(tmp_path)
    leak = only(found, "overlap", "test")
    assert "tags test" == leak.what and leak.count == 5 and "also in validation" in leak.message
    assert dict(leak.figures) == {"rows": 5, "texts": 5, "exact": 0, "agree": 0}
    assert "overlap" not in kinds(found, "validation")


def test_many_rows_of_few_questions(tmp_path):
    sentences = [f"This agreement number {k} is made between Alder Bank and the Borrower of town {k}." for k in range(20)]
    asks = ["What is the entity type of 'Alder Bank' in the input sentence.", "Name the type of 'Alder Bank' as used in the text.", "Identify 'Alder Bank'."]
    lines = [
        {"context": f"Instruction: {ask}\nOptions: person, organization, location\nInput: {s}\nAnswer: ", "target": "person" if k % 3 else "organization"}
        for k, s in enumerate(sentences) for ask in asks * 2
    ]  # fmt: skip
    jsonl(tmp_path / "spans.jsonl", lines)  # no task's name: nothing is known of it
    found = audit(tmp_path)
    few = only(found, "few-items")
    assert few.severity == "error" and "120 rows are 20 independent items (20 different texts, 3 phrasings)" in few.message
    assert "copied-question" not in kinds(found) and "broken-implication" not in kinds(found)  # wordings of one question agree, and may
    jsonl(tmp_path / "ner_test.jsonl", [{"context": ner_prompt("Alder Bank", s), "target": "organization"} for s in sentences for _ in range(6)])
    assert only(audit("ner", tmp_path), "few-items").severity == "error"


def test_labels_that_are_no_labels(tmp_path):
    pairs = news(120, 3)
    lines = [{"text": t, "label": x} for t, x in pairs]
    lines[4]["label"], lines[9]["label"] = "Positive", "Positive"
    lines[7]["text"] = "!!!"
    jsonl(tmp_path / "own_test.jsonl", lines)
    jsonl(tmp_path / "said_test.jsonl", [{"question": f"What is item {k} worth, in {t}?", "answer": "nan" if k == 3 else f"{k}.75" if k < 40 else "x" * 300} for k, (t, _) in enumerate(pairs)])
    found = audit(tmp_path)
    assert only(found, "label-spelling").count and "Positive" in only(found, "label-spelling").message
    assert only(found, "empty").where[0].endswith("own_test.jsonl:8")
    assert only(found, "says-nothing").where[0].endswith("said_test.jsonl:4")
    assert only(found, "long-answer").count == 80
    off = [{"context": finlora_prompt("Well?", ("Yes", "No"), t), "target": "Perhaps" if k == 5 else ("Yes", "No")[k % 2]} for k, (t, _) in enumerate(pairs)]
    jsonl(tmp_path / "off_test.jsonl", off)
    assert only(audit(tmp_path), "gold-off-list").where[0].endswith("off_test.jsonl:6")


def test_rows_that_cannot_be_read_are_findings(tmp_path):
    rows(tmp_path / "fpb_test.jsonl", news(30, 1))
    with (tmp_path / "fpb_test.jsonl").open("a") as file:
        file.write(json.dumps({"context": finlora_prompt("?", SENTIMENT, "x"), "target": "joyful"}) + "\n")
    found = only(audit("fpb", tmp_path), "unread")
    assert found.severity == "error" and found.where == (f"{tmp_path}/fpb_test.jsonl:31",) and found.message.startswith("1 of 31 rows are refused")
    (tmp_path / "fpb_test.jsonl").write_text('{"context": "x"')
    assert "not a whole JSON object" in only(audit("fpb", tmp_path), "unread").message
    (tmp_path / "notes.json").write_text("[1, 2]")
    assert only(audit(tmp_path), "unread", "notes test").severity == "note"  # a file of something else


@pytest.mark.parametrize(("what", "dir", "word"), [("nothing/here", None, "no folder"), ("fbp", None, "did you mean `fpb`"), ("fpb", None, "do not ship")])
def test_what_is_not_there(what, dir, word):
    with pytest.raises(FinloraError) as error:
        audit(what, dir)
    assert word in str(error.value)


def test_a_folder_without_rows(tmp_path):
    with pytest.raises(FinloraError, match="holds no rows"):
        audit(tmp_path)


def test_findings_are_plain():
    a, b = Finding("k", "note", "s test", "m"), Finding("k", "error", "s test", "m", ("f:1",), 1, ("s-0",), "a", (("n", 1),))
    assert ordered([a, b]) == [b, a] and json.loads(json.dumps(b.to_json()))["figures"] == {"n": 1}
    assert str(b) == "error: s test: m (f:1)"


# -- permuted labels ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_sets(tmp_path_factory):
    """fpb, fiqa and tfns of our own sentences, right; tfns's test once more with positive and neutral swapped."""
    folder = tmp_path_factory.mktemp("sets")
    swap = {"positive": "neutral", "neutral": "positive", "negative": "negative"}
    for k, name in enumerate(("fpb", "fiqa")):
        rows(folder / f"{name}_train.jsonl", news(300, 10 + k))
        rows(folder / f"{name}_test.jsonl", news(150, 20 + k))
    rows(folder / "tfns_test.jsonl", news(200, 30), "tweet")
    rows(folder / "mixed_test.jsonl", [(t, swap[x]) for t, x in news(200, 30)], "tweet")
    rows(folder / "turned_test.jsonl", [(t, SENTIMENT[(SENTIMENT.index(x) + 1) % 3]) for t, x in news(200, 31)], "tweet")
    return folder


def test_permuted_labels_are_found_and_right_ones_left_alone(three_sets):
    found = audit(three_sets)
    accused = {f.what: f for f in found if f.kind == "permuted-labels"}
    assert set(accused) == {"mixed test", "turned test"}
    assert "`neutral` means positive, `positive` means neutral" in accused["mixed test"].message
    assert "`negative` means positive, `neutral` means negative, `positive` means neutral" in accused["turned test"].message
    assert accused["mixed test"].severity == "error"


def test_a_language_model_may_testify(three_sets, make_model, monkeypatch):
    import finlora.generate

    right = dict(news(200, 30))

    def choose(model, examples, **options):
        assert len(examples) <= 400 and options["too_long"] == "cut"
        return [{x: float(x == right.get(e.messages[0][1].split("Input: ")[1].split("\nAnswer")[0], "neutral")) for x in e.labels} for e in examples]

    monkeypatch.setattr(finlora.generate, "choose", choose)
    (mixed,) = [h for h in read.sets(str(three_sets)) if h.name == "mixed"]
    said = witnesses(mixed, "test", None, make_model())
    assert any("naive Bayes" not in name and "train" not in name for name in said)
    assert "permuted-labels" in kinds(list(labels.permuted(mixed, "test", {k: v for k, v in said.items() if "Bayes" not in k})))


def test_witnesses_that_know_nothing_accuse_nobody():
    """1,000 sets of random labels and a guessing witness: 0 accused were measured; at z 4 fewer than one in a thousand would be, so at most 4."""
    rng = np.random.Generator(np.random.Philox(key=[3, 3]))
    accused = 0
    for _ in range(1000):
        gold, said = rng.choice(3, 300, p=(0.2, 0.6, 0.2)), rng.choice(3, 300, p=(0.3, 0.2, 0.5))
        accused += labels.testify("guess", gold, said, [str(k) for k in range(300)], 3).accuses
    assert accused <= 4


def test_a_witness_with_another_taste_is_no_accuser():
    """Right labels and a witness that agrees but likes neutral, or never uses a label."""
    rng = np.random.Generator(np.random.Philox(key=[4, 4]))
    gold = rng.choice(3, 600, p=(0.15, 0.2, 0.65))
    said = np.where(rng.random(600) < 0.35, gold, 1)  # plain accuracy would prefer calling positive neutral
    told = labels.testify("tired", gold, said, [str(k) for k in range(600)], 3)
    assert told.best == (0, 1, 2) and not told.accuses
    assert not labels.testify("mute", gold, np.where(said == 0, 1, said), [str(k) for k in range(600)], 3).fit
    assert not labels.testify("absent", gold, np.full(600, -1), [str(k) for k in range(600)], 3).fit


def test_repeated_rows_are_one_piece_of_evidence():
    rng = np.random.Generator(np.random.Philox(key=[5, 5]))
    gold = rng.choice(3, 40)
    said = np.where(rng.random(40) < 0.6, np.array([0, 2, 1])[gold], rng.choice(3, 40))
    once = labels.testify("w", gold, said, [str(k) for k in range(40)], 3)
    often = labels.testify("w", np.tile(gold, 20), np.tile(said, 20), [str(k) for k in range(40)] * 20, 3)
    assert often.z == pytest.approx(once.z) and often.agree == pytest.approx(once.agree)


# -- questions of one text -----------------------------------------------------------------------------------------------


def headlines(folder: Path, n: int = 80) -> None:
    """Our own headlines as the nine-column CSV."""
    rng = random.Random(2)
    lines = ["Dates,URL,News," + ",".join(QUESTIONS)]
    for k in range(n):
        move = rng.choice(("up", "down", "steady", ""))
        text = f"gold {'ends ' + move if move else 'miners meet'} in town {k} as traders {rng.choice(NOUNS)} number {k}"
        cells = {"PriceOrNot": bool(move), "DirectionUp": move == "up", "DirectionConstant": move == "steady", "DirectionDown": move == "down", "PastPrice": bool(move) and k % 9 > 0, "PastNews": not move and k % 2 > 0}
        lines.append(f"d,u,{text}," + ",".join(str(int(cells.get(c, False))) for c in QUESTIONS))
    folder.mkdir(exist_ok=True)
    (folder / "test.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_question_labelled_from_another_column(tmp_path):
    headlines(tmp_path / "headline")
    found = audit("headline@finlora", tmp_path)
    copied, broken = only(found, "copied-question"), only(found, "broken-implication")
    assert "`does the news headline talk about price` contradicts its narrower questions, so it is the wrong one" in copied.message
    assert "80 of 80 texts" in copied.message and broken.severity == "error"
    right = audit("headline", tmp_path)
    assert {"copied-question", "broken-implication", "known-erratum"}.isdisjoint(kinds(right)), right
    erratum = only(found, "known-erratum")
    assert erratum.count == dict(erratum.figures)["mended"] > 0


def test_an_opposite_answer_is_a_copy_too(tmp_path):
    lines = []
    for k, (text, _) in enumerate(news(60, 4)):
        yes = k % 3 == 0
        for ask, answer in (("Is it about sales?", yes), ("Is it about weather?", not yes), ("Is it long?", k % 2 == 0)):
            lines.append({"context": finlora_prompt(ask, ("Yes", "No"), text), "target": "Yes" if answer else "No"})
    jsonl(tmp_path / "asks_test.jsonl", lines)
    copied = only(audit(tmp_path), "copied-question")
    assert "opposite answers to 60 of 60 texts" in copied.message and "one of the two" in copied.message


# -- wrong golds, the page, membership ------------------------------------------------------------------------------------


def test_copied_numbers(tmp_path):
    jsonl(tmp_path / "sums_test.jsonl", [{"question": f"What is {k} times pi, to two places?", "answer": "31.42" if k in (10, 11) else f"{3.14159 * k:.2f}"} for k in range(2, 30)])
    assert only(audit(tmp_path), "repeated-answer").where[0].endswith("sums_test.jsonl:10")


def test_a_rule_of_the_task_is_asked(tmp_path, monkeypatch):
    import finlora.tasks.fpb

    rows(tmp_path / "fpb_test.jsonl", news(40, 1))
    monkeypatch.setattr(finlora.tasks.fpb, "recompute", lambda prompt: "neutral" if "sales" in prompt else None, raising=False)
    found = only(audit("fpb", tmp_path), "wrong-gold")
    assert found.severity == "error" and 0 < found.count <= dict(found.figures)["judged"] < 40


def test_page(three_sets, tmp_path):
    rows(tmp_path / "fpb_test.jsonl", [*news(40, 1), ("<script>alert(1)</script> rose", "positive"), ("<script>alert(1)</script> rose", "positive")])
    headlines(tmp_path / "headline")
    seen = look(tmp_path)
    text = page(seen)
    assert "<script>" not in text and "&lt;script&gt;alert(1)" in text and "default-src 'none'" in text
    assert "http://" not in text.replace("http-equiv", "") and "By question" in text and "does the news headline compare gold" in text
    assert "alert" not in page(seen, quote=False)
    assert write(seen, tmp_path / "out").name == "audit.html" and write(seen, tmp_path / "a.html").read_text(encoding="utf-8") == text


def test_auc_and_matching():
    from finlora.audit.membership import auc, matched

    rng = np.random.Generator(np.random.Philox(key=[6, 6]))
    inside = 0
    for _ in range(200):  # the true chance that N(1, 1) exceeds N(0, 1) is 0.7602
        value, low, high = auc(rng.normal(1, 1, 60), rng.normal(0, 1, 60))
        inside += low <= 0.7602 <= high
        assert low <= value <= high
    assert inside >= 182  # 187 measured (0.9595 of 2,000 at n = 60); 182 is two and a half standard errors below the 190 that are expected
    assert auc(np.ones(30), np.ones(30))[0] == 0.5 and auc(np.ones(30), np.zeros(30))[1] > 0.5
    a, b = matched(np.array([10, 50, 200]), np.array([52, 11, 400, 9]))
    assert sorted(zip(a, b)) == [(0, 1), (1, 0)] or sorted(zip(a, b)) == [(0, 3), (1, 0)]


def test_min_k_plus_plus_is_its_formula_and_finds_what_was_learnt(make_model):
    import torch

    from finlora.audit.membership import SHARE, hint, min_k_plus_plus
    from finlora.text import document

    model = make_model()
    taught, fresh = ([t for t, _ in news(24, s)] for s in (41, 42))
    scores, sizes = min_k_plus_plus(model, [*taught[:2], "a"])
    ids = torch.tensor([document(taught[0], model.tokenizer).ids])
    with torch.no_grad():
        log = model.body(ids[:, :-1]).logits[0].double().log_softmax(-1)
    mu = (log.exp() * log).sum(-1)
    z = (log.gather(-1, ids[0, 1:, None])[:, 0] - mu) / ((log.exp() * log**2).sum(-1) - mu**2).sqrt()
    assert sizes[0] == ids.shape[1] and scores[0] == pytest.approx(float(z.sort().values[: max(1, round(SHARE * len(z)))].mean()), rel=1e-4)
    assert np.isnan(scores[2])
    before = hint(model, taught, fresh, "own test")
    assert before.severity == "note" and abs(dict(before.figures)["auc"] - 0.5) < 0.25
    optimizer = torch.optim.Adam(model.body.parameters(), 3e-3)
    for step in range(120):
        t = torch.tensor([document(taught[step % 24], model.tokenizer).ids])
        loss = torch.nn.functional.cross_entropy(model.body(t[:, :-1]).logits[0], t[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = hint(model, taught, fresh, "own test")
    assert after.severity == "warning" and dict(after.figures)["low"] > 0.6 and "higher than fresh" in after.message
    with pytest.raises(FinloraError, match="have a fresh text of about their length"):
        hint(model, taught, ["Too short."], "own test")


# -- the real files --------------------------------------------------------------------------------------------------------


@real
def test_the_swapped_tfns_labels_are_found_and_nobody_else_is_accused():
    folder, pool = DATA / "finlora", {}
    sets = {name: read.sets(name, folder)[0] for name in ("fpb", "fiqa", "tfns", "tfns@finlora")}
    told = {name: list(labels.permuted(held, "test", witnesses(held, "test", folder, None, pool))) for name, held in sets.items()}
    assert told["fpb"] == told["fiqa"] == told["tfns"] == []
    (finding,) = told["tfns@finlora"]
    assert finding.severity == "error" and finding.count == 2041
    assert "`neutral` means positive, `positive` means neutral" in finding.message and "4 of 4 witnesses" in finding.message


@real
def test_the_mislabelled_headline_question_is_found():
    (published,) = read.sets("headline@finlora", DATA / "finlora")
    found = {f.kind: f for f in labels.questions(published, "test")}
    assert "so it is the wrong one" in found["copied-question"].message and "2,218 of 2,218" in found["copied-question"].message
    assert "1,793 of 2,218 texts" in found["broken-implication"].message
    (right,) = read.sets("headline", DATA / "finlora")
    assert not list(labels.questions(right, "test")) and not list(labels.questions(right, "train"))


@real
def test_ner_is_98_items_and_tfns_leaks():
    found = list(checks.of_split(read.sets("ner", DATA / "finlora")[0], "test"))
    assert dict(only(found, "few-items", "test").figures) == {"rows": 3502, "clusters": 98, "texts": 98, "asks": 102}
    assert only(found, "duplicate", "test").count == 561
    tfns, fpb = (read.sets(name, DATA / "finlora")[0] for name in ("tfns", "fpb"))
    assert dict(only(list(leaks.between(tfns)), "overlap", "test").figures) == {"rows": 50, "texts": 43, "exact": 0, "agree": 48}
    assert "overlap" not in kinds(list(leaks.between(fpb)))
