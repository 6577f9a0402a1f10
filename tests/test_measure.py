"""What a run cost: energy counters that wrap, cannot be read or are not there, and the memory mark beside them."""

from __future__ import annotations

import gc
import sys
import threading
import types

import pytest
import torch

from finlora import measure

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """A powercap folder as a two-socket server has it; zones(name, joules) sets a counter."""
    monkeypatch.setattr(measure, "POWERCAP", tmp_path)
    names = {"intel-rapl": "", "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    for zone, name in names.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000000\n")  # turns after 1000 J

    def set(zone, joules):
        (tmp_path / zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")

    for zone in names:
        set(zone, 900)
    return set


def test_packages_and_their_memory_are_added_up_and_nothing_twice(zones):
    found = measure.meter(CPU)
    for zone, now in (("intel-rapl:0", 950), ("intel-rapl:0:0", 999), ("intel-rapl:0:1", 903), ("intel-rapl:1", 910), ("intel-rapl:2", 990), ("intel-rapl-mmio:0", 950)):
        zones(zone, now)
    told = found.read()
    assert told["joules"] == pytest.approx(50 + 3 + 10)
    assert told["joules_how"] == "RAPL package-0, RAPL package-0 dram, RAPL package-1"
    assert 0 <= told.get("joules_share", 0.5) <= 1
    assert "joules" not in found.read(joules=False) and found.read()["joules"] == pytest.approx(63), "a second look adds nothing"


def test_counters_that_turn_are_followed(zones):
    found = measure.meter(CPU)
    for now in (980, 30, 400, 990, 10):  # past zero twice
        zones("intel-rapl:0", now)
        found.energy.update()
    assert found.read()["joules"] == pytest.approx(80 + 50 + 370 + 590 + 20)


def test_a_thread_looks_by_itself_and_ends_with_its_meter(zones, monkeypatch):
    monkeypatch.setattr(measure, "LOOK", 0.005)
    seen, update = threading.Event(), measure.Energy.update
    monkeypatch.setattr(measure.Energy, "update", lambda energy: (update(energy), seen.set()))
    found = measure.meter(CPU)
    assert seen.wait(10)
    (follower,) = [t for t in threading.enumerate() if t.name == "finlora energy"]
    del found
    gc.collect()
    follower.join(10)
    assert not follower.is_alive()


@pytest.mark.parametrize("break_it", ["no permission", "not a number", "gone"])
def test_a_package_that_cannot_be_read_leaves_no_figure(zones, tmp_path, monkeypatch, break_it):
    path = tmp_path / "intel-rapl:1" / "energy_uj"
    whole = measure.meter(CPU)
    if break_it == "no permission":  # root reads all: a folder in its place is refused to everybody
        path.unlink()
        path.mkdir()
    elif break_it == "gone":
        path.unlink()
    else:
        path.write_text("many\n")
    assert "joules" not in measure.meter(CPU).read(), "one package of two is half the truth"
    assert "joules" not in whole.read() and whole.read()["seconds"] > 0, "nor where it failed on the way"


def test_memory_without_a_counter_is_left_out(zones, tmp_path):
    (tmp_path / "intel-rapl:0:1" / "energy_uj").unlink()
    assert measure.meter(CPU).read()["joules_how"] == "RAPL package-0, RAPL package-1"


def test_where_nothing_measures_there_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "POWERCAP", tmp_path / "none")
    told = measure.meter(CPU).read()
    assert set(told) == {"seconds", "peak_bytes", "start_bytes", "peak_how"} and told["peak_bytes"] > 0


def test_a_counter_that_falls_without_a_known_range_is_not_believed(zones, tmp_path):
    (tmp_path / "intel-rapl:1" / "max_energy_range_uj").unlink()
    found = measure.meter(CPU)
    zones("intel-rapl:1", 5)
    assert "joules" not in found.read()


def fake_nvml(millijoules):
    class NVMLError(Exception):
        pass

    def total(handle):
        assert handle == "handle of GPU-1234"
        value = next(millijoules)
        if value is None:
            raise NVMLError
        return value

    return types.SimpleNamespace(nvmlInit=lambda: None, NVMLError=NVMLError, nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}", nvmlDeviceGetTotalEnergyConsumption=total)


def test_a_gpu_is_read_by_its_uuid_and_never_replaced_by_the_processors(zones, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(iter([5_000, 5_000, 12_500])))
    energy = measure.energy_of(GPU)
    zones("intel-rapl:0", 901)
    told = energy.read()
    assert told["joules"] == pytest.approx(7.5 + 1) and told["joules_how"].startswith("NVML GPU, RAPL package-0")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(iter([None])))
    assert measure.energy_of(GPU) is None, "the processors alone are not what a run on a GPU used"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert measure.energy_of(GPU) is None and measure.energy_of(CPU) is not None
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(iter([1_000, 1_000, None])))
    energy = measure.energy_of(GPU)
    assert energy.read() == {}
