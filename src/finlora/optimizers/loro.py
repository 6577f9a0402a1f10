"""LORO: Adam of the two factors, and every so often one step of their product down the manifold of rank R.

    between:  A, B by AdamW
    exact:    X = B A = U S V^T,  G its gradient,  xi = U U^T G + G V V^T - U U^T G V V^T
              X <- the nearest matrix of rank R to X - lr c xi / |xi|,   c^2 = (O + I) (sum of X's singular values)
              B <- U' sqrt(S'),  A <- sqrt(S') V'^T,   both moments begin anew

xi is the steepest descent that keeps the rank; it is had from the factors' gradients alone (g_B = G V R_A, g_A =
R_B^T U^T G with B = U R_B, A^T = V R_A), and the new X from an SVD of 2R x 2R. An exact step of X is the same for
every (R A, B R^-1) and leaves the factors balanced, B^T B = A A^T, whatever they were. c is the length that random
steps of size lr in each entry of balanced factors have in X, so that the rate means what it means to AdamW; steps of
all rates are shortened alike.

Source: ICLR 2025, openreview.net/forum?id=i0zzO7Hslk (no arXiv number); `every` is 500 there and 200 at 1B. How we
differ:
- Their exact step puts Adam's quotients in the place of the gradients, which makes it depend on the factoring and is no
  projection of anything; here it is the gradient's own direction with a length of its own, and it is followed by the
  usual decay, which theirs leaves out.
- All their runs begin the moments of every parameter anew at an exact step, embeddings, norms and head too, and restart
  everyone's rate (a cosine with a warm-up); here the pair's alone, over `rewarm` steps.
- In all their runs both factors' rates count times rank / the model's hidden width between exact steps. No optimiser is
  told that width here: `by_rank` divides by the factor's own longer side, which is the same but for the inputs or
  outputs of an MLP's inner width, whose factor learns the more slowly by the ratio of the widths. As in their runs the
  exact step is not shortened.

`every` counts on where a structure's refactorisation, which drops the moments too, comes in between. Whether the
geometry helps or only the balancing and the fresh moments do is open: compare with a structure's refactorisation,
which does these two alone. Where a factor lacks full rank (B = 0, at the start of an adapter) G is not known in all
directions, and putting 0 in both factors would end their learning: the exact step waits until it can be taken.

`riemannian` is another thing: it weighs every gradient by the other factor's metric, lets Adam divide that again, and
neither retracts nor balances nor forgets. It acts at each step and is invariant at none; this acts rarely, and there
is exact.

Shapes: A_RI, B_OR, g_RI, g_OR; U_OR, V_IR; core 2R x 2R.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import Optimizer, Pair
from ._apart import adamw
from ._settings import check_truth, check_whole


@dataclass(frozen=True)
class Loro:
    """every: steps from one exact step to the next, 1: all are exact. rewarm: steps over which a pair's rate climbs
    back after one. by_rank: between exact steps a factor's rate counts times rank / its longer side; near the paper's
    runs, see above."""

    every: int = 500
    rewarm: int = 10
    by_rank: bool = False

    def __post_init__(self):
        check_whole("every", self.every, 1, "500")
        check_whole("rewarm", self.rewarm, 0, "10")
        check_truth("by_rank", self.by_rank)


def exact(
    A_RI: Tensor, B_OR: Tensor, g_RI: Tensor, g_OR: Tensor, lr_A: float, lr_B: float
) -> tuple[Tensor, Tensor] | None:
    """(A, B), balanced, after one exact step of B A; None where A or B lacks full rank. Computed in fp64.

    lr_A, lr_B: the factors' rates, which make the step's length; its direction is the gradient's alone."""
    A, B, g_A, g_B = (t.double() for t in (A_RI, B_OR, g_RI, g_OR))
    R = len(A)
    if R > min(len(B), A.shape[1]):
        return None
    (U, R_B), (V, R_A) = torch.linalg.qr(B), torch.linalg.qr(A.t())
    X_RR = R_B @ R_A.t()
    sizes = torch.linalg.svdvals(X_RR)
    if not sizes[-1] > 1e3 * torch.finfo(A_RI.dtype).eps * sizes[0]:
        return None
    UG_RI = torch.linalg.solve_triangular(R_B.t(), g_A, upper=False)
    GV_OR = torch.linalg.solve_triangular(R_A, g_B, upper=True, left=False)
    K = UG_RI @ V
    Y_I, Y_O = (UG_RI - K @ V.t()).t(), GV_OR - U @ (U.t() @ GV_OR)  # what leaves V's span, what leaves U's
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in (K, Y_I, Y_O)]))
    length = (sizes.sum() * (len(B) * lr_B**2 + A.shape[1] * lr_A**2)).sqrt()
    K, Y_I, Y_O = (part / norm.clamp(min=torch.finfo(norm.dtype).tiny) for part in (K, Y_I, Y_O))
    # X - length xi / |xi| = [U, Y_O] core [V, Y_I]^T; one QR of both, because with 2R > O what is outside is not R wide
    eye, zero = torch.eye(R, dtype=K.dtype, device=K.device), torch.zeros_like(K)
    core = torch.cat([torch.cat([X_RR - length * K, -length * eye], 1), torch.cat([-length * eye, zero], 1)])
    (Q_O, R_O), (Q_I, R_I) = torch.linalg.qr(torch.cat([U, Y_O], 1)), torch.linalg.qr(torch.cat([V, Y_I], 1))
    W, S, Zh = torch.linalg.svd(R_O @ core @ R_I.t(), full_matrices=False)
    root = S[:R].sqrt()
    return (root[:, None] * (Zh[:R] @ Q_I.t())).to(A_RI.dtype), (Q_O @ (W[:, :R] * root)).to(B_OR.dtype)


class Retracted(torch.optim.AdamW):
    """AdamW, and every `every` steps an exact step of each pair."""

    lasting = ("since",)
    cfg: Loro
    pairs: Sequence[Pair] = ()

    def _begin(self, p: nn.Parameter, turn: int, since: int) -> None:
        """AdamW's own state of a parameter, with the number of exact steps that it knows of and of steps since one."""
        self.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
            "turn": turn,
            "since": since,
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group_of = {p: group for group in self.param_groups for p in group["params"]}
        due: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # factor, its gradient, what it becomes
        eased: list[tuple[nn.Parameter, Tensor, float]] = []  # factor, what it was, the share of AdamW's step to take
        for A, B, _ in self.pairs:
            for p in (A, B):
                if p.grad is not None and "step" not in self.state[p]:  # at the start, or forgotten
                    self._begin(p, 0, self.state[p].get("since", 0))
            if A.grad is None or B.grad is None:
                continue
            states, moved = [self.state[A], self.state[B]], None
            if min(state["since"] for state in states) + 1 >= self.cfg.every:
                rates = (group_of[p]["lr"] / group_of[p].get("share", 1.0) for p in (A, B))
                moved = exact(A, B, A.grad, B.grad, *rates)
            if moved is not None:
                due += [(p, p.grad, new) for p, new in zip((A, B), moved)]
                continue
            for p, state in zip((A, B), states):
                state["since"] += 1
                if state["turn"] and state["since"] < self.cfg.rewarm:
                    eased.append((p, p.clone(), state["since"] / self.cfg.rewarm))
        for p, _, _ in due:
            p.grad = None
        super().step()
        for p, grad, new in due:
            p.grad = grad
            p.copy_(new).mul_(1 - group_of[p]["lr"] * group_of[p]["weight_decay"])
            self._begin(p, self.state[p]["turn"] + 1, 0)
        for p, before, share in eased:
            p.copy_(torch.lerp(before, p, share))
        return loss


def by_rank(groups: Iterable[dict[str, Any]], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The groups, parted where factors of pairs differ in rank / longer side: their `share`, which is in their
    multipliers."""
    shares = {p: min(p.shape) / max(p.shape) for A, B, _ in pairs for p in (A, B)}
    parted = []
    for group in groups:
        parts: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for name, p in zip(group["names"], group["params"]):
            parts.setdefault(shares.get(p, 1.0), []).append((name, p))
        for share, some in parts.items():
            own = {"names": [n for n, _ in some], "params": [p for _, p in some]}
            parted.append({**group, **own, "multiplier": group["multiplier"] * share, "share": share})
    return parted


def make(cfg: Loro, groups: list[dict[str, Any]], settings: Any, pairs: Sequence[Pair]) -> torch.optim.AdamW:
    """AdamW over the groups that steps the pairs exactly now and then."""
    made = adamw(by_rank(groups, pairs) if cfg.by_rank else groups, settings, Retracted)
    made.cfg, made.pairs = cfg, tuple(pairs)
    return made


OPTIMIZER = Optimizer("loro", Loro, make, paper="openreview:i0zzO7Hslk", paired=True)
