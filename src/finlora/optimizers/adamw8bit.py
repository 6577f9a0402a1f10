"""AdamW whose two moments are kept in 8 bits, by blocks of the dynamic map: 2 bytes a weight instead of 8.

    m <- b1 Q^-1(m) + (1 - b1) g,   v <- b2 Q'^-1(v) + (1 - b2) g^2
    p <- p - lr (m^ / (sqrt(v^) + eps) + decay p),   then m and v are kept as Q(m), Q'(v)

Q is the signed map, Q' the unsigned one; 256 values share a scale (bitsandbytes' choice; the paper's is 2048), so the
state of a weight is 2 + 8/256 bytes. Tensors of fewer than `least` values keep fp32 moments, and so does what is no
part of a linear: the paper keeps an embedding's moments in 32 bits, because rare tokens' gradients are of another
size; `everywhere` takes them in.

Source: 2110.02861. How we differ: a second moment above 0 never gets the code of 0. Rounded to 0 where its first
moment is not, it leaves a weight whose gradient vanishes for a step with m / eps for a step: at eps = 1e-8 that is
thousands of times the rate. It is kept at the smallest code above 0 (3e-7 of the block's largest).

What rounding to the nearest code costs, here as in bitsandbytes: losses do not add up. A moment that decays by less
than half a code in a step comes back to the same code, in this step and in every other, for as long as the block's
scale stands. So it is with a second moment everywhere (at b2 = 0.999), and with a first one that is small in its block.
A weight that for 50 steps had a gradient of 1/1000 of its neighbours' and then exactly 0 goes on by half the rate a
step, at step 20,000 still (measured 0.51; 0.42 at 1/3000, 0.02 at 1/10; betas 0.9 and 0.999), where AdamW's stops.

Shapes: p_N, the parameter as one row of values; codes_N uint8, absmax_K fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import FinloraError
from . import Optimizer, Pair
from ._apart import Apart, adamw
from ._dynamic8 import decode, encode
from ._settings import check_truth, check_whole

SLICE = 1 << 20  # values handled at a time, a multiple of every block: bounds the temporaries of a huge matrix
MOMENTS = (("first", True), ("second", False))  # name, signed


@dataclass(frozen=True)
class AdamW8bit:
    """block: values that share a scale, a power of two from 64 to 4096. least: tensors with fewer values keep moments
    of 32 bits. everywhere: embeddings and heads too."""

    block: int = 256
    least: int = 4096
    everywhere: bool = False

    def __post_init__(self):
        if isinstance(self.block, bool) or self.block not in (64, 128, 256, 512, 1024, 2048, 4096):
            raise FinloraError(f"block must be a power of two from 64 to 4096, got {self.block!r}", "256 is usual")
        check_whole("least", self.least, 1, "4096")
        check_truth("everywhere", self.everywhere)


class Rounded(Apart):
    """AdamW with moments of 8 bits for `own`."""

    cfg: AdamW8bit

    def advance(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        state, block, N = self.state[p], self.cfg.block, p.numel()
        if not state:
            state["step"] = 0
            for name, signed in MOMENTS:
                zeros = torch.zeros(N, dtype=torch.float32, device=p.device)
                state[name], state[f"{name}_absmax"] = encode(zeros, block, signed)
        state["step"] += 1
        (b1, b2), lr, step = group["betas"], group["lr"], state["step"]
        p_N, g_N = p.detach().reshape(-1), p.grad.reshape(-1)  # a view of p wherever p lies in one piece
        for start in range(0, N, SLICE):
            part = slice(start, min(start + SLICE, N))
            blocks = slice(start // block, -(-part.stop // block))
            g = g_N[part].float()
            m, v = (
                decode(state[name][part], state[f"{name}_absmax"][blocks], block, signed) for name, signed in MOMENTS
            )
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            for (name, signed), value in zip(MOMENTS, (m, v)):
                state[name][part], state[f"{name}_absmax"][blocks] = encode(value, block, signed)
            size = v.div_(1 - b2**step).sqrt_().add_(group["eps"])
            p_N[part].mul_(1 - lr * group["weight_decay"]).addcdiv_(m, size, value=-lr / (1 - b1**step))
        if not p.is_contiguous():
            p.copy_(p_N.view_as(p))


def make(cfg: AdamW8bit, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.Optimizer:
    """Moments of 8 bits for the large tensors of linears, AdamW for all else."""
    made = adamw(groups, settings, Rounded)
    made.cfg = cfg
    chosen = (group for group in groups if cfg.everywhere or group.get("inner"))
    made.keep(p for group in chosen for p in group["params"] if p.numel() >= cfg.least)
    return made


OPTIMIZER = Optimizer("adamw8bit", AdamW8bit, make, paper="2110.02861")
