"""What the decompositions share: tails of spectra, roots of moments, signs, and errors at every rank.

Shapes: W_OI, C_II, A_RI, B_OR, S_R; errors_K (R + 1,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FinloraError
from . import Factors, wide

WAKE = 1e-3  # of the largest: the least size of a column of B in balanced factors


def tails(values: Tensor) -> Tensor:
    """(R + 1,): what is left of the sum when the first 0, 1, ... R values are taken; rounding below zero counts as zero.

    Summed from the small end, so that a small tail is not the difference of two large numbers.
    """
    sums = values.clamp(min=0).flip(0).cumsum(0).flip(0)
    return torch.cat([sums, sums.new_zeros(1)])


def signed(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with the largest entry of each column of B above zero, so that machines agree."""
    sign = torch.gather(B, 0, B.abs().argmax(0, keepdim=True)).sign()[0]
    sign = torch.where(sign == 0, torch.ones_like(sign), sign)
    return A * sign[:, None], B * sign


def split(W_OI: Tensor, rank: int, undo_in: Tensor | None = None) -> Factors:
    """Truncated SVD of W, the root of each singular value in either factor. undo_in: (I,) divides A's columns, where W's were
    scaled by it. errors: in W's own norm."""
    U, S, V = torch.linalg.svd(W_OI, full_matrices=False)
    half = S[:rank].sqrt()
    A, B = half[:, None] * V[:rank], U[:, :rank] * half
    A = A if undo_in is None else A / undo_in
    return Factors(*signed(A, B), tails(S.square()))


def moment(C_II: Tensor, like: Tensor) -> Tensor:
    """C in float64 on W's device, made symmetric. A layer that never saw an input other than zero gets the identity, which
    leaves it the weight's own metric.  Raises: FinloraError where it is not finite."""
    known(C_II, "second moments of a linear's inputs")
    C = wide(C_II.to(like.device))
    C = (C + C.T) / 2
    return C if float(C.diagonal().max()) > 0 else torch.eye(len(C)).to(like)


def known(seen: Tensor, what: str) -> None:
    """Raises: FinloraError where what calibration saw is not finite."""
    if not bool(torch.isfinite(seen).all()):
        raise FinloraError(f"the {what} hold NaN or infinity", "calibrate in float32, or on other text; if that does not help the model is damaged")


def damped(C_II: Tensor, share: float) -> Tensor:
    """C + share * (its mean diagonal) * 1."""
    return C_II + share * C_II.diagonal().mean() * torch.eye(len(C_II)).to(C_II) if share else C_II


def root(C_II: Tensor) -> Tensor:
    """S with S S^T = C for a positive semi-definite C, of whatever rank: Cholesky's where there is one, else C^{1/2}."""
    L, bad = torch.linalg.cholesky_ex(C_II)
    if not int(bad):
        return L
    values, vectors = torch.linalg.eigh(C_II)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def output_errors(A_RI: Tensor, B_OR: Tensor, W_OI: Tensor, C_II: Tensor) -> Tensor:
    """(R + 1,) squared output errors of nested factors at rank 0, 1, ... R; all float64.

    tr(W C W^T) - 2 sum_i b_i^T W C a_i + sum_ij (b_i . b_j)(a_i^T C a_j): O(R^2 (O + I)) for all ranks together, with a
    rounding of some 1e-15 of tr(W C W^T) (`output_error` has none of it, for one rank).
    """
    cross = ((B_OR.T @ (W_OI @ C_II)) * A_RI).sum(1).cumsum(0)
    own = ((B_OR.T @ B_OR) * (A_RI @ C_II @ A_RI.T)).cumsum(0).cumsum(1).diagonal()
    whole = ((W_OI @ C_II) * W_OI).sum()
    return torch.cat([whole[None], whole - 2 * cross + own]).clamp(min=0)


def output_error(A_RI: Tensor, B_OR: Tensor, W_OI: Tensor, C_II: Tensor) -> Tensor:
    """The squared output error of one pair of factors, from the difference itself; all float64."""
    E = W_OI - B_OR @ A_RI
    return ((E @ C_II) * E).sum().clamp(min=0)


def balanced(A_RI: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with |a_k| = |b_k| for every component, which is where training by gradients wants to begin and where
    a narrow float type rounds both alike.  A component of next to nothing keeps a column of B of WAKE of the largest, with the
    rest in A: with both small no gradient could wake it."""
    tiny = torch.finfo(A_RI.dtype).tiny
    a, b = A_RI.norm(dim=1), B_OR.norm(dim=0)
    size = (a * b).sqrt()
    wanted = torch.maximum(size, WAKE * size.max())
    ratio = torch.where((b > tiny) & (wanted > tiny), wanted / b.clamp(min=tiny), torch.ones_like(b))
    return A_RI / ratio[:, None], B_OR * ratio


def check_share(name: str, value: object, most: float, hint: str) -> None:
    """Raises: FinloraError where a setting is no number in [0, most]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise FinloraError(f"{name} must be a number from 0 to {most:g}, got {value!r}", hint)
