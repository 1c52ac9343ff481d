"""ONNX files, read with errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from r2mrf_deploy.errors import GraphError, no_file, reading
from r2mrf_deploy.graph import interface


def serialized(model: onnx.ModelProto) -> bytes:
    """The model as the content of one file, after onnx's check.

    Raises:
        GraphError: the model is not valid, or is over 2 GB, which one file cannot hold.
    """
    try:
        content = model.SerializeToString()
    except Exception:  # ValueError, or one of protobuf's own
        raise GraphError(
            "the model is over 2 GB, the most that one ONNX file can hold: lower its precision, or split it"
        ) from None
    if fault := interface.fault(model):
        raise GraphError(f"the graph would not be valid ONNX, so it is not written: {fault}")
    return content


def read(path: Path | str) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        InputError: no such file.
        GraphError: the file is damaged, or is not an ONNX model.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path)
    with reading(path, GraphError, "is not an ONNX file that can be read"):
        model = onnx.load(path)
        _refuse_garbled(model)
        for tensor in _tensors(model.graph):
            if min(tensor.dims, default=0) < 0:
                raise ValueError(f"{tensor.name} has a negative dimension")
            onnx.numpy_helper.to_array(tensor)  # raises where the data are not of the type and shape that they claim
    if not model.graph.output:  # protobuf reads some text files as empty models
        raise GraphError(f"{path} is not an ONNX model, or is an empty one")
    return model


def _refuse_garbled(message: Any) -> None:
    """Refuse names that are not text: protobuf gives them as bytes, and libraries further on fail at them."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for part in [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value:
            if isinstance(part, bytes):
                raise ValueError(f"its {field.name} {part!r} is not text")
            if field.type == field.TYPE_MESSAGE:
                _refuse_garbled(part)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The weights, and the constants in nodes and their bodies."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield from (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors)
        for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _tensors(body)


def refuse_not_finite(model: onnx.ModelProto) -> None:
    """Refuse weights that are not finite: some runtimes turn NaN into a map that looks right.

    Raises:
        GraphError: a tensor has such values.
    """
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise GraphError(
                f"{tensor.name} has values that are not finite: the training diverged, or the file is damaged"
            )
