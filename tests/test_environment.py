"""What the machine says of itself."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from r2mrf_deploy import environment
from r2mrf_deploy.report.tables import where


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("max 100000\n", 6),
        ("400000 100000\n", 4),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("900000 100000", 6),
        ("", 6),
    ],
)
def test_a_container_uses_no_more_cores_than_its_share(
    said: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr(environment, "CPU_SHARE", tmp_path / "cpu.max")
    assert environment.cores() == cores
    monkeypatch.setattr(environment, "CPU_SHARE", tmp_path / "none")
    assert environment.cores() == 6


def test_the_gpu_that_is_described_is_the_one_that_cuda_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi does not look at CUDA_VISIBLE_DEVICES; the driver does."""

    def bus(text: ctypes.Array[ctypes.c_char], size: int, device: int) -> int:
        text.value = b"0000:17:00.0"
        return 0

    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "card at $1, 580"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(environment, "_driver", lambda: SimpleNamespace(cuDeviceGetPCIBusId=bus))
    monkeypatch.setattr(environment, "cuda_driver", lambda: None)
    assert environment.gpu() == {"gpu": "card at --id=0000:17:00.0", "driver": "580"}
    monkeypatch.setattr(environment, "_driver", lambda: None)
    assert "--query-gpu" in str(environment.gpu()["gpu"])


@pytest.mark.parametrize(
    ("said", "vectors"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2 sse4_2\n", "AVX2"),
        ("model name\t: A\nflags\t\t: avx512_vnni avx2 avx512f\nflags\t\t: avx2\n", "AVX2, AVX-512, VNNI"),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", "NEON, dot products"),
        ("flags\t\t: avx\n", None),
        ("", None),
    ],
)
def test_the_machine_names_what_its_speed_in_int8_depends_on(
    said: str, vectors: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    environment.instructions.cache_clear()
    try:
        machine = environment.describe()
        assert machine.get("cpu_vectors") == vectors
        assert where(machine, {}).startswith(f"{machine['cpu']} with {vectors}, " if vectors else f"{machine['cpu']}, ")
    finally:
        environment.instructions.cache_clear()
