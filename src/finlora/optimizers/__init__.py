"""What turns gradients into steps: one file a member, each exports OPTIMIZER.

Shapes: A_RI, B_OR, two factors of one linear, which enter it as s B A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Pair = tuple[nn.Parameter, nn.Parameter, float]  # A_RI, B_OR, s


@dataclass(frozen=True)
class Optimizer:
    """What turns gradients into steps. `config` is a frozen dataclass that checks itself.

    make(cfg, groups, settings, pairs) -> torch.optim.Optimizer. groups: torch's parameter groups, each with `names`,
    `multiplier`, `weight_decay`, `inner` where its matrices are those of linears, and `turned` where these are kept as
    (in, out). settings: the rate, betas and epsilon of spec.Train. pairs: the low-rank pairs among the parameters, both
    factors trained. State may hold tensors and numbers, by parameter; a parameter without state begins anew. Its
    `lasting`, where it has one, names the numbers among them that count on when the rest is forgotten (`optim.forget`).
    paper: arXiv number. paired: it is nothing without pairs. invariant: the steps of B A are the same for every
    (R A, B R^-1), whatever the invertible R."""

    name: str
    config: type
    make: Callable[[Any, list[dict[str, Any]], Any, Sequence[Pair]], torch.optim.Optimizer]
    paper: str = ""
    paired: bool = False
    invariant: bool = False
