"""OpenVINO on the CPU: its own `.xml` models, and ONNX files directly."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import environment
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, last_line
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.model_cache import ModelCache, key
from r2mrf_deploy.runtimes import kept, specs
from r2mrf_deploy.runtimes.base import MOST_STREAMS, Arrays, Availability, LayerTimes, OpenOptions, Runner, Runtime
from r2mrf_deploy.wording import count

_LOG = logging.getLogger(__name__)
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8", "i64": "int64"}


class OpenVINO(Runtime):
    name = "openvino"
    title = "OpenVINO"
    suffixes = (".xml", ".onnx")
    supported_options = frozenset({"threads", "streams", "throughput", "cache", "profile"})

    def availability(self) -> Availability:
        if not environment.importable("openvino"):
            return Availability(False, reason="openvino is not installed", cure=environment.installs("openvino"))
        return Availability(True, environment.version("openvino"))

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        return OpenVINORunner(artifact, options)


class OpenVINORunner(Runner):
    runtime = "openvino"

    def __init__(self, artifact: Artifact, options: OpenOptions) -> None:
        import openvino

        # left to itself, OpenVINO computes FP32 graphs in BF16 on CPUs that have it
        precision = "bf16" if artifact.precision == "bf16" else "f32"
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if options.threads:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        if options.streams:
            settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": options.streams}
        elif options.throughput:
            settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": MOST_STREAMS}
        if options.profile:
            settings["PERF_COUNT"] = True
        with _FIRST:
            _touch(openvino)
        self.emulates = _emulated(artifact, core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        try:
            model, self._kept = _compiled(artifact, settings, None if options.profile else options.cache)
        except Exception as e:  # RuntimeError, or one of OpenVINO's own
            raise ArtifactError(f"OpenVINO cannot open {artifact.path}: {last_line(e)}") from None
        _LOG.debug("compiled with %s", settings)
        threads = model.get_property("INFERENCE_NUM_THREADS")
        if options.streams or options.throughput:
            self.streams = options.streams or model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.device = f"CPU, {count(threads, 'thread')}, {_computed(model.get_runtime_model()) or precision}"
        self._model = model
        self._own = threading.local()
        self._profiled = options.profile
        layouts = specs.layouts(artifact)
        self.inputs = tuple(spec(port, layouts) for port in model.inputs)
        self.outputs = tuple(spec(port, layouts) for port in model.outputs)

    @property
    def _request(self) -> Any:
        """This thread's request: one request refuses a second inference while it computes."""
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        return self._own.request

    def _run(self, arrays: Arrays) -> Arrays:
        try:
            self._request.infer(arrays, share_inputs=True)
        except RuntimeError as e:
            raise ArtifactError(f"OpenVINO failed: {last_line(e)}") from None
        # copied, because the next inference overwrites the tensors
        return {s.name: np.array(self._request.get_tensor(s.name).data) for s in self.outputs}

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        if not self._profiled:
            return super()._profile(arrays, runs)
        merged = _merged_names(self._model.get_runtime_model())
        times: dict[str, list[float]] = {}
        for _ in range(runs):
            self._run(arrays)
            for layer in self._request.get_profiling_info():
                if layer.status == layer.Status.EXECUTED and layer.node_type not in ("Parameter", "Result", "Const"):
                    name = merged.get(layer.node_name, layer.node_name)
                    times.setdefault(name, []).append(layer.real_time.total_seconds() * 1e3)
        return [LayerTimes(name, tuple(ms)) for name, ms in times.items()]


@functools.cache
def core() -> Any:
    """OpenVINO's core: one for as long as the process lives.

    The CPU plugin of a core puts another stack under signal handlers (its AMX kernels need it large), and takes it away when
    the core goes. Of two cores, the one that goes last puts back the stack of the one that is gone already, and the next
    signal, such as Ctrl-C, is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _compiled(
    artifact: Artifact, settings: Mapping[str, Any], cache: ModelCache | None
) -> tuple[Any, np.ndarray | None]:
    """The artifact compiled for this CPU, or what was compiled of it before with the same settings; and the memory that it
    reads, which must live as long."""
    source = kept.source(artifact) if cache is not None else None
    if cache is None or source is None:
        return core().compile_model(str(artifact.path), "CPU", dict(settings)), None
    import openvino

    name = key("openvino", openvino.get_version(), source, sorted(settings.items()))
    if (found := cache.find(name)) is not None:
        try:
            return _imported(found, settings)
        except Exception:  # RuntimeError, or one of OpenVINO's own
            cache.discard(found)
    model = core().compile_model(str(artifact.path), "CPU", dict(settings))
    with suppress(OSError, RuntimeError), kept.keeping(cache, name, artifact, source) as file:
        if file is not None:
            blob = model.export_model()
            file.write_bytes(blob if isinstance(blob, bytes) else blob.getbuffer())
    return model, None


def _imported(file: Path, settings: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
    """What was compiled before. It is read where it lies, and stays readable after the file is removed."""
    import openvino

    mapped = np.memmap(file, np.uint8, "c")  # private: OpenVINO wants memory that may be written
    return core().import_model(openvino.Tensor(mapped, shared_memory=True), "CPU", dict(settings)), mapped


_FIRST = threading.Lock()


def _touch(openvino: Any) -> None:
    """Make a tensor and read it, in one thread.

    OpenVINO makes its tables of numpy's types at their first use. Two threads that do so at once may wait for each other for
    ever, one with the table's lock and one with the interpreter's: that was seen in 3 of 180 runs of `predict`.
    """
    values = openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True).data
    assert not values.any()


def _emulated(artifact: Artifact, capabilities: Collection[str]) -> str:
    """Why this CPU computes in another precision than the artifact's; empty if it does not."""
    precision = artifact.precision
    if precision == "fp16":
        return "OpenVINO computes FP16 in FP32 on a CPU"
    if precision in ("bf16", "int8") and precision.upper() not in capabilities:
        return f"this CPU has no {precision.upper()} instructions, so OpenVINO computes it in FP32"
    if precision == "bf16" and artifact.contract and artifact.contract.kept:
        return "OpenVINO computes all of a BF16 graph in BF16, including the nodes kept in FP32"
    return ""


def _computed(runtime_model: Any) -> str:
    """The precision that convolutions were compiled for; empty if there are none."""
    infos = [op.get_rt_info() for op in runtime_model.get_ordered_ops()]
    kinds = [str(i["runtimePrecision"].astype(str)) for i in infos if "onvolution" in str(i["layerType"].astype(str))]
    counts = Counter("int8" if kind in ("u8", "i8") else kind for kind in kinds)
    if len(counts) < 2:
        return next(iter(counts), "")
    low = [f"{kind} in {count} of {len(kinds)} convolutions" for kind, count in counts.items() if kind != "f32"]
    return ", ".join([*low, "the rest f32"])


def _merged_names(runtime_model: Any) -> dict[str, str]:
    """Executed layer -> the names of the nodes that it stands for, where OpenVINO tells them."""
    names = {}
    for op in runtime_model.get_ordered_ops():
        info = op.get_rt_info()
        if "originalLayersNames" in info and (original := str(info["originalLayersNames"].astype(str))):
            names[op.get_friendly_name()] = " + ".join(original.split(","))
    return names


def spec(port: Any, layouts: Mapping[str, Any]) -> TensorSpec:
    """An OpenVINO model's input or output; a free dimension is named after its tensor and axis.

    Args:
        layouts: tensor name -> layout, which OpenVINO does not know. If a tensor has several names, one in here is taken.
    """
    kind, names = port.get_element_type().get_type_name(), port.get_names()
    # a tensor has several names where OpenVINO removed a node that had no effect
    name = next((known for known in layouts if known in names), None) or port.get_any_name()
    shape: list[int | str] = [
        d.get_length() if d.is_static else f"{name}_{i}" for i, d in enumerate(port.get_partial_shape())
    ]
    return TensorSpec(name=name, dtype=_DTYPES.get(kind, kind), shape=shape, layout=layouts.get(name))
