"""What the structures share: checks of settings, sizes that fit a budget, balanced factors, the best product of a rank.

Shapes: W_OI (out, in), A_RI, B_OR, C_II = E[x x^T]; further leading dimensions are batches of blocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import FinloraError
from ..seam import Stats, check_finite

WAKE = 1e-3  # of the largest: the least size of a column of B in balanced factors


def check_whole(name: str, value: object, least: int, hint: str = "") -> None:
    """Raises: FinloraError unless the field's value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FinloraError(f"{name} must be a whole number of at least {least}, got {value!r}", hint)


def check_number(name: str, value: object, least: float, above: bool, hint: str = "") -> None:
    """Raises: FinloraError unless the field's value is a finite number of at least `least` (above: or larger than it)."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or value < least or (above and value == least):
        bound = "above" if above else "of at least"
        raise FinloraError(f"{name} must be a finite number {bound} {least:g}, got {value!r}", hint)


def check_keep(keep: object) -> None:
    """Raises: FinloraError unless the share is a finite number above 0."""
    check_number("keep", keep, 0, True, "0.38 keeps about a third of each linear, 1 all of it")


def check_rank(rank: int, n_in: int, n_out: int, where: str = "the layer") -> None:
    """Raises: FinloraError when the rank exceeds the layer, or a block of it."""
    if rank > min(n_in, n_out):
        raise FinloraError(
            f"rank {rank} is above {where}, which is {n_out} x {n_in} (out x in)",
            f"use a rank of at most {min(n_in, n_out)}",
        )


def largest(name: str, n_in: int, n_out: int, keep: float, per_rank: int, most: int, fixed: int = 0) -> int:
    """The largest rank up to `most` whose fixed + rank * per_rank parameters are no more than keep * n_in * n_out.

    Raises: FinloraError naming the least share that can be.
    """
    check_keep(keep)
    total = n_in * n_out
    # a share that was computed as parameters / total must find those parameters again
    rank = min(most, (math.floor(keep * total * (1 + 1e-12)) - fixed) // per_rank)
    if rank < 1:
        least = math.ceil(1e4 * (fixed + per_rank) / total) / 1e4
        raise FinloraError(
            f"keep = {keep:g} leaves structure `{name}` no rank in a linear of {n_out} x {n_in} (out x in)",
            f"keep at least {least:g} of it, or leave it dense",
        )
    return rank


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    """Gaussian fp32, drawn where the generator lives, so that a seed gives the same numbers whatever the default device."""
    device = generator.device if generator is not None else "cpu"
    return std * torch.randn(shape, generator=generator, device=device, dtype=torch.float32)


def fan_in(n_in: int, **widths: int) -> dict[str, float]:
    """Learning-rate multipliers of the matrices of a chain, {name: how many values each of its outputs sums}.

    n_in / width / matrices: updates of the features are then about as large as a dense layer's (2406.06248).
    """
    return {name: n_in / width / len(widths) for name, width in widths.items()}


def moment(stats: Stats | None, W_OI: Tensor) -> Tensor | None:
    """C_II in float64 on W's device, or None where nothing was calibrated: then all inputs count alike.

    Raises: FinloraError where the weight or the moment is not finite.
    """
    check_finite(W_OI)
    if stats is None or stats.moment_II is None:
        return None
    assert stats.moment_II.shape == (W_OI.shape[1],) * 2, (stats.moment_II.shape, W_OI.shape)
    check_finite(stats.moment_II)
    return stats.moment_II.to(device=W_OI.device, dtype=torch.float64)


def balanced(A_RI: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) of the same product B A = U S V^T with B = U sqrt(S), A = sqrt(S) V^T, by QR and an SVD of the small core.

    Where a singular value is next to nothing both would be, and no gradient could wake them: there B keeps a small
    column and A has the rest.
    """
    left, right = torch.linalg.qr(B_OR), torch.linalg.qr(A_RI.mT)
    U, S, Vh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    root = S.sqrt()
    size = torch.maximum(root, WAKE * root[..., :1])
    size = torch.where(size > 0, size, 1.0)  # a product of zeros
    return (S / size)[..., :, None] * (Vh @ right.Q.mT), (left.Q @ U) * size[..., None, :]


def best(W_OI: Tensor, C_II: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Balanced (A, B) of `rank` with E|x W^T - x (B A)^T|^2 at its least, in W's dtype, which should be float64.

    B = V, A = V^T W with V the leading eigenvectors of W C W^T (Swift-SVD): the optimum for any C, of full rank or not,
    without an inverse. Without C it is the truncated SVD of W.
    """
    outputs = W_OI @ W_OI.mT if C_II is None else W_OI @ C_II @ W_OI.mT
    V = torch.linalg.eigh(outputs).eigenvectors[..., -rank:]
    return balanced(V.mT @ W_OI, V)


def loss(W_OI: Tensor, near_OI: Tensor, C_II: Tensor | None) -> float:
    """E|x W^T - x near^T|^2, or the squared Frobenius norm of the difference without C."""
    D = W_OI - near_OI
    return float((D * (D if C_II is None else D @ C_II)).sum())


def kept(params: dict[str, Tensor], W_OI: Tensor) -> dict[str, Tensor]:
    """The parameters in fp32 (fp64 for an fp64 weight), contiguous; integers as they are."""
    work = torch.float64 if W_OI.dtype == torch.float64 else torch.float32
    return {key: (p.to(work) if p.is_floating_point() else p).contiguous() for key, p in params.items()}


def cast(params: Any, x: Tensor, *names: str) -> tuple[Tensor, ...]:
    """The named masters in x's dtype."""
    return tuple(params[name].to(x.dtype) for name in names)
