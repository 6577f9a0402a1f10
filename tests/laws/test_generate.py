"""Answers: choose's log-likelihoods are those of whole sequences through transformers, and what is said is its greedy text.

Toy models in float32, drawn so that logits differ by whole units.  Tolerance 1e-4 on sums of log-likelihoods of order 10 to
60 nats (labels of up to 12 tokens); measured at most 1e-5 over the five families (torch 2.13, one CPU thread).
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import SHAPES

from finlora import generate
from finlora import model as models
from finlora.errors import FinloraError
from finlora.generate import ask, choose, complete, end_tokens, prompt_ids, say, write
from finlora.text import Example

FAMILIES = sorted(SHAPES)
NATS = 1e-4
LABELS = ("negative", "neutral", "positive", "not at all", "a decline of orders")


def example(k: int, labels=LABELS, text: str = "") -> Example:
    text = text or ("Net sales rose. " * (k % 4) + "Orders were cut by 3.4 mn" + "!" * (k % 3))
    return Example(f"e{k}", (("user", f"Instruction: What is the sentiment?\nInput: {text}\nAnswer: "),), labels[0], labels[0], "", labels)


EXAMPLES = [example(k) for k in range(9)] + [example(9, ("10", "10.5", "10.55", "7"))]


def whole_sequences(model, examples, template="plain"):
    """log p of each label by one unpadded forward pass of prompt + label through transformers' own logits."""
    out = []
    for e in examples:
        asked = ask(e, model.tokenizer, template)
        scores = {}
        for label, ids in zip(e.labels, asked.labels):
            with torch.no_grad():
                logp = model.body(torch.tensor([[*asked.prompt, *ids]])).logits[0].double().log_softmax(-1)
            first = len(asked.prompt) - 1
            scores[label] = sum(float(logp[first + j, t]) for j, t in enumerate(ids))
        out.append(scores)
    return out


def furthest(a, b) -> float:
    assert [list(x) for x in a] == [list(x) for x in b]
    return max(abs(x[label] - y[label]) for x, y in zip(a, b) for label in x)


# -- choose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_choose_equals_whole_sequences(make_model, family):
    model = make_model(family)
    assert max(len(t) for e in EXAMPLES for t in ask(e, model.tokenizer, "plain").labels) > 4, "labels of many tokens are the hard case"
    wanted = whole_sequences(model, EXAMPLES)
    assert furthest(choose(model, EXAMPLES), wanted) < NATS
    assert furthest(choose(model, EXAMPLES, packed=False), wanted) < NATS


def test_choose_through_an_adapter_and_a_codec(make_model):
    model = models.rewire(make_model("llama"), codec="nf4", method="lora")
    for name, p in model.trainable().items():
        torch.manual_seed(len(name))
        p.data.normal_(std=0.1)
    assert furthest(choose(model, EXAMPLES), whole_sequences(model, EXAMPLES)) < NATS


def test_choose_in_double_is_exact(make_model):
    """In float64 nothing is left but rounding: what float32 differs by is not a small mistake."""
    model = make_model("qwen3", dtype="float64")
    assert furthest(choose(model, EXAMPLES), whole_sequences(model, EXAMPLES)) < 1e-11


@pytest.mark.parametrize("batch_tokens", [1, 64, 150, 4096])
def test_choose_knows_no_batch_size_and_no_order(make_model, batch_tokens):
    model = make_model("mistral")
    wanted = choose(model, EXAMPLES)
    assert furthest(choose(model, EXAMPLES, batch_tokens), wanted) < NATS
    assert furthest(choose(model, EXAMPLES[::-1], batch_tokens)[::-1], wanted) < NATS
    assert furthest([choose(model, [e], batch_tokens)[0] for e in EXAMPLES], wanted) < NATS


def test_what_prompts_share_is_computed_once(make_model, monkeypatch):
    model = make_model("llama")
    seen = []
    body = model.body.base_model
    hook = body.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)
    prompts = {ask(e, model.tokenizer, "plain").prompt for e in EXAMPLES}
    distinct = {p[: k + 1] for p in prompts for k in range(len(p))}
    branches = sum(len(a) - len(a.prompt) for a in {ask(e, model.tokenizer, "plain") for e in EXAMPLES})
    choose(model, EXAMPLES * 3)
    hook.remove()
    assert seen == [len(distinct) + branches]


def test_labels_that_begin_alike_are_ended(tokenizer):
    end = tokenizer.eos_token_id
    ended = ask(EXAMPLES[-1], tokenizer, "plain").labels
    assert all(ids[-1] == end for ids in ended) and ended[1][: len(ended[0]) - 1] == ended[0][:-1]
    assert not any(end in ids for ids in ask(EXAMPLES[0], tokenizer, "plain").labels)


def test_labels_that_begin_alike_make_one_distribution(make_model):
    """Ended labels are disjoint events: over all of them together no more than probability 1."""
    scores = choose(make_model("llama"), [EXAMPLES[-1]])[0]
    assert sum(torch.tensor(list(scores.values())).double().exp()) <= 1


def test_choose_in_a_chat(make_model, chat_tokenizer):
    model = make_model("llama")
    model.body.resize_token_embeddings(len(chat_tokenizer))
    chat = models.Model(model.body, chat_tokenizer, "chat", model.dtype).eval()
    assert furthest(choose(chat, EXAMPLES), whole_sequences(chat, EXAMPLES, "chat")) < NATS


def test_a_model_that_cannot_pack_gets_rows(make_model, monkeypatch):
    model = make_model("llama")
    wanted = choose(model, EXAMPLES)

    def refuse(*_):
        raise models.Unserved("it")

    monkeypatch.setattr(generate, "hidden_shared", refuse)
    assert furthest(choose(model, EXAMPLES, 64), wanted) < NATS


def test_choose_leaves_the_mode_and_takes_no_dropout(make_model):
    model = make_model("gpt2", resid_pdrop=0.5)
    wanted = choose(model, EXAMPLES[:2])
    model.train()
    assert choose(model, EXAMPLES[:2]) == wanted and model.training
    assert all(p.grad is None for p in model.parameters())


def test_choose_refuses(make_model):
    model = make_model("llama", max_position_embeddings=48)
    with pytest.raises(FinloraError, match="offers no labels"):
        choose(model, [dataclasses.replace(EXAMPLES[0], labels=())])
    long = example(0, text="orders were cut, " * 40)
    with pytest.raises(FinloraError, match="more than a row of 48"):
        choose(model, [long])
    scores = choose(model, [long], too_long="cut")[0]
    asked = ask(long, model.tokenizer, "plain", 48, "cut")
    assert len(asked.prompt) + max(map(len, asked.labels)) - 1 == 48 and asked.prompt[0] == model.tokenizer.bos_token_id
    assert all(v < 0 for v in scores.values())


# -- say -------------------------------------------------------------------------------------------------------------


def greedy(model, e, max_new):
    """transformers' own greedy text of one unpadded prompt."""
    ids, ends = torch.tensor([prompt_ids(model, e, max_new, "plain")]), sorted(end_tokens(model, "plain"))
    out = model.body.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new, do_sample=False, pad_token_id=0, eos_token_id=ends)
    new = [t for t in out[0, ids.shape[1] :].tolist() if t not in ends]
    return model.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_say_is_greedy_generation(make_model, family):
    model = make_model(family)
    wanted = [greedy(model, e, 12) for e in EXAMPLES]
    assert len(set(wanted)) > 2, "texts that are all alike would prove little"
    for batch_tokens in (1, 200, 4096):
        assert say(model, EXAMPLES, 12, (), batch_tokens=batch_tokens) == wanted
    assert say(model, EXAMPLES[::-1], 12, ())[::-1] == wanted
    assert say(model, EXAMPLES, 12, ()) == wanted


def test_say_ends_at_an_end_token(make_model):
    """Rows end at different steps; those that go on are not disturbed."""
    model = make_model("mistral")
    free = say(model, EXAMPLES, 12, ())
    firsts = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in free]
    model.body.generation_config.eos_token_id = [firsts[0][2], model.tokenizer.eos_token_id]
    ended = say(model, EXAMPLES, 12, ())
    assert ended == [greedy(model, e, 12) for e in EXAMPLES] and ended != free


def test_say_stops_before_a_stop_string(make_model):
    model = make_model("llama")
    free = say(model, EXAMPLES, 12, ())
    stop = free[0][2:4]
    assert say(model, EXAMPLES, 12, (stop,)) == [t.split(stop)[0] for t in free]


def test_draws_depend_on_the_seed_and_the_place_alone(make_model):
    model = make_model("llama", initializer_range=0.05)
    wanted = say(model, EXAMPLES, 8, (), temperature=1.0, seed=3)
    assert say(model, EXAMPLES, 8, (), temperature=1.0, seed=3, batch_tokens=1) == wanted
    assert say(model, EXAMPLES, 8, (), temperature=1.0, seed=4) != wanted
    assert len(set(say(model, [EXAMPLES[0]] * 6, 8, (), temperature=1.0))) > 1, "equal prompts draw apart"


@pytest.mark.parametrize("stop", [(), ("e",), ("or", "\n")])
def test_write_is_say_in_pieces(make_model, stop):
    model = make_model("llama")
    for e in EXAMPLES[:4]:
        pieces = list(write(model, e, 20, stop))
        assert "".join(pieces) == say(model, e.messages[0][1], 20, stop)[0] == complete(model, e, 20, stop=stop)
        assert all(pieces)


def test_say_refuses(make_model):
    model = make_model("llama", max_position_embeddings=48)
    long = example(0, text="orders were cut, " * 40)
    with pytest.raises(FinloraError, match="leaves no room for 16 new ones in 48 positions"):
        say(model, [long])
    assert len(prompt_ids(model, long, 16, "plain", "cut")) == 48 - 16 + 1
    say(model, [long], too_long="cut")  # the last position is used and none beyond it
    with pytest.raises(FinloraError, match="max_new is 64"):
        say(model, [long], 64, too_long="cut")
    with pytest.raises(FinloraError, match="temperature is -1"):
        say(model, ["Sales"], temperature=-1)
