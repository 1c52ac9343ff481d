"""A graph apart from its large weights: who works on the graph alone need not copy, parse and check hundreds of megabytes.

`Weights` takes them out of a model and puts them back. Meanwhile a placeholder stands for each: a tensor with its name, type
and shape whose data are external, at a place that `Weights` knows. onnx's own functions want the files of external data,
so they are given `inputs` in the place of the placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.serde import TensorProtoTensor, serialize_tensor

LARGE = 4096
"""The most bytes of a weight that stays in the graph: sizes and axes do, and inference needs their values."""

Which = Callable[[onnx.TensorProto], bool]

_PLACE = "apart from the graph: "
"""How the places of weights begin, so that a model whose own data are external is not mistaken for one of these."""


class Weights:
    """The large weights that were taken out of a model, and those that rewrites add to it."""

    def __init__(self) -> None:
        self._tensors: dict[str, onnx.TensorProto | ir.TensorProtocol] = {}
        self._lent: dict[str, ir.TensorProtocol] = {}
        self._places: dict[ir.TensorProtocol, str] = {}
        self.digests: dict[tuple[ir.TensorProtocol, tuple[int, int] | None], bytes] = {}
        """Hashes of weights and of ranges of their axis 1, so that several editors hash them once."""

    def take(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of a model with placeholders. The model must not be changed until its weights are put back."""
        light = _without_weights(model)
        for tensor in model.graph.initializer:
            if is_large(tensor):
                place = self._keep(tensor)
                light.graph.initializer.append(_placeholder(tensor, place))
            else:
                light.graph.initializer.append(tensor)
        return light

    def put(self, model: onnx.ModelProto) -> None:
        """Put the weights in the place of a model's placeholders."""
        tensors = list(model.graph.initializer)
        del model.graph.initializer[:]
        for tensor in tensors:
            place = _place(tensor)
            kept = tensor if place is None else self._tensors[place]
            added = model.graph.initializer.add()
            added.CopyFrom(kept if isinstance(kept, onnx.TensorProto) else serialize_tensor(kept))
            added.name = tensor.name

    def lend(self, model: ir.Model) -> None:
        """Give the placeholders in an `onnx_ir` model their values, each the same object whenever it is lent."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            place = str(tensor.location) if isinstance(tensor, ir.ExternalTensor) else ""
            if place in self._tensors:
                if place not in self._lent:
                    self._lent[place] = lent = _loaded(self._tensors[place])
                    self._places[lent] = place
                value.const_value = self._lent[place]

    def take_back(self, model: ir.Model, without: Collection[ir.Value] = ()) -> None:
        """Put placeholders in the place of an `onnx_ir` model's large weights, lent or new.

        Args:
            without: weights that stay.
        """
        for value in model.graph.initializers.values():
            tensor = None if value in without else value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes <= LARGE:
                continue
            if isinstance(tensor, TensorProtoTensor) and not is_large(tensor.raw):
                continue
            place = self._places.get(tensor)
            if place is None:
                self._places[tensor] = place = self._keep(tensor)
                self._lent[place] = tensor
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(place, None, None, tensor.dtype, shape=shape, name=str(value.name))

    @property
    def nbytes(self) -> int:
        """What they add to a file."""
        sizes = (len(t.raw_data) if isinstance(t, onnx.TensorProto) else t.nbytes for t in self._tensors.values())
        return sum(sizes)

    def _keep(self, tensor: onnx.TensorProto | ir.TensorProtocol) -> str:
        place = f"{_PLACE}{len(self._tensors)}"
        self._tensors[place] = tensor
        return place


def is_large(tensor: onnx.TensorProto) -> bool:
    """Whether a weight is to be kept apart, or is: whether it is large, or a placeholder."""
    # protobuf tells a message's size by writing it: to copy the data alone is far quicker
    return len(tensor.raw_data) > LARGE or tensor.ByteSize() > LARGE or is_placeholder(tensor)


def is_placeholder(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor stands for a weight that is kept apart."""
    return _place(tensor) is not None


def inputs(model: onnx.ModelProto, without: Collection[str] = (), large: Which = is_large) -> onnx.ModelProto:
    """A copy of a model with inputs in place of its large weights or their placeholders.

    Args:
        without: fields of the graph to leave out.
        large: which initialisers are replaced.
    """
    light = _without_weights(model, without)
    names = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not large(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in names:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def initializers(light: onnx.ModelProto, model: onnx.ModelProto, large: Which = is_large) -> onnx.ModelProto:
    """What became of the copy that `inputs` gave, with the model's large weights, or their placeholders, where they were
    among its initialisers. It is changed in place."""
    names = {value.name for value in model.graph.input}
    made = {tensor.name: tensor for tensor in light.graph.initializer}
    apart = {tensor.name: tensor for tensor in model.graph.initializer if large(tensor)}
    old = [apart.get(tensor.name) or made.pop(tensor.name, None) for tensor in model.graph.initializer]
    _replace(light.graph.input, [v for v in light.graph.input if v.name in names or v.name not in apart])
    _replace(light.graph.initializer, [*(tensor for tensor in old if tensor is not None), *made.values()])
    return light


def _replace(field: Any, messages: Iterable[Any]) -> None:
    kept = list(messages)
    del field[:]
    field.extend(kept)


def _without_weights(model: onnx.ModelProto, without: Collection[str] = ()) -> onnx.ModelProto:
    light = onnx.ModelProto()
    _copy(model, light, without={"graph"})
    _copy(model.graph, light.graph, without={"initializer", *without})
    return light


def _copy(source: Any, target: Any, without: Collection[str]) -> None:
    """Copy the fields of a protobuf message."""
    for field, value in source.ListFields():
        if field.name in without:
            continue
        if hasattr(value, "MergeFrom"):  # a message, or repeated
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def _placeholder(tensor: onnx.TensorProto, place: str) -> onnx.TensorProto:
    placeholder = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    placeholder.data_location = onnx.TensorProto.EXTERNAL
    placeholder.external_data.add(key="location", value=place)
    return placeholder


def _place(tensor: onnx.TensorProto) -> str | None:
    """Where a placeholder's weight is kept; None for any other tensor."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((e.value for e in tensor.external_data if e.key == "location" and e.value.startswith(_PLACE)), None)


def _loaded(tensor: onnx.TensorProto | ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor whose array is made once, where `onnx_ir` would copy a weight's bytes whenever it is looked at."""
    if not isinstance(tensor, onnx.TensorProto):
        return tensor
    read = TensorProtoTensor(tensor)
    return ir.LazyTensor(
        lambda: ir.Tensor(read.numpy(), read.dtype), read.dtype, read.shape, cache=True, name=tensor.name
    )
