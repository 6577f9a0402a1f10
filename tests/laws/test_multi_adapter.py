"""One batch through every method at once: each row as if alone, one product with the base for all of them.

A tiny model carries an adapter of each method that may stand beside others, at different ranks, and rows without any. A
method is left out by what it says itself: that it trains the base, edits it, or needs a lossless one.
"""

from __future__ import annotations

import dataclasses

import laws_linear as laws
import pytest
import torch

from finlora.data import collate
from finlora.errors import FinloraError
from finlora.linear import Store
from finlora.model import hidden, logits, rewire
from finlora.registry import names, pick
from finlora.text import Tokens

FAMILIES = ["llama", "gpt2", "qwen2"]


def document(n: int, seed: int) -> Tokens:
    ids = torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(seed))
    return Tokens(tuple(ids.tolist()), (1.0,) * n)


def crowd(make_model, family: str, codec: str) -> tuple:
    """(model, names of its adapters): one adapter of every method that may stand beside others, all moved from their start."""
    model = rewire(make_model(family), codec=codec)
    record, kept = pick("codec", codec), []
    shapes = [linear.shape for linear in model.linears.values()]
    largest = max(O for O, _ in shapes), max(I for _, I in shapes)
    for k, name in enumerate(names("method")):
        method = pick("method", name)
        if method.trains_base or not laws.possible(method, record):
            continue
        cfg = laws.configs(method, (0, 0), rank=2 + k % 5)
        try:
            for seed, linear in enumerate(model.linears.values()):
                linear.adapt(name, method, cfg, torch.Generator().manual_seed(seed), laws.stats(linear.shape), largest)
        except FinloraError as error:
            assert "changes the base" in str(error), error
            assert not any(name in linear.adapters for linear in model.linears.values()), f"{name} was half attached"
        else:
            kept.append(name)
    for linear in model.linears.values():
        spread(linear, kept)
    return model, kept


@torch.no_grad()
def spread(linear, kept: list[str]) -> None:
    """Move each adapter's trained parameters until its weight is a few per cent from the base's."""
    base = linear.merged(None)
    for k, name in enumerate(kept):
        generator, size = torch.Generator().manual_seed(k), 0.02
        while laws.distance(linear.merged(name), base) < 0.03 * float(base.norm()):
            for p in linear.adapters[name].values():
                if p.requires_grad:
                    p.add_(size * torch.randn(p.shape, generator=generator))
            size *= 1.5


@pytest.fixture(scope="module", params=[(family, codec) for family in FAMILIES for codec in ("none", "nf4")], ids="-".join)
def crowded(request, make_model):
    return crowd(make_model, *request.param)


def test_many_methods_stand_together(crowded):
    """The laws below are about more than LoRA and its kin: most methods leave their base alone."""
    model, kept = crowded
    assert len(kept) >= 8 and len(kept) >= len(names("method")) // 2, kept
    assert {"lora", "dora", "hira", "vera"} <= set(kept)


def test_rows_of_all_methods_equal_their_own_calls(crowded):
    model, kept = crowded
    rows: list[str | None] = [None, *kept, *reversed(kept[::2]), None]
    batch = collate([[document(5 + 3 * (k % 4), k)] for k in range(len(rows))])
    with torch.no_grad():
        x = hidden(model, dataclasses.replace(batch, rows=rows))
        seen = {}
        for name in dict.fromkeys(rows):
            alone = hidden(model, dataclasses.replace(batch, rows=[name] * len(rows)))
            seen[name] = alone
            for b in (b for b, row in enumerate(rows) if row == name):
                inside = batch.doc[b] >= 0
                # products of other sizes may round otherwise: measured 0 (n = 153), an AVX2 CPU sums each row alike
                assert float((x[b, inside] - alone[b, inside]).abs().max()) < 2e-5, f"row {b} ({name})"
                assert float((logits(model, x[b, inside]) - logits(model, alone[b, inside])).abs().max()) < 1e-4, f"row {b} ({name})"
    inside = batch.doc >= 0
    for i, a in enumerate(seen):
        for b in list(seen)[:i]:
            assert float((seen[a][inside] - seen[b][inside]).abs().max()) > 0.01, f"{a} and {b} give the same: this would prove nothing"


def test_each_row_may_hold_several_documents(crowded):
    """Packing and routing do not know of each other."""
    model, kept = crowded
    layout, rows = [[0, 1], [2], [3, 4, 5], [6, 7]], [kept[0], None, kept[-1], kept[len(kept) // 2]]
    with torch.no_grad():
        x = hidden(model, dataclasses.replace(collate([[document(4 + d, d) for d in row] for row in layout]), rows=rows))
        for b, row in enumerate(layout):
            start = 0
            for d in row:
                alone = hidden(model, dataclasses.replace(collate([[document(4 + d, d)]]), rows=[rows[b]]))[0]
                assert float((x[b, start : start + len(alone)] - alone).abs().max()) < 2e-5, (rows[b], d)
                start += len(alone)


def test_one_product_with_the_base_and_each_adapter_on_its_own_rows(crowded, monkeypatch):
    model, kept = crowded
    rows: list[str | None] = [kept[0], None, *kept, kept[0], None]
    base_rows, own_rows = [], []
    real = Store.forward
    monkeypatch.setattr(Store, "forward", lambda self, x: base_rows.append(x.shape[0]) or real(self, x))

    def spied(name, method):
        def apply(cfg, params, x, y0, base):
            own_rows.append((name, x.shape[0], y0.shape[0]))
            return method.apply(cfg, params, x, y0, base)

        return dataclasses.replace(method, apply=apply)

    for linear in model.linears.values():
        monkeypatch.setattr(linear, "how", {name: (spied(name, method), cfg) for name, (method, cfg) in linear.how.items()})
    batch = collate([[document(6, k)] for k in range(len(rows))])
    with torch.no_grad():
        hidden(model, dataclasses.replace(batch, rows=rows))
        n = len(model.linears)
        assert base_rows == [len(rows)] * n, "the base is multiplied once by each linear, whatever the adapters"
        wanted = {name: rows.count(name) for name in kept}
        assert sorted(own_rows) == sorted((name, c, c) for name, c in wanted.items() for _ in range(n))
        base_rows.clear(), own_rows.clear()
        hidden(model, dataclasses.replace(batch, rows=[None] * len(rows)))
        assert base_rows == [len(rows)] * n and not own_rows, "rows without an adapter cost the base alone"


def test_gradients_of_a_mixed_batch_are_those_of_separate_calls(crowded):
    """Training several adapters in one batch gives each the gradient of its own rows, to rounding, and no other any."""
    model, kept = crowded
    some = kept[::3]
    rows: list[str | None] = [*some, None, *some]
    batch = collate([[document(5 + k % 3, k)] for k in range(len(rows))])
    push = torch.randn(len(rows), batch.ids.shape[1], 32, generator=torch.Generator().manual_seed(1)) * (batch.doc >= 0)[..., None]

    def run(names, mask):
        for p in model.parameters():
            p.grad = None
        (hidden(model, dataclasses.replace(batch, rows=names)) * push * mask[:, None, None]).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together = run(rows, torch.ones(len(rows)))
    touched = {n.split(".adapters.")[1].split(".")[0] for n in together}
    assert touched == set(some)
    for name in some:
        alone = run([name] * len(rows), torch.tensor([float(row == name) for row in rows]))
        assert alone.keys() == {n for n in together if f".adapters.{name}." in n}
        # a few numbers that sum over everything can cancel, so an adapter's gradient is judged whole: measured 2e-8 of it
        # in the mean, 1.6e-7 at most (n = 33)
        away = sum(laws.distance(together[n], alone[n]) ** 2 for n in alone) ** 0.5
        assert away <= 1e-6 * sum(float(g.norm()) ** 2 for g in alone.values()) ** 0.5, name


def test_a_lost_row_is_seen(crowded, monkeypatch):
    """The law above has teeth: two rows exchanged after their adapters are worlds away."""
    model, kept = crowded
    rows = [kept[0], None, kept[1], None]
    batch = dataclasses.replace(collate([[document(6, k)] for k in range(4)]), rows=rows)
    real = type(model.route).split
    with torch.no_grad():
        right = hidden(model, batch)
        monkeypatch.setattr(type(model.route), "split", lambda self, count, device: (real(self, count, device)[0], real(self, count, device)[1].flip(0)))
        assert float((hidden(model, batch) - right).abs().max()) > 0.1
