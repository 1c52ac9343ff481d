"""What machine this is and which versions are installed: for manifests, measurements and the doctor."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from functools import cache
from pathlib import Path

TOOLS = (
    *("r2mrf-deploy", "torch", "torchvision", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "tensorrt", "tensorrt-rtx", "numpy", "pillow", "scikit-image"),
)


CXX = "install g++ (or name another with CXX)"
"""How to get a C++ compiler."""


def version(package: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tool_versions(*packages: str) -> dict[str, str]:
    """The versions of `packages` (all of `TOOLS` by default) that are installed, and Python's."""
    found = {p: v for p in packages or TOOLS if (v := version(p))}
    return {"python": platform.python_version()} | found


@cache
def cpu() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cxx() -> str | None:
    """The C++ compiler that PyTorch would use, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++"))


def describe() -> dict[str, str | int]:
    return {"cpu": cpu(), "cores": cores(), "system": f"{platform.system()} {platform.release()}"}


@cache
def cuda_driver() -> str | None:
    """Why there is no CUDA device to run on, or None where there is one."""
    import ctypes

    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        if code := driver.cuInit(0):
            return f"the NVIDIA driver has no usable device (cuInit: error {code})"
        return None
    return "no NVIDIA driver on this machine"
