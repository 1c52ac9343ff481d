"""What to export, in which precision, and how to write each format."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from r2mrf_deploy import gpus as gpu_classes
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.manifest import DEFAULT_SIZE
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
Method = Literal["minmax", "entropy", "percentile"]
DEFAULT_OPSET = 17
"""Every TensorRT since 8.6 reads it; nothing in the networks needs a later one."""
RECOMMENDED = 300
"""Photographs to calibrate on."""


@dataclass(frozen=True)
class PrecisionOptions:
    """How to reduce precision."""

    precision: Precision = "fp32"
    calibration: Path | None = None
    """Folder of photographs like those to come. INT8 needs one; FP16 looks there for what would overflow, by default in
    three photographs of scikit-image's."""
    method: Method | None = None
    """How INT8 finds ranges; by default percentile: the extremes of a hundred photographs are too wide."""
    keep: tuple[str, ...] = ()
    """Nodes, or scopes of the network, that stay in higher precision."""
    quantize_ends: bool = False
    """Quantise the first convolution and the last layers too."""
    max_drop: float | None = None
    """Search for the fewest nodes to keep for which MAE and F against FP32 drop by no more than this."""
    resume: Path | None = None
    """A file that keeps what the search has found, so that it can be resumed."""
    gpus: tuple[str, ...] = ()
    """GPU classes that the result is for: one that cannot compute in this precision is refused."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"no precision {self.precision!r}: choose from {', '.join(PRECISIONS)}")
        for gpu in map(gpu_classes.get, self.gpus):
            if refusal := gpu_classes.precision_refusal(gpu, self.precision):
                raise UsageError(refusal)
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(
                f"INT8 needs photographs to calibrate on: give `calibration` a folder; {RECOMMENDED} are recommended"
            )
        asked = {"max_drop": self.max_drop is not None, "keep": bool(self.keep), "calibration": self.calibration}
        if self.precision == "fp32" and (named := [k for k, v in asked.items() if v]):
            raise UsageError(f"`{named[0]}` is for a reduced precision: set `precision` to fp16, bf16 or int8")
        of_int8 = {"method": self.method is not None, "quantize_ends": self.quantize_ends}
        if self.precision != "int8" and (named := [k for k, v in of_int8.items() if v]):
            raise UsageError(f"`{named[0]}` is for INT8: leave it out, or set `precision` to int8")
        if self.resume is not None and self.max_drop is None:
            raise UsageError("`resume` continues a search: give `max_drop` too, or leave it out")
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise UsageError(f"`max_drop` must be between 0 and 1, as 0.005, not {self.max_drop:g}")
        if self.max_drop is not None and self.calibration is None:
            raise UsageError("`max_drop` needs photographs to look at: give `calibration` a folder")


@dataclass(frozen=True)
class FormatOptions:
    """What only some formats support."""

    gpus: tuple[str, ...] = ()
    """GPU classes to build for; see `TensorRTExporter`."""
    device: Literal["cpu", "cuda"] | None = None
    """What an AOTInductor package is compiled for; by default the GPU where there is one."""
    build: BuildOptions = field(default_factory=BuildOptions)
    """TensorRT's builder options."""

    def given(self) -> list[str]:
        """The fields that are not left at their defaults."""
        usual = FormatOptions()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]


@dataclass(frozen=True)
class ExportOptions:
    """What to export. The defaults are what a program that embeds the artifact wants."""

    size: tuple[int, int] = DEFAULT_SIZE
    """(height, width) in pixels; with `dynamic`, the optimum of the profile."""
    batch: int = 1
    dynamic: bool = False
    steps: int | None = None
    """Recurrent steps, where the weights allow another number than they were trained with."""
    io: Literal["image", "tensor"] = "image"
    opset: int = DEFAULT_OPSET
    all_steps: bool = False
    """Output every `step{t}_branch{l}` too."""
    optimize: bool = True
    """Apply the exact rewrites."""
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    format: FormatOptions = field(default_factory=FormatOptions)

    def record(self, steps: int) -> dict[str, Any]:
        """What the contract says of the export: enough to trace the same graph again."""
        kept = ("batch", "dynamic", "io", "opset", "all_steps", "optimize")
        return {"size": list(self.size), "steps": steps} | {name: getattr(self, name) for name in kept}
