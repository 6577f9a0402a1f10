"""What a run cost, and how each number was obtained.

Peak memory on a GPU is the allocator's high-water mark.  On a CPU it is the resident set's: on Linux the kernel's mark is
reset when the meter starts (writing 5 to /proc/self/clear_refs), so that several runs in one process each have their own;
elsewhere it is the process's mark so far, and the receipt says so.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Meter:
    """Seconds and peak bytes since it was started."""

    device: torch.device
    began: float
    start_bytes: int
    how: str

    def read(self) -> dict[str, Any]:
        """{"seconds", "peak_bytes", "start_bytes", "peak_how"} so far."""
        seconds = time.perf_counter() - self.began
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"seconds": seconds, "peak_bytes": peak, "start_bytes": self.start_bytes, "peak_how": self.how}


def meter(device: torch.device) -> Meter:
    """Start measuring."""
    gc.collect()
    _trim()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return Meter(device, time.perf_counter(), torch.cuda.memory_allocated(device), "torch.cuda.max_memory_allocated")
    how = "peak resident set of the process so far"
    try:
        Path("/proc/self/clear_refs").write_text("5")
        how = "peak resident set during the run (VmHWM, reset at its start)"
    except OSError:
        pass
    return Meter(device, time.perf_counter(), _status("VmRSS"), how)


def _trim() -> None:
    """Give freed memory back to the system where the C library can (glibc), so that one run's peak is not the next one's."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes, 0 where there is none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
