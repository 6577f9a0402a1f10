"""EVA: LoRA whose A starts at the main directions of the layer's inputs, B at zero, with ranks shared out by need.

    E[x x^T] = V L V^T,   A = V_r^T,   B = 0;   rank of each layer: its share of the model's best explained variance

Source: 2410.07170. The base is untouched, so it stands over any codec. Components of all layers compete by their part of
their layer's variance, L_k / sum(L), for as many places as plain LoRA would have had; no layer gets more than rho times
the rank (rho = 1: equal ranks), and each keeps one. `adjust` scales a layer's alpha with its rank, so that alpha / rank
is the same everywhere.
Differs from PEFT's: an exact eigendecomposition in place of an incremental SVD, and of the second moment as in the
paper, where PEFT's subtracts the mean; a layer never loses its adapter whole.

Shapes: C_II, A_RI, B_OR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import FinloraError
from ..linear import Place, Stats
from ..seam import by_shape
from . import lora
from ._factors import check_above


@dataclass(frozen=True)
class EVA(lora.LoRA):
    """rank, alpha, dropout: as in LoRA, rank being the mean over layers. rho: a layer has at most rho times the rank.

    adjust: whether alpha follows a layer's rank, so that the scale stays.
    """

    rho: float = 2.0
    adjust: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_above("rho", self.rho, 1, "2 is usual, 1 gives every layer the same rank")
        if not isinstance(self.adjust, bool):
            raise FinloraError(f"adjust must be true or false, got {self.adjust!r}")


def spectrum(C_II: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(share of the variance of each component, V_RI): the `rank` leading eigenvectors, largest first, in float64."""
    values, vectors = torch.linalg.eigh(C_II.double())
    V = vectors.flip(1)[:, :rank].T
    sign = torch.gather(V, 1, V.abs().argmax(1, keepdim=True)).sign()
    return shares(values.flip(0)), V * sign


def shares(values: Tensor) -> Tensor:
    """Each component's part of the variance; rounding below zero counts as zero."""
    values = values.clamp(min=0)
    return values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)


@by_shape
def init(cfg: EVA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A = the inputs' leading directions, B = 0.

    Raises: FinloraError when the rank exceeds the layer.
    """
    lora.check_rank(cfg.rank, *W_OI.shape)
    _, V = spectrum(place.stats.moment_II.to(W_OI.device), cfg.rank)
    return {"A": V.float().contiguous(), "B": torch.zeros(W_OI.shape[0], cfg.rank, device=W_OI.device)}


def plan(cfg: EVA, stats: Mapping[str, Stats], shapes: Mapping[str, tuple[int, int]]) -> dict[str, EVA]:
    """Each layer's settings; the ranks add up to those of plain LoRA.

    Raises: FinloraError when the rank exceeds a layer.
    """
    most = {}
    for name, (O, I) in shapes.items():
        try:
            lora.check_rank(cfg.rank, O, I)
        except FinloraError as error:
            raise FinloraError(f"{name}: {error.message}", error.hint) from error
        most[name] = min(int(cfg.rho * cfg.rank), O, I)
    known: dict[int, Tensor] = {}  # linears that read one tensor share one moment, and one decomposition
    offers = []
    for at, name in enumerate(shapes):
        C = stats[name].moment_II
        share = known.get(id(C))
        if share is None:
            share = known[id(C)] = shares(torch.linalg.eigvalsh(C.double()).flip(0)).cpu()
        offers += [(-float(share[k]), k, at, name) for k in range(1, most[name])]
    ranks = {name: 1 for name in shapes}
    for _, _, _, name in sorted(offers)[: (cfg.rank - 1) * len(shapes)]:
        ranks[name] += 1
    return {n: replace(cfg, rank=r, alpha=cfg.alpha * r / cfg.rank if cfg.adjust else cfg.alpha) for n, r in ranks.items()}


# PEFT holds it as plain LoRA with a rank for each layer, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="eva", config=EVA, init=init, peft=PEFT, paper="2410.07170", needs=lambda cfg: ("moment_II",), plan=plan
)
