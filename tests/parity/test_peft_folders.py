"""Adapter folders both ways: what we save PEFT loads, what PEFT saves loads here, with equal logits; the rest is refused.

Importing PEFT takes some nine seconds, once for this file. Models are toys with large weights (see conftest), every
adapter is moved well away from its start, and a test that the adapter matters goes with each comparison.
"""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finlora import adapters, wiring
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.model import hidden, logits, open_model
from finlora.registry import names, pick
from finlora.seam import EDIT, Stats
from finlora.text import Tokens
from finlora.wiring import find_linears, shape_of

# float32 logits of the toys reach 5.3; over all cases below ours and PEFT's differ by 3.5e-6 in the mean of the largest
# differences of 60 cases, by 7.7e-6 at most: the 1e-5 of `close`. Where the base was edited twice the factors of
# the edits are larger than what is left of them: 1.7e-5 over PEFT's plain form, 2.6e-6 when we reopen (two edits made one).
RENEWED = 4e-5
IDS = [[5 + (7 * k * k + 3 * row) % 390 for k in range(14)] for row in range(3)]


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


@pytest.fixture(scope="module")
def folders(make_model, tokenizer, tmp_path_factory):
    """family -> a folder with a toy model of it."""
    out = {}
    for family in ("llama", "gpt2", "qwen2"):
        out[family] = tmp_path_factory.mktemp(family)
        make_model(family).body.save_pretrained(out[family])
        tokenizer.save_pretrained(out[family])
    return out


def transformers_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stir(parameters, by=0.2):
    """Move adapter parameters away from their start, each by its own draw."""
    with torch.no_grad():
        for k, p in enumerate(parameters):
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))


@torch.no_grad()
def ours_says(model):
    batch = collate([[Tokens((*ids, 0), (1.0,) * (len(ids) + 1))] for ids in IDS])
    return logits(model, hidden(model, batch))


@torch.no_grad()
def theirs_says(model):
    return model(torch.tensor(IDS)).logits


def close(a, b, base, atol=1e-5):
    """a and b agree, and the adapter moves the base by far more than they may differ."""
    assert float((b - base).abs().max()) > 1.0, "the adapter does nothing: this comparison would prove nothing"
    torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


# -- ours to PEFT ----------------------------------------------------------------------------------------------------

SAVED = [
    ("llama", "lora", "all-linear"),
    ("llama", "lora_plus", ["q_proj", "v_proj"]),
    ("llama", "rslora", [r"re:.*layers\.1\..*"]),
    ("llama", "dora", ["self_attn.o_proj", "down_proj"]),
    ("gpt2", "lora", "all-linear"),
    ("gpt2", "rslora", ["attn.c_proj"]),  # mlp.c_proj has the same last name and must stay as it is
    ("gpt2", "dora", "all-linear"),
]


@pytest.mark.parametrize("family, method, targets", SAVED)
def test_what_we_save_peft_loads(peft, folders, tmp_path, family, method, targets):
    config = pick("method", method).config(rank=6, alpha=9.0)
    model = open_model(str(folders[family]), method=method, method_config=config, targets=targets, dtype="float32", device="cpu")
    stir(model.trainable().values())
    folder = adapters.save_adapter(model, tmp_path / "adapter")
    base = transformers_model(folders[family])
    before = theirs_says(base)
    wrapped = peft.PeftModel.from_pretrained(base, folder).eval()
    held = {key.split(".lora_")[0] for key in load_file(folder / "adapter_model.safetensors")}
    put = {f"base_model.model.{name.removeprefix('base_model.model.')}" for name, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    assert put == held, "PEFT adapts other layers than we did"
    close(ours_says(model), theirs_says(wrapped), before)
    again = open_model(str(folders[family]), adapter=folder, dtype="float32", device="cpu")
    assert torch.equal(ours_says(again), ours_says(model))
    assert not again.trainable()
    adapters.train_adapter(again)
    assert again.trainable().keys() == model.trainable().keys()


METHODS = [name for name in names("method") if not pick("method", name).trains_base]


def small(name, **more):
    """A method's config at rank 4."""
    kind = pick("method", name).config
    wanted = {"rank": 4, "alpha": 9.0, **more}
    return kind(**{k: v for k, v in wanted.items() if k in kind.__dataclass_fields__})


def seen(folder):
    """Made-up calibration of every linear: correlated inputs, a gradient of full rank."""
    out = {}
    for k, (name, module) in enumerate(find_linears(transformers_model(folder)).items()):
        O, I = shape_of(module)
        g = torch.Generator().manual_seed(k)
        x = torch.randn(3 * I, I, generator=g) @ torch.randn(I, I, generator=g) / I**0.5
        out[name] = Stats(x.T @ x / len(x), torch.randn(O, I, generator=g) / I, len(x))
    return out


def trained(folder, name, config, **options):
    """A model whose adapter moves its logits by one or more, its base edited twice where the method edits as it goes."""
    model = open_model(str(folder), method=name, method_config=config, stats=seen(folder), dtype="float32", device="cpu", **options)
    if pick("method", name).refresh:
        for step in range(1, 101):  # until the method has found it time twice
            stir(model.trainable().values(), 0.05)
            if wiring.refresh(model, "default", step, 100, 0) and step > 50:
                break
        else:
            pytest.fail(f"{name} never renewed its parameters")
    before = theirs_says(transformers_model(folder))
    for _ in range(8):
        stir(model.trainable().values(), 0.1)
        if float((ours_says(model) - before).abs().max()) > 1.0:
            return model
    pytest.fail(f"{name} does not move the base")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_both_ways(peft, folders, tmp_path, family, name):
    """What the record says decides: PEFT gives our logits wherever there is a form for it, and refuses the rest."""
    record, config = pick("method", name), small(name)
    model = trained(folders[family], name, config)
    folder = adapters.save_adapter(model, tmp_path / "adapter")
    fields, own = adapters.read_config(folder)
    expected = ours_says(model)
    base = transformers_model(folders[family])
    before = theirs_says(base)
    if record.peft or record.to_lora:
        wrapped = peft.PeftModel.from_pretrained(base, folder).eval()
        close(expected, theirs_says(wrapped), before, RENEWED if record.refresh else 1e-5)
        held = next(iter(model.linears.values())).adapters["default"]
        if EDIT[0] in held:
            assert fields["peft_type"] == "LORA" and fields["r"] == 4 + held[EDIT[0]].shape[0] and own["form"] == "plain"
        assert (folder / "finlora.safetensors").is_file() == (own["form"] == "plain" or bool(held.keys() - record.peft.names.keys() - record.peft.shared.keys()))
    else:
        assert fields["peft_type"].startswith("FINLORA_")
        with pytest.raises((KeyError, ValueError)):
            peft.PeftModel.from_pretrained(base, folder)
    again = open_model(str(folders[family]), adapter=folder, dtype="float32", device="cpu")
    if record.refresh:
        close(ours_says(again), expected, before)
    else:
        assert torch.equal(ours_says(again), expected)
    for key, linear in model.linears.items():
        there = again.linears[key]
        assert there.how["default"][0] is linear.how["default"][0] and there.how["default"][1] == linear.how["default"][1]
        assert there.adapters["default"].keys() == linear.adapters["default"].keys()
        assert all(torch.equal(there.adapters["default"][k], v) for k, v in linear.adapters["default"].items())


@pytest.mark.parametrize("family, also", [("llama", ["embeddings"]), ("llama", ["head"]), ("llama", ["embeddings", "head"]), ("qwen2", ["head"])])
def test_embeddings_and_head_go_along(peft, folders, tmp_path, family, also):
    """Trained whole beside the adapter they are PEFT's modules_to_save; where the base ties them both names are written."""
    model = open_model(str(folders[family]), method="lora", method_config=small("lora"), also=also, dtype="float32", device="cpu")
    assert model.also
    stir(model.trainable().values(), 0.1)
    folder = adapters.save_adapter(model, tmp_path / "adapter")
    base = transformers_model(folders[family])
    before = theirs_says(base)
    close(ours_says(model), theirs_says(peft.PeftModel.from_pretrained(base, folder).eval()), before)
    again = open_model(str(folders[family]), adapter=folder, dtype="float32", device="cpu")
    assert torch.equal(ours_says(again), ours_says(model)) and again.also == model.also and not again.trainable()
    adapters.train_adapter(again)
    assert again.trainable().keys() == model.trainable().keys()
    beside = open_model(str(folders[family]), codec="none", dtype="float32", device="cpu")
    with pytest.raises(FinloraError, match="embeddings or a head of its own"):
        adapters.attach_adapter(beside, folder)


# -- PEFT to ours ----------------------------------------------------------------------------------------------------

LOADED = [
    ("llama", "plain", {"target_modules": "all-linear"}),
    ("llama", "subset", {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]}),
    ("llama", "rslora", {"target_modules": r".*mlp\.(up|down)_proj", "use_rslora": True}),
    ("llama", "dora", {"target_modules": "all-linear", "use_dora": True, "lora_dropout": 0.1}),
    (
        "llama",
        "patterns",  # the first that matches the end of a name counts; PEFT writes them sorted, so they stand sorted here
        {
            "target_modules": "all-linear",
            "rank_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 5, r"layers\.\d+\.mlp\..*": 2},
            "alpha_pattern": {r"1\.mlp\..*_proj": 4, "down_proj": 20},
        },
    ),
    ("gpt2", "plain", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ("gpt2", "rslora", {"target_modules": ["mlp.c_proj"], "use_rslora": True, "fan_in_fan_out": True}),
    ("gpt2", "dora", {"target_modules": ["c_attn"], "use_dora": True, "rank_pattern": {"h.0.attn.c_attn": 2}, "fan_in_fan_out": True}),
]


@pytest.fixture(scope="module")
def saved_by_peft(peft, folders, tmp_path_factory):
    """make(family, **LoraConfig fields) -> (folder that PEFT saved, its logits, the base's logits)."""

    def make(family, safe=True, **fields):
        torch.manual_seed(0)
        base = transformers_model(folders[family])
        before = theirs_says(base)
        wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **fields)).eval()
        stir(p for name, p in wrapped.named_parameters() if "lora_" in name)
        folder = tmp_path_factory.mktemp("peft") / "adapter"
        wrapped.save_pretrained(folder, safe_serialization=safe)
        return folder, theirs_says(wrapped), before

    return make


@pytest.mark.parametrize("family, name, fields", LOADED, ids=[f"{f}-{n}" for f, n, _ in LOADED])
def test_what_peft_saves_loads_here(saved_by_peft, folders, tmp_path, peft, family, name, fields):
    folder, expected, before = saved_by_peft(family, **fields)
    model = open_model(str(folders[family]), adapter=folder, dtype="float32", device="cpu")
    close(ours_says(model), expected, before)
    # and back again: settings that differ from linear to linear survive the round
    again = adapters.save_adapter(model, tmp_path / "again")
    close(theirs_says(peft.PeftModel.from_pretrained(transformers_model(folders[family]), again).eval()), expected, before)


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"]])
def test_modules_that_peft_saves_whole(peft, folders, saved_by_peft, modules):
    torch.manual_seed(0)
    base = transformers_model(folders["llama"])
    before = theirs_says(base)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=modules)).eval()
    stir(p for p in wrapped.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder)
        model = open_model(str(folders["llama"]), adapter=folder, dtype="float32", device="cpu")
        close(ours_says(model), theirs_says(wrapped), before)
        path = Path(folder) / "adapter_model.safetensors"
        held = load_file(path)
        key = next(k for k in held if "lora_" not in k)
        save_file({k: v[:-1].clone() if k == key else v for k, v in held.items()}, path)
        refuse(folders, folder, "has shape (399, 32)", "(400, 32)")
        save_file({k: v for k, v in held.items() if k != key}, path)
        refuse(folders, folder, "trained whole")


def test_peft_parts_what_the_base_ties(saved_by_peft, folders):
    folder, _, _ = saved_by_peft("qwen2", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    refuse(folders, folder, "apart", family="qwen2")


KINDS = [
    ("llama", "VeraConfig", {"r": 5, "d_initial": 0.3, "target_modules": "all-linear"}),
    ("llama", "VeraConfig", {"r": 5, "save_projection": False, "projection_prng_key": 11, "target_modules": ["q_proj", "down_proj"]}),
    ("gpt2", "VeraConfig", {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ("llama", "HiraConfig", {"r": 5, "target_modules": "all-linear", "rank_pattern": {"layers.0.self_attn.q_proj": 3}}),
    ("gpt2", "HiraConfig", {"r": 5, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ("llama", "MissConfig", {"r": 4, "target_modules": "all-linear"}),
    ("llama", "MissConfig", {"r": 5, "init_weights": "mini", "mini_r": 8, "target_modules": ["up_proj", "q_proj"]}),
    ("llama", "RandLoraConfig", {"r": 5, "randlora_alpha": 9, "target_modules": "all-linear"}),
    ("llama", "RandLoraConfig", {"r": 6, "randlora_alpha": 9, "save_projection": False, "projection_prng_key": 5, "target_modules": ["k_proj", "down_proj"]}),
    ("llama", "RandLoraConfig", {"r": 4, "randlora_alpha": 9, "sparse": True, "target_modules": ["k_proj", "down_proj"]}),
    ("gpt2", "RandLoraConfig", {"r": 4, "randlora_alpha": 9, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("llama", "AdaLoraConfig", {"init_r": 5, "target_r": 3, "lora_alpha": 9, "total_step": 100, "target_modules": "all-linear"}),
    ("gpt2", "AdaLoraConfig", {"init_r": 4, "target_r": 2, "lora_alpha": 9, "total_step": 50, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
]  # fmt: skip


@pytest.mark.parametrize("family, kind, fields", KINDS, ids=[f"{f}-{k}-{n}" for n, (f, k, _) in enumerate(KINDS)])
def test_other_tuners_of_peft_load_here(peft, folders, tmp_path, family, kind, fields):
    torch.manual_seed(0)
    base = transformers_model(folders[family])
    before = theirs_says(base)
    wrapped = peft.get_peft_model(base, getattr(peft, kind)(task_type="CAUSAL_LM", **fields)).eval()
    for _ in range(40):
        stir((p for p in wrapped.parameters() if p.requires_grad), 0.05)
        if float((theirs_says(wrapped) - before).abs().max()) > (3.0 if kind == "AdaLoraConfig" else 1.0):
            break
    if kind == "AdaLoraConfig":  # as its allocation leaves it: some triplets closed, all of one layer's but one
        lora_E = {name: p for name, p in wrapped.named_parameters() if "lora_E" in name}
        pattern = {}
        for k, (name, p) in enumerate(lora_E.items()):
            keep = [(k + j) % 3 > 0 if k else j == 1 for j in range(len(p))]
            p.data[~torch.tensor(keep)] = 0.0
            pattern[name.removeprefix("base_model.model.")] = keep
        wrapped.peft_config["default"].rank_pattern = pattern
    expected = theirs_says(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    model = open_model(str(folders[family]), adapter=tmp_path / "theirs", dtype="float32", device="cpu")
    close(ours_says(model), expected, before)
    again = adapters.save_adapter(model, tmp_path / "again")
    close(theirs_says(peft.PeftModel.from_pretrained(transformers_model(folders[family]), again).eval()), expected, before)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_edit_the_base_come_by_their_conversion(peft, folders, tmp_path, start):
    """PEFT's own conversion to twice the rank over the original base opens here; unconverted, the folder lacks its base."""
    torch.manual_seed(0)
    base = transformers_model(folders["llama"])
    before = theirs_says(base)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=start)).eval()
    wrapped.peft_config["default"].init_lora_weights = True  # as PEFT asks for before the first save
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = start
    stir((p for name, p in wrapped.named_parameters() if "lora_" in name), 0.2)
    expected = theirs_says(wrapped)
    wrapped.save_pretrained(tmp_path / "unconverted")
    refuse(folders, tmp_path / "unconverted", start.split("_")[0], "path_initial_model_for_weight_conversion")
    wrapped.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    model = open_model(str(folders["llama"]), adapter=tmp_path / "converted", dtype="float32", device="cpu")
    assert next(iter(model.linears.values())).how["default"][1].rank == 8
    close(ours_says(model), expected, before, RENEWED)  # largest difference 1.3e-5, of PEFT's own subtraction


def test_lora_that_eva_started(peft, folders, tmp_path):
    """EVA shares ranks out over the model and leaves the base alone: PEFT writes them as a pattern."""
    torch.manual_seed(0)
    base = transformers_model(folders["llama"])
    before = theirs_says(base)
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj", "down_proj"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0))
    wrapped = peft.get_peft_model(base, config).eval()
    data = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in IDS for _ in range(2)]
    peft.initialize_lora_eva_weights(wrapped, data, show_progress_bar=False)
    stir((p for name, p in wrapped.named_parameters() if "lora_" in name), 0.2)
    wrapped.save_pretrained(tmp_path / "eva")
    fields, _ = adapters.read_config(tmp_path / "eva")
    model = open_model(str(folders["llama"]), adapter=tmp_path / "eva", dtype="float32", device="cpu")
    assert fields["rank_pattern"] and len({linear.how["default"][1].rank for linear in model.linears.values() if linear.adapters}) > 1
    close(ours_says(model), theirs_says(wrapped), before)


def test_over_a_quantised_base(saved_by_peft, folders):
    """PEFT's adapter over our nf4 base: the codec is our choice where the folder names none."""
    folder, _, _ = saved_by_peft("llama", target_modules="all-linear")
    plain, nf4 = (open_model(str(folders["llama"]), adapter=folder, codec=codec, dtype="float32", device="cpu") for codec in (None, "nf4"))
    assert {linear.store.codec.name for linear in nf4.linears.values()} == {"nf4"}
    name = "model.layers.0.mlp.up_proj"
    delta = [m.linears[name].merged("default") - m.linears[name].merged(None) for m in (plain, nf4)]
    torch.testing.assert_close(*delta, rtol=0, atol=1e-6)


# -- refused ---------------------------------------------------------------------------------------------------------


def refuse(folders, folder, *words, family="llama"):
    with pytest.raises(FinloraError) as caught:
        open_model(str(folders[family]), adapter=folder, dtype="float32", device="cpu")
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize(
    "word, fields",
    [
        ("modules_to_save", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
        ("bias", {"target_modules": ["q_proj"], "bias": "lora_only"}),
        ("pissa", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
        ("olora", {"target_modules": ["q_proj"], "init_lora_weights": "olora"}),
        ("embed_tokens", {"target_modules": ["embed_tokens"]}),
        ("lm_head", {"target_modules": ["q_proj", "lm_head"]}),
    ],
)
def test_maps_that_we_do_not_have(saved_by_peft, folders, word, fields):
    folder, _, _ = saved_by_peft("llama", **fields)
    refuse(folders, folder, word)


def test_other_kinds(peft, folders, tmp_path):
    wrapped = peft.get_peft_model(transformers_model(folders["llama"]), peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]))
    wrapped.save_pretrained(tmp_path / "ia3")
    refuse(folders, tmp_path / "ia3", "IA3")


@pytest.fixture
def copied(saved_by_peft, tmp_path):
    """A PEFT folder of one's own to break."""
    folder, _, _ = saved_by_peft("llama", target_modules=["q_proj"])
    return shutil.copytree(folder, tmp_path / "copy")


def test_pickled_weights_are_never_read(copied, folders):
    tensors = copied / "adapter_model.safetensors"
    torch.save(load_file(tensors), copied / "adapter_model.bin")
    tensors.unlink()
    refuse(folders, copied, "adapter_model.bin", "safe_serialization")


def test_the_wrong_model(copied, folders, saved_by_peft):
    refuse(folders, copied, "q_proj", "the model it was trained on", family="gpt2")
    wide = load_file(copied / "adapter_model.safetensors")
    save_file({k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in wide.items()}, copied / "adapter_model.safetensors")
    refuse(folders, copied, "q_proj", "(4, 64)", "(4, 32)")


def test_a_tensor_short(copied, folders):
    kept = load_file(copied / "adapter_model.safetensors")
    lost = sorted(k for k in kept if "lora_B" in k)[0]
    save_file({k: v for k, v in kept.items() if k != lost}, copied / "adapter_model.safetensors")
    refuse(folders, copied, "q_proj", "lora_B")
    save_file({}, copied / "adapter_model.safetensors")
    refuse(folders, copied, "no tensor")


def rewrite(folder, **fields):
    """Change fields of adapter_config.json; None drops one."""
    path = folder / "adapter_config.json"
    merged = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps({k: v for k, v in merged.items() if v is not None}), encoding="utf-8")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"r": None}, ["adapter_config.json", "`r`"]),
        ({"r": 0}, ["rank"]),
        ({"r": 5}, ["q_proj", "(5, 32)"]),
        ({"lora_alpha": "much"}, ["adapter_config.json", "much"]),
        ({"peft_type": None}, ["kind"]),
        ({"use_qalora": True}, ["use_qalora"]),
        ({"rank_pattern": {"q_proj": 7}}, ["q_proj", "(7, 32)"]),
        ({"rank_pattern": {"q_proj(": 7}}, ["rank_pattern", "q_proj("]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_settings_that_make_no_sense(copied, folders, fields, words):
    rewrite(copied, **fields)
    refuse(folders, copied, *words)


def test_not_an_adapter(copied, folders, tmp_path):
    refuse(folders, tmp_path / "nowhere", "nowhere")
    refuse(folders, folders["llama"], "adapter_config.json")
    for text in ("{", "[]", '"LORA"'):
        (copied / "adapter_config.json").write_text(text, encoding="utf-8")
        refuse(folders, copied, "adapter_config.json")
    shutil.copy(folders["llama"] / "config.json", copied / "adapter_config.json")
    (copied / "adapter_model.safetensors").write_bytes(b"\x10\x00")
    refuse(folders, copied, "kind")


def test_a_damaged_tensor_file(copied, folders):
    path = copied / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(folders, copied, "adapter_model.safetensors", "not a readable safetensors file")


def test_values_that_are_no_numbers(copied, folders):
    path = copied / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    refuse(folders, copied, "q_proj", "finite")
