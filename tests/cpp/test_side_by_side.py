"""`benchmarks/cpp.py`: there are enough turns however short the time, and the ratio has an interval."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from .conftest import TinyOnnx

pytestmark = pytest.mark.artifact

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cpp.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_cpp", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_turns_to_count_in_no_time(benchmark: ModuleType) -> None:
    calls: list[str] = []
    turns = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = benchmark.take_turns(turns, 0)
    assert {name: len(own) for name, own in times.items()} == dict.fromkeys("ab", benchmark.LEAST_TURNS)
    assert calls[:6] == ["a", "b", "b", "a", "a", "b"]


def test_the_interval_holds_the_ratio_and_widens_with_noise(benchmark: ModuleType) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (2, 200))

    def found(scale: float) -> tuple[float, float, float]:
        ours, theirs = 90 + scale * noise[0], 100 + scale * noise[1]
        said = benchmark.ratio(list(ours), list(theirs))
        return said["ratio"], *said["interval"]

    for scale in (1, 5):
        ratio, low, high = found(scale)
        assert low < 0.9 < high and low <= ratio <= high
    narrow, wide = found(1), found(5)
    assert wide[2] - wide[1] > 3 * (narrow[2] - narrow[1])


@pytest.mark.usefixtures("library")
def test_it_measures_both(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--artifact", tiny_onnx(), "--duration", "0", "--processes", "1"]
    subprocess.run([*command, "--json", tmp_path / "x.json"], check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / "x.json").read_text())
    assert set(found["cpp_over_python"]) == {"map_ms", "peak_memory_mib"}
    assert 0 < found["cpp_over_python"]["peak_memory_mib"]["ratio"] < 1
    assert all(len(own) == found["turns"] for own in found["every_map_ms"].values())
