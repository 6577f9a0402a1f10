"""Optimiser groups from Method.groups, AdamW, and schedules that are functions of the step.

    lr(step) = peak * multiplier * warmup(step) * course(step)

A method that wants one factor to learn faster says so in its `groups` (LoRA+, arXiv 2402.12354); nothing here knows it.
Weight decay is decoupled (AdamW, arXiv 1711.05101) and spares vectors: norms, biases, magnitudes.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import nn

from .model import Model


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


def multipliers(model: Model) -> dict[str, float]:
    """Learning-rate multiplier of every trainable parameter, by name: what its method says, 1 elsewhere."""
    by_id: dict[int, float] = {}
    for linear in model.linears.values():
        for name, params in linear.adapters.items():
            method, config = linear.how[name]
            table = method.groups(config, dict(params.items()))
            by_id.update({id(p): table[key] for key, p in params.items()})
    return {name: by_id.get(id(p), 1.0) for name, p in model.trainable().items()}


def adamw(model: Model, settings: Settings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; each group carries its `multiplier` and the `names` of its parameters."""
    table = multipliers(model)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, p in model.trainable().items():
        decay = settings.weight_decay if p.ndim >= 2 else 0.0
        groups.setdefault((table[name], decay), []).append((name, p))
    return torch.optim.AdamW(
        [
            {"params": [p for _, p in members], "names": [n for n, _ in members], "multiplier": m, "weight_decay": decay}
            for (m, decay), members in groups.items()
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


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


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `exp_avg/<parameter>`."""
    out = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"]):
            for key, value in optimizer.state.get(p, {}).items():
                out[f"{key}/{name}"] = value if torch.is_tensor(value) else torch.tensor(value)
    return out


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state_tensors` took out."""
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"]):
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"{key}/{name}")
                if value is not None:
                    state[key] = value.to(p.device, copy=True)  # `step` too: the fused kernel reads it there
            if state:
                optimizer.state[p] = state
