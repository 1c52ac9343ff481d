"""Counters of energy: which are read, that they start anew, and that a machine without them says nothing."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy.bench import power


def zone(folder: Path, name: str, called: str, microjoules: int, wrap: int = 1_000_000_000) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "name").write_text(f"{called}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{wrap}\n")
    return place


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    whole = zone(tmp_path, "intel-rapl:2", "psys", 90_000_000)
    meter = power.of_cpu(tmp_path)
    assert meter is not None
    before = meter.now()
    (first / "energy_uj").write_text("6500000")
    (second / "energy_uj").write_text("9000000")
    (whole / "energy_uj").write_text("99000000")
    assert meter.between(before, meter.now()) == pytest.approx(3.5)


@pytest.mark.parametrize("packages", [1, 2])
def test_a_counter_that_starts_anew_loses_nothing(tmp_path: Path, packages: int) -> None:
    places = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 999_000_000) for n in range(packages)]
    meter = power.of_cpu(tmp_path)
    assert meter is not None
    before = meter.now()
    (places[0] / "energy_uj").write_text("2000000")
    assert meter.between(before, meter.now()) == pytest.approx(3.0)


def test_what_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    assert power.of_cpu(tmp_path) is None and power.of_cpu(tmp_path / "none") is None
    place = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = power.of_cpu(tmp_path)
    assert meter is not None
    before = meter.now()
    (place / "energy_uj").write_text("")
    assert meter.now() is None
    (place / "energy_uj").unlink()  # as unreadable as it is to other users
    assert meter.now() is None and meter.between(before, None) is None
    assert power.of_cpu(tmp_path) is None


class Driver:
    """NVML with so many GPUs, each of which has taken 5 J."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:
        number._obj.value = self._gpus
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, millijoules: Any) -> int:
        millijoules._obj.value = 5000
        return 0


@pytest.mark.parametrize(("gpus", "joules"), [(0, None), (1, 5.0), (2, None)])
def test_one_of_several_gpus_is_not_taken_for_another(
    monkeypatch: pytest.MonkeyPatch, gpus: int, joules: float | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(gpus))
    meter = power.of_gpu()
    assert (meter and meter.now()) == joules
