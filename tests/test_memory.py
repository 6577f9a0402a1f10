"""Recomputation: the same loss and gradients under every policy, for exactly the memory that each is said to keep.

Shapes: B rows, T tokens, R rank, I in.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finlora import loss, memory, registry
from finlora.data import collate
from finlora.errors import FinloraError
from finlora.linear import Method
from finlora.methods.lora import LoRA
from finlora.model import hidden, recompute, rewire
from finlora.registry import pick
from finlora.restructure import freeze, plan, put, shapes_of
from finlora.structured import Guided, guided
from finlora.text import Tokens
from finlora.train import step

DROPOUT = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
AGAIN = ("full", "selective", "narrow")
T = 32
# narrow writes its gradients out by hand; as it happens they are autograd's to the bit on a CPU with one thread (48 cases
# here in fp32 and bf16), and another matrix library may add in another order
ROUNDING = 1e-5


def tokens(k: int, n: int) -> Tokens:
    return Tokens(tuple(3 + (7 * k + 5 * i) % 300 for i in range(n)), (1.0,) * n)


PLAIN = [[tokens(0, T + 1)], [tokens(1, T + 1)]]
PACKED = [[tokens(0, 20), tokens(1, 13)], [tokens(2, 30)]]


def structured(model, kind: str, keep: float = 0.6):
    """The model with its linears replaced by that structure, each with at most `keep` of their parameters."""
    record = pick("structure", kind)
    model.requires_grad_(True)
    return put(model, plan(record, record.config(), shapes_of(model.body), keep=keep))


@pytest.fixture
def make(make_model):
    """make("cola", "gpt2") -> a model in training: a structure's name, dense, or LoRA over a codec."""

    def made(kind: str, family: str = "llama", **settings):
        model = make_model(family, **settings)
        model.requires_grad_(True)
        if kind in registry.names("codec"):
            rewire(model, codec=kind, method="lora", method_config=LoRA(rank=4))
            torch.manual_seed(1)
            for p in model.trainable().values():
                p.data.add_(0.02 * torch.randn_like(p))
        elif kind != "plain":
            structured(model, kind, 1.0 if kind == "dense" else 0.6)
        return model.train()

    return made


def taken(model, batch) -> tuple[tuple[float, float], dict[str, torch.Tensor]]:
    """(what step tells, gradients), with the same draws of dropout at each call."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    told = step(model, [batch])
    return told, {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}


def check_same(model, batch, exact: bool = False) -> None:
    told, grads = taken(model, batch)
    for policy in (*AGAIN, "none"):
        memory.apply(model, policy)
        found, again = taken(model, batch)
        bits = exact or policy != "narrow"
        assert found == told if bits else abs(found[0] - told[0]) <= ROUNDING * abs(told[0]), policy
        assert again.keys() == grads.keys() and grads
        for name, g in grads.items():
            close = torch.equal(g, again[name]) if bits else float((g - again[name]).norm()) <= ROUNDING * float(g.norm())
            assert close, (policy, name)


# -- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "nf4", *registry.names("structure")])
def test_no_policy_changes_loss_or_gradient(kind, make):
    """Over the family of structures, a plain model, and LoRA over a frozen base; dropout on, rows of one document and of several."""
    model = make(kind, "gpt2", **DROPOUT)
    for rows in (PLAIN, PACKED):
        check_same(model, collate(rows))


@pytest.mark.parametrize("kind", ["lowrank", "cola"])
def test_no_policy_changes_them_in_mixed_precision(kind, make):
    model = make(kind, "llama", dtype="bfloat16")
    assert next(iter(model.trainable().values())).dtype == torch.float32
    check_same(model, collate(PLAIN))


def test_a_frozen_low_rank_model_takes_adapters_under_every_policy(make):
    model = freeze(make("cola"), "int8")
    for linear in model.linears.values():
        n_out, n_in = linear.shape
        linear.attach("default", pick("method", "lora"), LoRA(rank=2), {"A": torch.randn(2, n_in), "B": 0.1 * torch.randn(n_out, 2)})
    model.route.active = "default"
    check_same(model.train(), collate(PLAIN))
    held = {key: memory.activation_bytes(model, (2, T), key) for key in ("full", "selective")}
    # the products with the frozen A as well as with the adapters' own
    inner = sum(len(linear.store.parts["A"].dense()) + 2 for linear in model.linears.values())
    assert held["selective"] - held["full"] == 4 * 2 * T * inner


def test_narrow_needs_only_what_asks_for_a_gradient(make):
    """A and B frozen one by one: what still trains has the gradient that it had."""
    model, batch = make("cola"), collate(PLAIN)
    for frozen in ("A", "B"):
        for name, p in model.named_parameters():
            p.requires_grad_(not name.endswith(f".{frozen}"))
        check_same(model, batch)


def test_narrow_is_taken_back(make):
    model = make("lowrank")
    plain = {name: linear.how["default"] for name, linear in model.linears.items()}
    memory.apply(model, "narrow")
    memory.apply(model, "narrow")
    assert all(isinstance(linear.how["default"][0].apply, memory.Narrow) for linear in model.linears.values())
    memory.apply(model, "none")
    assert {name: linear.how["default"] for name, linear in model.linears.items()} == plain
    assert all(isinstance(method, Method) for method, _ in plain.values())


def no_slope(between, z):
    return between(z), lambda g: g


@pytest.mark.parametrize("fault", ["no slope of between", "keeps what it should not", "keeps nothing narrow", "draws dropout anew"])
def test_a_fault_is_found(fault, make, monkeypatch):
    model = make("cola", "gpt2", **DROPOUT)
    if fault == "no slope of between":
        monkeypatch.setattr(memory, "_pulled", no_slope)
    elif fault == "draws dropout anew":
        plain = torch.utils.checkpoint.checkpoint
        forgetful = lambda f, *args, **options: plain(f, *args, preserve_rng_state=False, **options)  # noqa: E731
        monkeypatch.setattr("transformers.modeling_utils.checkpoint", forgetful)
    else:
        policy, wide = memory.CheckpointPolicy, "should not" in fault

        def keep(products, ctx, op, *args, **options):
            return policy.MUST_SAVE if wide and op in memory.WEIGHT_AT else policy.PREFER_RECOMPUTE

        monkeypatch.setattr(memory, "_keep", keep)
    with pytest.raises(AssertionError):
        check_same(model, collate(PLAIN))
        z = inner_bytes(model)
        held = {key: memory.activation_bytes(model, (2, T), key) for key in ("full", "selective")}
        assert held["selective"] == held["full"] + z


class Products(TorchDispatchMode):
    """How often x was multiplied with a weight of each shape, (I, R)."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.seen.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy, A_times, B_times", [("none", 1, 1), ("full", 2, 2), ("selective", 1, 2), ("narrow", 2, 1)])
def test_what_is_multiplied_twice(policy, A_times, B_times, make_model):
    model, record = make_model("llama").requires_grad_(True).train(), pick("structure", "lowrank")
    shapes = shapes_of(model.body)
    put(model, plan(record, record.config(rank=5), shapes, patterns={"up_proj": {"rank": 7}}))  # shapes that nothing else has
    memory.apply(model, policy)
    with Products() as products:
        step(model, [collate(PLAIN)])
    (n_out, n_in), layers = next(shape for name, shape in shapes.items() if name.endswith("up_proj")), 2
    assert products.seen.count((n_in, 7)) == A_times * layers
    assert products.seen.count((7, n_out)) == B_times * layers


# -- the memory ------------------------------------------------------------------------------------------------------


def inner_bytes(model) -> int:
    """Bytes of every z = A x of a step of PLAIN."""
    return 4 * 2 * T * sum(len(linear.adapters["default"]["A"]) for linear in model.linears.values())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_what_each_policy_keeps(family, make):
    """To the byte: narrow keeps what dense training does, and every other way of keeping z costs its own size."""
    batch, kept = collate(PLAIN), {}
    for kind in ("plain", "lowrank", "cola"):
        model = make(kind, family)
        for policy in memory.POLICIES:
            memory.apply(model, policy)
            kept[kind, policy] = memory.kept_bytes(model, batch)
    z = inner_bytes(model)
    for kind, times in (("lowrank", 1), ("cola", 2)):
        assert kept[kind, "none"] == kept["plain", "none"] + times * z
        assert kept[kind, "narrow"] == kept["plain", "none"]
        assert kept[kind, "full"] == kept["plain", "full"]
        assert kept[kind, "selective"] == kept["plain", "full"] + z
        assert kept[kind, "full"] < kept[kind, "selective"] < kept[kind, "narrow"] < kept[kind, "none"]


@pytest.mark.parametrize("kind, family", [("cola", "gpt2"), ("nf4", "llama"), ("lowrank", "mistral")])
def test_the_prediction_is_exact(kind, family, make):
    model = make(kind, family, **(DROPOUT if family == "gpt2" else {})).eval()
    first = taken(model, collate(PLAIN))
    for policy, rows in (("none", PLAIN), ("selective", PACKED), ("narrow", PLAIN)):
        told = memory.activation_bytes(model, collate(rows), policy)
        memory.apply(model, policy)
        assert told == memory.kept_bytes(model, collate(rows)), policy
        memory.apply(model, "none")
    assert not model.training and model.__dict__["recomputation"] == "none"
    again = taken(model, collate(PLAIN))  # no tensor without numbers stayed behind
    assert again[0] == first[0] and all(torch.equal(g, first[1][name]) for name, g in again[1].items())


def test_a_prediction_takes_rows_and_tokens_and_no_memory(make):
    model = make("lowrank", "gpt2", n_positions=65536)
    one, two = (memory.activation_bytes(model, (rows, 60_000), "none") for rows in (20, 40))
    assert 1.999 * one < two <= 2 * one and two > 11e9


def test_the_count_agrees_with_hooks_on_saved_tensors(make):
    """Autograd's own view of what it saved, each piece of memory once and parameters apart; where nothing is computed again
    the two differ by the forward pass's last tensor alone."""
    model, batch, found = make("lowrank", "gpt2"), collate(PLAIN), {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())} | {batch.ids.data_ptr()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = hidden(model, batch)
    count = memory.kept_bytes(model, batch)
    assert 0 <= count - sum(found.values()) <= 2 * out.nbytes


def test_alive_counts_memory_and_not_names():
    big = torch.ones(1000)
    with memory.Alive() as alive:
        view, twice = big.view(10, 100), big * 2
        same, parts = twice.t(), twice.split(100)
        assert alive.now() == 4000
        big.add_(1)
        assert alive.now() == 4000
        more = twice + 1
        assert alive.now() == 8000
        del more, twice, same
        assert alive.now() == 4000, "the parts hold it"
        del parts
    assert alive.now() == 0 and alive.peak == 8000 and view.numel() == 1000


@pytest.mark.slow
def test_table(make_model):
    """The table of the module's docstring, measured anew."""
    lines = re.findall(r"^    (dense|lowrank|cola) +([\d. ]+)$", memory.__doc__, re.MULTILINE)
    assert [kind for kind, _ in lines] == ["dense", "lowrank", "cola"]
    width = {"n_embd": 768, "n_head": 12, "n_positions": 1024, **dict.fromkeys(DROPOUT, 0.0)}
    for kind, numbers in lines:
        found = []
        for activation in ("gelu_new", "gelu_pytorch_tanh"):
            models = [make_model("gpt2", n_layer=layers, activation_function=activation, **width) for layers in (1, 2)]
            for model in models if kind != "dense" else ():
                structured(model, kind, 1 / 2.64)
            for model in models:
                model.requires_grad_(True)
            kept = [[memory.activation_bytes(m, (1, 1024), policy) for m in models] for policy in memory.POLICIES]
            found.append([(two - one) / (4 * 768 * 1024) for one, two in kept])
        assert found[0][1:3] == found[1][1:3]
        none, narrow = ([row[k] for row in found] for k in (0, 3))
        told = [float(x) for x in numbers.split()]
        assert told == pytest.approx([*none, *found[0][1:3], *narrow], abs=0.005), kind


def test_the_loss_holds_two_chunks_of_logits():
    """However many positions there are: the last chunk's, and the next one's while it is made; beside them, twice the head's gradient."""
    D, V, chunk = 16, 2000, 64

    def peak(n: int) -> int:
        W, x, target = torch.randn(V, D, requires_grad=True), torch.randn(n, D, requires_grad=True), torch.arange(n) % V
        with memory.Alive() as alive:
            loss.token_sums(x, loss.Head(W), target, torch.ones(n), chunk)[0].backward()
        return alive.peak - 3 * x.nbytes  # gathered, its gradient, and that again times the divisor

    four, sixteen = peak(4 * chunk), peak(16 * chunk)
    assert sixteen - four <= 16 * chunk * 32 and sixteen <= 4 * V * (2 * chunk + 3 * D) + 16 * chunk * 32


# -- said and refused ------------------------------------------------------------------------------------------------


def test_what_would_have_no_effect_is_said(make):
    plain, low = make("plain"), make("lowrank")
    assert "`selective` is `full`" in memory.apply(plain, "selective")
    assert "`narrow` is `none`" in memory.apply(plain, "narrow")
    assert "`narrow` is `none`" in memory.apply(make("nf4"), "narrow")
    assert not any(memory.apply(low, policy) for policy in memory.POLICIES)
    assert recompute(low, True) == recompute(low, False) == recompute(low, "selective") == ""


def test_a_guided_structure_is_no_chain(make_model):
    model, record = make_model("llama"), pick("structure", "lowrank")
    config = Guided(record.config(rank=4), 0.5)
    put(model.requires_grad_(True), {name: (guided(record), config) for name in shapes_of(model.body)})
    assert "`narrow` is `none`" in memory.apply(model, "narrow")


def test_refusals(make, monkeypatch):
    model = make("plain")
    with pytest.raises(FinloraError, match="did you mean `selective`"):
        memory.apply(model, "selectiv")
    monkeypatch.setattr(type(model.body), "supports_gradient_checkpointing", False)
    with pytest.raises(FinloraError, match="cannot compute its blocks again"):
        memory.apply(model, "full")
    memory.apply(model, "narrow")
    memory.apply(model, "none")
