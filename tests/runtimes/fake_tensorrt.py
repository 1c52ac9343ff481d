"""A TensorRT that is not there, with one engine on a `FakeCudaRuntime`: the names of `tensorrt` and `tensorrt_rtx` that a
runner uses, behind the documented rules.

The engine takes pictures, uint8 [n, h, w, 3], to the mean of their channels between 0 and 1, float32 [n, 1, h, w]. It
refuses by returning False or None and tells its error recorder why, never by raising. A change of shape defers work to the
next inference, which allocates and so cannot be captured. Contexts and engines hold device memory until their end, and
what they enqueue touches it, as it touches its inputs and outputs, when it runs.

What it cannot show: building, what real layers compute and how long they take, what TensorRT does with the host's memory or
in threads of its own, faults of the library, and the graphs that TensorRT-RTX captures by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import partial
from typing import Any

import numpy as np
from fake_cuda_runtime import FakeCudaRuntime
from fake_cuda_types import TEXTS

PLAN = b"the plan of the one engine"
LAYERS = ("cast", "mean")
_SCRATCH = 256


class DataType(Enum):
    FLOAT = "float32"
    UINT8 = "uint8"


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ErrorCodeTRT(IntEnum):
    SUCCESS = 0
    INVALID_ARGUMENT = 3
    FAILED_ALLOCATION = 5
    FAILED_EXECUTION = 7
    INVALID_STATE = 9


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Logger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self, min_severity: Logger.Severity = Severity.WARNING) -> None:
        self.min_severity = Logger.Severity(min_severity)


class _Interface:
    """What is implemented by whoever uses the library; its initialiser must have been called."""

    ready = False

    def __init__(self) -> None:
        self.ready = True


class IErrorRecorder(_Interface):
    def report_error(self, code: ErrorCodeTRT, description: str) -> bool:
        raise NotImplementedError


class IProfiler(_Interface):
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


@dataclass
class Trouble:
    """What shall go wrong from now on."""

    room: int | None = None
    """For so many more contexts; None is room for all."""
    executions: int = 0
    """So many of the next are refused."""
    captured_executions: bool = False
    """Those that are captured are refused."""
    addresses: bool = False
    profiles: bool = False


class FakeTensorRT:
    """The module.

    Args:
        rtx: it is `tensorrt_rtx`.
        own_graphs: this version of TensorRT-RTX captures CUDA graphs by itself, where it is told to.
        capturable: what TensorRT-RTX answers where it is asked.
        smallest, largest: of every dimension but the channels, in the engine's one profile.
        implicit_profile: as before TensorRT 9, only the first context has the profile 0 by default, the others have none.
    """

    __version__ = "10.13.3.9"
    DataType = DataType
    TensorIOMode = TensorIOMode
    ErrorCodeTRT = ErrorCodeTRT
    Logger = Logger
    IErrorRecorder = IErrorRecorder
    IProfiler = IProfiler

    def __init__(
        self,
        cuda: FakeCudaRuntime,
        rtx: bool = False,
        own_graphs: bool = True,
        capturable: bool = True,
        smallest: int = 1,
        largest: int = 64,
        implicit_profile: bool = False,
    ) -> None:
        self.cuda = cuda
        self.rtx = rtx
        self.capturable = capturable
        self.dimensions = range(smallest, largest + 1)
        self.implicit_profile = implicit_profile
        self.trouble = Trouble()
        self.executions = 0
        """How many were asked for."""
        self.on_execute: Callable[[int], None] = lambda stream: None
        """Called in each, with its stream."""
        self.Runtime = partial(Runtime, self)
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
        if rtx and own_graphs:
            self.CudaGraphStrategy = CudaGraphStrategy


class _Reporting:
    """What refuses, and says why to the recorder that it has from what made it."""

    _recorder: Any = None

    @property
    def error_recorder(self) -> Any:
        return self._recorder

    @error_recorder.setter
    def error_recorder(self, recorder: Any) -> None:
        if not isinstance(recorder, IErrorRecorder) or not recorder.ready:
            raise TypeError("__init__() must be called when overriding __init__")
        self._recorder = recorder

    def _refuse(self, what: str, code: ErrorCodeTRT, why: str) -> bool:
        if self._recorder is not None:
            kind = "Cuda Runtime" if code == ErrorCodeTRT.FAILED_EXECUTION else "API Usage Error"
            self._recorder.report_error(
                code, f"{what}: Error Code {int(code)}: {kind} ({why}. In {what} at /_src/a.cpp:1)"
            )
        return False

    def _failed(self, what: str, error: int) -> bool:
        return self._refuse(what, ErrorCodeTRT.FAILED_EXECUTION, TEXTS[error].decode())


class Runtime(_Reporting):
    def __init__(self, library: FakeTensorRT, logger: Logger) -> None:
        if not isinstance(logger, Logger):
            raise TypeError("incompatible constructor arguments")
        self._library = library
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        if serialized_engine != PLAN:
            self._refuse("IRuntime::deserializeCudaEngine", ErrorCodeTRT.INVALID_ARGUMENT, "the plan is another's")
            return None
        error, weights = self._library.cuda.cudaMalloc(_SCRATCH)
        if error:
            self._failed("IRuntime::deserializeCudaEngine", error)
            return None
        return Engine(self._library, self._recorder, weights)


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b"nothing compiled"

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True


class RuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return True


class Engine(_Reporting):
    num_io_tensors = 2
    num_optimization_profiles = 1

    def __init__(self, library: FakeTensorRT, recorder: Any, weights: int) -> None:
        self.library = library
        self.weights = weights
        self._recorder = recorder
        self._contexts = 0
        if library.rtx:
            self.create_runtime_config = RuntimeConfig

    def __del__(self) -> None:
        self.library.cuda.cudaFree(self.weights)

    def get_tensor_name(self, index: int) -> str:
        return ("image", "map")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"image": (-1, -1, -1, 3), "map": (-1, 1, -1, -1)}[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        return {"image": DataType.UINT8, "map": DataType.FLOAT}[name]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return {"image": TensorIOMode.INPUT, "map": TensorIOMode.OUTPUT}[name]

    def create_execution_context(self, *config: RuntimeConfig) -> Context | None:
        what = "ICudaEngine::createExecutionContext"
        trouble = self.library.trouble
        error, activations = (2, None) if trouble.room == 0 else self.library.cuda.cudaMalloc(_SCRATCH)
        if error:
            self._refuse(what, ErrorCodeTRT.FAILED_ALLOCATION, TEXTS[int(error)].decode())
            return None
        if trouble.room is not None:
            trouble.room -= 1
        self._contexts += 1
        profile = -1 if self.library.implicit_profile and self._contexts > 1 else 0
        return (RtxContext if self.library.rtx else Context)(self, activations, profile)


class Context(_Reporting):
    def __init__(self, engine: Engine, activations: int, profile: int) -> None:
        self.engine = engine
        self.active_optimization_profile = profile
        self.profiler: IProfiler | None = None
        self._library = engine.library
        self._recorder = engine.error_recorder
        self._activations = activations
        self._shape: tuple[int, ...] | None = None
        self._addresses = {"image": 0, "map": 0}
        self._deferred = True
        self._busy = threading.Lock()

    def __del__(self) -> None:
        self._library.cuda.cudaFree(self._activations)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        what = "IExecutionContext::setOptimizationProfileAsync"
        if self._library.trouble.profiles or not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._refuse(what, ErrorCodeTRT.INVALID_ARGUMENT, f"profile {profile_index} cannot be had")
        self.active_optimization_profile = profile_index
        self._shape = None  # what was set before is void
        self._deferred = True
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        what = "IExecutionContext::setInputShape"
        if name != "image":
            return self._refuse(what, ErrorCodeTRT.INVALID_ARGUMENT, f"{name} is no input")
        if self.active_optimization_profile < 0:
            return self._refuse(what, ErrorCodeTRT.INVALID_STATE, "no optimization profile is set")
        if len(shape) != 4 or shape[3] != 3 or not all(d in self._library.dimensions for d in shape[:3]):
            return self._refuse(what, ErrorCodeTRT.INVALID_ARGUMENT, f"{list(shape)} is outside the profile's range")
        self._deferred = self._deferred or tuple(shape) != self._shape
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._shape is None:
            return self.engine.get_tensor_shape(name)
        n, h, w, _ = self._shape
        return self._shape if name == "image" else (n, 1, h, w)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._addresses or self._library.trouble.addresses:
            return self._refuse(
                "IExecutionContext::setTensorAddress", ErrorCodeTRT.INVALID_ARGUMENT, f"{name} at {memory}"
            )
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two threads in one context")
        try:
            self._library.executions += 1
            self._library.on_execute(stream_handle)
            return self._enqueue(stream_handle) and self._report(stream_handle)
        finally:
            self._busy.release()

    def _enqueue(self, stream: int) -> bool:
        what, cuda, trouble = "IExecutionContext::enqueueV3", self._library.cuda, self._library.trouble
        capturing = int(cuda.cudaStreamIsCapturing(stream)[1] or 0)
        if trouble.executions or (trouble.captured_executions and capturing):
            trouble.executions -= bool(trouble.executions)
            return self._refuse(what, ErrorCodeTRT.INVALID_STATE, "the test wants it so")
        if self._shape is None:
            return self._refuse(what, ErrorCodeTRT.INVALID_STATE, "the shape of image is not set")
        if missing := [name for name, address in self._addresses.items() if not address]:
            return self._refuse(what, ErrorCodeTRT.INVALID_STATE, f"the address of {missing[0]} is not set")
        if self._deferred:
            error, scratch = cuda.cudaMalloc(_SCRATCH)
            error = error or cuda.cudaFree(scratch)[0]
            if error:
                return self._failed(what, error)
            self._deferred = False
        (error,) = cuda.launch_kernel(stream, self._kernel())
        return self._failed(what, error) if error else True

    def _kernel(self) -> Callable[[], None]:
        """One inference as a launch that knows addresses and sizes, and this object no more."""
        cuda, shape, addresses = self._library.cuda, self._shape, dict(self._addresses)
        held = (self._activations, self.engine.weights)
        assert shape is not None
        n, h, w, c = shape

        def kernel() -> None:
            for address in held:
                cuda.memory(address, _SCRATCH)
            pixels = cuda.memory(addresses["image"], n * h * w * c).reshape(n, h, w, c)
            out = cuda.memory(addresses["map"], n * h * w * 4).view(np.float32)
            out[:] = mean(pixels).ravel()

        return kernel

    def _report(self, stream: int) -> bool:
        """With a profiler an inference is waited for, and its layers' times are reported."""
        if self.profiler is None:
            return True
        if not isinstance(self.profiler, IProfiler) or not self.profiler.ready:
            raise TypeError("__init__() must be called when overriding __init__")
        (error,) = self._library.cuda.cudaStreamSynchronize(stream)
        if error:
            return self._failed("IExecutionContext::enqueueV3", error)
        for layer in LAYERS:
            self.profiler.report_layer_time(layer, 0.25)
        return True


class RtxContext(Context):
    def is_stream_capturable(self, stream: int) -> bool:
        return self._library.capturable


def mean(pictures: np.ndarray) -> np.ndarray:
    """What the engine computes: uint8 [n, h, w, 3] to float32 [n, 1, h, w]."""
    return pictures.mean(-1, dtype=np.float32)[:, None] / np.float32(255)
