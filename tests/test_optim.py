"""Optimisers: laws over the whole family on a small low-rank regression, each member's own equation, and the groups.

The regression: y = x (s B A)^T + v, with A (4, 32), B (24, 4), s = 2 and a vector v; the loss is the mean squared distance
to a target of rank 4 without noise, so that it can be driven to zero.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from finlora import optim, registry
from finlora.errors import FinloraError
from finlora.methods.dora import DoRA
from finlora.methods.lora import LoRA
from finlora.methods.lora_plus import LoRAPlus
from finlora.model import find_linears, rewire
from finlora.optimizers import _apart, lora_pro, lora_rite, muon, riemannian
from finlora.spec import OptimizerPart, Train, resolve
from finlora.train import batches_of, step

FAMILY = [registry.pick("optimizer", name) for name in registry.names("optimizer")]
over_family = pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.name)
S, R, O, I, N = 2.0, 4, 24, 32, 256
SETTINGS = Train(lr=1e-2)


class Problem:
    """The regression of one seed, its parameters and an optimiser of a member."""

    def __init__(self, member, seed=0, *, at_zero=True, dtype=torch.float32, settings=SETTINGS, decay=0.0, turn=None, vector=True):
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.T, self.shift = (draw(O, R) @ draw(R, I) / (R * I) ** 0.5).to(dtype), 0.3 * draw(O).to(dtype)
        self.x = draw(N, I).to(dtype)
        A, B = draw(R, I) / (3 * I) ** 0.5, draw(O, R) * (0.0 if at_zero else 0.3)
        if turn is not None:
            A, B = turn @ A, B @ torch.linalg.inv(turn)
        self.A, self.B = (torch.nn.Parameter(p.to(dtype)) for p in (A, B))
        self.v = torch.nn.Parameter(torch.zeros(O, dtype=dtype)) if vector else None
        self.named = {k: p for k, p in (("A", self.A), ("B", self.B), ("v", self.v)) if p is not None}
        self.settings, self.member = settings, member
        groups = [{"params": [self.A, self.B], "names": ["A", "B"], "multiplier": 1.0, "weight_decay": decay, "inner": True}]
        if vector:
            groups.append({"params": [self.v], "names": ["v"], "multiplier": 1.0, "weight_decay": 0.0, "inner": True})
        self.optimizer = member.make(member.config(), groups, settings, [(self.A, self.B, S)])

    def loss(self):
        said = self.x @ (S * self.B @ self.A).t() + (0 if self.v is None else self.v)
        return (said - self.x @ self.T.t() - (0 if self.v is None else self.shift)).square().mean()

    def run(self, steps, total=None, first=0):
        for k in range(first, first + steps):
            loss = self.loss()
            self.optimizer.zero_grad()
            loss.backward()
            optim.set_rate(self.optimizer, self.settings.lr, optim.share(k, total or steps, self.settings))
            self.optimizer.step()
        return self

    def product(self):
        return (S * self.B @ self.A).detach()

    def tensors(self):
        return {name: p.detach().clone() for name, p in self.named.items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- laws over the family --------------------------------------------------------------------------------------------


def law_deterministic(member):
    """The same problem, the same steps, bitwise."""
    assert same(Problem(member).run(5).tensors(), Problem(member).run(5).tensors())


def law_resumes(member):
    """State saved as tensors and loaded into a new optimiser goes on bitwise."""
    whole = Problem(member).run(8, total=8)
    first = Problem(member).run(4, total=8)
    kept = {name: value.contiguous().clone() for name, value in optim.state_tensors(first.optimizer).items()}  # as files hold them
    second = Problem(member)
    with torch.no_grad():
        for name, p in second.named.items():
            p.copy_(first.named[name])
    optim.load_state(second.optimizer, kept)
    second.run(4, total=8, first=4)
    assert same(whole.tensors(), second.tensors())
    assert same(optim.state_tensors(whole.optimizer), optim.state_tensors(second.optimizer))


def law_still(member):
    """Without gradient, decay and momentum nothing moves, and nothing becomes NaN; a parameter without gradient is let be."""
    for at_zero in (True, False):
        problem = Problem(member, at_zero=at_zero)
        before = problem.tensors()
        for p in problem.named.values():
            p.grad = torch.zeros_like(p)
        problem.optimizer.step()
        assert same(before, problem.tensors())
        for p in problem.named.values():
            p.grad = None
        problem.optimizer.step()
        assert same(before, problem.tensors())


def law_rate(member):
    """A rate of zero moves nothing, whatever the gradient and the decay."""
    problem = Problem(member, at_zero=False, decay=0.1)
    before = problem.tensors()
    problem.loss().backward()
    optim.set_rate(problem.optimizer, 1e-2, 0.0)
    problem.optimizer.step()
    assert same(before, problem.tensors())


def law_decays(member):
    """Without a gradient's pull decay shrinks matrices by 1 - lr decay, once."""
    problem = Problem(member, at_zero=False, decay=0.1)
    before = problem.tensors()
    for p in problem.named.values():
        p.grad = torch.zeros_like(p)
    problem.optimizer.step()
    for name, p in problem.named.items():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 1e-2 * 0.1 * (p.ndim == 2)), rtol=1e-6, atol=0)


def law_gradients_stay(member):
    """The step leaves gradients as it found them."""
    problem = Problem(member, at_zero=False)
    problem.loss().backward()
    before = {name: p.grad.clone() for name, p in problem.named.items()}
    problem.optimizer.step()
    assert same(before, {name: p.grad for name, p in problem.named.items()})


def law_fits(member):
    """Three hundred steps at lr 0.01 take the loss to below 1/50 of where it began, from B = 0.

    Measured over 8 seeds, the worst share left: adamw 3.6e-5, lora_pro 1.3e-3, lora_rite 2.9e-5, muon 1.5e-2, riemannian 9.4e-4.
    """
    for seed in range(3):
        problem = Problem(member, seed)
        began = problem.loss().item()
        assert problem.run(300).loss().item() < began / 50


def law_invariant(member):
    """Six steps from (R A, B R^-1) go the way of those from (A, B): the same s B A, in float64.

    Measured: the product moves by 1.2 in norm; lora_rite differs by 3e-13 of that, adamw by 56 times that.
    """
    turn = torch.randn(R, R, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 2 * torch.eye(R, dtype=torch.float64)
    kept = {"at_zero": False, "dtype": torch.float64, "vector": False, "decay": 0.01}
    plain, turned = Problem(member, **kept), Problem(member, turn=turn, **kept)
    torch.testing.assert_close(plain.product(), turned.product(), rtol=1e-12, atol=1e-12)
    start = plain.product()
    plain.run(6), turned.run(6)
    moved = torch.linalg.norm(plain.product() - start)
    assert torch.linalg.norm(plain.product() - turned.product()) < 1e-9 * moved


LAWS = [law_deterministic, law_resumes, law_still, law_rate, law_decays, law_gradients_stay, law_fits]


@over_family
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, member):
    law(member)


@pytest.mark.parametrize("member", [m for m in FAMILY if m.invariant], ids=lambda m: m.name)
def test_what_claims_to_be_invariant_is(member):
    law_invariant(member)


def test_the_law_of_invariance_can_fail():
    for member in FAMILY:
        if not member.invariant:
            with pytest.raises(AssertionError):
                law_invariant(member)


@over_family
def test_records(member):
    assert member.paper and member.config() == member.config() and dataclasses.is_dataclass(member.config)
    assert registry.pick("optimizer", member.name) is member
    assert resolve(OptimizerPart(kind=member.name)) == (member, member.config())


# -- planted faults --------------------------------------------------------------------------------------------------


class Forgetful(muon.Orthogonal):
    def advance(self, p, group):
        super().advance(p, group)
        self.state[p] = {}  # momentum that no state holds
        self.__dict__.setdefault("hidden", {}).setdefault(p, 0)
        self.hidden[p] += 1
        p.mul_(1 + 1e-3 * self.hidden[p])


def _faulty(name, kind, **changes):
    member = registry.pick("optimizer", name)

    def make(cfg, groups, settings, pairs):
        made = member.make(cfg, groups, settings, pairs)
        made.__class__ = kind
        return made

    return dataclasses.replace(member, make=make, **changes)


class NoTransport(lora_rite.Invariant):
    def advance(self, p, group):
        if self.state[p]:
            self.state[p]["basis"] = torch.eye(*self.state[p]["basis"].shape, dtype=p.dtype)  # moments stay in a basis that is gone
        super().advance(p, group)


class Meddling(riemannian.Preconditioned):
    def step(self, closure=None):
        with torch.no_grad():
            for A, B, s in self.pairs:
                g_A, g_B = self.adjust(A, B, A.grad, B.grad, s)
                A.grad.copy_(g_A), B.grad.copy_(g_B)
        return super().step(closure)


class Coupled(torch.optim.AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad + group["weight_decay"] * p.detach()
        return super().step(closure)


@pytest.mark.parametrize(
    "law, name, kind",
    [
        (law_resumes, "muon", Forgetful),
        (law_invariant, "lora_rite", NoTransport),
        (law_gradients_stay, "riemannian", Meddling),
        (law_decays, "adamw", Coupled),
    ],
)
def test_a_planted_fault_is_caught(law, name, kind):
    law(registry.pick("optimizer", name))
    with pytest.raises((AssertionError, KeyError)):
        law(_faulty(name, kind))


# -- each member's own equation --------------------------------------------------------------------------------------


@pytest.fixture
def factors():
    """(A, B, G, g_A, g_B) in float64: factors of full rank, a full gradient, and theirs of s B A."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    A, B, G = draw(R, I), draw(O, R), draw(O, I)
    return A, B, G, S * B.t() @ G, S * G @ A.t()


def test_riemannian_is_invariant_to_first_order_without_adam_and_damping(factors):
    A, B, G, g_A, g_B = factors
    d_A, d_B = riemannian.precondition(A, B, g_A, g_B, 0.0)
    turn = torch.randn(R, R, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 2 * torch.eye(R, dtype=torch.float64)
    A2, B2 = turn @ A, B @ torch.linalg.inv(turn)
    d_A2, d_B2 = riemannian.precondition(A2, B2, S * B2.t() @ G, S * G @ A2.t(), 0.0)
    torch.testing.assert_close(d_B @ A + B @ d_A, d_B2 @ A2 + B2 @ d_A2, rtol=1e-10, atol=1e-10)
    # and it is no trivial law: gradients as they are do not obey it
    assert not torch.allclose(g_B @ A + B @ g_A, S * G @ A2.t() @ A2 + B2 @ (S * B2.t() @ G), rtol=0.1)


@pytest.mark.parametrize("damping", [1e-6, 1e-2])
def test_riemannian_damping_bounds_the_first_gradients_of_a(damping):
    """B grows from 0; |(B^T B + d)^-1 B^T| never exceeds 1 / (2 sqrt d)."""
    B = torch.linalg.qr(torch.randn(O, R, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    worst = max(
        torch.linalg.matrix_norm(riemannian.precondition(torch.eye(R, I, dtype=B.dtype), b * B, b * B.t(), B, damping)[0], 2).item()
        for b in torch.logspace(-6, 1, 200).tolist()
    )
    assert 0.9 < worst * 2 * damping**0.5 <= 1 + 1e-9


def test_lora_pro_is_the_least_squares_optimum(factors):
    A, B, G, g_A, g_B = factors
    d_A, d_B = lora_pro.equivalent(A, B, g_A, g_B, S, 0.0)
    reached = S * (d_B @ A + B @ d_A)
    # every move s (Y A + B X) as a linear map of (X, Y), solved outright
    moves = [S * B @ e.view(R, I) for e in torch.eye(R * I, dtype=torch.float64)] + [S * e.view(O, R) @ A for e in torch.eye(O * R, dtype=torch.float64)]
    M = torch.stack([m.reshape(-1) for m in moves], 1)
    best = M @ torch.linalg.lstsq(M, G.reshape(-1, 1), driver="gelsd").solution
    torch.testing.assert_close(reached.reshape(-1, 1), best, rtol=1e-9, atol=1e-9)
    assert torch.linalg.norm(G - reached) < torch.linalg.norm(G - S * (g_B @ A + B @ g_A))


def test_lora_pro_stays_nearest_to_the_gradients_among_equal_moves(factors):
    A, B, G, g_A, g_B = factors
    d_A, d_B = lora_pro.equivalent(A, B, g_A, g_B, S, 0.0)

    def far(X):
        return (d_A + X @ A - g_A).square().sum() + (d_B - B @ X - g_B).square().sum()

    X = torch.zeros(R, R, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(far(X), X)
    assert slope.abs().max() < 1e-9 * far(X)  # the optimum over X; measured 4e-16


def test_lora_pro_needs_no_special_case_at_the_start():
    A, B = torch.randn(R, I, generator=torch.Generator().manual_seed(6), dtype=torch.float64), torch.zeros(O, R, dtype=torch.float64)
    G = torch.randn(O, I, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    d_A, d_B = lora_pro.equivalent(A, B, S * B.t() @ G, S * G @ A.t(), S, 1e-12)
    assert not d_A.any()
    torch.testing.assert_close(S * d_B @ A, G @ torch.linalg.pinv(A) @ A, rtol=1e-8, atol=1e-8)  # all of G in A's rows


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (16, 16), (1, 40)])
def test_muon_makes_singular_values_alike(shape):
    """Of Gaussian matrices; measured over 200 of each shape: 0.682 to 1.134."""
    for seed in range(20):
        m = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        x = muon.orthogonal(m)
        U, values, Vh = torch.linalg.svd(m, full_matrices=False)
        if shape != (16, 16):  # a square Gaussian has singular values near 0, which five steps do not reach
            got = torch.linalg.svdvals(x)
            assert 0.6 < got.min() and got.max() < 1.2
        # the singular vectors stay: x is diagonal in them
        inside = U.t() @ x @ Vh.t()
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4
    assert not muon.orthogonal(torch.zeros(shape)).any()


def test_muon_steps_entries_of_adamws_size_in_rotated_bases_alike():
    turn = torch.linalg.qr(torch.randn(R, R, generator=torch.Generator().manual_seed(7), dtype=torch.float64))[0]
    kept = {"at_zero": False, "dtype": torch.float64, "vector": False}
    member = registry.pick("optimizer", "muon")
    plain, turned = Problem(member, **kept), Problem(member, turn=turn, **kept)
    before = plain.A.detach().clone()
    plain.run(1, total=100), turned.run(1, total=100)
    torch.testing.assert_close(plain.product(), turned.product(), rtol=1e-10, atol=1e-10)
    size = (plain.A.detach() - before).square().mean().sqrt() / plain.optimizer.param_groups[0]["lr"]
    assert 0.1 < size < 0.3  # 0.2 by construction; AdamW's are between 0.2 and 0.4 (2502.16982)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_steps_as_its_equation_says(nesterov):
    draw = functools.partial(torch.randn, 6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    p = torch.nn.Parameter(draw())
    group = {"params": [p], "names": ["p"], "multiplier": 1.0, "weight_decay": 0.1, "inner": True}
    made = muon.make(muon.Muon(momentum=0.9, nesterov=nesterov), [group], SETTINGS, [])
    wanted, m = p.detach().clone(), 0
    for _ in range(3):
        p.grad = draw()
        m = 0.9 * m + 0.1 * p.grad
        ahead = 0.1 * p.grad + 0.9 * m if nesterov else m
        wanted = wanted * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * 6**0.5 * muon.orthogonal(ahead)
        made.step()
    torch.testing.assert_close(p.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_apart_and_adjusted_serve_closures():
    for name in ("muon", "riemannian"):
        problem = Problem(registry.pick("optimizer", name))

        def closure(problem=problem):
            problem.optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            return loss

        first = problem.optimizer.step(closure)
        assert problem.loss() < first


def test_damped_inverse_of_a_singular_matrix():
    gram = torch.diag(torch.tensor([4.0, 0.0]))
    torch.testing.assert_close(_apart.damped_inverse(gram, 1.0), torch.diag(torch.tensor([0.2, 1.0])))


@pytest.mark.parametrize(
    "name, table, wanted",
    [
        ("muon", {"momentum": 1.0}, "optimizer.momentum must be in [0, 1), got 1.0"),
        ("riemannian", {"damping": 0.0}, "optimizer.damping must be a finite number above 0, got 0.0"),
        ("lora_pro", {"damping": -1.0}, "optimizer.damping must be a finite number above 0, got -1.0"),
        ("lora_rite", {"floor": 0.0}, "optimizer.floor must be between 0 and 1, got 0.0"),
        ("adamw", {"beta1": 0.9}, "no key named `optimizer.beta1` of optimizer `adamw`"),
        ("admaw", {}, "no optimizer named `admaw` (hint: did you mean `adamw`?"),
    ],
)
def test_settings_that_are_refused(name, table, wanted):
    with pytest.raises(FinloraError) as caught:
        resolve(OptimizerPart(kind=name, options=table))
    assert wanted in str(caught.value)


# -- groups of a model -----------------------------------------------------------------------------------------------


@pytest.fixture
def tuned(make_model, taught):
    """tuned(optimizer, steps, method...) -> (model, optimiser) after steps on a toy model."""

    def go(optimizer=None, steps=2, method="lora", config=None, settings=SETTINGS, build=optim.make, seed=0, **kept):
        model = rewire(make_model("llama"), method=method, method_config=config, seed=seed, **kept)
        made = build(model, settings) if optimizer is None else build(model, settings, optimizer)
        for k in range(steps):
            step(model, batches_of(taught[k : k + 2], 256, 1))
            optim.set_rate(made, settings.lr, 1.0)
            made.step()
            made.zero_grad()
        return model, made

    return go


def test_the_default_is_pytorchs_adamw_bitwise(tuned):
    def plain(model, settings):
        names = model.trainable()
        made = torch.optim.AdamW(
            [{"params": [p], "names": [n], "multiplier": optim.multipliers(model)[n], "weight_decay": 0.1 * (p.ndim >= 2)} for n, p in names.items()],
            lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True,
        )  # fmt: skip
        return made

    settings = Train(lr=1e-2, weight_decay=0.1)
    for method, config in (("dora", DoRA(rank=4)), ("lora_plus", LoRAPlus(rank=4))):
        wanted, _ = tuned(method=method, config=config, settings=settings, build=plain)
        got, made = tuned(method=method, config=config, settings=settings)
        assert type(made) is torch.optim.AdamW and made.defaults["fused"]
        assert same(dict(wanted.trainable()), dict(got.trainable()))


def test_decay_spares_vectors_and_what_a_method_names(make_model, monkeypatch):
    model = rewire(make_model("llama"), method="dora", method_config=DoRA(rank=4))
    decays = {n: g["weight_decay"] for g in optim.make(model, Train(weight_decay=0.1)).param_groups for n in g["names"]}
    assert decays.keys() == model.trainable().keys()
    assert all(value == (0.0 if name.endswith(".m") else 0.1) for name, value in decays.items())
    for linear in model.linears.values():
        method, config = linear.how["default"]
        linear.how["default"] = dataclasses.replace(method, undecayed=("B",)), config
    decays = {n: g["weight_decay"] for g in optim.make(model, Train(weight_decay=0.1)).param_groups for n in g["names"]}
    assert all(value == (0.1 if name.endswith(".A") else 0.0) for name, value in decays.items())


@over_family
def test_every_member_drives_a_model(member, tuned):
    before, _ = tuned(steps=0, config=LoRA(rank=4))
    model, made = tuned(member.name, steps=3, config=LoRA(rank=4))
    assert all(torch.isfinite(p).all() for p in model.trainable().values())
    start = before.trainable()
    assert all(not torch.equal(p, start[n]) for n, p in model.trainable().items())
    again, _ = tuned((member, member.config()), steps=3, config=LoRA(rank=4))
    assert same(dict(model.trainable()), dict(again.trainable()))
    kept = optim.state_tensors(made)
    assert {name.partition("/")[2] for name in kept} == set(model.trainable())
    assert all(torch.is_tensor(value) for value in kept.values())


def test_pairs_are_both_trained_and_enter_as_a_product(make_model):
    model = rewire(make_model("llama"), method="lora", method_config=LoRA(rank=4, alpha=6.0))
    pairs = optim.pairs_of(model)
    assert len(pairs) == len(model.linears) and {s for _, _, s in pairs} == {1.5}
    some = next(iter(model.linears.values()))
    assert any(A is some.adapters["default"]["A"] and B is some.adapters["default"]["B"] for A, B, _ in pairs)
    some.adapters["default"]["A"].requires_grad_(False)
    assert len(optim.pairs_of(model)) == len(pairs) - 1
    some.adapters["default"]["A"].requires_grad_(True)
    method, config = some.how["default"]
    some.how["default"] = dataclasses.replace(method, to_lora=lambda cfg, p: (p["A"] + 1, p["B"], 1.0)), config
    assert len(optim.pairs_of(model)) == len(pairs) - 1


@pytest.mark.parametrize("codec", ["none", "nf4"])
@pytest.mark.parametrize("method", ["rosa", "relora"])
def test_pairs_beside_frozen_rounds_are_pairs(method, codec, make_model, taught):
    """Earlier rounds make the plain LoRA form wider, not another map of the pair that trains."""
    record = registry.pick("method", method)
    model = rewire(make_model("llama"), method=method, codec=codec, method_config=record.config(rank=4, alpha=6.0, every=1))
    for renewed in (False, True):
        if renewed:
            for k, linear in enumerate(model.linears.values()):
                linear.refresh("default", 1, 9, torch.Generator().manual_seed(k))
        pairs = optim.pairs_of(model)
        assert len(pairs) == len(model.linears)
        for (A, B, s), linear in zip(pairs, model.linears.values()):
            held = linear.adapters["default"]
            assert A is held["A"] and B is held["B"] and s == pytest.approx(1.5, rel=1e-12)
    before = {name: p.detach().clone() for name, p in model.trainable().items()}
    made = optim.make(model, SETTINGS, "lora_rite")
    for _ in range(2):  # B may be zero in the first
        step(model, batches_of(taught[:2], 256, 1))
        made.step()
        made.zero_grad()
    assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in model.trainable().items())


@pytest.mark.parametrize("method", ["iec", "adalora", "vera", "miss"])
def test_factors_that_are_alike_at_the_start_alone_are_no_pair(method, make_model):
    model = rewire(make_model("llama"), method=method, method_config=registry.pick("method", method).config(rank=4))
    assert not optim.pairs_of(model)


@over_family
def test_a_member_of_pairs_refuses_a_model_without(member, make_model):
    model = rewire(make_model("llama"), method="full")
    if not member.paired:
        optim.make(model, SETTINGS, member.name)
        return
    with pytest.raises(FinloraError, match="steps pairs of low-rank factors"):
        optim.make(model, SETTINGS, member.name)


def test_muon_leaves_embeddings_and_heads_to_adamw(make_model):
    model = rewire(make_model("llama"), method="full")
    made = optim.make(model, SETTINGS, "muon")
    own = {name for name, p in model.trainable().items() if p in made.own}
    assert own == {name for name, p in model.trainable().items() if ".adapters." in name}
    assert own and any("embed_tokens" in name for name in model.trainable())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("member", [m for m in FAMILY if not m.paired and m.name != "adamw"], ids=lambda member: member.name)
def test_a_dense_model_is_pretrained_by_the_member_itself(member, family, make_model):
    """Its linears are plain modules of the body: the member steps their matrices in its own way, and AdamW all else."""
    chosen = {"least": 1} if hasattr(member.config(), "least") else {}
    moved = []
    for kind in ("adamw", (member, member.config(**chosen))):
        model = make_model(family).requires_grad_(True)
        made = optim.make(model, SETTINGS, kind)
        draw = torch.Generator().manual_seed(1)
        for _ in range(3):
            for p in model.trainable().values():
                p.grad = torch.randn(p.shape, generator=draw)
            made.step()
        moved.append({name: p.detach().clone() for name, p in model.trainable().items()})
    theirs, ours = moved
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    linears = {f"{name}.weight" for name in find_linears(make_model(family).body)}
    assert {name.removeprefix("body.") for name in differ if ours[name].ndim == 2} == linears
    assert not any("norm" in name or "ln_" in name for name in differ)


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("member", [m for m in FAMILY if not m.paired], ids=lambda member: member.name)
def test_a_matrix_kept_the_other_way_round_steps_alike(member, shape):
    """GPT-2's Conv1D keeps (in, out): which side is in, of a square matrix too, is told by the group."""
    made = []
    for turned in (False, True):
        p = torch.nn.Parameter(torch.ones(shape[::-1] if turned else shape))
        group = {"params": [p], "names": ["W"], "multiplier": 1.0, "weight_decay": 0.1, "inner": True, "turned": turned}
        optimizer, draw = member.make(member.config(), [group], SETTINGS, []), torch.Generator().manual_seed(0)
        for _ in range(3):
            # rows and columns of unlike sizes, so that it matters along which of them a member measures
            g = torch.randn(shape, generator=draw) * torch.linspace(0.1, 10, shape[0])[:, None] * torch.linspace(1, 3, shape[1])
            p.grad = g.t().contiguous() if turned else g
            optimizer.step()
        made.append(p.detach().t() if turned else p.detach())
    scale = (made[0] - 1).abs().max()
    assert scale > 0 and (made[0] - made[1]).abs().max() < 1e-4 * scale


def test_groups_tell_which_matrices_are_kept_the_other_way_round(make_model):
    for family, wanted in (("gpt2", True), ("llama", False)):
        model = make_model(family).requires_grad_(True)
        linears = {f"body.{name}.weight" for name in find_linears(model.body)}
        told = {name: group["turned"] for group in optim.make(model, SETTINGS).param_groups for name in group["names"]}
        assert {name for name, turned in told.items() if turned} == (linears if wanted else set())


def test_forget_begins_anew_for_those_and_no_other(tuned):
    model, made = tuned(config=LoRA(rank=4))
    some = next(iter(model.linears.values())).adapters["default"]
    others = {name: value.clone() for name, value in optim.state_tensors(made).items()}
    optim.forget(made, [some["A"], some["B"]])
    left = optim.state_tensors(made)
    gone = {name.partition("/")[2] for name in others.keys() - left.keys()}
    assert gone == {name for name, p in model.trainable().items() if p is some["A"] or p is some["B"]}
    assert all(torch.equal(left[name], others[name]) for name in left)
    optim.forget(made, [some["A"]])  # nothing to forget is no error
    for p in model.trainable().values():
        p.grad = torch.zeros_like(p)
    made.step()
    assert float(made.state[some["A"]]["step"]) == 1


def test_state_holds_numbers_as_well_as_tensors():
    class Counting(torch.optim.Optimizer):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state["count"], state["mean"] = state.get("count", 0) + 1, torch.ones(3)
                    state["share"] = 0.1

    def fresh():
        return Counting([{"params": [torch.nn.Parameter(torch.zeros(3))], "names": ["p"]}], {})

    first, second = fresh(), fresh()
    first.step()
    optim.load_state(second, optim.state_tensors(first))
    (state,) = second.state.values()
    assert state["count"] == 1 and type(state["count"]) is int and state["share"] == pytest.approx(0.1) and torch.equal(state["mean"], torch.ones(3))
