"""GPU classes and small devices: what each can do, how fast at best, and which TensorRT still supports it.

One table, read when an engine is built (what may the card be asked to run?) and when a latency is predicted (what is its
roof?). The figures are the makers' published peaks: dense (no structured sparsity), at boost clock, with FP32 accumulation
where the FP16 rate depends on it (GeForce cards then run at half the advertised rate).

A Jetson's rates follow from its cores and its clock, because what NVIDIA advertises counts sparse operations, and those of
other accelerators than the GPU.

Sources: NVIDIA's Pascal, Volta, Turing, Ampere (GA102), Ada and Blackwell (RTX) architecture whitepapers; the data sheets
of V100, T4, A100, L4, H100, H200, HGX B200, Jetson Nano, Jetson AGX Xavier, Jetson Xavier NX and Jetson Orin Nano; the
Jetson AGX Orin technical brief; TensorRT's support matrices; JetPack's release notes. Raspberry Pi's product brief, and
Arm's Cortex-A76 Software Optimization Guide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from r2mrf_deploy.errors import UsageError, did_you_mean

Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""TensorRT or TensorRT-RTX, by the name of its Python module."""

RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""All that TensorRT-RTX 1.x builds for."""

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class Device:
    """One class of devices."""

    name: str
    title: str
    generation: str
    tflops: Mapping[str, float]
    """Peak 10^12 operations per second (a multiply-add counts as two), by precision; only those that it supports."""
    bandwidth: float
    """Of its memory, in GB/s."""
    memory: float
    """In GiB."""

    @property
    def is_small(self) -> bool:
        """Whether it is a board for use in the field, rather than a card for a PC or a server."""
        return False

    @property
    def advice(self) -> str:
        """How a network gets there, where that is not a plan built with what pip installs; empty elsewhere."""
        return ""


@dataclass(frozen=True)
class GPU(Device):
    """One class of cards or of Jetsons."""

    compute_capability: str
    last_tensorrt: str | None = None
    """The last version of `tensorrt` that supports it; None if the current one does."""
    jetpacks: tuple[str, ...] = ()
    """Of a Jetson, the JetPacks that are made for it, the newest of each generation; keys of JETPACKS."""

    @property
    def is_small(self) -> bool:
        return bool(self.jetpacks)

    @property
    def advice(self) -> str:
        versions = " or ".join(f"JetPack {j} (TensorRT {JETPACKS[j]})" for j in self.jetpacks)
        return f"build on the Jetson with trtexec of {versions}, which is not on PyPI" if versions else ""


@dataclass(frozen=True)
class CPU(Device):
    """One class of boards without a GPU that a network runs on. Its rates are those of all cores together."""

    cores: int

    @property
    def is_small(self) -> bool:
        return True

    @property
    def advice(self) -> str:
        return "write .onnx, .xml or .pte, which its CPU runs"


JETPACKS = {"4.6": "8.2.1", "5.1": "8.5.2", "6.2": "10.3", "7.2": "10.16"}
"""JetPack -> the TensorRT that comes with it. Later patches of a JetPack keep it."""

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
        gpus[name] = GPU(name, title, generation, tflops, float(bandwidth), float(memory), capability, last or None)
    return gpus


# From the modules' data sheets: what a Jetson's rates follow from. "Super" is the same module with other limits of power.
_JETSONS = """
name          | title                  | generation | cc  | cores | tensor cores | MHz   | GB/s | GiB | last  | JetPack
orin          | Jetson AGX Orin 64 GB  | Ampere     | 8.7 |  2048 |           64 |  1300 |  205 |  64 |       | 6.2 7.2
orinnanosuper | Jetson Orin Nano Super | Ampere     | 8.7 |  1024 |           32 |  1020 |  102 |   8 |       | 6.2 7.2
orinnano      | Jetson Orin Nano       | Ampere     | 8.7 |  1024 |           32 |   625 |   68 |   8 |       | 6.2 7.2
xavier        | Jetson AGX Xavier      | Volta      | 7.2 |   512 |           64 |  1377 |  137 |  32 | 8.5.2 | 5.1
xaviernx      | Jetson Xavier NX       | Volta      | 7.2 |   384 |           48 |  1100 | 59.7 |   8 | 8.5.2 | 5.1
nano          | Jetson Nano            | Maxwell    | 5.3 |   128 |            0 | 921.6 | 25.6 |   4 | 8.2.1 | 4.6
"""

# Operations in a cycle, by generation: of a CUDA core, then of a tensor core.
_CORE = {"Maxwell": {"fp32": 2, "fp16": 4}, "Volta": {"fp32": 2}, "Ampere": {"fp32": 2}}
_TENSOR_CORE = {
    "Volta": {"fp16": 128, "int8": 256},
    "Ampere": {"tf32": 256, "fp16": 512, "bf16": 512, "int8": 1024},
}


def _read_jetsons(table: str) -> dict[str, GPU]:
    gpus = {}
    for line in table.strip().splitlines()[1:]:
        name, title, generation, capability, *figures, last, jetpacks = (cell.strip() for cell in line.split("|"))
        cores, tensor_cores, clock, bandwidth, memory = map(float, figures)
        work = [(cores, _CORE[generation]), (tensor_cores, _TENSOR_CORE.get(generation, {}))]
        tflops = {p: count * per_cycle * clock / 1e6 for count, rates in work for p, per_cycle in rates.items()}
        device = (name, title, generation, tflops, bandwidth, memory)
        gpus[name] = GPU(*device, capability, last or None, tuple(jetpacks.split()))
    return gpus


GPUS: Mapping[str, GPU] = _read(_TABLE) | _read_jetsons(_JETSONS)

# Four cores at 2.4 GHz, each with two pipelines of 128 bits: FMLA on 4 floats or 8 halves, SDOT on 16 bytes. 32 bits of
# LPDDR4X at 4,267 MT/s.
CPUS: Mapping[str, CPU] = {
    "pi5": CPU("pi5", "Raspberry Pi 5", "Cortex-A76", {"fp32": 0.154, "fp16": 0.307, "int8": 0.614}, 17.1, 8, cores=4)
}

# The generation that brought a precision that older GPUs in the table lack.
_SINCE = {"tf32": "Ampere", "bf16": "Ampere", "fp8": "Ada", "int8": "Pascal"}

_BRANDS = ("nvidia", "geforce", "jetson", "agx", "raspberry")


def find(name: str) -> Device:
    """The class of GPUs or CPUs called `name`; case, spaces, dashes and brands, as in "GeForce", do not matter.

    Raises:
        UsageError: there is no such class.
    """
    key = name.lower().replace(" ", "").replace("-", "")
    for brand in _BRANDS:
        key = key.removeprefix(brand)
    found = {**GPUS, **CPUS}
    if key not in found:
        raise UsageError(f"no GPU class {name!r}: {did_you_mean(key, found)}")
    return found[key]


def get(name: str) -> GPU:
    """The GPU class called `name`, as for `find`.

    Raises:
        UsageError: there is no such class, or it has no GPU to build for.
    """
    device = find(name)
    if not isinstance(device, GPU):
        raise UsageError(f"the {device.title} has no GPU to build for: leave `gpus` out, and {device.advice}")
    return device


def of_device(name: str, compute_capability: str) -> GPU | None:
    """The class of a device by its driver's name for it ("NVIDIA GeForce RTX 3090", "NVIDIA H200"); None if none fits, as
    for a part of a card ("MIG 1g.10gb") and for a laptop's."""
    if re.search(r"\b(mig|laptop|max-q)\b", name.lower()):
        return None
    fits = [g for g in GPUS.values() if g.compute_capability == compute_capability and _called(name, g.name)]
    return max(fits, key=lambda g: len(g.name), default=None)


def alike(name: str, compute_capability: str) -> GPU | None:
    """A device as a class, also where the table has none for it: that of the nearest compute capability of the same major
    version, under the device's own name; None if there is none."""
    major = compute_capability.partition(".")[0]
    of_major = [g for g in GPUS.values() if g.compute_capability.partition(".")[0] == major]
    near = min(of_major, key=lambda g: abs(sm(g.compute_capability) - sm(compute_capability)), default=None)
    return near and replace(near, title=name, compute_capability=compute_capability)


def _called(name: str, short: str) -> bool:
    """Whether a driver's name has a class's short name in it, with or without spaces: "RTX 3090" has rtx3090."""
    spaced = r"[\W_]*".join(re.findall(r"[a-z]+|\d+", short))
    return re.search(rf"\b{spaced}(?!\d)", name.lower()) is not None


def sm(compute_capability: str) -> int:
    """A compute capability as TensorRT writes it: 8.6 -> 86, 12.0 -> 120."""
    major, _, minor = compute_capability.partition(".")
    return int(major) * 10 + int(minor)


def has_tf32(compute_capability: str) -> bool:
    """Whether a GPU's tensor cores multiply TF32: Ampere's and later ones do."""
    return sm(compute_capability) >= 80


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


def precision_refusal(device: Device, precision: str) -> str | None:
    """Why this class should not run a precision, with the cure; None if it may."""
    card, slow_fp16 = f"the {device.title} ({device.generation})", device.tflops["fp16"] < device.tflops["fp32"]
    if precision == "fp16" and slow_fp16:
        rate = f"1/{round(device.tflops['fp32'] / device.tflops['fp16'])} of its FP32 rate"
        return f"{card} computes FP16 at {rate}: export with `precision` fp32, or int8 after an accuracy check"
    if precision not in device.tflops:
        since = f", which came with {_SINCE[precision]}" if isinstance(device, GPU) else ""
        return f"{card} has no {precision.upper()}{since}: export with `precision` {'fp32' if slow_fp16 else 'fp16'}"
    return None


def _library_refusal(gpu: GPU, flavour: Flavour, version: str) -> str | None:
    last = gpu.last_tensorrt
    if flavour == "tensorrt_rtx":
        if gpu.compute_capability in RTX_COMPUTE_CAPABILITIES:
            return None
        newest = (
            f" {last}, the last version that supports it" if last else ", or run the ONNX file with onnxruntime-cuda"
        )
        return (
            f"TensorRT-RTX does not support {gpu.generation} with compute capability {gpu.compute_capability} "
            f"({gpu.title}): {gpu.advice or f'build on that GPU with the package tensorrt{newest}'}"
        )
    if last is None or _major_minor(version) <= _major_minor(last):
        return None
    return (
        f"TensorRT {version} does not support {gpu.generation} ({gpu.title}); the last version that does is "
        f"{last}: {gpu.advice or 'build with that version, in an environment of its own'}"
    )


def _major_minor(version: str) -> tuple[int, ...]:
    """10.4.0.26 -> (10, 4): the table gives no more."""
    return tuple(int(part) for part in version.split(".")[:2])
