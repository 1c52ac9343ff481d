"""ONNX Runtime on the CPU, and on a GPU through CUDA and TensorRT. It never falls back from one to another silently.

On a GPU, inputs and outputs are bound to device memory that we allocate, so that copies and computation are timed
separately. A session waits for the device, so there is only one inference in flight.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from r2mrf_deploy import environment, gpus
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, UsageError, first_line
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.model_cache import key
from r2mrf_deploy.progress import no_stdout
from r2mrf_deploy.runtimes import kept, specs
from r2mrf_deploy.runtimes.base import MOST_STREAMS, Arrays, Availability, LayerTimes, OpenOptions, Runner, Runtime
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.cuda.execution_context import PREPARING, ContextRunner, ExecutionContext
from r2mrf_deploy.wording import count

_LOG = logging.getLogger(__name__)
_DTYPES = {"float": "float32", "double": "float64"}  # its other names are numpy's


class OnnxRuntimeCPU(Runtime):
    name = "onnxruntime"
    title = "ONNX Runtime"
    suffixes = (".onnx",)
    supported_options = frozenset({"threads", "streams", "throughput", "cache", "profile"})
    provider: ClassVar[str] = "CPUExecutionProvider"
    uses_tf32: ClassVar[bool] = False
    """Whether FP32 becomes TF32 where the GPU has it."""
    unsupported_precisions = frozenset({"bf16"})

    def availability(self) -> Availability:
        return installed()

    def providers(self, artifact: Artifact, options: OpenOptions) -> list[Any]:
        """What the session may use, in order of preference: names, or pairs of a name and its options."""
        return [self.provider]

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        return OnnxRuntimeRunner(self, artifact, options)


class OnnxRuntimeCUDA(OnnxRuntimeCPU):
    """FP32 stays FP32: TF32, which the provider uses by default, is off."""

    name = "onnxruntime-cuda"
    title = "ONNX Runtime CUDA"
    supported_options = frozenset({"threads", "profile", "cuda_graph", "buffers"})
    provider = "CUDAExecutionProvider"
    unsupported_precisions: ClassVar[frozenset[str]] = frozenset()

    def availability(self) -> Availability:
        state = super().availability()
        if not state.ok:
            return state
        if reason := environment.cuda_driver():
            return Availability(False, state.version, reason, "run it on a machine with an NVIDIA GPU")
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            missing = f"this build has no {_short(self.provider)} provider"
            return Availability(False, state.version, missing, _exchange("gpu"))
        if reason := gpus.too_old_for_cuda(cuda_major(), environment.compute_capability()):
            return Availability(False, state.version, reason, "install an onnxruntime-gpu for CUDA 12: docs/gpu.md")
        return state

    def providers(self, artifact: Artifact, options: OpenOptions) -> list[Any]:
        graph = {"enable_cuda_graph": "1"} if options.cuda_graph else {}
        return [(self.provider, {"device_id": "0", "use_tf32": "0"} | graph), "CPUExecutionProvider"]

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        if options.cuda_graph and options.profile:
            raise UsageError("`cuda_graph` and `profile` exclude each other: a CUDA graph reports no layers")
        _preload()
        try:
            device = bindings.provider(options.buffers)
        except bindings.CudaError as e:
            if options.buffers or options.cuda_graph:
                raise
            with PREPARING:
                runner = OnnxRuntimeRunner(self, artifact, options)
            runner.device += f", copies not timed separately: {e}"
            return runner
        with PREPARING:
            return OnnxRuntimeDeviceRunner(self, artifact, options, device)


class OnnxRuntimeTensorRT(OnnxRuntimeCUDA):
    """TensorRT within ONNX Runtime, in the graph's precision. Where the GPU has TF32, TensorRT computes FP32 in it, and this
    provider cannot switch that off. Nodes that TensorRT does not support run on CUDA; the runner's `device` counts them."""

    name = "onnxruntime-tensorrt"
    title = "ONNX Runtime TensorRT"
    uses_tf32 = True
    supported_options = frozenset({"threads", "profile", "cuda_graph", "buffers", "runtime_cache"})
    provider = "TensorrtExecutionProvider"

    def availability(self) -> Availability:
        state = super().availability()
        if state.version and (missing := missing_tensorrt()):
            major = missing.rpartition(".")[2]
            cure = f'pip install "tensorrt=={major}.*" (no newer version), or add its folder to LD_LIBRARY_PATH'
            return Availability(False, state.version, f"{missing} does not load", cure)
        card = gpus.alike("this GPU", environment.compute_capability() or "")
        if state.ok and card and (wanted := _wanted_tensorrt()):
            for refusal in gpus.refusals(card, "tensorrt", f"{wanted.rpartition('.')[2]}.0"):
                return Availability(False, state.version, refusal, "choose `runtime` onnxruntime-cuda")
        return state

    def providers(self, artifact: Artifact, options: OpenOptions) -> list[Any]:
        chosen = {"device_id": "0"}
        if options.cuda_graph:
            chosen["trt_cuda_graph_enable"] = "1"
        if folder := options.runtime_cache:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                why = f"ONNX Runtime keeps engines in a folder; {e.strerror}"
                raise UsageError(f"`runtime_cache` {folder}: {why}") from None
            chosen |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
        profiles = artifact.contract.profiles if artifact.contract else {}
        for bound in ("min", "opt", "max") if profiles else ():
            shapes = (f"{name}:{'x'.join(map(str, profile[bound]))}" for name, profile in profiles.items())
            chosen[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
        return [(self.provider, chosen), *OnnxRuntimeCUDA().providers(artifact, OpenOptions())]


class OnnxRuntimeRunner(Runner):
    """A session whose inputs and outputs are arrays in host memory."""

    def __init__(self, runtime: OnnxRuntimeCPU, artifact: Artifact, options: OpenOptions) -> None:
        import onnxruntime

        self.runtime = runtime.name
        cores = options.threads or environment.cores()
        # an inference on a core of its own waits for no other, so as many as there are cores give the most
        self.streams = options.streams or (min(MOST_STREAMS, cores) if options.throughput else 1)
        threads = max(1, cores // self.streams)
        self._threads = threads if options.threads or self.streams > 1 else None
        self._profiles = tempfile.TemporaryDirectory() if options.profile else None
        onnxruntime.set_default_logger_severity(4)
        try:
            self.session = self._opened(runtime, artifact, options)
        except Exception as e:  # its exceptions share no base class
            raise ArtifactError(f"ONNX Runtime cannot open {artifact.path}: {first_line(e)}") from None
        _LOG.debug("providers of the session: %s", ", ".join(self.session.get_providers()))
        _check_provider(self.session, runtime.provider)
        if runtime.provider == "CPUExecutionProvider":
            self.device = f"CPU, {count(threads * self.streams, 'thread')}"
            if artifact.precision == "fp16":
                self.emulates = "ONNX Runtime computes FP16 in FP32 on a CPU"
        else:
            self.device = _short(runtime.provider) + _elsewhere(self.session, runtime.provider)
        self.tf32 = runtime.uses_tf32 and gpus.has_tf32(environment.compute_capability() or "0.0")
        layouts = specs.layouts(artifact)
        self.inputs = tuple(_spec(v, layouts) for v in self.session.get_inputs())
        self.outputs = tuple(_spec(v, layouts) for v in self.session.get_outputs())

    def _opened(self, runtime: OnnxRuntimeCPU, artifact: Artifact, options: OpenOptions) -> Any:
        """A session of the artifact, or of the graph that ONNX Runtime made of it before, which computes the same."""
        providers = runtime.providers(artifact, options)
        source = kept.source(artifact) if options.cache is not None and self._profiles is None else None
        if options.cache is None or source is None:
            return self._session(artifact.path, providers)
        import onnxruntime

        name = key("onnxruntime", onnxruntime.__version__, runtime.provider, source)
        if (found := options.cache.find(name)) is not None:
            try:
                return self._session(found, providers, optimized=True)
            except Exception:  # its exceptions share no base class
                options.cache.discard(found)
        try:
            with kept.keeping(options.cache, name, artifact, source) as file:
                return self._session(artifact.path, providers, keep=file)
        except Exception:  # a full disk, or a graph that cannot be written; if it is the artifact, that says so
            return self._session(artifact.path, providers)

    def _session(
        self, file: Path, providers: Sequence[Any], *, optimized: bool = False, keep: Path | None = None
    ) -> Any:
        """A session of a file.

        Args:
            optimized: the graph was optimised before.
            keep: where to write the optimised graph.
        """
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # exceptions say it too, and the log writes names to the terminal unescaped
        if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self._threads:
            settings.intra_op_num_threads = self._threads
        if self._profiles:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(self._profiles.name) / "profile")
        if optimized:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if keep is not None:
            settings.optimized_model_filepath = str(keep)
            settings.add_session_config_entry("session.save_model_format", "ONNX")
        return onnxruntime.InferenceSession(str(file), settings, providers=providers, enable_fallback=0)

    def _run(self, arrays: Arrays) -> Arrays:
        names = [s.name for s in self.outputs]
        try:
            return dict(zip(names, self.session.run(names, arrays), strict=True))
        except Exception as e:  # its exceptions share no base class
            raise ArtifactError(f"ONNX Runtime failed: {first_line(e)}") from None

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        if self._profiles is None:
            return super()._profile(arrays, runs)
        for _ in range(runs):
            self._run(arrays)
        times: dict[str, list[float]] = {}
        for event in json.loads(Path(self.session.end_profiling()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
        return [LayerTimes(name, tuple(ms[-runs:])) for name, ms in times.items()]  # earlier ones were the warm-up

    def close(self) -> None:
        if self._profiles is not None:
            self._profiles.cleanup()


class OnnxRuntimeDeviceRunner(ContextRunner):
    """A session whose inputs and outputs are bound to GPU memory, separately for each thread.

    A CUDA graph belongs to its session and to the memory that was bound during the capture, so with `cuda_graph` each
    thread also has its own session.
    """

    in_flight = 1

    def __init__(
        self, runtime: OnnxRuntimeCPU, artifact: Artifact, options: OpenOptions, device: bindings.Cuda
    ) -> None:
        super().__init__()
        self._source = (runtime, artifact, options)
        self._cuda = device
        self._cuda_graph = bool(options.cuda_graph)
        self._first = OnnxRuntimeRunner(*self._source)
        self.runtime = runtime.name
        self.inputs, self.outputs, self.tf32 = self._first.inputs, self._first.outputs, self._first.tf32
        if self._cuda_graph and not all(s.static for s in (*self.inputs, *self.outputs)):
            raise UsageError(f"ONNX Runtime's `cuda_graph` needs fixed sizes, and {artifact.path.name} has free ones")
        self.device = f"{device.device().name}, {self._first.device}" + (", CUDA graph" if self._cuda_graph else "")

    def _new_context(self) -> OnnxRuntimeContext:
        own = self._cuda_graph and bool(self._contexts)
        session = OnnxRuntimeRunner(*self._source).session if own else self._first.session
        return OnnxRuntimeContext(self._cuda, session, self.inputs, self.outputs)

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        return self._first._profile(arrays, runs)

    def close(self) -> None:
        super().close()
        self._first.close()


class OnnxRuntimeContext(ExecutionContext):
    """A session's inputs and outputs in device memory, for one thread.

    The session computes on its own stream and waits for it; the copies are on ours. So we wait for the input copies before
    it starts, and record the next event once it has finished.
    """

    def __init__(
        self, device: bindings.Cuda, session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        super().__init__(device, inputs, outputs, cuda_graph=False)
        self._session = session
        self._output_specs = outputs
        self._binding: Any = None
        self._error = ""

    def _set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._binding = self._session.io_binding()
        for buffer, shape in zip(self._inputs, shapes, strict=True):
            buffer.resize(shape)
            self._binding.bind_input(buffer.name, "cuda", 0, buffer.dtype.type, shape, buffer.address)
        for buffer, shape in zip(self._outputs, self._output_shapes(), strict=True):
            buffer.resize(shape)
            self._binding.bind_output(buffer.name, "cuda", 0, buffer.dtype.type, shape, buffer.address)

    def _output_shapes(self) -> list[tuple[int, ...]]:
        """The model's shapes if they are fixed, otherwise those that an inference gives."""
        if all(s.static for s in self._output_specs):
            return [tuple(int(d) for d in s.shape) for s in self._output_specs]
        for buffer in self._outputs:
            self._binding.bind_output(buffer.name, "cuda")
        self._enqueue()
        found = [tuple(value.shape()) for value in self._binding.get_outputs()]
        self._binding.clear_binding_outputs()
        return found

    def _execute(self) -> bool:
        self._cuda.synchronize(self._stream)
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as e:  # its exceptions share no base class
            self._error = first_line(e)
            return False
        return True

    def _why(self) -> str:
        return f"ONNX Runtime failed on the device: {self._error}"

    def close(self) -> None:
        self._binding = self._session = None
        super().close()


def _check_provider(session: Any, wanted: str) -> None:
    """Refuse a session that uses another provider than was asked for: ONNX Runtime only logs that."""
    if (got := session.get_providers()[0]) != wanted:
        raise RuntimeUnavailable(
            f"ONNX Runtime could not use {wanted} and offered {got} instead; "
            "see its log for the missing library, or choose `runtime` onnxruntime"
        )


def _elsewhere(session: Any, wanted: str) -> str:
    """How many nodes other providers run, in words; empty if none, or if this ONNX Runtime does not tell.

    Raises:
        RuntimeUnavailable: other providers run all of them.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ""
    counts = Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    others = {_short(name): n for name, n in counts.items() if name != wanted}
    if others and not counts[wanted]:
        raise RuntimeUnavailable(
            f"{wanted} runs no node of this graph, all run on {', '.join(others)}: choose that runtime"
        )
    return "".join(f", {n} of {counts.total()} nodes on {name}" for name, n in others.items())


def installed() -> Availability:
    """Whether there is an ONNX Runtime, and only one."""
    found = environment.onnx_runtimes()
    version = environment.version(found[0]) if found else None
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None:
        return Availability(False, reason="onnxruntime is not installed", cure=environment.installs("onnxruntime"))
    if spec.origin is None:  # a folder without a package
        return Availability(False, version, "files of onnxruntime are missing", _exchange("cpu"))
    if len(found) > 1:
        return Availability(True, version, f"{' and '.join(found)} overwrite each other's files", _exchange("cpu"))
    return Availability(True, version)


def _exchange(extra: str) -> str:
    """How to get another ONNX Runtime: pip does not know that one replaces the other."""
    others = " ".join(environment.onnx_runtimes() or ["onnxruntime"])
    return f'pip uninstall {others}, then pip install "r2mrf-deploy[{extra}]"'


def _preload() -> None:
    """Load the CUDA libraries that pip installed, as importing PyTorch would. ONNX Runtime itself only looks next to its own
    folder; these may be in another one."""
    import onnxruntime

    if not hasattr(onnxruntime, "preload_dlls"):
        return
    found = importlib.util.find_spec("nvidia")
    with no_stdout():  # the session reports what is missing
        for place in (found and found.submodule_search_locations) or ():
            for folder in sorted(Path(place).glob("*/lib")):
                # what is not in the folder it takes from the system, which may have another cuDNN
                cudnn = any(folder.glob("libcudnn.so*"))
                onnxruntime.preload_dlls(cuda=not cudnn, cudnn=cudnn, directory=str(folder))
        onnxruntime.preload_dlls()


def cuda_major() -> int | None:
    """The major version of the CUDA that this ONNX Runtime was built for; None if it does not say."""
    from onnxruntime.capi import build_and_package_info

    said = str(getattr(build_and_package_info, "cuda_version", "")).partition(".")[0]
    return int(said) if said.isdigit() else None


def _wanted_tensorrt() -> str | None:
    """The TensorRT library that ONNX Runtime's provider needs; None if there is no such provider, or if it names none."""
    import onnxruntime

    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    wanted = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes()) if provider.is_file() else None
    return wanted and wanted[0].decode()


def missing_tensorrt() -> str | None:
    """The TensorRT library that ONNX Runtime's provider needs, if it does not load here; None if it does."""
    name = _wanted_tensorrt()
    if name is None:
        return None  # opening a session will tell
    _preload()
    with contextlib.suppress(ImportError):
        import tensorrt  # noqa: F401  importing it loads its libraries
    try:
        ctypes.CDLL(name)
    except OSError:
        return name
    return None


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _spec(value: Any, layouts: dict[str, Any]) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = [d if isinstance(d, (int, str)) else "?" for d in value.shape]
    return TensorSpec(name=value.name, dtype=_DTYPES.get(kind, kind), shape=shape, layout=layouts.get(value.name))
