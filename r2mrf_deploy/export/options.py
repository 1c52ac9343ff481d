"""What to export, in which precision, and how to write each format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from r2mrf_deploy import gpus as gpu_classes
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.runtimes.base import changed
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Method = Literal["minmax", "entropy", "percentile"]
DEFAULT_OPSET = 17
"""TensorRT reads it since 8.6, and no network needs a later one."""
RECOMMENDED = 300
"""Photographs to calibrate on."""


@dataclass(frozen=True)
class PrecisionOptions:
    """How to reduce precision."""

    precision: Precision = "fp32"
    calibration: Path | None = None
    """A folder of photographs like those that the network will see. INT8 needs one. FP16 looks for overflow in them, or by
    default in three of scikit-image's photographs."""
    method: Method | None = None
    """How INT8 finds ranges; by default percentile, since the extremes of many photographs are too wide."""
    keep: tuple[str, ...] = ()
    """Nodes or scopes of the network that stay in higher precision."""
    quantize_ends: bool = False
    """Also quantise the first convolution and the last layers."""
    max_drop: float | None = None
    """Search for the fewest nodes to keep so that MAE and F, measured against FP32, get worse by no more than this."""
    resume: Path | None = None
    """A file that stores what the search has found, so that it can be resumed."""
    gpus: tuple[str, ...] = ()
    """GPU classes that the result is for. A class that cannot compute in this precision is refused."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"no precision {self.precision!r}: choose from {', '.join(PRECISIONS)}")
        for gpu in map(gpu_classes.get, self.gpus):
            if refusal := gpu_classes.precision_refusal(gpu, self.precision):
                raise UsageError(refusal)
        given = [name for name in changed(self) if name != "keep" or self.keep]  # an empty list keeps nothing either
        if self.precision == "fp32" and (named := [n for n in ("max_drop", "keep", "calibration") if n in given]):
            raise UsageError(f"`{named[0]}` is for a reduced precision: set `precision` to fp16, bf16 or int8")
        if self.precision != "int8" and (only := [n for n in ("method", "quantize_ends") if n in given]):
            raise UsageError(f"`{only[0]}` is for INT8: leave it out, or set `precision` to int8")
        if self.resume is not None and self.max_drop is None:
            raise UsageError("`resume` continues a search: also give `max_drop`, or leave `resume` out")
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise UsageError(f"`max_drop` must be between 0 and 1, for example 0.005, not {self.max_drop:g}")
        if self.max_drop is not None and self.calibration is None:
            raise UsageError("`max_drop` needs photographs to measure on: give `calibration` a folder")

    def refuse_uncalibrated(self) -> None:
        """Refuse a conversion to INT8 without photographs.

        Raises:
            UsageError: it is one.
        """
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(
                f"INT8 needs photographs to calibrate on: give `calibration` a folder; {RECOMMENDED} are recommended"
            )


@dataclass(frozen=True)
class FormatOptions:
    """Options that only some formats support."""

    gpus: tuple[str, ...] = ()
    """GPU classes to build for; see `TensorRTExporter`."""
    device: Literal["cpu", "cuda"] | None = None
    """What to compile an AOTInductor package for; by default the GPU if there is one."""
    build: BuildOptions = BuildOptions()  # noqa: RUF009 (it is frozen)
    """TensorRT's builder options."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export. The defaults suit a program that embeds the artifact."""

    size: tuple[int, int] | None = None
    """(height, width) in pixels; with `dynamic`, the optimum of the profile. By default a square of the checkpoint's longest
    side, which photographs of either orientation fit into."""
    batch: int = 1
    dynamic: bool = False
    steps: int | None = None
    """Recurrent steps, if the weights allow a number other than the one they were trained with."""
    io: Literal["image", "tensor"] = "image"
    fit: Literal["letterbox", "stretch"] = "letterbox"
    """What a static input does with a photograph of another aspect: keep its aspect, or stretch it as the papers do."""
    opset: int = DEFAULT_OPSET
    all_steps: bool = False
    """Also output every `step{t}_branch{l}`."""
    optimize: bool = True
    """Apply the exact rewrites."""
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    format: FormatOptions = field(default_factory=FormatOptions)
    allow_failed_parity: bool = False
    """Also write a file that fails its comparison; its manifest says so."""

    def record(self, size: tuple[int, int], steps: int) -> dict[str, Any]:
        """What the contract keeps of these options: enough to trace the same graph again."""
        kept = ("batch", "dynamic", "io", "opset", "all_steps", "optimize")
        return {"size": list(size), "steps": steps} | {name: getattr(self, name) for name in kept}
