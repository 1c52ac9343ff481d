"""The TensorRT runtime on a machine without a GPU: what it says of itself, and what it refuses to open."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable, UsageError
from r2mrf_deploy.runtimes.base import OpenOptions
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.builder import Build
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRT

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> bindings.Device:
        raise bindings.failure(35, "CUDA driver version is insufficient for CUDA runtime version")

    monkeypatch.setattr(bindings, "device", none)


@pytest.fixture
def plan(tiny_onnx: Callable[..., Path], tmp_path: Path) -> Path:
    job = Build(api.load("tensorrt_rtx"), BuildOptions())
    job.parse(tiny_onnx())
    file = tmp_path / "tiny.plan"
    file.write_bytes(job.build({}, [86]))
    return file


def test_without_a_device_plans_are_built_and_not_run(no_device: None, plan: Path) -> None:
    state = TensorRT().availability()
    assert not state.ok
    assert "tensorrt_rtx 1." in (state.version or "")
    assert "can be built here, not run: CUDA error 35" in state.reason
    assert "driver" in state.cure
    with pytest.raises(RuntimeUnavailable, match=r"TensorRT cannot run tiny\.plan: .*CUDA error 35.*driver"):
        TensorRT().open(Artifact.open(plan))


def test_without_any_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "installed", dict)
    state = TensorRT().availability()
    assert not state.ok and "neither" in state.reason and "pip install" in state.cure


def test_a_plan_is_checked_before_the_driver_sees_it(no_device: None, plan: Path) -> None:
    whole = plan.read_bytes()
    for content, message in [
        (whole[:-1], "damaged"),
        (b"ftrt" + whole[4:], "TensorRT is not installed|built by tensorrt 1"),
        (whole[:24] + bytes([1, 2, 0, 5]) + whole[28:], r"built by tensorrt_rtx 1\.2\.0\.5, but 1\."),
    ]:
        plan.write_bytes(content)
        with pytest.raises(R2mrfError, match=message):
            TensorRT().open(Artifact.open(plan))


@pytest.mark.parametrize(
    ("name", "capability", "installed", "said"),
    [
        ("GeForce GTX 1080 Ti", "6.1", {"tensorrt": "11.4.0"}, r"11\.4\.0 does not support Pascal .* 8\.6\.1"),
        ("Tesla P100-PCIE-16GB", "6.0", {"tensorrt_rtx": "1.7.1"}, r"not support Pascal .* 6\.0 \(Tesla P100"),
        ("GeForce GTX 1080 Ti", "6.1", {"tensorrt": "8.6.1"}, ""),
        ("GeForce GTX 1080 Ti", "6.1", {"tensorrt": "8.6.1", "tensorrt_rtx": "1.7.1"}, ""),
        ("H200", "9.0", {"tensorrt_rtx": "1.7.1"}, r"not support .* 9\.0"),
        ("a card of the future", "14.0", {"tensorrt": "11.4.0"}, ""),
    ],
)
def test_a_card_that_no_installed_tensorrt_supports_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: str, installed: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(bindings, "device", lambda: bindings.Device(name, capability))
    monkeypatch.setattr(api, "installed", lambda: installed)
    monkeypatch.setattr(api, "driver_refusal", lambda flavour: None)
    state = TensorRT().availability()
    assert state.ok == (not said) and re.search(said, state.reason)


def test_threads_are_not_an_option(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "device", lambda: bindings.Device("GeForce RTX 3090", "8.6"))
    with pytest.raises(UsageError, match="TensorRT does not support `threads`"):
        TensorRT().open(Artifact.open(plan), OpenOptions(threads=2))


@pytest.mark.parametrize(("driver", "refused"), [(12, True), (13, False), (14, False), (None, False)])
def test_a_driver_that_is_too_old_is_refused_before_anything_of_tensorrt_is_made(
    monkeypatch: pytest.MonkeyPatch, driver: int | None, refused: bool
) -> None:
    monkeypatch.setattr(api.environment, "driver_cuda", lambda: driver)
    monkeypatch.setattr(api.environment, "version", lambda name: "11.4" if name == "tensorrt_cu13_bindings" else None)
    said = api.driver_refusal("tensorrt")
    assert (said is not None) == refused
    if said:
        assert "built for CUDA 13" in said and "supports at most CUDA 12" in said


def test_the_parser_may_count_the_errors_of_a_recorder() -> None:
    library = api.load("tensorrt_rtx")
    recorder, _ = api._recorder(library)
    assert recorder.get_num_errors() == recorder.num_errors() == 0
