"""The base that an adapter belongs to: the digest of its weights, and its embeddings or head where they were trained whole.

PEFT calls modules that train whole beside an adapter `modules_to_save` and keeps them in the adapter's own file, as
base_model.model.<module>.weight. Here they are the input embeddings and the output head; the bodies that tie the two keep
them tied, and a folder that trained one without the other is refused, since PEFT would have parted them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import FinloraError
from .model import Model, locate

SAMPLE = 4096  # bytes of a tensor that enter the digest at its start, in its middle and at its end


def base_digest(folder: str | Path) -> str:
    """sha256 over the weights of a checkpoint folder: of every tensor its name, type, shape and three samples of its bytes.

    The samples are the first, middle and last 4,096 bytes, so that a 70B checkpoint is told from another in a second. How
    the tensors are spread over files does not count, nor does config.json, which libraries rewrite. Two checkpoints that
    differ only between the samples, which no training or conversion gives, are taken for one.
    Raises: FinloraError for a file that is no safetensors file.
    """
    entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with open(file, "rb") as f:
                length = int.from_bytes(f.read(8), "little")
                if length > file.stat().st_size:
                    raise ValueError("its header is cut off")
                header = json.loads(f.read(length))
        except (OSError, ValueError) as error:
            raise FinloraError(f"`{file}` is not a readable safetensors file: {error}", "fetch the model again") from error
        entries.update({key: (file, 8 + length, entry) for key, entry in header.items() if key != "__metadata__"})
    h = hashlib.sha256()
    for key, (file, start, entry) in sorted(entries.items()):
        first, last = entry["data_offsets"]
        h.update(f"{key}\0{entry['dtype']}\0{entry['shape']}\0".encode())
        with open(file, "rb") as f:
            for at in (first, max(first, (first + last - SAMPLE) // 2), max(first, last - SAMPLE)):
                f.seek(start + at)
                h.update(f.read(min(SAMPLE, last - at)))
    return h.hexdigest()


def digest_of(model: Model) -> str:
    """`base_digest` of the folder that a model was opened from; empty where there is none (made from scratch, or on a hub)."""
    try:
        where = Path(locate(model.name))
    except FinloraError:
        return ""
    return base_digest(where) if where.is_dir() else ""


def trained_whole(model: Model) -> dict[str, dict[str, Tensor]]:
    """{module: {parameter: tensor}} of what trains whole beside the adapter, named as the body names it."""
    keys = [key.removeprefix("body.") for key in getattr(model, "also", None) or {}]
    return {key: dict(model.body.get_submodule(key).named_parameters(recurse=False)) for key in sorted(keys)}


def whole_tensors(model: Model, folder: Path, fields: dict[str, Any], tensors: dict[str, Tensor], prefix: str = "base_model.model.") -> dict[str, dict[str, Tensor]]:
    """{module: {parameter: tensor}} that an adapter holds whole. fields: its configuration; tensors: those of its file.

    Raises: FinloraError for a module other than embeddings and head, one that the file lacks, or one of another shape.
    """
    ends = {id(m) for m in (model.body.get_input_embeddings(), model.body.get_output_embeddings()) if m is not None}
    ours = {key: module for key, module in model.body.named_modules() if id(module) in ends}
    out: dict[str, dict[str, Tensor]] = {}
    for name in fields.get("modules_to_save") or ():
        found = [key for key in ours if key == name or key.endswith(f".{name}")]
        if not found:
            raise FinloraError(f"adapter `{folder}` uses `modules_to_save` for `{name}`, and only embeddings and head are served here", "merge it with PEFT and open the merged model")
        for key in found:
            out[key] = {}
            for leaf, p in ours[key].named_parameters(recurse=False):
                value = tensors.get(f"{prefix}{key}.{leaf}")
                if value is None:
                    raise FinloraError(f"adapter `{folder}` holds no `{key}.{leaf}`, which it says was trained whole", "the file was cut short or edited: save it again")
                if value.shape != p.shape:
                    raise FinloraError(f"adapter `{folder}`: {key} {leaf} has shape {tuple(value.shape)}, this model needs {tuple(p.shape)}", "open it with the model it was trained on")
                out[key][leaf] = value
    weights = [held["weight"] for held in out.values()]
    if len(ends) == 2 and len({id(module.weight) for module in ours.values()}) == 1 and weights and (len(weights) == 1 or not torch.equal(*weights)):
        raise FinloraError(f"adapter `{folder}` trained embeddings and head apart, and {model.name} keeps them as one", "merge it with PEFT and open the merged model")
    return out
