"""The laws have teeth: each planted fault breaks a law that holds without it.

A fault is the real thing with one mistake: a record with one slot replaced, or one function of the package patched. Every
one of them has been made by somebody: in trainers (mean of means), in merges (sign, axis), in scorers (dropped answers).
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, replace

import laws_codec
import laws_linear
import laws_truth
import laws_words
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws_words import REAL, SHARED

from finlora import attention, linear, score, tasks, text
from finlora.data import Batch, collate, order
from finlora.methods import dora, lora
from finlora.model import hidden
from finlora.registry import pick
from finlora.text import Example, Tokens, render
from finlora.train import step

SQUARE = (64, 64)  # a fault that turns a matrix round must not be caught by its shape alone
LORA, DORA, PISSA = (pick("method", name) for name in ("lora", "dora", "pissa"))
NONE, INT8, NF4 = (pick("codec", name) for name in ("none", "int8", "nf4"))
fp32 = torch.float32


@dataclass(frozen=True)
class Planted:
    """law(*args) holds; with `fault` in the place of args[0], or with `patch` applied, it does not."""

    law: object
    args: tuple
    fault: object = None
    patch: tuple = ()  # (owner, name, the faulty function)


# -- the linear map ----------------------------------------------------------------------------------------------------


def norm_over_columns(W, A, B, s):
    return torch.linalg.vector_norm(W + s * (B @ A).to(W.dtype), dim=0).detach()


def random_B(cfg, W, place):
    params = lora.init(cfg, W, place)
    return {**params, "B": 0.1 * torch.randn(params["B"].shape, generator=place.generator)}


def unseeded(cfg, W, place):
    return lora.init(cfg, W, replace(place, generator=None))


def length_of_the_original(cfg, W, place):
    """DoRA's m taken from the weight before quantisation."""
    return dora.init(cfg, W, replace(place, roundtrip=lambda W: W))


def swapped(cfg, tensors, shape, dtype):
    codes = tensors["codes"]
    return NF4.decode(cfg, {**tensors, "codes": (codes << 4) | (codes >> 4)}, shape, dtype)


def one_scale(cfg, W, stats=None):
    """int8 with one absmax for the whole matrix."""
    out = INT8.encode(cfg, torch.where(W.abs() == W.abs().max(), W, W.clamp(-W.abs().max(), W.abs().max())))
    absmax = torch.full_like(out["absmax"], float(W.abs().max()))
    return {"codes": (W.float() * (127 / absmax[:, None])).round().to(torch.int8), "absmax": absmax}


def narrow_scales(cfg, tensors, shape, dtype):
    """The absmax rounded to the compute dtype before it is multiplied."""
    return NF4.decode(cfg, {**tensors, "absmax": tensors["absmax"].to(dtype).float()}, shape, dtype)


def no_gradient_scale(cfg, params, x, y0, base):
    """The right value with a gradient through A alone."""
    return y0 + (cfg.alpha / cfg.rank) * F.linear(F.linear(x, params["A"].to(x.dtype)), params["B"].detach().to(x.dtype))


def turned_round(ctx, grad):
    return grad @ ctx.store.dense(grad.dtype).T, None


def keeps_the_weight(store, x):
    return F.linear(x, store.dense(x.dtype))


LINEAR = {
    "LoRA without its scale": Planted(laws_linear.law_apply_equals_merge, (LORA, NONE, fp32, SQUARE), replace(LORA, apply=lambda cfg, p, x, y0, base: lora.add_product(p, x, y0, 1.0))),
    "merge with the wrong sign": Planted(laws_linear.law_apply_equals_merge, (LORA, NF4, fp32, SQUARE), replace(LORA, merge=lambda cfg, p, W: W - lora.delta(p, lora.scale(cfg)))),
    "LoRA in place": Planted(laws_linear.law_apply_is_pure, (LORA, NONE, fp32, SQUARE), replace(LORA, apply=lambda cfg, p, x, y0, base: y0.add_(lora.apply(cfg, p, x, torch.zeros_like(y0), base)))),
    "a random B": Planted(laws_linear.law_starts_at_base, (LORA, NF4, fp32, SQUARE), replace(LORA, init=random_B)),
    "an adapter drawn from the global state": Planted(laws_linear.law_seeded, (LORA, NONE, fp32, SQUARE), replace(LORA, init=unseeded)),
    "B without a gradient": Planted(laws_linear.law_gradients, (LORA, NONE, fp32, SQUARE), replace(LORA, apply=no_gradient_scale)),
    "DoRA's norm over the columns": Planted(laws_linear.law_apply_equals_merge, (DORA, NONE, fp32, SQUARE), patch=(dora, "norm", norm_over_columns)),
    "DoRA's length from the unquantised weight": Planted(laws_linear.law_starts_at_base, (DORA, NF4, fp32, SQUARE), replace(DORA, init=length_of_the_original)),
    "the plain form without its scale": Planted(laws_linear.law_to_lora, (LORA, NONE, fp32, SQUARE), replace(LORA, to_lora=lambda cfg, p: (p["A"], p["B"], 1.0))),
    "backward through the transposed weight": Planted(laws_linear.law_gradients, (LORA, NF4, fp32, SQUARE), patch=(linear.Matmul, "backward", staticmethod(turned_round))),
    "the decoded weight kept for backward": Planted(laws_linear.law_nothing_dense_kept, (LORA, NF4, fp32, SQUARE), patch=(linear.Store, "forward", keeps_the_weight)),
    "a base that trains": Planted(laws_linear.law_base_frozen, (LORA, NONE, fp32, SQUARE), patch=(linear.Linear, "attach", None)),
    "a base stored without its edit": Planted(laws_linear.law_over_original, (PISSA, NF4, fp32, SQUARE), patch=(linear, "edited", lambda W, params: W)),
    "pretrained weight that decays": Planted(laws_linear.law_frozen_and_undecayed_are_named, (PISSA, NONE, fp32, SQUARE), replace(PISSA, undecayed=())),
    "nibbles swapped": Planted(laws_codec.law_error, (NF4,), replace(NF4, decode=swapped)),
    "one scale for all rows": Planted(laws_codec.law_error, (INT8,), replace(INT8, encode=one_scale)),
    "int8 said to take 8 bits": Planted(laws_codec.law_bits, (INT8, (48, 80)), replace(INT8, bits=lambda cfg, shape, dtype=fp32: 8.0)),
    "a weight rounded twice": Planted(laws_codec.law_rounded_once, (NF4, (48, 80)), replace(NF4, decode=narrow_scales)),
}


def attach_training_the_bias(real):
    def attach(self, *args, **kwargs):
        real(self, *args, **kwargs)
        self.bias.requires_grad_(True)

    return attach


LINEAR["a base that trains"] = replace(LINEAR["a base that trains"], patch=(linear.Linear, "attach", attach_training_the_bias(linear.Linear.attach)))


# -- words -------------------------------------------------------------------------------------------------------------


def prompt_weighed(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return replace(t, weights=(1.0,) * len(t)) if answer else t


def no_end(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return Tokens(t.ids[:-1], t.weights[:-1], t.id) if answer else t


def end_without_weight(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return replace(t, weights=(*t.weights[:-1], 0.0)) if answer else t


def twice_begun(e, tokenizer, answer, template="plain", said=None):
    t = render(e, tokenizer, answer, template, said)
    return Tokens((tokenizer.bos_token_id, *t.ids), (0.0, *t.weights), t.id)


def space_left_behind(e, tokenizer, answer, template="plain", said=None):
    """The prompt keeps its last space; text and prompt are tokenised each as a whole."""
    head = tokenizer(e.messages[0][1])["input_ids"]
    if not answer:
        return Tokens(tuple(head), (0.0,) * len(head), e.id)
    whole = tokenizer(e.messages[0][1] + (e.answer if said is None else said))["input_ids"] + [tokenizer.eos_token_id]
    return Tokens(tuple(whole), (0.0,) * len(head) + (1.0,) * (len(whole) - len(head)), e.id)


def bare_labels(e, tokenizer, template="plain"):
    return [tokenizer(label, add_special_tokens=False)["input_ids"] for label in e.labels]


def always_the_same_order(at, batch, n, seed):
    permutation = order(n, seed, 0)
    return [int(permutation[i % n]) for i in range(at * batch, (at + 1) * batch)]


def with_replacement(at, batch, n, seed):
    return np.random.default_rng([seed, at]).integers(0, n, batch).tolist()


def mean_of_means(model, batches):
    from finlora.loss import token_sums
    from finlora.model import head

    nats = weight = 0.0
    for b in batches:
        part, w = token_sums(hidden(model, b), head(model), b.targets, b.weights)
        (part / w / len(batches)).backward()
        nats, weight = nats + float(part.detach()), weight + float(w)
    return nats, weight


def unshifted(rows, length=None):
    batch = collate(rows, length)
    return replace(batch, targets=batch.ids)


def running_positions(rows, length=None):
    batch = collate(rows, length)
    return replace(batch, pos=torch.arange(batch.pos.shape[1]).expand_as(batch.pos).contiguous())


def padding_weighs(rows, length=None):
    batch = collate(rows, length)
    return replace(batch, weights=torch.where(batch.doc < 0, 1.0, batch.weights))


def weights_unshifted(rows, length=None):
    """Weights of the tokens read instead of those predicted: the first answer token is missed."""
    return collate([[replace(t, weights=(0.0, *t.weights[:-1])) for t in row] for row in rows], length)


def loses_the_last(stream, length):
    from finlora.data import pack

    return pack(list(stream)[:-1], length)


def leaking(batch: Batch, real=attention.layout):
    return real(replace(batch, doc=batch.doc.clamp(max=0)))


RENDER = {
    "the prompt weighs": (laws_words.law_weights, prompt_weighed),
    "no end token": (laws_words.law_end_taught, no_end),
    "an end token that weighs nothing": (laws_words.law_end_taught, end_without_weight),
    "two beginning tokens": (laws_words.law_one_beginning, twice_begun),
    "a space left to the prompt": (laws_words.law_prefix, space_left_behind),
}
STEPS = {
    "mean of means": (replace(REAL, step=mean_of_means), 0),
    "no shift": (replace(REAL, collate=unshifted), 0),
    "weights not shifted": (replace(REAL, collate=weights_unshifted), 0),
    "positions that run on": (replace(REAL, collate=running_positions), 300),
    "padding that weighs": (replace(REAL, collate=padding_weighs), 300),
}


@pytest.fixture(scope="module")
def material(taught, make_model):
    """(tokens, a float64 model)."""
    return taught, make_model("gpt2", dtype="float64")


@pytest.mark.parametrize("name", sorted(RENDER))
def test_rendering(name, examples, tokenizer):
    law, faulty = RENDER[name]
    law(REAL, examples, tokenizer)
    with pytest.raises(AssertionError):
        law(replace(REAL, render=faulty), examples, tokenizer)


def test_labels_without_their_space(examples, tokenizer):
    laws_words.law_labels(REAL, examples, tokenizer)
    with pytest.raises(AssertionError):
        laws_words.law_labels(replace(REAL, label_ids=bare_labels), examples, tokenizer)


@pytest.mark.parametrize("faulty", [always_the_same_order, with_replacement])
def test_order(faulty):
    laws_words.law_order(REAL, 4, 30)
    with pytest.raises(AssertionError):
        laws_words.law_order(replace(REAL, members=faulty), 4, 30)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_steps(name, material):
    tokens, model = material
    faulty, length = STEPS[name]
    laws_words.law_step(REAL, model, tokens, 2, length, 1e-12)
    with pytest.raises(AssertionError):
        laws_words.law_step(faulty, model, tokens, 2, length, 1e-12)


def test_documents_that_see_each_other(material, monkeypatch):
    tokens, model = material
    laws_words.law_step(REAL, model, tokens, 2, 300, 1e-12)
    monkeypatch.setattr(attention, "layout", leaking)
    with pytest.raises(AssertionError):
        laws_words.law_step(REAL, model, tokens, 2, 300, 1e-12)


def test_branches_that_see_each_other(material, monkeypatch):
    tokens, model = material
    laws_words.law_step(SHARED, model, tokens, 1, 600, 1e-12)
    real = attention.layout
    monkeypatch.setattr(attention, "layout", lambda batch: real(replace(batch, branch=torch.zeros_like(batch.branch))))
    with pytest.raises(AssertionError):
        laws_words.law_step(SHARED, model, tokens, 1, 600, 1e-12)


def test_a_trunk_that_is_too_long(material, monkeypatch):
    """Sharing positions that are taught, or one token too many."""
    from finlora import data

    tokens, model = material
    alike = data._alike
    monkeypatch.setattr(data, "_alike", lambda a, b, most: alike(a, b, most) + 1)
    with pytest.raises(AssertionError):
        laws_words.law_step(SHARED, model, tokens, 1, 600, 1e-12)


def test_an_example_lost_and_padding_that_weighs(material):
    tokens, _ = material
    laws_words.law_padding(REAL, tokens, 300)
    for faulty in (replace(REAL, pack=loses_the_last), replace(REAL, collate=padding_weighs), replace(REAL, collate=running_positions)):
        with pytest.raises(AssertionError):
            laws_words.law_padding(faulty, tokens, 300)


# -- truth -------------------------------------------------------------------------------------------------------------


def f1_without_wrong_answers(records, labels=None):
    """Macro F1 over the records whose answer could be read, as published financial scorers have it."""
    return REAL_F1([r for r in records if r.answer in laws_truth.LABELS], laws_truth.LABELS)


REAL_F1 = score.METRICS["macro_f1"]
REAL_INTERVAL = score.interval


def blind_to_clusters(records, *args, **kwargs):
    return REAL_INTERVAL([replace(r, cluster="") for r in records], *args, **kwargs)


def wald(records, *args, **kwargs):
    e = REAL_INTERVAL(records, *args, **kwargs)
    half = 1.96 * (e.value * (1 - e.value) / e.n) ** 0.5
    return replace(e, low=e.value - half, high=e.value + half)


def substring(said, labels):
    """The first label found anywhere in the text, as FinLoRA reads."""
    return next((label for label in labels if label.casefold() in said.casefold()), None)


def neutral_when_in_doubt(said, labels):
    """FinGPT: what cannot be read is neutral."""
    return tasks.read_label(said, labels) or "neutral"


def generous(gold, answer):
    return 1.0 if answer == gold or answer == "neutral" else 0.0


def label_examples(labels, n=90):
    rng = random.Random(0)
    return [Example(str(k), (("user", "?"),), g, g, "", labels) for k, g in ((k, rng.choice(labels)) for k in range(n))]


SENTIMENT = label_examples(laws_truth.LABELS)
NESTED = label_examples(("down", "slow down", "no", "unknown"))
READERS = {
    "a label found anywhere": (laws_truth.gold_is_perfect, NESTED, substring, tasks.mark_equal),
    "doubt read as neutral": (laws_truth.silence_is_zero, SENTIMENT, neutral_when_in_doubt, tasks.mark_equal),
    "neutral always right": (laws_truth.permuted_is_chance, SENTIMENT, tasks.read_label, generous),
    "answers as unlike as case": (laws_truth.gold_is_perfect, SENTIMENT, lambda said, labels: said.upper(), tasks.mark_equal),
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_readers(name):
    law, examples, read, mark = READERS[name]
    law(examples, tasks.read_label, tasks.mark_equal)
    with pytest.raises(AssertionError):
        law(examples, read, mark)


RIGHT = [laws_truth.record(k, laws_truth.LABELS[k % 3], laws_truth.LABELS[k % 3]) for k in range(30)]
WRONG = [laws_truth.record(k, laws_truth.LABELS[k % 3], laws_truth.LABELS[(k + 1) % 3]) for k in range(30)]
SCORERS = {
    "F1 of the readable answers alone": (laws_truth.no_free_unreadable, (), (score.METRICS, "macro_f1", f1_without_wrong_answers)),
    "an interval that is blind to clusters": (laws_truth.copies_add_nothing, (laws_truth.sample(),), (score, "interval", blind_to_clusters)),
    "an interval without width": (laws_truth.never_certain, (RIGHT, WRONG), (score, "interval", wald)),
}


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_scorers(name, monkeypatch):
    law, args, (owner, key, faulty) = SCORERS[name]
    law(*args)
    monkeypatch.setitem(owner, key, faulty) if isinstance(owner, dict) else monkeypatch.setattr(owner, key, faulty)
    with pytest.raises(AssertionError):
        law(*args)


# -- the linear map, run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_linear(name, monkeypatch):
    planted = LINEAR[name]
    planted.law(*planted.args)
    if planted.patch:
        monkeypatch.setattr(*planted.patch)
    args = planted.args if planted.fault is None else (planted.fault, *planted.args[1:])
    with pytest.raises(AssertionError):
        planted.law(*args)


def test_the_faults_are_many():
    """At least ten kinds of mistake, each of another sort than the others."""
    assert len(LINEAR) + len(RENDER) + len(STEPS) + len(READERS) + len(SCORERS) >= 30
    assert dataclasses.is_dataclass(Planted) and step is REAL.step and text.render is REAL.render
