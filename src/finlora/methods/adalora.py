"""AdaLoRA: LoRA in the form of an SVD, whose rank is shared out over the model by importance while it trains.

    y = x W^T + (alpha / rank) (x (E A)^T) B^T,   E_R trained, starts at zero;   penalty |A A^T - I|_F, |B^T B - I|_F

Source: 2303.10512; the layout, the scale alpha / (rank + 1e-5) and the allocation are PEFT's. The importance of a number p
is its sensitivity |p dL/dp| times the uncertainty of that, both moving averages; of a triplet (A's row, E's entry, B's
column) the entry's plus the means of the other two. From `tinit` to `1 - tfinal` of the run, every `every` steps, the
budget falls from rank to target (cubic, ranks summed over all layers), the best triplets keep their E and the others are
set to zero, to come back if they earn it by the next time. The last allocation stands.

Differs from PEFT: sensitivities take p and its gradient from the same moment (PEFT's p is already one step on); equal
scores never prune more than the budget says (PEFT prunes all that equal the threshold); tfinal = 0 still ends at the
target (PEFT's last allocation is then never reached); A and B start with rows and columns of length near 1, so near what
the penalty asks for at any width (PEFT's 0.02 is so at 2500). Zeroing happens in the map: `mask` hides an entry from the
moment it is pruned, because the optimiser's step comes after; its gradient passes, as if E had been set to zero. What is
pruned is left out of the plain LoRA form, so that linears differ in rank there.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR, E (R, 1), mask (R, 1); averages of the sensitivity and its uncertainty
A_ipt, A_unc (R, I), B_ipt, B_unc (O, R), E_ipt, E_unc (R, 1), all empty once the last allocation is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FinloraError
from ..linear import Method, Peft, Place
from ..seam import by_shape
from . import _stack, lora

TRAINED = ("A", "B", "E")
AVERAGES = tuple(f"{key}_{what}" for key in TRAINED for what in ("ipt", "unc"))


@dataclass(frozen=True)
class AdaLoRA(lora.LoRA):
    """rank: of every layer at first. alpha, dropout: as in LoRA. target: mean rank at last, 0 is two thirds of rank.
    tinit, tfinal: shares of the run before the first and after the last allocation. every: steps between allocations.
    beta1, beta2: decay of the averages of sensitivity and uncertainty. orth: weight of the penalty."""

    rank: int = 12
    target: int = 0
    tinit: float = 0.1
    tfinal: float = 0.3
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    orth: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _stack.check_whole("target", self.target, 0, "0 is two thirds of rank")
        if self.target > self.rank:
            raise FinloraError(f"target must be at most rank, {self.rank}, got {self.target!r}", "rank falls to target")
        _stack.check_whole("every", self.every, 1, "10 is usual")
        for name, least, most in (("tinit", 0, 1), ("tfinal", 0, 1), ("beta1", 0, 1), ("beta2", 0, 1), ("orth", 0, 1e9)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < most:
                raise FinloraError(f"{name} must be a number from {least} to below {most:g}, got {value!r}")
        if self.tinit + self.tfinal >= 1:
            raise FinloraError(f"tinit must leave room for allocations before the last {self.tfinal} of the run, got {self.tinit}", "0.1 and 0.3 are usual")

    @property
    def goal(self) -> int:
        """The mean rank at last."""
        return self.target or max(1, round(2 * self.rank / 3))


def scale(cfg: AdaLoRA) -> float:
    """alpha / (rank + 1e-5), PEFT's; the rank is the first one, also when triplets have been pruned."""
    return cfg.alpha / (cfg.rank + 1e-5)


@by_shape
def init(cfg: AdaLoRA, W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """Gaussian A (variance 1 / I) and B (1 / O), E zero, everything open. Raises: FinloraError on a rank above the layer."""
    O, I = W_OI.shape
    lora.check_rank(cfg.rank, O, I)
    device = place.generator.device if place.generator is not None else "cpu"
    A = torch.randn(cfg.rank, I, generator=place.generator, device=device) / I**0.5
    B = torch.randn(O, cfg.rank, generator=place.generator, device=device) / O**0.5
    params = {"A": A.to(W_OI.device), "B": B.to(W_OI.device), "E": torch.zeros(cfg.rank, 1, device=W_OI.device)}
    averages = {key: torch.zeros_like(params[key[0]]) for key in AVERAGES}
    return {**params, "mask": torch.ones_like(params["E"]), **averages}


def values(params) -> Tensor:
    """E with pruned entries at zero; their gradient passes as if E itself were zero there."""
    E = params["E"]
    return E - ((1 - params["mask"]) * E).detach() if "mask" in params else E


def apply(cfg: AdaLoRA, params, x: Tensor, y0: Tensor, base) -> Tensor:
    """y0 + s (x (E A)^T) B^T."""
    return lora.add_product({"A": values(params) * params["A"], "B": params["B"]}, x, y0, scale(cfg))


def merge(cfg: AdaLoRA, params, W_OI: Tensor) -> Tensor:
    """W + s B E A."""
    return W_OI + scale(cfg) * (params["B"] @ (values(params) * params["A"]))


def to_lora(cfg: AdaLoRA, params) -> tuple[Tensor, Tensor, float]:
    """(E A, B, s) of the triplets that are open, or of one that is zero."""
    A, B = values(params) * params["A"], params["B"]
    if "mask" in params and not params["mask"].all():
        kept = params["mask"][:, 0].nonzero()[:, 0] if params["mask"].any() else torch.zeros(1, dtype=torch.long, device=A.device)
        A, B = A[kept], B[:, kept]
    return A, B, scale(cfg)


def phases(cfg: AdaLoRA, total: int) -> tuple[int, int]:
    """(first, last): allocations happen at steps above `first` and up to `last`, counted from 0."""
    last = min(total - round(cfg.tfinal * total), total - 1)
    return min(round(cfg.tinit * total), last), last


def budget(start: int, goal: int, step: int, first: int, last: int) -> int:
    """Triplets of the whole model that keep their E after `step`: from `start` to `goal`, cubic."""
    if step >= last:
        return goal
    left = 1 - (step - first) / (last - first)
    return int((start - goal) * left**3 + goal)


def penalise(cfg: AdaLoRA, params, count: int) -> None:
    """Add the gradient of (orth / count) (|A A^T - I|_F + |B^T B - I|_F), count tensors in all."""
    for P, grad in ((params["A"], params["A"].grad), (params["B"].t(), params["B"].grad.t())):
        off = P @ P.t() - torch.eye(len(P), dtype=P.dtype, device=P.device)
        length = float(off.norm())
        if length:
            grad.add_(off @ P, alpha=2 * cfg.orth / (count * length))


def observe(cfg: AdaLoRA, params) -> None:
    """Bring the averages up to date with this step's gradients."""
    for key in TRAINED:
        now, ipt, unc = (params[key] * params[key].grad).abs(), params[key + "_ipt"], params[key + "_unc"]
        ipt.mul_(cfg.beta1).add_(now, alpha=1 - cfg.beta1)
        unc.mul_(cfg.beta2).add_((now - ipt).abs(), alpha=1 - cfg.beta2)


def scores(params) -> Tensor:
    """(R,): the importance of each triplet."""
    A, B, E = (params[key + "_ipt"] * params[key + "_unc"] for key in TRAINED)
    return A.mean(1) + B.mean(0) + E[:, 0]


def allocate(layers: list, keep: int) -> None:
    """Open the `keep` most important triplets over all layers (equal ones: the first), close the rest."""
    found = [scores(params) for params in layers]
    order = torch.cat([f.to(found[0].device) for f in found]).argsort(descending=True, stable=True)
    mask = torch.zeros(len(order), device=order.device).index_fill_(0, order[:keep], 1.0)
    for params, part in zip(layers, mask.split([len(f) for f in found])):
        params["mask"].copy_(part[:, None])


@torch.no_grad()
def tend(pairs, step: int, total: int) -> None:
    """The penalty's gradient, the averages, and where it is time the allocation, over all layers together.

    The times are the same for all layers; ranks and targets are each layer's own.
    Raises: FinloraError where settings of single layers (patterns) give them other times.
    """
    for name in ("every", "tinit", "tfinal"):
        if len(values := {getattr(cfg, name) for cfg, _ in pairs}) > 1:
            raise FinloraError(f"{name} must be the same in every layer, got {', '.join(map(str, sorted(values)))}", "take it out of method.patterns: ranks are shared out over all layers at once")
    open_ = [(cfg, params) for cfg, params in pairs if "mask" in params and "E_ipt" in params and params["E_ipt"].numel()]
    # a layer that no token reached (an expert that was not chosen) has no gradients, and no part in this step but its rank
    reached = {id(params) for _, params in pairs if all(params[key].grad is not None for key in TRAINED)}
    for cfg, params in pairs:
        if "mask" in params:
            params["E"].mul_(params["mask"])  # what the last step did to pruned entries
        if id(params) in reached:
            penalise(cfg, params, 2 * len(pairs))
    if open_:
        lead, layers = open_[0][0], [params for _, params in open_]
        first, last = phases(lead, total)
        for cfg, params in open_:
            params["mask"].fill_(1.0)
            if step < last and id(params) in reached:
                observe(cfg, params)
        if step >= last or (step > first and step % lead.every == 0):
            start, goal = sum(cfg.rank for cfg, _ in open_), sum(cfg.goal for cfg, _ in open_)
            allocate(layers, budget(start, goal, step, first, last))
        if step >= last:
            for params in layers:
                for key in AVERAGES:
                    params[key] = nn.Parameter(params[key].new_zeros(0), requires_grad=False)
    for _, params in pairs:
        if id(params) in reached and "mask" in params and not ("E_ipt" in params and params["E_ipt"].numel()):
            params["E"].grad.mul_(params["mask"])  # pruned for good: no part in the gradient's norm


def to_peft(cfg: AdaLoRA) -> dict[str, Any]:
    """The fields of PEFT's AdaLoraConfig; shares of the run become steps of ten thousand."""
    total = 10_000
    return {
        "peft_type": "ADALORA", "init_r": cfg.rank, "target_r": cfg.goal, "lora_alpha": cfg.alpha, "lora_dropout": cfg.dropout,
        "tinit": round(cfg.tinit * total), "tfinal": round(cfg.tfinal * total), "total_step": total, "deltaT": cfg.every,
        "beta1": cfg.beta1, "beta2": cfg.beta2, "orth_reg_weight": cfg.orth,
    }  # fmt: skip


def from_peft(fields: dict[str, Any]) -> AdaLoRA | None:
    """The config where the fields describe an AdaLoRA, else None."""
    if fields.get("peft_type") != "ADALORA":
        return None
    total = fields.get("total_step") or 1
    return AdaLoRA(
        rank=fields["init_r"], alpha=float(fields["lora_alpha"]), dropout=float(fields.get("lora_dropout") or 0.0),
        target=min(fields["target_r"], fields["init_r"]), tinit=fields["tinit"] / total, tfinal=fields["tfinal"] / total,
        every=fields["deltaT"], beta1=fields["beta1"], beta2=fields["beta2"], orth=float(fields["orth_reg_weight"]),
    )  # fmt: skip


def unpruned(params: dict[str, Tensor], kept: list[bool]) -> dict[str, Tensor]:
    """A, B, E of a PEFT file, which leaves pruned triplets out, at their first rank again: zeros where `kept` is false."""
    mask = torch.tensor(kept, device=params["E"].device)
    A, B, E = (params[key].new_zeros(shape) for key, shape in (("A", (len(kept), params["A"].shape[1])), ("B", (params["B"].shape[0], len(kept))), ("E", (len(kept), 1))))
    A[mask], B[:, mask], E[mask] = params["A"], params["B"], params["E"]
    return {**params, "A": A, "B": B, "E": E, "mask": mask[:, None].to(E.dtype)}


PEFT = Peft(to_peft, {"A": "lora_A", "B": "lora_B", "E": "lora_E"}, from_peft)
METHOD = Method(
    "adalora", AdaLoRA, init, apply, merge, to_lora=to_lora, tend=tend, peft=PEFT, paper="2303.10512",
    frozen=("mask", *AVERAGES),
)  # fmt: skip
