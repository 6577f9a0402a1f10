"""lm-evaluation-harness over our model, and our tasks as its pack: the same decisions, the same numbers."""

from __future__ import annotations

import json

import pytest

from finlora import harness
from finlora.errors import FinloraError
from finlora.evaluate import results
from finlora.export.lm_eval_pack import lm_eval_pack
from finlora.generate import choose, say
from finlora.harness import pair_likelihoods
from finlora.model import open_model
from finlora.registry import pick
from finlora.rows import read_examples
from finlora.text import prompt_text

LIMIT = 30


@pytest.fixture(scope="module")
def base():
    return open_model("finlora/base", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return lm_eval_pack(["tone", "guidance"], tmp_path_factory.mktemp("pack") / "out", limit=LIMIT)


# -- the pack's files, without the harness ----------------------------------------------------------------------------


def test_pack_files(pack):
    yaml = (pack / "finlora_tone.yaml").read_text()
    assert "output_type: multiple_choice" in yaml and "metric: acc," in yaml and "training_split" in yaml
    docs = [json.loads(line) for line in (pack / "data" / "finlora_tone" / "test.jsonl").read_text().splitlines()]
    for doc, e in zip(docs, read_examples(pick("task", "tone"), "test", limit=LIMIT), strict=True):
        assert doc["prompt"] + doc["choices"][doc["gold"]] == prompt_text(e) + e.gold and not doc["prompt"].endswith(" ")
    assert "| finlora_guidance | label | 30 |" in (pack / "README.md").read_text()


def test_pack_of_options_and_numbers(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps({"question": "What is 2 + 2?", "answer": "It is 4.\n#### 4"}) + "\n")
    row = {"question": "Which?", "choices": {"text": ["ten", "ten and one"], "label": ["A", "B"]}, "answerKey": "B"}
    (tmp_path / "arc_challenge_test.jsonl").write_text(json.dumps(row) + "\n")
    out = lm_eval_pack(["gsm8k", "arc_challenge"], tmp_path / "out", dir=tmp_path)
    assert "process_results: !function" in (out / "finlora_gsm8k.yaml").read_text() and '"max_gen_toks": 256' in (out / "finlora_gsm8k.yaml").read_text()
    assert "metric: acc_bytes" in (out / "finlora_arc_challenge.yaml").read_text() and "| 1 | 0 | 1 | CC BY-SA" in (out / "README.md").read_text()
    scope: dict = {"__file__": str(out / "finlora_pack.py")}
    exec(compile((out / "finlora_pack.py").read_text(), "finlora_pack.py", "exec"), scope)
    doc = json.loads((out / "data" / "finlora_gsm8k" / "test.jsonl").read_text())
    assert [scope["mark"](doc, [said])["acc"] for said in ("so 4", "#### 5", "")] == [1.0, 0.0, 0.0]


def test_what_a_pack_cannot_hold(tmp_path):
    row = {"sentence": "I like the _ best.", "option1": "cup", "option2": "bag", "answer": "1"}
    (tmp_path / "winogrande_test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(FinloraError, match="gap"):
        lm_eval_pack("winogrande", tmp_path / "out", dir=tmp_path)
    with pytest.raises(FinloraError, match="no task"):
        lm_eval_pack([], tmp_path / "out")
    (tmp_path / "own.toml").write_text('name = "own"\nquestion = "{x}"\nanswer = "number"\n')
    with pytest.raises(FinloraError, match="would not find"):
        lm_eval_pack(str(tmp_path / "own.toml"), tmp_path / "out", dir=tmp_path)
    (tmp_path / "own.toml").write_text('name = "own"\nquestion = "{x}"\nanswer = "text"\n')
    with pytest.raises(FinloraError, match="kind `text`"):
        lm_eval_pack(str(tmp_path / "own.toml"), tmp_path / "out", dir=tmp_path)
    assert not (tmp_path / "out").exists()


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_and_greedy(make_model):
    """Against transformers' own logits, one pair at a time."""
    import torch

    model = make_model("llama")
    pairs = [([5, 6, 7], [8]), ([5, 6, 7], [8, 9, 10]), ([5, 6], [8, 9]), ([5, 6, 7], []), ([3], [4, 4, 4, 4]), ([5, 6, 7], [8])]
    with torch.no_grad():
        best = int(model.body(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())
        second = int(model.body(torch.tensor([[5, 6, 7, best]])).logits[0, -1].argmax())
    pairs += [([5, 6, 7], [best, second]), ([5, 6, 7], [best, (second + 1) % 50])]
    found = pair_likelihoods(model, pairs)
    assert found[-2][1] is True and found[-1][1] is False and found[3] == (0.0, True)
    for (context, continuation), (value, greedy) in zip(pairs, found):
        with torch.no_grad():
            logp = model.body(torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
        at = range(len(context) - 1, len(context) + len(continuation) - 1)
        assert value == pytest.approx(sum(float(logp[k, t]) for k, t in zip(at, continuation)), abs=2e-4)
        assert greedy == all(int(logp[k].argmax()) == t for k, t in zip(at, continuation))


def test_pairs_that_are_too_long():
    fitted = harness._fitted
    assert fitted([1, 2, 3, 4], [5, 6], 10) == ([1, 2, 3, 4], [5, 6]) and fitted([1, 2, 3, 4], [5, 6], 4) == ([2, 3, 4], [5, 6])
    assert fitted([1], [2, 3, 4], 2) == ([2], [3, 4]) and fitted([1, 2], [], 10) == ([1, 2], [])


def test_missing_package(monkeypatch, make_model):
    import builtins

    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "lm_eval":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FinloraError, match="not installed"):
        harness.run(make_model("llama"), "boolq")


# -- with the harness -------------------------------------------------------------------------------------------------


def hf(base):
    """The harness's own model class on the same folder."""
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    from finlora.model import locate

    folder = locate("finlora/base")
    body = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return HFLM(pretrained=body, tokenizer=transformers.AutoTokenizer.from_pretrained(folder), batch_size=8, device="cpu", max_length=base.max_tokens)


def test_pack_scores_equal_ours(base, pack):
    pytest.importorskip("lm_eval")
    found = harness.run(base, ["finlora_tone", "finlora_guidance"], include=pack, defaults=False)
    ours = results(base, ["tone", "guidance"], limit=LIMIT, ways=("choose",), train_floors=False)
    for name in ("tone", "guidance"):
        told = found[f"finlora_{name}"]
        assert told["metrics"]["acc"]["value"] == pytest.approx(ours[name]["metrics"]["accuracy"]["value"], abs=1e-12)
        assert told["n"] == LIMIT and told["metric"] == "acc" and len(told["records"]) == LIMIT
        assert sum(r.correct for r in told["records"]) / LIMIT == pytest.approx(told["metrics"]["acc"]["value"])


def test_the_harness_own_model_agrees(base, pack):
    """HFLM and our LM over the pack, over rolling windows and over generated texts: the same numbers."""
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    ours, theirs = harness.language_model(base), hf(base)
    manager = TaskManager(include_path=str(pack), include_defaults=False)
    told = lm_eval.simple_evaluate(theirs, tasks=["finlora_tone"], task_manager=manager, bootstrap_iters=0, limit=LIMIT)
    mine = harness.run(base, "lm-eval:finlora_tone", include=pack, defaults=False)
    assert mine["finlora_tone"]["metrics"]["acc"]["value"] == told["results"]["finlora_tone"]["acc,none"]
    examples = read_examples(pick("task", "tone"), "test", limit=12)
    texts = [prompt_text(e) for e in examples]
    asked = [Instance("loglikelihood", {}, (t, " " + label), k) for k, t in enumerate(texts) for label in ("cut", "raised by a third", "")]
    for a, b in zip(ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == b[1]
    rolling = [Instance("loglikelihood_rolling", {}, (t,), k) for k, t in enumerate([*texts[:3], " ".join(texts * 8)])]
    for a, b in zip(ours.loglikelihood_rolling(rolling), theirs.loglikelihood_rolling(rolling, disable_tqdm=True), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    how = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    wanted = [Instance("generate_until", {}, (t.rstrip(), how), k) for k, t in enumerate(texts[:6])]
    assert ours.generate_until(wanted) == theirs.generate_until(wanted, disable_tqdm=True)


def test_generated_texts_are_say(base):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    examples = read_examples(pick("task", "tone"), "test", limit=6)
    asked = [Instance("generate_until", {}, (prompt_text(e).rstrip(" "), {"until": ["\n"], "max_gen_toks": 8}), k) for k, e in enumerate(examples)]
    assert harness.language_model(base).generate_until(asked) == say(base, examples, 8, ("\n",), template="plain")
    bad = [Instance("generate_until", {}, ("x", {"until": ["\n"], "top_p": 0.5}), 0)]
    with pytest.raises(FinloraError, match="top_p"):
        harness.language_model(base).generate_until(bad)


def test_shots_of_the_harness(base, pack):
    pytest.importorskip("lm_eval")
    told = harness.run(base, "finlora_tone", limit=8, shots=2, include=pack, defaults=False)["finlora_tone"]
    assert told["n"] == 8 and told["shots"] == 2


def test_unknown_tasks(base, pack):
    pytest.importorskip("lm_eval")
    with pytest.raises(FinloraError, match="no task `finlora_ton`"):
        harness.run(base, "lm-eval:finlora_ton", include=pack, defaults=False)
    with pytest.raises(FinloraError, match="no task"):
        harness.run(base, [])


def test_choose_is_what_the_harness_scores(base):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    examples = read_examples(pick("task", "guidance"), "test", limit=10)
    asked = [Instance("loglikelihood", {}, (prompt_text(e), label), k) for k, e in enumerate(examples) for label in e.labels]
    flat = iter(harness.language_model(base).loglikelihood(asked, disable_tqdm=True))
    for e, scores in zip(examples, choose(base, examples, template="plain")):
        for label in e.labels:
            assert next(flat)[0] == pytest.approx(scores[label], abs=1e-4)


# -- our prompts are the harness's ------------------------------------------------------------------------------------

OPTIONS = {"text": ["a stone", "an ice cube", "a brick", "a spoon"], "label": ["A", "B", "C", "D"]}
FIVE = {"text": [*OPTIONS["text"], "a sea"], "label": [*OPTIONS["label"], "E"]}
HUB = {  # task -> (the harness's file, a row of the hub's columns, written by us)
    "arc_easy": ("arc/arc_easy.yaml", {"question": "What melts {first}?", "choices": OPTIONS, "answerKey": "B"}),
    "openbookqa": ("openbookqa/openbookqa.yaml", {"question_stem": "The first to melt is", "choices": OPTIONS, "answerKey": "B"}),
    "commonsense_qa": ("commonsense_qa/default.yaml", {"question": " What melts? ", "choices": FIVE, "answerKey": "B"}),
    "piqa": ("piqa/piqa.yaml", {"goal": "melt ice", "sol1": "heat it", "sol2": "sing", "label": 0}),
    "boolq": ("super_glue/boolq/default.yaml", {"question": "is ice cold", "passage": "Ice is water.", "label": 1}),
    "gsm8k": ("gsm8k/gsm8k.yaml", {"question": "What is 2 + 2?", "answer": "It is 4.\n#### 4"}),
    "mmlu": (
        "mmlu/default/_default_template_yaml",
        {"question": " What melts? ", "subject": "high_school_physics", "choices": OPTIONS["text"], "answer": 1},
    ),
    "hellaswag": (
        "hellaswag/utils.py",
        {"activity_label": "Baking", "ctx_a": "[header] A man kneads  dough.", "ctx_b": "he [title] then", "ctx": "", "endings": [" rests [step] it.", "b [x]c"], "label": "1"},
    ),
    "winogrande": ("winogrande/preprocess_winogrande.py", {"sentence": "The cup or the bag: the _ is big.", "option1": "cup", "option2": "bag", "answer": "2"}),
    "copa@lm_eval": (
        "super_glue/copa/utils.py",
        {"premise": "The bank raised rates.", "choice1": "Loans fell.", "choice2": "It rained.", "question": "effect", "label": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_prompts_and_options_are_the_harness(name):
    """Its templates, rendered by jinja over a row, or its functions, against the task's Example."""
    pytest.importorskip("lm_eval")
    import importlib.util
    import re
    from pathlib import Path

    import jinja2
    import lm_eval

    file, row = HUB[name]
    path = Path(lm_eval.__file__).parent / "tasks" / file
    (example,) = pick("task", name).examples(row, 0)
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location("theirs", path)
        spec.loader.exec_module(theirs := importlib.util.module_from_spec(spec))
        if name == "hellaswag":
            query = theirs.preprocess(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
            wanted = [query + " " + theirs.preprocess(e) for e in row["endings"]]
        elif name == "winogrande":
            wanted = [context + " " + theirs.doc_to_target(row) for context in theirs.doc_to_choice(row)]
            assert theirs.doc_to_text(row) == example.labels.index(example.gold)
        else:
            wanted = [theirs.doc_to_text(row) + " " + option for option in theirs.doc_to_choice(row)]
            assert " " + theirs.doc_to_target(row) == "  " + example.gold
    else:
        text = path.read_text(encoding="utf-8")
        found = json.loads(re.search(r'^doc_to_text: (".*")', text, re.MULTILINE)[1]) if 'doc_to_text: "' in text else "{{" + re.search(r"^doc_to_text: (\w+)", text, re.MULTILINE)[1] + "}}"
        prompt = jinja2.Template(found, keep_trailing_newline=True).render(**row)
        if name == "mmlu":
            yaml = (path.parent / "mmlu_high_school_physics.yaml").read_text(encoding="utf-8")
            assert "multiple choice questions (with answers) about" in yaml
            prompt = f"The following are multiple choice questions (with answers) about high school physics.\n\n{prompt}"
        wanted = [f"{prompt} {label}" for label in (example.labels or [example.answer])]
    said = [prompt_text(example) + label + example.after for label in (example.labels or [example.answer])]
    assert said == wanted
