"""APOLLO: the gradient itself, each channel scaled as Adam scales a random projection of it.

    R = P g,   N = Adam's step of R,   s_j = |N_j| / |R_j|,   p <- p - lr (sqrt(scale) limit(g diag(s)) + decay p)

P is Gaussian, rank x the shorter side, entries of variance 1 / rank, drawn anew every `update_every` steps from the
parameter's name and the number of the draw alone: it is never kept. Channels are the longer side's, a square matrix's
its outputs. The state of an M x N matrix (M <= N) is 2 rank N numbers, against AdamW's 2 M N. `limit` keeps a step's
norm, before Adam's correction for the moments' start, from growing by more than 1 % over that of the one before. mini:
rank 1, one scale for the whole matrix, and sqrt(scale) makes up for what a projection to rank 1 loses: 2 N numbers.

Source: 2412.05270; rank is a quarter of the width there, scale 1 (mini: 128). The rate is 0.01 in every public script
of theirs, mini or not. The limiter is of 2410.01623. Entries of a step are sqrt(rank / M) times the size of AdamW's at
scale 1. There is no momentum but in the scales. The moments outlive P, as in the authors' code: N is read for its
norms alone, which are alike for every P; the first moment is a sketch by two P's for some ten steps after a draw,
which lowers its norm to no less than 0.7 of what it was. How we differ: theirs begins the limiter at the first step
even where that is 0, and a factor whose partner begins at 0 then moves by 1e-8, growing 1 % a step; here it begins at
the first step that is not 0. The decay is AdamW's, before the step.

Shapes: g_MN with M <= N, P_RM, R_RN, N_RN, s_N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FinloraError
from . import Optimizer, Pair, _projected
from ._projected import TINY, gaussian, limited, normalised
from ._settings import check_truth, check_whole

SCALES = {False: 1.0, True: 128.0}  # of a scale of 0, by mini


@dataclass(frozen=True)
class Apollo:
    """rank: rows of the projection, no more than the shorter side is long. update_every: steps between draws. scale:
    see the equation; 0 is the paper's, 1 or with mini 128. mini: rank 1 (`rank` is not read), one scale a matrix."""

    rank: int = 128
    update_every: int = 200
    scale: float = 0.0
    mini: bool = False

    def __post_init__(self):
        check_whole("rank", self.rank, 1, "a quarter of the width")
        check_whole("update_every", self.update_every, 1, "200")
        numeric = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not numeric or not (math.isfinite(self.scale) and self.scale >= 0):
            raise FinloraError(f"scale must be a finite number of at least 0, got {self.scale!r}", "0 is the paper's")
        check_truth("mini", self.mini)


class Scaled(_projected.Projected):
    """APOLLO for matrices of linears, AdamW for the rest."""

    cfg: Apollo

    def move(self, g_MN: Tensor, state: dict[str, Any], group: dict[str, Any], name: str) -> Tensor:
        cfg, M = self.cfg, len(g_MN)
        rank = 1 if cfg.mini else min(cfg.rank, M)
        P_RM = gaussian(name, state["age"] // cfg.update_every, (rank, M), g_MN) / rank**0.5
        R_RN = P_RM @ g_MN
        N_RN = normalised(R_RN, state, group)
        over = None if cfg.mini else 0
        s = torch.linalg.vector_norm(N_RN, dim=over) / torch.linalg.vector_norm(R_RN, dim=over).clamp(min=TINY)
        return limited(g_MN * s, state, group) * (cfg.scale or SCALES[cfg.mini]) ** 0.5


def make(cfg: Apollo, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.Optimizer:
    """APOLLO over the matrices of linears, AdamW over all else."""
    return _projected.make(Scaled, cfg, groups, settings)


OPTIMIZER = Optimizer("apollo", Apollo, make, paper="2412.05270")
