"""GPU classes: what each can do, how fast at best, and which TensorRT still supports it.

One table, read when an engine is built (what may the card be asked to run?) and when a latency is predicted (what is its
roof?). The figures are NVIDIA's published peaks: dense (no structured sparsity), at boost clock, with FP32 accumulation
where the FP16 rate depends on it (GeForce cards then run at half the advertised rate).

Sources: NVIDIA's Pascal, Volta, Turing, Ampere (GA102), Ada and Blackwell (RTX) architecture whitepapers; the data sheets
of V100, T4, A100, L4, H100, H200 and HGX B200; the Jetson AGX Orin technical brief; TensorRT's support matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from r2mrf_deploy.errors import UsageError, did_you_mean

Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""TensorRT or TensorRT-RTX, by the name of its Python module."""

RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""All that TensorRT-RTX 1.x builds for."""

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class GPU:
    """One class of cards."""

    name: str
    title: str
    generation: str
    compute_capability: str
    tflops: Mapping[str, float]
    """Peak 10^12 operations per second (a multiply-add counts as two), by precision; only those that it supports."""
    bandwidth: float
    """Of its memory, in GB/s."""
    memory: float
    """In GiB."""
    last_tensorrt: str | None = None
    """The last version of `tensorrt` that supports it; None if the current one does."""


# NVIDIA gives only 1,000 TFLOP/s in sparse FP4 for GB10; the other figures follow from its generation's ratios.
_TABLE = """
name      | title                  | generation | cc   |  fp32 | tf32 |  fp16 |  bf16 | int8 | fp8  | GB/s | GiB | last
gtx1080ti | GeForce GTX 1080 Ti    | Pascal     | 6.1  |  11.3 |      | 0.177 |       |   45 |      |  484 |  11 | 8.6.1
v100      | Tesla V100 32 GB SXM2  | Volta      | 7.0  |  15.7 |      |   125 |       | 62.8 |      |  900 |  32 | 10.4
t4        | Tesla T4               | Turing     | 7.5  |   8.1 |      |    65 |       |  130 |      |  320 |  16 |
rtx2080ti | GeForce RTX 2080 Ti    | Turing     | 7.5  |  13.4 |      |  53.8 |       |  215 |      |  616 |  11 |
a100      | A100 80 GB SXM         | Ampere     | 8.0  |  19.5 |  156 |   312 |   312 |  624 |      | 2039 |  80 |
rtx3060   | GeForce RTX 3060       | Ampere     | 8.6  |  12.7 | 12.7 |  25.5 |  25.5 |  102 |      |  360 |  12 |
rtx3090   | GeForce RTX 3090       | Ampere     | 8.6  |  35.6 | 35.6 |    71 |    71 |  284 |      |  936 |  24 |
orin      | Jetson AGX Orin 64 GB  | Ampere     | 8.7  |   5.3 |   21 |  42.5 |  42.5 |   85 |      |  205 |  64 |
l4        | L4                     | Ada        | 8.9  |  30.3 |   60 |   121 |   121 |  242 |  242 |  300 |  24 |
rtx4090   | GeForce RTX 4090       | Ada        | 8.9  |  82.6 | 82.6 |   165 |   165 |  661 |  330 | 1008 |  24 |
h100      | H100 SXM               | Hopper     | 9.0  |    67 |  495 |   989 |   989 | 1979 | 1979 | 3350 |  80 |
h200      | H200 SXM               | Hopper     | 9.0  |    67 |  495 |   989 |   989 | 1979 | 1979 | 4800 | 141 |
b200      | B200 (HGX)             | Blackwell  | 10.0 |    75 | 1100 |  2250 |  2250 | 4500 | 4500 | 8000 | 180 |
rtx5090   | GeForce RTX 5090       | Blackwell  | 12.0 |   105 |  105 |   210 |   210 |  838 |  419 | 1792 |  32 |
gb10      | GB10 (DGX Spark)       | Blackwell  | 12.1 |    31 |   62 |   125 |   125 |  250 |  250 |  273 | 128 |
"""


def _read(table: str) -> dict[str, GPU]:
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    gpus = {}
    for name, title, generation, capability, *rates, bandwidth, memory, last in rows:
        tflops = {precision: float(rate) for precision, rate in zip(header[4:-3], rates, strict=True) if rate}
        gpus[name] = GPU(name, title, generation, capability, tflops, float(bandwidth), float(memory), last or None)
    return gpus


GPUS: Mapping[str, GPU] = _read(_TABLE)

# The generation that brought a precision that older cards in the table lack.
_SINCE = {"tf32": "Ampere", "bf16": "Ampere", "fp8": "Ada", "int8": "Pascal"}


def get(name: str) -> GPU:
    """The GPU class called `name`; case, spaces, dashes and a leading "GeForce" do not matter.

    Raises:
        UsageError: there is no such class.
    """
    key = name.lower().replace(" ", "").replace("-", "").removeprefix("geforce")
    if key not in GPUS:
        raise UsageError(f"no GPU class {name!r}: {did_you_mean(key, GPUS)}")
    return GPUS[key]


def of_device(name: str, compute_capability: str) -> GPU | None:
    """The class of a device by its driver's name for it ("NVIDIA GeForce RTX 3090", "NVIDIA H200"); None if none fits."""
    words = _words(name)
    fits = [g for g in GPUS.values() if g.compute_capability == compute_capability and _words(g.name) <= words]
    return max(fits, key=lambda g: len(_words(g.name)), default=None)


def _words(name: str) -> set[str]:
    """The parts of a card's name: rtx3090 -> rtx, 3090."""
    return set(re.findall(r"[a-z]+|\d+", name.lower()))


def sm(compute_capability: str) -> int:
    """A compute capability as TensorRT writes it: 8.6 -> 86, 12.0 -> 120."""
    major, _, minor = compute_capability.partition(".")
    return int(major) * 10 + int(minor)


def too_old_for_cuda(major: int | None, compute_capability: str | None) -> str | None:
    """Why a library built for CUDA `major` cannot run on a GPU; None if it can, or if either is unknown.

    CUDA 13 compiles for Turing (7.5) and later, CUDA 12 for Maxwell (5.0) and later (NVIDIA's CUDA Toolkit release notes).
    """
    if major is None or compute_capability is None or major < 13 or sm(compute_capability) >= 75:
        return None
    return f"this build is for CUDA {major}, which does not support compute capability {compute_capability}"


def refusals(gpu: GPU, flavour: Flavour, version: str, precisions: Iterable[str] = ()) -> list[str]:
    """Why a library of this version must not build an engine for this class, with a cure for each reason; empty if it may.

    `precisions` are those in the graph, of PRECISIONS.
    """
    reasons = [*(precision_refusal(gpu, p) for p in precisions), _library_refusal(gpu, flavour, version)]
    return [r for r in reasons if r]


def precision_refusal(gpu: GPU, precision: str) -> str | None:
    """Why this class should not run a precision, with the cure; None if it may."""
    card, slow_fp16 = f"the {gpu.title} ({gpu.generation})", gpu.tflops["fp16"] < gpu.tflops["fp32"]
    if precision == "fp16" and slow_fp16:
        rate = f"1/{round(gpu.tflops['fp32'] / gpu.tflops['fp16'])} of its FP32 rate"
        return f"{card} computes FP16 at {rate}: export with `precision` fp32, or int8 after an accuracy check"
    if precision not in gpu.tflops:
        lacking = f"no {precision.upper()}, which came with {_SINCE[precision]}"
        return f"{card} has {lacking}: export with `precision` {'fp32' if slow_fp16 else 'fp16'}"
    return None


def _library_refusal(gpu: GPU, flavour: Flavour, version: str) -> str | None:
    last = gpu.last_tensorrt
    if flavour == "tensorrt_rtx":
        if gpu.compute_capability in RTX_COMPUTE_CAPABILITIES:
            return None
        cure = f" {last}, the last version that supports it" if last else ", or run the ONNX file with onnxruntime-cuda"
        return (
            f"TensorRT-RTX does not support {gpu.generation} with compute capability {gpu.compute_capability} "
            f"({gpu.title}): build on that GPU with the package tensorrt{cure}"
        )
    if last is None or _major_minor(version) <= _major_minor(last):
        return None
    return (
        f"TensorRT {version} does not support {gpu.generation} ({gpu.title}); the last version that does is "
        f"{last}: build with that version, in an environment of its own"
    )


def _major_minor(version: str) -> tuple[int, ...]:
    """10.4.0.26 -> (10, 4): the table gives no more."""
    return tuple(int(part) for part in version.split(".")[:2])
