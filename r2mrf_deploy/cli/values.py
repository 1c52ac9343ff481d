"""What options and arguments can be, for the completion of shells; each name begins as the word that is there does.

Nothing here imports PyTorch: completion must not take longer than typing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from r2mrf_deploy import weights

FILES = "(files)"
"""The meaning of a word that stands for names of files."""

# Of these names, modules know more, whose import takes longer than one waits for a completion.
PRESETS = (
    "r2mrf", "r2mrf-r50", "r2mrf-vgg16", "r2mrf-densenet161", "r2mrf-edge", "r2mrf-lite", "br2net", "br2net-vgg16",
    "defusionnet", "btbnet", "btbnet-1s", "btbcrl",
)  # fmt: skip
RUNTIMES = (
    "pytorch", "aotinductor", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino",
    "pytorch-cuda", "pytorch-cuda-tf32", "pytorch-cuda-fp16", "pytorch-cuda-channels-last",
    "pytorch-cuda-compile", "pytorch-cuda-graph", "tensorrt", "executorch", "web", "web-webgpu",
)  # fmt: skip
DATASETS = ("cuhk", "cuhk-320", "dut", "ctcug", "ebd")
SPLITS = ("cuhk-fit", "cuhk-test", "cuhk-train", "cuhk-validation")
PROTOCOLS = ("common", "r2mrf")
BASELINES = ("lbp", "svd", "hifst", "spectrum", "asvb", "jnb", "dbdf", "ss", "ksfv", "dhde")
SAVED = ("map", "map16", "float", "overlay", "cutout", "contour", "thumbnail", "scores", "coco")


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion of one of some names."""
    return lambda incomplete: [*names]


def listed(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion of a list with commas."""

    def fitting(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name not in before.split(",")]

    return fitting


def shipped_or_files(incomplete: str) -> list[tuple[str, str]]:
    return [*((name, "shipped weights") for name in weights.SHIPPED), (incomplete, FILES)]


def artifacts_or_files(incomplete: str) -> list[tuple[str, str]]:
    return [*((name, "shipped artifact") for name in weights.ARTIFACTS), (incomplete, FILES)]


def presets_or_files(incomplete: str) -> list[tuple[str, str]]:
    return [*((name, "preset") for name in PRESETS), (incomplete, FILES)]


def cards() -> list[tuple[str, str]]:
    from r2mrf_deploy import gpus

    return [(name, gpu.title) for name, gpu in gpus.GPUS.items()]


def devices() -> list[tuple[str, str]]:
    from r2mrf_deploy import gpus

    return [*cards(), *((name, cpu.title) for name, cpu in gpus.CPUS.items())]


def measured_or_devices() -> list[tuple[str, str]]:
    return [("onnxruntime", "measured here"), ("openvino", "measured here"), *devices()]


def splits_or_files(incomplete: str) -> list[tuple[str, str]]:
    return [*((name, "shipped split") for name in SPLITS), (incomplete, FILES)]
