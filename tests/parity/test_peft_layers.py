"""LoRA, rsLoRA and DoRA against PEFT on torch's nn.Linear and on transformers' Conv1D (weights stored I x O).

PEFT draws the adapter, every parameter is moved away from its start, and the same numbers go into ours: forward, merged
weight and gradients must agree. Importing PEFT takes some nine seconds, once for this file.
"""

import pytest
import torch
from torch import nn

from finlora.linear import Linear, Place, Route, Store
from finlora.registry import pick

O, I, R = 48, 80, 6


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


class Body(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        if kind == "Conv1D":
            from transformers.pytorch_utils import Conv1D

            self.lin = Conv1D(O, I)
        else:
            self.lin = nn.Linear(I, O)
        nn.init.normal_(self.lin.bias)

    def forward(self, x):
        return self.lin(x)


def both(peft, kind: str, method: str, **extra):
    """(PEFT's model, its layer, our Linear) holding the same numbers."""
    torch.manual_seed(0)
    body = Body(kind)
    W = (body.lin.weight.t() if kind == "Conv1D" else body.lin.weight).detach().clone()
    settings = peft.LoraConfig(r=R, lora_alpha=9, target_modules=["lin"], fan_in_fan_out=kind == "Conv1D", **extra)
    model = peft.get_peft_model(body, settings)
    layer = model.base_model.model.lin
    record, none = pick("method", method), pick("codec", "none")
    config = record.config(rank=R, alpha=9)
    start = record.init(config, W, Place(lambda W: W))
    if "m" in start:  # PEFT's magnitude starts where ours does
        assert torch.allclose(start["m"], layer.lora_magnitude_vector["default"].weight, rtol=1e-6)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    theirs = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    if "m" in start:
        theirs["m"] = layer.lora_magnitude_vector["default"].weight
    linear = Linear(Store(none, none.config(), W, torch.float32), body.lin.bias.detach(), Route(), (O, I))
    linear.attach("default", record, config, {name: p.detach().clone() for name, p in theirs.items()})
    return model, layer, linear, theirs


CASES = [("lora", {}), ("rslora", {"use_rslora": True}), ("dora", {"use_dora": True})]


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("method, extra", CASES, ids=[m for m, _ in CASES])
def test_forward_gradients_and_merge(peft, kind, method, extra):
    model, layer, linear, theirs = both(peft, kind, method, **extra)
    x = torch.randn(3, 5, I, generator=torch.Generator().manual_seed(1))
    g = torch.randn(3, 5, O, generator=torch.Generator().manual_seed(2))
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = linear(ours_x), model(theirs_x)
    # two orders of the same sums in fp32: outputs near 2 differ by up to 1e-6, gradients near 10 by up to 4e-6
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=5e-6)
    assert (y - linear.store(x) - linear.bias).abs().max() > 0.1, "the adapter does nothing"
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=5e-6)
    for name, p in linear.adapters["default"].items():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-5, atol=2e-5)
    layer.merge()
    merged = layer.get_base_layer().weight
    merged = merged.t() if kind == "Conv1D" else merged
    torch.testing.assert_close(linear.merged("default"), merged, rtol=1e-5, atol=1e-6)


def test_the_start_is_drawn_from_the_same_distribution(peft):
    """PEFT's A is uniform within 1/sqrt(in); so is ours. B is zero."""
    torch.manual_seed(0)
    layer = peft.get_peft_model(Body("Linear"), peft.LoraConfig(r=R, target_modules=["lin"])).base_model.model.lin
    record = pick("method", "lora")
    torch.manual_seed(1)
    params = record.init(record.config(rank=R), torch.zeros(O, I), Place(lambda W: W))
    for A in (layer.lora_A["default"].weight, params["A"]):
        assert A.shape == (R, I) and A.abs().max() <= I**-0.5
        assert float(A.detach().std()) == pytest.approx((3 * I) ** -0.5, rel=0.1)
    assert not layer.lora_B["default"].weight.any() and not params["B"].any()
