"""What a forward pass keeps for the backward pass, and what is computed a second time instead.

    none        all that autograd asks for
    full        of each block its input; the block is computed again (Chen et al. 2016, 1604.06174)
    selective   as full, and every narrow product z = A x of a low-rank map besides: the second time round A x is not multiplied
                again and only what is wide is (CoLA-M, 2502.10940)
    narrow      all but z = A x and between(z), which are computed again from x: one more product of T r n_in multiply-adds
                for each low-rank map (FinGPT-HPC, 2402.13533)

Loss and gradient are those of `none` to the bit, but under narrow only to rounding, whose gradients are written out by hand.
Dropout draws the same mask both times.

Bytes a token that one block of GPT-2 keeps in fp32, in units of 4 d (one vector of the model's width), d = 768 and 12 heads, without
dropout; lowrank and cola at 2.64 times fewer parameters in each linear, rank 218 and 232.  First with transformers' default
activation gelu_new, which is eight operations, then with the same function as one (gelu_pytorch_tanh):

                none            full    selective   narrow
    dense       28.02   16.02   1.00    1.00        28.02   16.02
    lowrank     29.10   17.10   1.00    2.08        28.02   16.02
    cola        30.17   18.17   1.00    2.08        28.02   16.02

So the paper's policy is the mild one: what low-rank training keeps is as wide as what dense training keeps, and z is 4 to 12 %
of it.  To these come the last hidden states and, while a block is computed again, what `none` keeps of that one block.

`full` and `selective` are torch.utils.checkpoint under transformers' own switch. A narrow product is known by the shape of its
weight, so `selective` serves adapters over frozen weights too. `narrow` replaces the `apply` of structures that are chains and
leaves all else as it is; a structure with a dense guide beside it is no chain.

Shapes: x (..., I), z (..., R), y (..., O), A_RI, B_OR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from .data import Batch, collate
from .errors import FinloraError, unknown
from .linear import Linear, Store
from .seam import Structure
from .structured import Chain, Composite
from .text import Tokens
from .traits import pair

if TYPE_CHECKING:
    from .model import Model

POLICIES = ("none", "full", "selective", "narrow")
WEIGHT_AT = {torch.ops.aten.mm.default: 1, torch.ops.aten.addmm.default: 2}  # where a product has its weight, as (in, out)


def apply(model: Model, policy: str) -> str:
    """Let the model's training keep what the policy says, in place; returns what there is to say about it, or "".

    To be called when its linears are what they will be in training.  Only a model in training mode computes again.
    Raises: FinloraError for another policy, or a family whose blocks cannot be computed again.
    """
    if policy not in POLICIES:
        raise unknown("recomputation policy", policy, POLICIES, "train.recompute")
    products, chains = narrow_products(model), list(_chains(model))
    for linear, name, structure in chains:
        method, cfg = linear.how[name]
        plain = method.apply.plain if isinstance(method.apply, Narrow) else method.apply
        linear.how[name] = replace(method, apply=Narrow(structure, plain) if policy == "narrow" else plain), cfg
    _blocks(model, policy, products)
    model.__dict__["recomputation"] = policy
    if policy == "selective" and not products:
        return "recompute: no linear of this model has a narrow product to keep, so `selective` is `full`"
    if policy == "narrow" and not chains:
        return "recompute: no linear of this model is trained as a low-rank chain, so `narrow` is `none`"
    return ""


def _blocks(model: Model, policy: str, products: set[tuple[int, int]]) -> None:
    """Switch recomputation of the body's blocks on or off."""
    body = model.body
    name = "activation_checkpointing" if hasattr(body, "activation_checkpointing_enable") else "gradient_checkpointing"
    if policy in ("none", "narrow"):
        getattr(body, f"{name}_disable", lambda: None)()
    elif not getattr(body, "supports_gradient_checkpointing", False):
        raise FinloraError(f"{type(body).__name__} cannot compute its blocks again, as train.recompute = `{policy}` asks", 'write train.recompute = "none"')
    else:
        options: dict[str, Any] = {"use_reentrant": False}
        if policy == "selective" and products:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_keep, frozenset(products)))
        getattr(body, f"{name}_enable")(**{f"{name}_kwargs": options})
    if getattr(body, "_require_grads_hooks", None) or hasattr(body, "_require_grads_hook"):
        # a hook for reentrant checkpoints, which would have gradients of frozen embeddings computed to be thrown away
        body.disable_input_require_grads()


def _keep(products: frozenset[tuple[int, int]], ctx: Any, op: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    at = WEIGHT_AT.get(op)
    kept = at is not None and tuple(args[at].shape) in products
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def narrow_products(model: Model) -> set[tuple[int, int]]:
    """(I, R) of every product z = A x in the model: of structures, of chains of linears, of low-rank adapters over a base."""
    found = [structure.chain(cfg, params)[0] for structure, cfg, params in _structures(model) if structure.chain is not None]
    for linear in model.linears.values():
        for name, (method, cfg) in linear.how.items() if linear.store is not None else ():
            held = pair(method, cfg, dict(linear.adapters[name].items()))
            found += [] if held is None else [held[0]]
    out = {(A.shape[1], A.shape[0]) for A in found}
    return out | {(m.A.shape[1], m.A.shape[0]) for m in model.body.modules() if isinstance(m, Chain)}


def _structures(model: Model) -> Iterator[tuple[Structure, Any, dict[str, Tensor]]]:
    """(record, settings, parameters) of the structures of the model; of frozen ones the shapes alone."""
    for linear, name, structure in _chains(model):
        yield structure, linear.how[name][1], dict(linear.adapters[name].items())
    for linear in model.linears.values():
        if isinstance(linear.store, Composite):
            parts = {key: torch.empty(part.shape, device="meta") for key, part in linear.store.parts.items()}
            yield linear.store.structure, linear.store.how, parts


def _chains(model: Model) -> Iterator[tuple[Linear, str, Structure]]:
    """The linears in training whose structure is a chain, with the name of the adapter that holds it."""
    for key, (structure, _) in model.structured.items():
        linear = model.linears.get(key)
        if linear is not None and linear.store is None and linear.sole is not None and structure.chain is not None:
            yield linear, linear.sole, structure


# -- narrow ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Narrow:
    """`Method.apply` of a chain that keeps x alone. plain: the one that it stands for."""

    structure: Structure
    plain: Callable[..., Tensor]

    def __call__(self, cfg: Any, params: Any, x: Tensor, y0: Tensor | None, base: Any) -> Tensor:
        """y = B between(A x)."""
        A, B = self.structure.chain(cfg, params)
        between = None if self.structure.between is None else partial(self.structure.between, cfg)
        kind = x.device.type
        # the backward pass has no autocast of its own: what the forward pass computes in is settled here
        return _Narrow.apply(x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x, A, B, between)


class _Narrow(torch.autograd.Function):
    """B between(A x) that keeps x and the factors; A and B are masters, computed with in x's type."""

    @staticmethod
    def forward(ctx, x: Tensor, A_RI: Tensor, B_OR: Tensor, between: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.save_for_backward(x, A_RI, B_OR)
        ctx.between = between
        z = F.linear(x, A_RI.to(x.dtype))
        return F.linear(z if between is None else between(z), B_OR.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, A_RI, B_OR = ctx.saved_tensors
        x_NI, g_NO = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        A, B = A_RI.to(x.dtype), B_OR.to(x.dtype)
        z = s = x_NI @ A.t()
        if ctx.between is not None:
            s, pull = _pulled(ctx.between, z)
        wants_x, wants_A, wants_B, _ = ctx.needs_input_grad
        g_B = (g_NO.t() @ s).to(B_OR.dtype) if wants_B else None
        if not (wants_x or wants_A):
            return None, None, g_B, None
        g_NR = g_NO @ B
        if ctx.between is not None:
            g_NR = pull(g_NR)
        g_A = (g_NR.t() @ x_NI).to(A_RI.dtype) if wants_A else None
        return (g_NR @ A).view_as(x) if wants_x else None, g_A, g_B, None


def _pulled(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(f(z), g -> g df/dz)."""
    if torch.compiler.is_compiling():  # which follows vjp and not autograd.grad; called as it stands vjp takes 0.3 ms longer
        s, pull = torch.func.vjp(f, z)
        return s, lambda g: pull(g)[0]
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        s = f(z)
    return s.detach(), lambda g: torch.autograd.grad(s, z, g)[0]


# -- how much --------------------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, for as long as they live; each piece of memory once.

    now(): bytes alive. peak: the most there were at once.  What is kept outside autograd's graph counts as well, which
    hooks on saved tensors do not see.
    """

    def __init__(self):
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in _owned(func, out):
            storage = tensor.untyped_storage()
            ref = StorageWeakRef(storage)
            if ref not in self.made:
                self.made[ref] = storage.nbytes()
                self.total += self.made[ref]
        if self.total > self.peak:
            self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        """Bytes alive."""
        for ref in [ref for ref in self.made if ref.expired()]:
            self.total -= self.made.pop(ref)
        return self.total


def _owned(func: Any, out: Any) -> list[Tensor]:
    """Those results of an operator that are no alias of an argument, whose memory was counted when it was made or was there before."""
    told = func._schema.returns
    results = [out] if len(told) == 1 else out or ()
    fresh = [one for one, what in zip(results, told) if what.alias_info is None]
    flat = [t for one in fresh for t in (one if isinstance(one, tuple | list) else (one,))]
    return [t for t in flat if isinstance(t, Tensor)]


def kept_bytes(model: Model, batch: Batch) -> int:
    """Bytes that a forward pass over the batch, up to the last hidden states, makes and holds for the backward pass; measured."""
    from .model import hidden

    with _training(model), Alive() as alive:
        out = hidden(model, batch)
        kept = alive.now()
        del out
    return kept


class _Shapes(TorchDispatchMode):
    """Inside a FakeTensorMode: what depends on no weight is calculated all the same, since positions and masks decide what
    a model does. held: the memory of the model's own tensors."""

    def __init__(self, held: set[int]):
        super().__init__()
        self.held = held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(isinstance(x, FakeTensor) or x.untyped_storage().data_ptr() in self.held for x in given):
            return func(*args, **kwargs)
        # what is made of nothing may be large, and is asked without numbers first
        if not given and _floats(out := func(*args, **kwargs)):
            return out
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _floats(out: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in tree_leaves(out))


def activation_bytes(model: Model, batch: Batch | tuple[int, int], policy: str | None = None) -> int:
    """What `kept_bytes` would be under a policy (None: the one in force), found without memory and without work.

    batch: as it would be trained on, or (rows, tokens) for rows of one document each.  The forward pass runs on tensors that
    have a shape and no numbers.  torch.compile, which chooses for itself what it keeps, is left out.  The policy in force and
    the training mode are left as they were.
    """
    before = model.__dict__.get("recomputation", "none")
    if isinstance(batch, tuple):
        rows, tokens = batch
        batch = collate([[Tokens((0,) * (tokens + 1), (1.0,) * (tokens + 1))]] * rows)
    batch = batch.to(model.device)
    for store in {m.codec.name: m for m in model.modules() if isinstance(m, Store)}.values():
        store.dense()  # tables that a codec makes once must be made of numbers
    compiled, model.__dict__["compiled"] = model.compiled, None
    try:
        if policy is not None:
            apply(model, policy)
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        with FakeTensorMode(allow_non_fake_inputs=True), _Shapes(own):
            return kept_bytes(model, batch)
    finally:
        model.__dict__["compiled"] = compiled
        if policy is not None:
            apply(model, before)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(was)
