"""Room for a large decoded weight, in huge pages where Linux gives them to those who ask.

Fresh memory costs a page fault for every 4 KiB, and for a large weight these take longer than decoding it (4096 x 4096 in
fp32 on a virtual machine: 28 ms of faults, 7 ms of decoding). With pages of 2 MiB there are 512 times fewer. Where the
system knows no such request, refuses it or gives huge pages to everybody, this is torch.empty.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LARGE = 8 << 20  # bytes from which on it is worth asking


@cache
def _ask() -> Callable[[int, int, int], int] | None:
    """The system's madvise, or None."""
    try:
        call = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call


def room(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count,) of `dtype`, not initialised."""
    out = torch.empty(count, dtype=dtype, device=device)
    wish, page = getattr(mmap, "MADV_HUGEPAGE", None), mmap.PAGESIZE
    if out.nbytes >= LARGE and device.type == "cpu" and wish is not None and (ask := _ask()) is not None:
        start, stop = -(-out.data_ptr() // page) * page, (out.data_ptr() + out.nbytes) // page * page
        ask(start, stop - start, wish)  # advice only: nothing depends on the answer
    return out
