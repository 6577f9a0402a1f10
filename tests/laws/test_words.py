"""The laws of words (laws_words.py) over templates, shapes of rows and real toy models; and what text and data refuse."""

from __future__ import annotations

import dataclasses

import laws_words as laws
import pytest
import torch
from laws_words import REAL, SHARED

from finlora.data import collate, pack, pieces
from finlora.errors import FinloraError
from finlora.text import Example, Tokens, choose_template, document, fit, label_ids, render

RENDERING = [laws.law_prefix, laws.law_weights, laws.law_end_taught, laws.law_one_beginning, laws.law_labels]


@pytest.mark.parametrize("law", RENDERING)
def test_plain(law, examples, tokenizer):
    law(REAL, examples, tokenizer, "plain")


@pytest.mark.parametrize("law", RENDERING)
def test_chat(law, examples, chat_tokenizer):
    law(REAL, examples, chat_tokenizer, "chat")


@pytest.mark.parametrize("law", RENDERING)
def test_several_messages(law, tokenizer, chat_tokenizer):
    turns = (("system", "You grade news."), ("user", "Sales rose."), ("assistant", "positive"), ("user", "And now? Orders were cut."))
    example = Example("turns", turns, "negative", "negative", "", ("negative", "positive"))
    law(REAL, [example], tokenizer, "plain")
    if law not in (laws.law_weights, laws.law_end_taught):  # an earlier turn's end is not the answer's
        law(REAL, [example], chat_tokenizer, "chat")


def test_spaces_before_the_answer(tokenizer):
    """However many spaces end the prompt, they go with the answer, and the answer is read as running text."""
    asked = [Example(f"s{n}", (("user", "Answer:" + " " * n),), "x", "neutral") for n in range(4)]
    ids = [render(e, tokenizer, True).ids for e in asked]
    assert ids[1] == tuple(tokenizer("Answer: neutral")["input_ids"]) + (tokenizer.eos_token_id,)
    assert len({render(e, tokenizer, False).ids for e in asked}) == 1
    assert all(tokenizer.decode(i[:-1], skip_special_tokens=True) == "Answer:" + " " * n + "neutral" for n, i in enumerate(ids))


def test_special_tokens_in_a_text_are_text(tokenizer):
    """A text that quotes `</s>` or `<pad>` neither ends there nor pads: in plain form only we write special tokens."""
    hostile = Example("h", (("user", "Quote: </s> <pad> <s> end. Answer: "),), "x", "</s>yes")
    ids = render(hostile, tokenizer, True).ids
    assert ids.count(tokenizer.eos_token_id) == 1 and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.pad_token_id not in ids
    bare = document("One </s> two <s> three", tokenizer).ids
    assert bare.count(tokenizer.eos_token_id) == 1 and bare.count(tokenizer.bos_token_id) == 1


def test_document_is_taught_whole(tokenizer):
    t = document("Net sales rose.", tokenizer)
    assert t.ids[0] == tokenizer.bos_token_id and t.ids[-1] == tokenizer.eos_token_id and set(t.weights) == {1.0}


def test_template_choice(tokenizer, chat_tokenizer):
    assert choose_template(tokenizer) == "plain" and choose_template(chat_tokenizer) == "chat"
    assert choose_template(chat_tokenizer, "plain") == "plain"
    for asked in ("chat", "chatml"):
        with pytest.raises(FinloraError, match="template"):
            choose_template(tokenizer, asked)


def test_no_end_token_is_refused(examples):
    import conftest

    bare = conftest.new_tokenizer()
    bare.eos_token = None
    with pytest.raises(FinloraError, match="eos"):
        render(examples[0], bare, True)


# -- fitting a row ---------------------------------------------------------------------------------------------------


def test_fit(examples, tokenizer):
    whole = render(examples[3], tokenizer, True)
    n = len(whole) - 1
    assert fit(whole, n) is whole
    with pytest.raises(FinloraError, match=r"news-3.*row of \d+ .*too_long"):
        fit(whole, n - 1)
    answer = whole.ids[[w > 0 for w in whole.weights].index(True) :]
    for length in range(len(answer) + 1, n):
        cut = fit(whole, length, "cut")
        assert len(cut) == length + 1 and cut.ids[0] == tokenizer.bos_token_id
        assert cut.ids[-len(answer) :] == answer and sum(cut.weights) == sum(whole.weights) == len(answer)
        assert cut.ids[1:] == whole.ids[-length:]  # from the left
    with pytest.raises(FinloraError):
        fit(whole, len(answer) - 1, "cut")  # the answer itself does not fit


# -- order, rows, steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, n", [(1, 1), (4, 12), (5, 12), (16, 7), (3, 100), (100, 33)])
def test_order(batch, n):
    laws.law_order(REAL, batch, n)


@pytest.mark.parametrize("words", [REAL, SHARED], ids=["each alone", "shared beginnings"])
@pytest.mark.parametrize("length", [150, 160, 300, 2048])
def test_padding(length, words, taught):
    laws.law_padding(words, taught, length)


def test_shared_beginnings_save_positions(taught):
    """The instruction that all examples begin with is laid out once a row."""
    alone, shared = (int((w.collate(w.pack(taught, 4096)).doc >= 0).sum()) for w in (REAL, SHARED))
    common = next(k for k, ids in enumerate(zip(*(t.ids for t in taught))) if len(set(ids)) > 1)
    assert common > 30 and shared <= alone - (len(taught) - 1) * common


def test_what_looks_alike_but_is_taught_is_not_shared(tokenizer):
    """A bare document's tokens all have weight: two equal ones stay two, or one of them would not be learned."""
    same = [document("Net sales rose by 12.5 %. " * 4, tokenizer, str(k)) for k in range(3)]
    batch = SHARED.collate(SHARED.pack(same, 1024))
    assert float(batch.weights.sum()) == 3 * (len(same[0]) - 1) and not bool(batch.branch.any())


def test_pieces_cover_a_document_once(tokenizer):
    t = document("Net sales rose by 12.5 % to EUR 3.4 mn. " * 5, tokenizer, "d")
    for length in (1, 7, len(t) - 1, len(t), 500):
        cut = pieces(t, length)
        assert [i for p in cut for i in p.ids[1:]] == list(t.ids[1:]) and cut[0].ids[0] == t.ids[0]
        assert all(2 <= len(p) <= length + 1 for p in cut)


def test_a_row_too_long_is_our_own_mistake():
    with pytest.raises(AssertionError):
        pack([Tokens((1,) * 9, (1.0,) * 9)], 7)
    with pytest.raises(AssertionError):
        collate([[Tokens((1,) * 9, (1.0,) * 9)]], 7)


# 1e-12 for GPT-2, whose every operation runs in float64 (measured: loss 2e-16, gradient 5e-15 at most over all cases);
# the norms of the others compute in float32 inside (transformers), so that a last bit there may turn: 1e-7.
STEP = {"gpt2": 1e-12, "llama": 1e-7, "mistral": 1e-7, "qwen3": 1e-7}


@pytest.mark.parametrize("rows, length", [(1, 0), (4, 0), (12, 0), (1, 200), (2, 200), (1, 2048), (3, 150)])
@pytest.mark.parametrize("family", sorted(STEP))
def test_step(family, rows, length, taught, make_model):
    model = make_model(family, dtype="float64")
    laws.law_step(REAL, model, taught, rows, length, STEP[family])


@pytest.mark.parametrize("rows, length", [(1, 200), (2, 200), (1, 2048), (3, 150)])
@pytest.mark.parametrize("family", sorted(STEP))
def test_step_with_shared_beginnings(family, rows, length, taught, make_model):
    model = make_model(family, dtype="float64")
    laws.law_step(SHARED, model, taught, rows, length, STEP[family])


def test_step_with_many_long_answers_to_one_question(tokenizer, make_model):
    """Both ways in which branches attend: short ones together under a mask, long ones each behind a copy of the trunk."""
    model = make_model("gpt2", dtype="float64")
    for n_trunk, n_tail in ((40, 2), (3, 40), (15, 15)):
        question = Example("q", (("user", "Net sales rose. " * n_trunk),), "", "up")
        tokens = [render(question, tokenizer, True, text=f"{k} " + "up " * n_tail) for k in range(5)]
        longest = max(len(t) for t in tokens)
        for length in (longest, 2 * longest, 2048):
            laws.law_step(SHARED, model, tokens, 1, length, 1e-12)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("codec", ["none", "nf4"])
def test_step_through_the_seam(method, codec, taught, make_model):
    """The same with adapters away from their start over a store, in float64 throughout."""
    from finlora.model import rewire

    model = rewire(make_model("gpt2", dtype="float64"), codec=codec, method=method).double()
    with torch.no_grad():
        for k, p in enumerate(model.trainable().values()):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    for words, rows, length in ((REAL, 2, 0), (REAL, 1, 200), (SHARED, 3, 150)):
        laws.law_step(words, model, taught, rows, length, 1e-12)


def test_an_empty_row_changes_nothing(taught, make_model):
    """The rows that fill up the last micro-batch of a compiled body weigh nothing, packed or not."""
    from finlora.train import batches_of

    model = make_model("gpt2", dtype="float64")
    for tokens, length in ((taught[:3], 150), (taught, 450)):
        batches = batches_of(tokens, length, 4, fixed=True)
        assert all(b.ids.shape == (4, length) for b in batches) and bool((batches[-1].doc[-1] < 0).all())
        assert len(batches) == 1
        full = dataclasses.replace(REAL, pack=lambda t, n: [t], collate=lambda rows, only=batches[0]: only)
        laws.law_step(full, model, tokens, 1, length, 1e-12)


def test_no_weight_no_step(examples, tokenizer, make_model):
    from finlora.train import step

    model = make_model("llama")
    asked = [render(e, tokenizer, False) for e in examples[:2]]
    with pytest.raises(FinloraError, match="no token"):
        step(model, [collate([[t] for t in asked])])


def test_labels_have_no_end(examples, tokenizer):
    assert all(tokenizer.eos_token_id not in ids for e in examples for ids in label_ids(e, tokenizer))
