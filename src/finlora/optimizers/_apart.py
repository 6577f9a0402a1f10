"""Two ways to stand on AdamW: to take some parameters out of its hands, or to hand it other gradients.

    Apart      its `own` parameters step by `advance`, all others by AdamW
    Adjusted   each pair's gradients are replaced, for the step, by what `adjust` makes of them

Gradients are left as they were found, so that whoever looks at them after the step sees the loss's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import Pair


def adamw(groups: list[dict[str, Any]], settings: Any, kind: type = torch.optim.AdamW) -> Any:
    """A fused AdamW (or a kind of it) over the groups, with the settings' rate, betas and epsilon."""
    return kind(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)


class Apart(torch.optim.AdamW):
    """AdamW for all parameters but `own`."""

    own: frozenset[nn.Parameter] = frozenset()

    def keep(self, own: Iterable[nn.Parameter]) -> None:
        """Take these parameters out of AdamW's hands."""
        self.own = frozenset(own)

    def advance(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        """Step one of `own`, whose gradient is there, in the group's rate and decay."""
        raise AssertionError("a kind of Apart says how its own parameters step")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        taken = {p: p.grad for p in self.own if p.grad is not None}
        for p in taken:
            p.grad = None
        super().step()
        for p, grad in taken.items():
            p.grad = grad
        self.before(taken)
        for group in self.param_groups:
            for p in group["params"]:
                if p in taken:
                    self.advance(p, group)
        return loss

    def before(self, taken: dict[nn.Parameter, Tensor]) -> None:
        """What must be looked at before the first of `own` has moved."""


class Adjusted(torch.optim.AdamW):
    """AdamW of adjusted gradients; `pairs` are those whose gradients `adjust` replaces."""

    pairs: Sequence[Pair] = ()

    def adjust(self, A_RI: Tensor, B_OR: Tensor, g_RI: Tensor, g_OR: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """The gradients that AdamW is to see in place of (g_RI, g_OR)."""
        raise AssertionError("a kind of Adjusted says what it makes of gradients")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [(A, B, A.grad, B.grad, s) for A, B, s in self.pairs if A.grad is not None and B.grad is not None]
        for A, B, g_A, g_B, s in found:
            A.grad, B.grad = (g.to(p.dtype) for g, p in zip(self.adjust(A, B, g_A, g_B, s), (A, B)))
        super().step()
        for A, B, g_A, g_B, _ in found:
            A.grad, B.grad = g_A, g_B
        return loss


def damped_inverse(gram_RR: Tensor, damping: float) -> Tensor:
    """(G + damping I)^-1 of a symmetric matrix without negative eigenvalues; damping 0 asks for a G that has an
    inverse."""
    values, vectors = torch.linalg.eigh(gram_RR)
    return (vectors / (values.clamp(min=0) + damping)) @ vectors.t()
