"""Decompositions of a pretrained weight into two narrow ones: one file a member, each exports DECOMPOSITION.

    W ~ B A,   the output error is  E|x W^T - x (B A)^T|^2 = tr((W - B A) C (W - B A)^T),   C = E[x x^T]

Every member gives factors that are nested: the first k rows of A and columns of B are its factors of rank k.  One
decomposition of a weight therefore serves every rank, and whoever shares out ranks decomposes once.  All is computed in
float64, on the weight's device.

Shapes: W_OI, C_II, A_RI, B_OR; errors_K (R + 1,), errors_K[k] at rank k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FinloraError
from ..seam import Stats, check_finite, check_stats


@dataclass(frozen=True)
class Factors:
    """A_RI, B_OR in float64, largest component first. errors_K: squared errors at rank 0, 1, ... min(O, I) in the metric
    that the member minimises, in float64."""

    A: Tensor
    B: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Decomposition:
    """How a weight is cut into two. `config` is a frozen dataclass that checks itself.

    solve(cfg, W_OI, stats, rank) -> Factors; W is in float64 and finite, 1 <= rank <= min(O, I).
    needs: the fields of `Stats` that it asks for. paper: arXiv number. structure: the structure of which the factors are the
    parameters "A" and "B".
    """

    name: str
    config: type
    solve: Callable[[Any, Tensor, Stats | None, int], Factors]
    needs: tuple[str, ...] = ()
    paper: str = ""
    structure: str = "lowrank"

    def whole(self, cfg: Any, W_OI: Tensor, stats: Stats | None = None, rank: int | None = None) -> Factors:
        """The factors of every rank up to `rank` (None: all), checked.

        Raises: FinloraError on a weight that is not finite, a rank above the layer, or missing stats.
        """
        most = min(W_OI.shape)
        if rank is not None and not 1 <= rank <= most:
            O, I = W_OI.shape
            raise FinloraError(f"rank {rank} is not within the layer, whose weight is {O} x {I}", f"use a rank from 1 to {most}")
        check_finite(W_OI)
        check_stats(self.name, self.needs, stats)
        with torch.no_grad():
            return self.solve(cfg, wide(W_OI), stats, most if rank is None else rank)

    def factor(self, cfg: Any, W_OI: Tensor, stats: Stats | None, rank: int) -> tuple[Tensor, Tensor]:
        """(A_RI, B_OR) of that rank, fp32 (fp64 for fp64), on W's device.

        Raises: FinloraError as `whole`.
        """
        found = self.whole(cfg, W_OI, stats, rank)
        kind = torch.promote_types(W_OI.dtype, torch.float32)
        return found.A.to(W_OI.device, kind), found.B.to(W_OI.device, kind)

    def spectrum(self, cfg: Any, W_OI: Tensor, stats: Stats | None = None) -> Tensor:
        """errors_K: the squared error at rank 0, 1, ... min(O, I), in the metric that the member minimises, fp64.

        Raises: FinloraError as `whole`.
        """
        return self.whole(cfg, W_OI, stats, 1).errors


def wide(x: Tensor) -> Tensor:
    """A copy in float64; on the CPU where the device has none.  A copy of its own also begins at an address that the matrix
    libraries like, so that the same numbers give the same bits wherever they came from."""
    return torch.empty(x.shape, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device).copy_(x)
