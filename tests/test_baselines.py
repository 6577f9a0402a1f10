"""PEFT's own tuners through our loop: same data, same loss, and an adapter folder that PEFT reads."""

import pytest
import torch

from finlora import baselines
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.model import hidden, logits, open_model, save
from finlora.registry import pick
from finlora.spec import MethodPart, Train, resolve
from finlora.text import Tokens
from finlora.train import fit

IDS = [[5 + (7 * k * k + 3 * row) % 390 for k in range(14)] for row in range(3)]
TUNERS = {
    "lora": {"r": 4, "lora_alpha": 8},
    "oft": {"oft_block_size": 8, "r": 0},
    "loha": {"r": 3, "alpha": 6},
    "lokr": {"r": 3, "alpha": 6},
    "ia3": {"feedforward_modules": []},
    "boft": {"boft_block_size": 4},
    "vblora": {"num_vectors": 8, "vector_length": 16, "topk": 2},
    "fourierft": {"n_frequency": 50},
}


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "llama"
    save(make_model("llama"), out)
    return out


def opened(folder, **options):
    return open_model(str(folder), dtype="float32", device="cpu", **options)


@torch.no_grad()
def says(model):
    return logits(model, hidden(model, collate([[Tokens((*ids, 0), (1.0,) * (len(ids) + 1))] for ids in IDS])))


def trained(model, taught, lr=1e-2):
    return fit(model, taught, Train(steps=4, batch=12, lr=lr, warmup=0.0, schedule="constant"), row_tokens=256, seed=0)


@pytest.mark.parametrize("tuner", TUNERS)
def test_trained_by_our_loop_and_read_by_peft(peft, folder, taught, tmp_path, tuner):
    from transformers import AutoModelForCausalLM

    model = opened(folder)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = says(model)
    baselines.wrap(model, tuner, TUNERS[tuner])
    names = set(model.trainable())
    assert names and not names & frozen.keys()
    told = trained(model, taught)
    assert told["loss_last"] < told["loss_first"]
    held = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(held[name], p) for name, p in frozen.items())
    out = baselines.save(model, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, out).eval()(torch.tensor(IDS)).logits
    ours = says(model.eval())
    assert float((ours - before).abs().max()) > 0.01
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)  # equal to the bit: the layers are PEFT's own


def test_their_lora_is_ours(peft, folder, taught):
    """The same start, data and steps: our lora and PEFT's lose alike, step by step."""
    ours = opened(folder, method="lora", method_config=pick("method", "lora").config(rank=4, alpha=8.0))
    theirs = baselines.wrap(opened(folder), "lora", TUNERS["lora"])
    with torch.no_grad():
        for name, p in theirs.trainable().items():
            key, side = name.removeprefix("body.").split(".lora_")
            p.copy_(ours.linears[key].adapters["default"][side[0]])
    a, b = (trained(model, taught)["curve"] for model in (ours, theirs))
    assert [row[1] for row in a] == pytest.approx([row[1] for row in b], rel=1e-5) and a[0][1] > a[-1][1]


def test_drawn_from_the_seed(peft, folder):
    a, b, c = (dict(baselines.wrap(opened(folder), "loha", TUNERS["loha"], seed=seed).trainable()) for seed in (1, 1, 2))
    state = torch.get_rng_state()
    baselines.wrap(opened(folder), "lora")
    assert torch.equal(torch.get_rng_state(), state), "the global generator has moved"
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)


def test_targets(peft, folder):
    model = baselines.wrap(opened(folder), "lora", TUNERS["lora"], targets=["q_proj", "down_proj"])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in model.trainable()} == {"q_proj", "down_proj"}
    with pytest.raises(FinloraError, match="matches no linear"):
        baselines.wrap(opened(folder), "lora", targets="c_attn")


def test_from_a_spec(peft):
    record, config = resolve(MethodPart("peft:oft", options={"oft_block_size": 8, "r": 0}))
    assert baselines.is_baseline("peft:oft") and not baselines.is_baseline("lora")
    assert record.name == "peft:oft" and record.over == "lossless" and config.oft_block_size == 8 and config.bias is None
    with pytest.raises(FinloraError, match="method.oft_blok_size.*did you mean `method.oft_block_size`"):
        resolve(MethodPart("peft:oft", options={"oft_blok_size": 8}))
    with pytest.raises(FinloraError, match="PEFT refuses the options of `oft`"):
        resolve(MethodPart("peft:oft", options={"oft_block_size": 8, "r": 4}))
    with pytest.raises(FinloraError, match="no method named `peft:loha2`.*did you mean `peft:loha`"):
        pick("method", "peft:loha2")


def test_refused(peft, folder):
    for codec in ("nf4", "none"):
        with pytest.raises(FinloraError, match=f"kept by codec `{codec}`"):
            baselines.wrap(opened(folder, codec=codec), "lora")
    with pytest.raises(FinloraError, match="no key named `rank`"):
        baselines.wrap(opened(folder), "lora", {"rank": 4})
    with pytest.raises(FinloraError, match="PEFT cannot put `boft` on"):
        baselines.wrap(opened(folder), "boft", {"boft_block_size": 5})
    for name in ("prompt_tuning", "adalora", "xlora", "ln_tuning"):
        with pytest.raises(FinloraError, match="no method named"):
            pick("method", f"peft:{name}")


def test_without_peft(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft.mapping", None)
    with pytest.raises(FinloraError, match="need the package peft.*pip install peft"):
        pick("method", "peft:oft")
