"""Exports: what is written holds the model as it was trained, is read back by transformers, and overwrites nothing.

Models are toys with large weights (see conftest); logits reach 5. Every comparison goes with one that shows the adapter to matter.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from finlora import adapters, export
from finlora.cli import main
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.export.factors import of_dense, shorter
from finlora.model import hidden, logits, open_model, save
from finlora.registry import names, pick
from finlora.seam import Stats
from finlora.text import Tokens
from finlora.wiring import find_linears, shape_of

IDS = [[5 + (7 * k * k + 3 * row) % 390 for k in range(14)] for row in range(3)]
METHODS = [name for name in names("method") if not pick("method", name).trains_base]
# fp32, every method over none and nf4, ours as trained against transformers on the merged folder, and as plain LoRA: the
# largest difference of a case is 4.5e-6 in the mean of 63 cases, 1.2e-5 at most (corda, whose factors are largest)
CLOSE = 2.5e-5


@torch.no_grad()
def says(model):
    if not hasattr(model, "route"):
        return model(torch.tensor(IDS)).logits
    return logits(model, hidden(model, collate([[Tokens((*ids, 0), (1.0,) * (len(ids) + 1))] for ids in IDS])))


def stir(parameters, by=0.1):
    with torch.no_grad():
        for k, p in enumerate(parameters):
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    out = {}
    for family in ("llama", "gpt2", "qwen2"):
        out[family] = tmp_path_factory.mktemp("models") / family
        save(make_model(family), out[family])
    return out


def read_back(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def seen(folder):
    out = {}
    for k, (name, module) in enumerate(find_linears(read_back(folder)).items()):
        O, I = shape_of(module)
        g = torch.Generator().manual_seed(k)
        x = torch.randn(3 * I, I, generator=g)
        out[name] = Stats(x.T @ x / len(x), torch.randn(O, I, generator=g) / I, len(x))
    return out


def tuned(folder, method, out, codec="none", **config):
    """An adapter's folder and the model as it was trained."""
    kind = pick("method", method).config
    wanted = {"rank": 4, "alpha": 9.0, **config}
    settings = kind(**{k: v for k, v in wanted.items() if k in kind.__dataclass_fields__})
    model = open_model(str(folder), method=method, method_config=settings, codec=codec, stats=seen(folder), dtype="float32", device="cpu")
    before = says(read_back(folder))
    for _ in range(8):
        stir(model.trainable().values())
        if float((says(model) - before).abs().max()) > 1.0:
            return adapters.save_adapter(model, out), model
    pytest.fail(f"{method} does not move the base")


@pytest.mark.parametrize("codec", ["none", "nf4"])
@pytest.mark.parametrize("method", METHODS)
def test_merged_is_the_model_as_trained(folders, tmp_path, method, codec):
    if codec != "none" and pick("method", method).over != "any":
        pytest.skip("over a lossless base only")
    adapter, model = tuned(folders["llama"], method, tmp_path / "adapter", codec)
    out = export.merged(adapter, tmp_path / "merged", dtype="float32", device="cpu")
    torch.testing.assert_close(says(read_back(out)), says(model), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_merged_of_other_families(folders, tmp_path, family):
    """Conv1D keeps (in, out); tied embeddings stay tied and are written once."""
    adapter, model = tuned(folders[family], "lora", tmp_path / "adapter", "nf4")
    out = export.merged(adapter, tmp_path / "merged", dtype="float32", device="cpu", shard_size="20KB")
    shards = sorted(p.name for p in out.glob("*.safetensors"))
    assert len(shards) > 2 and (out / "model.safetensors.index.json").is_file()
    assert not any("lm_head" in key for p in out.glob("*.safetensors") for key in load_file(p))
    torch.testing.assert_close(says(read_back(out)), says(model), rtol=0, atol=CLOSE)


def test_into_the_original_weights(folders, tmp_path):
    """dequantised carries the codec's error along, original leaves it out: the two differ by just that."""
    adapter, model = tuned(folders["llama"], "lora", tmp_path / "adapter", "nf4")
    stored, original = (export.merged(adapter, tmp_path / base, dtype="float32", base=base, device="cpu") for base in export.BASES)
    key = "model.layers.0.mlp.up_proj.weight"
    W, a, b = (load_file(folder / "model.safetensors")[key] for folder in (folders["llama"], stored, original))
    linear = model.linears[key.removesuffix(".weight")]
    torch.testing.assert_close(b - W, linear.merged("default") - linear.merged(None), rtol=0, atol=1e-6)
    torch.testing.assert_close(a - b, linear.merged(None) - W, rtol=0, atol=1e-6)
    assert float((a - b).norm() / W.norm()) > 0.05


def test_rounded_once(folders, tmp_path):
    adapter, model = tuned(folders["llama"], "lora", tmp_path / "adapter", "nf4")
    out = export.merged(adapter, tmp_path / "half", dtype="bfloat16", device="cpu")
    held = load_file(out / "model.safetensors")
    assert {t.dtype for t in held.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    for name, linear in model.linears.items():
        assert torch.equal(held[f"{name}.weight"], linear.merged("default").to(torch.bfloat16))


def test_what_float16_cannot_hold(folders, tmp_path, make_model):
    big = make_model("llama")
    with torch.no_grad():
        big.body.model.norm.weight.fill_(1e6)
    save(big, tmp_path / "big")
    with pytest.raises(FinloraError, match="model.norm.weight holds values that float16 cannot, up to 1e"):
        export.merged(tmp_path / "big", tmp_path / "out", dtype="float16", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", METHODS)
def test_as_plain_lora(folders, tmp_path, method):
    """What PEFT is given opens here, through PEFT's format alone, and is the adapter over the original weights."""
    record = pick("method", method)
    adapter, model = tuned(folders["llama"], method, tmp_path / "adapter")
    if record.to_lora is None and record.peft is None:
        with pytest.raises(FinloraError, match="--rank"):
            export.peft(adapter, tmp_path / "peft", device="cpu")
        return
    out = export.peft(adapter, tmp_path / "peft", device="cpu")
    assert not (out / "finlora.json").exists()
    fields, _ = adapters.read_config(out)
    assert fields["peft_type"] == "LORA" or record.to_lora is None
    again = open_model(str(folders["llama"]), adapter=out, dtype="float32", device="cpu")
    torch.testing.assert_close(says(again), says(model), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("method", ["lora", "pissa", "hira"])
def test_cut_to_a_rank(folders, tmp_path, method):
    """The change of every linear is its best approximation of that rank, and the card says what is lost."""
    adapter, model = tuned(folders["llama"], method, tmp_path / "adapter", rank=6)
    out = export.peft(adapter, tmp_path / "cut", rank=2, device="cpu")
    again = open_model(str(folders["llama"]), adapter=out, dtype="float32", device="cpu")
    original = open_model(str(folders["llama"]), dtype="float32", codec="none", device="cpu")
    errors = []
    for name, linear in model.linears.items():
        W = original.linears[name].merged(None)
        full, cut = linear.merged("default") - W, again.linears[name].merged("default") - W
        best = torch.linalg.svdvals(full.double())
        assert again.linears[name].how["default"][1].rank == 2
        errors.append(float((full - cut).norm() / full.norm()))
        assert errors[-1] == pytest.approx(float(best[2:].norm() / best.norm()), abs=1e-5)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{100 * sum(errors) / len(errors):.2f}% is left out in the mean" in card and f"{100 * max(errors):.2f}% at most" in card


def test_the_two_ways_to_cut_agree():
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(6, 20, generator=g), torch.randn(30, 6, generator=g)
    for rank in (1, 3, 6, 9):
        a, b, s, error = shorter(A, B, 0.5, rank)
        c, d, t, same = of_dense(0.5 * B @ A, rank)
        torch.testing.assert_close(s * b @ a, t * d @ c, rtol=0, atol=1e-5)
        assert error == pytest.approx(same, abs=1e-6) and (error == 0) == (rank >= 6)


def test_a_whole_model_and_a_model_without_adapter(folders, tmp_path):
    model = open_model(str(folders["llama"]), dtype="float32", device="cpu")
    out = export.merged(folders["llama"], tmp_path / "copy", dtype="float32", device="cpu")
    assert torch.equal(says(read_back(out)), says(read_back(folders["llama"])))
    torch.testing.assert_close(says(model), says(read_back(out)), rtol=0, atol=CLOSE)
    with pytest.raises(FinloraError, match="holds no adapter"):
        export.peft(folders["llama"], tmp_path / "peft", device="cpu")


def test_the_card(folders, tmp_path):
    """Of a run: what it was trained on, and its fidelity where that was measured."""
    adapter, _ = tuned(folders["llama"], "lora", tmp_path / "run" / "adapter", "nf4")
    spec = f'[run]\nout = "run"\n[model]\nname = "{folders["llama"]}"\n[codec]\nkind = "nf4"\n[data]\ntasks = ["tone"]\n'
    (tmp_path / "run" / "spec.toml").write_text(spec, encoding="utf-8")
    accuracy = {"accuracy": {"value": 0.9, "low": 0.8, "high": 1.0}}
    rows = [{"state": "as trained", "kl": 0.0, "top1": 1.0, "tasks": {"tone": accuracy}, "warning": ""},
            {"state": "int2", "kl": 0.5, "top1": 0.25, "tasks": {"tone": accuracy}, "warning": "tone falls"}]  # fmt: skip
    (tmp_path / "run" / "fidelity.json").write_text(json.dumps({"table": rows}), encoding="utf-8")
    card = (export.merged(tmp_path / "run", tmp_path / "out", device="cpu") / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"---\nlibrary_name: transformers\nbase_model: {folders['llama']}\n")
    for said in ("| method | lora |", "| codec of the base | nf4 |", "| trained on | tone |", "folded into the dequantised weights in float32",
                 "| int2 | 5.00e-01 | 25.00% | 90.0 |", "warning: int2: tone falls"):  # fmt: skip
        assert said in card, said


def test_the_card_of_an_adapter_says_over_what_it_is_exact(folders, tmp_path):
    said = {}
    for method in ("lora", "pissa"):
        adapter, _ = tuned(folders["llama"], method, tmp_path / method, "nf4")
        said[method] = (export.peft(adapter, tmp_path / f"{method}-peft", device="cpu") / "README.md").read_text(encoding="utf-8")
    assert "Exactly the adapter" in said["lora"] and "trained over `nf4` weights" in said["lora"]
    assert "Exactly the adapter" not in said["pissa"] and "without the rounding" in said["pissa"]


def test_nothing_is_overwritten(folders, tmp_path):
    adapter, _ = tuned(folders["llama"], "lora", tmp_path / "adapter", "nf4")
    (tmp_path / "out").mkdir()
    for make in (export.merged, export.peft, export.bnb):
        with pytest.raises(FinloraError, match="exists already"):
            make(adapter, tmp_path / "out", device="cpu")
    assert not list((tmp_path / "out").iterdir()) and sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "out"]


def test_command_line(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuned(folders["llama"], "lora", tmp_path / "adapter", "nf4")
    assert main(["export", "merged", "adapter", "--out", "merged", "--dtype", "float16", "--shard-size", "50KB", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == "merged"
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert main(["export", "peft", "adapter", "-o", "peft", "--rank", "2", "--device", "cpu"]) == 0
    for argv, said in (
        (["export", "gguf", "adapter", "-o", "x"], "no form named `gguf`"),
        (["export", "peft", "adapter", "-o", "x", "--dtype", "float16"], "--dtype has no effect on `export peft`"),
        (["export", "peft", "adapter", "-o", "x", "--rank", "0"], "--rank must be at least 1"),
        (["export", "merged", "adapter", "-o", "x", "--shard-size", "lots"], "--shard-size must be a number and KB, MB or GB"),
        (["export", "merged", "adapter", "-o", "x", "--dtype", "int8"], "--dtype must be one of"),
        (["export", "merged", "adapter", "-o", "x", "--base", "orignal"], "did you mean `original`"),
        (["export", "merged", ".", "-o", "x"], "is no run, no adapter and no model"),
        (["export", "merged", "nowhere/at/all", "-o", "x"], "no folder"),
        (["export", "bnb", "adapter", "-o", "x", "--codec", "int3"], "bitsandbytes has no form for codec `int3`"),
    ):
        capsys.readouterr()
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert said in error and "(hint: " in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "x").exists()
