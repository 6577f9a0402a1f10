"""Models: ours equals transformers' own, whatever the family; packed documents are strangers; what is saved is what ran.

All at toy size in float32. Tolerances are 1e-5 on values of order 1 to 10; measured 0 to 2e-6 (torch 2.13, one CPU thread).
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import SHAPES

from finlora import attention
from finlora import model as models
from finlora.data import Batch, collate
from finlora.errors import FinloraError
from finlora.model import Model, find_linears, head, hidden, logits, open_model, recompute, rewire, save
from finlora.text import Tokens
from finlora.train import step

FAMILIES = sorted(SHAPES)
LENGTHS = (13, 30, 2, 22, 17, 30, 45)  # mistral's window of 8 is shorter than most of these


def document(n: int, seed: int) -> Tokens:
    ids = torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(seed))
    return Tokens(tuple(ids.tolist()), (1.0,) * n, f"d{seed}")


DOCUMENTS = [document(n, k) for k, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    """A saved toy model of each family."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save(make_model(family), root / family)
    return root


def theirs(folder, ids: torch.Tensor, attention="eager") -> torch.Tensor:
    """transformers' own logits (B, T, V)."""
    body = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention, local_files_only=True).eval()
    with torch.no_grad():
        return body(input_ids=ids).logits


@torch.no_grad()
def ours(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) by hidden() and head()."""
    rows = [[Tokens((*row, 0), (1.0,) * (len(row) + 1))] for row in ids.tolist()]
    return logits(model, hidden(model, collate(rows)))


def stir(model: Model, size: float = 0.05) -> Model:
    """Move every trainable tensor away from where it began."""
    with torch.no_grad():
        for k, p in enumerate(model.trainable().values()):
            p.add_(size * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    return model


IDS = torch.randint(3, 400, (3, 40), generator=torch.Generator().manual_seed(9))


# -- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rewired_equals_transformers(family, attention, folders):
    model = rewire(open_model(str(folders / family), dtype="float32", device="cpu"), codec="none")
    assert model.linears and not model.trainable()
    wanted = theirs(folders / family, IDS, attention)
    assert float(wanted.std()) > 0.5  # the toy is not near zero
    assert float((ours(model, IDS) - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_plus", "dora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing(family, method, folders):
    model = open_model(str(folders / family), dtype="float32", device="cpu", method=method)
    assert float((ours(model, IDS) - theirs(folders / family, IDS)).abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_which_linears(family, make_model):
    """Every linear but the head, once per layer; embeddings and head keep their modules and, where tied, their one tensor."""
    model = make_model(family)
    embedding, out = model.body.get_input_embeddings(), model.body.get_output_embeddings()
    tied = out.weight is embedding.weight
    assert tied == bool(model.config.tie_word_embeddings)
    before = embedding.weight.clone(), out.weight.clone()
    n = len(find_linears(model.body))
    assert n == (8 if family == "gpt2" else 14)
    rewire(model, codec="nf4", method="lora")
    assert len(model.linears) == n and not find_linears(model.body)
    assert model.body.get_input_embeddings() is embedding and model.body.get_output_embeddings() is out
    assert (out.weight is embedding.weight) == tied
    assert torch.equal(embedding.weight, before[0]) and torch.equal(out.weight, before[1])
    assert set(model.trainable()) == {name for name in dict(model.named_parameters()) if ".adapters.default." in name}


def test_targets(make_model):
    for rule, kinds in (("q_proj", {"q_proj"}), (["mlp.down_proj", "v_proj"], {"down_proj", "v_proj"}), ("re:.*layers\\.1\\..*", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})):
        model = rewire(make_model("llama"), codec="int8", method="lora", targets=rule)
        adapted = {name for name, linear in model.linears.items() if linear.adapters}
        assert {name.rsplit(".", 1)[-1] for name in adapted} == kinds
        assert all(linear.store.codec.name == "int8" for linear in model.linears.values())
        assert "re:" not in rule or all(".1." in name for name in adapted)
    with pytest.raises(FinloraError, match="matches no linear.*q_proj"):
        rewire(make_model("llama"), method="lora", targets="c_attn")


# -- packed rows -----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "one row": [[0, 1, 2, 3, 4, 5, 6]],
    "padded rows": [[0, 1], [6], [2, 3, 4]],
    "an empty row": [[5, 0], []],
    "single tokens": [[2, 2, 1, 2]],
}


def worst(model: Model, layout: list[list[int]], collate=collate) -> float:
    """The largest difference between a document's hidden states in the rows and alone."""
    with torch.no_grad():
        x = hidden(model, collate([[DOCUMENTS[d] for d in row] for row in layout], 190))
        assert bool(x.isfinite().all())
        off = 0.0
        for b, row in enumerate(layout):
            start = 0
            for d in row:
                alone = hidden(model, collate([[DOCUMENTS[d]]]))[0]
                off = max(off, float((x[b, start : start + len(alone)] - alone).abs().max()))
                start += len(alone)
    return off


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_are_strangers(family, layout, make_model):
    assert worst(make_model(family), LAYOUTS[layout]) < 1e-5


@pytest.mark.parametrize("codec, method", [("nf4", "lora"), ("int8", "dora")])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_packed_through_the_seam(family, codec, method, make_model):
    model = stir(rewire(make_model(family), codec=codec, method=method))
    assert worst(model, LAYOUTS["padded rows"]) < 1e-5


@pytest.mark.parametrize("layer_types", [["full_attention", "sliding_attention"], ["sliding_attention", "full_attention"]])
def test_packed_with_windows_in_some_layers(layer_types, make_model):
    settings = {"use_sliding_window": True, "sliding_window": 8, "layer_types": layer_types}
    assert worst(make_model("qwen2", **settings), LAYOUTS["one row"]) < 1e-5


def test_the_packing_law_has_teeth(make_model, monkeypatch):
    """Documents that see each other, or positions that run on, are worlds away from 1e-5."""
    real = attention.layout
    with monkeypatch.context() as patched:
        patched.setattr(attention, "layout", lambda batch: real(replace(batch, doc=batch.doc.clamp(max=0))))
        assert worst(make_model("llama"), LAYOUTS["one row"]) > 0.01

    def running_on(rows, length=None):
        batch = collate(rows, length)
        return replace(batch, pos=torch.arange(batch.pos.shape[1]).expand_as(batch.pos))

    assert worst(make_model("gpt2"), LAYOUTS["one row"], running_on) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_rows(family, make_model):
    """Rows of one batch through different adapters, packed or not, equal each adapter's own call."""
    model = stir(rewire(make_model(family), codec="nf4", method="lora"))
    for k, linear in enumerate(model.linears.values()):
        method, cfg = linear.how["default"]
        linear.adapt("other", method, cfg, torch.Generator().manual_seed(k))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".adapters.other." in name:
                p.add_(0.05)
    for layout in ([[0], [1], [4]], [[0, 1], [3, 4], [6]]):
        batch = collate([[DOCUMENTS[d] for d in row] for row in layout])
        names = ["other", None, "default"]
        with torch.no_grad():
            mixed = hidden(model, replace(batch, rows=names))
            for b, name in enumerate(names):
                alone = hidden(model, replace(batch, rows=[name] * 3))
                inside = batch.doc[b] >= 0
                assert float((mixed[b, inside] - alone[b, inside]).abs().max()) < 1e-5
                assert float((mixed[b, inside] - mixed[(b + 1) % 3, inside]).abs().max()) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_branches(family, make_model):
    """A branch sees the trunk and itself: its hidden states are those of trunk + branch as a row of its own."""
    trunk, branches = document(20, 50), [document(n, 60 + n) for n in (3, 1, 5)]
    model = make_model(family)
    ids, branch, pos = list(trunk.ids), [0] * 20, list(range(20))
    for k, b in enumerate(branches, 1):
        ids, branch, pos = ids + list(b.ids), branch + [k] * len(b.ids), pos + list(range(20, 20 + len(b.ids)))
    other = [4, 5, 6, 7]  # a second document of the row, after the branches
    row = torch.tensor([ids + other])
    batch = Batch(row, row, torch.ones(row.shape), torch.tensor([[0] * len(ids) + [1] * 4]), torch.tensor([pos + [0, 1, 2, 3]]), torch.tensor([branch + [0] * 4]))

    def alone(tokens):
        return hidden(model, collate([[Tokens((*tokens, 0), (1.0,) * (len(tokens) + 1))]]))[0]

    with torch.no_grad():
        x, start = hidden(model, batch)[0], 20
        for b in branches:
            whole = alone(trunk.ids + b.ids)
            assert float((x[:20] - whole[:20]).abs().max()) < 1e-5
            assert float((x[start : start + len(b.ids)] - whole[20:]).abs().max()) < 1e-5
            start += len(b.ids)
        assert float((x[start:] - alone(other)).abs().max()) < 1e-5


# Families whose layers mix tokens by more than attention (convolution, recurrence), or that drop what they are passed.
STRANGE = {
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "mamba": ("MambaConfig", {"state_size": 4}),
    "stablelm": ("StableLmConfig", {}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
}


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_a_family_that_cannot_keep_rows_apart_is_refused(name, tokenizer):
    kind, settings = STRANGE[name]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48, "vocab_size": 400}
    models._register()
    config = getattr(transformers, kind)(**{**sizes, **settings})
    model = Model(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="finlora").eval(), tokenizer, name, torch.float32)
    with torch.no_grad():
        assert hidden(model, collate([[DOCUMENTS[0]], [DOCUMENTS[2]]])).shape[-1] == 32  # each in its own row: served
        with pytest.raises(FinloraError, match="row_tokens = 0"):
            hidden(model, collate([[DOCUMENTS[0], DOCUMENTS[1]]]))


def test_a_family_older_than_the_attention_interface(tokenizer, tmp_path):
    """GPT-J knows no registered attention: it is opened with its own, and only packed rows are refused."""
    config = transformers.GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128, vocab_size=400, bos_token_id=0, eos_token_id=1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gptj")
    tokenizer.save_pretrained(tmp_path / "gptj")
    model = rewire(open_model(str(tmp_path / "gptj"), dtype="float32", device="cpu"), method="lora")
    assert float((ours(model, IDS) - theirs(tmp_path / "gptj", IDS)).abs().max()) < 1e-5
    with pytest.raises(FinloraError, match="row_tokens = 0"):
        hidden(model, collate([[DOCUMENTS[0], DOCUMENTS[1]]]))


# -- memory for time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec, method", [("nf4", "lora"), ("none", "dora"), ("none", "full")])
@pytest.mark.parametrize("family", FAMILIES)
def test_recompute_changes_no_gradient(family, codec, method, make_model):
    model = stir(rewire(make_model(family), codec=codec, method=method), 0.02)
    model.train()
    batches = [collate([[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[6]]])]
    seen = []
    for on in (False, True, False):
        recompute(model, on)
        model.zero_grad(set_to_none=True)
        told = step(model, batches)
        seen.append((told, {n: p.grad.clone() for n, p in model.trainable().items() if p.grad is not None}))
    for told, grads in seen[1:]:
        assert told == seen[0][0]
        assert grads.keys() == seen[0][1].keys() and all(torch.equal(g, seen[0][1][n]) for n, g in grads.items())


def test_recompute_runs_the_blocks_twice(make_model):
    model = rewire(make_model("llama"), method="lora").train()
    calls = []
    model.linears["model.layers.0.mlp.up_proj"].register_forward_hook(lambda *_: calls.append(1))
    for on, wanted in ((False, 1), (True, 2)):
        calls.clear()
        recompute(model, on)
        step(model, [collate([[DOCUMENTS[0], DOCUMENTS[1]]])])
        assert len(calls) == wanted


# -- saved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "lora", "dora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_is_what_ran(family, method, make_model, tmp_path):
    """A plain transformers load of what save() wrote has our logits, with the trained adapter merged in."""
    model = make_model(family)
    start = ours(model, IDS)
    rewire(model, codec="none", method=method)
    if method:
        stir(model)
    mine = ours(model, IDS)
    assert (float((mine - start).abs().max()) > 0.1) == bool(method)
    save(model, tmp_path / "out")
    assert float((theirs(tmp_path / "out", IDS) - mine).abs().max()) < (5e-5 if method else 1e-5)  # merged: at most 1.2e-5 seen
    again = open_model(str(tmp_path / "out"), dtype="float32", device="cpu")
    assert float((ours(again, IDS) - mine).abs().max()) < 1e-4
    assert again.tokenizer("Net sales rose.")["input_ids"] == model.tokenizer("Net sales rose.")["input_ids"]


def test_saved_from_a_quantised_base(make_model, tmp_path):
    """Merging over nf4 saves the decoded base with the adapter, which is what the adapter was trained on."""
    model = stir(rewire(make_model("gpt2"), codec="nf4", method="lora"))
    save(model, tmp_path / "out")
    assert float((theirs(tmp_path / "out", IDS) - ours(model, IDS)).abs().max()) < 2e-5


def test_saving_over_something_is_refused(make_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FinloraError, match="exists already"):
        save(make_model("llama"), tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine.txt"]


# -- opening ---------------------------------------------------------------------------------------------------------


def test_the_adapter_knows_neither_order_nor_past(folders):
    """It is drawn from (seed, name of the linear): other draws before, or other targets, do not change it."""

    def adapter(seed, targets="all-linear", noise=0):
        torch.manual_seed(noise)
        torch.rand(noise)
        model = open_model(str(folders / "llama"), dtype="float32", device="cpu", method="lora", seed=seed, targets=targets)
        return {name: p.detach() for name, p in model.trainable().items()}

    first, again, other = adapter(7), adapter(7, noise=5), adapter(8)
    assert first.keys() == again.keys() and all(torch.equal(first[n], again[n]) for n in first)
    A = [n for n in first if n.endswith(".A")]
    assert all(not torch.equal(first[n], other[n]) for n in A)
    assert len({float(first[n].flatten()[0]) for n in A}) == len(A)  # no two linears share their draw
    some = adapter(7, targets=["q_proj", "down_proj"])
    assert all(torch.equal(first[n], some[n]) for n in some) and 0 < len(some) < len(first)


def test_the_largest_seed(folders):
    open_model(str(folders / "llama"), dtype="float32", device="cpu", method="lora", seed=2**63 - 1)


def test_no_pickle_no_network(folders, tmp_path):
    bad = tmp_path / "pickled"
    shutil.copytree(folders / "llama", bad)
    (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
    for name, said in ((str(bad), "pickled"), ("someone/model", "offline"), (str(tmp_path / "none"), "no folder"), (str(tmp_path), "no config.json")):
        with pytest.raises(FinloraError, match=said):
            open_model(name)


def test_head_is_a_value(make_model):
    model = make_model("qwen2")
    assert head(model).weight is model.body.get_input_embeddings().weight and head(model).bias is None
