"""bitsandbytes' pre-quantised checkpoints both ways, against bitsandbytes itself and transformers' loader of them.

Reading: a weight that bitsandbytes quantised decodes here to the very numbers it gives. Writing: what `export bnb` writes
transformers opens with bitsandbytes, with the logits of our own store.
"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finlora import adapters, bnb, export
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.linear import Store
from finlora.model import hidden, logits, open_model, save
from finlora.registry import pick
from finlora.text import Tokens

IDS = [[5 + (7 * k * k + 3 * row) % 390 for k in range(14)] for row in range(3)]
CODECS = ("nf4", "nf4_dq", "fp4", "int8")


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    """Inputs of 64 and 128: bitsandbytes' CPU kernel takes rows of whole blocks alone."""
    wide = {"hidden_size": 64, "intermediate_size": 128}
    out = {}
    for family, sizes in (("llama", wide), ("gpt2", {"n_embd": 64}), ("qwen2", wide)):
        out[family] = tmp_path_factory.mktemp("models") / family
        save(make_model(family, **sizes), out[family])
    return out


@torch.no_grad()
def says(model):
    if not hasattr(model, "route"):
        # bitsandbytes' CPU kernel for evaluation computes in bfloat16; in training mode it decodes and multiplies in float32
        return model.train()(torch.tensor(IDS)).logits
    return logits(model, hidden(model, collate([[Tokens((*ids, 0), (1.0,) * (len(ids) + 1))] for ids in IDS])))


def read_back(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **options).eval()


def quantised(theirs, kind, nested, block, shape, storage=torch.uint8):
    """A weight as bitsandbytes serialises it, and as it decodes it."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(block))
    codes, state = theirs.functional.quantize_4bit(W, blocksize=block, quant_type=kind, compress_statistics=nested, quant_storage=storage)
    tensors = {"l.weight": codes, **{f"l.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    return tensors, theirs.functional.dequantize_4bit(codes, state)


# its CPU kernel decodes rows of broken blocks wrongly where they are even (48 x 64 in blocks of 128: error 0.166, ours 0.096)
@pytest.mark.parametrize("shape", [(48, 128), (33, 99), (300, 129)])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_decode_to_the_same_numbers(theirs, kind, nested, block, shape):
    tensors, W = quantised(theirs, kind, nested, block, shape)
    assert bnb.kind(tensors, "l") == kind and len(bnb.suffixes(tensors, "l")) == len(tensors)
    name, config, ours, found = bnb.read(tensors.__getitem__, "l")
    assert found == shape and config.block == block
    store = Store.of(pick("codec", name), config, ours, found, torch.float32)
    torch.testing.assert_close(store.dense(), W, rtol=2e-7, atol=0)  # nested absmax: one rounding, else equal to the bit
    if not nested:
        assert torch.equal(store.dense(), W)
    # and back: the same bytes, where we keep the form (a nested fp4 is kept with its absmax decoded)
    again = {f"l.{k}": v for k, v in bnb.write(store.codec, config, ours, found, torch.float32).items()}
    if not (nested and kind == "fp4"):
        assert again.keys() == tensors.keys()
        for key, value in tensors.items():
            if "quant_state" in key:
                assert json.loads(bytes(again[key].tolist())) == json.loads(bytes(value.tolist()))
            else:
                assert again[key].dtype == value.dtype and again[key].shape == value.shape
                torch.testing.assert_close(again[key], value, rtol=0, atol=1e-7 if "map" in key else 0)


def test_wider_storage_and_int8(theirs):
    tensors, W = quantised(theirs, "nf4", False, 64, (48, 64), torch.bfloat16)
    assert tensors["l.weight"].dtype == torch.bfloat16
    name, config, ours, shape = bnb.read(tensors.__getitem__, "l")
    assert torch.equal(Store.of(pick("codec", name), config, ours, shape, torch.float32).dense(), W)
    W = torch.randn(48, 64)
    codes, maxima, _ = theirs.functional.int8_vectorwise_quant(W)
    eight = {"l.weight": codes, "l.SCB": maxima, "l.weight_format": torch.tensor(0, dtype=torch.uint8)}
    assert bnb.kind(eight, "l") == "int8"
    name, config, ours, shape = bnb.read(eight.__getitem__, "l")
    back = theirs.functional.int8_vectorwise_dequant(codes, maxima)
    torch.testing.assert_close(Store.of(pick("codec", name), config, ours, shape, torch.float32).dense(), back, rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    "broken, words",
    [
        (lambda t: t.pop("l.weight.absmax"), "lacks its absmax"),
        (lambda t: t.pop("l.weight.nested_absmax"), "lacks its nested absmax"),
        (lambda t: t.pop("l.weight.quant_state.bitsandbytes__nf4"), "no quant_state"),
        (lambda t: t.pop("l.weight"), "has no weight"),
        (lambda t: t.update({"l.weight": t["l.weight"][:-5]}), "do not fit a weight of shape"),
        (lambda t: t.update({"l.weight.quant_map": t["l.weight.quant_map"] + 0.1}), "table of 16 values"),
        (lambda t: t.update({"l.weight.quant_state.bitsandbytes__nf4": torch.tensor([123, 5], dtype=torch.uint8)}), "quant_state is damaged"),
    ],
)
def test_damaged(theirs, broken, words):
    tensors, _ = quantised(theirs, "nf4", True, 64, (33, 99))
    broken(tensors)
    with pytest.raises(FinloraError, match=words) as caught:
        bnb.read(tensors.__getitem__, "l")
    assert caught.value.hint and "\n" not in str(caught.value)


def test_from_a_file(theirs, tmp_path):
    """A tensor that a safetensors file lacks is one that is absent, not a crash."""
    tensors, W = quantised(theirs, "fp4", True, 64, (48, 64))
    save_file(tensors, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        name, config, ours, shape = bnb.read(file.get_tensor, "l")
    torch.testing.assert_close(Store.of(pick("codec", name), config, ours, shape, torch.float32).dense(), W, rtol=2e-7, atol=0)


def test_other_codecs_are_refused():
    with pytest.raises(FinloraError, match="no form for codec `int4`"):
        bnb.check(pick("codec", "int4"))


# transformers with bitsandbytes against our own store, fp32, three families: four bits equal to the bit, int8 within 6e-6
CLOSE = {"nf4": 1e-6, "nf4_dq": 1e-6, "fp4": 1e-6, "int8": 2e-5}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("codec", CODECS)
def test_what_we_write_transformers_opens(theirs, folders, tmp_path, family, codec):
    out = export.bnb(folders[family], tmp_path / "bnb", codec=codec, device="cpu", shard_size="40KB")
    model = open_model(str(folders[family]), codec=codec, dtype="float32", device="cpu")
    back = read_back(out)
    kinds = {type(m).__name__ for name, m in back.named_modules() if name in model.linears}
    assert kinds == {"Linear8bitLt" if codec == "int8" else "Linear4bit"}
    plain = says(open_model(str(folders[family]), dtype="float32", device="cpu"))
    assert float((says(model) - plain).abs().max()) > 0.1, "the codec changes nothing: this comparison would prove nothing"
    torch.testing.assert_close(says(back), says(model), rtol=0, atol=CLOSE[codec])


@pytest.mark.parametrize("method, codec", [("lora", "nf4"), ("pissa", "nf4_dq"), ("dora", "fp4"), ("miss", "nf4")])
def test_the_adapter_beside_it(theirs, folders, tmp_path, method, codec):
    """The quantised weights as they were trained over, an edit included, and the adapter on top: the trained model again."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = pick("method", method).config(rank=4)
    model = open_model(str(folders["llama"]), method=method, method_config=settings, codec=codec, dtype="float32", device="cpu")
    before = says(model)
    with torch.no_grad():
        for k, p in enumerate(model.trainable().values()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    adapters.save_adapter(model, tmp_path / "trained")
    out = export.bnb(tmp_path / "trained", tmp_path / "bnb", device="cpu")
    back = peft.PeftModel.from_pretrained(read_back(out), out / "adapter").eval()
    assert float((says(model) - before).abs().max()) > 1.0
    torch.testing.assert_close(says(back), says(model), rtol=0, atol=2e-5)  # 8.8e-6 for dora, 0 for the others


@pytest.mark.parametrize("codec", CODECS)
def test_what_transformers_writes_opens_here(theirs, folders, tmp_path, codec):
    """A checkpoint that transformers quantised and saved: straight into our stores, its codes untouched."""
    from transformers import BitsAndBytesConfig

    if codec == "int8":
        asked = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=codec[:3], bnb_4bit_use_double_quant=codec.endswith("dq"), bnb_4bit_compute_dtype=torch.float32)
    back = read_back(folders["llama"], quantization_config=asked)
    back.save_pretrained(tmp_path / "quantised")
    open_model(str(folders["llama"]), dtype="float32", device="cpu").tokenizer.save_pretrained(tmp_path / "quantised")
    model = open_model(str(tmp_path / "quantised"), dtype="float32", device="cpu")
    assert {linear.store.codec.name for linear in model.linears.values()} == {codec}
    file = load_file(tmp_path / "quantised" / "model.safetensors")
    key = "model.layers.1.mlp.down_proj"
    assert torch.equal(model.linears[key].store.codes.reshape(-1), file[f"{key}.weight"].reshape(-1))
    torch.testing.assert_close(says(model), says(back), rtol=0, atol=CLOSE[codec])
