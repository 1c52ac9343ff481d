"""INT8 graphs: with Q/DQ pairs where an 8-bit kernel can use them, readable by every runtime.

ONNX Runtime's quantisation tool inserts the pairs, configured so that TensorRT's typed parser accepts the
result: symmetric activations and weights, a weight scale for each output channel, biases in floating point. Weights use 7 of
their 8 bits, -64 to 64: a CPU without VNNI adds products in pairs, in 16 bits, which larger weights overflow. OpenVINO's
maps are wrong there, and nothing says so.

This module adds three things. It finds the ranges faster, with one photograph in memory at a time (see `ranges`). It
keeps pairs only in front of quantised nodes, so that sums and nodes kept in floating point read values that were not
rounded. And what is concatenated is rounded before, to the same values: OpenVINO (2026.4) makes steps of 20 of a rounded
concatenation on a CPU without VNNI.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, get_args

import numpy as np
import onnx

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.graph.naming import rename
from r2mrf_deploy.graph.precision import reach, refuse_unknown, refuse_unless_fp32, tidied
from r2mrf_deploy.graph.prepare import refuse_unnamed, standard
from r2mrf_deploy.graph.ranges import Feed, Range, by_histogram, extremes, not_finite
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
QUANTISED = ("Conv", "ConvTranspose", "Gemm")
"""Operators that read quantised tensors; the nodes between them stay as they are, or the runtime fuses them."""

WEIGHT_BITS = 7
"""Bits of a weight's 8 that are used."""

_PAIR = ("QuantizeLinear", "DequantizeLinear")

Ranges = Any
"""ONNX Runtime's TensorsData: the range of each tensor."""


def calibrate(
    model: onnx.ModelProto, feeds: Sequence[Feed], method: Method = "minmax", progress: ProgressCallback = silent
) -> Ranges:
    """Find the range of every tensor that will be quantised: what the nodes of `quantizable` read.

    Args:
        model: an FP32 graph.
        feeds: its inputs, one photograph each.
        method: "minmax", or, from a histogram, "entropy" (least divergence) or "percentile" (99.999 % of the values).

    Raises:
        UsageError: the graph is not FP32, there is no such method, or there are no photographs.
        GraphError: values that are not finite are found.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    refuse_unless_fp32(model)
    if method not in METHODS:
        raise UsageError(f"no calibration method {method!r}: choose from {', '.join(METHODS)}")
    if not feeds:
        raise UsageError("there is nothing to calibrate on: give photographs")
    names = _read_by_quantised(model)

    def told(done: int) -> None:
        progress(Progress("calibrating", done, len(feeds)))

    if method == "minmax":
        found = {n: _symmetric(*r) for n, r in extremes(model, names, feeds, told).items()}
        if endless := [n for n, (_, high) in found.items() if not np.isfinite(high)]:
            raise not_finite(endless[0])
        kind = CalibrationMethod.MinMax
    else:
        found = by_histogram(model, names, feeds, method, told)
        kind = CalibrationMethod.Entropy if method == "entropy" else CalibrationMethod.Percentile
    return TensorsData(kind, {n: TensorData(lowest=low, highest=high) for n, (low, high) in found.items()})


def _read_by_quantised(model: onnx.ModelProto) -> list[str]:
    """The tensors that quantisable nodes read, each once, without weights."""
    able, weights = set(quantizable(model)), {i.name for i in model.graph.initializer}
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if n.name in able and n.input[0] not in weights))


def _symmetric(low: np.ndarray, high: np.ndarray) -> Range:
    largest = np.maximum(np.abs(low), np.abs(high))
    return np.array(-largest), np.array(largest)


def observe(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of every floating-point tensor that a node computes; NaN where one of its values
    is."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        v.name for v in (*typed.value_info, *typed.output) if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    names = [name for node in model.graph.node for name in node.output if name in floats]
    found = extremes(model, names, feeds, lambda done: None)
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def overflowing(model: onnx.ModelProto, feeds: Sequence[Feed], margin: float) -> list[str]:
    """The nodes that would overflow in FP16: one of their tensors or weights exceeds `margin` times its largest number.

    Args:
        model: an FP32 graph.
        feeds: its inputs, one photograph each.
    """
    limit = margin * float(np.finfo(np.float16).max)
    wide = {name for name, (low, high) in observe(model, feeds).items() if not -limit <= low <= high <= limit}
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    wide |= {w.name for w in weights if np.abs(onnx.numpy_helper.to_array(w)).max(initial=0) > limit}
    return [n.name for n in model.graph.node if wide & {*n.input, *n.output}]


def quantizable(model: onnx.ModelProto) -> list[str]:
    """The nodes that `quantize` lets read quantised tensors: those with constant weights, except depthwise convolutions.

    A depthwise convolution reads each channel by itself, and the channels' ranges differ by orders of magnitude: with one
    scale for all of them, little remains of the small ones. It has few multiply-adds, so there is little to gain either.
    """
    return [n.name for n, weight in _weighted(model) if not _depthwise(n, weight)]


def depthwise(model: onnx.ModelProto) -> list[str]:
    """The depthwise convolutions, which `quantize` leaves in floating point."""
    return [n.name for n, weight in _weighted(model) if _depthwise(n, weight)]


def _weighted(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Sequence[int]]]:
    """The nodes of `QUANTISED` operators with constant weights, and the shapes of these."""
    shapes = {i.name: i.dims for i in model.graph.initializer}
    for node in model.graph.node:
        if standard(node, *QUANTISED) and len(node.input) > 1 and node.input[1] in shapes:
            yield node, shapes[node.input[1]]


def _depthwise(node: onnx.NodeProto, weight: Sequence[int]) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups > 1 and (weight[1] == 1 if node.op_type == "Conv" else weight[0] == groups)


def ends(model: onnx.ModelProto) -> list[str]:
    """The quantisable nodes that stay in floating point by default: the first, which read the image, and the last, which
    write the logits."""
    able = set(quantizable(model))
    after, before = reach(model, lambda node: node.name in able)
    nodes = [n for n in model.graph.node if n.name in able]
    first = [n.name for n in nodes if not after & set(n.input)]
    return list(dict.fromkeys([*first, *(n.name for n in reversed(nodes) if not before & set(n.output))]))


def quantize(model: onnx.ModelProto, ranges: Ranges, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The graph with Q/DQ pairs before every quantisable node.

    Args:
        model: the FP32 graph that was calibrated, prepared (see `prepare`).
        ranges: from `calibrate`.
        keep: nodes that stay in floating point; those of `ends` only if they are given.

    Raises:
        UsageError, GraphError: as in `precision.to_half`.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    refuse_unless_fp32(model)
    refuse_unnamed(model)
    refuse_unknown(model, keep)
    quantizer = QDQQuantizer(
        deepcopy(model),
        per_channel=True,
        reduce_range=True,  # to `WEIGHT_BITS`
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=quantizable(model),
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTISED),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": False,
            "OpTypesToExcludeOutputQuantization": list(QUANTISED),  # only what is read by one has a range
        },
    )
    quantizer.quantize_model()
    return restore(quantizer.model.model, model, keep)


def restore(quantised: onnx.ModelProto, original: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A quantised graph with some nodes in floating point again, as if they had never been quantised.

    Args:
        quantised: what `quantize` made of `original`.
        keep: the nodes that read floating point.

    Raises:
        UsageError: no node has one of the names.
        GraphError: the result is not valid ONNX.
    """
    refuse_unknown(original, keep)
    done = deepcopy(quantised)
    graph = done.graph
    _outputs_as_computed(graph)
    makers = {output: node for node in graph.node for output in node.output}
    weights = {i.name: i for i in original.graph.initializer}
    read = {node.name: node.input for node in original.graph.node}
    computed = {output: node for node in original.graph.node for output in node.output}
    able, kept = set(quantizable(original)), set(keep)
    needed: dict[str, onnx.TensorProto] = {}
    for node in list(graph.node):
        if standard(node, *_PAIR) or (node.name in able and node.name not in kept):
            continue
        for slot, name in enumerate(node.input):  # the tool gives the dequantised tensor to every reader
            dequantise = makers.get(name)
            if dequantise is None or not standard(dequantise, "DequantizeLinear"):
                continue
            quantise = makers.get(dequantise.input[0])
            if quantise is not None and standard(quantise, "Concat"):
                node.input[slot] = read[node.name][slot]
                _add_maker(graph, node.input[slot], makers, computed)
            elif quantise is not None:
                node.input[slot] = quantise.input[0]
            else:
                weight = dequantise.input[0].removesuffix("_quantized")
                node.input[slot], needed[weight] = weight, weights[weight]
    present = {i.name for i in graph.initializer}
    graph.initializer.extend(tensor for name, tensor in needed.items() if name not in present)
    _round_before_concatenating(graph)
    return tidied(done)


def _add_maker(
    graph: onnx.GraphProto, name: str, makers: dict[str, onnx.NodeProto], computed: Mapping[str, onnx.NodeProto]
) -> None:
    """Compute a concatenation of floats again, and those in it: only their parts, rounded, were left."""
    if name in computed and name not in makers:
        makers[name] = graph.node.add()
        makers[name].CopyFrom(computed[name])
        for part in computed[name].input:
            _add_maker(graph, part, makers, computed)


def _round_before_concatenating(graph: onnx.GraphProto) -> None:
    """Round the parts of a concatenation, to the same values, instead of the whole."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if standard(node, "QuantizeLinear")]
    while waiting:
        quantise = waiting.pop()
        concat = makers.get(quantise.input[0])
        if concat is None or not standard(concat, "Concat"):
            continue
        name, rounded, scale = quantise.name, quantise.output[0], quantise.input[1:]
        parts = [f"{rounded}/{i}" for i in range(len(concat.input))]
        for i, (part, x) in enumerate(zip(parts, concat.input, strict=True)):
            waiting.append(graph.node.add())
            waiting[-1].CopyFrom(onnx.helper.make_node("QuantizeLinear", [x, *scale], [part], f"{name}/{i}"))
        quantise.CopyFrom(onnx.helper.make_node("Concat", parts, [rounded], f"{name}/concat"))
        quantise.attribute.extend(concat.attribute)


def _outputs_as_computed(graph: onnx.GraphProto) -> None:
    """Return what was computed: the tool rounds an output that a quantised node also reads."""
    makers = {output: node for node in graph.node for output in node.output}
    renamed: dict[str, str] = {}
    for value in graph.output:
        dequantise = makers.get(value.name)
        rounded = dequantise is not None and standard(dequantise, "DequantizeLinear")
        quantise = makers.get(dequantise.input[0]) if dequantise is not None and rounded else None
        if quantise is not None:
            renamed |= {value.name: f"{value.name}/rounded", quantise.input[0]: value.name}
    rename(graph, renamed)
