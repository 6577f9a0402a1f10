"""What the optimisers have in common that keep Adam's moments of a projected gradient.

    R = P g,   m <- b1 m + (1 - b1) R,   v <- b2 v + (1 - b2) R^2,   N = m^ / (sqrt(v^) + eps)

g is turned so that its shorter side is the one that P shortens to `rank`; of a square one it is in, whichever side of
the tensor that is. Every matrix of a linear is projected, a vector, an embedding or a head steps by AdamW.

State: `step` and the moments, which may be forgotten, and `age`, the steps taken in all, by which projections come: a
structure that drops moments more often than they do does not put them off.

Shapes: g_MN with M <= N; R_RN, N_RN; P_RM or its transpose.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._apart import Apart, adamw

GROWTH = 1.01  # the most by which a limited step may outgrow the one before it (2410.01623)
TINY = 1e-30  # what stands for a norm of 0 below a fraction; its inverse is finite in fp32


class Projected(Apart):
    """AdamW for all but the matrices of linears, which step by `move`."""

    lasting = ("age",)
    cfg: Any
    names: dict[nn.Parameter, str]

    def move(self, g_MN: Tensor, state: dict[str, Any], group: dict[str, Any], name: str) -> Tensor:
        """The step, to be taken times the rate, of a gradient; `state` has its `step`, the number of those since the
        moments began, and its `age`, the number of all before."""
        raise AssertionError("a kind of Projected says how its matrices step")

    def advance(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        state, (rows, columns) = self.state[p], p.shape
        tall = rows > columns or (rows == columns and not group.get("turned"))
        state.setdefault("age", state.setdefault("step", 0))
        g = p.grad.to(torch.promote_types(p.dtype, torch.float32))
        step = self.move(g.t() if tall else g, state, group, self.names[p])
        state["step"] += 1
        state["age"] += 1
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_((step.t() if tall else step).to(p.dtype), alpha=-group["lr"])


def make(kind: type, cfg: Any, groups: Sequence[dict[str, Any]], settings: Any) -> Any:
    """A kind of Projected over the groups."""
    made = adamw(list(groups), settings, kind)
    made.cfg = cfg
    made.names = {p: name for group in groups for name, p in zip(group["names"], group["params"])}
    made.keep(p for group in groups if group.get("inner") for p in group["params"] if p.ndim == 2)
    return made


def gaussian(name: str, turn: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Standard normal draws that are a function of (name, turn) alone, on `like`'s device and of its type."""
    digest = hashlib.blake2b(f"{name}/{turn}".encode(), digest_size=8).digest()
    source = torch.Generator(like.device).manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=source, device=like.device).to(like.dtype)


def normalised(R_RN: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """N_RN, Adam's step of R; the moments in `state` move on."""
    if "first" not in state:
        state["first"], state["second"] = torch.zeros_like(R_RN), torch.zeros_like(R_RN)
    (b1, b2), step = group["betas"], state["step"] + 1
    state["first"].lerp_(R_RN, 1 - b1)
    state["second"].mul_(b2).addcmul_(R_RN, R_RN, value=1 - b2)
    size = (state["second"] / (1 - b2**step)).sqrt_().add_(group["eps"])
    return state["first"] / (1 - b1**step) / size


def limited(step_MN: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The step, shortened to GROWTH times the length of the last one that was not 0, both measured as if Adam did not
    correct its moments for their start, which is how the authors of APOLLO and Fira measure.

    A step of 0 is no measure: the gradient of a factor whose partner is 0 would hold the factor still for good."""
    (b1, b2), step = group["betas"], state["step"] + 1
    length = torch.linalg.vector_norm(step_MN) * ((1 - b1**step) / (1 - b2**step) ** 0.5)
    last = state.get("length", torch.zeros_like(length))
    most = torch.where(last > 0, GROWTH * last, math.inf)
    share = (most / length.clamp(min=TINY)).clamp(max=1.0)
    state["length"] = torch.where(length > 0, length * share, last)
    return step_MN * share
