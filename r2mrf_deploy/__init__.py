"""Recurrent defocus-blur detectors from PyTorch to ONNX, TensorRT and OpenVINO, with proof of parity.

The public API is a handful of names; each is imported when it is first used, so that running an artifact needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r2mrf_deploy.aotinductor import to_aotinductor
    from r2mrf_deploy.bench.protocol import bench_artifacts
    from r2mrf_deploy.build import BuildOptions, build_engine
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.convert import PrecisionOptions, convert_artifact
    from r2mrf_deploy.errors import R2mrfError
    from r2mrf_deploy.export import ExportOptions, to_onnx
    from r2mrf_deploy.manifest import Manifest
    from r2mrf_deploy.parity.compare import compare_artifacts
    from r2mrf_deploy.predict import Predictor

# name -> the module that has it; no name is also a module's
_WHERE = {
    "BuildOptions": "build",
    "Checkpoint": "checkpoint",
    "ExportOptions": "export",
    "Manifest": "manifest",
    "PrecisionOptions": "convert",
    "Predictor": "predict",
    "R2mrfError": "errors",
    "bench_artifacts": "benchmark",
    "build_engine": "build",
    "compare_artifacts": "parity",
    "convert_artifact": "convert",
    "to_aotinductor": "aotinductor",
    "to_onnx": "export",
}

__all__ = [
    "BuildOptions",
    "Checkpoint",
    "ExportOptions",
    "Manifest",
    "PrecisionOptions",
    "Predictor",
    "R2mrfError",
    "bench_artifacts",
    "build_engine",
    "compare_artifacts",
    "convert_artifact",
    "to_aotinductor",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
