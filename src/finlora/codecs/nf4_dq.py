"""NF4 with double quantisation: the absmax of each block of 64 is itself kept in 8 bits.

    a ~ MAP[k] b + mean(a),  k = nearest((a - mean(a)) / b),  b = max|a - mean(a)| over 256 blocks,  W ~ CODE[c] a

Source: QLoRA (2305.14314) section 3; MAP is the signed dynamic 8-bit map of 1511.04561. Bit-compatible with bitsandbytes
(compress_statistics=True). 4 + 8/64 + 32/(64*256) = 4.127 bits a weight, against 4.5 for `nf4`; Gaussian weights:
relative Frobenius error 0.092, the same to three digits. Encoding a decoded weight again can move it by about 1e-4: the
mean of the rounded absmax is not quite the mean it was rounded around.

Shapes: W_OI (out, in); N = ceil(O*I/block) blocks; absmax_codes (N,) uint8, absmax_scale (ceil(N/256),) fp32, offset ().
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import Codec
from . import _table4
from .nf4 import CODE, NF4

GROUP = 256  # absmax values that share one scale
DIGITS = 16  # lower bits of an fp32 below the upper ones that tell all middles of the map apart


@dataclass(frozen=True)
class NF4DQ(NF4):
    """block: weights that share one absmax, a power of two from 32 to 4096."""


@cache
def dynamic_map(device: torch.device) -> Tensor:
    """(256,) fp32, sorted: for each decade 10^-6 .. 10^0, 1, 2, .. 64 means of equal steps from 0.1 to 1, both signs; 0; 1."""
    with torch.inference_mode(False):
        values = [torch.tensor([0.0, 1.0])]
        for i in range(7):
            edges = torch.linspace(0.1, 1, 2**i + 1)
            magnitudes = 10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
            values += [magnitudes, -magnitudes]
        return torch.cat(values).sort().values.to(device)


@cache
def _values() -> tuple[float, ...]:
    return tuple(dynamic_map(torch.device("cpu")).tolist())


def encode(cfg: NF4DQ, W_OI: Tensor, stats=None) -> dict[str, Tensor]:
    """The codes of `nf4` and a compressed absmax. Raises: FinloraError on non-finite weights."""
    codes, absmax = _table4.encode(CODE, W_OI, cfg.block)
    offset = absmax.mean()
    centred = F.pad(absmax - offset, (0, -absmax.numel() % GROUP)).view(-1, GROUP)
    scale = centred.abs().amax(1)
    # a group in which all absmax are equal has scale 0: every value of it is the offset, whatever its code
    size = scale.clamp(min=_table4.TINY)
    normed = centred * (1.0 / size)[:, None]
    if absmax.numel() % GROUP:  # bitsandbytes divides a short group
        normed[-1] = centred[-1] / size[-1]
    absmax_codes = _table4.nearest(_values(), normed, DIGITS).view(-1)[: absmax.numel()]
    return {"codes": codes, "absmax_codes": absmax_codes.contiguous(), "absmax_scale": scale, "offset": offset}


def absmax_of(tensors: dict[str, Tensor]) -> Tensor:
    """(N,) fp32: the absmax as it decodes."""
    codes, scale = tensors["absmax_codes"], tensors["absmax_scale"]
    whole = codes.numel() // GROUP * GROUP
    values = dynamic_map(codes.device).index_select(0, codes.int())
    values[:whole].view(-1, GROUP).mul_(scale[: whole // GROUP, None])
    values[whole:].mul_(scale[-1])
    return values.add_(tensors["offset"])


def decode(cfg: NF4DQ, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W_OI in `dtype`."""
    return _table4.decode(CODE, tensors["codes"], absmax_of(tensors), cfg.block, shape, dtype)


def bits(cfg: NF4DQ, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """4 + 8 / block + 32 / (256 block), plus one fp32 offset a weight matrix and short last blocks."""
    n = shape[0] * shape[1]
    blocks = -(-n // cfg.block)
    return (8 * -(-n // 2) + 8 * blocks + 32 * -(-blocks // GROUP) + 32) / n


CODEC = Codec("nf4_dq", NF4DQ, encode, decode, bits, lossless=False, paper="2305.14314")
