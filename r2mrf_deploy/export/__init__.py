"""Makes artifacts: one exporter for each format, found by the suffix of the file to write.

A new format takes one module with an `Exporter` and one line in the registry, or a module of another package and an entry
point of it (see `plugins`). Each verb has its own module: `chain` (from a
checkpoint to files of any format), `build` (from a graph to a file of any format), `convert`, `optimize`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from r2mrf_deploy import plugins
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.export.base import Exporter
from r2mrf_deploy.web import INDEX, SUFFIX

REGISTRY = {
    ".onnx": "r2mrf_deploy.export.onnx:OnnxExporter",
    ".xml": "r2mrf_deploy.export.openvino:OpenVINOExporter",
    ".plan": "r2mrf_deploy.export.tensorrt:TensorRTExporter",
    ".pt2": "r2mrf_deploy.export.aotinductor:AOTInductorExporter",
    ".pte": "r2mrf_deploy.export.executorch:ExecuTorchExporter",
    ".html": "r2mrf_deploy.export.web:WebExporter",
}
"""Suffix -> module:class."""
_NAMES = frozenset(suffix.removeprefix(".") for suffix in REGISTRY)


def suffixes() -> list[str]:
    """The suffixes of the files that can be written: this package's, then those that other packages add."""
    return [*REGISTRY, *(f".{name}" for name in plugins.added(plugins.EXPORTERS, _NAMES))]


def exporter(path: Path) -> Exporter:
    """The exporter that writes files of this suffix.

    Raises:
        UsageError: there is none.
        PluginError: it is another package's, and cannot be imported.
    """
    if path.suffix in REGISTRY:
        module, _, attribute = REGISTRY[path.suffix].partition(":")
        return getattr(importlib.import_module(module), attribute)()
    if entry := plugins.added(plugins.EXPORTERS, _NAMES).get(path.suffix.removeprefix(".")):
        return plugins.made(entry, Exporter)
    raise UsageError(f"{path}: no exporter writes {path.suffix or 'such'} files; known are {' '.join(suffixes())}")


def destination(output: Path | str) -> Path:
    """The file that an output names: `FOLDER/index.html` for a folder, which is what has no suffix, or is there already.

    Raises:
        UsageError: it is a page of another name: a page has a folder to itself.
    """
    path = Path(output)
    if not path.suffix or path.is_dir() or str(output).endswith(("/", os.sep)):
        return path / INDEX
    if path.suffix == SUFFIX and path.name != INDEX:
        raise UsageError(f"{path}: a page is a folder of files: name the folder, for example {path.with_suffix('')}")
    return path


def exporters() -> list[Exporter]:
    """One for each format that can be written."""
    own = [exporter(Path(f"x{suffix}")) for suffix in REGISTRY]
    return own + [found for _, found in plugins.working(plugins.EXPORTERS, _NAMES, Exporter, plugins.made)]
