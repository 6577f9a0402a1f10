"""What PEFT's file of an adapter holds: the method's own format there, or plain LoRA, or neither.

    peft    the method's own format, where the file so holds the whole map
    plain   plain LoRA over the original weights (`over_original`), each linear with its own rank and scale
    own     our own parameters under our own kind

Only what the record says counts (`peft`, `to_lora`) and whether the base was edited. PEFT lets few settings differ from
linear to linear; where they differ in others, the method's own format cannot say it.

Shapes: A_RI (rank, in), B_OR (out, rank).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linear import EDIT, Method, Place, over_original
from .model import Model

PREFIX = "base_model.model."
# What PEFT lets differ from linear to linear, by kind: field of its config -> field that holds the exceptions. (HiRA's config
# has a rank_pattern too, which PEFT 0.21 does not follow.)
PATTERNS = {"LORA": {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}}
BIASED = ("LORA", "ADALORA", "VERA", "RANDLORA", "MISS")  # kinds whose config has a field for biases
TURNS = ("LORA", "ADALORA", "VERA", "HIRA", "RANDLORA")  # kinds that PEFT puts on GPT-2's Conv1D too


def common_fields(model: Model, held: set[str], whole: list[str], kind: str) -> dict[str, Any]:
    """The fields of adapter_config.json that every kind has. held: the adapted linears. whole: modules trained whole."""
    out: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "inference_mode": True,
        "target_modules": _targets(model, held),
    }
    if kind in BIASED:
        out["bias"] = "none"
    if kind in TURNS:
        out["fan_in_fan_out"] = bool(model.turned) and model.turned >= held
    if whole:
        out["modules_to_save"] = whole
    return out


def plain_fields(forms: dict[str, tuple[Tensor, Tensor, float]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(fields of adapter_config.json, tensors) of plain LoRA: {linear: (A_RI, B_OR, scale)}, each with its own rank and scale."""
    ranks = {key: A.shape[0] for key, (A, _, _) in forms.items()}
    alphas = {key: float(scale) * ranks[key] for key, (_, _, scale) in forms.items()}
    r, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    fields = {
        "peft_type": "LORA", "r": r, "lora_alpha": alpha, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False,
        "rank_pattern": {key: n for key, n in ranks.items() if n != r},
        "alpha_pattern": {key: a for key, a in alphas.items() if a != alpha},
    }  # fmt: skip
    halves = {key: (kept(A), kept(B)) for key, (A, B, _) in forms.items()}
    tensors = {f"{PREFIX}{key}.lora_{side}.weight": v for key, both in halves.items() for side, v in zip("AB", both)}
    return fields, tensors


def form(model: Model, method: Method, configs: dict[str, Any], params: dict[str, dict[str, Tensor]]):
    """(form, PEFT's fields of the kind, tensors of PEFT's file, tensors of ours)."""
    ours = {f"{key}.{param}": v for key, held in params.items() for param, v in held.items()}
    edits = any(EDIT[0] in held for held in params.values())
    fields = None if edits or method.peft is None or not _holds_all(method, configs, params) else _native(model, method, configs)
    if fields is not None:
        tensors: dict[str, Tensor] = {}
        for key, held in params.items():
            for param in held:
                if param in method.peft.names:
                    tensors[f"{PREFIX}{key}.{method.peft.names[param]}"] = ours.pop(f"{key}.{param}")
        if method.peft.shared:
            tensors.update(_shared(model, method, configs, params))
            ours = {key: v for key, v in ours.items() if key.rpartition(".")[2] not in method.peft.shared}
        return "peft", fields, tensors, ours
    if method.to_lora is not None:
        fields, tensors = plain_fields({key: over_original(method, configs[key], held) for key, held in params.items()})
        return "plain", fields, tensors, ours
    own = {f"{PREFIX}{key}.finlora_{param}": v for key, held in params.items() for param, v in held.items()}
    return "own", {"peft_type": f"FINLORA_{method.name.upper()}"}, own, {}


def _holds_all(method: Method, configs: dict[str, Any], params: dict[str, dict[str, Tensor]]) -> bool:
    """Whether what PEFT's file holds is the whole map: no parameter that PEFT does not know changes it."""
    known = method.peft.names.keys() | method.peft.shared.keys()
    for key, held in params.items():
        if method.to_lora is not None and held.keys() - known:
            try:
                part = method.to_lora(configs[key], {p: v for p, v in held.items() if p in known})
            except KeyError:  # a parameter that PEFT makes itself
                continue
            if not all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(part, method.to_lora(configs[key], held))):
                return False
    return True


def _native(model: Model, method: Method, configs: dict[str, Any]) -> dict[str, Any] | None:
    """PEFT's fields of a method's own kind, exceptions of single linears included; None where that kind cannot say it."""
    first, *rest = [method.peft.config(config) for config in configs.values()]
    patterns = PATTERNS.get(first["peft_type"], {})
    if first["peft_type"] not in TURNS and model.turned & configs.keys():
        return None
    out = {**first, **{field: {} for field in patterns.values()}}
    for key, fields in zip(list(configs)[1:], rest):
        for field, value in fields.items():
            if value != first[field]:
                if field not in patterns:
                    return None
                out[patterns[field]][key] = value
    return out


def kept(value: Tensor) -> Tensor:
    """A parameter as it is written: fp32, on the CPU, in memory of its own."""
    return value.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


def _shared(model: Model, method: Method, configs: dict[str, Any], params: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that all linears share, as large as the largest sides ask for: each linear holds its leading corner.

    What no linear uses is as the method would draw it.
    """
    first = next(iter(configs.values()))
    largest = tuple(max(sides) for sides in zip(*(model.linears[key].shape for key in params)))
    place = Place(lambda W: W, generator=torch.Generator().manual_seed(0), largest=largest)
    fresh = method.init(first, torch.zeros(1).expand(largest), place)
    out = {}
    for param, name in method.peft.shared.items():
        out[name] = kept(fresh[param])
        for held in params.values():
            corner(out[name], held[param].shape).copy_(held[param])
        assert all(torch.equal(corner(out[name], held[param].shape), held[param]) for held in params.values()), f"{param} differs between linears"
    return out


def corner(value: Tensor, shape: Any) -> Tensor:
    """The leading part of a tensor that has this shape."""
    return value[tuple(slice(n) for n in shape)]


def _targets(model: Model, held: set[str]) -> list[str]:
    """PEFT's target_modules: leaf names where they name exactly the adapted linears, else full names."""
    leaves = {key.rsplit(".", 1)[-1] for key in held}
    named = {key for key in model.linears if key.rsplit(".", 1)[-1] in leaves}
    return sorted(leaves) if named == held else sorted(held)
