"""The options of an engine's build, named as trtexec names them, and the texts that trtexec writes them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from r2mrf_deploy.errors import UsageError, did_you_mean
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
_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine. None leaves a choice to the builder; what the builder does not support is refused by name."""

    min_shapes: Shapes = field(default_factory=dict)
    """--min: for each input with free dimensions, the smallest shape of the profile."""
    opt_shapes: Shapes = field(default_factory=dict)
    """--opt: the shape to be fastest at."""
    max_shapes: Shapes = field(default_factory=dict)
    """--max: the largest shape."""
    mem_pool_size: Mapping[str, int] = field(default_factory=dict)
    """--memPoolSize: bytes by pool, by trtexec's names (`workspace`, ...)."""
    builder_optimization_level: int | None = None
    """--builderOptimizationLevel: 0 (quick build) to 5 (quick engine)."""
    timing_cache_file: Path | None = None
    """--timingCacheFile: read where it exists, written back after the build."""
    version_compatible: bool = False
    """--versionCompatible: a plan that later versions of the same major version open."""
    hardware_compatibility_level: Literal["none", "ampere+", "sameComputeCapability"] | None = None
    """--hardwareCompatibilityLevel."""
    strip_weights: bool = False
    """--stripWeights: a plan without weights, to be refitted."""
    no_tf32: bool = False
    """--noTF32: FP32 convolutions in full precision."""
    max_aux_streams: int | None = None
    """--maxAuxStreams."""
    profiling_verbosity: Literal["layer_names_only", "detailed", "none"] | None = None
    """--profilingVerbosity."""
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


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read trtexec's notation for shapes, `image:1x320x320x3,mask:1x1x320x320`.

    Raises:
        UsageError: it is something else.
    """
    shapes = {}
    for item in filter(None, text.split(",")):
        name, colon, dims = item.rpartition(":")
        numbers = dims.split("x")
        if not colon or not name or not all(n.isdigit() and int(n) > 0 for n in numbers):
            raise UsageError(f"{item!r} is not a shape: write name:1x320x320x3, with commas between inputs")
        shapes[name.strip()] = tuple(map(int, numbers))
    return shapes


def parse_pool_sizes(text: str) -> dict[str, int]:
    """Read trtexec's notation for memory pools, `workspace:1024` (MiB) or `workspace:2G`, into bytes.

    Raises:
        UsageError: a pool or a size means nothing.
    """
    sizes = {}
    for item in filter(None, text.split(",")):
        name, _, size = item.strip().partition(":")
        if name not in POOLS:
            raise UsageError(f"no memory pool {name!r}: {did_you_mean(name, POOLS)}")
        number, unit = (size[:-1], size[-1].upper()) if size[-1:].isalpha() else (size, "M")
        try:
            sizes[name] = int(float(number) * _UNITS[unit])
            if sizes[name] <= 0:
                raise ValueError
        except (KeyError, ValueError, OverflowError):
            raise UsageError(f"{size!r} is not a size: write MiB as 1024, or 512K, 2G, 4096B") from None
    return sizes
