"""What a run cost, and how each number was obtained.

Peak memory on a GPU is the allocator's high-water mark.  On a CPU it is the resident set's: on Linux the kernel's mark is
reset when the meter starts (writing 5 to /proc/self/clear_refs), so that several runs in one process each have their own;
elsewhere it is the process's mark so far, and the receipt says so.

Energy is read from counters, never from a power limit: on a GPU NVML's total, on Intel and AMD processors RAPL's packages and
their memory (/sys/class/powercap), which wrap around after some hundred kilojoules and are therefore looked at while the run goes.
A counter counts all that its chip does, whoever asked for it: the receipt says which were read, and which share of the
processors' busy time was this process's.  Where a chip of the run has no counter that may be read, there is no figure.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
LOOK = 30.0  # seconds between two looks at counters that wrap: at 1 kW they do after 260 s


@dataclass
class Meter:
    """Seconds, peak bytes and, where there are counters, joules since it was started."""

    device: torch.device
    began: float
    start_bytes: int
    how: str
    energy: Energy | None = None

    def read(self, joules: bool = True) -> dict[str, Any]:
        """{"seconds", "peak_bytes", "start_bytes", "peak_how"} so far; where measured also "joules", "joules_how", "joules_share".

        joules: False leaves energy out, where the meter saw but a part of what it stands beside (a resumed run).
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.began
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        told = {"seconds": seconds, "peak_bytes": peak, "start_bytes": self.start_bytes, "peak_how": self.how}
        return told | self.energy.read() if joules and self.energy is not None else told


def meter(device: torch.device) -> Meter:
    """Start measuring."""
    gc.collect()
    _trim()
    energy = energy_of(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return Meter(device, time.perf_counter(), torch.cuda.memory_allocated(device), "torch.cuda.max_memory_allocated", energy)
    how = "peak resident set of the process so far"
    try:
        Path("/proc/self/clear_refs").write_text("5")
        how = "peak resident set during the run (VmHWM, reset at its start)"
    except OSError:
        pass
    return Meter(device, time.perf_counter(), _status("VmRSS"), how, energy)


# -- energy ------------------------------------------------------------------------------------------------------------


@dataclass
class Counter:
    """One energy counter. look: joules since whenever it began, or None; around: joules after which it begins again, 0 never."""

    name: str
    look: Callable[[], float | None]
    around: float = 0.0
    last: float = 0.0
    spent: float = 0.0

    def update(self) -> bool:
        """Add what was spent since the last look, which must have been within one turn; False where it cannot be read."""
        now = self.look()
        if now is None:
            return False
        step = now - self.last
        self.spent += step + self.around if step < 0 else step
        self.last = now
        return step >= 0 or self.around > 0


class Energy:
    """What some counters add up to since it was made; a thread looks at those that wrap for as long as it is held."""

    def __init__(self, counters: list[Counter]):
        self.counters, self.how = counters, ", ".join(c.name for c in counters)
        self._good, self._lock, self._end = True, threading.Lock(), threading.Event()
        for c in counters:
            first = c.look()
            self._good &= first is not None
            c.last = first or 0.0
        self._cpu = time.process_time(), _busy()
        if self._good and any(c.around for c in counters):
            threading.Thread(target=_follow, args=(weakref.ref(self), self._end), name="finlora energy", daemon=True).start()

    def update(self) -> None:
        """Look at all counters once."""
        with self._lock:
            self._good &= all([c.update() for c in self.counters])

    def read(self) -> dict[str, Any]:
        """{"joules", "joules_how", "joules_share"}: the last, where known, this process's share of the processors' busy time; {} where a counter failed."""
        self.update()
        if not self._good:
            return {}
        told: dict[str, Any] = {"joules": sum(c.spent for c in self.counters), "joules_how": self.how}
        own, all_busy = time.process_time() - self._cpu[0], _busy() - self._cpu[1]
        if all_busy > 0:
            told["joules_share"] = min(1.0, own / all_busy)
        return told

    def __del__(self) -> None:
        self._end.set()


def energy_of(device: torch.device) -> Energy | None:
    """The counters of what a run on the device uses, started; None where the device itself has none that may be read."""
    gpu = [] if device.type == "cpu" else _nvml(device)
    processors = _rapl()
    if not (processors if device.type == "cpu" else gpu):
        return None
    return Energy([*gpu, *processors])


def _follow(held: weakref.ref[Energy], end: threading.Event) -> None:
    """Look now and then, so that no counter turns twice between two looks."""
    while not end.wait(LOOK):
        energy = held()
        if energy is None:
            return
        energy.update()
        del energy


def _rapl() -> list[Counter]:
    """A counter of each processor package and of each package's memory; [] unless all packages may be read.

    A package holds its cores and its graphics, which have counters of their own besides; `psys` holds the packages.
    """
    out = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        name = _line(zone / "name")
        if not name.startswith("package") and name != "dram":
            continue
        if _microjoules(zone / "energy_uj") is None:
            if name == "dram":
                continue
            return []
        inside = _line(POWERCAP / zone.name.rpartition(":")[0] / "name") + " " if name == "dram" else ""
        out.append(Counter(f"RAPL {inside}{name}", partial(_microjoules, zone / "energy_uj"), _microjoules(zone / "max_energy_range_uj") or 0.0))
    return out


def _nvml(device: torch.device) -> list[Counter]:
    """The counter of the device, where NVML's Python module is installed and the GPU has one."""
    if device.type != "cuda":
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, a GPU without a counter or a slice of one: each has an error of its own
        return []
    return [Counter("NVML GPU", lambda: _millijoules(pynvml, handle))]


def _millijoules(pynvml: Any, handle: Any) -> float | None:
    """The GPU's counter in joules; it counts since the driver was loaded and does not wrap."""
    try:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:
        return None


def _microjoules(path: Path) -> float | None:
    """A file of microjoules as joules, None where it cannot be read: most systems let only root."""
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _busy() -> float:
    """Seconds that this machine's processors were busy since it started, 0.0 where it does not say."""
    found = _line(Path("/proc/stat")).splitlines()
    parts = found[0].split() if found else []
    if len(parts) < 9 or parts[0] != "cpu":
        return 0.0
    return sum(int(parts[k]) for k in (1, 2, 3, 6, 7)) / os.sysconf("SC_CLK_TCK")  # user, nice, system, interrupts


# -- memory ------------------------------------------------------------------------------------------------------------


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
