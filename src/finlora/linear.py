"""The one linear map: a frozen weight under a codec, adapted by named methods.

    y = adapt(x, x W^T) + b          W = decode(encode(W)), adapt = the identity or one of the named adapters

The records of seam.py meet here and nowhere else: a `Codec` says how frozen numbers are kept, a `Method` says how a
frozen base is adapted, and `Linear` joins one of each without knowing which. QLoRA (2305.14314) is `lora` over an `nf4` store. The
usual way keeps the decoded weight alive from forward to backward; `Matmul` keeps only the store and decodes again.

Shapes: x_BTI (batch, tokens, in; any leading dimensions), y_BTO, W_OI (out, in), bias_O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import FinloraError, unknown
from .seam import (
    EDIT,
    Codec,
    Method,
    Peft,
    Place,
    Stats,
    check_finite,
    check_over,
    check_stats,
    edited,
    is_by_shape,
    nothing,
    ones,
    over_original,
)

__all__ = [
    "EDIT", "Codec", "Linear", "Matmul", "Method", "Peft", "Place", "Route", "Stats", "Store", "build", "check_finite",
    "edited", "nothing", "ones", "over_original",
]  # fmt: skip


class Matmul(torch.autograd.Function):
    """x @ W^T for a stored W. Saves the store, never W: backward decodes again (QLoRA, 2305.14314)."""

    @staticmethod
    def forward(ctx, x: Tensor, store: Store) -> Tensor:
        ctx.store, ctx.edits = store, store.edits
        return F.linear(x, store.dense(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):
        assert ctx.edits == ctx.store.edits, "the stored weight was replaced between forward and backward"
        if not ctx.needs_input_grad[0]:
            return None, None
        return grad @ ctx.store.dense(grad.dtype), None


class Store(nn.Module):
    """A frozen W_OI under a codec, kept as buffers.

    codec, cfg: the record and its config. W_OI: the weight, any float dtype. dtype: the compute dtype that `dense()`
    gives. A lossless store keeps that dtype and, where W already has it, shares W's memory.
    `.to(dtype)`, `.half()` and the like move a store between devices but never change its numbers' types: an absmax
    rounded to bf16 would silently damage the weight.
    Raises: FinloraError when W is no matrix of floats or not finite.
    """

    def __init__(
        self, codec: Codec, cfg: Any, W_OI: Tensor, dtype: torch.dtype | None = None, stats: Stats | None = None
    ):
        super().__init__()
        if W_OI.dim() != 2 or not W_OI.is_floating_point() or not W_OI.numel():
            raise FinloraError(
                f"a linear weight must be a non-empty matrix of floats, got shape {tuple(W_OI.shape)}, {W_OI.dtype}",
                "leave this module out of the targets",
            )
        self.codec, self.cfg = codec, cfg
        self.shape: tuple[int, int] = (W_OI.shape[0], W_OI.shape[1])
        self.dtype = dtype or W_OI.dtype
        self.edits = 0
        self.keys: tuple[str, ...] = ()
        self.put(W_OI, stats)

    @classmethod
    def of(
        cls, codec: Codec, cfg: Any, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> Store:
        """A store of tensors that are encoded already (a pre-quantised checkpoint); nothing is encoded again.

        tensors: as `codec.encode` gives them for a weight of `shape` (out, in). dtype: the compute dtype.
        """
        store = cls.__new__(cls)
        nn.Module.__init__(store)
        store.codec, store.cfg, store.dtype = codec, cfg, dtype
        store.shape, store.edits, store.keys = (shape[0], shape[1]), 1, tuple(tensors)
        for key, tensor in tensors.items():
            store.register_buffer(key, tensor)
        return store

    @torch.no_grad()
    def put(self, W_OI: Tensor, stats: Stats | None = None) -> None:
        """Replace the stored weight. W_OI: same shape as before. stats: what the codec may calibrate with."""
        assert tuple(W_OI.shape) == self.shape, (tuple(W_OI.shape), self.shape)
        if self.codec.lossless:
            W_OI = W_OI.to(self.dtype)
        tensors = self.codec.encode(self.cfg, W_OI.detach(), stats)
        for key in self.keys:
            delattr(self, key)
        for key, tensor in tensors.items():
            self.register_buffer(key, tensor)
        self.keys, self.edits = tuple(tensors), self.edits + 1

    @torch.no_grad()
    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The decoded W_OI in `dtype` (default: the compute dtype). Read only: it may be the buffer itself."""
        tensors = {key: self._buffers[key] for key in self.keys}
        return self.codec.decode(self.cfg, tensors, self.shape, dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x_BTI -> y_BTO = x W^T."""
        return Matmul.apply(x, self)

    @property
    def size(self) -> int:
        """Weights that are kept."""
        return self.shape[0] * self.shape[1]

    def nbytes(self) -> int:
        """Bytes of all tensors of the codec."""
        return sum(self._buffers[key].nbytes for key in self.keys)

    def _apply(self, fn, recurse: bool = True):
        for key in self.keys:
            tensor = self._buffers[key]
            # an integer probe follows moves between devices and ignores changes of float type
            moved = fn(torch.empty(0, dtype=torch.uint8, device=tensor.device)).device
            if moved != tensor.device:
                self._buffers[key] = torch.empty_like(tensor, device=moved) if moved.type == "meta" else tensor.to(moved)
        return self

    def extra_repr(self) -> str:
        return f"{self.codec.name}, shape={self.shape}, dtype={self.dtype}"


class Route:
    """Which adapter each row goes through; one route is shared by all Linears of a model.

    active: the adapter of every row, None for the bare base. rows: an adapter name or None for each batch row; where
    it is set it wins over `active`. A Linear that lacks a named adapter (other targets) leaves those rows to its base;
    a name that no Linear has is refused. Keep the route as it is from forward to backward when recomputing.
    """

    def __init__(self, active: str | None = None):
        self.active = active
        self.rows: Sequence[str | None] | None = None
        self.known: set[str] = set()
        self._split: tuple = ()

    def check(self, name: str | None) -> str | None:
        """`name` itself. Raises: FinloraError when no Linear has an adapter of that name."""
        if name is not None and name not in self.known:
            raise unknown("adapter", name, self.known)
        return name

    def split(self, count: int, device: torch.device) -> tuple[list[tuple[str | None, Tensor]], Tensor]:
        """Groups of batch rows by adapter: [(name, indices)], and the order that undoes the grouping."""
        key = (tuple(self.rows), device)
        if len(key[0]) != count:
            raise FinloraError(
                f"the route names {len(key[0])} row(s), the batch has {count}", "give one adapter name (or None) per row"
            )
        if not self._split or self._split[0] != key:  # the same for every Linear of a forward: built once
            names = list(dict.fromkeys(self.check(name) for name in key[0]))
            groups = [[i for i, row in enumerate(key[0]) if row == name] for name in names]
            order = [i for group in groups for i in group]
            with torch.inference_mode(False):  # what an evaluation built may serve a training step
                back = torch.tensor(sorted(range(count), key=order.__getitem__), device=device)
                self._split = key, [(n, torch.tensor(g, device=device)) for n, g in zip(names, groups)], back
        return self._split[1], self._split[2]


class Linear(nn.Module):
    """One linear map with any number of named adapters.

    store: the frozen weight, or None when an adapter of a `trains_base` method will hold it. bias_O: kept in fp32 only
    while it trains. route: shared by the model. shape: (out, in).
    """

    def __init__(self, store: Store | None, bias: Tensor | None, route: Route, shape: tuple[int, int]):
        super().__init__()
        self.store, self.route, self.shape = store, route, tuple(shape)
        self.out_features, self.in_features = self.shape
        self.adapters = nn.ModuleDict()
        self.how: dict[str, tuple[Method, Any]] = {}
        self.sole: str | None = None  # an adapter that owns or has edited the base tolerates no other
        self.bias = None
        if bias is not None:
            kept = bias.detach() if store is None else bias.detach().to(store.dtype)
            self.bias = nn.Parameter(kept, requires_grad=False)

    @property
    def size(self) -> int:
        """Weights of the base: those of the store, or what its sole adapter holds in their place."""
        if self.store is not None:
            return self.store.size
        return sum(p.numel() for p in self.adapters[self.sole].values() if p.is_floating_point()) if self.sole else 0

    def attach(self, name: str, method: Method, cfg: Any, params: dict[str, Tensor]) -> None:
        """Add an adapter whose parameters exist already (see `adapt` to draw fresh ones).

        Parameters that edit the base (EDIT) speak of an edit that the store has had. The first adapter that a route hears
        of becomes the active one.
        Raises: FinloraError on a name in use or unusable, and where an adapter needs the base for itself.
        """
        if name in self.adapters:
            raise FinloraError(f"this linear already has an adapter named `{name}`", "choose another name")
        alone = method.trains_base or EDIT[0] in params
        if self.sole is not None or (alone and self.adapters):
            raise self._owns_base(name, method)
        assert method.trains_base == (self.store is None), "a store belongs to every method but those that train the base"
        held = {k: nn.Parameter(v.detach(), requires_grad=k not in method.frozen) for k, v in params.items()}
        try:
            self.adapters[name] = nn.ParameterDict(held)
        except KeyError as problem:
            raise FinloraError(f"`{name}` cannot name an adapter", "use letters, digits, `-` and `_`") from problem
        self.how[name] = (method, cfg)
        self.sole = name if alone else None
        if method.trains_base and self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach().float().clone())
        if not self.route.known and self.route.active is None:
            self.route.active = name
        self.route.known.add(name)

    def adapt(
        self,
        name: str,
        method: Method,
        cfg: Any,
        generator: torch.Generator | None = None,
        stats: Stats | None = None,
        largest: tuple[int, int] | None = None,
    ) -> None:
        """Draw fresh parameters over the base as it is stored, and attach them as `name`.

        Raises: FinloraError as `attach` does, when the method would have to edit the base, and on missing stats.
        """
        store = self.store
        if store is None or method.trains_base:
            raise self._owns_base(name, method)
        check_over(method, store.codec)
        check_stats(method.name, method.needs(cfg), stats)
        where = next(store.buffers()).device
        W = torch.full((), torch.nan, device=where).expand(store.shape) if is_by_shape(method) else store.dense(torch.float32)
        seen = None if stats is None else stats.on(W.device, method.needs(cfg))
        place = self._place(generator, seen, largest)
        if is_by_shape(method):
            place = replace(place, roundtrip=lambda V: store.dense(torch.float32) if V is W else V)
        params = method.init(cfg, W, place)
        if EDIT[0] in params:
            raise self._owns_base(name, method)
        self.attach(name, method, cfg, params)

    @torch.no_grad()
    def refresh(self, name: str, step: int, total: int, generator: torch.Generator | None = None) -> set[str]:
        """Let the method of adapter `name` renew its parameters after `step` of `total`; the function stays what it was.

        Returns the trained parameters that are new, whose optimiser state is of no more use; empty when it was not time.
        """
        method, cfg = self.how[name]
        if method.refresh is None:
            return set()
        held, store = self.adapters[name], self.store
        before = {key: p.detach() for key, p in held.items()}
        W = None if store is None else store.dense(torch.float32)
        after = method.refresh(cfg, before, W, self._place(generator), step, total)
        if after is None:
            return set()
        assert after.keys() == before.keys(), (after.keys(), before.keys())
        if EDIT[0] in after:
            A, B = (after[key] for key in EDIT)
            old = before[EDIT[0]].shape[0]
            assert torch.equal(A[:old], before[EDIT[0]]) and torch.equal(B[:, :old], before[EDIT[1]]), "EDIT was rewritten"
            if A.shape[0] > old:
                assert store is not None
                store.put(store.dense(store.dtype) + (B[:, old:] @ A[old:]).to(store.dtype))
        renewed = set()
        for key, value in after.items():
            if key in method.frozen:
                held[key] = nn.Parameter(value.detach(), requires_grad=False)
            elif not torch.equal(held[key], value):
                held[key].copy_(value)  # in place: the optimiser knows the parameter by its identity
                renewed.add(key)
        return renewed

    def _place(self, generator=None, stats=None, largest=None) -> Place:
        """The place of a method over the weight as it is stored, which encoding again might move (not every codec is a
        projection): it stays what it is."""
        lossless = self.store is None or self.store.codec.lossless
        return Place(lambda W: W, lossless, stats, generator, largest or self.shape)

    def _owns_base(self, name: str, method: Method) -> FinloraError:
        owner = f"adapter `{self.sole}`" if self.sole is not None else f"method `{method.name}`"
        return FinloraError(
            f"{owner} changes the base weights, so `{name}` cannot stand beside it on this base",
            "merge it first, or open a base of its own for it",
        )

    def forward(self, x: Tensor) -> Tensor:
        """x_BTI -> y_BTO through the adapters that the route names."""
        if self.store is None:
            y = self._through(self.sole, x, None)
        else:
            y0 = self.store(x)
            if self.route.rows is None:
                y = self._through(self.route.check(self.route.active), x, y0)
            else:
                groups, back = self.route.split(x.shape[0], x.device)
                if len(groups) == 1:
                    y = self._through(groups[0][0], x, y0)
                else:  # one product with the base for all rows, each adapter only on its own
                    y = torch.cat([self._through(name, x[rows], y0[rows]) for name, rows in groups])[back]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _through(self, name: str | None, x: Tensor, y0: Tensor | None) -> Tensor:
        if name is None or name not in self.how:
            assert y0 is not None
            return y0
        method, cfg = self.how[name]
        dropout = getattr(cfg, "dropout", 0.0)
        if dropout and self.training:
            x = F.dropout(x, dropout)
        return method.apply(cfg, self.adapters[name], x, y0, self.store)

    @torch.no_grad()
    def merged(self, name: str | None, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_OI with adapter `name` folded in (None: the bare base), computed in `dtype`.

        Read only and without gradient: it may be the buffer or the trained weight itself.
        """
        base = None if self.store is None else self.store.dense(dtype)
        if name is None:
            assert base is not None
            return base
        if name not in self.how:
            raise unknown("adapter", name, self.how)
        method, cfg = self.how[name]
        params = {key: p.to(dtype) if p.is_floating_point() else p for key, p in self.adapters[name].items()}
        return method.merge(cfg, params, base)

    def extra_repr(self) -> str:
        how = ", ".join(f"{name}: {method.name}" for name, (method, _) in self.how.items())
        return f"in={self.in_features}, out={self.out_features}, bias={self.bias is not None}, adapters={{{how}}}"


def build(
    W_OI: Tensor,
    bias: Tensor | None = None,
    *,
    codec: Codec,
    codec_config: Any,
    method: Method | None = None,
    method_config: Any = None,
    params: dict[str, Tensor] | None = None,
    name: str = "default",
    generator: torch.Generator | None = None,
    stats: Stats | None = None,
    largest: tuple[int, int] | None = None,
    dtype: torch.dtype,
    route: Route,
) -> Linear:
    """A Linear from a full-precision weight in one motion: `method.init`, then `codec.encode`, once.

    Quantising first and adapting afterwards pays twice (PiSSA over a quantised base: 12.9% output error against 9.2%).
    W_OI, bias_O: any float dtype, left unchanged; a lossless store shares W's memory where it can. params: those of a
    saved adapter, in place of fresh ones. dtype: the compute dtype. generator: on any device; draws are the same on all.
    stats: what calibration saw, where method or codec need it. largest: as in `Place`, by default this linear's shape.
    Raises: FinloraError on a rank above the layer, a non-finite weight, a codec under which the method cannot be exact,
    or missing stats.
    """
    W_OI = W_OI.detach()
    shape = (W_OI.shape[0], W_OI.shape[-1])
    if method is None:
        return Linear(Store(codec, codec_config, W_OI, dtype, stats), bias, route, shape)
    check_over(method, codec)

    def roundtrip(W: Tensor) -> Tensor:
        return Store(codec, codec_config, W, dtype, stats).dense(torch.float32)

    check_finite(W_OI)
    if params is None:
        check_stats(method.name, method.needs(method_config), stats)
        seen = None if stats is None else stats.on(W_OI.device, method.needs(method_config))
        place = Place(roundtrip, codec.lossless, seen, generator, largest or shape)
        params = method.init(method_config, W_OI.float(), place)
    store = None
    if not method.trains_base:
        # a base that is edited again and again is kept in fp32: bf16 would lose edits smaller than its step
        again = method.refresh is not None and EDIT[0] in params and codec.lossless
        kept = torch.promote_types(dtype, torch.float32) if again else dtype
        store = Store(codec, codec_config, edited(W_OI, params), kept, stats)
    linear = Linear(store, bias, route, shape)
    linear.attach(name, method, method_config, params)
    return linear
