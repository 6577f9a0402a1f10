"""Adapter folders: PEFT's format, read and written without importing PEFT.

    adapter_config.json         what PEFT reads: method, rank, alpha, target modules
    adapter_model.safetensors   base_model.model.<linear>.lora_A.weight ...
    finlora.json                what PEFT has no field for: the method's own settings, the codec it was trained over

A folder that we wrote loads in PEFT with equal logits, and one that PEFT wrote loads here.  A method for which PEFT has
no format is kept under our own parameter names and is refused by PEFT, not misread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import __version__
from .checkpoint import atomic_folder, read_tensors
from .errors import FinloraError
from .linear import Linear, Method
from .model import Model
from .registry import names, pick
from .wiring import Saved, find_linears, shape_of

PREFIX = "base_model.model."
REFUSED = {  # fields of LoraConfig that change the map in a way that no method here has
    "modules_to_save": "whole modules trained beside the adapter",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapters on bare parameters",
    "lora_bias": "a bias inside the adapter",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
}
EDITS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts of PEFT that change the base, which the folder lacks


def save_adapter(model: Model, folder: str | Path, name: str = "default", replace: bool = False) -> Path:
    """Write the adapter `name` of the model as a PEFT folder.

    Raises: FinloraError where the model has no such adapter, the folder exists, or the disk is full.
    """
    held = {key: linear for key, linear in model.linears.items() if name in linear.adapters}
    if not held:
        raise FinloraError(f"{model.name} has no adapter named `{name}`", "open the model with a method first")
    method, config = next(iter(held.values())).how[name]
    tensors = {}
    for key, linear in held.items():
        for param, value in linear.adapters[name].items():
            suffix = method.peft.names[param] if method.peft else f"finlora_{param}"
            tensors[f"{PREFIX}{key}.{suffix}"] = value.detach().float().contiguous().cpu()
    fields = {
        **(method.peft.config(config) if method.peft else {"peft_type": f"FINLORA_{method.name.upper()}"}),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "bias": "none",
        "inference_mode": True,
        "target_modules": _targets(model, held),
        "fan_in_fan_out": bool(model.turned) and model.turned >= set(held),
        **_patterns(held, name, method, config),
    }
    store = next(iter(held.values())).store
    own = {
        "finlora": __version__,
        "method": method.name,
        "config": dataclasses.asdict(config),
        "codec": store.codec.name if store is not None else "none",
        "codec_config": dataclasses.asdict(store.cfg) if store is not None else {},
        "base": model.name,
    }

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        for file, value in (("adapter_config.json", fields), ("finlora.json", own)):
            (temporary / file).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    return atomic_folder(Path(folder), write, replace)


def attach_adapter(model: Model, folder: str | Path, name: str = "default") -> None:
    """Attach an adapter folder, ours or PEFT's, to a rewired model and make it the active one.

    An adapter that edits its base must be opened with its base (`open_model(adapter=...)`).
    Raises: FinloraError for a folder that is no adapter, pickled weights, a kind that is not served, a tensor that does
    not fit.
    """
    for key, (method, config, params) in adapter_tensors(model, folder).items():
        linear = model.linears[key]
        linear.attach(name, method, config, {k: v.to(model.device) for k, v in params.items()})
    model.route.active = name
    for key, p in model.named_parameters():
        if f".adapters.{name}." in key:
            p.requires_grad_(False)


def adapter_tensors(model: Model, folder: str | Path) -> Saved:
    """{linear: (method, its settings, its parameters in fp32)} of an adapter folder, checked against the model.

    Raises: FinloraError as attach_adapter.
    """
    folder = Path(folder)
    fields, own = read_config(folder)
    if not (folder / "adapter_model.safetensors").is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        what = "holds a pickled adapter (adapter_model.bin), which can run code when read" if pickled else "has no adapter_model.safetensors"
        raise FinloraError(f"adapter `{folder}` {what}", "save it again with safe_serialization=True")
    method, config = _method(folder, fields, own)
    suffixes = {v: k for k, v in method.peft.names.items()} if method.peft else {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in read_tensors(folder / "adapter_model.safetensors").items():
        linear, param = _place(key, suffixes, folder)
        found.setdefault(linear, {})[param] = value
    if not found:
        raise FinloraError(f"adapter `{folder}` holds no tensor", "save it again")
    shapes = {key: linear.shape for key, linear in model.linears.items()} or {key: shape_of(m) for key, m in find_linears(model.body).items()}
    out: Saved = {}
    for key, params in found.items():
        if key not in shapes:
            raise FinloraError(f"adapter `{folder}` adapts `{key}`, which {model.name} does not have", "open it with the model it was trained on")
        own_config = _at(config, key, fields, folder)
        _check_tensors(folder, key, params, shapes[key], method, own_config)
        # a copy: tensors of a mapped file lie as the file has them, and products of such rows round differently
        out[key] = method, own_config, {k: v.to(torch.float32, copy=True) for k, v in params.items()}
    return out


def read_config(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(adapter_config.json, finlora.json or {}) of an adapter folder.  Raises: FinloraError where it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FinloraError(f"there is no adapter folder `{folder}`", "name the folder that holds adapter_config.json")
    out = []
    for file in ("adapter_config.json", "finlora.json"):
        path = folder / file
        if not path.is_file():
            if file == "adapter_config.json":
                raise FinloraError(f"`{folder}` is not an adapter folder, it has no adapter_config.json", "name the `adapter` folder of a run")
            out.append({})
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FinloraError(f"`{path}` is not JSON: {error}", "save the adapter again") from error
        if not isinstance(value, dict):
            raise FinloraError(f"`{path}` is no JSON object", "save the adapter again")
        out.append(value)
    return out[0], out[1]


def trained_over(folder: str | Path) -> dict[str, Any]:
    """The codec section of a spec that opens the base as this adapter knew it: {"kind", its options}.

    An adapter that does not say (PEFT's own) is taken over `none`.  Raises: FinloraError where the folder is no adapter.
    """
    _, own = read_config(folder)
    return {"kind": own.get("codec", "none"), **own.get("codec_config", {})}


def _method(folder: Path, fields: dict[str, Any], own: dict[str, Any]) -> tuple[Method, Any]:
    if own:
        with _reading(folder / "finlora.json"):
            method = pick("method", own["method"])
            return method, method.config(**own["config"])
    for key, what in REFUSED.items():
        if fields.get(key):
            raise FinloraError(f"adapter `{folder}` uses `{key}` ({what}), which is not served here", "merge it with PEFT and open the merged model")
    if fields.get("bias", "none") != "none":
        raise FinloraError(f"adapter `{folder}` trains biases (bias = `{fields['bias']}`), which is not served here", "merge it with PEFT and open the merged model")
    start = str(fields.get("init_lora_weights", "")).lower()
    if start.startswith(EDITS_BASE):
        raise FinloraError(f"adapter `{folder}` began as `{start}`, which edits the base weights that it belongs to", "save it with path_initial_model_for_weight_conversion, or merge it with PEFT")
    for name in names("method"):
        method = pick("method", name)
        with _reading(folder / "adapter_config.json"):
            config = method.peft.read(fields) if method.peft else None
        if config is not None:
            return method, config
    kind = fields.get("peft_type")
    raise FinloraError(f"adapter `{folder}` is of PEFT's kind `{kind}`, in a form that no method here has", "merge it with PEFT and open the merged model")


def _place(key: str, suffixes: dict[str, str], folder: Path) -> tuple[str, str]:
    """(linear, parameter) of a tensor's key."""
    bare = key.removeprefix(PREFIX)
    for suffix, param in suffixes.items():
        if bare.endswith("." + suffix):
            return bare[: -len(suffix) - 1], param
    linear, mark, param = bare.rpartition(".finlora_")
    if not mark:
        raise FinloraError(f"adapter `{folder}` holds `{key}`, which this method does not have", "merge it with PEFT and open the merged model")
    return linear, param


def _targets(model: Model, held: dict[str, Linear]) -> list[str]:
    """PEFT's target_modules: leaf names where they name exactly the adapted linears, else full names."""
    leaves = {key.rsplit(".", 1)[-1] for key in held}
    named = {key for key in model.linears if key.rsplit(".", 1)[-1] in leaves}
    return sorted(leaves) if named == set(held) else sorted(held)


def _patterns(held: dict[str, Linear], name: str, method: Method, config: Any) -> dict[str, Any]:
    """PEFT's rank_pattern and alpha_pattern for linears whose settings differ from the first's."""
    out: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    for key, linear in held.items():
        own = linear.how[name][1]
        if own != config and method.peft:
            out["rank_pattern"][key], out["alpha_pattern"][key] = own.rank, own.alpha
    return out


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in whatever is wrong with its values."""
    try:
        yield
    except FinloraError as error:
        raise FinloraError(f"`{path}`: {error.message}", error.hint) from error
    except KeyError as error:
        raise FinloraError(f"`{path}` has no `{error.args[0]}`", "save the adapter again") from error
    except (TypeError, ValueError) as error:
        raise FinloraError(f"`{path}` holds a value of the wrong kind: {error}", "save the adapter again") from error


def _at(config: Any, key: str, fields: dict[str, Any], folder: Path) -> Any:
    """The settings of one linear, after PEFT's patterns: the first that matches the end of its name counts."""
    changes = {}
    for field, pattern in (("rank", "rank_pattern"), ("alpha", "alpha_pattern")):
        for rule, value in (fields.get(pattern) or {}).items():
            try:
                found = re.fullmatch(rf"(?:.*\.)?(?:{rule})", key)
            except re.error as error:
                raise FinloraError(f"`{folder / 'adapter_config.json'}`: {pattern} `{rule}` is no regular expression ({error})", "mend the pattern") from error
            if found:
                with _reading(folder / "adapter_config.json"):
                    changes[field] = type(getattr(config, field))(value)
                break
    return dataclasses.replace(config, **changes) if changes else config


def _check_tensors(folder: Path, key: str, params: dict[str, torch.Tensor], shape: tuple[int, int], method: Method, config: Any) -> None:
    """A linear's tensors are all there, of the right shape, and numbers."""
    O, I = shape
    if method.peft and (lost := sorted(method.peft.names[p] for p in method.peft.names.keys() - params.keys())):
        raise FinloraError(f"adapter `{folder}` holds no `{lost[0]}` for {key}", "the file was cut short or edited: save it again")
    wanted = {"A": (config.rank, I), "B": (O, config.rank), "m": (O,)} if hasattr(config, "rank") else {}
    for param, value in params.items():
        if param in wanted and tuple(value.shape) != wanted[param]:
            raise FinloraError(
                f"adapter `{folder}`: {key} {param} has shape {tuple(value.shape)}, this model needs {wanted[param]}",
                "open it with the model it was trained on",
            )
        if not bool(torch.isfinite(value).all()):
            raise FinloraError(f"adapter `{folder}`: {key} {param} has values that are not finite", "it was saved after training diverged; use an earlier one")


def train_adapter(model: Model, name: str = "default") -> None:
    """Make an attached adapter trainable again, but for what its method holds frozen."""
    for linear in model.linears.values():
        if name in linear.adapters:
            for key, p in linear.adapters[name].items():
                p.requires_grad_(key not in linear.how[name][0].frozen)
