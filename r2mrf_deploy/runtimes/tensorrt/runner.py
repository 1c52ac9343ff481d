"""TensorRT: plans on an NVIDIA GPU, run by the library that built them, `tensorrt` or `tensorrt_rtx`.

Before the driver sees a plan, its header, its version and its manifest are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2mrf_deploy import gpus
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, UsageError, reading
from r2mrf_deploy.files import refuse_unwritable, write_atomically
from r2mrf_deploy.formats import plan
from r2mrf_deploy.formats.plan import PlanHeader
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.base import Arrays, Availability, LayerTimes, OpenOptions, Runner, Runtime
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.cuda.execution_context import PREPARING, ContextRunner
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.api import Library
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
        builds = "tensorrt_rtx" in found
        try:
            device = bindings.device()
        except bindings.CudaError as e:
            what = "plans can be built here, not run" if builds else "plans can be neither built nor run here"
            return Availability(False, version, f"{what}: {e.reason}", e.cure, {"builds": builds})
        refusals = [refusal for flavour in found if (refusal := api.driver_refusal(flavour))]
        if len(refusals) == len(found):
            return Availability(False, version, "; ".join(refusals), api.NEWER_DRIVER, {"builds": builds})
        card = gpus.alike(device.name, device.compute_capability)
        unsupported = [why for flavour, v in found.items() for why in (gpus.refusals(card, flavour, v) if card else ())]
        if len(unsupported) == len(found):
            return Availability(False, version, "; ".join(unsupported), "see docs/gpu.md", {"builds": builds})
        details = {"builds": True, "device": device.name, "compute_capability": device.compute_capability}
        return Availability(True, version, details=details)

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        header: PlanHeader = artifact.header
        if artifact.contract is not None:
            plan.check_manifest(header, artifact.contract, artifact.path.name)
        library = api.load(header.flavour)
        plan.check_version(header, library.version, artifact.path.name, _version_compatible(artifact.contract))
        if options.runtime_cache and not library.is_rtx:
            raise UsageError("only TensorRT-RTX has a `runtime_cache`: TensorRT's plans are already compiled")

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        library = api.load(artifact.header.flavour)
        if refusal := api.driver_refusal(library.flavour):
            raise RuntimeUnavailable(f"{refusal}: {api.NEWER_DRIVER}")
        with PREPARING:
            return TensorRTRunner(library, artifact, options, bindings.provider(options.buffers))


class TensorRTRunner(ContextRunner):
    """An engine on the GPU, with an execution context for every thread that runs it."""

    runtime = "tensorrt"

    def __init__(self, library: Library, artifact: Artifact, options: OpenOptions, provider: bindings.Cuda) -> None:
        super().__init__()
        device, contract = provider.device(), artifact.contract
        self.device = f"{device.name} ({library.title} {library.version})"
        built_without = contract is not None and contract.target is not None and "noTF32" in contract.target.options
        self.tf32 = gpus.has_tf32(device.compute_capability) and not built_without
        self._library = library
        self._artifact = artifact
        self._options = options
        self._cuda = provider
        self._capture = options.cuda_graph is not False and not options.profile
        self._runtime = library.module.Runtime(api.logger(library))
        self._messages = api.record_errors(library, self._runtime)
        if _version_compatible(contract):  # such a plan brings its own runtime, which is host code
            self._runtime.engine_host_code_allowed = True
        content = artifact.path.read_bytes()
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            why = [self._messages.last(), *_diagnostics(library, self._runtime, content)]
            raise ArtifactError(
                f"{artifact.path} does not open on the {device.name} ({device.compute_capability}): {', '.join(why)}; "
                "build it for this GPU with `r2mrf build`"
            )
        self.inputs = self._specs("INPUT", contract.inputs if contract else None)
        self.outputs = self._specs("OUTPUT", contract.outputs if contract else None)
        self._config: Any = None
        self._cache: Any = None
        if library.is_rtx:
            self._configure(options.runtime_cache)

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        if not self._options.profile:
            return super()._profile(arrays, runs)
        return self._context().profile(arrays, runs, self._library.module.IProfiler)

    def close(self) -> None:
        super().close()
        if self._cache is not None and self._options.runtime_cache is not None:
            write_atomically(self._options.runtime_cache, bytes(self._cache.serialize()))
        self._config = self._cache = self._engine = self._runtime = None  # each refers to the next ones

    def _new_context(self) -> TensorRTContext:
        trt_context = self._engine.create_execution_context(*([self._config] if self._config is not None else []))
        if trt_context is None:
            raise RuntimeUnavailable(f"TensorRT has no room for another context: {self._messages.last()}")
        spin = self._options.spin_wait
        return TensorRTContext(self._cuda, trt_context, self.inputs, self.outputs, self._messages, self._capture, spin)

    def _specs(self, mode: str, said: Sequence[TensorSpec] | None) -> tuple[TensorSpec, ...]:
        """The engine's inputs or outputs. The manifest also knows layouts and the names of free dimensions."""
        engine, wanted = self._engine, self._library.member("TensorIOMode", mode)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        names = [name for name in names if engine.get_tensor_mode(name) == wanted]
        found = [self._library.spec(n, engine.get_tensor_dtype(n), engine.get_tensor_shape(n)) for n in names]
        if said is not None and (differs := specs.difference(found, said)):
            raise ArtifactError(f"{self._artifact.path}: the plan has {differs}; build it again")
        return tuple(found if said is None else said)

    def _configure(self, cache_file: Path | None) -> None:
        """Choose how TensorRT-RTX runs the engine. If it can capture CUDA graphs itself, then we do not."""
        config = self._config = self._engine.create_runtime_config()
        # Compile at a shape's first inference, not in the background of later ones, so that measured times are lasting.
        if (eager := self._library.member("DynamicShapesKernelSpecializationStrategy", "EAGER")) is not None:
            config.dynamic_shapes_kernel_specialization_strategy = eager
        whole = self._library.member("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
        if self._capture and whole is not None:
            config.cuda_graph_strategy = whole
            self._capture = False
        if cache_file is not None:
            refuse_unwritable(cache_file)
            self._cache = config.create_runtime_cache()
            if cache_file.exists():  # it is ignored if another GPU or version made it, and replaced on closing
                with reading(f"`runtime_cache` {cache_file}", UsageError, "is not a runtime cache", "delete it"):
                    self._cache.deserialize(cache_file.read_bytes())
            config.set_runtime_cache(self._cache)


def _version_compatible(contract: Contract | None) -> bool:
    return contract is not None and contract.target is not None and "versionCompatible" in contract.target.options


def _diagnostics(library: Library, runtime: Any, plan: bytes) -> list[str]:
    """Why TensorRT-RTX finds a plan invalid here; empty if the library cannot say."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(plan)
    reasons = library.module.EngineInvalidityDiagnostics.__members__
    return [name.lower().replace("_", " ") for name, bit in reasons.items() if int(found) & int(bit)]
