"""Runtimes: everything that can run an artifact, behind one protocol and one registry.

The registry is a table of module paths, so that asking for one runtime imports no other.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from r2mrf_deploy.errors import ArtifactError, InputError, UsageError, did_you_mean
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.runtimes.base import Availability, OpenOptions, Runner, Runtime, Timing

__all__ = [
    "Availability",
    "OpenOptions",
    "Runner",
    "Runtime",
    "Timing",
    "get",
    "names",
    "nearest",
    "open",
    "open_nearest",
    "suitable",
]

# name -> module:class. For a suffix that several can open, the first is the default.
_REGISTRY = {
    "pytorch": "r2mrf_deploy.runtimes.pytorch.eager:PyTorch",
    "pytorch-cuda": "r2mrf_deploy.runtimes.pytorch.cuda:PyTorchCUDA",
    "pytorch-cuda-tf32": "r2mrf_deploy.runtimes.pytorch.cuda:TF32",
    "pytorch-cuda-fp16": "r2mrf_deploy.runtimes.pytorch.cuda:FP16",
    "pytorch-cuda-channels-last": "r2mrf_deploy.runtimes.pytorch.cuda:ChannelsLast",
    "pytorch-cuda-compile": "r2mrf_deploy.runtimes.pytorch.cuda:Compiled",
    "pytorch-cuda-graph": "r2mrf_deploy.runtimes.pytorch.cuda:Graph",
    "aotinductor": "r2mrf_deploy.runtimes.aotinductor:AOTInductor",
    "onnxruntime": "r2mrf_deploy.runtimes.onnxruntime:OnnxRuntimeCPU",
    "onnxruntime-cuda": "r2mrf_deploy.runtimes.onnxruntime:OnnxRuntimeCUDA",
    "onnxruntime-tensorrt": "r2mrf_deploy.runtimes.onnxruntime:OnnxRuntimeTensorRT",
    "openvino": "r2mrf_deploy.runtimes.openvino:OpenVINO",
    "tensorrt": "r2mrf_deploy.runtimes.tensorrt.runner:TensorRT",
}

# suffix -> what such a file is, and how to make one
_EXECUTABLE = {
    ".plan": ("a plan", "build it with `r2mrf build`"),
    ".pt2": ("an AOTInductor package", "make it with `r2mrf export`"),
}


def names() -> list[str]:
    return list(_REGISTRY)


def get(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in _REGISTRY:
        raise UsageError(f"no runtime {name!r}: {did_you_mean(name, _REGISTRY)}")
    module, _, attribute = _REGISTRY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()


def suitable(artifact: Path) -> list[Runtime]:
    """Every runtime that opens files of this suffix, available or not."""
    return [r for r in map(get, _REGISTRY) if artifact.suffix.lower() in r.suffixes]


def default(artifact: Path, manifest: Manifest | None) -> Runtime:
    """What runs a file unless another is asked for: the first that opens its kind and has kernels of its precision; of
    those that can be used here, if any can."""
    able = [r for r in suitable(artifact) if manifest is None or manifest.precision not in r.cannot]
    return next((r for r in able if r.availability().ok), (able or suitable(artifact))[0])


def nearest(precision: str) -> Runtime:
    """Of the runtimes for ONNX files on a CPU, the one that comes nearest to computing in a precision; of those that can be
    used here, if any can."""
    order = ["onnxruntime", "openvino"] if precision in ("fp32", "fp16") else ["openvino", "onnxruntime"]
    able = [r for r in map(get, order) if precision not in r.cannot]
    return next((r for r in able if r.availability().ok), able[0])


def open_nearest(artifact: Path, manifest: Manifest) -> Runner:
    """Open an ONNX file with the `nearest` runtime for the precision that its manifest states.

    Raises:
        RuntimeUnavailable: none runs it.
        ArtifactError: the file is damaged.
    """
    return nearest(manifest.precision).open(artifact, manifest)


def open(
    artifact: Path | str, runtime: str | None = None, *, trust: bool = False, options: OpenOptions | None = None
) -> Runner:
    """Open an artifact or a checkpoint with a runtime (by default the first that opens its kind of file).

    Args:
        artifact: the model file. Where a manifest lies beside it, the two must match.
        trust: open a plan or a package without a manifest. Both are executable code.

    Raises:
        InputError: no such file.
        ArtifactError: the file does not match its manifest, or is executable code without one, or no runtime opens it.
        RuntimeUnavailable: the runtime is not installed or has no device here.
    """
    path = Path(artifact)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    runtimes = suitable(path)
    if not runtimes:
        raise ArtifactError(
            f"{path}: no runtime opens {path.suffix or 'such'!r} files; known are .pth .onnx .xml .plan .pt2"
        )
    manifest = Manifest.beside(path)
    chosen = get(runtime) if runtime else default(path, manifest)
    if chosen.name not in {r.name for r in runtimes}:
        raise UsageError(
            f"{chosen.name} does not open {path.suffix} files; {' or '.join(r.name for r in runtimes)} does"
        )
    if manifest is None and path.suffix.lower() in _EXECUTABLE and not trust:
        what, cure = _EXECUTABLE[path.suffix.lower()]
        raise ArtifactError(
            f"{path}: {what} is executable code and this one has no manifest ({path.name}.json); "
            f"{cure}, or pass --trust if you know where it comes from"
        )
    return chosen.open(path, manifest, options)
