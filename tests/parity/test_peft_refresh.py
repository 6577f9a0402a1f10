"""AdaLoRA and LoRA-FA against PEFT: the layer, the allocation of ranks, and the corrected gradient of B."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finlora.linear import Linear, Place, Route, Store
from finlora.methods import adalora, lora_fa
from finlora.registry import pick

O, I, R = 48, 80, 6
SHAPES = {"one": (O, I), "two": (33, I)}


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Linear(i, o) for o, i in SHAPES.values())

    def forward(self, x):
        return self.one(x)


def theirs(peft, **settings):
    """PEFT's AdaLoRA over two linears, away from its start."""
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(init_r=R, target_r=2, lora_alpha=9, target_modules=list(SHAPES), **{"total_step": 100, **settings})
    model = peft.get_peft_model(Body(), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    return model


def factors(layer) -> dict[str, torch.Tensor]:
    return {key: getattr(layer, f"lora_{key}")["default"] for key in adalora.TRAINED}


def test_layer(peft):
    """Forward, gradients and merged weight; fp32 sums in another order differ by 2e-6 at most here."""
    model = theirs(peft)
    layer = model.base_model.model.one
    none, record = pick("codec", "none"), pick("method", "adalora")
    W, bias = layer.get_base_layer().weight.detach().clone(), layer.get_base_layer().bias.detach()
    linear = Linear(Store(none, none.config(), W, torch.float32), bias, Route(), (O, I))
    linear.attach("default", record, record.config(rank=R, alpha=9, target=2), {k: p.detach().clone() for k, p in factors(layer).items()})
    x = torch.randn(3, 5, I, generator=torch.Generator().manual_seed(1))
    g = torch.randn(3, 5, O, generator=torch.Generator().manual_seed(2))
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = linear(ours_x), layer(theirs_x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=5e-6)
    assert (y - linear.store(x) - linear.bias).abs().max() > 0.01, "the adapter does nothing"
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-5, atol=5e-6)
    for key, p in factors(layer).items():
        torch.testing.assert_close(linear.adapters["default"][key].grad, p.grad, rtol=1e-5, atol=2e-5)
    layer.merge()
    torch.testing.assert_close(linear.merged("default"), layer.get_base_layer().weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every, tinit, tfinal", [(1, 0, 20), (5, 10, 30), (7, 3, 11)])
def test_allocation(peft, every, tinit, tfinal):
    """The same parameters and gradients, step by step: the same triplets are open after every step of a hundred."""
    total = 100
    model = theirs(peft, deltaT=every, tinit=tinit, tfinal=tfinal)
    cfg = adalora.AdaLoRA(rank=R, target=2, alpha=9, every=every, tinit=tinit / total, tfinal=tfinal / total, orth=0.0)
    pairs = []
    for name in SHAPES:
        layer = getattr(model.base_model.model, name)
        fresh = adalora.init(cfg, layer.get_base_layer().weight, Place(lambda W: W))
        pairs.append((cfg, nn.ParameterDict({k: nn.Parameter(p, requires_grad=k in adalora.TRAINED) for k, p in fresh.items()})))
    draw = torch.Generator().manual_seed(3)
    seen = set()
    for step in range(total):
        for name, (_, params) in zip(SHAPES, pairs):
            scale = 1 + 3 * torch.rand(R, generator=draw)  # some triplets matter more
            for key, p in factors(getattr(model.base_model.model, name)).items():
                shape = (1, R) if key == "B" else (R, 1)
                value, grad = (torch.randn(p.shape, generator=draw) * scale.view(shape) for _ in range(2))
                p.data.copy_(value)
                params[key].data.copy_(value)
                p.grad, params[key].grad = grad.clone(), grad.clone()
        model.base_model.update_and_allocate(step)
        for _, params in pairs:
            if params["E_ipt"].numel():  # the values drawn for this step, not what the last mask would leave of them
                params["mask"].data.fill_(1.0)
        adalora.tend(pairs, step, total)
        for name, (_, params) in zip(SHAPES, pairs):
            open_ = factors(getattr(model.base_model.model, name))["E"] != 0
            assert torch.equal(open_, params["mask"] != 0), f"step {step}, {name}"
            seen.add(tuple(open_.flatten().tolist()))
    assert len(seen) > 5 and sum(params["mask"].sum().item() for _, params in pairs) == 4


def test_penalty(peft):
    """PEFT adds it to the loss; its gradient is ours."""
    model = theirs(peft)

    class Out:
        loss = torch.zeros((), requires_grad=True)

    out = Out()
    out.loss = torch.zeros((), requires_grad=True) + 0
    model.base_model.model.forward = lambda *a, **k: out
    model.base_model.forward().loss.backward()
    cfg = adalora.AdaLoRA(rank=R, target=2, orth=0.5)
    pairs = [(cfg, {k: p.detach().clone().requires_grad_() for k, p in factors(getattr(model.base_model.model, name)).items()}) for name in SHAPES]
    for _, params in pairs:
        for p in params.values():
            p.grad = torch.zeros_like(p)
    adalora.tend(pairs, 0, 100)
    for name, (_, params) in zip(SHAPES, pairs):
        for key in "AB":
            torch.testing.assert_close(params[key].grad, factors(getattr(model.base_model.model, name))[key].grad, rtol=1e-5, atol=1e-7)


def test_lora_fa_correction(peft):
    """One step of PEFT's optimiser leaves a tenth of the corrected gradient in its first moment; it multiplies in bf16."""
    from peft.optimizers import create_lorafa_optimizer

    torch.manual_seed(0)
    model = peft.get_peft_model(Body(), peft.LoraConfig(r=R, lora_alpha=9, target_modules=["one"]))
    layer = model.base_model.model.one
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    optimizer = create_lorafa_optimizer(model, r=R, lora_alpha=9, lr=1e-3)
    assert not A.requires_grad
    model(torch.randn(7, I)).square().sum().backward()
    held = {"A": A.detach().clone(), "B": nn.Parameter(B.detach().clone())}
    held["B"].grad = B.grad.clone()
    lora_fa.tend([(lora_fa.LoRAFA(rank=R, alpha=9, correct=True), held)], 0, 10)
    optimizer.step()
    (state,) = [s for name, s in optimizer.state.items() if "exp_avg_B" in s]
    moment = state["exp_avg_B"] / 0.1
    assert not torch.allclose(moment, B.grad, rtol=0.1), "the correction does nothing"
    # bf16 keeps eight bits of each factor of the product: 0.0032 of the whole in the mean, 0.0036 at most (20 seeds)
    assert float((held["B"].grad - moment).norm() / moment.norm()) < 1e-2
