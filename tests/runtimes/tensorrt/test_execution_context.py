"""Execution contexts and runners on host memory: what is copied where, and when a CUDA graph is captured again."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from host_cuda import HostCuda

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable
from r2mrf_deploy.manifest import Manifest, TensorSpec
from r2mrf_deploy.runtimes.base import OpenOptions, now_ms
from r2mrf_deploy.runtimes.tensorrt.api import Library, Messages
from r2mrf_deploy.runtimes.tensorrt.execution_context import TensorRTContext
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRTRunner


class Context:
    """An execution context of a network that takes the mean over the channels: uint8 NHWC to float32 [N, 1, H, W]."""

    active_optimization_profile = 0

    def __init__(self, cuda: HostCuda, largest: int = 64, capturable: bool = True) -> None:
        self._cuda = cuda
        self._largest = largest
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self.capturable = capturable
        self.fails = False
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if max(shape) > self._largest:
            return False
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, h, w, _ = self._shape
        return (n, 1, h, w)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            return False
        n, h, w, c = self._shape
        image, map_ = (self._addresses[name] for name in ("image", "map"))

        def work() -> None:
            self.runs += 1
            pixels = self._cuda.memory(image, n * h * w * c).reshape(n, h, w, c)
            out = self._cuda.memory(map_, n * h * w * 4).view(np.float32)
            out[:] = pixels.mean(-1, dtype=np.float32).ravel()

        self._cuda.enqueue(work)
        return True


INPUT = TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")
OUTPUT = TensorSpec(name="map", dtype="float32", shape=["n", 1, "h", "w"], layout="NCHW")


def execution_context(
    cuda: HostCuda, context: Any, graph: bool = True, messages: Messages | None = None
) -> TensorRTContext:
    return TensorRTContext(cuda, context, [INPUT], [OUTPUT], messages or Messages(), graph)


def picture(seed: int, n: int = 1, h: int = 8, w: int = 8) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)}


def mean(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["image"].mean(-1, dtype=np.float32)[:, None]


SIZES = [(1, 8, 8), (2, 32, 16), (1, 8, 8), (1, 4, 4), (2, 32, 16), (2, 32, 32)]


@pytest.mark.parametrize("graph", [True, False])
def test_results_are_right_through_every_change_of_shape(graph: bool) -> None:
    cuda = HostCuda()
    job = execution_context(cuda, Context(cuda), graph)
    for seed, size in enumerate(SIZES):
        for again in range(3):
            arrays = picture(10 * seed + again, *size)
            np.testing.assert_array_equal(job.run(arrays)["map"], mean(arrays))
    assert cuda.captures == (len(SIZES) if graph else 0)  # once for each change, never for the same shape
    assert cuda.launches == (3 * len(SIZES) if graph else 0)


def test_results_are_the_callers_own() -> None:
    cuda = HostCuda()
    job = execution_context(cuda, Context(cuda))
    first = job.run(picture(1))["map"]
    kept = first.copy()
    job.run(picture(2))
    np.testing.assert_array_equal(first, kept)


def test_what_cannot_be_captured_runs_without_a_graph() -> None:
    cuda = HostCuda()
    context = Context(cuda, capturable=False)
    job = execution_context(cuda, context)
    np.testing.assert_array_equal(job.run(picture(1))["map"], mean(picture(1)))
    assert not job.uses_graph and cuda.captures == 0


def test_a_capture_that_fails_leaves_a_context_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = HostCuda()
    monkeypatch.setattr(cuda, "capture", lambda stream, work: None)
    job = execution_context(cuda, Context(cuda))
    for seed in range(3):
        np.testing.assert_array_equal(job.run(picture(seed))["map"], mean(picture(seed)))
    assert not job.uses_graph


def test_a_shape_outside_the_profile_is_refused_and_forgotten() -> None:
    cuda = HostCuda()
    job = execution_context(cuda, Context(cuda, largest=16))
    job.run(picture(1))
    with pytest.raises(InputError, match=r"image \[1, 32, 8, 3\] is outside the plan's profile"):
        job.run(picture(1, 1, 32, 8))
    np.testing.assert_array_equal(job.run(picture(2))["map"], mean(picture(2)))


def test_a_device_that_fails_says_why() -> None:
    cuda, messages = HostCuda(), Messages()
    context = Context(cuda)
    context.fails = True
    messages.add("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access. In f at /_src/a)")
    with pytest.raises(RuntimeUnavailable, match="failed on the device: an illegal memory access"):
        execution_context(cuda, context, messages=messages).run(picture(1))


def test_sizes_that_depend_on_the_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = HostCuda()
    context = Context(cuda)
    monkeypatch.setattr(context, "get_tensor_shape", lambda name: (1, -1))
    with pytest.raises(ArtifactError, match="'map' depends on the data"):
        execution_context(cuda, context).run(picture(1))


@pytest.mark.parametrize("graph", [True, False])
def test_timing_is_in_order_and_on_the_hosts_clock(graph: bool) -> None:
    cuda = HostCuda()
    job = execution_context(cuda, Context(cuda), graph)
    job.run(picture(0))
    for seed in range(3):
        before = now_ms()
        outputs, t = job.submit(picture(seed))()
        after = now_ms()
        np.testing.assert_array_equal(outputs["map"], mean(picture(seed)))
        # 1 ms: how well the device's clock is put on the host's where the machine is busy
        ends = [before, t.start_h2d, t.end_h2d, t.start_compute, t.end_compute, t.start_d2h, t.end_d2h, after]
        assert all(a <= b + 1 for a, b in itertools.pairwise(ends)), ends
        assert before <= t.start_enqueue <= t.end_enqueue <= after
        assert t.latency == pytest.approx(t.end_d2h - t.start_h2d, abs=1e-3)


def test_everything_is_given_back() -> None:
    cuda = HostCuda()
    job = execution_context(cuda, Context(cuda))
    for size in SIZES:
        job.run(picture(0, *size))
    job.close()
    assert cuda.live == {} and cuda.held == 0


def test_half_precision_goes_in_and_comes_out() -> None:
    class Copy(Context):
        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._shape

        def execute_async_v3(self, stream: int) -> bool:
            x, y = (self._addresses[name] for name in ("x", "y"))
            size = int(np.prod(self._shape)) * 2
            cuda.enqueue(lambda: np.copyto(cuda.memory(y, size), cuda.memory(x, size)))
            return True

    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        cuda = HostCuda()
        specs = [TensorSpec(name=n, dtype=name, shape=[2, 3]) for n in ("x", "y")]
        job = TensorRTContext(cuda, Copy(cuda), specs[:1], specs[1:], Messages(), True)
        array = np.arange(6).reshape(2, 3).astype(dtype)
        out = job.run({"x": array})["y"]
        assert out.dtype == array.dtype
        np.testing.assert_array_equal(out.astype(np.float32), array.astype(np.float32))


# ---- the runner: one context for every thread


class Engine:
    """What TensorRTRunner asks of an engine."""

    num_io_tensors = 2

    def __init__(self, cuda: HostCuda) -> None:
        self.contexts: list[Context] = []
        self._cuda = cuda

    def get_tensor_name(self, index: int) -> str:
        return ("image", "map")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, -1, -1, 3) if name == "image" else (-1, 1, -1, -1)

    def get_tensor_dtype(self, name: str) -> str:
        return "u8" if name == "image" else "f32"

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self._cuda))
        return self.contexts[-1]


Opened = tuple[TensorRTRunner, Engine, HostCuda]


def open_runner(folder: Path, manifest: Manifest | None = None, content: bytes = b"plan") -> Opened:
    cuda = HostCuda()
    engine = Engine(cuda)

    class Logger:
        INTERNAL_ERROR = 0

        def __init__(self, worst: int) -> None:
            assert worst == self.INTERNAL_ERROR

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__="11.4.0",
        Logger=Logger,
        IErrorRecorder=type("IErrorRecorder", (), {}),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"plan" else None),
        DataType=SimpleNamespace(UINT8="u8", FLOAT="f32"),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    )
    file = folder / "x.plan"
    file.write_bytes(content)
    return (
        TensorRTRunner(Library("tensorrt", module), Artifact(file, manifest, manifest), OpenOptions(), cuda),
        engine,
        cuda,
    )


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return open_runner(tmp_path)


def manifest(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Manifest:
    return Manifest(file="x.plan", sha256="", bytes=4, kind="plan", inputs=inputs, outputs=outputs)


def test_the_manifest_names_layouts_and_free_dimensions(tmp_path: Path) -> None:
    runner, _, _ = open_runner(tmp_path, manifest([INPUT], [OUTPUT]))
    assert runner.inputs == (INPUT,) and runner.outputs == (OUTPUT,)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "picture"},
        {"dtype": "float32"},
        {"shape": ["n", "h", "w"], "layout": None},
        {"shape": ["n", "h", "w", 4]},
    ],
)
def test_a_manifest_that_differs_from_the_engine_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"x\.plan: the plan has .*, the manifest says .*; build it again"):
        open_runner(tmp_path, manifest([INPUT.model_copy(update=change)], [OUTPUT]))


def test_a_plan_that_does_not_deserialise_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x\.plan does not open on the fake GPU \(8\.6\): .*r2mrf build"):
        open_runner(tmp_path, content=b"another GPU's")


def test_the_engine_says_what_goes_in_and_out(opened: Opened) -> None:
    runner, _, _ = opened
    assert [str(s) for s in runner.inputs] == ["image: uint8 [image_0×image_1×image_2×3]"]
    assert [str(s) for s in runner.outputs] == ["map: float32 [map_0×1×map_2×map_3]"]


def test_every_thread_has_a_context_of_its_own(opened: Opened) -> None:
    runner, engine, cuda = opened
    wrong: list[int] = []
    # A fake device records one capture at a time, so the first inference of each thread goes alone.
    alone = threading.Lock()

    def work(seed: int) -> None:
        with alone:
            runner.run(picture(seed))
        for i in range(20):
            arrays = picture(seed + i)
            if not np.array_equal(runner.run(arrays)["map"], mean(arrays)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * t,)) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len(engine.contexts) == 4
    runner.close()
    assert cuda.live == {} and cuda.held == 0


def test_a_closed_runner_says_so(opened: Opened) -> None:
    runner, _, _ = opened
    with runner:
        runner.run(picture(1))
    with pytest.raises(ArtifactError, match="closed"):
        runner.run(picture(1))


def test_inputs_are_checked_before_the_device(opened: Opened) -> None:
    runner, engine, _ = opened
    with pytest.raises(InputError, match="must be uint8"):
        runner.run({"image": np.zeros((1, 8, 8, 3), np.float32)})
    with pytest.raises(InputError, match="must have shape"):
        runner.run({"image": np.zeros((1, 8, 8, 4), np.uint8)})
    assert engine.contexts == []
