"""Structured models as folders: what is trained is what opens again, under codecs, adapters over products and over factors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from finlora import export, restructure, wiring
from finlora import model as models
from finlora.adapters import save_adapter
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.registry import names, pick
from finlora.structured import ALPHA, GUIDE, Guided, fade, guided
from finlora.text import Tokens
from finlora.train import step

SHAPES = {
    "llama": {"family": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True},
    "gpt2": {"family": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip
ROW = collate([[Tokens(list(range(5, 29)), [1.0] * 24, "a")]])


class Part:
    """What a spec's [structure] asks for."""

    targets, patterns, keep, compression, guided, rounded = "all-linear", {}, 0.5, 0.0, 0.0, ""

    def __init__(self, **changes):
        vars(self).update(changes)


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(models.locate(models.BASE))


def fresh(tokenizer, family="llama", structure="lowrank", **part):
    model = models.new_model(SHAPES[family], tokenizer, 0, dtype="float32", device="cpu").requires_grad_(True)
    record = pick("structure", structure)
    plan = restructure.planned(model.body, Part(**part), (record, record.config()))
    return restructure.put(model, plan, 0).eval()


@torch.no_grad()
def out(model):
    return models.hidden(model.eval(), ROW)


def opened(folder, **how):
    return models.open_model(str(folder), dtype="float32", device="cpu", **how)


@pytest.mark.parametrize("structure", [name for name in names("structure") if name != "dense"])
@pytest.mark.parametrize("family", SHAPES)
def test_what_was_trained_is_what_opens_again(structure, family, tokenizer, tmp_path):
    model = fresh(tokenizer, family, structure)
    for p in model.trainable().values():  # biases and norms as well
        p.data.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    models.save(model, tmp_path / "m")
    again = opened(tmp_path / "m")
    assert torch.equal(out(again), out(model))
    assert set(again.structured) == set(model.structured) and not again.trainable()
    if pick("structure", structure).dense is None:
        with pytest.raises(FinloraError, match="not one linear map"):
            models.save(again, tmp_path / "d", dense=True)
        return
    models.save(again, tmp_path / "d", dense=True)
    # measured: at most 2.4e-6 over these structures and families; values are of size 1
    assert (out(opened(tmp_path / "d")) - out(model)).abs().max() < 1e-5


@pytest.mark.parametrize("codec", ["int8", "nf4"])
def test_factors_are_kept_by_codecs_and_written_as_they_are_kept(codec, tokenizer, tmp_path):
    model = fresh(tokenizer)
    models.save(model, tmp_path / "m")
    kept = opened(tmp_path / "m", codec=codec)
    assert 0 < (out(kept) - out(model)).abs().max() < 2
    bits = models.bits_per_weight(kept)
    assert bits < 12
    models.save(kept, tmp_path / "q")
    again = opened(tmp_path / "q")
    assert torch.equal(out(again), out(kept)) and models.bits_per_weight(again) == bits
    with pytest.raises(FinloraError, match="stored as"):
        opened(tmp_path / "q", codec="fp8")


def test_a_low_rank_model_is_exported_encoded(tokenizer, tmp_path, capsys):
    from finlora.cli import main

    models.save(fresh(tokenizer, "gpt2"), tmp_path / "m")
    argv = ["export", "encoded", str(tmp_path / "m"), "-o", str(tmp_path / "e"), "--device", "cpu"]
    for wrong, wanted in (([*argv, "--codec", "none"], "keeps numbers as they are"), (argv, "keeps numbers as they are"), ([*argv, "--codec", "int8", "--dtype", "float16"], "--dtype has no effect")):
        assert main(wrong) == 2 and wanted in capsys.readouterr().err and not (tmp_path / "e").exists()
    assert main([*argv, "--codec", "int8"]) == 0
    again = opened(tmp_path / "e")
    assert torch.equal(out(again), out(opened(tmp_path / "m", codec="int8"))) and not torch.equal(out(again), out(opened(tmp_path / "m")))
    sizes = [(tmp_path / name / "structured.safetensors").stat().st_size for name in "me"]
    inside = sum(linear.store.size for linear in again.linears.values())
    assert sizes[0] - sizes[1] > 2 * inside, "four bytes a number became one, and scales"
    assert "factors are kept as | int8" in (tmp_path / "e" / "README.md").read_text()
    assert main(["export", "encoded", str(tmp_path / "e"), "-o", str(tmp_path / "again"), "--device", "cpu"]) == 0
    assert torch.equal(out(opened(tmp_path / "again")), out(again))
    assert main([*argv, "--codec", "int8"]) == 2 and "exists already" in capsys.readouterr().err
    models.save(opened(tmp_path / "m"), tmp_path / "d", dense=True)
    assert main(["export", "encoded", str(tmp_path / "d"), "-o", str(tmp_path / "x"), "--codec", "int8"]) == 2 and "no linears of two factors" in capsys.readouterr().err


def test_adapters_over_the_product_and_over_the_factors(tokenizer, tmp_path):
    model = fresh(tokenizer)
    models.save(model, tmp_path / "m")
    base = out(model)
    for factors in (False, True):
        tuned = opened(tmp_path / "m", method="lora", method_config=pick("method", "lora").config(rank=2), factors=factors)
        assert torch.equal(out(tuned), base)  # an adapter starts at the base
        assert all(name.endswith((".A", ".B")) == factors for name in tuned.linears)
        for name, p in tuned.trainable().items():
            p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
        moved = out(tuned)
        assert (moved - base).abs().max() > 0.01
        save_adapter(tuned, tmp_path / f"a{factors}")
        assert torch.equal(out(opened(tmp_path / "m", adapter=tmp_path / f"a{factors}")), moved)
        if factors:  # folded into the factors the model keeps its rank
            models.save(tuned, tmp_path / "f")
            assert (out(opened(tmp_path / "f")) - moved).abs().max() < 1e-5
            assert json.loads((tmp_path / "f/structure.json").read_text()) == json.loads((tmp_path / "m/structure.json").read_text())
            with pytest.raises(FinloraError, match="over the factors of a structured model"):
                export.peft(tmp_path / "aTrue", tmp_path / "peft", model=str(tmp_path / "m"))
        else:
            with pytest.raises(FinloraError, match="over the product"):
                models.save(tuned, tmp_path / "f")


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("factors", [False, True])
def test_an_adapter_over_a_structured_base_is_written_dense_for_other_tools(family, factors, tokenizer, tmp_path):
    import transformers

    from finlora.export import bnb, merged

    models.save(fresh(tokenizer, family), tmp_path / "m")
    lora = pick("method", "lora").config(rank=2)
    tuned = opened(tmp_path / "m", method="lora", method_config=lora, factors=factors)
    for name, p in tuned.trainable().items():
        p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(tuned, tmp_path / "a")
    models.save(tuned, tmp_path / "d", dense=True)
    merged(tmp_path / "a", tmp_path / "e", dtype="float32", model=str(tmp_path / "m"))
    for folder in ("d", "e"):
        assert (out(opened(tmp_path / folder)) - out(tuned)).abs().max() < 2e-5
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32).base_model
        assert (theirs(input_ids=ROW.ids).last_hidden_state - out(tuned)).abs().max() < 2e-5
    with pytest.raises(FinloraError, match="two factors"):
        bnb(tmp_path / "a", tmp_path / "b", codec="nf4", model=str(tmp_path / "m"))


def test_methods_that_would_edit_the_product_are_refused_and_full_trains_the_factors(tokenizer, tmp_path):
    model = fresh(tokenizer)
    models.save(model, tmp_path / "m")
    with pytest.raises(FinloraError, match="kept as `lowrank` factors"):
        opened(tmp_path / "m", method="pissa")
    tuned = opened(tmp_path / "m", method="full")
    assert torch.equal(out(tuned), out(model))
    shapes = {tuple(p.shape) for name, p in tuned.trainable().items() if ".adapters." in name}
    assert shapes == {tuple(p.shape) for name, p in model.trainable().items() if ".adapters." in name}
    models.save(tuned, tmp_path / "t")
    assert torch.equal(out(opened(tmp_path / "t")), out(tuned))


def test_a_guide_fades_out_and_leaves_the_structure_alone(tokenizer, tmp_path):
    assert [round(fade(k, 10, 0.5), 3) for k in (0, 2, 5, 9)] == [1.0, 0.655, 0.0, 0.0]
    lone = pick("structure", "lowrank")
    model, bare = fresh(tokenizer, guided=0.5), fresh(tokenizer)
    assert (out(model) - out(bare)).abs().max() < 1e-5  # the guide begins as the product
    linear = next(iter(model.linears.values()))
    params, cfg = linear.adapters["default"], linear.how["default"][1]
    assert isinstance(cfg, Guided) and linear.how["default"][0].name == "lowrank"
    step(model, [ROW])
    assert params[GUIDE].grad.abs().max() > 0 and not params["B"].grad.any()  # at first the guide alone learns
    wiring.tend(model, "default", 1, 10)
    step(model, [ROW])
    assert 0 < float(params[ALPHA]) < 1 and params["B"].grad.abs().max() > 0
    with pytest.raises(FinloraError, match="had not|had faded"):
        models.save(model, tmp_path / "early")
    wiring.tend(model, "default", 4, 10)
    assert float(params[ALPHA]) == 0.0
    x = torch.randn(3, linear.in_features)
    inner = {key: p for key, p in params.items() if key in ("A", "B")}
    assert torch.equal(guided(lone).apply(cfg, params, x), lone.apply(cfg.inner, inner, x))
    models.save(model, tmp_path / "m")
    assert torch.equal(out(opened(tmp_path / "m")), out(model))


def test_beside_a_guide_a_structure_keeps_its_rates_its_decay_and_its_balancing():
    lone, draw = pick("structure", "lowrank"), torch.Generator().manual_seed(0)
    cfg, both = Guided(lone.config(rank=4, frobenius=0.1, lr_scale="fan_in", refactor=2), 0.5), guided(lone)
    params = both.init(cfg, 80, 48, 0.05, draw)
    assert both.groups(cfg, params) == {"A": 0.5, "B": 10.0, GUIDE: 1.0, ALPHA: 1.0}
    for p in params.values():
        p.grad = torch.zeros_like(p)
    both.tend([(cfg, params)], 0, 10)
    A, B = params["A"], params["B"]
    torch.testing.assert_close(A.grad, 0.1 * B.t() @ B @ A)
    assert not params[GUIDE].grad.any() and params[ALPHA] == fade(1, 10, 0.5)
    assert both.refresh(cfg, params, 3, 10, draw) is None
    after = both.refresh(cfg, params, 2, 10, draw)
    assert not torch.equal(after["A"], A) and after[GUIDE] is params[GUIDE] and after[ALPHA] is params[ALPHA]


def test_a_guide_is_not_counted_among_trained_values(tokenizer):
    bare = fresh(tokenizer)
    assert restructure.trained_values(bare) == sum(p.numel() for p in bare.trainable().values()) == restructure.trained_values(fresh(tokenizer, guided=0.5))


def test_a_guide_of_what_is_not_linear_is_drawn_as_a_dense_weight():
    record = pick("structure", "cola")
    W = guided(record).init(Guided(record.config(rank=4), 0.5), 80, 48, 0.05, torch.Generator().manual_seed(0))[GUIDE]
    assert W.shape == (48, 80) and float(W.std()) == pytest.approx(0.05, rel=0.05)  # 3840 draws: met to 1.1 %


@pytest.mark.parametrize("guided_share", [0.0, 0.5])
def test_trained_as_it_will_be_kept_the_model_is_what_the_codec_gives(guided_share, tokenizer, tmp_path):
    model = fresh(tokenizer, rounded="int8", guided=guided_share)
    if guided_share:
        wiring.tend(model, "default", 9, 10)
    assert (out(model) - out(fresh(tokenizer))).abs().max() > 1e-3  # rounding shows
    step(model, [ROW])
    linear = next(iter(model.linears.values()))
    assert linear.adapters["default"]["A"].grad.abs().max() > 0
    models.save(model, tmp_path / "m")
    assert (out(opened(tmp_path / "m", codec="int8")) - out(model)).abs().max() < 1e-5


def test_structures_begin_by_seed_and_name_at_the_size_of_the_weight(tokenizer):
    record = pick("structure", "dense")

    def begun(seed):
        model = models.new_model(SHAPES["gpt2"], tokenizer, 0, dtype="float32", device="cpu")
        restructure.put(model, restructure.plan(record, record.config(), {n: s for n, s in restructure.shapes_of(model.body).items() if "attn" in n}), seed)
        return {name: linear.adapters["default"]["W"].detach() for name, linear in model.linears.items()}

    one, same, other = begun(0), begun(0), begun(1)
    assert all(torch.equal(one[n], same[n]) and not torch.equal(one[n], other[n]) for n in one)
    first, second = (one[f"transformer.h.{k}.attn.c_attn"] for k in (0, 1))
    assert not torch.equal(first.sign(), second.sign()), "the same draws at another size"
    for name, size in (("c_attn", 0.02), ("c_proj", 0.01)):  # GPT-2 draws what closes a residual branch of 2 layers at half the size
        assert float(one[f"transformer.h.0.attn.{name}"].std()) == pytest.approx(size, rel=0.1)


def test_a_plan_hits_its_target(tokenizer):
    body = models.outline({"family": "gpt2", "size": "127m"}, 50257)
    record, full = pick("structure", "lowrank"), sum(p.numel() for p in body.parameters())
    assert full == 124_439_808
    shapes = restructure.shapes_of(body)
    inside = sum(o * i for o, i in shapes.values())

    def size(**part):
        plan = restructure.planned(body, Part(**{"keep": 0.0, **part}), (record, record.config()))
        return plan, full - inside + sum(s.count(c, shapes[n][1], shapes[n][0]) for n, (s, c) in plan.items())

    plan, n = size(compression=2.64)
    assert 0.998 < full / n / 2.64 < 1.002 and n <= full / 2.64
    assert plan["transformer.h.0.mlp.c_fc"][1].rank == 55
    plan, n = size(keep=0.3, patterns={"c_attn": {"keep": 0.6}})
    assert plan["transformer.h.0.attn.c_attn"][1].rank == int(0.6 * 768 * 2304 / (768 + 2304))
    plan, n = size(keep=0.3, patterns={"c_attn": {"rank": 5}})
    assert plan["transformer.h.0.attn.c_attn"][1].rank == 5 and plan["transformer.h.0.mlp.c_fc"][1].rank > 5
    plan, n = size(compression=2.64, patterns={"c_attn": {"rank": 5}})
    assert plan["transformer.h.0.attn.c_attn"][1].rank == 5 and 0.99 < full / n / 2.64 < 1.01
    with pytest.raises(FinloraError, match="structure.patterns of `c_attn` sets keep and rank"):
        size(keep=0.5, patterns={"c_attn": {"keep": 0.5, "rank": 5}})
    with pytest.raises(FinloraError, match="cannot be reached: 39,505,152 of 124,439,808") as caught:
        size(compression=9)
    assert "at most 3.14" in str(caught.value)
    with pytest.raises(FinloraError, match="names no linear"):
        size(keep=0.5, patterns={"nothing": {"keep": 0.1}})
    for share in (0, 5, "half", True):
        with pytest.raises(FinloraError, match="structure.patterns of `c_attn`: keep must be above 0 and at most 1"):
            size(keep=0.5, patterns={"c_attn": {"keep": share}})
    with pytest.raises(FinloraError, match="matches no linear"):
        size(keep=0.5, targets="nothing")


@pytest.mark.parametrize("structure", names("structure"))
def test_multiply_adds_are_what_torch_counts_of_a_step(structure, tokenizer):
    """Six FLOPs for each, with all of a row's attention where half is asked for, and what a structure does once a pass."""
    record, tokens = pick("structure", structure), 64
    shape = {**SHAPES["gpt2"], "attn_pdrop": 0.1}  # torch counts no FLOPs of the kernel that attention without dropout takes on a CPU
    model = models.new_model(shape, tokenizer, 0, dtype="float32", device="cpu").requires_grad_(True)
    plan = restructure.plan(record, record.config(), restructure.shapes_of(model.body), keep=1.0 if structure == "dense" else 0.5)
    shapes = restructure.shapes_of(model.body)
    restructure.put(model, plan, 0).train()
    rows = collate([[Tokens(list(range(5, tokens + 6)), [1.0] * (tokens + 1), "a")] for _ in range(2)])
    with FlopCounterMode(display=False) as counter:
        step(model, [rows])
    rest = restructure.attention_width(model.config) * tokens
    once = sum(restructure.once_a_pass(structure, cfg, *reversed(shapes[name])) for name, (structure, cfg) in plan.items())
    assert counter.get_total_flops() == 6 * 2 * tokens * (restructure.multiply_adds(model, tokens) + rest) + 2 * once


def test_attention_is_as_wide_as_its_heads():
    shape = {**SHAPES["llama"], "family": "qwen3", "head_dim": 16}
    assert restructure.attention_width(models.outline(shape, 64).config) == 2 * 4 * 16, "heads wider than hidden_size / heads"
    assert restructure.attention_width(models.outline(SHAPES["gpt2"], 64).config) == 2 * 32


def test_a_damaged_folder_is_refused_in_one_line(tokenizer, tmp_path):
    models.save(fresh(tokenizer), tmp_path / "m")
    told, weights = tmp_path / "m/structure.json", tmp_path / "m/structured.safetensors"
    whole, tensors = told.read_text(), load_file(weights)
    name = next(iter(json.loads(whole)["linears"]))

    def refused(match):
        with pytest.raises(FinloraError, match=match) as caught:
            opened(tmp_path / "m")
        assert "\n" not in str(caught.value)

    told.write_text("{")
    refused("does not describe")
    changed = json.loads(whole)
    changed["linears"][name]["config"]["rank"] += 1
    told.write_text(json.dumps(changed))
    refused("its settings say")
    told.write_text(whole)
    save_file({k: v for k, v in tensors.items() if k != f"{name}.A"}, weights)
    refused("lacks")
    save_file({**tensors, f"{name}.A": tensors[f"{name}.A"][:, :-1].contiguous()}, weights)
    refused("has shape")
    save_file({**tensors, f"{name}.A": torch.ones(tensors[f"{name}.A"].shape, dtype=torch.int32)}, weights)
    refused("`A` holds int32")
    save_file(tensors, weights)
    for key, value in (("config", None), ("config", []), ("shape", [1e999, 32]), ("shape", None), ("params", None), ("params", {"A": "x"}), ("structure", 3)):
        changed = json.loads(whole)
        changed["linears"][name][key] = value
        told.write_text(json.dumps(changed))
        refused("does not describe")
    for codec, said in (({"kind": "nf4", "foo": 1}, "foo"), ([], None), ("nf4", "the codec is")):
        told.write_text(json.dumps({**json.loads(whole), "codec": codec}))
        refused(said) if said else opened(tmp_path / "m")
    told.write_text(whole)
    config = tmp_path / "m/config.json"
    settings = json.loads(config.read_text())
    for change in ({"head_dim": 16}, {"num_attention_heads": 8, "head_dim": 8}):
        config.write_text(json.dumps({**settings, **change}))
        refused("by config.json")
    for change in ({"hidden_size": "32"}, {"num_attention_heads": 0}, {"dtype": "float8"}):
        config.write_text(json.dumps({**settings, **change}))
        refused("cannot open")
    config.write_text(json.dumps(settings))
    weights.unlink()
    refused("holds no weights|lacks its weights")


def test_a_damaged_sparse_part_is_refused(tokenizer, tmp_path):
    models.save(fresh(tokenizer, structure="sltrain"), tmp_path / "m")
    weights = tmp_path / "m/structured.safetensors"
    tensors = load_file(weights)
    name = next(key.removesuffix(".V") for key in tensors if key.endswith(".V"))
    support, V = tensors[f"{name}.support"], tensors[f"{name}.V"]
    for key, value, said in (
        ("support", support + 32 * 32, "points outside"), ("support", -1 - support, "points outside"), ("support", support.float(), "holds float32"),
        ("V", torch.full_like(V, torch.nan), "NaN"),
    ):  # fmt: skip
        save_file({**tensors, f"{name}.{key}": value}, weights)
        with pytest.raises(FinloraError, match=said):
            opened(tmp_path / "m")


@pytest.mark.parametrize("structure", [name for name in names("structure") if name != "dense"])
def test_half_precision_serves_every_structure(structure, tokenizer, tmp_path):
    """Frozen in bfloat16 its parameters compute in the type that is asked for, and `full` trains float32 masters of them."""
    models.save(fresh(tokenizer, structure=structure), tmp_path / "m")
    frozen = models.open_model(str(tmp_path / "m"), dtype="bfloat16", device="cpu")
    for linear in frozen.linears.values():
        kinds = {p.dtype for p in linear.store.params(torch.float32).values() if p.is_floating_point()}
        assert kinds == {torch.float32}
        if linear.store.structure.dense is not None:
            assert linear.store.dense(torch.float32).dtype == torch.float32
    whole = models.open_model(str(tmp_path / "m"), dtype="bfloat16", device="cpu", method="full")
    assert {p.dtype for p in whole.trainable().values()} == {torch.float32}
