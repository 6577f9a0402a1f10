"""Adapter folders without PEFT: the base they belong to, edited bases beside others, older folders, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from finlora import adapters
from finlora.bases import base_digest
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.model import hidden, logits, open_model, save
from finlora.registry import names, pick
from finlora.seam import EDIT, Stats
from finlora.text import Tokens
from finlora.wiring import find_linears, shape_of

IDS = [[5 + (7 * k * k + 3 * row) % 390 for k in range(14)] for row in range(3)]
METHODS = [name for name in names("method") if not pick("method", name).trains_base]


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "llama"
    save(make_model("llama"), out)
    return out


@pytest.fixture(scope="module")
def stats(folder):
    out = {}
    for k, (name, module) in enumerate(find_linears(open_model(str(folder), dtype="float32", device="cpu").body).items()):
        O, I = shape_of(module)
        g = torch.Generator().manual_seed(k)
        x = torch.randn(3 * I, I, generator=g)
        out[name] = Stats(x.T @ x / len(x), torch.randn(O, I, generator=g) / I, len(x))
    return out


@torch.no_grad()
def says(model):
    return logits(model, hidden(model, collate([[Tokens((*ids, 0), (1.0,) * (len(ids) + 1))] for ids in IDS])))


def opened(folder, **options):
    return open_model(str(folder), dtype="float32", device="cpu", **options)


def trained(folder, stats, method, out, codec="none", **options):
    kind = pick("method", method).config
    settings = kind(**{k: v for k, v in {"rank": 4, "alpha": 9.0}.items() if k in kind.__dataclass_fields__})
    model = opened(folder, method=method, method_config=settings, codec=codec, stats=stats, **options)
    with torch.no_grad():
        for k, p in enumerate(model.trainable().values()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    return adapters.save_adapter(model, out), model


def refuse(folder, adapter, *words):
    with pytest.raises(FinloraError) as caught:
        opened(folder, adapter=adapter)
    said = str(caught.value)
    assert caught.value.hint and "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize("codec", ["nf4", "int8"])
@pytest.mark.parametrize("method", [m for m in METHODS if pick("method", m).over == "any"])
def test_reopened_over_a_lossy_base(folder, stats, tmp_path, method, codec):
    """To the bit: the edit is made again from the original weight, and encoded again."""
    adapter, model = trained(folder, stats, method, tmp_path / "adapter", codec)
    again = opened(folder, adapter=adapter)
    assert {linear.store.codec.name for linear in again.linears.values()} == {codec}
    assert torch.equal(says(again), says(model))


EDITS = ("pissa", "olora", "corda", "lora_ga", "loftq")


@pytest.mark.parametrize("method", EDITS)
def test_an_edited_base_beside_others(folder, stats, tmp_path, method):
    """Over a lossless base its plain form of twice the rank stands beside another adapter; over a lossy one it is refused."""
    adapter, model = trained(folder, stats, method, tmp_path / "adapter")
    other, second = trained(folder, stats, "lora", tmp_path / "other")
    both = opened(folder, codec="none")
    adapters.attach_adapter(both, other, "other")
    adapters.attach_adapter(both, adapter, "edited")
    held = both.linears["model.layers.0.mlp.up_proj"]
    edits = EDIT[0] in model.linears["model.layers.0.mlp.up_proj"].adapters["default"]
    assert held.how["edited"][1].rank == (8 if edits else 4) and held.sole is None
    # fp32, logits reach 5: the two ways to add up differ by 1.2e-5 at most (corda)
    torch.testing.assert_close(says(both), says(model), rtol=0, atol=2.5e-5)
    both.route.active = "other"
    assert torch.equal(says(both), says(second))
    if edits:
        lossy = opened(folder, codec="nf4")
        with pytest.raises(FinloraError, match="edited the base.*lossless base only.*open_model"):
            adapters.attach_adapter(lossy, adapter)
        assert not any(linear.adapters for linear in lossy.linears.values())


def test_rank_of_each_linear(folder, stats, tmp_path):
    """Settings that differ from linear to linear come back as they were."""
    patterns = {"q_proj": {"rank": 2}, "mlp": {"rank": 6, "alpha": 3.0}}
    for method in ("lora", "pissa", "iec", "vera"):
        adapter, model = trained(folder, stats, method, tmp_path / method, patterns=patterns if method != "vera" else None)
        again = opened(folder, adapter=adapter)
        assert torch.equal(says(again), says(model))
        assert all(again.linears[key].how["default"][1] == linear.how["default"][1] for key, linear in model.linears.items())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_folders_of_version_0_1_0(folder, stats, tmp_path, method):
    """They had no `form`, no digest, and left exceptions to PEFT's patterns."""
    adapter, model = trained(folder, stats, method, tmp_path / "adapter", patterns={"q_proj": {"rank": 2}})
    path = adapter / "finlora.json"
    now = json.loads(path.read_text(encoding="utf-8"))
    then = {key: now[key] for key in ("method", "config", "codec", "codec_config", "base")}
    path.write_text(json.dumps({"finlora": "0.1.0", **then}), encoding="utf-8")
    again = opened(folder, adapter=adapter)
    assert torch.equal(says(again), says(model)) and again.linears["model.layers.0.self_attn.q_proj"].how["default"][1].rank == 2


def test_own_parameters_of_version_0_1_0(folder, stats, tmp_path):
    """A method without a format in PEFT was kept under our own names in PEFT's file."""
    adapter, model = trained(folder, stats, "iec", tmp_path / "adapter")
    own = load_file(adapter / "finlora.safetensors")
    save_file({"base_model.model.{0}.finlora_{2}".format(*k.rpartition(".")): v for k, v in own.items()}, adapter / "adapter_model.safetensors")
    (adapter / "finlora.safetensors").unlink()
    now = json.loads((adapter / "finlora.json").read_text(encoding="utf-8"))
    then = {key: now[key] for key in ("method", "config", "codec", "codec_config", "base")}
    (adapter / "finlora.json").write_text(json.dumps({"finlora": "0.1.0", **then}), encoding="utf-8")
    assert torch.equal(says(opened(folder, adapter=adapter)), says(model))


# -- the base --------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_weights(folder, tmp_path, make_model):
    """How they are spread over files does not count, nor config.json; any tensor does."""
    model = opened(folder)
    model.body.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert base_digest(tmp_path / "shards") == base_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text("{}", encoding="utf-8")
    assert base_digest(tmp_path / "copy") == base_digest(folder)
    file = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(file)
    seen = {base_digest(folder)}
    for key in tensors:
        changed = {k: v.clone() for k, v in tensors.items()}
        changed[key].view(-1)[-1] += 1
        save_file(changed, file)
        seen.add(base_digest(tmp_path / "copy"))
    assert len(seen) == 1 + len(tensors)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(FinloraError, match="not a readable safetensors file"):
        base_digest(tmp_path / "copy")


def test_another_base(folder, stats, tmp_path, make_model):
    adapter, _ = trained(folder, stats, "lora", tmp_path / "adapter")
    save(make_model("llama", seed=1), tmp_path / "another")
    refuse(tmp_path / "another", adapter, "was trained over another base", str(folder))
    shutil.copytree(folder, tmp_path / "moved")
    assert opened(tmp_path / "moved", adapter=adapter).linears  # the same weights in another place


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_cut_short(folder, stats, tmp_path, method):
    """Whatever the form: a file that is missing, truncated, or short of a tensor says so in one line."""
    adapter, _ = trained(folder, stats, method, tmp_path / "adapter")
    own = json.loads((adapter / "finlora.json").read_text(encoding="utf-8"))
    file = adapter / ("finlora.safetensors" if own["form"] == "plain" else "adapter_model.safetensors")
    tensors = load_file(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-64])
    refuse(folder, adapter, file.name, "not a readable safetensors file")
    record = pick("method", method)
    mapped = {f".{v}" for v in record.peft.names.values()} if own["form"] == "peft" else {".A", ".B"}
    key = next(k for k in tensors if any(k.endswith(end) for end in mapped) or own["form"] == "own")
    save_file({k: v for k, v in tensors.items() if k != key}, file)
    refuse(folder, adapter)
    save_file({k: torch.cat([v, v]) if k == key else v for k, v in tensors.items()}, file)
    refuse(folder, adapter)
    save_file({k: v * float("nan") if k == key else v for k, v in tensors.items()}, file)
    refuse(folder, adapter, "not finite")
    file.unlink()
    refuse(folder, adapter, "finlora.safetensors" if own["form"] == "plain" else "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_another_rank(folder, stats, tmp_path, method):
    """finlora.json and tensors that disagree about the rank."""
    adapter, model = trained(folder, stats, method, tmp_path / "adapter")
    path = adapter / "finlora.json"
    own = json.loads(path.read_text(encoding="utf-8"))
    own["config"]["rank"], own["configs"] = 5, {}
    path.write_text(json.dumps(own), encoding="utf-8")
    refuse(folder, adapter, "5")


def test_without_ours_it_is_plain_lora(folder, stats, tmp_path):
    """The hint of a lost finlora.safetensors holds: without finlora.json the folder opens as what PEFT reads."""
    adapter, model = trained(folder, stats, "pissa", tmp_path / "adapter")
    (adapter / "finlora.safetensors").unlink()
    refuse(folder, adapter, "without finlora.json it opens as the plain LoRA")
    (adapter / "finlora.json").unlink()
    again = opened(folder, adapter=adapter)
    torch.testing.assert_close(says(again), says(model), rtol=0, atol=2.5e-5)


def test_a_pickle_and_an_unknown_method(folder, stats, tmp_path):
    adapter, _ = trained(folder, stats, "lora", tmp_path / "adapter")
    path = adapter / "finlora.json"
    own = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**own, "method": "lorra"}), encoding="utf-8")
    refuse(folder, adapter, "finlora.json", "lorra", "lora")
    path.write_text(json.dumps(own), encoding="utf-8")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refuse(folder, adapter, "pickled")


MUTANTS = {
    "the edit is forgotten": lambda method, cfg, params: method.to_lora(cfg, params),
    "the edit's sign": lambda method, cfg, params: (lambda A, B, s: (torch.cat([A, params["A_base"]]), torch.cat([s * B, -params["B_base"]], 1), 1.0))(*method.to_lora(cfg, params)),
    "the scale is applied twice": lambda method, cfg, params: (lambda A, B, s: (torch.cat([A, params["A_base"]]), torch.cat([s * B, params["B_base"]], 1), s))(*method.to_lora(cfg, params)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_plain_form_would_be_seen(folder, stats, tmp_path, monkeypatch, mutant):
    monkeypatch.setattr("finlora.forms.over_original", MUTANTS[mutant])
    adapter, model = trained(folder, stats, "pissa", tmp_path / "adapter")
    (adapter / "finlora.json").unlink()
    assert float((says(opened(folder, adapter=adapter)) - says(model)).abs().max()) > 0.1


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_base_encoded_by_calibration_is_so_again(folder, stats, tmp_path, method):
    """What the codec used lies beside the adapter: the same weights to the bit, also for a method that edited them, and again after a second save."""
    codec = pick("codec", "nf4_icq")
    config = codec.config(criterion="act_mse")
    path, model = trained(folder, stats, method, tmp_path / "a", codec=codec.name, codec_config=config)
    again = opened(folder, adapter=path)
    assert torch.equal(says(again), says(model))
    assert not torch.equal(says(opened(folder, adapter=path, codec=codec.name, codec_config=codec.config(criterion="mse"))), says(model))
    kept = load_file(path / "calibration.safetensors")
    assert {key: value.shape for key, value in kept.items()} == {f"{name}.moment_II": (len(seen.moment_II),) for name, seen in stats.items()}, "diagonals, no more"
    adapters.train_adapter(again)
    adapters.save_adapter(again, tmp_path / "b")
    assert (tmp_path / "b" / "calibration.safetensors").read_bytes() == (path / "calibration.safetensors").read_bytes()
    (path / "calibration.safetensors").write_bytes(b"cut")
    with pytest.raises(FinloraError, match="calibration.safetensors` is not a readable"):
        opened(folder, adapter=path)


def test_calibration_is_kept_whole_for_a_codec_that_reads_all_of_it(stats):
    from dataclasses import replace

    from finlora.calibrate import Held, condense

    nf4 = pick("codec", "nf4")
    greedy = replace(nf4, encode=lambda cfg, W, stats=None: nf4.encode(cfg, W @ stats.moment_II), needs=lambda cfg: ("moment_II", "grad_OI"))
    kept = condense(stats, greedy, nf4.config())
    held = Held(kept)
    assert set(held) == set(stats) and len(held) == len(stats)
    for name, seen in stats.items():
        assert torch.equal(held[name].moment_II, seen.moment_II) and torch.equal(held[name].grad_OI, seen.grad_OI)
    assert condense(held, greedy, nf4.config()) == kept
    assert condense(stats, nf4, nf4.config()) == {} == condense(None, greedy, nf4.config())
