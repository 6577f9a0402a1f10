"""The laws of words, as functions of the functions they judge, so that a planted fault can be shown to break one.

`Words` bundles what is judged; `REAL` is the product's own. Each law raises AssertionError when it does not hold. The
references share no code with what they judge: a step's loss and gradient are taken example by example through the
transformers body itself, with whole logits and torch's own cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from finlora import data, text, train
from finlora.text import Example, Tokens


@dataclass(frozen=True)
class Words:
    """The functions from an example to a step."""

    render: Callable = text.render
    label_ids: Callable = text.label_ids
    members: Callable = data.members
    pack: Callable = data.pack
    collate: Callable = data.collate
    step: Callable = train.step


REAL = Words()
SHARED = Words(pack=partial(data.pack, share=True), collate=partial(data.collate, share=True))


def end_id(tokenizer, template: str) -> int:
    """The token that ends an answer: the template's end of a turn, or eos where it has none or rewrites the answer."""
    chat = tokenizer.chat_template if template == "chat" else ""
    turns = "<|im_end|>" in chat and "<think>" not in chat
    return tokenizer.convert_tokens_to_ids("<|im_end|>") if turns else tokenizer.eos_token_id


# -- rendering -------------------------------------------------------------------------------------------------------


def law_prefix(words: Words, examples: Sequence[Example], tokenizer, template: str = "plain") -> None:
    """The prompt that a model is tested on is a prefix of the one it was trained on, whatever the answer."""
    for example in examples:
        asked = words.render(example, tokenizer, False, template)
        assert len(asked.ids) > 1 and not any(asked.weights), asked
        for answer in (None, *example.labels, "1", ".5", "\n", " two words", "é"):
            taught = words.render(example, tokenizer, True, template, answer)
            assert taught.ids[: len(asked.ids)] == asked.ids, (example.id, answer)
            assert len(taught.ids) == len(taught.weights) > len(asked.ids)


def law_weights(words: Words, examples: Sequence[Example], tokenizer, template: str = "plain") -> None:
    """Weights are exactly the answer's tokens and its end token: 0 before, 1 on each of them."""
    for example in examples:
        taught = words.render(example, tokenizer, True, template)
        n = len(words.render(example, tokenizer, False, template).ids)
        assert taught.weights == (0.0,) * n + (1.0,) * (len(taught.ids) - n), (example.id, taught.weights)
        # the weighted tokens spell the answer, the others the prompt
        assert tokenizer.decode(taught.ids[n:-1]).strip() == example.answer.strip(), tokenizer.decode(taught.ids[n:])
        asked = tokenizer.decode(taught.ids[:n])
        for _, content in example.messages:
            assert content.rstrip(" ") in asked, asked


def law_end_taught(words: Words, examples: Sequence[Example], tokenizer, template: str = "plain") -> None:
    """The last token is the end token, it has weight, and it stands nowhere else among the answer's."""
    end = end_id(tokenizer, template)
    for example in examples:
        taught = words.render(example, tokenizer, True, template)
        assert taught.ids[-1] == end and taught.weights[-1] == 1.0, (taught.ids[-3:], taught.weights[-3:])
        n = len(words.render(example, tokenizer, False, template).ids)
        assert list(taught.ids[n:]).count(end) == 1


def law_one_beginning(words: Words, examples: Sequence[Example], tokenizer, template: str = "plain") -> None:
    """The beginning token stands once at the start, or nowhere where the chat template writes none."""
    for example in examples:
        ids = words.render(example, tokenizer, True, template).ids
        wanted = 1 if template == "plain" or "bos_token" in tokenizer.chat_template else 0
        assert ids.count(tokenizer.bos_token_id) == wanted, ids[:4]
        assert not wanted or ids[0] == tokenizer.bos_token_id


def law_labels(words: Words, examples: Sequence[Example], tokenizer, template: str = "plain") -> None:
    """What `choose` scores is what training teaches: prompt + label tokens + end token = the rendered example."""
    end = end_id(tokenizer, template)
    for example in examples:
        asked = words.render(example, tokenizer, False, template)
        offered = words.label_ids(example, tokenizer, template)
        assert len(offered) == len(example.labels) and len({tuple(ids) for ids in offered}) == len(offered)
        for label, ids in zip(example.labels, offered):
            taught = words.render(example, tokenizer, True, template, label)
            assert asked.ids + tuple(ids) + (end,) == taught.ids, (label, ids)
            assert tokenizer.decode(ids).strip() == label


# -- order -----------------------------------------------------------------------------------------------------------


def law_order(words: Words, batch: int, n: int, seed: int = 3) -> None:
    """Each epoch visits every example once, in an order that is a function of (seed, epoch) alone."""
    epochs = 3
    steps = -(-n * epochs // batch)
    seen = [i for step in range(steps) for i in words.members(step, batch, n, seed)]
    backwards = [words.members(step, batch, n, seed) for step in reversed(range(steps))]
    assert seen == [i for part in reversed(backwards) for i in part]  # no state between calls
    assert all(len(part) == batch for part in backwards)
    each = [seen[k * n : (k + 1) * n] for k in range(epochs)]
    assert all(sorted(one) == list(range(n)) for one in each)
    if n > 8:  # 1 in 40,320 that two orders of 8 agree
        assert each[0] != each[1] and each[0] != list(range(n))
        assert seen[:n] != [i for step in range(steps) for i in words.members(step, batch, n, seed + 1)][:n]


# -- a step ----------------------------------------------------------------------------------------------------------


def truth(model, tokens: Sequence[Tokens]) -> tuple[float, torch.Tensor]:
    """A step's loss and gradient, example by example, through transformers' own forward and torch's cross entropy."""
    total = sum(sum(t.weights[1:]) for t in tokens)
    model.zero_grad(set_to_none=True)
    loss = 0.0
    for t in tokens:
        ids = torch.tensor([t.ids])
        z = model.body(input_ids=ids[:, :-1], use_cache=False).logits[0]
        nats = F.cross_entropy(z, ids[0, 1:], reduction="none")
        part = (nats * torch.tensor(t.weights[1:], dtype=nats.dtype)).sum() / total
        part.backward()
        loss += float(part.detach())
    return loss, gradient(model)


def gradient(model) -> torch.Tensor:
    """Every trainable parameter's gradient, one after another; zeros where there is none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.trainable().values()]
    return torch.cat([g.flatten().double() for g in grads]).clone()


def law_step(words: Words, model, tokens: Sequence[Tokens], rows: int, length: int, tolerance: float) -> None:
    """However the examples are packed (into rows of `length`, 0: a row each) and cut into micro-batches of `rows` rows,
    loss and gradient are those of the examples one by one."""
    loss, wanted = truth(model, tokens)
    packed = words.pack(tokens, length) if length else [[t] for t in tokens]
    batches = [words.collate(packed[k : k + rows]) for k in range(0, len(packed), rows)]
    model.zero_grad(set_to_none=True)
    nats, weight = words.step(model, batches)
    got = gradient(model)
    model.zero_grad(set_to_none=True)
    assert weight == sum(sum(t.weights[1:]) for t in tokens)
    assert abs(nats / weight - loss) <= tolerance * abs(loss), (nats / weight, loss)
    off = float((got - wanted).norm() / wanted.norm())
    assert off <= tolerance, f"gradient off by {off:.1e}"


def law_padding(words: Words, tokens: Sequence[Tokens], length: int) -> None:
    """Padding has no weight and no document; every example keeps its tokens, weights and positions; nothing is lost.

    An example is read back out of the rows as the model sees it: its document's trunk, then its own branch.
    """
    rows = words.pack(tokens, length)
    batch = words.collate(rows, length)
    assert batch.weights[batch.doc < 0].sum() == 0
    assert float(batch.weights.sum()) == sum(sum(t.weights[1:]) for t in tokens)
    assert sorted(t.id for row in rows for t in row) == sorted(t.id for t in tokens)
    for b, row in enumerate(rows):
        seen, once = [], torch.zeros(length)
        for d in range(int(batch.doc[b].max()) + 1):
            here = batch.doc[b] == d
            for k in batch.branch[b, here].unique().tolist() or [0]:
                if k == 0 and bool(batch.branch[b, here].any()):
                    continue  # a trunk is no example
                one = here & ((batch.branch[b] == 0) | (batch.branch[b] == k))
                once += one & ((batch.branch[b] == k) | (batch.weights[b] > 0))
                assert batch.pos[b, one].tolist() == list(range(int(one.sum())))
                seen.append((batch.ids[b, one].tolist(), batch.weights[b, one].tolist(), batch.targets[b, one & (batch.weights[b] > 0)].tolist()))
        wanted = [(list(t.ids[:-1]), list(t.weights[1:]), [i for i, w in zip(t.ids[1:], t.weights[1:]) if w]) for t in row]
        assert sorted(seen) == sorted(wanted)
        assert float(once[batch.weights[b] > 0].max()) == 1, "a weight is counted for two examples"
