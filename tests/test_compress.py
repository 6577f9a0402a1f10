"""Compressing a model: what is written is what was decomposed, within the budget, whoever decomposed it; and what is refused."""

import json
import math
import re
import shutil
import sys
from itertools import zip_longest
from types import SimpleNamespace

import pytest
import torch

from finlora import data, restructure
from finlora import model as models
from finlora.calibrate import collect
from finlora.compress import Compress, compress, look
from finlora.compress.look import texts
from finlora.corpus import Document
from finlora.decompose import _allocate, _shared
from finlora.errors import FinloraError
from finlora.registry import names, pick
from finlora.seam import Stats
from finlora.text import document
from finlora.train import mean_nats

WORDS = "net sales rose fell profit quarter guidance costs orders dividend share price first board expects decline".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Forty documents of drawn words."""
    g = torch.Generator().manual_seed(0)
    file = tmp_path_factory.mktemp("text") / "news.jsonl"
    lines = []
    for k in range(40):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (60,), generator=g)]
        lines.append(json.dumps({"id": f"{k}", "source": "even" if k % 2 == 0 else "odd", "text": " ".join(words) + "."}))
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    """base(family) -> the folder of a toy model."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / family
            models.save(make_model(family), made[family])
        return str(made[family])

    return folder


def settings(base, text, out, family="llama", **more):
    common = {"keep": 0.5, "tokens": 1500, "val_tokens": 600, "row_tokens": 128, "validation": 0.2, "dtype": "float32", "device": "cpu"}
    given = {**common, **more}
    if "val_text" in more:
        del given["validation"]
    if not given.get("validation") and "val_text" not in more:
        del given["val_tokens"]
    return Compress(**{"model": base(family), "out": str(out), "text": (text,), **given})


def opened(folder, **more):
    return models.open_model(str(folder), codec="none", dtype="float32", device="cpu", **more)


def product(model, name):
    return model.linears[name].store.dense(torch.float32)


def rows_of(s, model):
    return look.texts(s, model.tokenizer, 128)[:2]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_what_is_written_is_what_was_decomposed(base, text, tmp_path, family):
    """Products are the closed form's of the original weights and moments, errors are those told, and the folder opens to the
    model that was measured; as dense weights, to the same for transformers."""
    s = settings(base, text, tmp_path / "out", family)
    said = compress(s)
    assert json.loads((tmp_path / "out" / "compress.json").read_text())["linears"] == json.loads(json.dumps(said["linears"]))
    before, after = opened(s.model), opened(tmp_path / "out" / "model")
    rows, held = rows_of(s, before)
    seen = collect(before, rows, ("moment_II",), row_tokens=128)
    swift = pick("decomposition", "swift")
    assert set(said["linears"]) == set(before.linears) and len(rows) > 4 and len(held) > 1
    for name, one in said["linears"].items():
        W, C = product(before, name).double(), seen[name].moment_II.double()
        A, B = swift.factor(swift.config(), product(before, name), Stats(C), one["rank"])
        got = product(after, name)
        assert torch.allclose(got, B @ A, rtol=1e-4, atol=1e-5), name
        error = math.sqrt(float(_shared.output_error(got.double(), torch.eye(len(W)).double(), W, C) / _shared.output_error(0 * W, torch.eye(len(W)).double(), W, C)))
        assert one["error"] == pytest.approx(error, rel=1e-4, abs=1e-6), name
        assert one["params"] == one["rank"] * sum(W.shape)
    assert said["after"]["nats"] == pytest.approx(mean_nats(after, held, 128), abs=1e-6)
    assert said["before"]["nats"] == pytest.approx(mean_nats(before, held, 128), abs=1e-6)
    assert said["after"]["perplexity"] == pytest.approx(math.exp(said["after"]["nats"]))
    total = sum(o * i for o, i in (one["shape"] for one in said["linears"].values()))
    assert said["model"]["linears_before"] == total and 0.45 * total < said["model"]["linears_after"] <= 0.5 * total
    assert said["model"]["params_after"] == sum(p.numel() for p in after.body.parameters()) + sum(k.store.size for k in after.linears.values())
    dense = compress(settings(base, text, tmp_path / "dense", family, form="dense"))
    assert dense["after"]["nats"] == pytest.approx(said["after"]["nats"], abs=1e-5)  # measured: 1e-7
    plain = models.open_model(str(tmp_path / "dense" / "model"), dtype="float32", device="cpu")
    assert not plain.linears and mean_nats(plain, held, 128) == pytest.approx(dense["after"]["nats"], abs=1e-6)


def test_every_decomposition(base, text, tmp_path):
    """Swift's outputs err least in every linear, whatever the others minimise."""
    said = {kind: compress(settings(base, text, tmp_path / kind, decomposition=kind, validation=0.0)) for kind in names("decomposition")}
    for kind, one in said.items():
        assert one["before"] == one["after"] == {} and one["model"]["kept"] <= 0.5
        for name, linear in one["linears"].items():
            least = said["swift"]["linears"][name]["error"]
            assert 0 < least <= linear["error"] * (1 + 1e-6) and linear["seconds"] > 0, (kind, name)


def test_sequential_calibrates_on_the_compressed_blocks(base, text, tmp_path):
    """The second block is decomposed by what the compressed first gives it, the first by the same as ever."""
    s = settings(base, text, tmp_path / "sequential", sequential=True)
    compress(s)
    compress(settings(base, text, tmp_path / "plain"))
    before, after, plain = opened(s.model), opened(tmp_path / "sequential" / "model"), opened(tmp_path / "plain" / "model")
    rows, _ = rows_of(s, before)
    seen = collect(after, rows, ("moment_II",), row_tokens=128)
    swift = pick("decomposition", "swift")
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
        rank = after.structured[name][1].rank
        A, B = swift.factor(swift.config(), product(before, name), seen[name], rank)
        first = ".0." in name
        # a block's own linears are calibrated together: by the uncompressed ones before them in the block
        assert torch.allclose(product(after, name), B @ A, rtol=1e-4, atol=1e-4) != first, name
        assert torch.allclose(product(after, name), product(plain, name), rtol=1e-4, atol=1e-5) == first, name


def test_two_workers_give_the_same_bits(base, text, tmp_path):
    one = compress(settings(base, text, tmp_path / "one", decomposition="svd_llm", allocation="spectrum"))
    two = compress(settings(base, text, tmp_path / "two", decomposition="svd_llm", allocation="spectrum", workers=2))
    file = "model/structured.safetensors"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert one["after"] == two["after"]
    assert [k["error"] for k in one["linears"].values()] == [k["error"] for k in two["linears"].values()]


@pytest.mark.parametrize("allocation, sequential", [("spectrum", False), ("loss", True)])
def test_allocations_spend_the_same_budget(base, text, tmp_path, allocation, sequential):
    said = compress(settings(base, text, tmp_path / "out", allocation=allocation, sequential=sequential, floor=0.25, keep=0.4))
    ranks = {name: one["rank"] for name, one in said["linears"].items()}
    even = {(o, i): int(0.4 * o * i / (o + i)) for o, i in (one["shape"] for one in said["linears"].values())}
    assert len({ranks[n] for n in ranks if n.endswith("proj")}) > 2, "ranks differ beyond what shapes ask for"
    assert all(k is None or k >= int(0.25 * even[tuple(said["linears"][n]["shape"])]) for n, k in ranks.items())
    total = sum(o * i for o, i in (one["shape"] for one in said["linears"].values()))
    assert 0.4 * total - 80 < said["model"]["linears_after"] <= 0.4 * total
    after = opened(tmp_path / "out" / "model")
    assert {n: after.structured[n][1].rank for n in after.structured} == {n: k for n, k in ranks.items() if k}


def test_the_allocation_by_loss_looks_at_roots_of_errors_and_at_how_much_blocks_turn(monkeypatch):
    """Errors far apart, of which the uniform ranks' are taken; the second block turns its inputs more than the first."""
    package = sys.modules["finlora.compress"]
    monkeypatch.setattr(package, "turned", lambda *_: {"0": 0.1, "1": 0.3})
    shapes = {f"{b}.{kind}": (24, 24) for b in "01" for kind in ("up", "down")}
    even = _allocate.uniform(shapes, 0.5)
    losses = {n: [scale * 0.5**k for k in range(13)] for n, scale in zip(shapes, (1e4, 1.0, 1.0, 1e4))}
    s = SimpleNamespace(allocation="loss", alpha=0.25, alphas=(), floor=0.25)
    work = SimpleNamespace(settings=s, keep=0.5, model=SimpleNamespace(structured={}), shapes=shapes, blocks={b: [n for n in shapes if n[0] == b] for b in "01"}, rows=[], length=8)
    ranks, tried = package._shared_out(work, even, losses, None, [], print)
    scores = {n: (1.0 + int(n[0])) ** 0.25 * math.log(math.e + math.sqrt(losses[n][even[n]])) ** 0.75 for n in shapes}
    assert ranks == _allocate.scored(shapes, 0.5, scores, 0.25) and not tried and len(set(ranks.values())) > 2


def test_a_block_that_hands_its_inputs_on_has_turned_nothing(make_model, tokenizer):
    from finlora.text import document

    model = models.rewire(make_model("llama"))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        model.linears[f"model.layers.0.{name}"].store.put(torch.zeros(model.linears[f"model.layers.0.{name}"].shape))
    rows = [document("net sales rose, and profit fell", tokenizer, "a")]
    found = look.turned(model, {**{f"model.layers.{k}": [f"model.layers.{k}.x"] for k in (0, 1)}, "alone": ["alone"]}, rows, 64)
    assert found["model.layers.0"] == pytest.approx(0, abs=1e-6) and 0.05 < found["model.layers.1"] < 2 and found["alone"] == 0


def test_blocks_are_calibrated_together_as_far_as_their_moments_fit(monkeypatch):
    package = sys.modules["finlora.compress"]
    monkeypatch.setattr(package, "MOMENTS", 3 * 4 * 10**2)
    work = SimpleNamespace(blocks={b: [f"{b}.x"] for b in "abcdefg"}, shapes={f"{b}.x": (5, 20 if b == "e" else 10) for b in "abcdefg"})
    assert ["".join(group) for group in package._groups(work)] == ["abc", "d", "e", "fg"]


def test_an_allocation_that_was_tried_leaves_nothing_behind(base):
    package, model, name = sys.modules["finlora.compress"], opened(base("llama")), "model.layers.0.mlp.up_proj"
    work = SimpleNamespace(record=pick("decomposition", "swift"), model=model, kind=torch.float32)
    store = model.linears[name].store
    with package._as_it_was(model, [name]) as restore:
        for restored in (True, False):
            package.place(work, name, torch.ones(2, 32), torch.ones(48, 2))
            assert model.linears[name].store is not store and list(model.structured) == [name]
            if restored:
                restore()
                assert model.linears[name].store is store and not model.structured
    assert model.linears[name].store is store and not model.structured


def test_search_takes_the_best_of_what_it_tried(base, text, tmp_path):
    """Judged on one half of the held-out text, measured on the other; linears that stay dense keep their weight."""
    s = settings(base, text, tmp_path / "out", allocation="search", alphas=(0.0, 1.0), keep=0.85)
    told = []
    said = compress(s, type("Progress", (), {"note": lambda self, line: told.append(line)})())
    assert [one["allocation"] for one in said["search"]] == ["uniform", "spectrum", "loss, alpha = 0", "loss, alpha = 1"]
    after, before = opened(tmp_path / "out" / "model"), opened(s.model)
    _, held = rows_of(s, before)
    assert mean_nats(after, held[::2], 128) == pytest.approx(min(one["nats"] for one in said["search"]), abs=1e-6)
    assert said["after"]["nats"] == pytest.approx(mean_nats(after, held[1::2], 128), abs=1e-6)
    whole = [n for n, one in said["linears"].items() if one["rank"] is None]
    for name in whole:
        assert torch.equal(product(after, name), product(before, name)) and said["linears"][name]["error"] == 0
    assert sum("nats a token" in line for line in told) == 4
    with pytest.raises(FinloraError, match="^allocation = search compares allocations on held-out text"):
        compress(settings(base, text, tmp_path / "none", allocation="search", validation=0.0))


def test_ranks_that_would_not_save_stay_dense(base, text, tmp_path):
    said = compress(settings(base, text, tmp_path / "out", keep=0.98, allocation="spectrum"))
    whole = [n for n, one in said["linears"].items() if one["rank"] is None]
    assert whole and all(said["linears"][n]["params"] == math.prod(said["linears"][n]["shape"]) for n in whole)
    assert said["model"]["kept"] <= 0.98


def test_targets_leave_the_others_alone(base, text, tmp_path):
    s = settings(base, text, tmp_path / "out", targets="mlp")
    said = compress(s)
    after, before = opened(tmp_path / "out" / "model"), opened(s.model)
    assert set(said["linears"]) == set(after.structured) == {n for n in before.linears if ".mlp." in n}
    for name in set(before.linears) - set(after.structured):
        assert torch.equal(product(after, name), product(before, name))


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_numbers_are_written_as_the_model_keeps_them(base, text, tmp_path, form):
    """A bfloat16 checkpoint gives bfloat16 factors whatever it was computed in, and what was measured is what was written."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "narrow"
    shutil.copytree(base("llama"), folder)
    held = {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    s = settings(base, text, tmp_path / "out", model=str(folder), form=form)
    said = compress(s)
    file = tmp_path / "out" / "model" / ("structured.safetensors" if form == "factors" else "model.safetensors")
    assert {t.dtype for t in load_file(file).values()} == {torch.bfloat16} and said["stored"] == "bfloat16"
    after = opened(tmp_path / "out" / "model")
    assert mean_nats(after, rows_of(s, after)[1], 128) == pytest.approx(said["after"]["nats"], abs=1e-6)
    wide = compress(settings(base, text, tmp_path / "wide", model=str(folder), form=form, store="float32"))
    assert wide["stored"] == "float32" and wide["after"]["nats"] != said["after"]["nats"]


@pytest.mark.parametrize("more", [{"store": "bfloat16"}, {"store": "float16", "form": "dense"}, {"codec": "int8"}, {"codec": "nf4", "store": "bfloat16", "targets": "mlp"}], ids=str)
def test_what_is_measured_is_what_is_written(base, text, tmp_path, more):
    """All of it, rounded and encoded: the folder opened again reads the held-out rows as the receipt says."""
    asked = settings(base, text, tmp_path, **more)
    said = compress(asked)
    model = models.open_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    length = min(asked.row_tokens, model.max_tokens)
    _, held, _ = texts(asked, model.tokenizer, length)
    assert mean_nats(model, held, length) == pytest.approx(said["after"]["nats"], abs=1e-6)
    held_values = sum(p.numel() for p in model.body.parameters()) + sum(linear.store.size for linear in model.linears.values() if linear.store is not None)
    assert said["model"]["params_after"] == held_values
    if "codec" in more:
        stores = [linear.store for linear in model.linears.values() if getattr(linear.store, "structure", None)]
        assert stores and all(store.codec.name == more["codec"] for store in stores)


def test_the_factors_can_be_healed(base, text, tmp_path):
    """Opened to train, every factor has a gradient, and both factors of a linear of like size."""
    from finlora.data import collate
    from finlora.loss import token_sums

    s = settings(base, text, tmp_path / "out")
    compress(s)
    model = opened(tmp_path / "out" / "model", method="full")
    batch = collate([rows_of(s, model)[0][:1]])
    token_sums(models.hidden(model, batch), models.head(model), batch.targets, batch.weights)[0].backward()
    for name in model.structured:
        A, B = (model.trainable()[f"body.{name}.adapters.default.{key}"] for key in "AB")
        assert float(A.grad.norm()) > 0 and float(B.grad.norm()) > 0, name
        assert torch.allclose(A.norm(dim=1), B.norm(dim=0), rtol=1e-3), name


def test_a_compressed_model_can_be_compressed_again(base, text, tmp_path):
    compress(settings(base, text, tmp_path / "one", keep=0.6))
    said = compress(settings(base, text, tmp_path / "two", keep=0.3, model=str(tmp_path / "one" / "model")))
    assert said["model"]["linears_after"] < 0.31 / 0.6 * said["model"]["linears_before"] * 1.1
    assert opened(tmp_path / "two" / "model").structured


@pytest.mark.parametrize("allocation", ["uniform", "spectrum"])
def test_what_is_narrow_already_stays_and_its_budget_goes_to_the_others(base, text, tmp_path, allocation):
    compress(settings(base, text, tmp_path / "one", keep=0.1, targets="mlp"))
    said = compress(settings(base, text, tmp_path / "two", keep=0.5, model=str(tmp_path / "one" / "model"), allocation=allocation))
    before, after = opened(tmp_path / "one" / "model"), opened(tmp_path / "two" / "model")
    for name, one in said["linears"].items():
        assert one["params"] == after.linears[name].store.size <= before.linears[name].store.size
        if ".mlp." in name:
            assert one["rank"] is None and torch.equal(product(before, name), product(after, name))
    assert said["model"]["linears_after"] == sum(one["params"] for one in said["linears"].values()) and said["model"]["kept"] <= 0.5


def test_a_compressed_model_ends_where_it_did_and_says_what_it_is_kept_in(base, text, tmp_path):
    shutil.copytree(base("llama"), tmp_path / "chat")
    (tmp_path / "chat" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 17]}))
    for form in ("factors", "dense"):
        compress(settings(base, text, tmp_path / form, model=str(tmp_path / "chat"), form=form, store="bfloat16"))
        again = models.open_model(str(tmp_path / form / "model"), dtype="float32", device="cpu")
        assert again.body.generation_config.eos_token_id == [1, 17]
        assert json.loads((tmp_path / form / "model" / "config.json").read_text())["dtype"] == "bfloat16"


# -- the text ------------------------------------------------------------------------------------------------------------


def test_held_out_documents_are_whole_and_the_seed_draws_them(base, text, tokenizer):
    def ids(rows):
        return {r.id.rsplit(":", 1)[0] for r in rows}

    s = settings(base, text, "x", tokens=100_000, val_tokens=100_000)
    rows, held, told = look.texts(s, tokenizer, 32)
    assert not ids(rows) & ids(held) and len(ids(rows) | ids(held)) == 40 == told["documents"]
    assert look.texts(s, tokenizer, 32)[:2] == (rows, held)
    assert ids(look.texts(settings(base, text, "x", seed=1), tokenizer, 32)[1]) != ids(held)
    few, _, told = look.texts(settings(base, text, "x", tokens=700), tokenizer, 32)
    assert 700 <= told["tokens"] < 700 + 32 and len(ids(few)) > 8, "no document gives it all"
    only = look.texts(settings(base, text, "x", sources=("odd",)), tokenizer, 32)
    assert {r.id.split("/")[0] for r in only[0]} == {"odd"}
    own = look.texts(settings(base, text, "x", tokens=100_000, val_text=(text,)), tokenizer, 32)
    assert len(ids(own[0])) == 40 and ids(own[1]) <= ids(own[0]), "text to measure on of its own leaves all of the other to calibrate on"


def test_every_document_gives_a_row_before_one_gives_two(tokenizer):
    words = ["sales", "profit", "costs", "guidance", "dividend", "orders"]
    found = [Document(str(k), "s", " ".join(words[(k + n * n) % 6] for n in range(20 * (1 + k % 7)))) for k in range(30)]
    all_ = look._read(found, tokenizer, 16, 10**6)
    of = {d.id: [t for t in all_ if t.id.rpartition(":")[0] == f"s/{d.id}"] for d in found}
    wanted = [t for rows in zip_longest(*of.values()) for t in rows if t is not None]  # nothing let go on the way
    assert len(wanted) == len(all_) > 100 and len({len(rows) for rows in of.values()}) > 3
    for most in (1, 300, 500, 700, 900, 1200, 10**6):
        got = look._read(found, tokenizer, 16, most)
        assert [t.ids for t in got] == [t.ids for t in wanted[: len(got)]]
        assert sum(len(t.ids) - 1 for t in got[:-1]) < most and (len(got) == len(wanted) or sum(len(t.ids) - 1 for t in got) >= most)
    assert any(t.ids != data.pieces(document(d.text, tokenizer, "x"), 16)[0].ids for d, t in zip(found, wanted)), "not all begin a document"


def test_of_a_single_document_the_last_rows_are_held_out(base, tokenizer, tmp_path):
    (tmp_path / "one.txt").write_text("Net sales rose and profit fell. " * 20, encoding="utf-8")
    s = settings(base, str(tmp_path / "one.txt"), "x")
    rows, held, told = look.texts(s, tokenizer, 8)
    whole, _, _ = look.texts(settings(base, str(tmp_path / "one.txt"), "x", validation=0.0), tokenizer, 8)
    assert rows + held == whole and len(held) == round(0.2 * len(whole)) > 1 and told["rows"] == len(rows)


def test_short_text_works_and_says_so_once(base, tmp_path):
    (tmp_path / "short.txt").write_text("Net sales rose and profit fell.", encoding="utf-8")
    s = settings(base, str(tmp_path / "short.txt"), tmp_path / "out", row_tokens=8)
    told = []
    said = compress(s, type("Progress", (), {"note": lambda self, line: told.append(line)})())
    note = f"has {said['text']['tokens']} tokens, fewer than the 48 inputs of model.layers.0.mlp.down_proj"
    assert sum(note in line for line in told) == 1 and sum(note in line for line in said["notes"]) == 1
    assert said["text"]["tokens"] < 48 and said["text"]["val_tokens"] > 0 and math.isfinite(said["after"]["nats"])
    (tmp_path / "one.txt").write_text("Net", encoding="utf-8")
    said = compress(settings(base, str(tmp_path / "one.txt"), tmp_path / "one", row_tokens=8))
    assert said["after"] == {} and said["text"]["rows"] == 1


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keep": 0.0}, "keep must be above 0"),
        ({"keep": 1.0}, "keep must be above 0 and below 1, got 1.0"),
        ({"keep": math.nan}, "keep must be"),
        ({"keep": "half"}, "keep = "),
        ({"text": ()}, "text must be filled in"),
        ({"allocation": "best"}, "allocation must be one of uniform, spectrum, loss, search"),
        ({"alphas": (0.5, 2.0)}, "alphas must be from 0 to 1, got 2"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"form": "gguf"}, "form must be one of factors, dense"),
        ({"tokens": 1}, "tokens must be at least 2"),
        ({"floor": 0.1}, "floor has no effect with allocation = uniform"),
        ({"val_text": ("y",), "validation": 0.3}, "validation has no effect beside val_text"),
        ({"validation": 0.0, "val_tokens": 99}, "val_tokens has no effect where nothing is held out"),
        ({"form": "dense", "codec": "nf4"}, "codec = nf4 has no effect with form = dense"),
    ],
)
def test_settings_check_themselves(change, message):
    with pytest.raises(FinloraError, match=f"^{re.escape(message)}"):
        Compress(**{"text": ("x",), **change})


def test_what_is_no_linear_map_is_refused_by_name(text, tokenizer, tmp_path):
    model = models.new_model({"family": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}, tokenizer, 0, dtype="float32", device="cpu")
    record = pick("structure", "cola")
    models.save(restructure.put(model, restructure.plan(record, record.config(rank=4), restructure.shapes_of(model.body))), tmp_path / "cola")
    with pytest.raises(FinloraError, match=r"^transformer.h.0.attn.c_attn: structure `cola` is not one linear map"):
        compress(Compress(model=str(tmp_path / "cola"), out=str(tmp_path / "out"), text=(text,), keep=0.1))
    assert not (tmp_path / "out").exists()


def test_refusals_are_one_line_and_leave_nothing_behind(base, text, tmp_path):
    out = tmp_path / "out"

    def refused(message, text=text, **change):
        with pytest.raises(FinloraError, match=message) as e:
            compress(settings(base, text, out, **change))
        assert "\n" not in str(e.value) and not out.exists()

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("  \n ")
    refused("empty.txt` is empty", text=str(tmp_path / "empty.txt"))
    refused("^text: no document is left", text=str(tmp_path / "blank.txt"))
    refused("^text: no document is left", sources=("none",))
    refused("^val_text: there is no file or folder", val_text=(str(tmp_path / "nowhere"),))
    refused("^text: there is no file or folder", text=str(tmp_path / "nowhere"))
    refused("there is no folder", model=str(tmp_path / "nowhere"))
    refused("keep is 0.01, and rank 1 everywhere keeps 0.0", keep=0.01)
    refused("did you mean `swift`", decomposition="swft")
    refused("options.ridgee", options={"ridgee": 1})
    refused("^ridge must be a number", options={"ridge": -1})
    refused("^options.ridge = nan is out of range", options={"ridge": math.nan})
    refused("^targets: `conv` matches no linear", targets="conv")
    refused("^alpha has no effect with allocation = uniform", alpha=0.3)
    refused("^alphas has no effect with allocation = loss", alphas=(0.3,), allocation="loss")


def test_a_folder_that_is_not_free(base, text, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FinloraError, match=r"^out: `.*` is not empty \(`mine.txt`\)"):
        compress(settings(base, text, tmp_path))
    with pytest.raises(FinloraError, match="is a file"):
        compress(settings(base, text, tmp_path / "mine.txt"))
    (tmp_path / "model").mkdir()
    with pytest.raises(FinloraError, match="holds a `model` that no compression left there"):
        compress(settings(base, text, tmp_path, overwrite=True))
    (tmp_path / "model").rmdir()
    first = compress(settings(base, text, tmp_path, overwrite=True, keep=0.3))
    with pytest.raises(FinloraError, match=r"^keep = 0.5: the linears of .* hold \d+% of their dense parameters already"):
        compress(settings(base, text, tmp_path / "twice", model=str(tmp_path / "model"), keep=0.5))
    again = compress(settings(base, text, tmp_path, overwrite=True, keep=0.6))
    assert (tmp_path / "mine.txt").read_text() == "mine" and again["model"]["kept"] > first["model"]["kept"]
    with pytest.raises(FinloraError, match="overwrite would remove .*, which is to be compressed"):
        compress(settings(base, text, tmp_path, model=str(tmp_path / "model"), overwrite=True, keep=0.2))
    shutil.copy(text, mine := tmp_path / "model" / "mine.jsonl")
    for read, more in ((str(mine), {}), (text, {"val_text": (str(tmp_path / "model"),)})):
        with pytest.raises(FinloraError, match="overwrite would remove .*, which is to be read"):
            compress(settings(base, read, tmp_path, overwrite=True, **more))
    assert mine.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "compress.json").write_text('{"mine": 1}')
    with pytest.raises(FinloraError, match="holds a `compress.json` that no compression left there"):
        compress(settings(base, text, tmp_path / "mine", overwrite=True))
    (tmp_path / "spec.toml").touch()
    with pytest.raises(FinloraError, match="holds a run, whose model would be overwritten"):
        compress(settings(base, text, tmp_path, overwrite=True, keep=0.6))


@pytest.fixture
def damaged(base, tmp_path):
    """damaged(name, value) -> a folder whose tensor `name` holds one `value`."""

    def make(name, value):
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "damaged"
        shutil.copytree(base("llama"), folder)
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[3] = value
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return make


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"])
def test_weights_that_are_not_finite(base, text, tmp_path, damaged, name):
    where = "model.layers.1.mlp.up_proj: a weight" if "up_proj" in name else f"`{name}`: a weight"
    with pytest.raises(FinloraError, match=re.escape(where)):
        compress(settings(base, text, tmp_path / "out", model=damaged(name, math.nan)))
    assert not (tmp_path / "out").exists()


def test_inputs_and_losses_that_are_not_finite(base, text, tmp_path, damaged):
    """Weights that are finite and too large: what they make is not."""
    for validation, wanted in ((0.2, "reads the held-out text at nan nats"), (0.0, "its inputs are not finite")):
        model = damaged("model.layers.1.input_layernorm.weight", 1e38)
        with pytest.raises(FinloraError, match=wanted):
            compress(settings(base, text, tmp_path / "out", model=model, validation=validation))
        shutil.rmtree(model)


def test_an_encoder_is_refused(base, text, tmp_path, tokenizer):
    import transformers

    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(FinloraError, match="is no causal language model"):
        compress(settings(base, text, tmp_path / "out", model=str(tmp_path / "bert")))
    assert not (tmp_path / "out").exists()


def test_from_the_command_line_and_on_from_there(base, text, tmp_path, capsys):
    """compress, heal by training the factors on, write from it: one chain of folders."""
    from finlora.cli import main

    out, heal = tmp_path / "c", tmp_path / "heal.toml"
    small = ["--set", "tokens=1500", "--set", "row_tokens=128", "--set", "options.ridge=1e-3", "--set", "dtype=float32"]
    assert main(["compress", base("llama"), "--calibrate", text, "--keep", "0.5", "-o", str(out), *small]) == 0
    assert "parameters to" in capsys.readouterr().out
    assert json.loads((out / "compress.json").read_text())["settings"]["options"] == {"ridge": 1e-3}
    heal.write_text(f"""
[run]
dtype = "float32"
out = "{tmp_path / "h"}"
[model]
name = "{out / "model"}"
[method]
kind = "full"
[data]
text = ["{text}"]
row_tokens = 64
[train]
steps = 2
batch = 2
""")
    assert main(["pretrain", str(heal)]) == 0
    held = json.loads((tmp_path / "h/receipt.json").read_text())["model"]
    assert held["params"] == held["trainable"] == json.loads((out / "compress.json").read_text())["model"]["params_after"]
    assert main(["generate", "net sales", "--model", str(tmp_path / "h/model"), "--max-new", "2"]) == 0
    for words, wanted in (
        ([base("llama"), "--calibrate", text, "--keep", "1.5"], "keep"),
        ([base("llama"), "--calibrate", text, "--set", "kep=1"], "kep"),
        ([base("llama"), "--calibrate", text, "--set", "sequential"], "key=value"),
        ([str(tmp_path / "none"), "--calibrate", text, "-o", str(tmp_path / "x")], "none"),
    ):
        capsys.readouterr()
        assert main(["compress", *words]) == 2
        told = capsys.readouterr().err.strip()
        assert wanted in told and told.startswith("error:") and "\n" not in told
