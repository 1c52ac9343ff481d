"""Which operators of a graph ONNX Runtime Web can run, and where: asked before a page is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from r2mrf_deploy.errors import GraphError, first_line

_ROW = re.compile(r"^\| (\w+) \| (.+?) \|", re.MULTILINE)
_DOMAIN = re.compile(r"([\w.]+)\(([\d,+-]+)\)")


def session(model: Path) -> Any:
    """A graph on the processor, as the page opens it there: WebAssembly has the kernels of ONNX Runtime's CPU provider.

    Raises:
        GraphError: a node has no kernel, or the graph cannot be opened for another reason.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions share no base class
        raise GraphError(f"ONNX Runtime Web cannot run {model.name}: {first_line(e)}") from None


def without_webgpu(model: onnx.ModelProto, table: str) -> list[str]:
    """The operators of a graph that have no kernel on WebGPU, so that they run on the processor even there.

    Args:
        table: ONNX Runtime Web's own, which gives the versions of each operator but not the types. That Cast has no kernel
            for bytes is known from its sources.
    """
    known = {name: list(_versions(rest)) for name, rest in _ROW.findall(table)}
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    bytes_in = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    lacking = set()
    for node in model.graph.node:
        version = opsets.get(_domain(node.domain), 1)
        kernels = known.get(node.op_type, [])
        if not any(d == _domain(node.domain) and low <= version <= high for d, low, high in kernels):
            lacking.add(node.op_type)
        elif node.op_type == "Cast" and node.input[0] in bytes_in:
            lacking.add("Cast of bytes")
    return sorted(lacking)


def _domain(name: str) -> str:
    return name or "ai.onnx"


def _versions(text: str) -> Iterator[tuple[str, int, float]]:
    """The domains and ranges of versions in a row: `ai.onnx(6-12,13+)` is 6 to 12, and from 13 on."""
    for domain, ranges in _DOMAIN.findall(text):
        for each in ranges.split(","):
            low, _, high = each.rstrip("+").partition("-")
            yield domain, int(low), float("inf") if each.endswith("+") else int(high or low)
