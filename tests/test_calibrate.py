"""Calibration sees what it says it sees: moments and gradients by hand, padding, grouping, and a model left as it was."""

import pytest
import torch

from finlora import calibrate
from finlora.calibrate import collect
from finlora.data import collate, pack
from finlora.errors import FinloraError
from finlora.loss import token_sums
from finlora.model import find_linears, head, hidden, rewire
from finlora.registry import pick

BOTH = ("moment_II", "grad_OI")


def by_hand(model, tokens):
    """{linear: (moment, gradient, tokens)}: one example at a time, autograd's gradient of the dense weights."""
    linears = find_linears(model.body)
    seen = {name: [] for name in linears}
    handles = [m.register_forward_hook(lambda m, args, y, name=n: seen[name].append(args[0].detach().reshape(-1, args[0].shape[-1]))) for n, m in linears.items()]
    model.requires_grad_(False)
    for m in linears.values():
        m.weight.requires_grad_(True)
    total = sum(sum(t.weights[1:]) for t in tokens)
    for t in tokens:
        batch = collate([[t]])
        (token_sums(hidden(model, batch), head(model), batch.targets, batch.weights)[0] / total).backward()
    out = {}
    for handle in handles:
        handle.remove()
    for name, m in linears.items():
        x = torch.cat(seen[name])
        grad = m.weight.grad.T if type(m).__name__ == "Conv1D" else m.weight.grad
        out[name] = x.T @ x / len(x), grad.clone(), len(x)
        m.weight.grad = None
    model.requires_grad_(False)
    return out


def close(a, b, within=1e-12):
    return float((a - b).norm()) <= within * float(b.norm())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_moment_and_gradient_by_hand(make_model, taught, family):
    """Packed rows, rows with padding, a row each: all the same as one example at a time (float64: measured to 3e-15)."""
    model = make_model(family, dtype="float64")
    truth = by_hand(model, taught)
    for rows, micro in ((2048, 1), (300, 3), (0, 1), (0, 5)):
        seen = collect(model, taught, BOTH, row_tokens=rows, micro_rows=micro)
        assert list(seen) == list(truth)
        for name, (moment, grad, count) in truth.items():
            assert seen[name].tokens == count == sum(len(t.ids) - 1 for t in taught)
            assert float(grad.norm()) > 0
            assert close(seen[name].moment_II, moment) and close(seen[name].grad_OI, grad), (rows, micro, name)


def test_padding_counts_for_nothing(make_model, taught, monkeypatch):
    """The rows of (0, 5) above hold padding, and it would show: without the mask the moments are others."""
    batch = collate([[t] for t in taught[:5]])
    assert bool((batch.doc < 0).any())
    model = make_model("llama", dtype="float64")
    truth = collect(model, taught, ["moment_II"], row_tokens=0)
    monkeypatch.setattr(calibrate._Watcher, "flat", lambda self, x: x.detach().reshape(-1, x.shape[-1]))
    wrong = collect(model, taught, ["moment_II"], row_tokens=0, micro_rows=5)
    assert not any(close(wrong[name].moment_II, truth[name].moment_II, 1e-3) for name in truth)


@pytest.mark.parametrize("codec", ["none", "nf4"])
def test_rewired_linears_under_an_adapter(make_model, taught, codec):
    """Over a quantised base, through an adapter: the merged dense model's moments and gradients."""
    model = make_model("gpt2", dtype="float64")
    rewire(model, codec=codec, method="lora", method_config=pick("method", "lora").config(rank=4))
    model.dtype = torch.float64
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p.dtype))
    seen = collect(model, taught, BOTH)
    dense = make_model("gpt2", dtype="float64")
    with torch.no_grad():
        for name, module in find_linears(dense.body).items():
            module.weight.copy_(model.linears[name].merged("default", torch.float64).T)
    # the dense model rounds nothing else: measured to 4e-15
    for name, (moment, grad, _) in by_hand(dense, taught).items():
        assert close(seen[name].moment_II, moment, 1e-10) and close(seen[name].grad_OI, grad, 1e-10), name


def test_groups_and_names_change_no_bit(make_model, taught):
    """One pass, a pass for each linear, or a few named ones: the same bits; q, k and v share one moment."""
    model = make_model("llama")
    whole = collect(model, taught, BOTH)
    single = collect(model, taught, BOTH, budget_bytes=1)
    some = [name for name in whole if name.endswith(("v_proj", "down_proj"))]
    named = collect(model, taught, BOTH, names=some, budget_bytes=200_000)
    assert list(named) == some and list(single) == list(whole)
    for name in whole:
        for other in (single, *([named] if name in some else [])):
            assert torch.equal(whole[name].moment_II, other[name].moment_II) and torch.equal(whole[name].grad_OI, other[name].grad_OI)
    q, k, o = (next(s for n, s in whole.items() if n.endswith(f"{x}_proj")) for x in "qko")
    assert q.moment_II is k.moment_II and q.moment_II is not o.moment_II
    assert q.moment_II.dtype == q.grad_OI.dtype == torch.float32


def test_needs(make_model, taught):
    model = make_model("llama")
    assert all(s.moment_II is None and s.grad_OI is not None for s in collect(model, taught, ["grad_OI"]).values())
    assert all(s.moment_II is not None and s.grad_OI is None for s in collect(model, taught, ["moment_II"]).values())
    assert all(s.tokens == 0 for s in collect(model, taught, ()).values())


def test_the_model_is_left_as_it_was(make_model, taught):
    """No gradient, no hook, no mode changed; what trained still trains, and recomputation counts no token twice."""
    from finlora.model import recompute

    model = make_model("llama")
    plain = collect(model, taught, BOTH)
    rewire(model, method="full")
    recompute(model)
    model.train()
    first = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    seen = collect(model, taught, BOTH)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, first[n][0]) and p.requires_grad == first[n][1] for n, p in model.named_parameters())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    for name in plain:
        assert seen[name].tokens == plain[name].tokens and close(seen[name].moment_II, plain[name].moment_II, 1e-6)


def test_refusals(make_model, taught):
    from dataclasses import replace

    model = make_model("llama")
    with pytest.raises(FinloraError, match="nothing to calibrate on"):
        collect(model, [], BOTH)
    with pytest.raises(FinloraError, match="did you mean `moment_II`"):
        collect(model, taught, ["moment_I"])
    with pytest.raises(FinloraError, match="no linear named `lm_head`"):
        collect(model, taught, BOTH, names=["lm_head"])
    silent = [replace(t, weights=(0.0,) * len(t.weights)) for t in taught]
    with pytest.raises(FinloraError, match="no loss to take a gradient of"):
        collect(model, silent, BOTH)
    assert collect(model, silent, ["moment_II"])


def test_long_examples_lengthen_the_rows(make_model, taught):
    longest = max(len(t.ids) for t in taught) - 1
    assert len(pack(taught, longest)) > 1
    seen = collect(make_model("llama"), taught, ["moment_II"], row_tokens=longest - 5)
    assert all(s.tokens == sum(len(t.ids) - 1 for t in taught) for s in seen.values())
