"""The doctor finds a sound spec sound, and each planted fault under the right name, with a remedy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from finlora import attention, doctor, optim, registry
from finlora import model as models
from finlora.loss import token_sums
from finlora.model import head, hidden, save
from finlora.spec import spec_from_dict
from finlora.text import render

LABELS = ("negative", "neutral", "positive")


@pytest.fixture(scope="module")
def place(make_model, tmp_path_factory):
    """A folder with a saved toy model and a small task."""
    root = tmp_path_factory.mktemp("doctor")
    save(make_model("llama"), root / "model")
    news = ("Net sales rose by {} %.", "Profit fell by {} %, as orders were cut.", "The company kept its guidance of {} %.")
    for split, n in (("train", 40), ("test", 60)):
        rows = [{"sentence": news[k % 3].format(k) + " Up." * (k % 7), "label": LABELS[(2, 0, 1)[k % 3]]} for k in range(n)]
        (root / f"fpb_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def spec(place):
    return spec_from_dict(
        {
            "model": {"name": str(place / "model")},
            "data": {"tasks": ["fpb"], "dir": str(place), "row_tokens": 256},
            "run": {"device": "cpu", "dtype": "float32", "out": str(place / "never")},
            "method": {"kind": "lora", "rank": 4, "dropout": 0.1},
        }
    )


def told(checks):
    return {c.name: c.ok for c in checks}


NAMES = ["prompt", "loss weights", "end token", "accumulation", "packing", "seed", "resume", "grading fpb"]


@pytest.mark.parametrize("method", ["lora", "dora", "lora_plus", "full"])
@pytest.mark.parametrize("codec, dtype", [("none", "float32"), ("nf4", "float32"), ("int8", "bfloat16")])
def test_a_sound_spec(codec, dtype, method, spec, place):
    if method == "full" and codec != "none":
        pytest.skip("full fine-tuning has no lossy base")
    before = sorted(p.name for p in place.rglob("*"))
    state = torch.get_rng_state()
    options = {} if method == "full" else {"rank": 4, "dropout": 0.1}
    wanted = replace(
        spec, codec=replace(spec.codec, kind=codec), method=replace(spec.method, kind=method, options=options), run=replace(spec.run, dtype=dtype)
    )
    checks = doctor.run(wanted)
    assert told(checks) == dict.fromkeys(NAMES, True), [c for c in checks if not c.ok]
    assert all(c.detail and not c.hint for c in checks)
    assert sorted(p.name for p in place.rglob("*")) == before and torch.equal(torch.get_rng_state(), state)


def test_the_listing(spec):
    shown = next(c for c in doctor.run(spec) if c.name == "loss weights").example
    learned = "".join(text for text, weight in shown if weight)
    assert learned.strip() in {f"{label}</s>" for label in LABELS} and shown[0] == ("<s>", 0.0)


def test_rows_of_one_example(spec):
    assert told(doctor.run(replace(spec, data=replace(spec.data, row_tokens=0))))["packing"]


def mean_of_means(model, batches):
    nats = weight = 0.0
    for b in batches:
        part, w = token_sums(hidden(model, b), head(model), b.targets, b.weights)
        (part / w / len(batches)).backward()
        nats, weight = nats + float(part.detach()), weight + float(w)
    return nats, weight


def prompt_weighed(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return replace(t, weights=(1.0,) * len(t)) if answer else t


def no_end(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return replace(t, ids=t.ids[:-1], weights=t.weights[:-1]) if answer else t


def prompt_changed(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return t if answer else replace(t, ids=(*t.ids[:-1], t.ids[-1] + 1))


def long_answers(e, tokenizer, answer, template="plain", said=None):
    """Answers of very different lengths, without which a mean of means is the mean."""
    return render(e, tokenizer, answer, template, e.answer + " because" * (len(e.id) % 3 * 9) if said is None else said)


def leaking(batch, real=attention.layout):
    return real(replace(batch, doc=batch.doc.clamp(max=0), branch=torch.zeros_like(batch.branch)))


def generous(gold, answer):
    return 1.0 if answer == gold or answer == "neutral" else 0.0


FAULTS = {
    "prompt": [(doctor, "render", prompt_changed)],
    "loss weights": [(doctor, "render", prompt_weighed)],
    "end token": [(doctor, "render", no_end)],
    "accumulation": [(doctor, "step", mean_of_means), (doctor, "render", long_answers)],
    "packing": [(attention, "layout", leaking)],
    "resume": [(optim, "load_state", lambda *_: None)],
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_is_found(name, spec, monkeypatch):
    for patch in FAULTS[name]:
        monkeypatch.setattr(*patch)
    found = next(c for c in doctor.run(spec) if c.name == name)
    assert not found.ok and found.hint, found


def test_an_adapter_drawn_before_the_seed(spec, monkeypatch):
    real = models.rewire

    def unseeded(model, **how):
        made = real(model, **how)
        for p in made.trainable().values():
            p.data.add_(torch.rand(p.shape) * 0.01)
        return made

    monkeypatch.setattr(models, "rewire", unseeded)
    monkeypatch.setattr(doctor.torch, "manual_seed", lambda seed: None)
    found = next(c for c in doctor.run(spec) if c.name == "seed")
    assert not found.ok and "differs" in found.detail


def test_a_seed_that_decides_nothing(spec, monkeypatch):
    real = models.rewire
    monkeypatch.setattr(models, "rewire", lambda model, **how: real(model, **{**how, "seed": 0}))
    found = next(c for c in doctor.run(spec) if c.name == "seed")
    assert not found.ok and "another seed" in found.detail


@pytest.mark.parametrize(
    "change, said", [({"read": lambda said, labels: said.upper()}, "gold answers are marked wrong"), ({"mark": generous}, "shuffled answers score")]
)
def test_a_grader_that_is_wrong(change, said, spec, monkeypatch):
    faulty = replace(registry.pick("task", "fpb"), **change)
    monkeypatch.setattr(doctor, "pick", lambda kind, name: faulty)
    found = next(c for c in doctor.run(spec) if c.name == "grading fpb")
    assert not found.ok and said in found.detail and found.hint


def test_a_model_that_cannot_pack(spec, monkeypatch):
    """What a check raises for the user becomes a failed check, not the end of the examination."""
    monkeypatch.setattr("transformers.LlamaModel._supports_attention_backend", False)
    checks = doctor.run(spec)
    assert len(checks) == len(NAMES)
    found = next(c for c in checks if c.name == "packing")
    assert not found.ok and "row_tokens = 0" in found.hint
