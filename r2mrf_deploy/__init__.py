"""Recurrent defocus-blur detectors from PyTorch to ONNX, TensorRT and OpenVINO, with proof of parity.

The public API is a handful of names; each is imported when it is first used, so that running an artifact needs no PyTorch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r2mrf_deploy.artifact import Artifact as Artifact
    from r2mrf_deploy.bench.protocol import bench_artifacts as bench_artifacts
    from r2mrf_deploy.checkpoint import Checkpoint as Checkpoint
    from r2mrf_deploy.errors import R2mrfError as R2mrfError
    from r2mrf_deploy.export.build import build_artifact as build_artifact
    from r2mrf_deploy.export.chain import export_artifact as export_artifact
    from r2mrf_deploy.export.chain import export_artifacts as export_artifacts
    from r2mrf_deploy.export.convert import convert_artifact as convert_artifact
    from r2mrf_deploy.export.optimize import optimize_artifact as optimize_artifact
    from r2mrf_deploy.export.options import ExportOptions as ExportOptions
    from r2mrf_deploy.export.options import FormatOptions as FormatOptions
    from r2mrf_deploy.export.options import PrecisionOptions as PrecisionOptions
    from r2mrf_deploy.manifest import Manifest as Manifest
    from r2mrf_deploy.parity.artifacts import compare_artifacts as compare_artifacts
    from r2mrf_deploy.predictor import Predictor as Predictor
    from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions as BuildOptions

# name -> the module that has it; no name is also a module's
_WHERE = {
    "Artifact": "artifact",
    "BuildOptions": "runtimes.tensorrt.options",
    "Checkpoint": "checkpoint",
    "ExportOptions": "export.options",
    "FormatOptions": "export.options",
    "Manifest": "manifest",
    "PrecisionOptions": "export.options",
    "Predictor": "predictor",
    "R2mrfError": "errors",
    "bench_artifacts": "bench.protocol",
    "build_artifact": "export.build",
    "compare_artifacts": "parity.artifacts",
    "convert_artifact": "export.convert",
    "export_artifact": "export.chain",
    "export_artifacts": "export.chain",
    "optimize_artifact": "export.optimize",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("r2mrf-deploy")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
