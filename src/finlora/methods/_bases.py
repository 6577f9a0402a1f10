"""Random bases that all linears of a model share, drawn on the CPU from a key and held once for each device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import FinloraError
from ..linear import Place


def check_key(key: object) -> None:
    """Raises: FinloraError where the key of the draws is no whole number that a generator takes."""
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 2**63:
        raise FinloraError(f"key must be a whole number of at least 0, got {key!r}", "it says which bases are drawn")


def dims(place: Place, shape: tuple[int, int]) -> tuple[int, int]:
    """(out, in) of the shared bases: the largest among the linears that are adapted together."""
    return max(place.largest[0], shape[0]), max(place.largest[1], shape[1])


# Few models are open at a time; bases that fall out are drawn again, equal to the bit but no longer in one memory.
@functools.lru_cache(maxsize=8)
def shared(draw: Callable[..., tuple[Tensor, Tensor]], key: int, rank: int, out: int, into: int, device: str):
    """draw(generator, rank, out, into) with the generator at `key`, on `device`: the same tensors each time."""
    with torch.inference_mode(False):
        return tuple(t.to(device) for t in draw(torch.Generator().manual_seed(key), rank, out, into))
