"""Makes artifacts: one exporter for each format, found by the suffix of the file to write.

A new format takes one module with an `Exporter` and one line in the registry. Each verb has its own module: `chain` (from a
checkpoint to files of any format), `build` (from a graph to a file of any format), `convert`, `optimize`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.export.base import Exporter

REGISTRY = {
    ".onnx": "r2mrf_deploy.export.onnx:OnnxExporter",
    ".xml": "r2mrf_deploy.export.openvino:OpenVINOExporter",
    ".plan": "r2mrf_deploy.export.tensorrt:TensorRTExporter",
    ".pt2": "r2mrf_deploy.export.aotinductor:AOTInductorExporter",
}
"""Suffix -> module:class."""


def exporter(path: Path) -> Exporter:
    """The exporter that writes files of this suffix.

    Raises:
        UsageError: there is none.
    """
    if path.suffix not in REGISTRY:
        raise UsageError(f"{path}: no exporter writes {path.suffix or 'such'} files; known are {' '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[path.suffix].partition(":")
    return getattr(importlib.import_module(module), attribute)()


def exporters() -> list[Exporter]:
    """One for each format."""
    return [exporter(Path(f"x{suffix}")) for suffix in REGISTRY]
