"""FP16 and BF16 graphs: precision as the types in the graph, which every runtime reads alike and TensorRT 11 asks for.

Built on ONNX Runtime's float16 converter. This module adds what the converter lacks: the order of the nodes, scopes in the
names of its casts, BF16 (the same graph with the other 16-bit type, from the original weights), and the nodes kept in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass, TopologicalSortPass

from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.graph.trace import checked

Half = Literal["fp16", "bf16"]

BF16_OPSET = 22
"""The first whose Conv takes BF16."""
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NOT_IN_BF16 = frozenset({"ConvTranspose"})
"""Operators that TensorRT does not build in BF16; they stay in FP32."""
_MOVES = frozenset(
    {
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that pass values on unchanged, so that a lower precision adds no error of their own."""
_LOW = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def to_half(model: onnx.ModelProto, precision: Half, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A graph of the same function with FP16 or BF16 types; inputs and outputs keep theirs.

    Args:
        model: an FP32 graph.
        keep: names of nodes that stay in FP32, beside those of `ends`.

    Raises:
        UsageError: the graph is not FP32, or a name is no node's.
        GraphError: the result is not valid ONNX.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    refuse_unless_fp32(model)
    refuse_unknown(model, keep)
    if precision == "bf16":
        model = _without_hard_activations(_at_opset(model, BF16_OPSET))
        keep = [*keep, *(n.name for n in model.graph.node if n.name.rpartition("/")[0] in set(keep))]  # what one became
    original = {i.name: i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT}
    refused = [n.name for n in model.graph.node if precision == "bf16" and n.op_type in _NOT_IN_BF16]
    kept = [*dict.fromkeys((*ends(model), *refused, *keep))]
    half = convert_float_to_float16(deepcopy(model), keep_io_types=True, node_block_list=kept)
    _make_once(half.graph)
    if precision == "bf16":
        _retype(half.graph, original)
    _drop_detours(half.graph, original)
    _name_added(half.graph)
    del half.graph.value_info[:]  # of other types; checked() infers them again
    tidy = ir.from_proto(half)
    IdentityEliminationPass()(tidy)
    RemoveUnusedNodesPass()(tidy)
    return checked(ir.to_proto(TopologicalSortPass()(tidy).model))


def ends(model: onnx.ModelProto) -> list[str]:
    """The nodes that always stay in FP32: those before the first convolution, which scale the input, and those after the
    last, which bring the logits to the image's size and turn them into a map."""
    after, before = reach(model, lambda node: node.op_type in _WEIGHTED)
    rest = (n for n in model.graph.node if n.op_type not in _WEIGHTED)
    return [n.name for n in rest if not (after & set(n.output) and before & set(n.output))]


def reach(model: onnx.ModelProto, seeds: Callable[[onnx.NodeProto], bool]) -> tuple[set[str], set[str]]:
    """The tensors that depend on a seed node's outputs, outputs included, and those that a seed node's inputs depend on."""
    after, before = set[str](), set[str]()
    for node in model.graph.node:  # in the graph's order
        if seeds(node) or after & set(node.input):
            after.update(node.output)
    for node in reversed(model.graph.node):
        if seeds(node) or before & set(node.output):
            before.update(node.input)
    return after, before


def computing(model: onnx.ModelProto) -> list[str]:
    """The nodes whose arithmetic `to_half` reduces."""
    fixed = set(ends(model))
    return [n.name for n in model.graph.node if n.op_type not in _MOVES and n.name not in fixed]


def carried(model: onnx.ModelProto, kept: Collection[str]) -> list[str]:
    """The nodes that only pass on what kept nodes compute: in FP32 with them, nothing is rounded between the two."""
    kept, constants, found = {*kept, *ends(model)}, {i.name for i in model.graph.initializer}, []
    makers = {output: node.name for node in model.graph.node for output in node.output}
    for node in model.graph.node:  # in the graph's order
        read = [makers.get(name, "") for name in node.input if name and name not in constants]
        if node.op_type in _MOVES and node.name not in kept and read and kept.issuperset(read):
            kept.add(node.name)
            found.append(node.name)
    return found


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A BF16 graph with FP32 types, each of its BF16 values rounded as it is made: what a device with BF16 computes, to the
    order of its sums. CPUs with BF16 compute all of a graph in it, kept nodes too, so they cannot tell what these are worth.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    low = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.BFLOAT16:
                wide = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
        for slot, name in enumerate(node.output):
            if name in low and (node.op_type not in _MOVES or node.op_type == "Cast"):
                node.output[slot] = f"{name}/wide"
                for there, source, to in (("short", "wide", TensorProto.BFLOAT16), ("", "short", TensorProto.FLOAT)):
                    target = f"{name}/{there}" if there else name
                    nodes.append(
                        onnx.helper.make_node("Cast", [f"{name}/{source}"], [target], target + "/round", to=to)
                    )
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


def precisions(model: onnx.ModelProto) -> list[str]:
    """The reduced precisions in a graph, by its types: int8 where it is quantised, fp16, bf16."""
    found = ["int8"] if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node) else []
    types = {i.data_type for i in model.graph.initializer}
    types |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return found + [name for kind, name in _LOW.items() if kind in types]


def refuse_unless_fp32(model: onnx.ModelProto) -> None:
    """
    Raises:
        UsageError: the graph has reduced precision already.
    """
    if found := precisions(model):
        raise UsageError(f"the graph is {found[0].upper()} already: convert the FP32 graph that it was made from")


def refuse_unknown(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """
    Raises:
        UsageError: a name is no node's.
    """
    known = {n.name for n in model.graph.node}
    for name in names:
        if name not in known:
            raise UsageError(f"no node {name!r} to keep in higher precision: {did_you_mean(name, known)}")


def nodes_of(model: onnx.ModelProto, names: Iterable[str]) -> list[str]:
    """The nodes with these names, or whose names begin with one of them up to a slash: `step1.branch5` means all of it.

    Raises:
        UsageError: a name matches no node.
    """
    found: list[str] = []
    for name in names:
        meant = [n.name for n in model.graph.node if n.name == name or n.name.startswith(f"{name.rstrip('/')}/")]
        if not meant:
            refuse_unknown(model, [name])
        found += meant
    return list(dict.fromkeys(found))


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    current = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return model if current >= opset else onnx.version_converter.convert_version(model, opset)


def _without_hard_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """HardSwish and HardSigmoid written out: TensorRT takes them in FP32, FP16 and INT8 only."""
    swap: list[onnx.NodeProto] = []
    constants: dict[str, float] = {"zero": 0.0, "one": 1.0}
    for node in model.graph.node:
        if node.op_type not in ("HardSwish", "HardSigmoid"):
            swap.append(node)
            continue
        given = {a.name: a.f for a in node.attribute}
        alpha, beta = (1 / 6, 0.5) if node.op_type == "HardSwish" else (given.get("alpha", 0.2), given.get("beta", 0.5))
        constants |= {f"alpha{alpha:g}": alpha, f"beta{beta:g}": beta}
        x, y, gate = node.input[0], node.output[0], f"{node.name}/gate"
        swap += [
            _node("Mul", [x, f"alpha{alpha:g}"], f"{node.name}/scaled"),
            _node("Add", [f"{node.name}/scaled/out", f"beta{beta:g}"], f"{node.name}/shifted"),
            _node("Clip", [f"{node.name}/shifted/out", "zero", "one"], gate),
        ]
        if node.op_type == "HardSwish":
            swap.append(_node("Mul", [x, f"{gate}/out"], node.name, y))
        else:
            swap[-1].output[0] = y
    if len(swap) == len(model.graph.node):
        return model
    done = deepcopy(model)
    del done.graph.node[:]
    done.graph.node.extend(swap)
    done.graph.initializer.extend(numpy_helper.from_array(np.float32(v), k) for k, v in constants.items())
    return done


def _node(op: str, inputs: list[str], name: str, output: str | None = None) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, [output or f"{name}/out"], name=name)


def _make_once(graph: onnx.GraphProto) -> None:
    """Drop the repeated casts: the converter adds one, always of the same name, for every kept node that reads a tensor."""
    made: set[str] = set()
    once = []
    for node in graph.node:
        if not made.issuperset(node.output):
            once.append(node)
        made.update(node.output)
    del graph.node[:]
    graph.node.extend(once)


def _retype(graph: onnx.GraphProto, original: dict[str, TensorProto]) -> None:
    """Turn every FP16 into BF16, with weights rounded from the original ones."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_bf16(original.get(tensor.name, tensor), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_bf16(attribute.t, attribute.t.name))
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16


def _bf16(tensor: TensorProto, name: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), name)


def _drop_detours(graph: onnx.GraphProto, original: dict[str, TensorProto]) -> None:
    """Have the kept nodes read what was FP32 as it was, where the converter rounds it to 16 bits and back."""
    makers = {output: node for node in graph.node for output in node.output}
    outputs = {value.name for value in graph.output}
    wide: dict[str, TensorProto] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            back = makers.get(name)
            if back is None or _casts_to(back) != TensorProto.FLOAT:
                continue
            there = makers.get(back.input[0])
            if there is not None and _casts_to(there) in _LOW:
                node.input[slot] = there.input[0]
            elif back.input[0] in original:  # a constant
                kept = f"{back.input[0]}/fp32"
                wide[kept] = TensorProto()
                wide[kept].CopyFrom(original[back.input[0]])
                wide[kept].name = node.input[slot] = kept
        back = makers.get(node.input[0]) if node.input else None
        named = outputs & set(node.output) and _casts_to(node) == TensorProto.FLOAT
        if named and back is not None and _casts_to(back) in _LOW:  # an output keeps its name
            node.CopyFrom(_node("Identity", [back.input[0]], node.name, node.output[0]))
    graph.initializer.extend(wide.values())


def _casts_to(node: onnx.NodeProto) -> int | None:
    return next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None


def _name_added(graph: onnx.GraphProto) -> None:
    """Name the converters' casts and constants after the nodes that they serve."""
    makers = {output: node.name for node in graph.node for output in node.output}
    users = {name: node.name for node in reversed(graph.node) for name in node.input}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        if node.op_type in ("Cast", "Constant") and "/" not in node.name:
            host = users.get(node.output[0]) or next((makers[i] for i in node.input if makers.get(i)), node.name)
            plain = name = f"{host}/{node.op_type.lower()}"
            n = 1
            while name in taken:
                name, n = f"{plain}_{n}", n + 1
            taken.add(name)
            node.name = name
