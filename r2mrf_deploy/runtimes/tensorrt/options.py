"""The options for building an engine, named after trtexec's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from r2mrf_deploy.gpus import Flavour

Shapes = Mapping[str, tuple[int, ...]]

# trtexec's names for the memory pools -> members of MemoryPoolType
POOLS = {
    "workspace": "WORKSPACE",
    "dlaSRAM": "DLA_MANAGED_SRAM",
    "dlaLocalDRAM": "DLA_LOCAL_DRAM",
    "dlaGlobalDRAM": "DLA_GLOBAL_DRAM",
    "tacticSharedMem": "TACTIC_SHARED_MEMORY",
}

# likewise -> members of HardwareCompatibilityLevel
LEVELS = {"none": "NONE", "ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine. None leaves a choice to the builder; an option that it does not support is an error."""

    min_shapes: Shapes = field(default_factory=dict)
    """For each input with free dimensions, the smallest shape of the profile."""
    opt_shapes: Shapes = field(default_factory=dict)
    """The shape to optimise for."""
    max_shapes: Shapes = field(default_factory=dict)
    """The largest shape."""
    mem_pool_size: Mapping[str, int] = field(default_factory=dict)
    """Bytes by pool, by trtexec's names (`workspace`, ...)."""
    builder_optimization_level: int | None = None
    """0 (fast build) to 5 (fast engine)."""
    timing_cache_file: Path | None = None
    """Read if it exists, and updated after the build."""
    version_compatible: bool = False
    """Let later versions with the same major version open the plan."""
    hardware_compatibility_level: Literal["none", "ampere+", "sameComputeCapability"] | None = None
    """Other GPUs that the plan runs on."""
    strip_weights: bool = False
    """Leave the weights out of the plan, to be refitted."""
    no_tf32: bool = False
    """Compute FP32 in full precision, not as TF32."""
    max_aux_streams: int | None = None
    """The number of streams beside the main one."""
    profiling_verbosity: Literal["layer_names_only", "detailed", "none"] | None = None
    """How much the plan says about its layers."""
    library: Flavour | None = None
    """Which TensorRT builds; by default `tensorrt` if it is installed and its GPU fits, else `tensorrt_rtx`."""

    def chosen(self, name: str) -> bool:
        """Whether an option differs from its default."""
        return getattr(self, name) != getattr(BuildOptions(), name)

    def recorded(self) -> dict[str, str]:
        """The chosen options that change the engine, by trtexec's names, for the manifest."""
        names = {
            "mem_pool_size": "memPoolSize",
            "builder_optimization_level": "builderOptimizationLevel",
            "version_compatible": "versionCompatible",
            "hardware_compatibility_level": "hardwareCompatibilityLevel",
            "strip_weights": "stripWeights",
            "no_tf32": "noTF32",
            "max_aux_streams": "maxAuxStreams",
            "profiling_verbosity": "profilingVerbosity",
        }
        return {title: _text(getattr(self, name)) for name, title in names.items() if self.chosen(name)}


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{pool}:{size}B" for pool, size in value.items())
    return "true" if value is True else str(value)
