"""Numbers in 8 bits by blocks: a code of the dynamic map and, for each block, the largest magnitude.

    x ~ MAP[k] a,   k = nearest(x / a),   a = max|x| of the block

MAP has, for each decade 10^-6 .. 10^0, equal steps from 0.1 to 1: twice as many in each decade as in the one below,
so that the values of a block are kept to 0.70 % (signed) or 0.35 % (unsigned) of the largest and small ones lose
their digits one by one, not at once. Signed: 1, 2, .. 64 steps of each sign; unsigned: 2, 4, .. 128. And 0 and 1.

Source: 2110.02861, whose maps are those of 1511.04561. Bit-compatible with bitsandbytes' `quantize_blockwise`.

Shapes: x_N, codes_N uint8, absmax_K fp32, K = ceil(N / block).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-38  # a block whose largest value is below this is kept as zeros


@cache
def table(signed: bool, device: torch.device) -> Tensor:
    """(256,) fp32, sorted: the map's values."""
    with torch.inference_mode(False):
        values = [torch.tensor([0.0, 1.0])]
        for i in range(7):
            edges = torch.linspace(0.1, 1, 2**i * (1 if signed else 2) + 1)
            magnitudes = 10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
            values += [magnitudes, -magnitudes] if signed else [magnitudes]
        return torch.cat(values).sort().values.to(device)


@cache
def _middles(signed: bool, device: torch.device) -> Tensor:
    values = table(signed, device)
    return (values[:-1] + values[1:]) / 2


def encode(x_N: Tensor, block: int, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes_N, absmax_K) of finite values. Unsigned: what is above 0 gets a code above 0, whatever is nearest."""
    N = x_N.numel()
    x = F.pad(x_N.float(), (0, -N % block)).view(-1, block)
    absmax = x.abs().amax(1)
    normed = x * (1.0 / absmax.clamp(min=TINY))[:, None]
    codes = torch.bucketize(normed, _middles(signed, x.device), out_int32=True)
    if not signed:
        codes = torch.maximum(codes, (x > 0).int())
    return codes.to(torch.uint8).view(-1)[:N], absmax


def decode(codes_N: Tensor, absmax_K: Tensor, block: int, signed: bool) -> Tensor:
    """x_N, fp32."""
    N = codes_N.numel()
    x = table(signed, codes_N.device).index_select(0, codes_N.int())
    return (F.pad(x, (0, -N % block)).view(-1, block) * absmax_K[:, None]).view(-1)[:N]
