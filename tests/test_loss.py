"""The one cross entropy: equal to torch's, cheaper than forming logits, no less exact in bfloat16.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from finlora.loss import Head, token_sums

B, T, D, V = 3, 17, 16, 50


def case(dtype=torch.float64, bias=True, scale=1.0, softcap=None, seed=0, shape=(B, T, D, V), size=1.0):
    """hidden, Head, targets, weights; about half of the weights are 0, some are not 1."""
    g = torch.Generator().manual_seed(seed)
    b, t, d, v = shape
    x = torch.randn(b, t, d, generator=g, dtype=torch.float64) * size
    W = torch.randn(v, d, generator=g, dtype=torch.float64)
    c = torch.randn(v, generator=g, dtype=torch.float64) if bias else None
    weights = torch.randint(0, 2, (b, t), generator=g).float() * torch.tensor([1.0, 0.5, 2.0])[torch.randint(0, 3, (b, t), generator=g)]
    targets = torch.randint(0, v, (b, t), generator=g)
    leaf = lambda a: None if a is None else a.to(dtype).requires_grad_()  # noqa: E731
    return leaf(x), Head(leaf(W), leaf(c), scale, softcap), targets, weights


def naive(x, head: Head, targets, weights):
    """The plain way: every logit at once, torch's cross entropy in float32 (float64 for float64)."""
    z = F.linear(x, head.weight, head.bias)
    z = z.to(torch.float64 if x.dtype == torch.float64 else torch.float32) * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    nats = F.cross_entropy(z.flatten(0, 1), targets.flatten(), reduction="none")
    return (nats * weights.flatten()).sum(), weights.sum()


def grads(value, x, head: Head):
    return torch.autograd.grad(value, [t for t in (x, head.weight, head.bias) if t is not None and t.requires_grad])


FORMS = [(bias, scale, softcap) for bias in (False, True) for scale in (1.0, 0.0625) for softcap in (None, 5.0)]


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize("bias, scale, softcap", FORMS)
def test_value_and_gradients(bias, scale, softcap, chunk):
    """1e-12 of the value in float64, with respect to hidden state, head and bias."""
    x, head, targets, weights = case(bias=bias, scale=scale, softcap=softcap)
    ours, theirs = token_sums(x, head, targets, weights, chunk), naive(x, head, targets, weights)
    assert ours[0].dtype == torch.float64 and ours[0].shape == ours[1].shape == ()
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-12) and float(ours[1]) == float(theirs[1])
    for a, b in zip(grads(ours[0] / 3, x, head), grads(theirs[0] / 3, x, head), strict=True):  # a divisor comes later
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


def test_gradients_by_finite_differences():
    x, head, targets, weights = case(scale=0.5, softcap=3.0, shape=(1, 5, 4, 7))
    assert torch.autograd.gradcheck(lambda x, W, b: token_sums(x, Head(W, b, 0.5, 3.0), targets, weights, 2)[0], (x, head.weight, head.bias))


def test_a_second_derivative_is_refused():
    x, head, targets, weights = case()
    square = token_sums(x, head, targets, weights)[0] ** 2
    (g,) = torch.autograd.grad(square, [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_bfloat16_is_no_worse_than_the_plain_way(softcap, seed):
    """Against float64 on the same bfloat16 numbers: our error over the plain path's, for the value and each gradient.

    Measured over 20 seeds: value at most 1.08 times the plain error, gradients 1.00 (both round the same logits).
    """
    made = case(torch.bfloat16, bias=False, softcap=softcap, seed=seed, shape=(4, 64, 64, 300))
    x, head, targets, weights = made
    exact_x, exact = x.detach().double().requires_grad_(), Head(head.weight.detach().double().requires_grad_(), None, 1.0, softcap)
    truth = naive(exact_x, exact, targets, weights)[0]
    ours, plain = token_sums(x, head, targets, weights)[0], naive(x, head, targets, weights)[0]
    assert ours.dtype == torch.float32
    wanted = [truth, *grads(truth, exact_x, exact)]
    for a, b, w in zip([ours, *grads(ours, x, head)], [plain, *grads(plain, x, head)], wanted, strict=True):
        mine, theirs = (float((v.detach().double() - w.detach()).norm()) for v in (a, b))
        assert mine <= 1.1 * theirs + 1e-6 * float(w.detach().norm()), (mine, theirs)


@pytest.mark.parametrize("chunk", [1, 3, 50, 51, 52, 10_000])
def test_chunks_change_nothing(chunk):
    x, head, targets, weights = case()
    one, cut = token_sums(x, head, targets, weights, B * T)[0], token_sums(x, head, targets, weights, chunk)[0]
    assert cut.item() == pytest.approx(one.item(), rel=1e-14)
    for a, b in zip(grads(one, x, head), grads(cut, x, head)):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def test_logits_never_stand_whole():
    """No tensor is larger than chunk x V (nor the head), in forward or backward; the plain way makes N x V."""
    shape, chunk = (4, 64, 16, 900), 32
    x, head, targets, weights = case(torch.float32, softcap=5.0, shape=shape)
    seen = {}
    for name, way in (("ours", lambda: token_sums(x, head, targets, weights, chunk)[0]), ("plain", lambda: naive(x, head, targets, weights)[0])):
        with Largest() as largest:
            way().backward()
        seen[name] = largest.numel
    assert seen["ours"] <= max(chunk * 900, 900 * 16, 4 * 64 * 16) and seen["plain"] >= 4 * 64 * 900


def test_the_head_runs_only_where_there_is_weight():
    x, head, targets, weights = case(torch.float32)
    rows = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in ("matmul", "__matmul__") and args[0].shape[-1] == D:
                rows.append(args[0].shape[0])
            return func(*args, **(kwargs or {}))

    x.data[weights == 0] = math.nan  # what has no weight cannot hurt
    with Watch():
        nats, _ = token_sums(x, head, targets, weights)
    assert math.isfinite(float(nats.detach()))
    nats.backward()
    assert bool((x.grad[weights == 0] == 0).all()) and bool(head.weight.grad.isfinite().all())
    assert not rows or sum(rows) == int((weights > 0).sum())


def test_no_weight_is_nothing():
    x, head, targets, weights = case()
    nats, weight = token_sums(x, head, targets, torch.zeros_like(weights))
    nats.backward()
    assert nats.item() == weight.item() == 0 and not x.grad.any() and not head.weight.grad.any()


def test_a_frozen_head_gets_no_gradient():
    x, head, targets, weights = case()
    still = Head(head.weight.detach(), head.bias.detach())
    token_sums(x, still, targets, weights)[0].backward()
    assert still.weight.grad is None and x.grad is not None
    with torch.no_grad():
        assert not token_sums(x, still, targets, weights)[0].requires_grad


def test_large_logits_do_not_overflow():
    x, head, targets, weights = case(torch.float32, size=1e4)
    ours, theirs = token_sums(x, head, targets, weights)[0], naive(x, head, targets, weights)[0]
    assert math.isfinite(float(ours.detach())) and float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_head_logits_are_those_of_the_loss():
    for bias, scale, softcap in FORMS:
        x, head, targets, weights = case(bias=bias, scale=scale, softcap=softcap)
        nats = F.cross_entropy(head.logits(x).flatten(0, 1), targets.flatten(), reduction="none")
        assert (nats * weights.flatten()).sum().item() == pytest.approx(token_sums(x, head, targets, weights)[0].item(), rel=1e-12)
