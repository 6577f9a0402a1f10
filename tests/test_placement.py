"""Where adapters stand: which linears a rule names in each family, settings by rule, and what trains whole beside them."""

from __future__ import annotations

import json

import pytest
import torch

from finlora import optim
from finlora.adapters import save_adapter
from finlora.calibrate import collect
from finlora.errors import FinloraError
from finlora.methods.lora import LoRA
from finlora.methods.rslora import RsLoRA
from finlora.model import autocast, find_linears, hidden, open_model, rewire, save
from finlora.registry import pick
from finlora.spec import Train
from finlora.train import batches_of, fit, step
from finlora.wiring import config_at, matches

BLOCKS = {  # family -> (attention, mlp) of its first block, and the head, under the names that transformers gives them
    "llama": (
        [f"model.layers.0.self_attn.{k}_proj" for k in "qkvo"],
        [f"model.layers.0.mlp.{k}_proj" for k in ("gate", "up", "down")],
        "lm_head",
    ),
    "gpt2": (["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"], ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"], "lm_head"),
    "gpt_neox": (
        ["gpt_neox.layers.0.attention.query_key_value", "gpt_neox.layers.0.attention.dense"],
        ["gpt_neox.layers.0.mlp.dense_h_to_4h", "gpt_neox.layers.0.mlp.dense_4h_to_h"],
        "embed_out",
    ),
    "opt": ([f"model.decoder.layers.0.self_attn.{k}_proj" for k in "qkv"] + ["model.decoder.layers.0.self_attn.out_proj"], ["model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2"], "lm_head"),
    "bloom": (["transformer.h.0.self_attention.query_key_value", "transformer.h.0.self_attention.dense"], ["transformer.h.0.mlp.dense_h_to_4h", "transformer.h.0.mlp.dense_4h_to_h"], "lm_head"),
    "phi3": (["model.layers.0.self_attn.qkv_proj", "model.layers.0.self_attn.o_proj"], ["model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.down_proj"], "lm_head"),
}
BLOCKS["qwen2"] = BLOCKS["llama"]


@pytest.mark.parametrize("family", sorted(BLOCKS))
def test_rules_part_each_block_in_attention_and_mlp(family):
    attention, mlp, head = BLOCKS[family]
    for name in attention:
        assert (matches(name, "attention"), matches(name, "mlp"), matches(name, "all-linear")) == (True, False, True), name
    for name in mlp:
        assert (matches(name, "attention"), matches(name, "mlp"), matches(name, "all-linear")) == (False, True, True), name
    # a layer outside any block (a projection of the embeddings, a head) is neither
    assert not matches(head, "attention") and not matches(head, "mlp")


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3", "mistral"])
def test_rules_on_the_real_modules(family, make_model):
    found = set(find_linears(make_model(family).body))
    attention, mlp = ({name for name in found if matches(name, rule)} for rule in ("attention", "mlp"))
    assert attention and mlp and not attention & mlp and attention | mlp == found
    if family in BLOCKS:
        assert {name for name in attention if "0." in name} == set(BLOCKS[family][0])
        assert {name for name in mlp if "0." in name} == set(BLOCKS[family][1])
    model = rewire(make_model(family), method="lora", method_config=LoRA(rank=4), targets="attention")
    assert {name for name, linear in model.linears.items() if linear.adapters} == attention
    assert set(model.linears) == found  # the others take the codec all the same


@pytest.mark.parametrize(
    "rule, name, named",
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        ("mlp.down_proj", "model.layers.3.mlp.down_proj", True),
        (r"re:.*layers\.[01]\..*", "model.layers.1.mlp.down_proj", True),
        (r"re:.*layers\.[01]\..*", "model.layers.12.mlp.down_proj", False),
        ("re:q_proj", "model.layers.0.self_attn.q_proj", False),  # the full name
        (("q_proj", "mlp"), "model.layers.0.mlp.up_proj", True),
        ("attention", "model.layers.0.mlp.attic", False),
        ("attention", "model.decoder.layers.0.encoder_attn.k_proj", True),
    ],
)
def test_rules(rule, name, named):
    assert matches(name, rule) is named


# -- settings by rule ------------------------------------------------------------------------------------------------

PATTERNS = {"v_proj": {"rank": 2, "alpha": 5.0}, "attention": {"rank": 6}, "re:.*layers\\.1\\..*": {"alpha": 3.0}}


def test_the_first_pattern_that_names_a_linear_counts(make_model):
    model = rewire(make_model("llama"), method="lora", method_config=LoRA(rank=4, alpha=8.0), patterns=PATTERNS)
    got = {name: linear.how["default"][1] for name, linear in model.linears.items()}
    for name, config in got.items():
        wanted = (2, 5.0) if name.endswith("v_proj") else (6, 8.0) if "self_attn" in name else (4, 3.0) if ".1." in name else (4, 8.0)
        assert (config.rank, config.alpha) == wanted, name
        assert model.linears[name].adapters["default"]["A"].shape[0] == wanted[0]
    assert config_at(LoRA(), "a.b", {}) == config_at(LoRA(), "a.b", None) == LoRA()


def test_patterns_leave_other_linears_draws_alone(make_model):
    plain = rewire(make_model("llama"), method="lora", method_config=LoRA(rank=4))
    other = rewire(make_model("llama"), method="lora", method_config=LoRA(rank=4), patterns={"q_proj": {"rank": 2}})
    for name, linear in plain.linears.items():
        if not name.endswith("q_proj"):
            assert torch.equal(linear.adapters["default"]["A"], other.linears[name].adapters["default"]["A"])


@pytest.mark.parametrize(
    "patterns, wanted",
    [
        ({"q_proj": {"rnak": 3}}, "no key named `rnak` in method.patterns of `q_proj` (hint: did you mean `rank`?"),
        ({"q_proj": {"rank": 0}}, "method.patterns of `q_proj`: rank must be a whole number of at least 1, got 0"),
        ({"q_proj": {"rank": 33}}, "rank 33 is above the layer, whose weight is 32 x 32"),
        ({"c_attn": {"rank": 2}}, "method.patterns: the rule `c_attn` names no linear that takes the method"),
    ],
)
def test_patterns_that_are_refused(patterns, wanted, make_model):
    with pytest.raises(FinloraError) as caught:
        rewire(make_model("llama"), method="lora", patterns=patterns)
    assert wanted in str(caught.value)


def test_one_of_several_targets_that_matches_nothing(make_model):
    with pytest.raises(FinloraError, match="method.targets: the rule `vproj` matches no linear of .*q_proj"):
        rewire(make_model("llama"), method="lora", targets=("q_proj", "vproj"))


def test_a_method_that_shares_out_ranks_beside_patterns(make_model, taught):
    """A pattern's rank comes with the alpha that was written, not with the one meant for the shared-out rank; missing statistics are named."""
    model = make_model("llama")
    stats = collect(model, taught, ["moment_II"])
    config = pick("method", "eva").config(rank=4, alpha=8.0)
    rewire(model, method="eva", method_config=config, stats=stats, patterns={"q_proj": {"rank": 2}, "v_proj": {"dropout": 0.1}})
    got = {name: linear.how["default"][1] for name, linear in model.linears.items()}
    assert len({one.rank for one in got.values()}) > 2
    for name, one in got.items():
        if name.endswith("q_proj"):
            assert (one.rank, one.alpha) == (2, 8.0)
        else:
            assert one.alpha / one.rank == 2.0 and one.dropout == (0.1 if name.endswith("v_proj") else 0.0)
    lost = next(name for name in stats if name.endswith("up_proj"))
    with pytest.raises(FinloraError, match=f"{lost}: `eva` starts from calibration and was given no moment"):
        rewire(make_model("llama"), method="eva", method_config=config, stats={k: v for k, v in stats.items() if k != lost})


@pytest.mark.parametrize("method, config", [("lora", LoRA(rank=4, alpha=8.0)), ("rslora", RsLoRA(rank=4, alpha=8.0))])
def test_patterns_survive_a_peft_folder(method, config, make_model, tmp_path):
    source = make_model("llama")
    save(source, tmp_path / "base")
    model = rewire(open_model(str(tmp_path / "base"), device="cpu", dtype="float32"), method=method, method_config=config, patterns=PATTERNS)
    with torch.no_grad():
        for p in model.trainable().values():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    save_adapter(model, tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    ranks = {name: linear.how["default"][1].rank for name, linear in model.linears.items()}
    alphas = {name: linear.how["default"][1].alpha for name, linear in model.linears.items()}
    assert {name: fields["rank_pattern"].get(name, fields["r"]) for name in ranks} == ranks
    assert {name: fields["alpha_pattern"].get(name, fields["lora_alpha"]) for name in alphas} == alphas
    again = open_model(str(tmp_path / "base"), device="cpu", dtype="float32", adapter=tmp_path / "adapter")
    for name, linear in model.linears.items():
        assert again.linears[name].how["default"] == linear.how["default"]
        assert torch.equal(again.linears[name].merged("default"), linear.merged("default"))


# -- trained whole beside the adapter --------------------------------------------------------------------------------

EMBEDDINGS = {"llama": "model.embed_tokens", "gpt2": "transformer.wte", "qwen2": "model.embed_tokens"}


def adapted(model):
    return {name for name in model.trainable() if ".adapters." in name}


@pytest.mark.parametrize("family", sorted(EMBEDDINGS))
@pytest.mark.parametrize("also", [("embeddings",), ("head",), ("embeddings", "head")], ids="+".join)
def test_also_trains_exactly_those(family, also, make_model):
    model = rewire(make_model(family), method="lora", method_config=LoRA(rank=4), also=also)
    whole = model.trainable().keys() - adapted(model)
    embeddings, tied = EMBEDDINGS[family], family != "llama"
    if tied:  # one tensor, whichever is named
        assert whole == {f"body.{embeddings}.weight"}
        assert model.also == {embeddings: f"{embeddings}.weight", "lm_head": f"{embeddings}.weight"}
        assert model.body.get_output_embeddings().weight is model.body.get_input_embeddings().weight
    else:
        named = {"embeddings": embeddings, "head": "lm_head"}
        assert whole == {f"body.{named[part]}.weight" for part in also}
        assert model.also == {named[part]: f"{named[part]}.weight" for part in also}
    for module, parameter in model.also.items():
        assert model.body.get_submodule(module).weight is model.body.get_parameter(parameter)


def test_nothing_else_trains_by_default(make_model):
    model = rewire(make_model("llama"), method="lora")
    assert model.also == {} and model.trainable().keys() == adapted(model)


def test_also_refuses_what_is_none(make_model):
    with pytest.raises(FinloraError, match="no part named `heads` in method.also .hint: did you mean `head`"):
        rewire(make_model("llama"), method="lora", also=["heads"])
    model = make_model("llama")
    model.body.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(FinloraError, match="has no head of its own to train"):
        rewire(model, method="lora", also=["head"])


@pytest.mark.parametrize("family", sorted(EMBEDDINGS))
def test_the_gradient_of_what_trains_whole_is_that_of_full_training(family, make_model, taught):
    """Adapters begin at nothing, so embeddings and head get the gradient that they would get if all were trained."""
    batches = batches_of(taught[:4], 256, 1)
    full = rewire(make_model(family), method="full")
    step(full, batches)
    model = rewire(make_model(family), method="lora", method_config=LoRA(rank=4), also=["embeddings", "head"])
    step(model, batches)
    for parameter in set(model.also.values()):
        got, wanted = model.body.get_parameter(parameter).grad, full.body.get_parameter(parameter).grad
        assert wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_tied_tensor_gets_both_gradients(make_model, taught):
    batches = batches_of(taught[:2], 256, 1)
    tied = rewire(make_model("llama", tie_word_embeddings=True), method="lora", also=["head"])
    parted = rewire(make_model("llama", tie_word_embeddings=False), method="lora", also=["embeddings", "head"])
    parted.load_state_dict(tied.state_dict(), strict=True)
    step(tied, batches), step(parted, batches)
    sum_of_both = parted.body.get_input_embeddings().weight.grad + parted.body.get_output_embeddings().weight.grad
    torch.testing.assert_close(tied.body.get_input_embeddings().weight.grad, sum_of_both, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", sorted(EMBEDDINGS))
@pytest.mark.parametrize("also", [("embeddings",), ("head",)], ids="+".join)
def test_masters_are_float32_under_a_narrow_compute_type(family, also, make_model, taught):
    """The rest of the model computes as without them: the loss is the same to the last bit, and no autocast begins."""

    def narrow():
        model = make_model(family)
        model.dtype = torch.bfloat16
        model.body.to(torch.bfloat16)
        return model

    batches = batches_of(taught[:2], 256, 1)
    plain = rewire(narrow(), method="lora", method_config=LoRA(rank=4))
    model = rewire(narrow(), method="lora", method_config=LoRA(rank=4), also=also)
    assert all(model.body.get_parameter(name).dtype == torch.float32 for name in model.also.values())
    others = [p for name, p in model.body.named_parameters() if name not in model.also.values() and ".adapters." not in name]
    assert others and all(p.dtype == torch.bfloat16 for p in others)
    assert not autocast(model)._enabled and not autocast(plain)._enabled
    assert step(model, batches) == step(plain, batches)
    for name in model.also.values():
        assert model.body.get_parameter(name).grad.dtype == torch.float32 and model.body.get_parameter(name).grad.any()
    ids = batches[0].ids[:, :5]
    with torch.no_grad():  # the whole body, head and all, runs too
        torch.testing.assert_close(model.body(input_ids=ids).logits.float(), plain.body(input_ids=ids).logits.float(), rtol=0.02, atol=0.02)


def test_an_update_below_the_narrow_step_is_kept(make_model):
    model = make_model("llama")
    model.dtype = torch.bfloat16
    model.body.to(torch.bfloat16)
    rewire(model, method="lora", also=["embeddings"])
    weight = model.body.get_input_embeddings().weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1 + 1e-4)
    assert (weight != before).float().mean() > 0.9
    assert torch.equal(weight.bfloat16().float(), before)  # which bfloat16 would have lost


def test_also_decays_and_steps_as_any_matrix_and_resumes(make_model, taught, tmp_path):
    def fresh():
        return rewire(make_model("qwen2"), method="lora", method_config=LoRA(rank=4), also=["embeddings"], seed=3)

    model = fresh()
    groups = optim.make(model, Train(weight_decay=0.1)).param_groups
    (group,) = [g for g in groups if "body.model.embed_tokens.weight" in g["names"]]
    assert (group["weight_decay"], group["multiplier"], group["inner"]) == (0.1, 1.0, False)
    settings = Train(steps=4, batch=2, lr=1e-3, weight_decay=0.1, checkpoint_every=2)
    fit(model, taught[:6], settings, row_tokens=256, seed=1, folder=tmp_path)
    other = fresh()
    assert not torch.equal(other.body.model.embed_tokens.weight, model.body.model.embed_tokens.weight)
    fit(other, taught[:6], settings, row_tokens=256, seed=1, folder=tmp_path)  # takes the last checkpoint
    assert all(torch.equal(p, model.trainable()[name]) for name, p in other.trainable().items())


def test_also_beside_full_changes_nothing(make_model):
    model = rewire(make_model("llama"), method="full", also=["embeddings", "head"])
    plain = rewire(make_model("llama"), method="full")
    assert model.trainable().keys() == plain.trainable().keys()


@pytest.mark.parametrize("family", sorted(EMBEDDINGS))
def test_a_mixed_pass_hands_the_output_layer_what_it_computes_in(family, make_model, taught):
    """Float32 masters under bfloat16: the last norm gives float32, and a head that multiplied it would be many times as slow on a GPU."""
    model = rewire(make_model(family), method="full")
    batches = batches_of(taught[:2], 256, 1)
    model.dtype = torch.bfloat16
    assert autocast(model)._enabled
    kinds = [hidden(model, batch).dtype for batch in batches]
    assert kinds == [torch.bfloat16] * len(batches)
    nats, weight = step(model, batches)
    model.dtype = torch.float32
    exact, _ = step(model, batches)
    assert abs(nats - exact) <= 2**-8 * exact, "bfloat16 keeps eight bits"
    assert all(p.grad.dtype == torch.float32 for p in model.trainable().values() if p.grad is not None)
