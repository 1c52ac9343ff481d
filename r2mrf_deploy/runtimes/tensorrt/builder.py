"""ONNX to a TensorRT plan, with whichever TensorRT is installed.

The network is strongly typed if the version supports that: the graph's types alone decide the precision. TensorRT 8.6 does
not, so there the graph's types become permissions (FP16, INT8). TensorRT builds for the GPU at hand, and TensorRT-RTX for
a list of compute capabilities, with or without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import BuildError, GraphError, UsageError, did_you_mean, reading
from r2mrf_deploy.files import refuse_unwritable, write_atomically
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.tensorrt.api import Library, logger, record_errors
from r2mrf_deploy.runtimes.tensorrt.options import LEVELS, POOLS, BuildOptions
from r2mrf_deploy.runtimes.tensorrt.parser import describe

Profiles = dict[str, dict[str, list[int]]]

# The lowest first, since a graph is named after the lowest precision in it.
_PRECISIONS = {"float8_e4m3fn": "fp8", "int8": "int8", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Build:
    """One build: parse the model, then build the engine. What is in the network decides which GPUs it may be built for.

    Raises:
        BuildError, UsageError: as `refuse_options` does.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precisions: tuple[str, ...]
    """Those of the layers' outputs, the lowest first. Like `inputs` and `outputs`, known after `parse`."""

    def __init__(self, library: Library, options: BuildOptions) -> None:
        refuse_options(library, options)
        self._library = library
        self._options = options
        self._builder = library.module.Builder(logger(library))
        self._network = self._builder.create_network(_network_flags(library))
        self._parser = library.module.OnnxParser(self._network, logger(library))

    def __del__(self) -> None:
        # The parser's destructor uses the builder, so the builder goes last. Python alone would free it first.
        for made in ("_parser", "_network", "_builder"):
            self.__dict__.pop(made, None)

    def parse(self, model: Path, content: bytes | None = None) -> None:
        """Read an ONNX file, or `content` in its place, into the network.

        Raises:
            GraphError: it is not an ONNX model.
            BuildError: TensorRT does not accept it. Names the node, its operator, the reason and the cure.
        """
        if not (self._parser.parse_from_file(str(model)) if content is None else self._parser.parse(content)):
            raise describe(self._parser, model)
        if not self._network.num_outputs:  # the parser reads a text file as an empty model
            raise GraphError(f"{model} is not an ONNX model, or is empty")
        network, library = self._network, self._library
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        self.inputs = tuple(library.spec(t.name, t.dtype, t.shape, t.get_dimension_name) for t in inputs)
        self.outputs = tuple(library.spec(t.name, t.dtype, t.shape, t.get_dimension_name) for t in outputs)
        layers = (network.get_layer(i) for i in range(network.num_layers))
        types = {library.dtype(layer.get_output(j).dtype) for layer in layers for j in range(layer.num_outputs)}
        self.precisions = tuple(name for dtype, name in _PRECISIONS.items() if dtype in types)

    def check(self, manifest: Contract) -> None:
        """Compare the network with the model's manifest.

        Raises:
            BuildError: an input or output differs, or nothing in the graph has the manifest's precision.
        """
        for what, found, said in (("input", self.inputs, manifest.inputs), ("output", self.outputs, manifest.outputs)):
            if differs := specs.difference(found, said):
                raise BuildError(f"{what} of the model: {differs}; export it again")
        wanted, held = manifest.precision, self.precisions
        if _strongly_typed(self._library) and wanted in _PRECISIONS.values() and wanted not in held:
            raise BuildError(f"the manifest says {wanted}, but the graph holds only {', '.join(held)}: export it again")

    def build(
        self, profiles: Profiles, compute_capabilities: Sequence[int] = (), progress: ProgressCallback = silent
    ) -> bytes:
        """Build the engine and return its plan.

        Args:
            profiles: min, opt and max shape of each input with free dimensions (from `resolve_profiles`).
            compute_capabilities: those to build for with TensorRT-RTX (86, 120); by default the library chooses.
            progress: called during the build, if this version reports progress. An exception that it raises ends the build.

        Raises:
            BuildError: TensorRT refused or failed. Gives TensorRT's reason.
        """
        # Not earlier: a parser whose network has an error recorder crashes in its destructor (TensorRT-RTX 1.7).
        self._messages = record_errors(self._library, self._builder)
        config = self._builder.create_builder_config()
        _apply_options(self._library, config, self._options)
        _allow_precisions(self._library, config, self.precisions)
        self._add_profile(config, profiles)
        self._set_targets(config, compute_capabilities)
        cache = self._attach_timing_cache(config)
        monitor = _monitor(self._library, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        serialized = self._builder.build_serialized_network(self._network, config)
        if monitor is not None and monitor.raised is not None:
            raise monitor.raised
        if serialized is None:
            reason = self._messages.first()
            cure = "; export with `precision` fp16, or leave that GPU out" if "for Turing (SM75)" in reason else ""
            raise BuildError(f"{self._library.title} {self._library.version} failed: {reason}{cure}")
        if cache is not None and self._options.timing_cache_file is not None:
            write_atomically(self._options.timing_cache_file, bytes(cache.serialize()))
        return bytes(serialized)

    def _add_profile(self, config: Any, profiles: Profiles) -> None:
        if not profiles:
            return
        profile = self._builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, shapes["min"], shapes["opt"], shapes["max"])
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{self._library.title} rejects the profile {profiles}: {self._messages.first()}")

    def _set_targets(self, config: Any, compute_capabilities: Sequence[int]) -> None:
        if not compute_capabilities:
            return
        config.num_compute_capabilities = len(compute_capabilities)
        for index, sm in enumerate(compute_capabilities):
            member = self._library.member("ComputeCapability", f"SM{sm}")
            if member is None or not config.set_compute_capability(member, index):
                raise BuildError(f"{self._library.title} {self._library.version} does not build for SM {sm}")

    def _attach_timing_cache(self, config: Any) -> Any | None:
        file = self._options.timing_cache_file
        if file is None:
            return None
        refuse_unwritable(file)
        with reading(f"`timing_cache_file` {file}", UsageError, "is not a timing cache", "delete it"):
            cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
            if cache is None or not config.set_timing_cache(cache, False):
                raise BuildError(f"`timing_cache_file` {file} was made for another GPU or version: delete it")
        return cache


def refuse_options(library: Library, options: BuildOptions) -> None:
    """Refuse what this library does not support, so that nothing is silently ignored.

    Raises:
        BuildError: an option is not supported. Names the option and the alternative.
        UsageError: a value is out of range, or there is no such memory pool.
    """
    rtx, name = library.is_rtx, f"{library.title} {library.version}"
    compatibility, strip = _compatibility_level(library, options), library.member("BuilderFlag", "STRIP_PLAN")
    gpus_cure = f"{options.hardware_compatibility_level} needs a later version, or build on each GPU"
    if rtx:
        gpus_cure = "name each GPU with `gpus`: one plan serves them all"
    cache_cure = "its timing cache does nothing; what it compiles on the GPU is kept in its runtime cache"
    supported = (  # (option, whether this library supports it, what to do instead)
        ("timing_cache_file", not rtx, cache_cure),
        ("version_compatible", not rtx, "build again with each version"),
        ("hardware_compatibility_level", not rtx and compatibility is not None, gpus_cure),
        ("strip_weights", not rtx and strip is not None, "ship the plan with its weights"),
        # TensorRT-RTX accepts the level, but writes the same plan for every one.
        ("builder_optimization_level", not rtx, "it chooses its kernels on the GPU, not in the build"),
    )
    for option, has, instead in supported:
        if options.chosen(option) and not has:
            raise BuildError(f"{name} does not support `{option}`: {instead}")
    if (effort := options.builder_optimization_level) is not None and not 0 <= effort <= 5:
        raise UsageError(f"`builder_optimization_level` {effort}: choose from 0 (fast build) to 5 (fast engine)")
    if (streams := options.max_aux_streams) is not None and streams < 0:
        raise UsageError(f"`max_aux_streams` {streams}: it must be 0 or more")
    for pool in options.mem_pool_size:
        if pool not in POOLS:
            raise UsageError(f"no memory pool {pool!r}: {did_you_mean(pool, POOLS)}")
        if (rtx and pool.startswith("dla")) or library.member("MemoryPoolType", POOLS[pool]) is None:
            raise BuildError(f"{name} does not support `mem_pool_size` {pool}: it has no such pool")


def _apply_options(library: Library, config: Any, options: BuildOptions) -> None:
    for pool, size in options.mem_pool_size.items():
        config.set_memory_pool_limit(library.member("MemoryPoolType", POOLS[pool]), size)
    for option in ("builder_optimization_level", "max_aux_streams"):
        if options.chosen(option):
            setattr(config, option, getattr(options, option))
    if options.version_compatible:
        config.set_flag(library.module.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(library.module.BuilderFlag.STRIP_PLAN)
    if options.no_tf32:
        config.clear_flag(library.module.BuilderFlag.TF32)
    if options.profiling_verbosity is not None:
        config.profiling_verbosity = library.member("ProfilingVerbosity", options.profiling_verbosity.upper())
    if (level := _compatibility_level(library, options)) is not None:
        config.hardware_compatibility_level = level
    # The contexts of several threads share the only profile. Since TensorRT 10 that is always allowed.
    if (sharing := library.member("PreviewFeature", "PROFILE_SHARING_0806")) is not None:
        config.set_preview_feature(sharing, True)


def _compatibility_level(library: Library, options: BuildOptions) -> Any | None:
    """TensorRT's name for the level; None if no level was chosen, or this version does not have it."""
    level = options.hardware_compatibility_level
    return None if level is None else library.member("HardwareCompatibilityLevel", LEVELS[level])


def _network_flags(library: Library) -> int:
    """Strongly typed where this version can. Before 10, batches are implicit unless this is asked for too."""
    names = ["STRONGLY_TYPED"] if library.major >= 10 or library.is_rtx else ["STRONGLY_TYPED", "EXPLICIT_BATCH"]
    flags = (library.member("NetworkDefinitionCreationFlag", name) for name in names)
    return sum(1 << int(flag) for flag in flags if flag is not None)


def _strongly_typed(library: Library) -> bool:
    return library.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") is not None


def _allow_precisions(library: Library, config: Any, precisions: Sequence[str]) -> None:
    """Permit the graph's reduced precisions if the network is not strongly typed (8.6)."""
    if _strongly_typed(library):
        return
    for precision in precisions:
        if (flag := library.member("BuilderFlag", precision.upper())) is not None:
            config.set_flag(flag)


def resolve_profiles(inputs: Sequence[TensorSpec], options: BuildOptions, manifest: Contract | None) -> Profiles:
    """The min, opt and max shape of each input with free dimensions.

    Shapes in the options take precedence over the manifest's. A shape that neither gives is the nearest one that is given.

    Raises:
        UsageError: a name or shape does not fit the model, min ≤ opt ≤ max does not hold, or no shape is given.
    """
    given = {"min": options.min_shapes, "opt": options.opt_shapes, "max": options.max_shapes}
    free = {s.name: s for s in inputs if not s.static}
    for kind, shapes in given.items():
        for name in shapes:
            if name not in free:
                known = f"choose from {', '.join(sorted(free))}" if free else "this model's shapes are all fixed"
                raise UsageError(f"`{kind}_shapes` {name}: no input of that name has free dimensions; {known}")
    return {name: _profile(spec, given, manifest) for name, spec in free.items()}


def _profile(spec: TensorSpec, given: dict[str, Any], manifest: Contract | None) -> dict[str, list[int]]:
    default = manifest.profiles.get(spec.name, {}) if manifest else {}
    low, opt, high = (given[kind].get(spec.name) or default.get(kind) for kind in ("min", "opt", "max"))
    opt = opt or high or low
    if opt is None:
        example = "x".join(str(d if isinstance(d, int) else 320 if axis else 1) for axis, d in enumerate(spec.shape))
        raise UsageError(
            f"{spec} has free dimensions: give `opt_shapes` {spec.name}:{example}, `min_shapes` and `max_shapes`"
        )
    shapes = {"min": list(low or opt), "opt": list(opt), "max": list(high or opt)}
    for kind in ("opt", "min", "max"):  # opt first, since the others may be taken from it
        shape = shapes[kind]
        if not spec.accepts(tuple(shape)):
            raise UsageError(f"`{kind}_shapes` {spec.name}:{'x'.join(map(str, shape))} does not fit {spec}")
    if not all(a <= b <= c for a, b, c in zip(*shapes.values(), strict=True)):
        raise UsageError(f"the profile of {spec.name} is not min ≤ opt ≤ max: {shapes}")
    return shapes


def _monitor(library: Library, progress: ProgressCallback) -> Any | None:
    """A progress monitor for TensorRT (since version 9) that calls `progress`; None before."""
    base: Any = getattr(library.module, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):
        """TensorRT's threads call this, so an exception may not pass through. It is kept in `raised` and stops the build."""

        def __init__(self) -> None:
            base.__init__(self)
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 0))

        def _tell(self, phase: str, done: int) -> bool:
            if self.raised is None:
                try:
                    progress(Progress(phase, done, self._steps.get(phase, done)))
                except BaseException as e:
                    self.raised = e
            return self.raised is None

    return Monitor()
