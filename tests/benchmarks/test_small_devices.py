"""The benchmark of small devices: what it measures of memory is real, and what fails loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import runtimes
from r2mrf_deploy.bench.protocol import Protocol
from r2mrf_deploy.errors import UsageError
from tests.benchmarks.conftest import load

load("tables")  # which the script imports by this name
small = load("small_devices")
MIB = 1 << 20


def test_the_peak_of_a_process_stays_when_the_memory_is_gone() -> None:
    before = small.peak()
    filled = np.ones(before + 64 * MIB, np.uint8)  # more than was ever resident
    del filled
    assert small.peak() >= before + 60 * MIB


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate(b"\n")


def test_the_memory_of_processes_that_a_runtime_started_counts(sleeper: subprocess.Popen[bytes]) -> None:
    assert str(sleeper.pid) in small.descendants("self")
    assert str(os.getpid()) not in small.descendants(str(sleeper.pid))
    # it has loaded far less than this process, which runs pytest, onnx and NumPy
    assert MIB < small.share(str(sleeper.pid)) < small.share("self") < small.peak()


@pytest.mark.artifact
def test_a_case_is_measured_in_a_process_of_its_own(tiny_onnx: Callable[..., Path]) -> None:
    said = small.in_a_process(["--case", str(tiny_onnx()), "--runtime", "onnxruntime", "--size", "64"])
    assert "onnxruntime" in said["modules"] and "torch" not in said["modules"]
    assert said["peak"] > 20 * MIB and said["children"] == 0


class Failing(small.Files):  # type: ignore[misc, name-defined]
    """Files of which one precision cannot be made."""

    def __init__(self, folder: Path, file: Path) -> None:
        super().__init__(folder, None)
        self.file, self.tries = file, 0

    def _make(self, path: Path, network: str, size: int, precision: str) -> Path:
        self.tries += 1
        if precision == "int8":
            raise UsageError("this format has no INT8")
        return self.file


@pytest.mark.artifact
def test_what_cannot_be_made_is_listed_and_the_rest_is_measured(tmp_path: Path, tiny_onnx: Callable[..., Path]) -> None:
    pytest.importorskip("skimage")
    files = Failing(tmp_path, tiny_onnx())
    skipped: list[dict[str, str]] = []
    protocol = Protocol(warm_up=0, duration=0, iterations=2)
    chosen = [runtimes.get("onnxruntime")]
    [(row, file)] = small.measured(files, "r2mrf-lite", 64, chosen, protocol, skipped)
    assert (row["precision"], row["runtime"], row["map_difference"]) == ("fp32", "onnxruntime", 0)
    assert row["latency_ms"]["median"] > 0 and file == files.file
    assert skipped == [{"what": "r2mrf-lite at 64, INT8, on onnxruntime", "why": "this format has no INT8"}]
    small.measured(files, "r2mrf-lite", 64, chosen, protocol, skipped)
    assert files.tries == 2, "neither a file nor a failure is made again"


def row(precision: str, ms: float, runtime: str = "onnxruntime", **further: Any) -> dict[str, Any]:
    return {
        "network": "r2mrf-lite", "size": 192, "precision": precision, "runtime": runtime, "latency_ms": {"median": ms},
        "peak_mib": 100.0, "map_difference": 0.0125,
    } | further  # fmt: skip


def predicted(precision: str, ms: float) -> dict[str, Any]:
    return {"network": "r2mrf-lite", "size": 192, "precision": precision, "title": "Jetson", "predicted_ms": ms}


FOUND = {
    "rows": [row("fp32", 20.0), row("int8", 8.0, peak_mib=None), row("fp32", 30.0, "web", children_mib=300.0)],
    "predictions": [predicted("fp32", 3.0), predicted("fp16", 1.5), predicted("int8", 2.0)],
    "imported_mib": {"onnxruntime": 76.0},
}


def test_the_tables_say_what_was_found() -> None:
    lines = small.measured_table(FOUND).splitlines()
    assert lines[2] == "| `r2mrf-lite`, 192 | onnxruntime | 20.0 ms | 8.0 ms | 2.50 | 100 MiB | - | 76 MiB | 0.0125 |"
    assert lines[3] == "| `r2mrf-lite`, 192 | web | 30.0 ms | - | - | 100 + 300 MiB | - | - | - |"
    assert small.predicted_table(FOUND).splitlines()[2:] == ["| Jetson | FP32 | 3.0 |", "| Jetson | FP16 | 1.5 |"]
