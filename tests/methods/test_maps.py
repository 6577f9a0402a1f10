"""IEC, MiSS, VeRA, RandLoRA and HiRA against their equations written out in float64, and their manners."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "laws"))
import laws_linear as laws

from finlora.adapters import save_adapter
from finlora.errors import FinloraError
from finlora.linear import Place
from finlora.methods import iec, miss, randlora
from finlora.model import open_model, rewire, save
from finlora.registry import pick

NONE, NF4 = pick("codec", "none"), pick("codec", "nf4")
SHAPES = [(48, 80), (33, 65), (96, 64), (64, 64)]
f32, f64 = torch.float32, torch.float64


def ready(name, shape, rank, seed=0, codec=NONE, **values):
    """(linear in float64 away from its start, its params, x)."""
    linear = laws.make(pick("method", name), codec, f32, shape, rank=rank, seed=seed, **values).double()
    params = {k: p.detach().double() for k, p in linear.adapters["default"].items()}
    return linear, params, laws.inputs(shape, f64).detach()


def same(a, b):
    # float64 throughout: measured 2e-16 of the norm in the mean, 5.4e-16 at most (n = 81)
    assert laws.distance(a, b) <= 1e-13 * float(b.detach().norm()), laws.distance(a, b)


# -- IEC -------------------------------------------------------------------------------------------------------------


def groups(x, n, layout):
    """The published construction, literally: g groups of neighbours, the mean of each, n / g copies."""
    g = math.gcd(x.shape[-1], n)
    means = x.reshape(*x.shape[:-1], g, -1).mean(-1)
    return means.repeat_interleave(n // g, -1) if layout == "interleave" else torch.cat([means] * (n // g), -1)


@pytest.mark.parametrize("layout", iec.LAYOUTS)
@pytest.mark.parametrize("shape, rank", [((48, 80), 8), ((48, 80), 6), ((33, 65), 3), ((33, 65), 10), ((64, 64), 48)])
def test_iec_is_its_definition_and_its_fold(shape, rank, layout):
    linear, p, x = ready("iec", shape, rank, layout=layout)
    assert float(p["beta1"].abs()) > 0.01 and float(p["beta2"].abs()) > 0.01, "betas of zero would prove nothing"
    h = x @ p["A"].T + p["beta1"] * groups(x, rank, layout)
    wanted = linear.store(x) + 16 / rank * (h @ p["B"].T + p["beta2"] * groups(h, shape[0], layout))
    same(linear(x), wanted)
    A, B, scale = iec.to_lora(linear.how["default"][1], p)
    same(linear.store(x) + scale * x @ A.T @ B.T, wanted)
    same(x @ linear.merged("default", f64).T, wanted)


def test_iec_reduces_to_both_published_forms():
    """Where the rank divides: the mean of rank groups, then neighbours repeated (their code) or copies end to end (eq. 14)."""
    x, h = torch.randn(5, 80, dtype=f64), torch.randn(5, 8, dtype=f64)
    for layout in iec.LAYOUTS:
        same(x @ iec.pooling(80, 8, layout, x).T, x.reshape(5, 8, 10).mean(-1))
    code = (torch.zeros(5, 8, 6, dtype=f64) + h.unsqueeze(-1)).reshape(5, 48)
    assert torch.equal(h @ iec.pooling(8, 48, "interleave", h).T, code)
    assert torch.equal(h @ iec.pooling(8, 48, "tile", h).T, torch.cat([h] * 6, -1))
    assert not torch.equal(code, torch.cat([h] * 6, -1))


def test_the_gradient_of_the_betas():
    linear, p, x = ready("iec", (33, 65), 10)
    held = linear.adapters["default"]
    assert torch.autograd.gradcheck(lambda b1, b2: pick("method", "iec").apply(linear.how["default"][1], {**held, "beta1": b1, "beta2": b2}, x, linear.store(x), None), (held["beta1"], held["beta2"]))


@pytest.mark.parametrize("layout", iec.LAYOUTS)
def test_betas_survive_a_folder(layout, make_model, tmp_path):
    """PEFT loses them as the authors name them; here the folder gives back the same hidden states."""
    from finlora.data import collate
    from finlora.model import hidden
    from finlora.text import Tokens

    save(make_model("llama"), tmp_path / "base")
    model = open_model(str(tmp_path / "base"), dtype="float32", device="cpu", method="iec", method_config=iec.IEC(rank=6, layout=layout))
    with torch.no_grad():
        for k, p in enumerate(model.trainable().values()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    save_adapter(model, tmp_path / "adapter")
    again = open_model(str(tmp_path / "base"), dtype="float32", device="cpu", adapter=str(tmp_path / "adapter"))
    batch = collate([[Tokens(tuple(range(3, 30)), (1.0,) * 27)]])
    for key, linear in model.linears.items():
        held = again.linears[key].adapters["default"]
        assert {k: p.tolist() for k, p in held.items()} == {k: p.tolist() for k, p in linear.adapters["default"].items()}
        assert float(held["beta1"].abs()) > 0 and again.linears[key].how["default"][1].layout == layout
    with torch.no_grad():
        assert torch.equal(hidden(again, batch), hidden(model, batch))


# -- MiSS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mini", [0, 1, 3])
@pytest.mark.parametrize("shape, rank", [((48, 80), 8), ((48, 80), 7), ((33, 65), 10), ((96, 64), 64)])
def test_miss_sums_by_remainder(shape, rank, mini):
    linear, p, x = ready("miss", shape, rank, mini=mini)
    h = torch.stack([x[..., r::rank].sum(-1) for r in range(rank)], -1)
    D = torch.stack([p["block"][:, o % (mini or shape[0])] for o in range(shape[0])], -1)
    same(linear(x), linear.store(x) + h @ D)
    A, B, scale = miss.to_lora(linear.how["default"][1], p)
    assert scale == 1 and set(A.unique().tolist()) <= {0.0, 1.0} and A.sum() == shape[1]
    same(linear.store(x) + x @ A.T @ B.T, linear(x))


# -- VeRA and RandLoRA -----------------------------------------------------------------------------------------------


def test_vera_is_its_definition():
    for shape in SHAPES:
        linear, p, x = ready("vera", shape, 5)
        same(linear(x), linear.store(x) + p["b"] * ((p["d"] * (x @ p["A"].T)) @ p["B"].T))


@pytest.mark.parametrize("shape, rank", [((48, 80), 6), ((48, 80), 5), ((96, 64), 6), ((96, 64), 5), ((64, 64), 7)])
def test_randlora_is_a_sum_of_full_rank(shape, rank):
    linear, p, x = ready("randlora", shape, rank)
    m, N = min(shape), -(-min(shape) // rank)
    assert p["basis_A"].shape == (rank, 1, m) and p["basis_B"].shape == (max(shape), N, rank) and p["gamma"].shape == (N, m)
    # row (r, n) of the smaller basis meets column r N + n of the larger one's N R, whose pair (n', r') is by division
    change = torch.zeros(max(shape), m, dtype=f64)
    for r in range(rank):
        for n in range(N):
            k = r * N + n
            change += torch.outer(p["basis_B"][:, k // rank, k % rank], p["lambda"][r, n] * p["basis_A"][r, 0] * p["gamma"][n])
    wanted = 320 / rank * (change.T if shape[0] < shape[1] else change)
    same(linear(x) - linear.store(x), x @ wanted.T)
    assert int(torch.linalg.matrix_rank(wanted)) == m


@pytest.mark.parametrize("name", ["vera", "randlora"])
def test_bases_are_shared_and_keyed(name, make_model):
    """All linears see one memory, each its leading corner; the key and nothing else says what is drawn."""
    method = pick("method", name)
    shared = [k for k in method.frozen]
    model = rewire(make_model("qwen2"), method=name, method_config=method.config(rank=8))
    held = [linear.adapters["default"] for linear in model.linears.values()]
    assert len({tuple(linear.shape) for linear in model.linears.values()}) >= 3
    for key in shared:
        assert len({h[key].untyped_storage().data_ptr() for h in held}) == 1, f"{key} is not shared"
        big = max(held, key=lambda h: h[key].numel())[key]
        for h in held:
            rows = tuple(slice(n) for n in h[key].shape)
            assert torch.equal(h[key], big[rows])
        assert not any(h[key].requires_grad for h in held)
    W, place = torch.zeros(48, 80), Place(lambda W: W, largest=(64, 96), generator=torch.Generator().manual_seed(5))

    def draw(**values):
        return method.init(method.config(rank=8, **values), W, place)[shared[0]]

    torch.rand(7)
    assert torch.equal(draw(), draw()) and not torch.equal(draw(), draw(key=1))
    for key in (-1, 1.5, True, "x", 2**64):
        with pytest.raises(FinloraError, match="key must"):
            method.config(key=key)


@pytest.mark.parametrize("name", ["vera", "randlora"])
def test_shared_bases_survive_a_folder(name, make_model, tmp_path):
    save(make_model("gpt2"), tmp_path / "base")
    method = pick("method", name)
    model = open_model(str(tmp_path / "base"), dtype="float32", device="cpu", method=name, method_config=method.config(rank=6, key=3))
    with torch.no_grad():
        for k, p in enumerate(model.trainable().values()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    save_adapter(model, tmp_path / "adapter")
    again = open_model(str(tmp_path / "base"), dtype="float32", device="cpu", adapter=str(tmp_path / "adapter"))
    for key, linear in model.linears.items():
        held = again.linears[key].adapters["default"]
        assert all(torch.equal(p, held[k]) for k, p in linear.adapters["default"].items())


# -- HiRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "nf4"])
def test_hira_multiplies_the_stored_weight(codec):
    for shape in SHAPES:
        linear, p, x = ready("hira", shape, 4, codec=pick("codec", codec))
        W = linear.store.dense(f64)
        same(linear(x), F.linear(x, W * (1 + p["B"] @ p["A"])))
        same(linear.merged("default", f64), W * (1 + p["B"] @ p["A"]))


@pytest.mark.parametrize("name", ["hira", "randlora"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_second_derivatives(name, shape):
    """Backward is made of differentiable steps, though it builds its matrices anew."""
    linear = laws.make(pick("method", name), NONE, f32, shape, rank=3).double()
    held = {k: p for k, p in linear.adapters["default"].items()}
    trained = [k for k, p in held.items() if p.requires_grad]

    def run(x, *values):
        y0 = linear.store(x)
        return pick("method", name).apply(linear.how["default"][1], {**held, **dict(zip(trained, values))}, x, y0, linear.store)

    x = laws.inputs(shape, f64, rows=1, tokens=2)
    args = (x, *(held[k] for k in trained))
    assert torch.autograd.gradcheck(run, args) and torch.autograd.gradgradcheck(run, args)


def test_replacing_the_weight_under_hira_is_our_bug():
    linear = laws.make(pick("method", "hira"), NF4, f32, (48, 80))
    y = linear(laws.inputs((48, 80), f32))
    linear.store.put(laws.weight((48, 80), 4))
    with pytest.raises(AssertionError, match="replaced between"):
        y.sum().backward()


# -- manners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, said", [
    (lambda: iec.IEC(layout="tiled"), "layout.*did you mean `tile`"),
    (lambda: iec.IEC(layout=3), "layout must"),
    (lambda: miss.MiSS(mini=-1), "mini must"),
    (lambda: miss.MiSS(mini=1.5), "mini must"),
    (lambda: pick("method", "vera").config(d_initial=0), "d_initial must"),
    (lambda: pick("method", "vera").config(d_initial=float("nan")), "d_initial must"),
    (lambda: laws.make(pick("method", "miss"), NONE, f32, (48, 80), mini=7), "mini 7 does not divide the 48"),
])  # fmt: skip
def test_refusals(make, said):
    with pytest.raises(FinloraError, match=said):
        make()


@pytest.mark.parametrize("name", ["miss", "vera", "randlora", "hira"])
def test_peft_fields_go_round(name):
    method = pick("method", name)
    extra = {"miss": {"mini": 3}, "vera": {"d_initial": 0.3, "key": 7}, "randlora": {"alpha": 9.0, "key": 7}, "hira": {}}[name]
    for config in (method.config(), method.config(rank=5, dropout=0.25, **extra)):
        assert method.peft.read(method.peft.config(config)) == config
    assert method.peft.read({"peft_type": "LORA", "r": 8}) is None
    assert miss.from_peft({"peft_type": "MISS", "r": 8, "init_weights": "bat", "mini_r": 1}) is None
    assert randlora.from_peft({"peft_type": "RANDLORA", "r": 8, "sparse": True, "save_projection": False}) is None


# -- planted faults --------------------------------------------------------------------------------------------------


def change_of_the_original(cfg, params, x, y0, base):
    """HiRA that multiplies another weight than the store's."""
    return y0 + F.linear(x, laws.weight(base.shape).to(x.dtype) * (params["B"] @ params["A"]).to(x.dtype))


def dense_kept(cfg, params, x, y0, base):
    return y0 + F.linear(x, base.dense(x.dtype) * (params["B"] @ params["A"]).to(x.dtype))


def neighbours_summed(cfg, params, x, y0, base):
    """MiSS over groups of neighbours, which is another fixed A."""
    h = F.pad(x, (0, -x.shape[-1] % cfg.rank)).unflatten(-1, (cfg.rank, -1)).sum(-1)
    return y0 + h @ params["block"].to(x.dtype)


def half_folded(cfg, params):
    return params["A"] + params["beta1"] * iec.pooling(params["A"].shape[1], cfg.rank, cfg.layout, params["A"]), params["B"], cfg.alpha / cfg.rank


def unturned(cfg, params, W):
    U, V = randlora.factors(params["basis_A"], params["basis_B"], params["lambda"], params["gamma"])
    return W + cfg.alpha / cfg.rank * (V @ U).reshape(W.shape)


def from_the_generator(cfg, W, place):
    """Random bases that change with the linear's own generator are not shared."""
    params = pick("method", "vera").init(cfg, W, place)
    return {**params, "A": torch.randn(params["A"].shape)}


FAULTS = {
    "HiRA over the unquantised weight": (laws.law_apply_equals_merge, "hira", {"apply": change_of_the_original}, NF4),
    "HiRA that keeps its product": (laws.law_nothing_dense_kept, "hira", {"apply": dense_kept}, NF4),
    "HiRA given a plain form": (laws.law_to_lora, "hira", {"to_lora": lambda cfg, p: (p["A"], p["B"], 1.0)}, NONE),
    "MiSS over neighbours": (laws.law_apply_equals_merge, "miss", {"apply": neighbours_summed}, NONE),
    "IEC without its second half": (laws.law_to_lora, "iec", {"to_lora": half_folded}, NONE),
    "RandLoRA not turned": (laws.law_apply_equals_merge, "randlora", {"merge": unturned}, NONE),
    "VeRA drawn from nowhere": (laws.law_seeded, "vera", {"init": from_the_generator}, NONE),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_the_laws_catch(name):
    law, method, fault, codec = FAULTS[name]
    record = pick("method", method)
    law(record, codec, f32, (48, 80))
    with pytest.raises(AssertionError):
        law(dataclasses.replace(record, **fault), codec, f32, (48, 80))
