"""ONNX files, read with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from r2mrf_deploy.errors import GraphError, no_file
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
    try:
        model = onnx.load(path)
    except Exception as e:  # protobuf's exceptions and the missing external file share no base class
        raise GraphError(f"{path} is not an ONNX file that can be read: {' '.join(str(e).split())}") from None
    if not model.graph.output:  # protobuf reads some text files as empty models
        raise GraphError(f"{path} is not an ONNX model, or is an empty one")
    return model


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
