"""The best LoRA of a given rank, in the Frobenius norm of the change of the weight, and what it leaves out.

    of factors   QR of both and an SVD of the small core: nothing of the weight's size is formed
    of a change  its truncated SVD, for methods that have no factors

Shapes: A_KI (K, in), B_OK (out, K), change_OI.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..methods._stack import truncate


def shorter(A_KI: Tensor, B_OK: Tensor, scale: float, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """(A, B, scale, relative error): scale * B A at `rank`; unchanged, with error 0, where its rank is no larger."""
    if rank >= A_KI.shape[0]:
        return A_KI, B_OK, scale, 0.0
    A, B, error = truncate(A_KI, scale * B_OK, rank)
    return A, B, 1.0, error


def of_dense(change_OI: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """(A, B, 1, relative error): the change of a weight at `rank`, computed in float64."""
    U, S, Vh = torch.linalg.svd(change_OI.double(), full_matrices=False)
    root, total = S[:rank].sqrt(), float(S.norm())
    A, B = root[:, None] * Vh[:rank], U[:, :rank] * root
    return A.float(), B.float(), 1.0, float(S[rank:].norm()) / total if total else 0.0
