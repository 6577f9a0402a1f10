"""What a model answers: the likelihood of each label, or the text it writes.

choose: log p(label | prompt) = sum_j log p(label_j | prompt, label_<j), in nats, for all labels of an example in one
forward pass.  The prompt is computed once, and so is what several prompts begin with; a prompt's last position already predicts the first token of every label, so a label
of m tokens adds m - 1 positions, a branch that sees the prompt and itself.  The usual way (one padded row for each prompt
and label, logits at every position) computes the prompt once a label and the head once a token; here the head runs only
where a label's token is predicted, and many examples lie in one row without padding: the tree of their prompts.

Where one label's tokens begin another's ("10", "10.5"), the sum would favour the shorter whatever the model thinks, since
the longer one only multiplies further factors on.  Then, and only then, every label of that example is scored with its end
token, which makes them disjoint events.

say: greedy or sampled text with transformers' own key/value cache, left padded, finished rows dropped as they end.  Each
row draws from its own generator, so neither batch size nor order changes what is said.

Shapes: B rows, T positions, D width, V vocabulary, N positions that predict a label's token, M (position, token) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from . import model as models
from .asking import Asked, Once, ask, even_groups, packs, shared
from .attention import Layout, trimmed, whole
from .data import Batch
from .errors import FinloraError
from .loss import Head
from .model import Model, head, hidden, logits
from .text import Example, choose_template, render, stop_at, thinking_open

CHUNK = 512  # positions whose logits (CHUNK, V) exist at once


# -- choose ----------------------------------------------------------------------------------------------------------


def choose(
    model: Model,
    examples: Sequence[Example],
    batch_tokens: int = 4096,
    progress: Any = None,
    *,
    template: str = "auto",
    too_long: str = "refuse",
    packed: bool = True,
    disjoint: bool = True,
) -> list[dict[str, float]]:
    """The log-likelihood of each label of each example, in nats, in the order of the examples.

    batch_tokens: positions of one forward pass. template: as text.choose_template. too_long: `refuse`, or `cut` the prompt
    from the left where prompt and label exceed the model's context. packed: False gives each prompt and label a padded
    row of its own; a model that cannot serve packed rows gets those in any case. disjoint: False never adds end tokens.
    Raises: FinloraError for an example without labels, or too long.
    """
    template = choose_template(model.tokenizer, template)
    tokenizer = Once(model.tokenizer)
    asked = [ask(e, tokenizer, template, model.max_tokens, too_long, disjoint) for e in examples]
    found = likelihoods(model, asked, batch_tokens, progress, packed=packed)
    return [dict(zip(e.labels, values)) for e, values in zip(examples, found)]


def likelihoods(
    model: Model, asked: Sequence[Asked], batch_tokens: int = 4096, progress: Any = None, *, packed: bool = True, greedy: bool = False
) -> list[list[Any]]:
    """The log-likelihood (nats) of every label of what is asked, in its order; with `greedy` pairs of it and whether each
    of the label's tokens is the likeliest at its place. The other arguments are those of `choose`."""
    unique = sorted(dict.fromkeys(asked), key=lambda a: a.prompt)  # what is asked twice is computed once; neighbours begin alike
    found: dict[Asked, list[Any]] = {}
    with _still(model):
        for group in packs(unique, batch_tokens):
            if packed:
                try:
                    found.update(zip(group, _packed(model, group, greedy)))
                except models.Unserved:
                    packed = False
            if not packed:
                by_length = sorted(group, key=lambda a: len(a.prompt))
                for part in even_groups(by_length, batch_tokens, lambda a: sum(len(a.prompt) + len(t) - 1 for t in a.labels)):
                    found.update(zip(part, _in_own_rows(model, part, greedy)))
            if progress:
                progress.step(sum(a in found for a in asked))
    return [found[a] for a in asked]


def _packed(model: Model, group: Sequence[Asked], greedy: bool) -> list[list[Any]]:
    """One row that holds every example: its prompt as the trunk, its labels as branches.

    The row holds a token that several prompts share once.  Attention sees the examples as if each stood there in full (the
    "unfolded" row, U positions): `place` says where in the row each of those positions is computed.
    """
    total = sum(map(len, group))
    ids, doc, pos, branch, place = (np.zeros((1, total), np.int64) for _ in range(5))
    where, target, slot = [], [], []  # M: position in the row, token predicted there, label whose sum it enters
    k = n_row = n_labels = 0
    before: tuple[int, ...] = ()
    start = 0  # where the example before begins
    for d, a in enumerate(group):
        P, alike = len(a.prompt), shared(before, a.prompt)
        doc[0, k : k + len(a)] = d
        ids[0, k : k + P], pos[0, k : k + P] = a.prompt, np.arange(P)
        place[0, k : k + alike] = place[0, start : start + alike]
        place[0, k + alike : k + len(a)] = np.arange(n_row, n_row + len(a) - alike)
        n_row += len(a) - alike
        before, start = a.prompt, k
        last, k = k + P - 1, k + P
        for number, (label, skip) in enumerate(a.branches(), 1):
            m = len(label) - 1
            ids[0, k : k + m], pos[0, k : k + m], branch[0, k : k + m] = label[:-1], np.arange(P, P + m), number
            where += [last, *range(k, k + m)][skip:]
            target += label[skip:]
            slot += [n_labels] * (m + 1 - skip)
            k, n_labels = k + m, n_labels + 1
    nothing = torch.zeros(1, total)
    unfolded = Batch(*map(torch.from_numpy, (ids, np.zeros_like(ids))), nothing, *map(torch.from_numpy, (doc, pos, branch)))
    x_BTD = hidden_shared(model, unfolded, torch.from_numpy(place))
    sums = iter(label_sums(x_BTD[0], head(model), place[0, where], target, slot, n_labels, greedy))
    return [[next(sums) for _ in a.labels] for a in group]


def hidden_shared(model: Model, unfolded: Batch, place: torch.Tensor) -> torch.Tensor:
    """The last hidden states (1, T, D) of a row of which some positions belong to several documents.

    unfolded: the documents one after another (1, U), as if nothing were shared. place: (1, U), where in the row of T each is
    computed; positions that share a place must have the same tokens from their document's start up to there.
    Raises: model.Unserved for a model that cannot serve packed rows.
    """
    where = whole(unfolded)
    n = int(place.max()) + 1
    first = torch.zeros(n, dtype=torch.long)
    first[place[0]] = torch.arange(place.shape[1])  # any of them: all compute the same
    ids, pos = unfolded.ids[:, first].to(model.device), unfolded.pos[:, first].to(model.device)
    folded = trimmed(Layout([replace(g, index=place[0][g.index]) for g in where.groups], where.back[first]), model.device)
    return models.packed_hidden(model, ids, pos, folded)


def _in_own_rows(model: Model, group: Sequence[Asked], greedy: bool) -> list[list[Any]]:
    """A padded row for each prompt and label; labels of one token share their prompt's row."""
    at: dict[tuple[int, ...], int] = {}  # the row of each sequence
    for a in group:
        for label in a.labels:
            at.setdefault((*a.prompt, *label[:-1]), len(at))
    T = max(map(len, at))
    ids, doc = np.zeros((len(at), T), np.int64), np.full((len(at), T), -1, np.int64)
    for row, b in at.items():
        ids[b, : len(row)], doc[b, : len(row)] = row, 0
    pos = np.broadcast_to(np.arange(T), ids.shape).copy()
    where, target, slot, n_labels = [], [], [], 0
    for a in group:
        for label, skip in a.branches():
            first = at[(*a.prompt, *label[:-1])] * T + len(a.prompt) - 1
            where += range(first + skip, first + len(label))
            target += label[skip:]
            slot += [n_labels] * (len(label) - skip)
            n_labels += 1
    zeros = np.zeros_like(ids)
    tensors = [torch.from_numpy(t) for t in (ids, zeros, zeros.astype(np.float32), doc, pos, zeros)]
    x_BTD = hidden(model, Batch(*tensors).to(model.device))
    sums = iter(label_sums(x_BTD.reshape(len(at) * T, -1), head(model), where, target, slot, n_labels, greedy))
    return [[next(sums) for _ in a.labels] for a in group]


def label_sums(
    hidden_ND: torch.Tensor, output: Head, where: Sequence[int], target: Sequence[int], slot: Sequence[int], n_slots: int, greedy: bool = False
) -> list[Any]:
    """sum of log p(target[m] at position where[m]) over the m of each slot, in nats; with `greedy` pairs of it and whether
    every target of the slot is the likeliest token of its position.

    hidden_ND: the positions' hidden states. where, target, slot: M long. The softmax is taken in float32 (float64 for
    float64 hidden), once for each position, the sums in float64.
    """
    device = hidden_ND.device
    positions, inverse = np.unique(np.asarray(where), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    at, token = torch.from_numpy(inverse[order]).to(device), torch.as_tensor(np.asarray(target)[order], device=device)
    h_ND = hidden_ND.index_select(0, torch.from_numpy(positions).to(device))
    wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
    edges = np.searchsorted(inverse[order], np.arange(0, len(positions) + CHUNK, CHUNK))
    parts, best = [], []
    for n, k in enumerate(range(0, len(positions), CHUNK)):
        z = output.logits(h_ND[k : k + CHUNK]).to(wide)
        rows, tokens = at[edges[n] : edges[n + 1]] - k, token[edges[n] : edges[n + 1]]
        parts.append(z[rows, tokens] - torch.logsumexp(z, dim=-1)[rows])
        if greedy:
            best.append(z.argmax(-1)[rows] == tokens)
    logp_M = torch.cat(parts).double().cpu().numpy()
    sums = np.zeros(n_slots)
    np.add.at(sums, np.asarray(slot)[order], logp_M)
    if not greedy:
        return sums.tolist()
    missed = np.zeros(n_slots)
    np.add.at(missed, np.asarray(slot)[order], ~torch.cat(best).cpu().numpy())
    return list(zip(sums.tolist(), (missed == 0).tolist()))


# -- say -------------------------------------------------------------------------------------------------------------


def say(
    model: Model,
    prompts: Sequence[Example | str] | str,
    max_new: int = 16,
    stop: Sequence[str] = ("\n",),
    temperature: float = 0.0,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Any = None,
    *,
    template: str = "auto",
    too_long: str = "refuse",
    think: int = 0,
) -> list[str]:
    """What the model writes after each prompt, in the order of the prompts, as it stands (a leading space is kept).

    prompts: Examples, or plain texts. max_new: tokens at most. stop: the text ends before the first of these strings; it
    ends at an end token in any case. temperature: 0 takes the likeliest token, above 0 draws from softmax(z / temperature)
    with a generator of (seed, place of the prompt). batch_tokens: prompt and new positions computed side by side. think: so
    many tokens more for a model that thinks first; stop strings then count behind its thinking only (text.strip_thinking).
    Raises: FinloraError for an empty prompt, one that leaves no room for max_new tokens, a negative temperature.
    """
    examples = [_example(p, k) for k, p in enumerate([prompts] if isinstance(prompts, str) else prompts)]
    template = choose_template(model.tokenizer, template)
    ids = [prompt_ids(model, e, max_new + think, template, too_long) for e in examples]
    return continuations(model, ids, max_new, stop, temperature, seed, batch_tokens, progress, ends=end_tokens(model, template), think=think)


def continuations(
    model: Model,
    ids: Sequence[Sequence[int]],
    max_new: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Any = None,
    *,
    ends: Collection[int] = (),
    think: int = 0,
) -> list[str]:
    """What `say` returns, for prompts that are tokens already. ends: tokens that end a text."""
    opened = [think > 0 and thinking_open(model.tokenizer.decode(i[-8:])) for i in ids]
    max_new += think
    order = sorted(range(len(ids)), key=lambda k: (len(ids[k]), ids[k]))
    out = [""] * len(ids)
    told = 0
    for group in even_groups(order, batch_tokens, lambda k: len(ids[k]) + max_new):
        pick = _picker(temperature, [seed * 1_000_003 + k for k in group])
        new: list[list[int]] = [[] for _ in group]
        done: set[int] = set()
        for step in _decode(model, [ids[k] for k in group], max_new, pick, done):
            for row, token in step:
                if token in ends:
                    done.add(row)
                    continue
                new[row].append(token)
                text = _text(model, new[row])
                cut = stop_at(text, stop, think > 0, opened[group[row]])
                out[group[row]] = text if cut is None else text[:cut]
                if cut is not None:
                    done.add(row)
        told += len(group)
        if progress:
            progress.step(told)
    return out


def write(
    model: Model,
    prompt: Example | str,
    max_new: int = 64,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
    *,
    template: str = "auto",
    too_long: str = "cut",
) -> Iterator[str]:
    """What `say` returns for one prompt, piece by piece as it is written.

    A piece is held back while it may be half a character or the beginning of a stop string.
    """
    template = choose_template(model.tokenizer, template)
    ids = prompt_ids(model, _example(prompt, 0), max_new, template, too_long)
    ends, new, sent, done = end_tokens(model, template), [], 0, set()
    text = ""
    for step in _decode(model, [ids], max_new, _picker(temperature, [seed * 1_000_003]), done):
        (_, token), = step
        if token in ends:
            break
        new.append(token)
        text = _text(model, new)
        cut = stop_at(text, stop)
        if cut is not None:
            text = text[:cut]
            break
        ready = len(text) - _held(text, stop)
        if ready > sent:
            yield text[sent:ready]
            sent = ready
    if len(text) > sent:
        yield text[sent:]


def complete(model: Model, prompt: Example | str, max_new: int = 64, **options: Any) -> str:
    """All that `write` writes for one prompt, as one text."""
    return "".join(write(model, prompt, max_new, **options))


def prompt_ids(model: Model, example: Example, max_new: int, template: str, too_long: str = "refuse") -> list[int]:
    """The prompt's tokens, at most as many as leave `max_new` tokens room in the model's context.

    Raises: FinloraError for an empty prompt, or (by `refuse`) one that is too long.
    """
    prompt = render(example, model.tokenizer, False, template)
    if not len(prompt):
        raise FinloraError(f"the prompt of example `{example.id}` is empty", "write something for the model to continue")
    # The last new token is never fed back: prompt + max_new - 1 positions. `fit` counts predictions, one less than tokens.
    room = model.max_tokens - max_new
    if len(prompt) - 1 > room:
        if room < 1:
            raise FinloraError(f"max_new is {max_new}, the model has {model.max_tokens} positions", "lower max_new")
        if too_long != "cut":
            raise FinloraError(
                f"example `{example.id}` has {len(prompt)} tokens, which leaves no room for {max_new} new ones in {model.max_tokens} positions",
                "lower max_new, or set data.too_long = \"cut\" to cut the context from the left",
            )
        ids = prompt.ids
        return [ids[0], *ids[len(ids) - room :]]
    return list(prompt.ids)


def end_tokens(model: Model, template: str) -> set[int]:
    """The tokens that end an answer: the tokenizer's, the model's own, and the one that the template teaches."""
    taught = render(Example("end", (("user", "?"),), "", "."), model.tokenizer, True, template).ids[-1]
    named = getattr(getattr(model.body, "generation_config", None), "eos_token_id", None)
    own = named if isinstance(named, (list, tuple)) else [named]
    return {int(t) for t in (model.tokenizer.eos_token_id, taught, *own) if t is not None}


def _example(prompt: Example | str, k: int) -> Example:
    return Example(f"prompt-{k}", (("user", prompt),), "", "") if isinstance(prompt, str) else prompt


def _text(model: Model, ids: Sequence[int]) -> str:
    return model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _held(text: str, stop: Iterable[str]) -> int:
    """How many characters at the end may still change: half a character, or the beginning of a stop string."""
    half = len(text) - len(text.rstrip("\ufffd"))
    begun = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return max([half, *begun])


def _picker(temperature: float, seeds: Sequence[int]) -> Callable[[torch.Tensor, Sequence[int]], list[int]]:
    """(logits (B, V), rows) -> the next token of each row."""
    if temperature < 0:
        raise FinloraError(f"temperature is {temperature}", "0 for the likeliest token, above 0 to draw")
    if temperature == 0:
        return lambda z_BV, rows: z_BV.argmax(-1).tolist()
    draws = [torch.Generator().manual_seed(s % (1 << 63)) for s in seeds]

    def pick(z_BV: torch.Tensor, rows: Sequence[int]) -> list[int]:
        p_BV = torch.softmax(z_BV.double().cpu() / temperature, dim=-1)
        return [int(torch.multinomial(p, 1, generator=draws[row])) for p, row in zip(p_BV, rows)]

    return pick


def _decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    pick: Callable[[torch.Tensor, Sequence[int]], list[int]],
    done: set[int],
) -> Iterator[list[tuple[int, int]]]:
    """Yields, step by step, (row, token) of every row still written; rows that the caller puts in `done` are dropped."""
    T = max(map(len, prompts))
    rows = list(range(len(prompts)))
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    mask = torch.zeros(len(rows), T, dtype=torch.long)
    for b, prompt in enumerate(prompts):  # padded on the left: the last position is every row's newest token
        ids[b, T - len(prompt) :], mask[b, T - len(prompt) :] = torch.tensor(prompt), 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    pos = (mask.cumsum(1) - 1).clamp(min=0)
    cache = None
    for step in range(max_new):
        z_BV, cache = _next(model, ids, mask, pos, cache)
        tokens = pick(z_BV, rows)
        yield list(zip(rows, tokens))
        keep = [b for b, row in enumerate(rows) if row not in done]
        if not keep or step + 1 == max_new:
            return
        ids, mask, pos = torch.tensor(tokens, device=model.device)[:, None], torch.nn.functional.pad(mask, (0, 1), value=1), pos[:, -1:] + 1
        if len(keep) < len(rows):
            index = torch.tensor(keep, device=model.device)
            ids, mask, pos = ids[index], mask[index], pos[index]
            cache.batch_select_indices(index)
            rows = [rows[b] for b in keep]


def _next(model: Model, ids: torch.Tensor, mask: torch.Tensor, pos: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """Logits (B, V) after the newest position of each row, and the cache with it."""
    with _still(model):
        model.route.rows = None
        with models.autocast(model):
            out = model.body.base_model(input_ids=ids, attention_mask=mask, position_ids=pos, past_key_values=cache, use_cache=True)
        return logits(model, models.computed(model, out.last_hidden_state[:, -1])), out.past_key_values


@contextmanager
def _still(model: Model) -> Iterator[None]:
    """No gradients and no dropout; the model's mode is put back afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()
