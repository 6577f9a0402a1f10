"""Opening a model without ever holding it in full precision: a body without weights, and where they come from.

A body is built with all that its layers compute (tables, buffers), while what they would only draw at random is left without
memory (`Empty`). `place` then reads everything but the weights of the linears from the checkpoint; those are the `Source`'s,
from which wiring takes them one at a time: read, brought to the compute dtype, adapted, encoded, let go. What comes out is to
the bit what comes of loading the whole model first.

A checkpoint that names or joins its tensors otherwise than the body does, in a way that only transformers itself can undo, is
not placed; the caller loads it whole.

Shapes: W_OI (out, in).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import FinloraError
from .linear import Codec, Store
from .registry import pick
from .structured import Composite
from .weights import WORTH, Checkpoint, Encoded, cache_root, encode, entry_key, open_encoded, trim
from .wiring import find_linears

DRAWS = {"normal_", "uniform_", "zero_", "fill_", "copy_", "mul_", "add_", "clamp_", "erfinv_"}  # of the initialisers
TRIM = 16 << 20  # bytes of weights read before freed memory is given back


class Empty(TorchFunctionMode):
    """Weights are made without memory and never drawn: torch.empty gives tensors on `meta`. What is computed is real."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        elif getattr(func, "__name__", "") in DRAWS:
            target = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
            if isinstance(target, Tensor) and target.is_meta:
                return target  # as torch would say in the end, a millisecond later
        return func(*args, **kwargs)


@dataclass
class Source:
    """Where wiring takes the weights of a model's linears from, one at a time, while its modules hold none.

    keys: linear -> the checkpoint's tensor. turned: linears that the family keeps as (in, out). dtype: the compute dtype,
    to which a weight is brought as soon as it is read. cache: None keeps what is worth it, True everything, a folder
    everything there, False nothing. quantised: linears that the checkpoint holds encoded. notes: what did not work out.
    known: whether the checkpoint has been opened and encoded before, so that nothing of it needs to be looked at.
    """

    checkpoint: Checkpoint
    keys: dict[str, str]
    turned: set[str]
    dtype: torch.dtype
    device: torch.device
    cache: bool | str | Path | None = None
    quantised: dict[str, Store | Composite] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    chained: dict[str, Any] = field(default_factory=dict)  # linears in whose place two stand, with their structure
    kept: Encoded | None = None
    known: bool = False
    read: int = 0  # bytes, since memory was last given back

    def weight(self, name: str) -> Tensor:
        """W_OI of a linear in the compute dtype, on the device."""
        if name in self.quantised:
            return self.quantised[name].dense(self.dtype)
        if self.read >= TRIM:
            trim()
            self.read = 0
        W = self.checkpoint.get(self.keys[name]).to(self.dtype).to(self.device)
        self.read += W.nbytes
        return W.T.contiguous() if name in self.turned else W

    def prepare(self, codec: Codec, cfg: Any, shapes: dict[str, tuple[int, int]], make: bool) -> None:
        """Look for these linears' encoded weights in the cache; where there are none and `make` says so, encode them into it.

        Raises: FinloraError for a weight that cannot be encoded.
        """
        shapes = {name: shape for name, shape in shapes.items() if name not in self.quantised}
        worth = self.cache is not None or self.checkpoint.nbytes >= WORTH
        if codec.lossless or codec.needs(cfg) or self.cache is False or not worth or not shapes:
            return
        root = cache_root(self.cache)
        folder = root / "encoded" / entry_key(self.checkpoint, codec, cfg, self.dtype, self.device, root)
        self.kept = open_encoded(folder, shapes)
        self.known = self.kept is not None
        if self.kept is None and make:
            self.kept, why = encode(shapes, self.weight, codec, cfg, self.dtype, folder)
            if why:
                self.notes.append(f"the encoded base is not kept for the next run: {why}")

    def store(self, name: str, codec: Codec, cfg: Any) -> Store | Composite | None:
        """The linear's weight as it is encoded already, in the checkpoint or in the cache; None where it is in neither."""
        held = self.quantised.get(name)
        if held is not None:
            if not codec.lossless and (held.codec.name, held.cfg) != (codec.name, cfg):
                if held.codec.lossless:
                    return held.under(codec, cfg)
                raise FinloraError(f"{name} is stored as {held.cfg} already and cannot become {cfg}", 'write codec.kind = "none" to keep what is stored')
            return held
        if self.kept is None:
            return None
        tensors, shape = self.kept.tensors(name)
        return Store.of(codec, cfg, {key: t.to(self.device) for key, t in tensors.items()}, shape, self.dtype)

    def close(self) -> None:
        """Nothing more is to be taken."""
        self.kept = None
        self.quantised.clear()
        if self.checkpoint.nbytes >= TRIM:
            trim()

    def take_quantised(self, linears: Iterable[str], keys: dict[str, str]) -> None:
        """Take the linears that the checkpoint holds encoded by bitsandbytes as they are. keys: as `match` gives them."""
        from . import bnb

        for name in linears:
            prefix = keys[f"{name}.weight"].removesuffix(".weight")
            if bnb.kind(self.checkpoint.spots.keys(), prefix) is not None:
                codec, cfg, tensors, shape = bnb.read(self.checkpoint.get, prefix)
                tensors = {key: t.to(self.device) for key, t in tensors.items()}
                self.quantised[name] = Store.of(pick("codec", codec), cfg, tensors, shape, self.dtype)

    def fill(self, body: nn.Module) -> None:
        """Put the weights into the modules of a body that keeps them as they are."""
        for name, module in find_linears(body).items():
            W = self.weight(name)
            module.weight = nn.Parameter(W.T.contiguous() if name in self.turned else W, module.weight.requires_grad)


def place(
    body: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    quantised: bool = False,
    cache: Any = None,
    rename: Callable[[str], str] = str,
    structured: Mapping[str, Composite] | None = None,
) -> Source | None:
    """Read all tensors but the weights of the linears into a body made under `Empty`; the source has those.

    None where the body and the checkpoint do not correspond name by name. quantised: some linears may be encoded already.
    structured: the linears that the checkpoint holds as structures.
    rename: what the checkpoint calls a tensor -> what the body does.
    Raises: FinloraError for a checkpoint that lacks tensors, or holds others or of other shapes than the body's.
    """
    where, linears = checkpoint.folder, find_linears(body)
    if any(b.is_meta for b in body.buffers()) or (getattr(body, "_keep_in_fp32_modules_strict", None) and dtype == torch.bfloat16):
        return None
    whole = structured or {}
    keys, unexpected = match(body, checkpoint, [*linears] if quantised else [*whole], rename)
    names: dict[int, list[str]] = {}  # a tensor and all that it is called, where it is tied
    for name, tensor in [*body.named_parameters(remove_duplicate=False), *body.named_buffers(remove_duplicate=False)]:
        names.setdefault(id(tensor), []).append(name)
    tensors = {name: t for name, t in body.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    missing = {name for name, t in tensors.items() if not any(n in keys for n in names[id(t)])}
    patterns = getattr(body, "_keys_to_ignore_on_load_missing", None) or ()
    missing = {name for name in missing if tensors[name].is_meta or not any(re.search(p, name) for p in patterns)}
    missing -= {f"{name}.weight" for name in whole}
    if missing and unexpected:
        return None  # perhaps it is but named otherwise
    require_keys(where, body, missing, unexpected)
    turned = {name for name, module in linears.items() if type(module).__name__ == "Conv1D"}
    source = Source(checkpoint, {}, turned, dtype, device, cache, dict(whole))
    if quantised:
        source.take_quantised(linears, keys)
    for name, tensor in tensors.items():
        told = [n for n in names[id(tensor)] if n in keys]
        if not told or name != told[0]:
            continue
        linear, _, leaf = name.rpartition(".")
        if linear not in source.quantised or leaf != "weight":
            _require_shape(checkpoint, keys[name], tensor.shape)
        if linear in linears and leaf == "weight":
            source.keys[linear] = keys[name]
            continue
        value = checkpoint.get(keys[name])
        if any(not torch.equal(value, checkpoint.get(keys[n])) for n in told[1:]):
            return None  # tied, says the configuration, yet two tensors
        value = value.to(tensor.dtype).to(device)
        value = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        for n in names[id(tensor)]:
            _put(body, n, value)
    for name, tensor in [*body.named_parameters(), *body.named_buffers()]:
        if not tensor.is_meta and tensor.device != device:  # what the checkpoint need not have
            moved = tensor.to(device)
            _put(body, name, nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved)
    return source


def match(body: nn.Module, checkpoint: Checkpoint, encoded: Iterable[str] = (), rename: Callable[[str], str] = str) -> tuple[dict[str, str], set[str]]:
    """({name in the body: key in the checkpoint}, keys that the body has no place for).

    A checkpoint may leave out the prefix of the base model, or have one too many. encoded: linears that may have other
    tensors beside their weight.
    """
    expected, prefix = set(body.state_dict()), f"{body.base_model_prefix}."
    known = getattr(body, "_keys_to_ignore_on_load_unexpected", None) or ()
    ignored = re.compile("|".join([*known, r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]))
    own = tuple(f"{name}." for name in encoded)
    keys, unexpected = {}, set()
    for key in checkpoint.spots:
        new = rename(key)
        name = next((n for n in (new, prefix + new, new.removeprefix(prefix)) if n in expected), None)
        if name is not None:
            keys[name] = key
        elif not ignored.search(new) and not (own and new.startswith(own)):
            unexpected.add(key)
    return keys, unexpected


def require_keys(where: Any, body: nn.Module, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises: FinloraError naming the first tensor that the checkpoint lacks, or that the body has no place for."""
    for keys, what, hint in (
        (sorted(missing), "the checkpoint lacks", "it is not complete: fetch or save it again"),
        (sorted(unexpected), f"{type(body).__name__} has no place for", "its config.json belongs to other weights"),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise FinloraError(f"model.name: `{where}`: {what} `{keys[0]}`{more}", hint)


def is_quantised(where: Any, config: Any) -> bool:
    """Whether a checkpoint holds weights that bitsandbytes encoded; its configuration then forgets it, since we do not.

    Raises: FinloraError where another library encoded them.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return False
    kind = (told if isinstance(told, dict) else told.to_dict()).get("quant_method")
    if kind != "bitsandbytes":
        raise FinloraError(f"model.name: the weights of `{where}` are quantised by `{kind}`, which is not served", "name the full-precision model, and choose a codec")
    del config.quantization_config
    return True


def _require_shape(checkpoint: Checkpoint, key: str, shape: Iterable[int]) -> None:
    found = checkpoint.spots[key].shape
    if found != tuple(shape):
        raise FinloraError(f"model.name: `{checkpoint.folder}`: `{key}` has shape {found}, its config.json says {tuple(shape)}", "its config.json belongs to other weights")


def _put(body: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer by its full name."""
    parent, _, leaf = name.rpartition(".")
    module = body.get_submodule(parent)
    (module._parameters if leaf in module._parameters else module._buffers)[leaf] = tensor
