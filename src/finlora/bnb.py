"""Checkpoints that bitsandbytes has quantised, read into our stores and written from them, without bitsandbytes.

    <linear>.weight                                   codes, two a byte, (ceil(O*I/2), 1) uint8
    <linear>.weight.absmax                            fp32, or uint8 where it is itself quantised (nested)
    <linear>.weight.quant_map                         the 16 values
    <linear>.weight.nested_absmax, .nested_quant_map  of the nested form
    <linear>.weight.quant_state.bitsandbytes__nf4     JSON as bytes: block sizes, shape, dtype, nested offset
    <linear>.weight int8, <linear>.SCB                LLM.int8: codes (O, I) and row maxima

Our codecs keep the same codes and scales, so that nothing is quantised again: a weight read here decodes to the very
numbers that bitsandbytes gives in float32. A nested absmax that no codec of ours keeps (fp4, or another block of scales)
is decoded to the fp32 absmax that it stands for, which changes no weight. transformers turns GPT-2's Conv1D round before
it quantises, so every weight in such a checkpoint is (out, in).

Shapes: W_OI (out, in); N = ceil(O*I/block) blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from .errors import FinloraError
from .registry import pick
from .seam import Codec

PLAIN = {"nf4": "nf4", "fp4": "fp4"}  # quant_type -> the codec with the same codes and an fp32 absmax
NESTED = {"nf4": "nf4_dq"}  # and with bitsandbytes' own compressed absmax
INT8 = "int8"
GROUP = 256  # absmax values that share one scale in the nested form
STATE = "weight.quant_state.bitsandbytes__"
SCB = "SCB"


def kind(keys: Collection[str], prefix: str) -> str | None:
    """bitsandbytes' name of how the linear `prefix` is quantised: `nf4`, `fp4`, `int8`; None where it is not."""
    for name in PLAIN:
        if f"{prefix}.{STATE}{name}" in keys:
            return name
    return INT8 if f"{prefix}.{SCB}" in keys else None


def suffixes(keys: Collection[str], prefix: str) -> list[str]:
    """The keys of the checkpoint that belong to the quantised weight of the linear `prefix`, without the prefix."""
    found = [key[len(prefix) + 1 :] for key in keys if key.startswith(f"{prefix}.")]
    return [key for key in found if key in ("weight", SCB, "weight_format") or key.startswith("weight.")]


def read(get_tensor: Callable[[str], Tensor], prefix: str) -> tuple[str, Any, dict[str, Tensor], tuple[int, int]]:
    """(codec's name, its config, tensors as the codec's `encode` gives them, (out, in)) of one quantised linear.

    get_tensor(key) gives a tensor of the checkpoint and raises KeyError (or any error) where there is none.
    `Store.of` makes a store of the result. Raises: FinloraError for a form that no codec here keeps exactly.
    """

    def take(suffix: str) -> Tensor | None:
        try:
            return get_tensor(f"{prefix}.{suffix}")
        except Exception as error:
            if isinstance(error, KeyError) or type(error).__name__ == "SafetensorError":
                return None
            raise

    weight = take("weight")
    if weight is None:
        raise FinloraError(f"{prefix}: the checkpoint has no weight", "fetch the model again")
    row_maxima = take(SCB)
    if row_maxima is not None:
        codec = pick("codec", INT8)
        return INT8, codec.config(), {"codes": weight, "absmax": row_maxima.float().view(-1)}, (weight.shape[0], weight.shape[1])
    for name in PLAIN:
        packed = take(STATE + name)
        if packed is not None:
            return _read4(take, prefix, name, weight, _unpacked(packed, prefix))
    raise FinloraError(f"{prefix}: its weight is of type {weight.dtype} and the checkpoint has no quant_state for it", "fetch the model again")


def _read4(take: Callable, prefix: str, name: str, weight: Tensor, state: dict[str, Any]):
    absmax, table = take("weight.absmax"), take("weight.quant_map")
    if absmax is None or table is None:
        raise FinloraError(f"{prefix}: the checkpoint lacks its absmax or quant_map", "fetch the model again")
    shape = tuple(int(n) for n in state["shape"])
    if len(shape) != 2:
        raise FinloraError(f"{prefix}: a quantised weight of shape {shape} is not a matrix", "only linear layers are served")
    blocks = -(-shape[0] * shape[1] // int(state["blocksize"]))
    codes = weight.contiguous().view(torch.uint8).reshape(-1)  # the storage may be declared as a wider type
    if codes.numel() != (shape[0] * shape[1] + 1) // 2 or absmax.numel() != blocks:
        raise FinloraError(f"{prefix}: codes or absmax do not fit a weight of shape {shape}", "fetch the model again")
    codec = pick("codec", PLAIN[name])
    config = codec.config(block=int(state["blocksize"]))
    if not torch.allclose(table.float().view(-1), table_of(codec, table.device), atol=1e-6, rtol=0):
        raise FinloraError(f"{prefix}: its table of 16 values is not that of `{name}`", "quantise the model again")
    if absmax.dtype != torch.uint8:
        return PLAIN[name], config, {"codes": codes, "absmax": absmax.float().view(-1)}, shape
    scale, nested = take("weight.nested_absmax"), take("weight.nested_quant_map")
    if scale is None or nested is None or "nested_offset" not in state:
        raise FinloraError(f"{prefix}: the checkpoint lacks its nested absmax", "fetch the model again")
    group, offset = int(state["nested_blocksize"]), torch.tensor(float(state["nested_offset"]), device=scale.device)
    nested, scale, absmax = nested.float().view(-1), scale.float().view(-1), absmax.view(-1)
    if name in NESTED and group == GROUP and torch.allclose(nested, map_of(nested.device), atol=1e-6, rtol=0):
        tensors = {"codes": codes, "absmax_codes": absmax, "absmax_scale": scale, "offset": offset}
        return NESTED[name], pick("codec", NESTED[name]).config(block=config.block), tensors, shape
    plain = nested[absmax.long()] * scale.repeat_interleave(group)[:blocks] + offset
    return PLAIN[name], config, {"codes": codes, "absmax": plain}, shape


def _unpacked(packed: Tensor, prefix: str) -> dict[str, Any]:
    """The JSON that bitsandbytes keeps as a tensor of bytes, with what every form of it must have."""
    try:
        state = json.loads(bytes(packed.tolist()).decode("utf-8"))
        if not {"blocksize", "shape"} <= state.keys() or state["shape"] is None:
            raise ValueError("no blocksize or shape")
        return state
    except (ValueError, AttributeError, TypeError) as error:
        raise FinloraError(f"{prefix}: its quant_state is damaged: {error}", "fetch the model again") from error


def write(codec: Codec, config: Any, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """{key after `<linear>.`: tensor}, as bitsandbytes saves the weight. dtype: the type it is to be decoded to.

    Raises: FinloraError for a codec that bitsandbytes does not have.
    """
    check(codec)
    if codec.name == INT8:
        mark = torch.tensor(0, dtype=torch.uint8)
        return {"weight": tensors["codes"], SCB: tensors["absmax"], "weight_format": mark}
    name = next(k for table in (PLAIN, NESTED) for k, ours in table.items() if ours == codec.name)
    state: dict[str, Any] = {"quant_type": name, "blocksize": config.block, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}
    out = {"weight": tensors["codes"].view(-1, 1), "weight.quant_map": table_of(pick("codec", PLAIN[name]), tensors["codes"].device).clone()}
    if codec.name in NESTED.values():
        out["weight.absmax"] = tensors["absmax_codes"]
        out["weight.nested_absmax"] = tensors["absmax_scale"]
        out["weight.nested_quant_map"] = map_of(tensors["codes"].device).clone()
        state.update(nested_blocksize=GROUP, nested_dtype="float32", nested_offset=float(tensors["offset"]))
    else:
        out["weight.absmax"] = tensors["absmax"]
    out[STATE + name] = torch.tensor(list(json.dumps(state).encode("utf-8")), dtype=torch.uint8)
    return out


def check(codec: Codec) -> None:
    """Raises: FinloraError for a codec that bitsandbytes does not have."""
    known = [*PLAIN.values(), *NESTED.values(), INT8]
    if codec.name not in known:
        raise FinloraError(f"bitsandbytes has no form for codec `{codec.name}`", f"choose one of {', '.join(known)}")


def settings(codec: Codec, compute: torch.dtype, skipped: list[str]) -> dict[str, Any]:
    """config.json's `quantization_config` for a checkpoint whose linears are of this codec, but those in `skipped`."""
    check(codec)
    eight = codec.name == INT8
    name = "fp4" if eight else next(k for table in (PLAIN, NESTED) for k, ours in table.items() if ours == codec.name)
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": not eight,
        "load_in_8bit": eight,
        "_load_in_4bit": not eight,
        "_load_in_8bit": eight,
        "bnb_4bit_quant_type": name,
        "bnb_4bit_use_double_quant": codec.name in NESTED.values(),
        "bnb_4bit_compute_dtype": str(compute).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 0.0,  # no outlier columns in 16 bits: the map is the stored weight's, row by row
        "llm_int8_skip_modules": skipped,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }


def table_of(codec: Codec, device: torch.device | str = "cpu") -> Tensor:
    """(16,) fp32: what each code of a codec with an fp32 absmax stands for."""
    codes = torch.arange(16, dtype=torch.uint8)
    packed = (codes[::2] << 4) | codes[1::2]
    return codec.decode(codec.config(), {"codes": packed, "absmax": torch.ones(1)}, (1, 16), torch.float32).view(-1).to(device)


def map_of(device: torch.device | str = "cpu") -> Tensor:
    """(256,) fp32: bitsandbytes' signed dynamic map, what each code of a nested absmax stands for."""
    # a weight whose only number is code 15 of value 1 decodes to its absmax: scale 1, offset 0
    codec = pick("codec", next(iter(NESTED.values())))
    one = torch.full((256 * 16,), 255, dtype=torch.uint8)  # 256 blocks of 32, every code the last of the table
    tensors = {"codes": one, "absmax_codes": torch.arange(256, dtype=torch.uint8), "absmax_scale": torch.ones(1), "offset": torch.tensor(0.0)}
    return codec.decode(codec.config(block=32), tensors, (256, 32), torch.float32)[:, 0].contiguous().to(device)
