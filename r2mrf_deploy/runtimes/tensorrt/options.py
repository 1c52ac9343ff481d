"""The options of an engine's build, named as trtexec names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from r2mrf_deploy.gpus import Flavour

Shapes = Mapping[str, tuple[int, ...]]

# trtexec's names of the memory pools -> members of MemoryPoolType
POOLS = {
    "workspace": "WORKSPACE",
    "dlaSRAM": "DLA_MANAGED_SRAM",
    "dlaLocalDRAM": "DLA_LOCAL_DRAM",
    "dlaGlobalDRAM": "DLA_GLOBAL_DRAM",
    "tacticSharedMem": "TACTIC_SHARED_MEMORY",
}


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine. None leaves a choice to the builder; what the builder does not support is refused by name."""

    min_shapes: Shapes = field(default_factory=dict)
    """For each input with free dimensions, the smallest shape of the profile."""
    opt_shapes: Shapes = field(default_factory=dict)
    """The shape to be fastest at."""
    max_shapes: Shapes = field(default_factory=dict)
    """The largest shape."""
    mem_pool_size: Mapping[str, int] = field(default_factory=dict)
    """Bytes by pool, by trtexec's names (`workspace`, ...)."""
    builder_optimization_level: int | None = None
    """0 (quick build) to 5 (quick engine)."""
    timing_cache_file: Path | None = None
    """Read where it exists, written back after the build."""
    version_compatible: bool = False
    """A plan that later versions of the same major version open."""
    hardware_compatibility_level: Literal["none", "ampere+", "sameComputeCapability"] | None = None
    """Other GPUs that the plan runs on."""
    strip_weights: bool = False
    """A plan without weights, to be refitted."""
    no_tf32: bool = False
    """FP32 convolutions in full precision."""
    max_aux_streams: int | None = None
    """Streams beside the main one."""
    profiling_verbosity: Literal["layer_names_only", "detailed", "none"] | None = None
    """What the plan tells of its layers."""
    library: Flavour | None = None
    """Which TensorRT builds; by default `tensorrt` where it is installed and has a device, else `tensorrt_rtx`."""

    def recorded(self) -> dict[str, str]:
        """What changes the engine and is not left to the builder, by trtexec's names, for the manifest."""
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
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}
        return {
            names[name]: _text(value)
            for name, value in values.items()
            if value is not None and value is not False and value != {}  # not `in`: 0 is a value and equals False
        }


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{pool}:{size}B" for pool, size in value.items())
    return "true" if value is True else str(value)
