"""Optimiser groups from Method.groups, the optimiser of a run, and schedules that are functions of the step.

    lr(step) = peak * multiplier * warmup(step) * course(step)

A method that wants one factor to learn faster says so in its `groups` (LoRA+, arXiv 2402.12354); nothing here knows it.
Weight decay is decoupled (AdamW, arXiv 1711.05101) and spares vectors (norms, biases, magnitudes) and the parameters
that carry pretrained weight, which a method names in `undecayed`. How gradients become steps is a member's business,
one file each under optimizers/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from .errors import FinloraError
from .model import Model, find_linears
from .optimizers import Pair
from .registry import pick
from .seam import Method
from .traits import pair


class Settings(Protocol):
    """What is read of spec.Train."""

    lr: float
    min_lr_ratio: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    schedule: str
    warmup: float


def adapted(model: Model) -> Iterator[tuple[Method, Any, dict[str, nn.Parameter]]]:
    """(method, its settings, its parameters) of every adapter of every linear."""
    for linear in model.linears.values():
        for name, params in linear.adapters.items():
            yield (*linear.how[name], dict(params.items()))


def multipliers(model: Model) -> dict[str, float]:
    """Learning-rate multiplier of every trainable parameter, by name: what its method says, 1 elsewhere."""
    by_id: dict[int, float] = {}
    for method, config, params in adapted(model):
        table = method.groups(config, params)
        by_id.update({id(p): table[key] for key, p in params.items()})
    return {name: by_id.get(id(p), 1.0) for name, p in model.trainable().items()}


def pairs_of(model: Model) -> list[Pair]:
    """The trained low-rank pairs (A_RI, B_OR, scale) of all linears; see `traits.pair`."""
    found = [pair(*one) for one in adapted(model)]
    return [one for one in found if one is not None and one[0].requires_grad and one[1].requires_grad]


def make(model: Model, settings: Settings, optimizer: str | tuple[Any, Any] | None = None) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; each group carries its `multiplier` and the `names` of its
    parameters.

    optimizer: a member's name, or (record, config) as `spec.resolve` gives them; None is adamw.
    Raises: FinloraError where the member needs low-rank pairs and the model has none.
    """
    record, config = optimizer if isinstance(optimizer, tuple) else (pick("optimizer", optimizer or "adamw"), None)
    table = multipliers(model)
    spared = {
        id(params[key]) for method, own, params in adapted(model) for key in getattr(own, "undecayed", method.undecayed) if key in params
    }
    inner = {id(p) for _, _, params in adapted(model) for p in params.values()}
    plain = find_linears(model.body).values()  # whole, where a dense model is pretrained
    inner |= {id(p) for module in plain for p in module.parameters()}
    turned = {id(module.weight) for module in plain if type(module).__name__ == "Conv1D"}
    groups: dict[tuple[float, float, bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, p in model.trainable().items():
        decay = settings.weight_decay if p.ndim >= 2 and id(p) not in spared else 0.0
        groups.setdefault((table[name], decay, id(p) in inner, id(p) in turned), []).append((name, p))
    pairs = pairs_of(model)
    if record.paired and not pairs:
        raise FinloraError(
            f"optimizer `{record.name}` steps pairs of low-rank factors A and B, and this method trains none",
            'write optimizer.kind = "adamw", or choose a method such as lora',
        )
    members = [
        {
            "params": [p for _, p in some],
            "names": [n for n, _ in some],
            "multiplier": m,
            "weight_decay": decay,
            "inner": own,
            "turned": turn,
        }
        for (m, decay, own, turn), some in groups.items()
    ]
    return record.make(record.config() if config is None else config, members, settings, pairs)


def adamw(model: Model, settings: Settings) -> torch.optim.Optimizer:
    """`make` with its default."""
    return make(model, settings)


def share(step: int, total: int, settings: Settings) -> float:
    """The share of the peak learning rate at a step (0-based) of `total`: warm-up, then the schedule's course."""
    warm = round(settings.warmup * total) if settings.warmup < 1 else int(settings.warmup)
    warm = min(warm, total)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(total - warm, 1)
    low = settings.min_lr_ratio
    if settings.schedule == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "linear":
        return low + (1 - low) * (1 - done)
    assert settings.schedule == "constant", settings.schedule
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer, peak: float, factor: float) -> float:
    """Set every group's learning rate for this step; returns the rate of multiplier 1."""
    for group in optimizer.param_groups:
        group["lr"] = peak * group["multiplier"] * factor
    return peak * factor


NUMBER = ":number"  # marks a plain number among the tensors of a state


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `exp_avg/<parameter>`; numbers as `<key>:number/<parameter>`."""
    out = {}
    for name, p in _named(optimizer):
        for key, value in optimizer.state.get(p, {}).items():
            tensor = torch.is_tensor(value)
            out[f"{key}{'' if tensor else NUMBER}/{name}"] = value if tensor else torch.tensor(value)
    return out


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that the optimiser keeps; of weights in shards, of this process's own."""
    held = (value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    return sum((value.to_local() if hasattr(value, "to_local") else value).nbytes for value in held)


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state_tensors` took out; a parameter of which nothing is told keeps what it has."""
    told: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in tensors.items():
        key, _, name = path.partition("/")
        told.setdefault(name, {})[key] = value
    for name, p in _named(optimizer):
        if name in told:  # `step` goes to the device too: the fused kernel reads it there
            optimizer.state[p] = {
                key.removesuffix(NUMBER): value.item() if key.endswith(NUMBER) else value.to(p.device, copy=True)
                for key, value in told[name].items()
            }


def forget(optimizer: torch.optim.Optimizer, params: Iterable[nn.Parameter]) -> None:
    """Drop the state of these parameters, which then begin anew; those without state are left alone.

    What the optimiser names in `lasting` stays: the counters of what it does every so many steps.
    """
    lasting = getattr(optimizer, "lasting", ())
    for p in params:
        kept = {key: value for key, value in optimizer.state.pop(p, {}).items() if key in lasting}
        if kept:
            optimizer.state[p] = kept


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"])
