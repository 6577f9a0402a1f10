"""What can be exported, opened as it was trained: a run's folder, an adapter's folder, or a model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..adapters import read_config, trained_over
from ..errors import FinloraError
from ..model import Model, locate, open_model
from ..registry import pick
from ..spec import digest, load_spec

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


@dataclass
class Opened:
    """source: as the user named it. model: opened. base: the base model's name. adapter: its folder, where there is one.

    facts: what the model card tells, by name. lossy: whether the adapter was trained over rounded weights. fidelity: the run's fidelity.json, where it was measured.
    """

    source: str
    model: Model
    base: str
    adapter: Path | None
    facts: dict[str, Any] = field(default_factory=dict)
    lossy: bool = False
    fidelity: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter_name(self) -> str | None:
        """The adapter's name within the model."""
        return "default" if self.adapter is not None else None

    def dtype(self, name: str) -> torch.dtype:
        """The torch dtype of `name`; `auto` is what the base's checkpoint is kept in.  Raises: FinloraError for another."""
        table = {v: k for k, v in NAMES.items()}
        if name == "auto":
            said = _json(Path(locate(self.base)) / "config.json") if Path(locate(self.base)).is_dir() else {}
            return table.get(said.get("dtype") or said.get("torch_dtype"), torch.float32)
        if name not in table:
            raise FinloraError(f"--dtype must be one of auto, {', '.join(table)}, got {name!r}", "bfloat16 is usual")
        return table[name]


def open_source(source: str | Path, *, codec: str | None = None, model: str | None = None, device: str = "auto") -> Opened:
    """Open a run's folder, an adapter's folder, a model's folder or `finlora/base`.

    codec: how the base is kept; None is as the adapter was trained, and none for a model without one. model: the base of an
    adapter, where it is not where the adapter says.
    Raises: FinloraError for a folder that is none of these.
    """
    folder = Path(source).expanduser()
    facts: dict[str, Any] = {}
    base, adapter, online, dtype = str(source), None, False, ""
    if (folder / "spec.toml").is_file():
        spec = load_spec(folder / "spec.toml")
        base, online, dtype = spec.model.name, spec.model.online, spec.run.dtype
        facts = {"trained on": ", ".join([Path(t).name for t in spec.data.text] or spec.data.tasks), "run": folder.name}
        if (folder / "adapter" / "adapter_config.json").is_file():
            adapter = folder / "adapter"
        elif (folder / "model" / "config.json").is_file():
            base = str(folder / "model")
        else:
            raise FinloraError(f"the run `{folder}` holds neither an adapter nor a model", "let it finish, or name another")
    elif (folder / "adapter_config.json").is_file():
        adapter = folder
        base = ""
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise FinloraError(f"`{folder}` is no run, no adapter and no model", "name the folder that a run wrote, its `adapter`, or a model's")
    fidelity, lossy = _json(folder / "fidelity.json"), False
    if facts and fidelity.get("spec", digest(spec)) != digest(spec):  # of an earlier run in the same folder
        fidelity = {}
    if adapter is not None:
        fields, own = read_config(adapter)
        base = model or base or own.get("base") or fields.get("base_model_name_or_path") or ""
        dtype = own.get("dtype") or dtype
        lossy = not pick("codec", trained_over(adapter)["kind"]).lossless
        facts = {"method": own.get("method", fields.get("peft_type", "").lower()), **own.get("config", {}), "codec of the base": own.get("codec", "none"), **facts}
    kept = {"codec": codec, "codec_config": pick("codec", codec).config()} if codec else {}
    # as it was trained: a bfloat16 run encoded bfloat16 weights. Over the original ones all is computed in float32
    wanted = "float32" if (codec and pick("codec", codec).lossless) or dtype in ("", "auto") else dtype
    opened = open_model(base, adapter=adapter, device=device, dtype=wanted, online=online, **(kept if adapter is not None or codec else {"codec": "none"}))
    return Opened(str(source), opened, base, adapter, facts, lossy, fidelity)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}
