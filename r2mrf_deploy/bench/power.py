"""The energy that a measurement takes, where the machine counts it: processors by Intel's and AMD's counters, which Linux
shows as `powercap`, and NVIDIA's GPUs by their driver.

Both are counters of joules, so what is read before and after a turn tells the energy of the turn, with that of whatever else
the processor or the GPU did meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
UNTOLD = "the machine does not tell its power"

Counter = Callable[[], float]
"""Joules since some time."""


@dataclass(frozen=True)
class Meter:
    """A counter of energy that starts anew at some value."""

    read: Counter
    """Joules. Raises OSError or ValueError if it cannot be read any longer."""
    wrap: float = 0.0
    """Joules after which it starts at 0 again; 0 if it never does."""

    def now(self) -> float | None:
        with suppress(OSError, ValueError):  # an empty file is no number
            return self.read()
        return None

    def between(self, before: float | None, after: float | None) -> float | None:
        """The joules from one reading to a later one, before it has started anew twice; None if one of them failed."""
        if before is None or after is None:
            return None
        return after - before if after >= before else after - before + self.wrap


def of_cpu(folder: Path = POWERCAP) -> Meter | None:
    """The energy of all processor packages with their memory controllers; None where it cannot be read.

    Reading it is often allowed to the administrator alone. Source: Linux, Documentation/power/powercap/powercap.rst.
    """
    files, wraps = [], []
    for zone in sorted(folder.glob("intel-rapl:[0-9]*")):
        with suppress(OSError, ValueError):
            if ":" in zone.name.partition(":")[2] or not (zone / "name").read_text().startswith("package"):
                continue  # a part of a package, or all of the machine
            _microjoules(zone / "energy_uj")
            wraps.append(_microjoules(zone / "max_energy_range_uj"))
            files.append(zone / "energy_uj")
    if not files:
        return None
    if len(files) > 1:
        return Meter(_summed(files, wraps))
    return Meter(lambda: _microjoules(files[0]), wraps[0])


def of_gpu() -> Meter | None:
    """The energy of the NVIDIA GPU; None if there is none, or if it does not count (before Volta).

    None too if there are several: NVML's first need not be CUDA's first, which computes.

    Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption: millijoules since the driver was loaded.
    """
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, number = ctypes.c_void_p(), ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(number)) or number.value != 1:
        return None
    if library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return None

    def read() -> float:
        found = ctypes.c_ulonglong()
        if code := library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(found)):
            raise OSError(code, "the GPU does not tell its energy")
        return found.value / 1e3

    meter = Meter(read)
    return meter if meter.now() is not None else None


def _summed(files: list[Path], wraps: list[float]) -> Counter:
    """The sum of several counters, each of which starts anew by itself."""
    meters = [Meter(lambda file=file: _microjoules(file), wrap) for file, wrap in zip(files, wraps, strict=True)]  # type: ignore[misc]
    lasts = [meter.read() for meter in meters]
    total = 0.0

    def read() -> float:
        nonlocal total
        for number, meter in enumerate(meters):
            after = meter.read()
            total += meter.between(lasts[number], after) or 0.0
            lasts[number] = after
        return total

    return read


def _microjoules(file: Path) -> float:
    """A counter's value in joules."""
    return int(file.read_text()) / 1e6
