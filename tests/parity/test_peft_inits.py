"""Starts against PEFT's: the product s B A and the weight that is left, given the same weight and the same statistics.

Factors may differ by signs and scales that cancel in the product. Importing PEFT takes some nine seconds, once.
"""

import copy
import dataclasses
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from finlora.linear import Place, Stats, edited
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
            nn.init.normal_(self.lin.weight, std=I**-0.5)
        else:
            self.lin = nn.Linear(I, O)

    def forward(self, x):
        return self.lin(x)


def body_of(kind: str) -> tuple[Body, torch.Tensor]:
    """(a body, its weight as (out, in))."""
    torch.manual_seed(0)
    body = Body(kind)
    W = body.lin.weight.detach().clone()
    return body, W.t() if kind == "Conv1D" else W


def inputs() -> torch.Tensor:
    """(1, tokens, in): far from isotropic, with a mean."""
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(I, I, generator=generator)).Q
    return (torch.randn(1, 300, I, generator=generator) * torch.logspace(0, -1.5, I) + 0.1) @ turn


def gradient() -> torch.Tensor:
    """(out, in) of rank 12: a randomised SVD of it is exact."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(O, 12, generator=generator) * torch.logspace(0, -1, 12) @ torch.randn(12, I, generator=generator)


def theirs(peft, kind: str, alpha: float, prepare=None, **extra):
    """(A, B, what is left of W as (out, in)) after PEFT's start."""
    body, _ = body_of(kind)
    config = peft.LoraConfig(r=R, lora_alpha=alpha, target_modules=["lin"], fan_in_fan_out=kind == "Conv1D", **extra)
    if prepare:
        prepare(body, config)
    layer = peft.get_peft_model(body, config).base_model.model.lin
    left = layer.get_base_layer().weight.detach()
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach(), left.t() if kind == "Conv1D" else left


def ours(name: str, kind: str, alpha: float, stats: Stats | None = None, **values):
    """(A, B, what is left of W)."""
    method, (_, W) = pick("method", name), body_of(kind)
    params = method.init(method.config(rank=R, alpha=alpha, **values), W, Place(lambda W: W, stats=stats, generator=torch.Generator().manual_seed(3)))
    return params["A"], params["B"], edited(W, params)


def agree(mine, other, s: float, within: float) -> None:
    """Products and residuals agree, relative to the size of each."""
    for a, b in ((s * mine[1] @ mine[0], s * other[1] @ other[0]), (mine[2], other[2])):
        assert float(b.norm()) > 0.1
        assert float((a - b).norm()) <= within * float(b.norm()), float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("alpha", [R, 15.0])
def test_pissa(peft, kind, alpha):
    # the same SVD in fp32: measured equal to the last bit, on one machine
    agree(ours("pissa", kind, alpha), theirs(peft, kind, alpha, init_lora_weights="pissa"), alpha / R, 1e-5)


def test_olora(peft):
    """At alpha = rank; elsewhere PEFT's edit is s times ours, which takes Q_r R_r whatever alpha."""
    agree(ours("olora", "Linear", R), theirs(peft, "Linear", R, init_lora_weights="olora"), 1.0, 1e-5)
    A, B, left = ours("olora", "Linear", 3.0 * R)
    theirs_A, theirs_B, theirs_left = theirs(peft, "Linear", 3.0 * R, init_lora_weights="olora")
    torch.testing.assert_close(3 * B @ A, theirs_B @ theirs_A, rtol=1e-4, atol=1e-5)
    assert float((left - theirs_left).norm()) > 0.5


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda(peft, kind, mode, monkeypatch):
    """Given the same inputs. PEFT scales them by their maximum, which cancels, and inverts in float32."""
    if importlib.util.find_spec("attr") is None:  # PEFT takes a dataclass decorator from a package that it does not require
        monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    x = inputs()

    def prepare(body, config):
        preprocess_corda(body, config, run_model=lambda: body(x))

    other = theirs(peft, kind, 15.0, prepare, init_lora_weights="corda", corda_config=CordaConfig(corda_method=mode))
    stats = Stats(x[0].T @ x[0] / x.shape[1], None, x.shape[1])
    # PEFT inverts and factorises in fp32, ours in fp64: products measured 2.8e-5 (ipm) and 3.1e-5 (kpm) apart
    agree(ours("corda", kind, 15.0, stats, mode=mode), other, 15.0 / R, 2e-4)


def test_eva(peft):
    """The directions of PEFT's incremental PCA, given the moment about the mean that it takes."""
    from peft.utils.incremental_pca import IncrementalPCA

    x = inputs()[0]
    pca = IncrementalPCA(n_components=R)
    pca.partial_fit(x.clone())  # in one part it loses nothing: in three, its last directions are off by a cosine of 0.8
    centred = x - x.mean(0)
    A, B, left = ours("eva", "Linear", 15.0, Stats(centred.T @ centred / len(x), None, len(x)))
    other = pca.components_.float()
    assert ((A @ other.T).diagonal().abs() > 0.9999).all(), (A @ other.T).diagonal()
    share = pca.explained_variance_ratio_[:R].float()
    exact = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    torch.testing.assert_close(share, (exact[:R] / exact.sum()), rtol=1e-3, atol=1e-5)
    assert not B.any()


def test_lora_ga_is_the_authors_and_not_pefts(peft):
    """PEFT: A without its scale, B with the singular values besides. Directions agree, sizes are the authors'."""
    G = gradient()

    def prepare(body, config):
        body.lin._peft_loraga_grad = G.clone()

    if not hasattr(peft, "LoraGAConfig"):
        pytest.skip("this PEFT has no LoRA-GA")
    extra = {"init_lora_weights": "lora_ga", "lora_ga_config": peft.LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=16)}
    A, B, _ = ours("lora_ga", "Linear", float(R), Stats(None, G, 1))
    theirs_A, theirs_B, _ = theirs(peft, "Linear", float(R), prepare, **extra)
    c, S = O**0.25 / 4, torch.linalg.svdvals(G)[R : 2 * R]
    sign = (A @ theirs_A.T).diagonal().sign()
    torch.testing.assert_close(A * sign[:, None], c * theirs_A, rtol=1e-3, atol=1e-4)
    sign = (B.T @ theirs_B).diagonal().sign()
    torch.testing.assert_close(B * sign * S, theirs_B, rtol=1e-3, atol=1e-3)


def test_pefts_loftq_is_right_for_one_alpha_alone(peft):
    """What ours corrects: PEFT's factors do not know the scale, so its sum depends on alpha; ours does not."""
    import inspect

    from peft.utils import loftq_utils

    assert "scaling" not in inspect.getsource(loftq_utils.loftq_init)
    method, (_, W) = pick("method", "loftq"), body_of("Linear")
    place = Place(lambda W: (W * 8).round() / 8, False, None, torch.Generator().manual_seed(0))
    sums = []
    for alpha in (R, 3 * R):
        params = method.init(method.config(rank=R, alpha=float(alpha)), copy.deepcopy(W), place)
        sums.append(place.roundtrip(edited(W, params)) + alpha / R * params["B"] @ params["A"])
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-5)
