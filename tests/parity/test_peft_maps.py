"""MiSS, VeRA, RandLoRA and HiRA against PEFT on torch's nn.Linear and, where PEFT has it, on transformers' Conv1D.

PEFT makes the adapter, every trained parameter is moved away from its start, and the same numbers go into ours: forward,
merged weight and gradients must agree, and so must the random bases that both draw from the same key.
"""

import dataclasses

import pytest
import torch
from torch import nn

from finlora.linear import Linear, Place, Route, Store
from finlora.registry import pick

R = 6
SHAPES = {"wider": (48, 80), "taller": (81, 48), "square": (63, 63), "odd": (45, 77)}
CASES = {
    "miss": ("MissConfig", {"miss_dropout": 0.0}, {}),
    "miss mini": ("MissConfig", {"init_weights": "mini", "mini_r": 3}, {"mini": 3}),
    "vera": ("VeraConfig", {"projection_prng_key": 11, "d_initial": 0.5}, {"key": 11, "d_initial": 0.5}),
    "randlora": ("RandLoraConfig", {"projection_prng_key": 11, "randlora_alpha": 9}, {"key": 11, "alpha": 9.0}),
    "hira": ("HiraConfig", {}, {}),
}
KINDS = [(c, k) for c in CASES for k in ("Linear", "Conv1D") if k == "Linear" or not c.startswith("miss")]  # PEFT has no such MiSS


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


class Body(nn.Module):
    def __init__(self, kind: str, *shapes: tuple[int, int]):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        for k, (O, I) in enumerate(shapes):
            layer = Conv1D(O, I) if kind == "Conv1D" else nn.Linear(I, O)
            nn.init.normal_(layer.weight, std=I**-0.5)
            nn.init.normal_(layer.bias)
            self.add_module(f"lin{k}", layer)

    def forward(self, x):
        return self.lin0(x)


def theirs_of(layer, method) -> dict[str, torch.Tensor]:
    """PEFT's own tensors under our names."""
    names = {**method.peft.names, **{k: v.removeprefix("base_model.") for k, v in method.peft.shared.items()}}
    return {ours: getattr(layer, name)["default"] for ours, name in names.items()}


def both(peft, case: str, kind: str, *shapes: tuple[int, int]):
    """(PEFT's model, our method, its config, our fresh parameters for each layer)."""
    theirs, extra, ours = CASES[case]
    torch.manual_seed(0)
    body = Body(kind, *shapes)
    if kind == "Conv1D":
        extra = {**extra, "fan_in_fan_out": True}
    targets = [f"lin{k}" for k in range(len(shapes))]
    settings = getattr(peft, theirs)(r=R, target_modules=targets, **extra)
    model = peft.get_peft_model(body, settings)
    method = pick("method", case.split()[0])
    config = method.config(rank=R, **ours)
    largest = max(O for O, _ in shapes), max(I for _, I in shapes)
    fresh = [method.init(config, torch.zeros(shape), Place(lambda W: W, largest=largest)) for shape in shapes]
    return model, method, config, fresh


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case, kind", KINDS)
def test_forward_gradients_and_merge(peft, case, kind, shape):
    O, I = SHAPES[shape]
    model, method, config, (fresh,) = both(peft, case, kind, (O, I))
    layer = model.base_model.model.lin0
    with torch.no_grad():
        for p in layer.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    theirs = theirs_of(layer, method)
    base = layer.get_base_layer()
    W = (base.weight.t() if kind == "Conv1D" else base.weight).detach().clone()
    none = pick("codec", "none")
    linear = Linear(Store(none, none.config(), W, torch.float32), base.bias.detach(), Route(), (O, I))
    # only the leading corner belongs to the layer; what PEFT has no name for is ours to make
    given = {k: theirs[k].detach()[tuple(slice(n) for n in v.shape)].clone() if k in theirs else v for k, v in fresh.items()}
    linear.attach("default", method, config, given)
    x = torch.randn(3, 5, I, generator=torch.Generator().manual_seed(1))
    g = torch.randn(3, 5, O, generator=torch.Generator().manual_seed(2))
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = linear(ours_x), model(theirs_x)
    # two orders of the same sums in fp32, as shares of each tensor's own norm; see CLOSE
    close(y, expected)
    assert (y - linear.store(x) - linear.bias).abs().max() > 0.02, "the adapter does nothing"
    y.backward(g)
    expected.backward(g)
    close(ours_x.grad, theirs_x.grad)
    trained = {k: p for k, p in linear.adapters["default"].items() if p.requires_grad}
    assert trained.keys() == method.peft.names.keys()
    for name, p in trained.items():
        close(p.grad, theirs[name].grad)
    layer.merge()
    merged = base.weight.t() if kind == "Conv1D" else base.weight
    close(linear.merged("default"), merged)


CLOSE = 1e-6  # measured over the cases above: mean 5e-8, largest 3.2e-7 (n = 152)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    away = float((a.detach() - b.detach()).norm()) / float(b.detach().norm())
    assert away <= CLOSE, away


@pytest.mark.parametrize("case, kind", KINDS)
def test_the_same_start(peft, case, kind):
    """The trained parameters start where PEFT's do, and random bases for layers of many shapes are PEFT's to the bit."""
    shapes = list(SHAPES.values())
    model, method, config, fresh = both(peft, case, kind, *(shapes if "mini" not in case else shapes[:1]))
    for k, params in enumerate(fresh):
        theirs = theirs_of(getattr(model.base_model.model, f"lin{k}"), method)
        for name, value in theirs.items():
            corner = value.detach()[tuple(slice(n) for n in params[name].shape)]
            if method.name == "hira" and name == "A":  # drawn from PEFT's global state: the same distribution
                assert max(corner.abs().max(), params[name].abs().max()) <= corner.shape[1] ** -0.5
                assert float(params[name].std()) == pytest.approx(float(corner.std()), rel=0.15)
            else:
                assert torch.equal(params[name], corner), name
        for name in method.frozen:
            if name in theirs:
                assert all(a <= b for a, b in zip(params[name].shape, theirs[name].shape))
                assert theirs[name].untyped_storage().nbytes() >= params[name].untyped_storage().nbytes()


@pytest.mark.parametrize("case", CASES)
def test_configs_go_round(peft, case):
    """PEFT reads the fields we write, and we read those that PEFT writes."""
    theirs, extra, ours = CASES[case]
    method = pick("method", case.split()[0])
    config = method.config(rank=R, dropout=0.25, **ours)
    settings = getattr(peft, theirs)(**{k: v for k, v in method.peft.config(config).items() if k != "peft_type"})
    assert settings.peft_type == method.peft.config(config)["peft_type"] and settings.r == R
    assert method.peft.read(settings.to_dict()) == config
    plain = getattr(peft, theirs)(r=R, **extra)
    assert method.peft.read(plain.to_dict()) == dataclasses.replace(config, dropout=0.0)
