"""MiSS (once Bone): the inputs are summed in `rank` fixed groups, and one trained block maps the sums to the outputs.

    y = x W^T + h D        h_r = sum of x_i over i = r modulo rank        D starts at zero

Which is LoRA with a fixed A of zeros and ones. With `mini` above 0 the block has that many columns only, repeated side
by side to all outputs. There is no alpha: the sums are as large as the inputs are many, so learning rates lie below
LoRA's.

Source: 2409.15371, in PEFT's layout (`miss_block`), PEFT's padding with zeros where the rank does not divide in, and
its `init_weights` True and "mini". PEFT's "bat" multiplies blocks of W itself; it is refused, since it has no plain
LoRA form and asks that the rank divide both in and out.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, block D (R, O) or (R, mini), shape (2,) which holds O and I for `to_lora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FinloraError
from ..linear import Method, Peft, Place
from ..seam import by_shape
from .lora import LoRA, check_rank


@dataclass(frozen=True)
class MiSS:
    """rank: groups of inputs. dropout: on the adapter's input. mini: columns of the block, 0 for one to each output."""

    rank: int = 16
    dropout: float = 0.0
    mini: int = 0

    def __post_init__(self):
        LoRA(rank=self.rank, dropout=self.dropout)  # its checks are ours
        if isinstance(self.mini, bool) or not isinstance(self.mini, int) or self.mini < 0:
            raise FinloraError(f"mini must be a whole number of at least 0, got {self.mini!r}", "0: one per output")


@by_shape
def init(cfg: MiSS, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """{"block": zeros (R, O) or (R, mini), "shape": O and I}, fp32 on W's device. Nothing is drawn.

    Raises: FinloraError when the rank exceeds the layer or `mini` does not divide its outputs.
    """
    O, I = W_OI.shape
    check_rank(cfg.rank, O, I)
    if cfg.mini and O % cfg.mini:
        raise FinloraError(f"mini {cfg.mini} does not divide the {O} outputs of a layer", "use 0, or a divisor")
    block = torch.zeros(cfg.rank, cfg.mini or O, device=W_OI.device)
    return {"block": block, "shape": torch.tensor([O, I], dtype=torch.float32, device=W_OI.device)}


def factors(cfg: MiSS, block: Tensor, O: int, I: int) -> tuple[Tensor, Tensor]:
    """(A_RI, D_RO): the sums as a matrix of zeros and ones, and the block, repeated where it is narrower."""
    A = torch.eye(cfg.rank, dtype=block.dtype, device=block.device).repeat(1, -(-I // cfg.rank))[:, :I]
    return A, block.repeat(1, O // block.shape[1])


def apply(cfg: MiSS, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + h D; h is a sum and no product with A."""
    h = F.pad(x, (0, -x.shape[-1] % cfg.rank)).unflatten(-1, (-1, cfg.rank)).sum(-2)
    D = params["block"].to(x.dtype)
    D = D if D.shape[1] == y0.shape[-1] else D.repeat(1, y0.shape[-1] // D.shape[1])
    return torch.addmm(y0.reshape(-1, y0.shape[-1]), h.reshape(-1, cfg.rank), D).view(y0.shape)


def merge(cfg: MiSS, params, W_OI: Tensor) -> Tensor:
    """W + D^T A: a column of the weight takes the row of the block that its input is summed into."""
    A, D = factors(cfg, params["block"], *W_OI.shape)
    return W_OI + D.t() @ A


def to_lora(cfg: MiSS, params) -> tuple[Tensor, Tensor, float]:
    """(A_RI of zeros and ones, B_OR = D^T, 1)."""
    O, I = (int(n) for n in params["shape"])
    A, D = factors(cfg, params["block"], O, I)
    return A, D.t(), 1.0


def to_peft(cfg: MiSS) -> dict[str, Any]:
    """The fields of PEFT's MissConfig."""
    start = {"init_weights": "mini", "mini_r": cfg.mini} if cfg.mini else {"init_weights": True, "mini_r": 1}
    return {"peft_type": "MISS", "r": cfg.rank, "miss_dropout": cfg.dropout, **start}


def from_peft(fields: dict[str, Any]) -> MiSS | None:
    """The config where the fields describe a MiSS other than "bat", else None."""
    if fields.get("peft_type") != "MISS" or fields.get("init_weights") == "bat":
        return None
    mini = fields["mini_r"] if fields.get("init_weights") == "mini" else 0
    return MiSS(rank=fields["r"], dropout=float(fields.get("miss_dropout") or 0.0), mini=mini)


PEFT = Peft(to_peft, {"block": "miss_block"}, from_peft)
METHOD = Method("miss", MiSS, init, apply, merge, to_lora=to_lora, frozen=("shape",), peft=PEFT, paper="2409.15371")
