"""What a model promises to those who call it, and whether it keeps it: onnx's check, its shape inference, and the comparison
of two models' outputs.

Types and shapes follow from the inputs and the nodes. What a file states of its inner tensors may be stale, so it is
believed only of tensors that nothing can be inferred of, such as the results of custom operators; and the names that it has
for free dimensions are kept, because runtimes tell by them which shapes are equal. Weights do not take part, so a model may
be of any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx

from r2mrf_deploy.errors import first_line
from r2mrf_deploy.graph import apart
from r2mrf_deploy.manifest import TensorSpec


def inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph without its weights, which old files list among them."""
    constants = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in constants]


def spec(value: Any, layout: Any = None) -> TensorSpec:
    """An input or output of a graph. A free dimension without a name is named after its tensor and axis."""
    tensor = value.type.tensor_type
    known = value.type.WhichOneof("value") == "tensor_type"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else value.type.WhichOneof("value")
    dims = enumerate(tensor.shape.dim) if known else ()
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}_{i}" for i, d in dims]
    return TensorSpec(name=value.name, dtype=str(dtype), shape=shape, layout=layout)


_ATTEMPTS = ((True, True), (True, False), (False, False))
"""Whether the inference is strict, and whether it includes what outputs are declared to be: files in use may declare wrong
shapes."""


@dataclass(frozen=True)
class Inferred:
    """A model with the types and shapes that follow from its inputs."""

    model: onnx.ModelProto
    """A copy. Its outputs have what is declared and what is inferred."""
    level: int
    """Which of `_ATTEMPTS` succeeded, or their number: 0 if the whole model is consistent."""
    error: str
    """Why the attempt before did not."""


def fault(model: onnx.ModelProto) -> str:
    """What onnx's check finds wrong with a model whose weights are loaded, or "".

    Inputs and outputs without a type or a shape pass: onnx calls them invalid, but runtimes take them.
    """
    light = _light(model)
    for value in (*light.graph.input, *light.graph.output):
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
        for tensor in filter(apart.is_large, model.graph.initializer):
            onnx.checker.check_tensor(tensor)
    except onnx.checker.ValidationError as e:
        return " ".join(str(e).split())
    except ValueError:  # over 2 GB of Constant nodes or in one tensor, which onnx cannot take
        pass
    return ""


def infer(model: onnx.ModelProto) -> Inferred:
    """Infer every type and shape; never fails."""
    light = _light(model)
    found = _infer(light)
    typed = {v.name for v in (*found.model.graph.value_info, *found.model.graph.output) if v.type.WhichOneof("value")}
    stated = [value for value in model.graph.value_info if value.name not in typed]
    if stated:
        light.graph.value_info.extend(stated)
        found = min(found, _infer(light), key=lambda f: f.level) if found.level else _infer(light)
    graph = found.model.graph
    _name_free_dimensions(graph, model.graph.value_info)
    _replace(graph.input, model.graph.input)
    _replace(graph.initializer, model.graph.initializer)
    return found


def difference(before: Inferred, after: Inferred) -> str:
    """How a model's outputs differ from those it had before; "" if names, types, ranks and static dimensions are the same
    and the model is as consistent as it was."""
    if after.level > before.level:
        return f"the graph would contradict itself: {after.error}"
    old, new = list(before.model.graph.output), list(after.model.graph.output)
    if [value.name for value in old] != [value.name for value in new]:
        return f"the outputs would be {[v.name for v in new]} instead of {[v.name for v in old]}"
    for was, now in zip(old, new, strict=True):
        if not _same(was.type, now.type):
            return f"the output {was.name!r} would be {_words(now.type)} instead of {_words(was.type)}"
    return ""


def keep(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Give a model the inputs and outputs of its source to the letter."""
    _replace(model.graph.input, source.graph.input)
    _replace(model.graph.output, source.graph.output)


def _infer(light: onnx.ModelProto) -> Inferred:
    error, candidate = "", onnx.ModelProto()
    candidate.CopyFrom(light)
    for level, (strict, declared) in enumerate(_ATTEMPTS):
        for value in () if declared else candidate.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        try:
            found = onnx.shape_inference.infer_shapes(candidate, check_type=strict, strict_mode=strict, data_prop=True)
            return Inferred(found, level, error)
        except (
            Exception
        ) as e:  # InferenceError, ValidationError, SchemaError, ValueError, ...: they share no base class
            error = " ".join(first_line(e).split())
    return Inferred(candidate, len(_ATTEMPTS), error)


def _name_free_dimensions(graph: onnx.GraphProto, stated: Iterable[onnx.ValueInfoProto]) -> None:
    inferred = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    for value in stated:
        named, free = value.type.tensor_type.shape.dim, inferred.get(value.name, ())
        for dim, name in zip(free, named, strict=False) if len(free) == len(named) else ():
            if name.dim_param and not dim.HasField("dim_value"):
                dim.dim_param = name.dim_param


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what the file states of inner tensors, and with inputs in place of large initialisers."""
    return apart.inputs(model, without={"value_info"})


def _replace(field: Any, values: Any) -> None:
    kept = list(values)
    del field[:]
    field.extend(kept)


def _same(was: onnx.TypeProto, now: onnx.TypeProto) -> bool:
    """Whether a type has what is known of the other; free dimensions may have become known."""
    kind = was.WhichOneof("value")
    if kind is None or kind != now.WhichOneof("value"):
        return kind is None
    a, b = getattr(was, kind), getattr(now, kind)
    if kind in ("sequence_type", "optional_type"):
        return _same(a.elem_type, b.elem_type)
    if kind == "map_type":
        return bool(a == b)
    old, new = _dims(a), _dims(b)
    fits = old is None or (
        new is not None
        and len(old) == len(new)
        and all(x == y for x, y in zip(old, new, strict=True) if isinstance(x, int))
    )
    return a.elem_type == b.elem_type and fits


def _dims(tensor: Any) -> list[int | str] | None:
    """Numbers, and names or "?" for what is free; None if the rank is not known."""
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]


def _words(proto: onnx.TypeProto) -> str:
    kind = proto.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return f"of {(kind or 'unknown type').replace('_', ' ')}"
    tensor = getattr(proto, kind)
    dims = _dims(tensor)
    shape = "of unknown rank" if dims is None else f"[{', '.join(map(str, dims))}]"
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {shape}"
