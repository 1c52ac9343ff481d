"""The errors of TensorRT's ONNX parser, as the node, its operator, the reason and the cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import BuildError, GraphError, R2mrfError
from r2mrf_deploy.runtimes.tensorrt.api import plain

# The parser's message -> the cure. The first match counts.
_CURES = (
    (r"type UInt8", "cast the uint8 input to float before anything else; `r2mrf export` writes Cast before Transpose"),
    (r"must be of same type|types? .*(differ|mismatch)", "the graph mixes precisions: add casts, or export it again"),
    (r"[Aa]ntialias", "export without antialiasing (antialias=False)"),
    (r"[Nn]on-zero zero point|shiftIsAllZeros", "quantise symmetrically: every zero point must be 0"),
    (r"slope tensor", "give the PRelu slope the shape [C, 1, 1]"),
    (
        r"[Pp]lugin not found|checkFallbackPluginImporter",
        "TensorRT has no such operator: replace it with standard ones",
    ),
    (r"not registered", "the graph uses a tensor that no node computes: check it with onnx.checker"),
    (r"broadcast|conformable|dimension", "the shapes do not match: run strict shape inference to see where"),
    (r"[Ff]ailed to open|external", "keep the model's external data file beside it, or export to a single file"),
)
_OPERATOR_CURE = "replace the operator, or run the ONNX file with onnxruntime"


def describe(parser: Any, model: Path) -> R2mrfError:
    """The parser's first error as an exception: a GraphError if the file is not a valid model, else a BuildError."""
    if not parser.num_errors:
        return GraphError(f"{model} is not an ONNX model")
    error = parser.get_error(0)
    text = error.desc()
    operator, node = (getattr(error, name, lambda: "")() for name in ("node_operator", "node_name"))  # not in 8.6
    if "DESERIALIZE" in str(error.code()) or error.node() < 0:
        return GraphError(f"{model} is damaged or not an ONNX model: {plain(text)}")
    said = f"{text} {error.func()}"
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, said)), _OPERATOR_CURE)
    where = f"node {error.node()}" + (f" {node!r}" if node else "") + (f" ({operator})" if operator else "")
    return BuildError(f"{model.name}: {where}: {_reason(text)}; {cure}")


def _reason(text: str) -> str:
    """The line of a parser's error that says what is wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    inner = [line for line in lines if "Error Code" in line and "Cuda Runtime" not in line]
    reason = plain((inner or lines or ["no reason given"])[0])
    if quoted := re.search(r'"([^"]+)"', reason):  # the text of an assertion
        return quoted.group(1).rstrip(".")
    reason = reason.removeprefix("Assertion failed: ")
    return "not supported" if reason in ("", "false") else reason
