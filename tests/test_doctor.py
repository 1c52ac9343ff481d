"""The doctor: one row for a runtime with its variants."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from r2mrf_deploy import doctor, environment, runtimes
from r2mrf_deploy.runtimes.aotinductor import AOTInductor
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.onnxruntime import installed
from r2mrf_deploy.runtimes.pytorch import cuda


def test_variants_share_a_row_that_names_those_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cuda, "cuda_availability", lambda: Availability(True, "2.0", details={"compute_capability": "6.1"})
    )
    rows = {row.name: row for row in doctor.examine()}
    variants = [n for n in runtimes.names() if runtimes.get(n).variant_of == "pytorch-cuda"]
    assert len(variants) == 5 and not set(variants) & set(rows)
    note = rows["pytorch-cuda"].note
    assert rows["pytorch-cuda"].ok and all(v.removeprefix("pytorch-cuda") in note for v in variants)
    assert "not pytorch-cuda-compile: " in note and "not pytorch-cuda-fp16" not in note


def test_two_onnx_runtimes_beside_each_other_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", {"onnxruntime": "1.2", "onnxruntime-gpu": "1.1"}.get)
    (row,) = [row for row in doctor.examine() if row.name == "onnxruntime"]
    assert "onnxruntime and onnxruntime-gpu overwrite each other's files" in row.note
    assert 'pip uninstall onnxruntime onnxruntime-gpu, then pip install "r2mrf-deploy[cpu]"' in row.note


def test_what_an_uninstall_leaves_of_onnx_runtime_is_no_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "version", {"onnxruntime-gpu": "1.1"}.get)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    state = installed()
    assert not state.ok and state.version == "1.1" and "pip uninstall onnxruntime-gpu" in state.cure


def test_a_gpu_without_cuda_s_toolkit_makes_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_driver", lambda: None)
    monkeypatch.setattr(environment, "nvcc", lambda: None)
    for nowhere in ("", str(tmp_path / "none"), str(tmp_path)):
        monkeypatch.setenv("CUDA_HOME", nowhere)
        state = AOTInductor().availability()
        assert state.ok and "cannot be made" in state.reason and "CUDA_HOME" in state.cure
    (tmp_path / "lib64" / "stubs").mkdir(parents=True)
    (tmp_path / "lib64" / "stubs" / "libcuda.so").touch()
    assert not AOTInductor().availability().reason
