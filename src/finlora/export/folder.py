"""Writing a model as a Hugging Face folder: sharded safetensors with their index, configuration, tokenizer and card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import atomic_folder
from ..errors import FinloraError
from ..model import Model
from .source import NAMES, Opened

DTYPES = ("auto", *NAMES.values())


def plain_state(model: Model) -> dict[str, Any]:
    """{key: tensor} of all that is not a linear's weight: embeddings, norms, head, buffers and the linears' biases."""
    state = {k: v for k, v in model.body.state_dict().items() if not any(k.startswith(n + ".") for n in model.linears)}
    state.update({f"{name}.bias": linear.bias.detach() for name, linear in model.linears.items() if linear.bias is not None})
    return state


def write_model(
    opened: Opened, out: str | Path, state: dict[str, Any], dtype: str, shard_size: str, card: str, extra: dict[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """Write `state` ({key: tensor, or a function that makes it}) as a model's folder; floats get `dtype`.

    extra: fields added to config.json; with `quantization_config` the encoded tensors keep their types. beside: writes
    what else belongs into the folder.
    Raises: FinloraError where `out` exists, the disk is full, or the dtype cannot hold a weight.
    """
    if not re.fullmatch(r"\d+(\.\d+)?(KB|MB|GB)", shard_size):
        raise FinloraError(f"--shard-size must be a number and KB, MB or GB, got {shard_size!r}", "2GB is usual")
    if Path(out).exists():
        raise FinloraError(f"`{out}` exists already", "name another folder")
    kind, model, extra = opened.dtype(dtype), opened.model, extra or {}
    state = _cast(state, kind, encoded="quantization_config" in extra)

    def write(folder: Path) -> None:
        model.body.save_pretrained(folder, state_dict=state, max_shard_size=shard_size)
        model.tokenizer.save_pretrained(folder)
        path = folder / "config.json"
        config = {**json.loads(path.read_text(encoding="utf-8")), "dtype": NAMES[kind]}
        config.pop("quantization_config", None)
        path.write_text(json.dumps({**config, **extra}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        if beside is not None:
            beside(folder)

    return atomic_folder(Path(out), write)


def _cast(state: dict[str, Any], kind: torch.dtype, encoded: bool) -> dict[str, Tensor]:
    """Every float of the state in `kind`, tied tensors still tied; an encoded weight's own tensors as they are."""
    done: dict[int, Tensor] = {}  # by where a tensor lies, which tells tied ones while the state keeps them alive
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if callable(value):
            out[key] = _rounded(key, value(), kind)
        elif not value.is_floating_point() or (encoded and (".weight." in key or key.endswith(".SCB"))):
            out[key] = value.contiguous()
        else:
            if value.data_ptr() not in done:
                done[value.data_ptr()] = _rounded(key, value, kind)
            out[key] = done[value.data_ptr()]
    return out


def _rounded(key: str, value: Tensor, kind: torch.dtype) -> Tensor:
    cast = value.detach().to(kind).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise FinloraError(f"{key} holds values that {NAMES[kind]} cannot, up to {float(value.abs().max()):.3g}", "write --dtype bfloat16")
    return cast
