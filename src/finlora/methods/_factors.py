"""What methods that start from a factorisation share: truncated SVDs, balanced factors, and the edit that keeps the start.

    B A s = L,   A_base = A, B_base = -s B:   codec(W - L) + L

Draws come from the generator that is given: `torch.svd_lowrank` draws from the global state, and a start drawn so would
depend on what ran before. Signs are fixed (the largest entry of each right vector is above zero), so that machines agree.

Shapes: W_OI, U_OR, S_R, V_RI (rows), C_II (a second moment), A_RI, B_OR.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FinloraError
from ..linear import Place

SMALL = 16  # randomised SVD pays, and is safe, up to rank min(O, I) / 16 (measured: at 0.3 min(O, I) it is the slower one)


def signed(U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same factors with the largest entry of each row of V_RI above zero."""
    sign = torch.gather(V, 1, V.abs().argmax(1, keepdim=True)).sign()
    return U * sign.T, S, V * sign


def svd(W_OI: Tensor, rank: int, niter: int = 0, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(U_OR, S_R, V_RI) of the `rank` largest singular values.

    niter: 0 for the whole SVD; else power iterations of a randomised one (0909.4061) with rank + max(8, rank / 4) columns,
    where the rank is small enough for it (SMALL), and the whole SVD where it is not.
    """
    O, I = W_OI.shape
    if niter and rank * SMALL <= min(O, I):
        width = min(rank + max(8, rank // 4), O, I)
        Q = torch.linalg.qr(W_OI @ normal(I, width, generator, W_OI)).Q
        for _ in range(niter):
            Q = torch.linalg.qr(W_OI @ torch.linalg.qr(W_OI.T @ Q).Q).Q
        U, S, V = torch.linalg.svd(Q.T @ W_OI, full_matrices=False)
        U = Q @ U
    else:
        U, S, V = torch.linalg.svd(W_OI, full_matrices=False)
    return signed(U[:, :rank], S[:rank], V[:rank])


def normal(rows: int, columns: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Normal draws, made where the generator lives, of the type and on the device of `like`."""
    device = generator.device if generator is not None else "cpu"
    return torch.randn(rows, columns, generator=generator, device=device).to(like)


def with_edit(params: dict[str, Tensor], s: float) -> dict[str, Tensor]:
    """`params` (A and B) over a base from which s B A was taken."""
    A, B = params["A"].float().contiguous(), params["B"].float().contiguous()
    return {"A": A, "B": B, "A_base": A.clone(), "B_base": -s * B}


def root(C_II: Tensor) -> Tensor:
    """C^{1/2} of a positive semi-definite C_II (rounding below zero counts as zero), in float64."""
    values, vectors = torch.linalg.eigh(C_II.double())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def fill(params: dict[str, Tensor], U_OR: Tensor, V_RI: Tensor, S_R: Tensor, s: float, floor: float) -> dict[str, Tensor]:
    """`params` (LoRA's start) with s B A = U S V put in, the square root of S / s in each of A and B.

    Components with S <= floor keep LoRA's start (A drawn, B zero): with both
    factors zero they would never learn.
    """
    alive = S_R > floor
    half = (S_R.clamp(min=0) / s).sqrt()
    A = torch.where(alive[:, None], half[:, None] * V_RI, params["A"].to(V_RI))
    B = torch.where(alive, U_OR * half, params["B"].to(U_OR))
    return {**params, "A": A.float().contiguous(), "B": B.float().contiguous()}


def lost(W_OI: Tensor, place: Place) -> Tensor:
    """W - roundtrip(W): what the store will not give back; zero over a lossless one, whatever its dtype rounds."""
    return torch.zeros_like(W_OI) if place.lossless else W_OI - place.roundtrip(W_OI).to(W_OI)


def check_count(name: str, value: object, least: int, most: int, hint: str) -> None:
    """Raises: FinloraError when a setting is no whole number within [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FinloraError(f"{name} must be a whole number from {least} to {most}, got {value!r}", hint)


def check_above(name: str, value: object, least: float, hint: str) -> None:
    """Raises: FinloraError when a setting is no finite number above 0 and at least `least`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value < float("inf") or value <= 0:
        wanted = f"of at least {least:g}" if least else "above 0"
        raise FinloraError(f"{name} must be a finite number {wanted}, got {value!r}", hint)
