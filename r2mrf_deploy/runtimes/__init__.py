"""Runtimes: everything that can run an artifact, behind one protocol and one registry.

The registry is a table of module paths and suffixes, so that asking for one of them imports no other. Other packages add
runtimes by entry points (see `plugins`), which are imported to learn their suffixes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from r2mrf_deploy import checkpoint_files, plugins
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, UsageError, did_you_mean
from r2mrf_deploy.runtimes.base import MOST_STREAMS, Availability, OpenOptions, Runner, Runtime, Timing
from r2mrf_deploy.web import file_of

__all__ = [
    "MOST_STREAMS",
    "Availability",
    "OpenOptions",
    "Runner",
    "Runtime",
    "Timing",
    "default",
    "get",
    "known_suffixes",
    "names",
    "nearest",
    "open",
    "suitable",
    "working",
]

# name -> (module:class or module:class:argument, suffixes of its files). If several open a suffix, the first is the default.
_REGISTRY = {
    "pytorch": ("r2mrf_deploy.runtimes.pytorch.eager:PyTorch", checkpoint_files.SUFFIXES),
    "aotinductor": ("r2mrf_deploy.runtimes.aotinductor:AOTInductor", (".pt2",)),
    "onnxruntime": ("r2mrf_deploy.runtimes.onnxruntime:OnnxRuntimeCPU", (".onnx",)),
    "onnxruntime-cuda": ("r2mrf_deploy.runtimes.onnxruntime:OnnxRuntimeCUDA", (".onnx",)),
    "onnxruntime-tensorrt": ("r2mrf_deploy.runtimes.onnxruntime:OnnxRuntimeTensorRT", (".onnx",)),
    "openvino": ("r2mrf_deploy.runtimes.openvino:OpenVINO", (".xml", ".onnx")),
    **{
        f"pytorch-cuda{kind}": (
            f"r2mrf_deploy.runtimes.pytorch.cuda:PyTorchCUDA:{kind}",
            (*checkpoint_files.SUFFIXES, ".onnx"),
        )
        for kind in ("", "-tf32", "-fp16", "-channels-last", "-compile", "-graph")
    },
    "tensorrt": ("r2mrf_deploy.runtimes.tensorrt.runner:TensorRT", (".plan",)),
    "executorch": ("r2mrf_deploy.runtimes.executorch:ExecuTorch", (".pte",)),
    "web": ("r2mrf_deploy.runtimes.web.runner:Web", (".html",)),
    "web-webgpu": ("r2mrf_deploy.runtimes.web.runner:WebGPU", (".html",)),
}


def names() -> list[str]:
    """This package's runtimes, then those that other packages add."""
    return [*_REGISTRY, *plugins.added(plugins.RUNTIMES, _REGISTRY)]


def get(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        UsageError: there is none.
        PluginError: it is another package's, and cannot be imported.
    """
    if name in _REGISTRY:
        module, attribute, *arguments = _REGISTRY[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)(*arguments)
    if entry := plugins.added(plugins.RUNTIMES, _REGISTRY).get(name):
        return plugins.made(entry, Runtime)
    raise UsageError(f"no runtime {name!r}: {did_you_mean(name, names())}")


def _added() -> list[Runtime]:
    """The runtimes of other packages, but for those that cannot be imported."""
    return [found for _, found in plugins.working(plugins.RUNTIMES, _REGISTRY, Runtime, plugins.made)]


def working() -> list[Runtime]:
    """Every runtime but those of other packages that cannot be imported."""
    return [*map(get, _REGISTRY), *_added()]


def suitable(path: Path) -> list[Runtime]:
    """Every runtime that opens such files, whether it is available or not. A checkpoint is known by its content too."""
    path = file_of(path)
    suffix = checkpoint_files.SUFFIXES[0] if checkpoint_files.is_checkpoint(path) else path.suffix.lower()
    own = [get(name) for name, (_, suffixes) in _REGISTRY.items() if suffix in suffixes]
    return own + [runtime for runtime in _added() if suffix in runtime.suffixes]


def known_suffixes() -> list[str]:
    """The suffixes of the files that runtimes open."""
    own = [suffix for _, suffixes in _REGISTRY.values() for suffix in suffixes]
    return list(dict.fromkeys([*own, *(suffix for runtime in _added() for suffix in runtime.suffixes)]))


def default(artifact: Artifact) -> Runtime:
    """The runtime that opens a file by default: the first available one that has kernels of its precision."""
    return _first_available([r for r in suitable(artifact.path) if artifact.precision not in r.unsupported_precisions])


def nearest(precision: str) -> Runtime:
    """Of the available CPU runtimes for ONNX files, the one that comes nearest to computing in a precision."""
    order = ["onnxruntime", "openvino"] if precision in ("fp32", "fp16") else ["openvino", "onnxruntime"]
    return _first_available([r for r in map(get, order) if precision not in r.unsupported_precisions])


def _first_available(able: Sequence[Runtime]) -> Runtime:
    """The first that can be used here, or just the first if none can."""
    return next((r for r in able if r.availability().ok), able[0])


def open(
    artifact: Artifact | Path | str,
    runtime: str | None = None,
    *,
    trust: bool = False,
    options: OpenOptions | None = None,
) -> Runner:
    """Open an artifact or a checkpoint with a runtime (by default `default`).

    Args:
        artifact: must match its manifest, if there is one beside the file.
        trust: open a plan, a package or a page without a manifest. They are executable code.

    Raises:
        InputError: no such file.
        ArtifactError: the file does not match its manifest, or is executable code without one, or no runtime opens it.
        UsageError: the runtime does not open such files, or does not support an option.
        RuntimeUnavailable: the runtime is not installed or has no device here.
    """
    artifact = Artifact.open(artifact)
    path = artifact.path
    able = [r.name for r in suitable(path)]
    if not able:
        raise ArtifactError(
            f"{path}: no runtime opens {path.suffix or 'such'!r} files; known are {' '.join(known_suffixes())}"
        )
    chosen = get(runtime) if runtime else default(artifact)
    if chosen.name not in able:
        raise UsageError(f"{chosen.name} does not open {path.suffix} files; {' or '.join(able)} does")
    if artifact.executable and artifact.manifest is None and not trust:
        raise ArtifactError(
            f"{path} is executable code and has no manifest ({path.name}.json): make it again with `r2mrf export`, "
            "or pass `trust` if you know where it comes from"
        )
    return chosen.open(artifact, options)
