"""Optimisers that keep less: 8-bit moments against bitsandbytes, projections and retractions against their papers' equations
written out, state that survives a resume in the midst of a refresh, and how many bytes it takes.

Gradients are drawn by step, so that a case is a function of (shapes, seed, step) and nothing else; some cases descend a loss.
"""

from __future__ import annotations

import math

import pytest
import torch

from finlora import optim, registry
from finlora.errors import FinloraError
from finlora.optimizers import _dynamic8, _projected, apollo, galore, loro
from finlora.optimizers.adamw8bit import AdamW8bit
from finlora.optimizers.apollo import Apollo
from finlora.optimizers.galore import GaLore
from finlora.optimizers.loro import Loro
from finlora.spec import OptimizerPart, Train, resolve

SETTINGS = Train(lr=1e-2, beta1=0.9, beta2=0.99)
R, O, I = 4, 24, 40


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Case:
    """A pair A (R, I), B (O, R), a wide and a tall matrix of linears, an embedding and a vector, under an optimiser."""

    def __init__(self, name, config, *, seed=0, dtype=torch.float32, decay=0.0, settings=SETTINGS, shapes=None):
        shapes = shapes or {"A": (R, I), "B": (O, R), "wide": (O, I), "tall": (72, 64), "embedding": (70, 64), "v": (O,)}
        self.params = {key: torch.nn.Parameter(0.3 * draw(*shape, seed=seed + k, dtype=dtype)) for k, (key, shape) in enumerate(shapes.items())}
        outer = [key for key in shapes if key in ("embedding", "v")]
        groups = [self._group([key for key in shapes if key not in outer], decay, True)]
        if outer:
            groups.append(self._group(outer, 0.0, False))
        pairs = [(self.params["A"], self.params["B"], 2.0)] if "A" in shapes else []
        self.record = registry.pick("optimizer", name)
        self.made = self.record.make(config, groups, settings, pairs)

    def _group(self, keys, decay, inner):
        return {"params": [self.params[key] for key in keys], "names": keys, "multiplier": 1.0, "weight_decay": decay, "inner": inner}

    def step(self, k, grads=None):
        for n, (key, p) in enumerate(self.params.items()):
            p.grad = 1e-2 * draw(*p.shape, seed=1000 * k + n, dtype=p.dtype) if grads is None else grads[key].clone()
        self.made.step()
        return self

    def run(self, steps, first=0):
        for k in range(first, first + steps):
            self.step(k)
        return self

    def tensors(self):
        return {key: p.detach().clone() for key, p in self.params.items()}

    def state(self, key):
        return self.made.state[self.params[key]]

    def bytes(self, key):
        return sum(value.numel() * value.element_size() for value in self.state(key).values() if torch.is_tensor(value))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


MEMBERS = [  # settings that come to a refresh within a few steps
    ("adamw8bit", AdamW8bit(least=64, block=64)),
    ("adamw8bit", AdamW8bit(least=64, everywhere=True)),
    ("apollo", Apollo(rank=3, update_every=3)),
    ("apollo", Apollo(mini=True, update_every=3)),
    ("galore", GaLore(rank=3, update_every=3)),
    ("galore", GaLore(rank=3, update_every=3, projection="random", carry=False)),
    ("galore", GaLore(rank=3, update_every=3, fira=True)),
    ("loro", Loro(every=3, rewarm=2)),
    ("loro", Loro(every=3, rewarm=0, by_rank=True)),
]
over_members = pytest.mark.parametrize("name, config", MEMBERS, ids=[f"{n}-{k}" for k, (n, _) in enumerate(MEMBERS)])


# -- state -----------------------------------------------------------------------------------------------------------


@over_members
@pytest.mark.parametrize("at", [2, 3, 4])
def test_resumes_bitwise_before_at_and_after_a_refresh(name, config, at):
    whole = Case(name, config, decay=0.1).run(8)
    first = Case(name, config, decay=0.1).run(at)
    kept = {key: value.clone() for key, value in optim.state_tensors(first.made).items()}
    second = Case(name, config, decay=0.1, seed=50)
    with torch.no_grad():
        for key, p in second.params.items():
            p.copy_(first.params[key])
    optim.load_state(second.made, kept)
    second.run(8 - at, first=at)
    assert same(whole.tensors(), second.tensors())
    assert same(optim.state_tensors(whole.made), optim.state_tensors(second.made))
    # and a resume that loses the state goes another way
    lost = Case(name, config, decay=0.1, seed=50)
    with torch.no_grad():
        for key, p in lost.params.items():
            p.copy_(first.params[key])
    assert not same(whole.tensors(), lost.run(8 - at, first=at).tensors())


@over_members
def test_draws_nothing_from_the_global_source(name, config):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a = Case(name, config).run(5).tensors()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    assert same(a, Case(name, config).run(5).tensors())


@over_members
def test_forgotten_parameters_begin_anew_and_no_other(name, config):
    case = Case(name, config).run(4)
    keys = ("A", "B", "tall")
    others = {key: value.clone() for key, value in optim.state_tensors(case.made).items() if key.partition("/")[2] not in keys}
    lasting = getattr(case.made, "lasting", ())
    kept = {path: value for path, value in optim.state_tensors(case.made).items() if path.partition("/")[0].partition(":")[0] in lasting}
    optim.forget(case.made, [case.params[key] for key in keys])
    assert same({**kept, **others}, optim.state_tensors(case.made))
    fresh = Case(name, config)
    with torch.no_grad():
        for key, p in fresh.params.items():
            p.copy_(case.params[key])
    optim.load_state(fresh.made, {path: value for path, value in kept.items() if path.partition("/")[2] in keys})
    case.step(9), fresh.step(9)
    for key in keys:
        assert torch.equal(case.params[key], fresh.params[key])
    assert not torch.equal(case.params["embedding"], fresh.params["embedding"])


@over_members
def test_resumes_bitwise_where_moments_were_just_forgotten(name, config):
    first = Case(name, config).run(2)
    optim.forget(first.made, [first.params[key] for key in ("A", "B", "tall")])
    second = Case(name, config, seed=50)
    with torch.no_grad():
        for key, p in second.params.items():
            p.copy_(first.params[key])
    optim.load_state(second.made, {key: value.clone() for key, value in optim.state_tensors(first.made).items()})
    first.run(4, first=2), second.run(4, first=2)
    assert same(first.tensors(), second.tensors())


@pytest.mark.parametrize("name, config", [m for m in MEMBERS if m[0] in ("apollo", "galore")], ids=str)
def test_projections_come_in_their_time_whatever_is_forgotten(name, config, monkeypatch):
    """Every third step a new one, with moments that are dropped every second; a basis that was dropped is found again."""
    drawn, real = [], _projected.gaussian

    def gaussian(name, turn, *rest):
        drawn.append((name, turn))
        return real(name, turn, *rest)

    for module in (apollo, galore):
        monkeypatch.setattr(module, "gaussian", gaussian)
    case, bases = Case(name, config, shapes={"wide": (O, I)}), []
    for k in range(12):
        case.step(k)
        bases.append(case.state("wide").get("basis"))
        assert case.state("wide")["age"] == k + 1 and case.state("wide")["step"] == k % 2 + 1
        if k % 2:
            optim.forget(case.made, case.params.values())
    if drawn:
        assert sorted(set(drawn)) == [("wide", turn) for turn in range(4)]
    else:
        begun = [k for k in range(1, 12) if not torch.equal(bases[k - 1], bases[k])]
        assert begun == [k for k in range(1, 12) if k % 2 == 0 or k % 3 == 0]


@pytest.mark.parametrize("name, config", [m for m in MEMBERS if m[0] in ("apollo", "galore")], ids=str)
def test_a_square_matrix_is_shortened_on_its_inputs(name, config):
    """As the authors do: the moments have a row for each output. APOLLO's step is the gradient with one scale for each of them."""
    case = Case(name, config, dtype=torch.float64, shapes={"square": (20, 20)})
    before = case.tensors()["square"]
    grad = draw(20, 20, dtype=torch.float64) * torch.logspace(-2, 0, 20, dtype=torch.float64)[:, None]
    case.step(0, {"square": grad})
    share = (case.params["square"].detach() - before) / grad
    if name == "apollo":
        torch.testing.assert_close(share, share[:, :1].expand(20, 20))
        assert config.mini or share[0, 0] / share[-1, 0] > 30
    else:
        P = case.state("square")["basis"]
        torch.testing.assert_close(case.state("square")["first"], 0.1 * P.t() @ grad.t())


BYTES = [  # of a 72 x 64 matrix, whose AdamW keeps 8 * 72 * 64 + 4 = 36868
    ("adamw", registry.pick("optimizer", "adamw").config(), 8 * 72 * 64 + 4),
    ("adamw8bit", AdamW8bit(), 2 * (72 * 64 + 4 * 18)),
    ("adamw8bit", AdamW8bit(block=2048), 2 * (72 * 64 + 4 * 3)),
    ("apollo", Apollo(rank=16), 4 * (2 * 16 * 72 + 1)),
    ("apollo", Apollo(mini=True), 4 * (2 * 72 + 1)),
    ("galore", GaLore(rank=16), 4 * (2 * 16 * 72 + 64 * 16)),
    ("galore", GaLore(rank=16, fira=True), 4 * (2 * 16 * 72 + 64 * 16 + 1)),
]


@pytest.mark.parametrize("name, config, wanted", BYTES, ids=[f"{n}-{k}" for k, (n, _, _) in enumerate(BYTES)])
def test_state_takes_as_many_bytes_as_are_told(name, config, wanted):
    case = Case(name, config).run(2)
    assert case.bytes("tall") == wanted
    assert case.bytes("embedding") == 8 * 70 * 64 + 4  # no part of a linear
    assert case.bytes("v") == 8 * O + 4


def test_bytes_of_a_state_are_those_of_its_tensors():
    case = Case("adamw8bit", AdamW8bit(least=1)).run(1)
    assert optim.state_bytes(case.made) == sum(t.nbytes for state in case.made.state.values() for t in state.values() if torch.is_tensor(t))
    inner = sum(case.params[key].numel() for key in ("A", "B", "wide", "tall"))
    outer = sum(case.params[key].numel() for key in ("embedding", "v"))
    assert 2 * inner + 8 * outer < optim.state_bytes(case.made) < 2.2 * inner + 8 * outer + 200


@over_members
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_parameters_step_like_fp32(name, config, dtype):
    """bf16: within its rounding of two steps; fp64: within that of fp32."""
    wanted, got = Case(name, config), Case(name, config, dtype=dtype)
    with torch.no_grad():
        for key, p in got.params.items():
            p.copy_(wanted.params[key])
            wanted.params[key].copy_(p)
    start = wanted.tensors()
    for k in range(2):  # before the first exact step of a pair, whose factors are known up to a rotation only
        grads = {key: 1e-2 * draw(*p.shape, seed=1000 * k + n).to(torch.bfloat16).float() for n, (key, p) in enumerate(wanted.params.items())}
        wanted.step(k, grads), got.step(k, {key: g.to(dtype) for key, g in grads.items()})
    for key, p in got.params.items():
        assert p.dtype == dtype and p.isfinite().all()
        moved = (wanted.params[key] - start[key]).abs().max()
        # bf16 rounds by up to 1/512 of itself at each step; measured at most 0.0072. fp32: measured 1.2e-7 of 3e-3 and more
        limit = 2e-2 if dtype == torch.bfloat16 else 1e-4 * moved
        assert (p.float() - wanted.params[key]).abs().max() <= limit, key


# -- 8 bits ----------------------------------------------------------------------------------------------------------


def portable(x, table, block):
    """bitsandbytes' device-independent quantisation. Its CPU library stands before it, which is coarse near 0: it makes of 0
    in a first moment 2e-5 of the block's largest, in a second 5e-6."""
    pytest.importorskip("bitsandbytes")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    return torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(keys, x, table, block)


@pytest.fixture
def theirs(monkeypatch):
    """bitsandbytes' AdamW8bit on the CPU, with its portable quantisation."""
    library = pytest.importorskip("bitsandbytes")
    from bitsandbytes.backends.cpu import ops

    def quantise(x, table, absmax, codes, block):
        got, largest = portable(x, table, block)
        codes.copy_(got), absmax.copy_(largest)

    monkeypatch.setattr(ops, "_quant_blockwise_fp32_direct", quantise)
    return lambda p, decay: library.optim.AdamW8bit([p], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=decay)


def test_the_maps_are_bitsandbytes_own():
    functional = pytest.importorskip("bitsandbytes").functional
    for signed in (True, False):
        wanted = functional.create_dynamic_map(signed=signed)
        assert torch.equal(_dynamic8.table(signed, torch.device("cpu")), wanted)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [256 * 40, 1000, 7])
def test_codes_are_bitsandbytes_own(signed, count):
    x = draw(count, seed=5) * torch.logspace(-4, 2, count)[torch.randperm(count, generator=torch.Generator().manual_seed(6))]
    x = x if signed else x.square()
    x[3:6] = 0
    codes, absmax = _dynamic8.encode(x, 256, signed)
    table = _dynamic8.table(signed, x.device)
    wanted, largest = portable(x, table, 256)
    assert torch.equal(absmax, largest) and codes.dtype == torch.uint8
    raised = (wanted == 0) & (x > 0) & (not signed)  # second moments that they let become 0
    assert torch.equal(codes[~raised], wanted[~raised]) and (codes[raised] == 1).all()
    assert raised.any() == (not signed)
    got = _dynamic8.decode(codes, absmax, 256, signed)
    known = torch.ops.bitsandbytes.dequantize_blockwise(wanted, largest, table, 256, torch.float32)
    assert torch.equal(got[~raised], known[~raised])


def test_rounding_error_of_the_maps():
    """Of Gaussian values by blocks of 256, relative Frobenius error: measured over 5 draws 0.0108 to 0.0109 signed, 0.0064 to
    0.0065 for their squares."""
    x = draw(256 * 400, seed=1)
    for signed, low, high in ((True, 0.0105, 0.0112), (False, 0.0062, 0.0067)):
        y = x if signed else x.square()
        error = torch.linalg.norm(_dynamic8.decode(*_dynamic8.encode(y, 256, signed), 256, signed) - y) / torch.linalg.norm(y)
        assert low < error < high


def test_zeros_and_the_smallest_values_stay_what_they_are():
    for signed in (True, False):
        codes, absmax = _dynamic8.encode(torch.zeros(100), 64, signed)
        assert not _dynamic8.decode(codes, absmax, 64, signed).any()
        tiny = torch.full((64,), 1e-42)
        assert _dynamic8.decode(*_dynamic8.encode(tiny, 64, signed), 64, signed).isfinite().all()
    # what is above 0 stays above 0, in the unsigned map alone
    x = torch.tensor([1.0, 1e-12, 0.0])
    assert (_dynamic8.decode(*_dynamic8.encode(x, 64, False), 64, False) > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("shift", [0, 1])
def test_steps_are_bitsandbytes_own(shift, theirs):
    """Thirty steps of a tensor beside bitsandbytes' AdamW8bit. Measured: three quarters of the weights the same bit for bit, the
    others at most 9.4e-7 apart, having moved by 0.21 to 0.28."""
    case = Case("adamw8bit", AdamW8bit(), decay=0.1, shapes={"tall": (72, 64)})
    other = torch.nn.Parameter(case.params["tall"].detach().clone())
    made, start = theirs(other, 0.1), other.detach().clone()
    for k in range(30):
        grad = 1e-2 * (draw(72, 64, seed=k) + shift)
        case.step(k, {"tall": grad})
        other.grad = grad.clone()
        made.step()
    assert (other - start).abs().max() > 0.2
    assert (case.params["tall"] - other).abs().max() < 3e-6


def test_8_bits_end_where_32_do():
    """A noisy regression of 64 x 96 weights, 200 steps: the error left, over AdamW's. Measured over 5 seeds: 1.017 to 1.021 with
    blocks of 64, 1.015 to 1.023 of 256, 1.017 to 1.046 of 2048; the second moment's rounding makes most of it."""
    reached = []
    for name, config in (("adamw", registry.pick("optimizer", "adamw").config()), ("adamw8bit", AdamW8bit()), ("adamw8bit", AdamW8bit(block=2048))):
        case = Case(name, config, shapes={"W": (64, 96)})
        W, target = case.params["W"], draw(64, 96, seed=70)
        for k in range(200):
            x = draw(32, 96, seed=300 + k)
            W.grad = None
            ((x @ (W - target).t()).square().mean() + 0.1 * (x @ W.t()).abs().mean()).backward()
            optim.set_rate(case.made, 2e-2, 1 - k / 200)
            case.made.step()
        reached.append((W - target).square().mean().item())
    assert 0.98 < reached[1] / reached[0] < 1.04 and 0.98 < reached[2] / reached[0] < 1.07


def test_small_tensors_and_those_outside_linears_are_adamws_bitwise():
    case, plain = Case("adamw8bit", AdamW8bit()).run(5), Case("adamw", registry.pick("optimizer", "adamw").config()).run(5)
    for key in case.params:
        assert torch.equal(case.params[key], plain.params[key]) == (key != "tall")
    for least, rounded in ((72 * 64, True), (72 * 64 + 1, False)):  # 32 bits for those of fewer values
        assert ("first_absmax" in Case("adamw8bit", AdamW8bit(least=least)).run(1).state("tall")) == rounded
    everywhere = Case("adamw8bit", AdamW8bit(everywhere=True)).run(5)
    assert "first" in everywhere.state("embedding") and "first" not in everywhere.state("v")


def test_a_weight_whose_gradient_vanishes_does_not_leap(theirs):
    """Beside a neighbour 3000 times as large a second moment rounds to 0 and its first does not; rounded to the nearest code the
    weight then goes by |m| / eps (measured: 270 in one step), ours by no more than its rate."""
    case = Case("adamw8bit", AdamW8bit(), shapes={"tall": (72, 64)})
    other = torch.nn.Parameter(case.params["tall"].detach().clone())
    made, start = theirs(other, 0.0), other.detach().clone()
    grad = torch.full((72, 64), 1.0)
    grad[:, ::2] = 1.0 / 3000
    for k in range(4):
        now = grad.clone()
        if k == 3:
            now[:, ::2] = 0
        case.step(k, {"tall": now})
        other.grad = now
        made.step()
    assert (case.params["tall"] - start).abs().max() < 4.1e-2
    assert (other - start).abs().max() > 1e2


def test_slices_change_nothing(monkeypatch):
    whole = Case("adamw8bit", AdamW8bit(block=64), shapes={"tall": (72, 64)}).run(3)
    monkeypatch.setattr("finlora.optimizers.adamw8bit.SLICE", 1024)
    parts = Case("adamw8bit", AdamW8bit(block=64), shapes={"tall": (72, 64)}).run(3)
    assert same(whole.tensors(), parts.tensors()) and same(optim.state_tensors(whole.made), optim.state_tensors(parts.made))


def test_a_parameter_that_does_not_lie_in_one_piece_steps_too():
    plain = Case("adamw8bit", AdamW8bit(), shapes={"tall": (72, 64)})
    other = Case("adamw8bit", AdamW8bit(), shapes={"tall": (72, 64)})
    p = other.params["tall"]
    p.data = p.data.t().contiguous().t()
    assert not p.is_contiguous()
    assert same(plain.run(3).tensors(), other.run(3).tensors())


# -- APOLLO ----------------------------------------------------------------------------------------------------------


def apollo_by_the_paper(W, grads, P_of, lr, decay, scale, mini):
    """Algorithm 1 of 2412.05270 with the limiter of 2410.01623, in loops over channels and in the order of the authors' code,
    which corrects the moments for their start in the rate, after the limiter; W (M, N) with M <= N."""
    W, m, v, last = W.clone(), 0, 0, None
    for t, G in enumerate(grads, 1):
        Rt = P_of(t - 1) @ G
        m, v = 0.9 * m + 0.1 * Rt, 0.99 * v + 0.01 * Rt**2
        corrected = math.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        N = m / (v.sqrt() + 1e-8 * math.sqrt(1 - 0.99**t))  # PyTorch's place of epsilon
        step = torch.empty_like(G)
        for j in range(G.shape[1]):
            step[:, j] = G[:, j] * (N.norm() / Rt.norm() if mini else N[:, j].norm() / Rt[:, j].norm())
        if last is not None and step.norm() > 1.01 * last:
            step *= 1.01 * last / step.norm()
        last = step.norm()
        W = W - lr * decay * W - lr * corrected * math.sqrt(scale) * step
    return W


@pytest.mark.parametrize("mini", [False, True])
@pytest.mark.parametrize("key", ["wide", "tall"])
def test_apollo_steps_as_the_paper_says(key, mini):
    config = Apollo(rank=5, update_every=3, scale=3.0, mini=mini)
    case = Case("apollo", config, decay=0.1, dtype=torch.float64)
    p, turned = case.params[key], (lambda x: x.t()) if key == "tall" else (lambda x: x)
    start, grads = turned(p.detach().clone()), []
    for k in range(8):
        case.step(k)
        grads.append(turned(p.grad.clone()))
    M, rank = len(start), 1 if mini else 5

    def P_of(k):
        return _projected.gaussian(key, k // 3, (rank, M), start) / math.sqrt(rank)

    wanted = apollo_by_the_paper(start, grads, P_of, 1e-2, 0.1, 3.0, mini)
    torch.testing.assert_close(turned(p.detach()), wanted, rtol=1e-10, atol=1e-12)


def test_apollos_scale_of_0_is_the_papers():
    for mini, scale in ((False, 1.0), (True, 128.0)):
        a, b = (Case("apollo", Apollo(rank=4, mini=mini, scale=s)).run(3) for s in (0.0, scale))
        assert same(a.tensors(), b.tensors())


def test_projections_are_told_by_name_and_turn_and_keep_lengths():
    like = torch.zeros(())
    P = _projected.gaussian("a", 0, (64, 128), like)
    assert torch.equal(P, _projected.gaussian("a", 0, (64, 128), like))
    for other in (_projected.gaussian("b", 0, (64, 128), like), _projected.gaussian("a", 1, (64, 128), like)):
        assert (P * other).mean().abs() < 0.05 and (P - other).abs().max() > 1
    assert abs(P.square().mean() - 1) < 0.05 and P.mean().abs() < 0.05
    x = draw(128, 500, seed=2)
    ratio = torch.linalg.norm(P @ x / 8, dim=0) / torch.linalg.norm(x, dim=0)
    assert abs(ratio.mean() - 1) < 0.1


def test_a_step_is_limited_to_one_percent_more_than_the_last_that_was_not_0():
    state, group = {"step": 10**6}, {"betas": (0.9, 0.99)}
    for length, wanted in ((0.0, 0.0), (1e-3, 1e-3), (5.0, 1.01e-3), (0.0, 0.0), (5.0, 1.01**2 * 1e-3), (1e-6, 1e-6), (1.0, 1.01e-6)):
        step = _projected.limited(length * torch.tensor([[0.6, 0.8]]), state, group)
        assert torch.linalg.norm(step).item() == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_the_limiter_measures_before_the_moments_are_corrected_for_their_start():
    """With a steady gradient the corrected step is Adam's, the same at each step: uncorrected it would grow by 34 % from the
    first to the second, which the limiter makes 1 %."""
    case = Case("apollo", Apollo(rank=4), shapes={"wide": (O, I)}, settings=Train(lr=1e-2, beta1=0.9, beta2=0.999))
    grad, taken = {"wide": draw(O, I)}, []
    for k in range(12):
        before = case.tensors()["wide"]
        case.step(k, grad)
        taken.append(torch.linalg.norm(case.params["wide"].detach() - before).item())
    for t in range(2, 13):
        corrected = [math.sqrt(1 - 0.999**k) / (1 - 0.9**k) for k in (t - 1, t)]
        assert taken[t - 1] / taken[t - 2] == pytest.approx(1.01 * corrected[1] / corrected[0], rel=1e-4)


@pytest.mark.parametrize("name, config", [("apollo", Apollo(rank=4)), ("apollo", Apollo(mini=True)), ("galore", GaLore(rank=2, fira=True))])
def test_a_gradient_that_is_0_at_first_does_not_hold_the_matrix_still(name, config):
    case = Case(name, config)
    zeros = {key: torch.zeros_like(p) for key, p in case.params.items()}
    before = case.tensors()
    case.step(0, zeros)
    assert same(before, case.tensors())
    case.run(3, first=1)
    for key in ("A", "wide", "tall"):
        assert (case.params[key] - before[key]).square().mean().sqrt() > 1e-3  # the rate is 1e-2


# -- GaLore and Fira -------------------------------------------------------------------------------------------------


def galore_by_the_paper(W, grads, P_of, lr, decay, scale, fira):
    """Algorithm 1 of 2403.03507 (moments kept over a new P), and the residual of 2410.01623."""
    W, m, v, last = W.clone(), 0, 0, None
    for t, G in enumerate(grads, 1):
        P = P_of(t - 1)
        Rt = P.t() @ G
        m, v = 0.9 * m + 0.1 * Rt, 0.99 * v + 0.01 * Rt**2
        N = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        W = W - lr * decay * W - lr * scale * P @ N
        if fira:
            corrected = math.sqrt(1 - 0.99**t) / (1 - 0.9**t)  # in the rate, after the limiter, as in the authors' code
            S = (G - P @ P.t() @ G) @ torch.diag(N.norm(dim=0) / corrected / Rt.norm(dim=0))
            if last is not None and S.norm() > 1.01 * last:
                S = S * 1.01 * last / S.norm()
            last = S.norm()
            W = W - lr * corrected * S
    return W


@pytest.mark.parametrize("fira", [False, True])
@pytest.mark.parametrize("projection", ["svd", "random"])
@pytest.mark.parametrize("key", ["wide", "tall"])
def test_galore_steps_as_the_paper_says(key, projection, fira):
    config = GaLore(rank=5, update_every=3, scale=0.5, projection=projection, carry=False, fira=fira)
    case = Case("galore", config, decay=0.1, dtype=torch.float64)
    p, turned = case.params[key], (lambda x: x.t()) if key == "tall" else (lambda x: x)
    start, grads, bases = turned(p.detach().clone()), [], []
    for k in range(8):
        case.step(k)
        grads.append(turned(p.grad.clone()))
        bases.append(case.state(key)["basis"].clone())
    for k in range(0, 8, 3):  # the projections themselves: a PyTorch SVD's span of that step's gradient, or a draw's
        if projection == "svd":
            U = torch.linalg.svd(grads[k])[0][:, :5]
        else:
            U = torch.linalg.qr(_projected.gaussian(key, k // 3, (len(start), 5), start))[0]
        torch.testing.assert_close(bases[k] @ bases[k].t(), U @ U.t(), rtol=1e-8, atol=1e-8)
        assert all(torch.equal(bases[k], other) for other in bases[k : k + 3])
    wanted = galore_by_the_paper(start, grads, lambda k: bases[k], 1e-2, 0.1, 0.5, fira)
    torch.testing.assert_close(turned(p.detach()), wanted, rtol=1e-10, atol=1e-12)


def test_a_full_rank_galore_is_adam_in_another_basis():
    """Where the gradient is diagonal that basis is the usual one, and the step is AdamW's times the scale."""
    config = GaLore(rank=64, scale=1.0)
    case = Case("galore", config, dtype=torch.float64, shapes={"W": (8, 12)})
    plain = Case("adamw", registry.pick("optimizer", "adamw").config(), dtype=torch.float64, shapes={"W": (8, 12)})
    for k in range(5):
        grad = torch.zeros(8, 12, dtype=torch.float64)
        grad.fill_diagonal_(1.0)
        grad *= torch.linspace(1, 2, 12) * (1 + 0.1 * k)
        case.step(k, {"W": grad}), plain.step(k, {"W": grad})
    torch.testing.assert_close(case.params["W"], plain.params["W"], rtol=1e-9, atol=1e-10)


def test_carried_moments_stay_moments_of_the_same_directions():
    first, second = draw(5, 20, seed=1, dtype=torch.float64), draw(5, 20, seed=2, dtype=torch.float64).square()
    old = torch.linalg.qr(draw(12, 5, seed=3, dtype=torch.float64))[0]
    # signs and order of the columns are nothing: both moments follow exactly
    turn = torch.eye(5, dtype=torch.float64)[[3, 0, 4, 1, 2]] * torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64)
    new = old @ turn.t()
    m, v = galore.carried(first, second, new.t() @ old)
    torch.testing.assert_close(new @ m, old @ first)
    torch.testing.assert_close(v, turn.abs() @ second)
    # any other basis of the same space: the first moment is the same vector, the second's sum over directions too
    spin = torch.linalg.qr(draw(5, 5, seed=4, dtype=torch.float64))[0]
    m, v = galore.carried(first, second, spin.t() @ old.t() @ old)
    torch.testing.assert_close(old @ spin @ m, old @ first)
    torch.testing.assert_close(v.sum(0), second.sum(0))
    # a space across the old one: nothing is known of the first moment, and the mean of the second is taken over
    across = torch.linalg.qr(torch.cat([old, draw(12, 7, seed=5, dtype=torch.float64)], 1))[0][:, 5:10]
    m, v = galore.carried(first, second, across.t() @ old)
    assert m.abs().max() < 1e-12
    torch.testing.assert_close(v, second.mean(0).expand(5, 20))


def test_carried_steps_go_on_where_two_directions_change_places():
    """Two directions, one 5 % stronger, at the refresh the other: carried, the step goes on; with moments kept by number it takes
    each direction by the other's past. Cosine of the steps before and after, measured: 1.000 and 0.28."""
    U, V = torch.linalg.qr(draw(16, 2, seed=1))[0], torch.linalg.qr(draw(30, 2, seed=2))[0]
    kept = {}
    for carry in (True, False):
        case, taken = Case("galore", GaLore(rank=2, update_every=5, carry=carry), shapes={"W": (16, 30)}), []
        for k in range(6):
            before = case.params["W"].detach().clone()
            sizes = torch.tensor([1.05, 1.0] if k < 5 else [1.0, 1.05])
            case.step(k, {"W": U * sizes @ V.t()})
            taken.append((case.params["W"].detach() - before).flatten())
        kept[carry] = torch.cosine_similarity(taken[4], taken[5], dim=0).item()
    assert kept[True] > 0.99 and kept[False] < 0.5


def test_leading_directions_hold_the_most_of_the_gradient_whatever_its_size():
    for size in (1e-30, 1.0, 1e15):
        g = draw(20, 50, seed=7) * torch.logspace(0, -3, 20)[:, None]
        P = galore.leading(g * size, 6)
        torch.testing.assert_close(P.t() @ P, torch.eye(6), rtol=0, atol=1e-5)
        values = torch.linalg.svdvals(g.double())
        assert torch.linalg.norm(P.double().t() @ g.double()).item() == pytest.approx(values[:6].norm().item(), rel=1e-6)
    assert galore.leading(torch.zeros(5, 9), 3).isfinite().all()


# -- LORO ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    """(A, B, gradient of B A, g_A, g_B) in float64."""
    A, B, G = draw(R, I, seed=1, dtype=torch.float64), draw(O, R, seed=2, dtype=torch.float64), draw(O, I, seed=3, dtype=torch.float64)
    return A, B, G, B.t() @ G, G @ A.t()


def test_the_exact_step_is_the_papers(pair):
    """Against the whole matrices: the projection of G onto the tangent space, and the nearest matrix of rank R by an SVD."""
    A, B, G, g_A, g_B = pair
    for shape in ("oblong", "nearly full"):
        if shape == "nearly full":  # 2R > O: what leaves U's span is less than R wide
            A, B, G = A[:, :6], B[:7], G[:7, :6]
            g_A, g_B = B.t() @ G, G @ A.t()
        X = B @ A
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        U, V = U[:, :R], Vh[:R].t()
        xi = U @ U.t() @ G + G @ V @ V.t() - U @ U.t() @ G @ V @ V.t()
        for lr in (1e-3, 1e-1):
            length = math.sqrt(S[:R].sum() * (len(X) * lr**2 + X.shape[1] * (2 * lr) ** 2))
            moved = X - length * xi / xi.norm()
            U2, S2, Vh2 = torch.linalg.svd(moved)
            wanted = U2[:, :R] * S2[:R] @ Vh2[:R]
            A2, B2 = loro.exact(A, B, g_A, g_B, 2 * lr, lr)
            torch.testing.assert_close(B2 @ A2, wanted, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(B2.t() @ B2, A2 @ A2.t(), rtol=1e-9, atol=1e-9)  # balanced
            torch.testing.assert_close(torch.linalg.svdvals(B2) ** 2, S2[:R], rtol=1e-9, atol=1e-9)


def test_the_exact_step_is_the_same_for_every_factoring(pair):
    A, B, G, g_A, g_B = pair
    turn = draw(R, R, seed=4, dtype=torch.float64) + 2 * torch.eye(R, dtype=torch.float64)
    turn[0] *= 30  # and badly balanced
    C, D = turn @ A, B @ torch.linalg.inv(turn)
    A2, B2 = loro.exact(A, B, g_A, g_B, 1e-2, 1e-2)
    C2, D2 = loro.exact(C, D, D.t() @ G, G @ C.t(), 1e-2, 1e-2)
    moved = torch.linalg.norm(B2 @ A2 - B @ A)
    assert moved > 0.1
    assert torch.linalg.norm(D2 @ C2 - B2 @ A2) < 1e-9 * moved  # measured 1.9e-13
    assert torch.linalg.matrix_rank(B2 @ A2) == R


def test_a_run_of_exact_steps_is_the_same_for_every_factoring_and_descends():
    """Six steps of lr 0.01 each; with steps of Adam in between it is not the same (the family's law of invariance)."""
    target = draw(O, R, seed=8, dtype=torch.float64) @ draw(R, I, seed=9, dtype=torch.float64) / 2
    turn = draw(R, R, seed=4, dtype=torch.float64) + 2 * torch.eye(R, dtype=torch.float64)

    def run(turned, steps, every=1):
        case = Case("loro", Loro(every=every, rewarm=0), dtype=torch.float64, decay=0.1, shapes={"A": (R, I), "B": (O, R)})
        A, B = case.params["A"], case.params["B"]
        with torch.no_grad():
            if turned:
                A.copy_(turn @ A), B.copy_(B @ torch.linalg.inv(turn))
        losses = []
        for _ in range(steps):
            loss = (B @ A - target).square().sum()
            losses.append(loss.item())
            case.made.zero_grad()
            loss.backward()
            case.made.step()
        return (B @ A).detach(), losses

    (plain, losses), (turned, _) = run(False, 6), run(True, 6)
    torch.testing.assert_close(plain, turned, rtol=1e-9, atol=1e-9)
    assert losses == sorted(losses, reverse=True)
    apart = torch.linalg.norm(run(False, 6, every=3)[0] - run(True, 6, every=3)[0])
    assert apart > 1e-3
    _, losses = run(False, 150)
    assert min(losses) < losses[0] / 100  # measured less than 1/60000, with decay and without


def test_moments_begin_anew_at_an_exact_step_and_at_no_other():
    case = Case("loro", Loro(every=3, rewarm=0))
    for k in range(7):
        case.step(k)
        for key in ("A", "B"):
            state = case.state(key)
            assert (int(state["step"]), state["since"], state["turn"]) == ((k + 1) % 3, (k + 1) % 3, (k + 1) // 3)
            assert bool(state["exp_avg"].any()) == bool(state["exp_avg_sq"].any()) == ((k + 1) % 3 > 0)
        assert int(case.state("wide")["step"]) == k + 1  # no part of a pair


def test_exact_steps_come_in_their_time_whatever_is_forgotten():
    """Moments dropped every second step, as a structure's refactorisation drops them, and exact steps every fifth."""
    case, came = Case("loro", Loro(every=5, rewarm=0), shapes={"A": (R, I), "B": (O, R)}), []
    for k in range(1, 16):
        case.step(k)
        if case.state("A")["since"] == case.state("B")["since"] == 0:
            came.append(k)
        if k % 2 == 0:
            optim.forget(case.made, case.params.values())
    assert came == [5, 10, 15]


def test_between_exact_steps_it_is_adamw_bitwise():
    plain, case = Case("adamw", registry.pick("optimizer", "adamw").config(), decay=0.1).run(9), Case("loro", Loro(every=10), decay=0.1).run(9)
    assert same(plain.tensors(), case.tensors())
    plain.step(9), case.step(9)
    assert {key for key in plain.params if not torch.equal(plain.params[key], case.params[key])} == {"A", "B"}


def test_the_rate_climbs_back_after_an_exact_step():
    cases = {rewarm: Case("loro", Loro(every=2, rewarm=rewarm), decay=0.1).run(2) for rewarm in (0, 4)}
    assert same(cases[0].tensors(), cases[4].tensors())
    before = cases[0].tensors()
    for case in cases.values():
        case.step(2)
    for key, share in (("A", 0.25), ("B", 0.25), ("wide", 1.0)):
        full, eased = ((cases[rewarm].params[key] - before[key]).detach() for rewarm in (0, 4))
        torch.testing.assert_close(eased, share * full, rtol=1e-4, atol=1e-7)
    first = Case("loro", Loro(every=50, rewarm=4)).run(1)  # the start of a run has the schedule's warm-up
    assert same(first.tensors(), Case("loro", Loro(every=50, rewarm=0)).run(1).tensors())


def test_the_exact_step_waits_for_full_rank(pair):
    A, B, _, g_A, g_B = pair
    assert loro.exact(A, torch.zeros_like(B), 0 * g_A, g_B, 1e-2, 1e-2) is None
    poor = B.clone()
    poor[:, 0] = poor[:, 1]
    assert loro.exact(A, poor, g_A, g_B, 1e-2, 1e-2) is None
    assert loro.exact(draw(8, 6), draw(7, 8), draw(8, 6), draw(7, 8), 1e-2, 1e-2) is None  # rank above a side
    still = loro.exact(A, B, 0 * g_A, 0 * g_B, 1e-2, 1e-2)  # without gradient the map stays
    torch.testing.assert_close(still[1] @ still[0], B @ A, rtol=1e-10, atol=1e-10)
    # an adapter whose B is 0: Adam takes the first step, the second is exact, and both factors learn
    case = Case("loro", Loro(every=1, rewarm=0))
    with torch.no_grad():
        case.params["B"].zero_()
    for k in range(3):
        case.step(k)
        assert case.state("B")["turn"] == k and case.params["A"].any() and case.params["B"].any()


def test_an_exact_step_is_followed_by_the_usual_decay_of_each_factor():
    shapes = {"A": (R, I), "B": (O, R)}
    plain, decayed = (Case("loro", Loro(every=1, rewarm=0), decay=d, dtype=torch.float64, shapes=shapes).run(1) for d in (0.0, 0.1))
    assert plain.state("A")["turn"] == decayed.state("A")["turn"] == 1
    for key in shapes:
        torch.testing.assert_close(decayed.params[key], plain.params[key] * (1 - 1e-2 * 0.1), rtol=1e-12, atol=0)


def test_by_rank_parts_the_groups_and_keeps_their_names():
    plain, case = Case("loro", Loro(by_rank=False)), Case("loro", Loro(by_rank=True))
    table = {n: (g["multiplier"], g["weight_decay"], g["inner"]) for g in case.made.param_groups for n in g["names"]}
    assert table.keys() == case.params.keys()
    assert table["A"][0] == R / I and table["B"][0] == R / O and table["wide"] == (1.0, 0.0, True)
    for group in case.made.param_groups:
        assert all(case.params[n] is p for n, p in zip(group["names"], group["params"], strict=True))
    before = plain.tensors()
    for made in (plain.made, case.made):
        optim.set_rate(made, 1e-2, 1.0)
    plain.step(0), case.step(0)
    for key, share in (("A", R / I), ("B", R / O), ("wide", 1.0)):
        torch.testing.assert_close((case.params[key] - before[key]).detach(), share * (plain.params[key] - before[key]).detach(), rtol=1e-3, atol=1e-7)
    plain, case = Case("loro", Loro(every=1, rewarm=0)), Case("loro", Loro(every=1, rewarm=0, by_rank=True))
    for made in (plain.made, case.made):
        optim.set_rate(made, 1e-2, 1.0)
    plain.step(0), case.step(0)  # an exact step has its whole rate
    torch.testing.assert_close(case.params["B"] @ case.params["A"], plain.params["B"] @ plain.params["A"], rtol=1e-5, atol=1e-7)


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, table, wanted",
    [
        ("adamw8bit", {"block": 100}, "optimizer.block must be a power of two from 64 to 4096, got 100"),
        ("adamw8bit", {"least": 0}, "optimizer.least must be a whole number of at least 1, got 0"),
        ("apollo", {"rank": 0}, "optimizer.rank must be a whole number of at least 1, got 0"),
        ("apollo", {"update_every": 0}, "optimizer.update_every must be a whole number of at least 1, got 0"),
        ("apollo", {"scale": -1.0}, "optimizer.scale must be a finite number of at least 0, got -1.0"),
        ("galore", {"scale": 0.0}, "optimizer.scale must be a finite number above 0, got 0.0"),
        ("galore", {"projection": "qr"}, "optimizer.projection must be one of svd, random, got 'qr'"),
        ("loro", {"every": 0}, "optimizer.every must be a whole number of at least 1, got 0"),
        ("loro", {"rewarm": -1}, "optimizer.rewarm must be a whole number of at least 0, got -1"),
    ],
)
def test_settings_that_are_refused(name, table, wanted):
    with pytest.raises(FinloraError) as caught:
        resolve(OptimizerPart(kind=name, options=table))
    assert wanted in str(caught.value)


def test_truths_are_truths():
    for kind, field in ((AdamW8bit, "everywhere"), (Apollo, "mini"), (GaLore, "carry"), (GaLore, "fira"), (Loro, "by_rank")):
        with pytest.raises(FinloraError, match=f"^{field} must be true or false, got 1"):
            kind(**{field: 1})
