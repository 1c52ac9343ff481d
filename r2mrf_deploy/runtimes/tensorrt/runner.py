"""TensorRT: plans on an NVIDIA GPU, with `tensorrt` or `tensorrt_rtx`, whichever built the plan.

A plan is checked before the driver sees it: its header, the version against the installed library, the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, UsageError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.formats import plan
from r2mrf_deploy.formats.plan import PlanHeader
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.base import Arrays, Availability, LayerTimes, OpenOptions, Runner, Runtime
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.cuda.execution_context import PREPARING, ContextRunner
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.api import Library, Messages
from r2mrf_deploy.runtimes.tensorrt.execution_context import TensorRTContext


class TensorRT(Runtime):
    name = "tensorrt"
    title = "TensorRT"
    suffixes = (".plan",)
    supported_options = frozenset({"cuda_graph", "spin_wait", "buffers", "runtime_cache", "profile"})

    def availability(self) -> Availability:
        found = api.installed()
        if not found:
            cure = 'pip install "r2mrf-deploy[tensorrt]" (or "[tensorrt-rtx]", which builds plans on any machine)'
            return Availability(False, None, "neither tensorrt nor tensorrt_rtx is installed", cure)
        version = ", ".join(f"{flavour} {v}" for flavour, v in found.items())
        try:
            device = bindings.device()
        except bindings.CudaError as e:
            builds = "tensorrt_rtx" in found
            what = "plans can be built here, not run" if builds else "plans can be neither built nor run here"
            return Availability(False, version, f"{what}: {e.reason}", e.cure, {"builds": builds})
        refusals = [refusal for flavour in found if (refusal := api.driver_refusal(flavour))]
        if len(refusals) == len(found):
            can = {"builds": "tensorrt_rtx" in found}
            return Availability(False, version, "; ".join(refusals), api.NEWER_DRIVER, can)
        details = {"builds": True, "device": device.name, "compute_capability": device.compute_capability}
        return Availability(True, version, details=details)

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        header: PlanHeader = artifact.header
        if artifact.contract is not None:
            plan.check_manifest(header, artifact.contract, artifact.path.name)
        library = api.load(header.flavour)
        plan.check_version(header, library.version, artifact.path.name, _version_compatible(artifact.contract))
        if options.runtime_cache and not library.is_rtx:
            raise UsageError("only TensorRT-RTX has a `runtime_cache`: this plan is TensorRT's and is compiled already")

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        library = api.load(artifact.header.flavour)
        if refusal := api.driver_refusal(library.flavour):
            raise RuntimeUnavailable(f"{refusal}: {api.NEWER_DRIVER}")
        with PREPARING:
            return TensorRTRunner(library, artifact, options, bindings.provider(options.buffers))


class TensorRTRunner(ContextRunner):
    """An engine on the GPU, and an execution context for every thread that runs it."""

    runtime = "tensorrt"

    def __init__(
        self,
        library: Library,
        artifact: Artifact,
        options: OpenOptions,
        provider: bindings.Cuda,
    ) -> None:
        super().__init__()
        device = provider.device()
        self.device = f"{device.name} ({library.title} {library.version})"
        self._library = library
        self._options = options
        self._cuda_graph = options.cuda_graph is not False and not options.profile
        self._cuda = provider
        self._runtime = library.module.Runtime(api.logger(library))
        self._messages = api.record_errors(library, self._runtime)
        if _version_compatible(artifact.contract):  # such a plan brings its own runtime, which is host code
            self._runtime.engine_host_code_allowed = True
        self._engine = _deserialize(library, self._runtime, artifact.path, device, self._messages)
        self._factory = ContextFactory(library, self._engine, self._cuda_graph, options.runtime_cache)
        self.inputs, self.outputs = _specs(library, self._engine)
        if artifact.contract is not None:
            self.inputs = _agreed(self.inputs, artifact.contract.inputs, artifact.path)
            self.outputs = _agreed(self.outputs, artifact.contract.outputs, artifact.path)

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        if not self._options.profile:
            return super()._profile(arrays, runs)
        return self._context().profile(arrays, runs, self._library.module.IProfiler)

    def close(self) -> None:
        """Free the device's memory. No thread may be running."""
        super().close()
        self._factory.close()
        self._engine = None
        self._runtime = None

    def _new_context(self) -> TensorRTContext:
        trt_context = self._factory.create()
        if trt_context is None:
            raise RuntimeUnavailable(f"TensorRT has no room for another context: {self._messages.last()}")
        capture = self._cuda_graph and not self._factory.captures_itself
        spin = self._options.spin_wait
        return TensorRTContext(self._cuda, trt_context, self.inputs, self.outputs, self._messages, capture, spin)


def _version_compatible(contract: Contract | None) -> bool:
    return contract is not None and contract.target is not None and "versionCompatible" in contract.target.options


class ContextFactory:
    """Makes TensorRT's contexts of an engine. TensorRT-RTX compiles for the GPU now, and captures CUDA graphs itself."""

    def __init__(self, library: Library, engine: Any, cuda_graph: bool, cache_file: Path | None) -> None:
        self._engine = engine
        self._config: Any | None = None
        self._cache: Any | None = None
        self._cache_file = cache_file
        self.captures_itself = False
        if not library.is_rtx:
            return
        self._config = engine.create_runtime_config()
        # Compiled at a shape's first inference, not behind the following ones: what is measured is what stays.
        eager = library.member("DynamicShapesKernelSpecializationStrategy", "EAGER")
        if eager is not None:
            self._config.dynamic_shapes_kernel_specialization_strategy = eager
        whole = library.member("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
        if cuda_graph and whole is not None:
            self._config.cuda_graph_strategy = whole
            self.captures_itself = True
        if cache_file is not None:
            self._cache = self._config.create_runtime_cache()
            if cache_file.exists():
                self._cache.deserialize(
                    cache_file.read_bytes()
                )  # another GPU's or version's is not taken, and rewritten
            self._config.set_runtime_cache(self._cache)

    def create(self) -> Any:
        """A context of TensorRT's, or None where the device has no room for one."""
        return self._engine.create_execution_context(*([] if self._config is None else [self._config]))

    def close(self) -> None:
        """Keep what was compiled."""
        if self._cache is not None and self._cache_file is not None:
            write_atomically(self._cache_file, bytes(self._cache.serialize()))
        self._engine = self._config = self._cache = None


def _deserialize(library: Library, runtime: Any, artifact: Path, device: bindings.Device, messages: Messages) -> Any:
    plan = artifact.read_bytes()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        why = [messages.last(), *_diagnostics(library, runtime, plan)]
        raise ArtifactError(
            f"{artifact} does not open on the {device.name} ({device.compute_capability}): {', '.join(why)}; "
            "build it for this GPU with `r2mrf build`"
        )
    return engine


def _diagnostics(library: Library, runtime: Any, plan: bytes) -> list[str]:
    """Why TensorRT-RTX finds a plan invalid here; empty where the library cannot say."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(plan)
    reasons = library.module.EngineInvalidityDiagnostics.__members__
    return [name.lower().replace("_", " ") for name, bit in reasons.items() if int(found) & int(bit)]


def _specs(library: Library, engine: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        dims = engine.get_tensor_shape(name)
        shape: list[int | str] = [int(d) if d >= 0 else f"{name}_{axis}" for axis, d in enumerate(dims)]
        spec = TensorSpec(name=name, dtype=library.dtype(engine.get_tensor_dtype(name)), shape=shape)
        is_input = engine.get_tensor_mode(name) == library.member("TensorIOMode", "INPUT")
        (inputs if is_input else outputs).append(spec)
    return tuple(inputs), tuple(outputs)


def _agreed(found: Sequence[TensorSpec], said: Sequence[TensorSpec], artifact: Path) -> tuple[TensorSpec, ...]:
    """The manifest's specs, which know layouts and the names of free dimensions, where the engine has the same."""
    if differs := specs.difference(found, said):
        raise ArtifactError(f"{artifact}: the plan has {differs}; build it again")
    return tuple(said)
