"""What TensorRT's ONNX parser complains of, as the node, its operator, the reason and the cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import BuildError, GraphError, R2mrfError
from r2mrf_deploy.runtimes.tensorrt.api import plain

# What the parser says -> what to do about it. The first that matches counts.
_CURES = (
    (r"type UInt8", "cast the uint8 input to float before anything else; `r2mrf export` writes Cast before Transpose"),
    (
        r"must be of same type|types? .*(differ|mismatch)",
        "the graph mixes precisions: cast explicitly, or export it again",
    ),
    (r"[Aa]ntialias", "export without antialiasing (antialias=False)"),
    (r"[Nn]on-zero zero point|shiftIsAllZeros", "quantise symmetrically: every zero point must be 0"),
    (r"slope tensor", "give the PRelu slope the shape [C, 1, 1]"),
    (
        r"[Pp]lugin not found|checkFallbackPluginImporter",
        "TensorRT has no such operator: replace it with standard ones",
    ),
    (r"not registered", "the graph uses a tensor that nothing makes: check it with onnx.checker"),
    (r"broadcast|conformable|dimension", "the shapes do not fit: run strict shape inference to see where"),
    (r"[Ff]ailed to open|external", "keep the model's external data file beside it, or export to one file"),
)
_OPERATOR_CURE = "TensorRT does not support it so: replace the operator, or run the ONNX file with onnxruntime"


def describe(parser: Any, model: Path) -> R2mrfError:
    """The parser's first error as an exception to raise: a GraphError where the file is no model, else a BuildError."""
    if not parser.num_errors:
        return GraphError(f"{model} is not an ONNX model")
    error = parser.get_error(0)
    text = error.desc()
    operator, node = (_call(error, name) for name in ("node_operator", "node_name"))
    if "DESERIALIZE" in str(error.code()) or error.node() < 0:
        return GraphError(f"{model} is damaged or no ONNX model: {plain(text)}")
    said = f"{text} {error.func()}"
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, said)), _OPERATOR_CURE)
    where = f"node {error.node()}" + (f" {node!r}" if node else "") + (f" ({operator})" if operator else "")
    return BuildError(f"{model.name}: {where}: {_reason(text)}; {cure}")


def _call(error: Any, name: str) -> str:
    """What a method of ParserError returns, or nothing where this version has no such method."""
    return getattr(error, name, lambda: "")() or ""


def _reason(text: str) -> str:
    """The line of a parser's error that says what is wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    inner = [line for line in lines if "Error Code" in line and "Cuda Runtime" not in line]
    reason = plain((inner or lines or ["no reason given"])[0])
    if quoted := re.search(r'"([^"]+)"', reason):  # an assertion: its text is in quotes
        return quoted.group(1).rstrip(".")
    reason = reason.removeprefix("Assertion failed: ")
    return "not supported" if reason in ("", "false") else reason
