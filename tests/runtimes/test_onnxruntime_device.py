"""ONNX Runtime's runner for GPUs, with a real session that computes on host memory in the device's place.

Bindings, shapes and copies are those of a GPU's; only "cuda" is said to be the CPU when a binding reaches ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, UsageError
from r2mrf_deploy.runtimes import onnxruntime as module
from r2mrf_deploy.runtimes.base import OpenOptions, now_ms
from r2mrf_deploy.runtimes.cuda.bindings import CudaError
from r2mrf_deploy.runtimes.onnxruntime import (
    OnnxRuntimeCPU,
    OnnxRuntimeCUDA,
    OnnxRuntimeDeviceRunner,
    OnnxRuntimeRunner,
    OnnxRuntimeTensorRT,
)

NONE = Artifact(Path("x.onnx"))

TinyOnnx = Callable[..., Path]


class Binding:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.bound: list[int] = []

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        assert device == "cuda"
        self.real.bind_input(name, "cpu", number, dtype, shape, address)

    def bind_output(self, name: str, device: str, *where: Any) -> None:
        assert device == "cuda"
        self.real.bind_output(name, "cpu", *where)
        self.bound += where[3:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Session:
    """A real session that takes the device's memory for its own."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.runs: list[list[int]] = []
        self.fails = False

    def io_binding(self) -> Binding:
        return Binding(self.real.io_binding())

    def run_with_iobinding(self, binding: Binding) -> None:
        if self.fails:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700\nsomewhere")
        self.runs.append(binding.bound)
        self.real.run_with_iobinding(binding.real)


def opened(model: Path, options: OpenOptions | None = None) -> tuple[OnnxRuntimeDeviceRunner, HostCuda]:
    cuda = HostCuda()
    runner = OnnxRuntimeDeviceRunner(OnnxRuntimeCPU(), Artifact.open(model), options or OpenOptions(), cuda)
    runner._first.session = Session(runner._first.session)
    return runner, cuda


def picture(seed: int, n: int = 1, h: int = 64, w: int = 64) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)}


@pytest.mark.parametrize("dynamic", [False, True])
def test_results_are_those_of_a_session_without_bindings(tiny_onnx: TinyOnnx, dynamic: bool) -> None:
    model = tiny_onnx(dynamic=dynamic)
    sizes = [(1, 64, 64), (2, 128, 96), (2, 128, 96), (1, 32, 32)] if dynamic else [(1, 64, 64)] * 3
    runner, cuda = opened(model)
    with runtimes.open(model, "onnxruntime") as plain, runner:
        for seed, size in enumerate(sizes):
            wanted = plain.run(picture(seed, *size))["map"]
            assert wanted.std() > 0.02
            np.testing.assert_array_equal(runner.run(picture(seed, *size))["map"], wanted)
        assert runner.on_gpu and runner.in_flight == 1
        assert runner.device.startswith("fake GPU, ")
    assert cuda.live == {} and cuda.held == 0


def test_copies_and_computation_are_timed_apart(tiny_onnx: TinyOnnx) -> None:
    runner, _ = opened(tiny_onnx())
    with runner:
        runner.run(picture(0))
        before = now_ms()
        _, t = runner.run_timed(picture(1))
        after = now_ms()
    # 1 ms: how well the device's clock is put on the host's where the machine is busy
    ends = [before, t.start_h2d, t.end_h2d, t.start_compute, t.end_compute, t.start_d2h, t.end_d2h, after]
    assert all(a <= b + 1 for a, b in itertools.pairwise(ends)), ends
    assert t.compute > 0


def test_a_captured_graph_s_addresses_stay_and_every_thread_has_a_session(
    tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = opened(tiny_onnx(), OpenOptions(cuda_graph=True))
    assert runner.device.endswith(", CUDA graph")
    sessions = [runner._first.session]

    def another(*source: Any) -> Any:
        real = OnnxRuntimeRunner(*source)
        real.session = Session(real.session)
        sessions.append(real.session)
        return real

    monkeypatch.setattr(module, "OnnxRuntimeRunner", another)
    alone = {seed: runner.run(picture(seed))["map"] for seed in range(3)}

    def work() -> None:
        for seed in range(3):
            np.testing.assert_array_equal(runner.run(picture(seed))["map"], alone[seed])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(sessions) == 2
    for session in sessions:
        assert len(session.runs) >= 3 and all(run == session.runs[0] != [] for run in session.runs)
    runner.close()


def test_a_cuda_graph_of_free_sizes_is_refused(tiny_onnx: TinyOnnx) -> None:
    with pytest.raises(UsageError, match=r"`cuda_graph` needs fixed sizes, and tiny\.onnx has free ones"):
        opened(tiny_onnx(dynamic=True), OpenOptions(cuda_graph=True))


def test_a_graph_and_a_profile_exclude_each_other(tiny_onnx: TinyOnnx) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        OnnxRuntimeCUDA()._open(Artifact.open(tiny_onnx()), OpenOptions(cuda_graph=True, profile=True))


def test_a_session_that_fails_on_the_device_says_why(tiny_onnx: TinyOnnx) -> None:
    runner, _ = opened(tiny_onnx(dynamic=True))
    runner._first.session.fails = True
    with runner, pytest.raises(RuntimeUnavailable, match=r"failed on the device: .*CUDA failure 700$"):
        runner.run(picture(0))
    with pytest.raises(ArtifactError, match="closed"):
        runner.run(picture(0))


def test_without_cuda_python_the_copies_are_not_timed_apart_and_it_says_so(
    tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str | None = None) -> Any:
        raise CudaError("cuda-python is not installed", "pip install cuda-python")

    class OnTheCPU(OnnxRuntimeCUDA):
        provider = "CPUExecutionProvider"

        def providers(self, artifact: Artifact, options: OpenOptions) -> list[Any]:
            return [self.provider]

    monkeypatch.setattr(module.bindings, "provider", missing)
    with OnTheCPU()._open(Artifact.open(tiny_onnx()), OpenOptions()) as runner:
        assert "copies not timed separately: cuda-python is not installed: pip install" in runner.device
        assert runner.run(picture(0))["map"].shape == (1, 1, 64, 64)
    with pytest.raises(CudaError):
        OnTheCPU()._open(Artifact.open(tiny_onnx()), OpenOptions(buffers="pycuda"))


# ---- what the providers are told


def test_fp32_is_fp32_and_a_graph_is_asked_for() -> None:
    (name, options), last = OnnxRuntimeCUDA().providers(NONE, OpenOptions())
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["use_tf32"] == "0" and "enable_cuda_graph" not in options
    assert OnnxRuntimeCUDA().providers(NONE, OpenOptions(cuda_graph=True))[0][1]["enable_cuda_graph"] == "1"


def test_tensorrt_is_told_the_profile_and_where_its_engines_are_kept(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    artifact = Artifact.open(tiny_onnx(dynamic=True))
    cache = OpenOptions(runtime_cache=tmp_path / "engines", cuda_graph=True)
    (name, options), cuda, last = OnnxRuntimeTensorRT().providers(artifact, cache)
    assert (name, cuda[0], last) == ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["trt_profile_min_shapes"] == "image:1x32x32x3"
    assert options["trt_profile_max_shapes"] == "image:2x128x128x3"
    assert options["trt_cuda_graph_enable"] == "1" and "trt_fp16_enable" not in options
    assert options["trt_engine_cache_path"] == str(tmp_path / "engines") and (tmp_path / "engines").is_dir()
    assert set(OnnxRuntimeTensorRT().providers(NONE, OpenOptions())[0][1]) == {"device_id"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="keeps engines in a folder"):
        OnnxRuntimeTensorRT().providers(NONE, OpenOptions(runtime_cache=tmp_path / "file"))


def test_every_option_that_a_provider_is_told_is_one_that_it_knows() -> None:
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    manifest_free = OpenOptions(cuda_graph=True)
    for runtime, library in ((OnnxRuntimeCUDA(), "cuda"), (OnnxRuntimeTensorRT(), "tensorrt")):
        file = folder / f"libonnxruntime_providers_{library}.so"
        if not file.is_file():
            pytest.skip("needs an ONNX Runtime that was built for GPUs")
        known = file.read_bytes()
        for name in runtime.providers(NONE, manifest_free)[0][1]:
            assert name.encode() in known, name


# ---- nothing is replaced in silence


def part(name: str, nodes: int) -> Any:
    return SimpleNamespace(ep_name=f"{name}ExecutionProvider", get_nodes=lambda: [None] * nodes)


def test_nodes_on_another_provider_are_counted() -> None:
    def session(*parts: Any) -> Any:
        return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)

    wanted = "TensorrtExecutionProvider"
    assert module._elsewhere(session(part("Tensorrt", 7)), wanted) == ""
    mixed = session(part("Tensorrt", 5), part("CUDA", 2), part("CUDA", 1), part("CPU", 1))
    assert module._elsewhere(mixed, wanted) == ", 3 of 9 nodes on CUDA, 1 of 9 nodes on CPU"
    with pytest.raises(RuntimeUnavailable, match=r"TensorrtExecutionProvider runs no node of this.*, all run on CUDA"):
        module._elsewhere(session(part("CUDA", 7)), wanted)
    assert module._elsewhere(SimpleNamespace(), wanted) == ""


def test_a_provider_that_does_not_load_is_not_replaced(tiny_onnx: TinyOnnx, capfd: pytest.CaptureFixture[str]) -> None:
    if environment.cuda_driver() is None:
        pytest.skip("there is a GPU here")
    for runtime in (OnnxRuntimeCUDA(), OnnxRuntimeTensorRT()):
        with pytest.raises((RuntimeUnavailable, ArtifactError), match=r"ONNX Runtime (could not use|cannot open)"):
            OnnxRuntimeRunner(runtime, Artifact.open(tiny_onnx()), OpenOptions())
    assert capfd.readouterr().out == ""  # a verb's JSON goes there


def test_tensorrt_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(module, "_preload", lambda: None)
    monkeypatch.setattr(environment, "cuda_driver", lambda: None)
    monkeypatch.setattr(environment, "compute_capability", lambda: "8.6")
    state = OnnxRuntimeTensorRT().availability()
    if "no Tensorrt provider" in state.reason:
        pytest.skip("needs an ONNX Runtime that was built for TensorRT")
    assert not state.ok and f"{asked[0]} does not load" == state.reason and "pip install" in state.cure
    assert asked[0].startswith("libnvinfer.so.")
    assert OnnxRuntimeTensorRT().availability().ok
    monkeypatch.setattr(environment, "compute_capability", lambda: "6.1")
    monkeypatch.setattr(module, "cuda_major", lambda: 12)
    assert OnnxRuntimeTensorRT().uses_tf32 and not OnnxRuntimeCUDA().uses_tf32
    state = OnnxRuntimeTensorRT().availability()
    assert (
        not state.ok and "does not support Pascal" in state.reason and state.cure == "choose `runtime` onnxruntime-cuda"
    )
    assert OnnxRuntimeCUDA().availability().ok


def test_options_that_mean_nothing_are_refused(tiny_onnx: TinyOnnx) -> None:
    for name, option in (("onnxruntime-cuda", {"runtime_cache": Path("x")}), ("onnxruntime", {"cuda_graph": True})):
        with pytest.raises(UsageError, match=r"ONNX Runtime.* does not support `"):
            runtimes.open(tiny_onnx(), name, options=OpenOptions(**option))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ONNX Runtime TensorRT does not support `spin_wait"):
        runtimes.open(tiny_onnx(), "onnxruntime-tensorrt", options=OpenOptions(spin_wait=True))


def test_a_gpu_that_its_cuda_does_not_support_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_driver", lambda: None)
    monkeypatch.setattr(environment, "compute_capability", lambda: "6.1")
    monkeypatch.setattr(module, "cuda_major", lambda: 13)
    state = runtimes.get("onnxruntime-cuda").availability()
    if "no CUDA provider" in state.reason:
        pytest.skip("needs an ONNX Runtime that was built for CUDA")
    assert not state.ok and "does not support compute capability 6.1" in state.reason and "CUDA 12" in state.cure
    monkeypatch.setattr(module, "cuda_major", lambda: 12)
    assert runtimes.get("onnxruntime-cuda").availability().ok


def test_libraries_in_another_folder_than_onnx_runtime_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, library in (("cu99", "libcublas.so.99"), ("cudnn99", "libcudnn.so.9")):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / folder / "lib" / library).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    asked: list[tuple[str | None, bool, bool]] = []

    def preload(cuda: bool = True, cudnn: bool = True, directory: str | None = None) -> None:
        asked.append((directory, cuda, cudnn))

    monkeypatch.setattr("onnxruntime.preload_dlls", preload, raising=False)
    module._preload()
    # cuDNN is not looked for beside CUDA: what a folder lacks is taken from the system
    assert (str(tmp_path / "nvidia" / "cu99" / "lib"), True, False) in asked
    assert (str(tmp_path / "nvidia" / "cudnn99" / "lib"), False, True) in asked
    assert asked[-1] == (None, True, True)
