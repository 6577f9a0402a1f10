"""NF4 of shifted blocks: information calibration quantisation, which moves each block of 64 before rounding it.

    W ~ NF4(W - tau) + tau,   tau = median + f max|w - median|,   f the best of 201 between -0.1 sigma and 0.1 sigma

Source: IR-QLoRA (2402.05445) and its code; codec `nf4_icq` under a method with the elastic connection is
IR-QLoRA. absmax is kept as in `nf4_dq`, tau likewise: a byte of the signed dynamic map for each block, and max|tau| of 256
blocks in fp32. 4 + 2 (8/64 + 32/(64*256)) = 4.254 bits a weight. sigma is 0.541 in the authors' code, 1 in the paper.

What "best" means is the `criterion`. "entropy" is the paper's: the entropy of the block's 64 codes, ties to the first
(most negative) f. It does what it says and no more: on Gaussian weights entropy rises from 3.688 to 3.756 bits, yet the
relative error goes from 0.0920 to 0.0925. "mse" takes the f of the least squared error: 0.0836, at the same size.
"act_mse" weights each squared error with the second moment of the input it meets (the diagonal of E[x x^T], from
calibration), the least error of the output as far as inputs are uncorrelated.

Where we differ from the authors' code: codes are those of W - tau with tau as it decodes, not as it was before
rounding, so that NF4(W - tau) and tau as an exact LoRA (`tau_factors`) give the same weight as this codec. Under
"mse" and "act_mse" the last choice is made among shifts as they decode, the nearest to the one found, its two
neighbours, and 0: before absmax is rounded, no block's error is above that of tau = 0.
Blocks that hold an exact zero, and a short last block, keep tau = 0: zeros stay zeros.

A decoded weight encoded again is searched again, and lands elsewhere: this codec is no projection. Encoding takes the
search of `_calibrate.py`: some 4 million weights a second on one CPU core, a few seconds a layer of a 7B model.

Shapes: W_OI (out, in); N = ceil(O*I/block) blocks; tau_codes (N,) uint8, tau_scale (ceil(N/256),) fp32; the rest as nf4_dq.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FinloraError
from ..linear import Codec, check_finite
from . import _calibrate, _table4, nf4_dq
from ._choices import check_choices
from ._room import room
from .nf4 import CODE
from .nf4_dq import GROUP, NF4DQ, dynamic_map

REACH = 0.1  # lambda of the paper
CHUNK = 4096  # blocks searched at a time, a multiple of GROUP


@dataclass(frozen=True)
class NF4ICQ:
    """block: weights that share absmax and shift. criterion: what the shift is chosen for. sigma, n: the candidates,
    2n + 1 between -0.1 sigma and 0.1 sigma."""

    block: Literal[32, 64, 128] = 64
    criterion: Literal["entropy", "mse", "act_mse"] = "entropy"
    sigma: float = 0.541087
    n: int = 100

    def __post_init__(self):
        check_choices(self)
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 < self.sigma <= 4:
            raise FinloraError(
                f"sigma must be a number above 0 and at most 4, got {self.sigma!r}",
                "0.541087 as in the code, 1 as in the paper",
            )
        if isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= 1000:
            raise FinloraError(f"n must be a whole number from 1 to 1000, got {self.n!r}", "100 is usual")


def needs(cfg: NF4ICQ) -> tuple[str, ...]:
    """The inputs' second moments, for `act_mse`."""
    return ("moment_II",) if cfg.criterion == "act_mse" else ()


def _column_weights(cfg: NF4ICQ, W_OI: Tensor, stats) -> Tensor | None:
    """(I,) fp32, mean 1: how much an error in each column matters; None where all matter alike."""
    if not needs(cfg):
        return None
    moment = getattr(stats, "moment_II", None)
    if moment is None:
        raise FinloraError(
            f"criterion act_mse needs the second moments of the inputs, and a weight of shape {tuple(W_OI.shape)} came without",
            "calibrate the model first, or choose criterion mse",
        )
    weights = moment.diagonal().float().to(W_OI.device)
    assert weights.shape == W_OI.shape[1:], (weights.shape, W_OI.shape)
    mean = weights.mean()
    # an input that was never seen still counts a little: among shifts that are equal to the others it decides
    return (weights / mean).clamp(min=1e-6) if float(mean) > 0 else torch.ones_like(weights)


def _nearest(tau: Tensor, scale: Tensor) -> Tensor:
    """(N,) int64: codes of tau in the dynamic map, scale (ceil(N/256),) the largest of its group."""
    table = dynamic_map(tau.device)
    whole = scale.repeat_interleave(GROUP)[: tau.numel()]
    normed = torch.where(whole > 0, tau / whole, 0)
    return torch.bucketize(normed, (table[:-1] + table[1:]) / 2)


def _shifts(cfg: NF4ICQ, w_BL: Tensor, h_BL: Tensor | None) -> tuple[Tensor, Tensor]:
    """(codes (B,) uint8, scale (ceil(B/256),) fp32) of whole blocks."""
    blocks = _calibrate.blocks_of(w_BL, h_BL)
    end = REACH * cfg.sigma
    f_C = torch.linspace(-end, end, 2 * cfg.n + 1, dtype=torch.float64, device=w_BL.device).float()
    find = _calibrate.most_entropy if cfg.criterion == "entropy" else _calibrate.least_error
    tau = blocks.median + find(blocks, f_C) * blocks.reach
    tau = torch.where((w_BL == 0).any(1) | ~tau.isfinite(), 0, tau)
    scale = F.pad(tau, (0, -tau.numel() % GROUP)).view(-1, GROUP).abs().amax(1)
    codes = _nearest(tau, scale)
    if cfg.criterion != "entropy":
        table, whole = dynamic_map(tau.device), scale.repeat_interleave(GROUP)[: tau.numel()]
        nothing = int((table == 0).nonzero())
        options = torch.stack([codes, codes - 1, codes + 1, torch.full_like(codes, nothing)]).clamp_(0, len(table) - 1)
        error = torch.stack([_calibrate.errors(blocks, table[option] * whole) for option in options])
        error[:3].masked_fill_(tau == 0, torch.inf)
        codes = options.gather(0, error.argmin(0, keepdim=True))[0]
    return codes.to(torch.uint8), scale


def _add_tau(W_OI: Tensor, tau: Tensor, block: int, sign: int) -> Tensor:
    """W + sign tau, in place; W contiguous. The short last block has no shift."""
    flat = W_OI.view(-1)
    whole = flat.numel() // block
    flat[: whole * block].view(-1, block).add_(tau[:whole, None], alpha=sign)
    return W_OI


def encode(cfg: NF4ICQ, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """The tensors of `nf4_dq` for W - tau, "tau_codes" and "tau_scale". Works on one fp32 copy of W.

    Raises: FinloraError on non-finite weights, and where act_mse comes without second moments.
    """
    check_finite(W_OI)
    columns = _column_weights(cfg, W_OI, stats)
    shifted = W_OI.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    I, size = W_OI.shape[1], W_OI.numel()
    N = -(-size // cfg.block)
    zero = int((dynamic_map(W_OI.device) == 0).nonzero())
    codes = torch.full((N,), zero, dtype=torch.uint8, device=W_OI.device)
    scale = torch.zeros(-(-N // GROUP), device=W_OI.device)
    flat = shifted.view(-1)
    for start in range(0, size // cfg.block, CHUNK):
        stop = min(start + CHUNK, size // cfg.block)
        span = slice(start * cfg.block, stop * cfg.block)
        h = None
        if columns is not None:
            h = columns[torch.arange(span.start, span.stop, device=flat.device) % I].view(-1, cfg.block)
        at = slice(start // GROUP, -(-stop // GROUP))
        codes[start:stop], scale[at] = _shifts(cfg, flat[span].view(-1, cfg.block), h)
    tensors = {"tau_codes": codes, "tau_scale": scale}
    _add_tau(shifted, tau_of(tensors, cfg, tuple(W_OI.shape)), cfg.block, -1)
    return {**nf4_dq.encode(NF4DQ(block=cfg.block), shifted), **tensors}


def tau_of(tensors: dict[str, Tensor], cfg: NF4ICQ, shape: tuple[int, int]) -> Tensor:
    """(N,) fp32: the shift of each block, in the order of the weight's rows."""
    codes, scale = tensors["tau_codes"], tensors["tau_scale"]
    assert codes.numel() == -(-shape[0] * shape[1] // cfg.block), (codes.shape, shape)
    return dynamic_map(codes.device).index_select(0, codes.int()) * scale.repeat_interleave(GROUP)[: codes.numel()]


def tau_factors(cfg: NF4ICQ, tensors: dict[str, Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(A (in / block, in), B (out, in / block)): B A is the shift of every weight, so tau is plain LoRA of scale 1.

    Raises: FinloraError where blocks run over the ends of rows.
    """
    O, I = shape
    if I % cfg.block:
        raise FinloraError(
            f"the shifts of a weight of shape {shape} are no low-rank matrix: {I} inputs are no multiple of block {cfg.block}",
            "merge the weight, or leave this module out of the targets",
        )
    tau = tau_of(tensors, cfg, shape)
    A = torch.eye(I // cfg.block, device=tau.device).repeat_interleave(cfg.block, 1)
    return A, tau.view(O, I // cfg.block)


def decode(cfg: NF4ICQ, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    tau = tau_of(tensors, cfg, shape).to(work)
    if dtype == work:
        return _add_tau(nf4_dq.decode(NF4DQ(block=cfg.block), tensors, shape, work), tau, cfg.block, 1)
    # a narrow type is rounded once, after the sum: in pieces, so that no fp32 copy of W is made
    many = CHUNK if tau.device.type == "cpu" else 64 * CHUNK  # an accelerator wants few large pieces, a CPU what its cache holds
    n, piece = shape[0] * shape[1], many * cfg.block
    absmax, out = nf4_dq.absmax_of(tensors), room(n, dtype, tau.device)
    for start in range(0, n, piece):
        stop, first = min(start + piece, n), start // cfg.block
        codes = tensors["codes"][start // 2 : -(-stop // 2)]
        W = _table4.decode(CODE, codes, absmax[first:][:many], cfg.block, (1, stop - start), work)
        out[start:stop] = _add_tau(W, tau[first:][:many], cfg.block, 1).view(-1)
    return out.view(shape)


def bits(cfg: NF4ICQ, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """Those of `nf4_dq` and 8 / block + 32 / (256 block)."""
    n = shape[0] * shape[1]
    blocks = -(-n // cfg.block)
    return nf4_dq.bits(NF4DQ(block=cfg.block), shape) + (8 * blocks + 32 * math.ceil(blocks / GROUP)) / n


CODEC = Codec("nf4_icq", NF4ICQ, encode, decode, bits, lossless=False, paper="2402.05445", needs=needs)
