"""What models hold, by arithmetic on their outline: parameters with and without embeddings, bytes in 16, 8 and 4 bits.

    bytes under a codec = sum over the matrices of the linears of values * bits / 8 + 2 for each other value

Embeddings, norms and biases stay in 16 bits, and so does what no codec keeps; whole numbers (a fixed support) keep their own.
`parameter_table` gives GPT-2's sizes at the ranks that make the whole model smaller by a factor: one rank for all linears or
one share of all linears, with the queries', keys' and values' linears fused into one, as the family has them, or apart.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from finlora import registry
from finlora.errors import FinloraError

CLAIM = {"smaller": 2.64, "faster": 1.3, "bytes": 0.59e9}  # FinGPT-HPC's, 2402.13533
FUSED = "c_attn"  # GPT-2's one linear of queries, keys and values, out = 3 in
MODELS = (("gpt2", "124m", 50257), ("gpt2", "1.5b", 50257))
Shapes = dict[str, tuple[int, int]]


@functools.lru_cache(32)
def _layout(config: str, vocab: int) -> tuple[tuple[tuple[str, tuple[int, int]], ...], int, int]:
    from finlora.model import outline
    from finlora.restructure import shapes_of

    body = outline(json.loads(config), vocab)
    shapes = shapes_of(body)
    rest = [p for name, p in body.named_parameters() if p.dim() == 2 and name.rpartition(".")[0] not in shapes]
    return tuple(shapes.items()), sum(p.numel() for p in rest), sum(p.numel() for p in body.parameters())


def layout(config: Mapping[str, Any], vocab: int) -> tuple[Shapes, int, int]:
    """({linear: (out, in)}, parameters of embeddings and an output layer of its own, all parameters) of an architecture."""
    shapes, embeddings, params = _layout(json.dumps(config, sort_keys=True), vocab)
    return dict(shapes), embeddings, params


@functools.lru_cache(32)
def _attention(config: str, vocab: int) -> int:
    from finlora.model import outline
    from finlora.restructure import attention_width

    return attention_width(outline(json.loads(config), vocab).config)


def attention(config: Mapping[str, Any], vocab: int, row_tokens: int) -> int:
    """Multiply-adds of a token's attention to the positions after it, half of a row's; a kernel may or may not leave them out."""
    return _attention(json.dumps(config, sort_keys=True), vocab) * row_tokens


def vocabulary(config: Mapping[str, Any], params: int) -> int:
    """The entries of the vocabulary with which the architecture has so many parameters.

    Raises: FinloraError where no number of entries gives them.
    """
    few, more = layout(config, 1000)[2], layout(config, 2000)[2]
    entries, rest = divmod((params - few) * 1000, more - few)
    if rest or entries <= -1000:
        raise FinloraError(f"an architecture of {params:,} parameters does not fit its receipt's model.config", "the run was made by another version: run it again")
    return 1000 + entries


@functools.lru_cache(4096)
def _matrices(kind: str, settings: str, n_in: int, n_out: int) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """(shapes of the matrices, other float values, bytes of whole numbers) of a structure in a linear."""
    from finlora.structure_folder import described

    structure, cfg = described({"structure": kind, "config": json.loads(settings)}, "the structure")
    params = structure.init(cfg, n_in, n_out, 0.02, None).values()
    floats = [p for p in params if p.is_floating_point()]
    return tuple(tuple(p.shape) for p in floats if p.dim() == 2), sum(p.numel() for p in floats if p.dim() != 2), sum(p.nbytes for p in params if not p.is_floating_point())


@functools.lru_cache(4096)
def _once(kind: str, settings: str, n_in: int, n_out: int) -> int:
    from finlora.restructure import once_a_pass
    from finlora.structure_folder import described

    return once_a_pass(*described({"structure": kind, "config": json.loads(settings)}, "the structure"), n_in, n_out)


def once_a_pass(kind: str, linears: Mapping[str, Mapping[str, Any]], shapes: Shapes) -> int:
    """Multiply-adds that a model's structures take in a forward and backward pass whatever its tokens, such as building a matrix."""
    return sum(_once(kind, _text(told), *reversed(shapes[name])) for name, told in linears.items())


def fixed_bytes(kind: str, linears: Mapping[str, Mapping[str, Any]], shapes: Shapes) -> int:
    """Bytes of what a model's structures hold and do not train, such as a fixed support."""
    return sum(_matrices(kind, _text(told), *reversed(shapes[name]))[2] for name, told in linears.items())


def stored(codec: str, kind: str, linears: Mapping[str, Mapping[str, Any]], shapes: Shapes, params: int) -> float:
    """Bytes of a model whose linears a codec keeps, all else in 16 bits; codec "": all in 16 bits.

    kind, linears: its structure and each structured linear's settings; the others are dense. params: all its trained values.
    """
    matrices: dict[tuple[int, int], int] = {}
    whole = 0
    for name, (n_out, n_in) in shapes.items():
        found, _, fixed = _matrices(kind, _text(linears[name]), n_in, n_out) if name in linears else (((n_out, n_in),), 0, 0)
        whole += fixed
        for shape in found:
            matrices[shape] = matrices.get(shape, 0) + 1
    kept = sum(count * math.prod(shape) for shape, count in matrices.items())
    if not codec:
        return 2 * params + whole
    record = registry.pick("codec", codec)
    bits = sum(count * math.prod(shape) * record.bits(record.config(), shape) for shape, count in matrices.items())
    return bits / 8 + 2 * (params - kept) + whole


def _text(settings: Mapping[str, Any]) -> str:
    """A linear's settings as a key."""
    return json.dumps(unwrapped(settings), sort_keys=True)


def unwrapped(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a linear's structure itself, without a guide that faded and rounding in training."""
    while "inner" in settings:
        settings = settings["inner"]
    return settings


def guides(linears: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{linear with a dense guide beside it: the share of the steps over which it fades out}."""
    found = {}
    for name, settings in linears.items():
        while "inner" in settings:
            if "share" in settings:
                found[name] = float(settings["share"])
            settings = settings["inner"]
    return found


def usual_codecs() -> tuple[str, ...]:
    """The codecs of the fewest bits in 8 and in 4 bits, of those that need no calibration."""
    found: dict[int, tuple[float, str]] = {}
    for name in registry.names("codec"):
        record = registry.pick("codec", name)
        cfg = record.config()
        if not record.lossless and not record.needs(cfg):
            bits = record.bits(cfg, (1024, 1024))
            found[int(bits)] = min(found.get(int(bits), (math.inf, "")), (bits, name))
    return tuple(found[width][1] for width in (8, 4) if width in found)


# -- the table of GPT-2 ----------------------------------------------------------------------------------------------


def parameter_table(
    structure: str, *, smaller: float = CLAIM["smaller"], models: Sequence[tuple[str, str, int]] = MODELS, codecs: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of {"family", "size", "vocab", "fused", "choice", "rank", "exact", "ranks", "params", "dense", "embeddings", "smaller", "bytes"}.

    structure: a member of the registry. smaller: by how much the whole model is. models: (family, size, vocabulary). choice: "dense",
    "one rank" for all linears (exact: the rank, not whole, that gives `smaller` to the digit) or "one share" of each linear's
    parameters (rank: that share; ranks: {linear: rank}). bytes: {"16": in 16 bits, codec: linears under it, "one each": a byte a value}.
    Raises: FinloraError where no rank is small enough.
    """
    from finlora.restructure import plan

    record = registry.pick("structure", structure)
    codecs = tuple(codecs) or usual_codecs()
    out = []
    for family, size, vocab in models:
        shapes, embeddings, full = layout({"family": family, "size": size}, vocab)
        apart = _apart(shapes)
        for fused, given in ((True, shapes), (False, apart)) if apart != shapes else ((True, shapes),):
            others = full - sum(o * i for o, i in given.values())
            base = {"family": family, "size": size, "vocab": vocab, "fused": fused, "dense": full, "embeddings": embeddings}
            if fused:
                out.append({**base, "choice": "dense", **_held("", {}, given, full, full, codecs)})
            if hasattr(record.config(), "rank"):
                cfg, exact = _one_rank(record, given, others, full / smaller)
                out.append({**base, "choice": "one rank", "rank": cfg.rank, "exact": exact, **_counted(record, dict.fromkeys(given, cfg), given, others, full, codecs)})
            one, layers = _one_layer(given)  # others / layers + a layer is to others + all layers as the whole to the whole
            held = plan(record, record.config(), one, compression=smaller, others=others / layers)
            settings = {name: held[_kind(name) if layers > 1 else name][1] for name in given}
            inside = sum(record.count(cfg, *reversed(given[name])) for name, cfg in settings.items())
            share = inside / sum(o * i for o, i in given.values())
            out.append({**base, "choice": "one share", "rank": share, "ranks": _by_kind(settings), **_counted(record, settings, given, others, full, codecs)})
    return out


def _apart(shapes: Shapes) -> Shapes:
    """The same linears with fused queries, keys and values as three."""
    out: Shapes = {}
    for name, (n_out, n_in) in shapes.items():
        if name.endswith(FUSED) and n_out == 3 * n_in:
            out |= {f"{name}.{part}": (n_in, n_in) for part in "qkv"}
        else:
            out[name] = (n_out, n_in)
    return out


def _kind(name: str) -> str:
    """A linear's name without its layer."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _one_layer(shapes: Shapes) -> tuple[Shapes, int]:
    """({kind of linear: (out, in)}, layers) where all layers are alike, else (shapes, 1)."""
    one = {_kind(name): shape for name, shape in shapes.items()}
    layers, rest = divmod(len(shapes), len(one))
    alike = not rest and all(one[_kind(name)] == shape for name, shape in shapes.items())
    return (one, layers) if alike and set(Counter(map(_kind, shapes)).values()) == {layers} else (shapes, 1)


def _one_rank(record: Any, shapes: Shapes, others: int, most: float) -> tuple[Any, float]:
    """(settings of the largest rank for all linears with at most `most` parameters, where between it and the next they are `most`)."""

    def size(rank: int) -> int:
        cfg = replace(record.config(), rank=rank)
        return others + sum(record.count(cfg, n_in, n_out) for n_out, n_in in shapes.values())

    low, high = 0, min(min(shape) for shape in shapes.values())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= most else (low, middle - 1)
    if not low:
        raise FinloraError(f"no rank of `{record.name}` makes the model as small as {most:,.0f} parameters: {others:,} of them are no linear's", "ask for less")
    return replace(record.config(), rank=low), low + (most - size(low)) / (size(low + 1) - size(low))


def _counted(record: Any, settings: Mapping[str, Any], shapes: Shapes, others: int, full: int, codecs: Sequence[str]) -> dict[str, Any]:
    params = others + sum(record.count(cfg, *reversed(shapes[name])) for name, cfg in settings.items())
    return _held(record.name, {name: asdict(cfg) for name, cfg in settings.items()}, shapes, params, full, codecs)


def _held(kind: str, linears: Mapping[str, Mapping[str, Any]], shapes: Shapes, params: int, full: int, codecs: Sequence[str]) -> dict[str, Any]:
    sizes = {codec: stored(codec, kind, linears, shapes, params) for codec in codecs}
    return {"params": params, "smaller": full / params, "bytes": {"16": stored("", kind, linears, shapes, params), **sizes, "one each": float(params)}}


def _by_kind(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{last names of a linear: its rank}, once for all layers."""
    return {".".join(_kind(name).split(".")[2:]): cfg.rank for name, cfg in settings.items() if hasattr(cfg, "rank")}
