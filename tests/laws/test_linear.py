"""Every method over every codec under every law of the linear map, and the manners of Linear and Route."""

import dataclasses
import itertools

import laws_linear as laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finlora.errors import FinloraError
from finlora.linear import EDIT, Linear, Method, Place, Route, Stats, Store, build
from finlora.registry import names, pick

PAIRS = list(itertools.product(names("method"), names("codec")))
POSSIBLE = [(m, c) for m, c in PAIRS if laws.possible(pick("method", m), pick("codec", c))]
name_of = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get


@pytest.mark.parametrize("law", laws.LINEAR_LAWS, ids=lambda f: f.__name__.removeprefix("law_"))
@pytest.mark.parametrize("method, codec", POSSIBLE)
def test_law(method, codec, law):
    for dtype, shape in itertools.product(laws.DTYPES, laws.SHAPES):
        law(pick("method", method), pick("codec", codec), dtype, shape)


@pytest.mark.parametrize("shape", laws.SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", laws.DTYPES, ids=name_of)
@pytest.mark.parametrize("codec", names("codec"))
def test_mixed_rows(codec, dtype, shape):
    laws.law_mixed_rows([pick("method", m) for m in names("method")], pick("codec", codec), dtype, shape)


@pytest.mark.parametrize("method, codec", sorted(set(PAIRS) - set(POSSIBLE)))
def test_what_a_codec_would_spoil_is_refused(method, codec):
    with pytest.raises(FinloraError, match=f"`{method}` (trains the weights|is exact over a lossless base).*`{codec}`"):
        laws.make(pick("method", method), pick("codec", codec), torch.float32, (48, 80))


def lora(shape=(48, 80), dtype=torch.float32, codec="nf4", **values) -> Linear:
    return laws.make(pick("method", "lora"), pick("codec", codec), dtype, shape, **values)


def test_float64_inputs_work_over_any_store():
    for codec in names("codec"):
        linear = lora(codec=codec).double()
        x = laws.inputs((48, 80), torch.float64).detach()
        truth = F.linear(x, linear.merged("default", torch.float64))
        assert linear(x).dtype == torch.float64 and laws.distance(linear(x), truth) <= 1e-13 * float(truth.norm())


def test_gradient_of_a_gradient():
    linear = lora(dtype=torch.float32).double()
    assert torch.autograd.gradgradcheck(linear, laws.inputs((48, 80), torch.float64, rows=1, tokens=2))


def test_route():
    linear, x = lora(), laws.inputs((48, 80), torch.float32)
    assert linear.route.active == "default", "the first adapter a route hears of is the active one"
    adapted = linear(x)
    linear.route.active = None
    assert torch.equal(linear(x), linear.store(x)) and not torch.equal(linear(x), adapted)
    linear.route.rows = ["default"] * 3
    assert torch.equal(linear(x), adapted), "rows win over active; one adapter for all rows is no mixture"
    linear.route.rows = ["default", None]
    with pytest.raises(FinloraError, match="2 row.*batch has 3"):
        linear(x)
    linear.route.rows = ["default", None, "defualt"]
    with pytest.raises(FinloraError, match="did you mean `default`"):
        linear(x)
    linear.route.rows, linear.route.active = None, "other"
    with pytest.raises(FinloraError, match="no adapter named `other`"):
        linear(x)


def test_a_linear_without_the_named_adapter_stays_at_its_base():
    codec, route = pick("codec", "none"), Route()
    method, kept = pick("method", "lora"), dict(codec=codec, codec_config=codec.config(), dtype=torch.float32, route=route)
    one = laws.stirred(build(laws.weight((48, 80)), method=method, method_config=method.config(), **kept))
    two = build(laws.weight((48, 80)), **kept)
    x = laws.inputs((48, 80), torch.float32)
    assert torch.equal(two(x), two.store(x))
    route.rows = [None, "default", "default"]
    assert torch.equal(two(x), two.store(x)) and not torch.equal(one(x), one.store(x))


def test_attach_manners():
    method, linear = pick("method", "lora"), lora()
    with pytest.raises(FinloraError, match="already has an adapter named `default`"):
        linear.adapt("default", method, method.config())
    for bad in ("a.b", "", "keys"):
        with pytest.raises(FinloraError, match=f"`{bad}` cannot name"):
            linear.adapt(bad, method, method.config())
    with pytest.raises(FinloraError, match="full.*changes the base"):
        linear.adapt("whole", pick("method", "full"), pick("method", "full").config())
    assert list(linear.adapters) == ["default"], "a refused adapter leaves nothing behind"
    whole = laws.make(pick("method", "full"), pick("codec", "none"), torch.float32, (48, 80))
    with pytest.raises(FinloraError, match="`default` changes the base"):
        whole.adapt("more", method, method.config())
    with pytest.raises(FinloraError, match="`default` changes the base"):
        whole.attach("more", method, method.config(), method.init(method.config(), laws.weight((48, 80)), Place(lambda W: W)))


@pytest.mark.parametrize("codec", names("codec"))
def test_over_a_weight_that_is_stored_already_nothing_is_rounded_again(codec):
    """An adapter added later starts at the base, over codecs that are no projection too: there is nothing left to make good."""
    for name in ("lora", "dora", "residual", "eva"):
        linear, x = laws.make(None, pick("codec", codec), torch.float32, (48, 80)), laws.inputs((48, 80), torch.float32).detach()
        method = pick("method", name)
        linear.adapt("later", method, method.config(), torch.Generator().manual_seed(0), laws.stats((48, 80)))
        linear.route.active = "later"
        assert laws.distance(linear(x), linear.store(x)) <= 1e-6 * float(linear.store(x).norm()), name


def test_an_adapter_added_later_is_judged_as_the_first():
    linear = laws.make(None, pick("codec", "nf4"), torch.float32, (48, 80))
    with pytest.raises(FinloraError, match="`eva` starts from calibration and was given no moment"):
        linear.adapt("later", pick("method", "eva"), pick("method", "eva").config())
    with pytest.raises(FinloraError, match="`lora` is exact over a lossless base only"):
        linear.adapt("later", dataclasses.replace(pick("method", "lora"), over="lossless"), pick("method", "lora").config())


def test_statistics_follow_the_weight():
    """Calibration keeps them on the CPU; a method finds what it needs on the weight's device, and only that is moved."""
    stats, codec = laws.stats((48, 80)), pick("codec", "none")
    moved = stats.on(torch.device("meta"), ("moment_II",))
    assert moved.moment_II.is_meta and moved.grad_OI is stats.grad_OI and moved.tokens == stats.tokens
    assert Stats().on(torch.device("meta"), ("moment_II",)) == Stats()
    seen, method = [], pick("method", "eva")

    class Spy(Stats):
        def on(self, device, names):
            seen.append((device.type, names))
            return self

    build(
        laws.weight((48, 80)), codec=codec, codec_config=codec.config(), method=method, method_config=method.config(),
        stats=Spy(stats.moment_II), dtype=torch.float32, route=Route(),
    )  # fmt: skip
    laws.make(None, codec, torch.float32, (48, 80)).adapt("later", method, method.config(), stats=Spy(stats.moment_II))
    assert seen == [("cpu", ("moment_II",))] * 2


def test_a_route_used_in_evaluation_serves_training():
    """What a forward pass without gradients has put aside is used again by one with gradients."""
    linear, x = lora(), laws.inputs((48, 80), torch.float32)
    linear.route.rows = ["default", None, "default"]
    with torch.inference_mode():
        linear(x)
    linear(x).sum().backward()
    assert x.grad.isfinite().all()


def editing() -> Method:
    """A method that gives back another base: half of W goes into a trained matrix."""
    plain = pick("method", "lora")

    def init(cfg, W, place):
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        A, B = V[: cfg.rank] * S[: cfg.rank, None], U[:, : cfg.rank]
        return {"A": A, "B": B * (cfg.rank / cfg.alpha), "A_base": A.clone(), "B_base": -B}

    return dataclasses.replace(plain, name="editing", init=init, frozen=EDIT)


def test_a_method_that_edits_the_base():
    for codec in names("codec"):
        linear = laws.make(editing(), pick("codec", codec), torch.float32, (48, 80), stir=False)
        laws.law_starts_at_base(editing(), pick("codec", codec), torch.float32, (48, 80))
        # encoded once, after the method took its part: closer to W than the codec alone
        own = laws.distance(lora(codec=codec).merged(None), laws.weight((48, 80)))
        assert laws.distance(linear.merged("default"), laws.weight((48, 80))) <= own + 1e-5
        with pytest.raises(FinloraError, match="`default` changes the base"):
            linear.adapt("more", pick("method", "lora"), pick("method", "lora").config())
    with pytest.raises(FinloraError, match="`editing` changes the base"):
        lora().adapt("second", editing(), editing().config())


def test_bias_stays_outside_the_gain_and_trains_with_the_base_only():
    for name in names("method"):
        method = pick("method", name)
        linear = laws.make(method, pick("codec", "none"), torch.bfloat16, (48, 80), bias=True)
        x = laws.inputs((48, 80), torch.bfloat16)
        without = laws.make(method, pick("codec", "none"), torch.bfloat16, (48, 80))
        assert torch.equal(linear(x), without(x) + linear.bias.to(torch.bfloat16))
        assert linear.bias.requires_grad == method.trains_base
        assert linear.bias.dtype == (torch.float32 if method.trains_base else linear.store.dtype)


def test_replacing_the_weight_between_forward_and_backward_is_our_bug():
    linear, x = lora(), laws.inputs((48, 80), torch.float32)
    y = linear(x)
    linear.store.put(laws.weight((48, 80), 4))
    with pytest.raises(AssertionError, match="replaced between"):
        y.sum().backward()


def test_put_replaces_the_weight():
    store = lora().store
    store.put(laws.weight((48, 80), 4))
    other = Store(store.codec, store.cfg, laws.weight((48, 80), 4), torch.float32)
    assert torch.equal(store.dense(), other.dense()) and set(store.state_dict()) == set(other.state_dict())


def test_full_leaves_the_weight_it_was_given():
    W = laws.weight((48, 80))
    method, codec = pick("method", "full"), pick("codec", "none")
    linear = build(
        W, codec=codec, codec_config=codec.config(), method=method, method_config=method.config(),
        dtype=torch.float32, route=Route(),
    )  # fmt: skip
    with torch.no_grad():
        linear.adapters["default"]["W"].zero_()
    assert torch.equal(W, laws.weight((48, 80)))


@pytest.mark.parametrize("method", [m for m in names("method") if hasattr(pick("method", m).config(), "rank")])
def test_config_refusals(method):
    record = pick("method", method)
    for rank in (0, -1, 2.5, True, "8"):
        with pytest.raises(FinloraError, match=f"rank must.*{rank}"):
            record.config(rank=rank)
    fields = {f.name for f in dataclasses.fields(record.config)}  # some methods have no scale, or no dropout
    for alpha in (0, -1.0, float("nan"), float("inf"), "x") if "alpha" in fields else ():
        with pytest.raises(FinloraError, match="alpha must"):
            record.config(alpha=alpha)
    for dropout in (-0.1, 1, 1.5, "x") if "dropout" in fields else ():
        with pytest.raises(FinloraError, match="dropout must"):
            record.config(dropout=dropout)
    with pytest.raises(FinloraError, match="rank 49 is above the layer.*48 x 80.*at most 48"):
        laws.make(record, pick("codec", "none"), torch.float32, (48, 80), rank=49)
    assert laws.make(record, pick("codec", "none"), torch.float32, (48, 80), rank=48)


def test_lora_plus_ratio():
    method = pick("method", "lora_plus")
    assert method.groups(method.config(), {"A": 0, "B": 0}) == {"A": 1.0, "B": 16.0}
    assert method.groups(method.config(ratio=4), {"A": 0, "B": 0})["B"] == 4.0
    for ratio in (0, -2, float("nan"), "x"):
        with pytest.raises(FinloraError, match="ratio must"):
            method.config(ratio=ratio)


@pytest.mark.parametrize("codec", names("codec"))
def test_a_damaged_weight_is_refused_before_anything_is_drawn(codec):
    W = laws.weight((48, 80))
    W[3, 3] = float("nan")
    record, method = pick("codec", codec), pick("method", "dora")
    with pytest.raises(FinloraError, match=r"\(48, 80\) holds 1 value"):
        build(
            W, codec=record, codec_config=record.config(), method=method, method_config=method.config(),
            dtype=torch.float32, route=Route(),
        )  # fmt: skip


def test_linear_is_found_by_its_sizes():
    linear = lora()
    assert (linear.out_features, linear.in_features) == linear.shape == (48, 80)
    assert isinstance(linear, nn.Module) and "nf4" in repr(linear) and "default: lora" in repr(linear)
