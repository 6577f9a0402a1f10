"""What methods that renew their factors share: earlier rounds are kept as frozen factors, beside the base or inside it.

    y = x W^T + s (x A^T) B^T + (x A_past^T) B_past^T

Over a lossless store the earlier rounds are an edit of the stored weight (A_base, B_base: seam.EDIT) and cost nothing in
the forward pass; over a lossy one, where an edit would be rounded away, they stay beside it as A_past and B_past, at the
cost of their rank. Which of the two a linear has is told by the names of its parameters.

Shapes: x (..., I), y0 (..., O), W_OI, A_RI, B_OR; A_base, A_past (K, I), B_base, B_past (O, K).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FinloraError
from ..linear import EDIT, Place
from .lora import add_product

PAST = ("A_past", "B_past")
KEPT = (*EDIT, *PAST)


def no_rounds(W_OI: Tensor, place: Place) -> dict[str, Tensor]:
    """The kept factors before any round: rank 0, under the names that the store calls for."""
    O, I = W_OI.shape
    A_key, B_key = EDIT if place.lossless else PAST
    return {A_key: W_OI.new_zeros(0, I), B_key: W_OI.new_zeros(O, 0)}


def grown(params, A_KI: Tensor, B_OK: Tensor) -> dict[str, Tensor]:
    """The parameters with the product B A added to what is kept of earlier rounds."""
    A_key, B_key = EDIT if EDIT[0] in params else PAST
    return {**params, A_key: torch.cat([params[A_key], A_KI]), B_key: torch.cat([params[B_key], B_OK], 1)}


def whole(params, s: float) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale) with the earlier rounds that stand beside the store: [A; A_past], [s B, B_past], 1."""
    if PAST[0] not in params or not params[PAST[0]].shape[0]:
        return params["A"], params["B"], s
    return torch.cat([params["A"], params["A_past"]]), torch.cat([s * params["B"], params["B_past"]], 1), 1.0


def apply(params, x: Tensor, y0: Tensor, s: float) -> Tensor:
    """y0 + s (x A^T) B^T + (x A_past^T) B_past^T in two products."""
    A, B, factor = whole(params, s)
    return add_product({"A": A, "B": B}, x, y0, factor)


def merge(params, W_OI: Tensor, s: float) -> Tensor:
    """W + s B A + B_past A_past."""
    A, B, factor = whole(params, s)
    return W_OI + factor * (B @ A)


def truncate(A_KI: Tensor, B_OK: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best product of `rank` for B A: (A (rank, I), B (O, rank), |B A - its truncation| / |B A|), Frobenius norms.

    By QR of both factors and an SVD of the small core, so that nothing of the weight's size is formed; in float64. The
    singular values are shared out evenly. A rank of K or more gives the factors back.
    Raises: FinloraError on a rank below 1.
    """
    if rank < 1:
        raise FinloraError(f"rank must be at least 1, got {rank}", "the adapter's own rank keeps it exact")
    if rank >= A_KI.shape[0]:
        return A_KI, B_OK, 0.0
    left, right = torch.linalg.qr(B_OK.double()), torch.linalg.qr(A_KI.double().t())
    U, S, Vh = torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)
    root = S[:rank].sqrt()
    A, B = root[:, None] * (Vh[:rank] @ right.Q.t()), (left.Q @ U[:, :rank]) * root
    total = float(S.norm())
    return A.to(A_KI.dtype), B.to(B_OK.dtype), float(S[rank:].norm()) / total if total else 0.0


def check_whole(name: str, value: object, least: int, hint: str = "") -> None:
    """Raises: FinloraError unless the field's value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FinloraError(f"{name} must be a whole number of at least {least}, got {value!r}", hint)
