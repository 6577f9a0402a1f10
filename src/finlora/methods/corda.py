"""CorDA: PiSSA in the metric of the layer's inputs; it trains the components that the task uses most, or least.

    W C = U S V^T,   W = sum_k u_k S_k (v_k^T C^{-1}),   A = S^{1/2} V^T C^{-1} / sqrt(s),   B = U S^{1/2} / sqrt(s)

over r of the components, stored: codec(W - s B A), with C = E[x x^T] from calibration and s = alpha / rank. mode "ipm"
(instruction-previewed) takes the r largest: calibrate on the task. "kpm" (knowledge-preserved) takes the r smallest:
calibrate on what must not be forgotten, which then stays in the frozen part.
Source: 2406.05223. C is damped by `damping` of its mean diagonal, PEFT's first guess; PEFT inverts in float32 and
doubles the damping until the inverse is good enough, whereas float64 solves the first guess: the damped condition
number is at most I / damping + 1.
Traps: as with PiSSA, weight decay spares A and B and the learning rate wants to be below LoRA's.

Shapes: W_OI, C_II, A_RI, B_OR; A_base (R, I), B_base (O, R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import unknown
from ..linear import EDIT, Place
from . import lora
from ._factors import check_above, fill, signed, with_edit

MODES = ("ipm", "kpm")


@dataclass(frozen=True)
class CorDA(lora.LoRA):
    """rank, alpha, dropout: as in LoRA. mode: "ipm" or "kpm". damping: of C, as a part of its mean diagonal."""

    mode: str = "ipm"
    damping: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.mode not in MODES:
            raise unknown("mode", str(self.mode), MODES, "mode")
        check_above("damping", self.damping, 0, "0.01 is usual")


def init(cfg: CorDA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """A, B of the chosen components, and the edit that takes them from the base.

    Raises: FinloraError when the rank exceeds the layer.
    """
    start, s, W = lora.init(cfg, W_OI, place), lora.scale(cfg), W_OI.double()
    C = place.stats.moment_II.to(W)
    # inputs that are all zero (a dead layer) leave W's own metric
    mean = C.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    C = C + cfg.damping * mean * torch.eye(len(C)).to(C)
    U, S, V = torch.linalg.svd(W @ C, full_matrices=False)
    at = slice(0, cfg.rank) if cfg.mode == "ipm" else slice(len(S) - cfg.rank, len(S))
    most = float(S[0])
    U, S, V = signed(U[:, at], S[at], V[at])
    rows = torch.linalg.solve(C, V.T).T  # C is symmetric: V C^{-1} is the solution's transpose
    return with_edit(fill(start, U, rows, S, s, 1e-10 * most), s)


# In PEFT's format it is plain LoRA over another base, so a folder of PEFT's is never read as this method.
PEFT = replace(lora.METHOD.peft, read=lambda fields: None)
METHOD = replace(
    lora.METHOD, name="corda", config=CorDA, init=init, peft=PEFT, paper="2406.05223", frozen=EDIT, undecayed=("A", "B"),
    needs=lambda cfg: ("moment_II",),
)  # fmt: skip
