"""The fake TensorRT has TensorRT's names, and refuses as it documents: with False or None, and a reason."""

from __future__ import annotations

import gc
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pytest
from fake_cuda_runtime import FakeCudaRuntime
from fake_cuda_types import cudaStreamCaptureMode
from fake_tensorrt import LAYERS, PLAN, Context, Engine, FakeTensorRT, RtxContext, Runtime, RuntimeCache, mean

from r2mrf_deploy.runtimes.tensorrt.api import Library, Messages, logger, record_errors

THREAD_LOCAL = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
SHAPE = (1, 4, 4, 3)


class Host:
    """A context with its stream and memory, as a runner makes them."""

    def __init__(self, **options: Any) -> None:
        self.cuda = FakeCudaRuntime()
        self.trt = FakeTensorRT(self.cuda, **options)
        library = Library("tensorrt_rtx" if self.trt.rtx else "tensorrt", self.trt)
        runtime = self.trt.Runtime(logger(library))
        self.messages: Messages = record_errors(library, runtime)
        self.engine: Any = runtime.deserialize_cuda_engine(PLAN)
        self.context: Any = self.engine.create_execution_context()
        self.stream = int(self.cuda.cudaStreamCreateWithFlags(1)[1])
        self.addresses = {name: self.cuda.cudaMalloc(4096)[1] for name in ("image", "map")}

    def ready(self, shape: tuple[int, ...] = SHAPE) -> None:
        assert self.context.set_input_shape("image", shape)
        for name, address in self.addresses.items():
            assert self.context.set_tensor_address(name, address)

    def run(self, picture: np.ndarray) -> np.ndarray:
        self.cuda.memory(self.addresses["image"], picture.nbytes)[:] = picture.ravel()
        assert self.context.execute_async_v3(self.stream)
        assert int(self.cuda.cudaStreamSynchronize(self.stream)[0]) == 0
        n, h, w, _ = picture.shape
        return self.cuda.memory(self.addresses["map"], n * h * w * 4).view(np.float32).reshape(n, 1, h, w)


def test_names_and_numbers_are_the_librarys() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    fake = FakeTensorRT(FakeCudaRuntime(), rtx=True)
    theirs: dict[type, type] = {
        Runtime: real.Runtime,
        Engine: real.ICudaEngine,
        Context: real.IExecutionContext,
        RtxContext: real.IExecutionContext,
        RuntimeCache: real.IRuntimeCache,
    }
    for ours, their in theirs.items():
        for name in vars(ours):
            assert name.startswith("_") or hasattr(their, name), (ours, name)
    for name in ("Runtime", "Logger", "IErrorRecorder", "IProfiler"):
        assert hasattr(real, name)
    for name in ("DataType", "TensorIOMode", "ErrorCodeTRT", "CudaGraphStrategy"):
        enum: type[Enum] = getattr(fake, name)
        for member in enum:
            their_member = getattr(real, name).__members__[member.name]
            assert not isinstance(member.value, int) or member.value == int(their_member), (name, member)


def test_it_computes_what_it_says() -> None:
    host = Host()
    host.ready()
    picture = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    np.testing.assert_array_equal(host.run(picture), mean(picture))
    np.testing.assert_allclose(mean(picture)[0, 0, 2, 1], picture[0, 2, 1].mean() / 255, rtol=1e-6)  # float32


def test_nothing_runs_before_the_stream_is_waited_for() -> None:
    host = Host()
    host.ready()
    assert host.context.execute_async_v3(host.stream)
    assert host.cuda.kernels == 0
    host.cuda.cudaStreamSynchronize(host.stream)
    assert host.cuda.kernels == 1


Refusal = Callable[[Host], Any]


def set_trouble(host: Host, name: str, value: object = True) -> Any:
    setattr(host.trt.trouble, name, value)
    return host.context


REFUSALS: dict[str, tuple[Refusal, str]] = {
    "outside the profile": (lambda h: h.context.set_input_shape("image", (1, 65, 4, 3)), "outside the profile's range"),
    "no input": (lambda h: h.context.set_input_shape("map", SHAPE), "map is no input"),
    "no shape": (lambda h: h.context.execute_async_v3(h.stream), "shape of image is not set"),
    "no tensor": (lambda h: h.context.set_tensor_address("mask", 1 << 40), "mask at"),
    "no profile": (lambda h: h.context.set_optimization_profile_async(1, h.stream), "profile 1 cannot be had"),
    "address": (lambda h: set_trouble(h, "addresses").set_tensor_address("image", 1 << 40), "image at"),
    "profile": (lambda h: set_trouble(h, "profiles").set_optimization_profile_async(0, h.stream), "profile 0 cannot"),
    "execution": (lambda h: set_trouble(h, "executions", 1).execute_async_v3(h.stream), "wants it so"),
    "room": (lambda h: set_trouble(h, "room", 0).engine.create_execution_context(), "out of memory"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_is_an_answer_with_a_reason(what: str) -> None:
    host = Host()
    refuse, why = REFUSALS[what]
    assert not refuse(host)
    assert why in host.messages.last()
    assert int(host.cuda.cudaStreamSynchronize(host.stream)[0]) == 0 and host.cuda.kernels == 0


def test_an_address_that_is_missing_is_named() -> None:
    host = Host()
    host.context.set_input_shape("image", SHAPE)
    host.context.set_tensor_address("image", host.addresses["image"])
    assert not host.context.execute_async_v3(host.stream)
    assert host.messages.last() == "the address of map is not set"


def test_another_plan_is_refused() -> None:
    host = Host()
    assert host.trt.Runtime(logger(Library("tensorrt", host.trt))).deserialize_cuda_engine(b"other") is None


def test_a_recorder_that_was_not_initialised_is_refused() -> None:
    trt = FakeTensorRT(FakeCudaRuntime())

    class Recorder(trt.IErrorRecorder):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="__init__"):
        trt.Runtime(trt.Logger()).error_recorder = Recorder()


def test_a_new_shape_cannot_be_captured_before_it_has_run_once() -> None:
    host = Host()
    picture = np.full(SHAPE, 51, np.uint8)
    host.ready()
    for works in (False, True):
        host.cuda.cudaStreamBeginCapture(host.stream, THREAD_LOCAL)
        assert host.context.execute_async_v3(host.stream) == works
        error, graph = host.cuda.cudaStreamEndCapture(host.stream)
        assert int(error) == (0 if works else 901)
        if works:
            executable = host.cuda.cudaGraphInstantiate(graph, 0)[1]
            assert int(host.cuda.cudaGraphLaunch(executable, host.stream)[0]) == 0
            assert int(host.cuda.cudaStreamSynchronize(host.stream)[0]) == 0
        else:
            assert "not permitted when stream is capturing" in host.messages.last()
            np.testing.assert_allclose(host.run(picture), 0.2, rtol=1e-6)  # 51/255 in float32


def test_changing_the_profile_voids_the_shape() -> None:
    host = Host(implicit_profile=True)
    host.context = host.engine.create_execution_context()
    assert host.context.active_optimization_profile == -1  # the second, in versions before 9
    assert not host.context.set_input_shape("image", SHAPE)
    assert host.context.set_optimization_profile_async(0, host.stream)
    host.ready()
    assert host.context.set_optimization_profile_async(0, host.stream)
    assert host.context.get_tensor_shape("map") == (-1, 1, -1, -1)
    assert not host.context.execute_async_v3(host.stream)


def test_a_profiler_makes_inferences_wait_and_hears_of_every_layer() -> None:
    host = Host()
    host.ready()
    heard: list[str] = []

    class Profiler(host.trt.IProfiler):  # type: ignore[name-defined, misc]
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            heard.append(layer_name)

    host.context.profiler = Profiler()
    assert host.context.execute_async_v3(host.stream)
    assert host.cuda.kernels == 1 and heard == list(LAYERS)


def test_a_context_that_ends_before_its_work_loses_the_device() -> None:
    host = Host()
    host.ready()
    host.context.execute_async_v3(host.stream)
    host.context = None
    gc.collect()
    assert int(host.cuda.cudaStreamSynchronize(host.stream)[0]) == 700


def test_contexts_and_engines_give_their_memory_back() -> None:
    host = Host()
    assert host.cuda.alive()["allocations"] == 2 + 2  # ours, and theirs
    host.context = host.engine = None
    gc.collect()
    assert host.cuda.alive()["allocations"] == 2


def test_rtx_has_names_of_its_own() -> None:
    assert not hasattr(FakeTensorRT(FakeCudaRuntime()), "CudaGraphStrategy")
    assert not hasattr(FakeTensorRT(FakeCudaRuntime(), rtx=True, own_graphs=False), "CudaGraphStrategy")
    host = Host(rtx=True, capturable=False)
    config = host.engine.create_runtime_config()
    assert host.engine.create_execution_context(config).is_stream_capturable(host.stream) is False
    assert not hasattr(Host().context, "is_stream_capturable") and not hasattr(Host().engine, "create_runtime_config")
