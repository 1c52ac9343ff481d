"""FP16 and BF16 graphs: the precision is in the graph's types, which every runtime reads alike and TensorRT 11 requires.

Built on ONNX Runtime's float16 converter. This module adds what the converter lacks: sorted nodes, casts named by scope,
BF16 (the same graph with the other 16-bit type, from the original weights), and nodes that are kept in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass, TopologicalSortPass

from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.graph.cost import MULTIPLYING
from r2mrf_deploy.graph.prepare import refuse_unnamed, standard
from r2mrf_deploy.graph.trace import checked

Half = Literal["fp16", "bf16"]

BF16_OPSET = 22
"""The first whose Conv takes BF16."""
_NOT_IN_BF16 = frozenset({"ConvTranspose"})
"""Operators that TensorRT does not build in BF16; they stay in FP32."""
_MOVES = frozenset(
    {
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that pass values on unchanged: in a lower precision they add no error of their own."""
_LOW = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_QUANTISED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
)


def to_half(model: onnx.ModelProto, precision: Half, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The same graph with FP16 or BF16 types; its inputs and outputs keep their types.

    Args:
        model: an FP32 graph, prepared (see `prepare`).
        keep: names of nodes that stay in FP32, in addition to those of `always_fp32`.

    Raises:
        UsageError: the graph is not FP32, or no node has one of the names.
        GraphError: the result is not valid ONNX, or nodes have no names of their own.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    refuse_unless_fp32(model)
    refuse_unnamed(model)
    refuse_unknown(model, keep)
    if precision == "bf16":
        model = _without_hard_activations(_at_opset(model, BF16_OPSET))
        keep = [*keep, *(n.name for n in model.graph.node if n.name.rpartition("/")[0] in set(keep))]  # written out
    original = {i.name: i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT}
    kept = [*dict.fromkeys((*always_fp32(model, precision), *keep))]
    half = convert_float_to_float16(deepcopy(model), keep_io_types=True, node_block_list=kept)
    _make_once(half.graph)
    if precision == "bf16":
        _retype(half.graph, TensorProto.FLOAT16, TensorProto.BFLOAT16, original)
    _drop_detours(half.graph, original)
    _name_added(half.graph)
    return tidied(half)


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model sorted and checked, its shapes and types inferred again, without identities and nodes that nothing reads.

    Raises:
        GraphError: the result is not valid ONNX.
    """
    del model.graph.value_info[:]
    tidy = ir.passes.Sequential(IdentityEliminationPass(), RemoveUnusedNodesPass(), TopologicalSortPass())
    return checked(ir.to_proto(tidy(ir.from_proto(model)).model))


def ends(model: onnx.ModelProto) -> list[str]:
    """The nodes that always stay in FP32: those before the first convolution, which scale the input, and those after the
    last, which resize the logits to the image and turn them into a map."""
    after, before = reach(model, multiplies)
    rest = (n for n in model.graph.node if not multiplies(n))
    return [n.name for n in rest if not (after & set(n.output) and before & set(n.output))]


def always_fp32(model: onnx.ModelProto, precision: str) -> list[str]:
    """The nodes that stay in FP32 whatever is asked for: the ends, what TensorRT does not build in BF16, and operators of
    other domains, whose kernels may take nothing else."""
    refused = _NOT_IN_BF16 if precision == "bf16" else ()
    other = (n for n in model.graph.node if not standard(n, n.op_type) or n.op_type in refused)
    return [*ends(model), *(n.name for n in other)]


def reach(model: onnx.ModelProto, seeds: Callable[[onnx.NodeProto], bool]) -> tuple[set[str], set[str]]:
    """The outputs of seed nodes and all tensors computed from them; the inputs of seed nodes and all that they depend on."""
    after, before = set[str](), set[str]()
    for node in model.graph.node:  # in the graph's order
        if seeds(node) or after & set(node.input):
            after.update(node.output)
    for node in reversed(model.graph.node):
        if seeds(node) or before & set(node.output):
            before.update(node.input)
    return after, before


def multiplies(node: onnx.NodeProto) -> bool:
    """Whether a node's multiply-adds are counted."""
    return standard(node, *MULTIPLYING)


def computing(model: onnx.ModelProto) -> list[str]:
    """The nodes whose arithmetic `to_half` reduces."""
    outside = set(ends(model))
    return [n.name for n in model.graph.node if not standard(n, *_MOVES) and n.name not in outside]


def carried(model: onnx.ModelProto, kept: Collection[str]) -> list[str]:
    """The nodes that only pass on what kept nodes compute: kept in FP32 too, they round nothing in between."""
    kept, constants, found = {*kept, *ends(model)}, {i.name for i in model.graph.initializer}, []
    makers = {output: node.name for node in model.graph.node for output in node.output}
    for node in model.graph.node:  # in the graph's order
        read = [makers.get(name, "") for name in node.input if name and name not in constants]
        if standard(node, *_MOVES) and node.name not in kept and read and kept.issuperset(read):
            kept.add(node.name)
            found.append(node.name)
    return found


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A BF16 graph in FP32 types that rounds each of its BF16 values when it is made.

    It computes what a device with BF16 computes, except for the order of sums. CPUs with BF16 compute a whole graph in it,
    even the kept nodes, so they cannot show what keeping these nodes gains.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    low = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    _retype(graph, TensorProto.BFLOAT16, TensorProto.FLOAT, {})
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for slot, name in enumerate(node.output):
            if name in low and (not standard(node, *_MOVES) or node.op_type == "Cast"):
                wide, short = f"{name}/wide", f"{name}/short"
                node.output[slot] = wide
                for source, target, to in ((wide, short, TensorProto.BFLOAT16), (short, name, TensorProto.FLOAT)):
                    nodes.append(onnx.helper.make_node("Cast", [source], [target], f"{target}/round", to=to))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


def precisions(model: onnx.ModelProto) -> list[str]:
    """The reduced precisions in a graph, by its types: int8 where it is quantised, fp16, bf16."""
    found = ["int8"] if any(standard(n, *_QUANTISED) for n in model.graph.node) else []
    types = {i.data_type for i in model.graph.initializer} | {_casts_to(n) for n in model.graph.node}
    types |= {a.t.data_type for n in model.graph.node if standard(n, "Constant") for a in n.attribute}
    return found + [name for kind, name in _LOW.items() if kind in types]


def refuse_unless_fp32(model: onnx.ModelProto) -> None:
    """Refuse a graph of reduced precision.

    Raises:
        UsageError: the graph is one.
    """
    if found := precisions(model):
        raise UsageError(f"the graph is {found[0].upper()} already: convert the FP32 graph that it was made from")


def refuse_unknown(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Refuse names that no node has.

    Raises:
        UsageError: there is one.
    """
    known = {n.name for n in model.graph.node}
    for name in names:
        if name not in known:
            raise UsageError(f"no node {name!r} to keep in higher precision: {did_you_mean(name, known)}")


def nodes_of(model: onnx.ModelProto, names: Iterable[str]) -> list[str]:
    """The nodes with these names, or with names that start with one of them and a slash: `step1.branch5` is a whole branch.

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
    """HardSwish and HardSigmoid written out: TensorRT supports them in FP32, FP16 and INT8 only."""
    swap: list[onnx.NodeProto] = []
    constants: dict[str, float] = {"zero": 0.0, "one": 1.0}
    for node in model.graph.node:
        if not standard(node, "HardSwish", "HardSigmoid"):
            swap.append(node)
            continue
        given, swish = {a.name: a.f for a in node.attribute}, node.op_type == "HardSwish"
        alpha, beta = (1 / 6, 0.5) if swish else (given.get("alpha", 0.2), given.get("beta", 0.5))
        constants |= {f"alpha{alpha:g}": alpha, f"beta{beta:g}": beta}
        x, y, gate = node.input[0], node.output[0], f"{node.name}/gate"
        swap += [
            _node("Mul", [x, f"alpha{alpha:g}"], f"{node.name}/scaled"),
            _node("Add", [f"{node.name}/scaled/out", f"beta{beta:g}"], f"{node.name}/shifted"),
            _node("Clip", [f"{node.name}/shifted/out", "zero", "one"], gate, None if swish else y),
        ]
        if swish:
            swap.append(_node("Mul", [x, f"{gate}/out"], node.name, y))
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
    """Drop repeated casts: the converter adds one, always with the same name, for every kept node that reads a tensor."""
    made: set[str] = set()
    once = []
    for node in graph.node:
        if not made.issuperset(node.output):
            once.append(node)
        made.update(node.output)
    del graph.node[:]
    graph.node.extend(once)


def _retype(graph: onnx.GraphProto, old: int, new: int, original: Mapping[str, TensorProto]) -> None:
    """Replace a type throughout a graph. Initialisers are rounded from the original ones, or from their own values."""
    constants = [(tensor, original.get(tensor.name, tensor)) for tensor in graph.initializer]
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.name == "to" and attribute.i == old:
            attribute.i = new
        if attribute.HasField("t"):
            constants.append((attribute.t, attribute.t))
    for tensor, source in constants:
        if tensor.data_type == old:
            array = numpy_helper.to_array(source).astype(ir.DataType(new).numpy())
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new


def _drop_detours(graph: onnx.GraphProto, original: dict[str, TensorProto]) -> None:
    """Let kept nodes read the FP32 tensors themselves where the converter rounds them to 16 bits and back."""
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
                wide[kept] = deepcopy(original[back.input[0]])
                wide[kept].name = node.input[slot] = kept
        back = makers.get(node.input[0]) if node.input else None
        named = outputs & set(node.output) and _casts_to(node) == TensorProto.FLOAT
        if named and back is not None and _casts_to(back) in _LOW:  # an output keeps its name
            node.CopyFrom(_node("Identity", [back.input[0]], node.name, node.output[0]))
    graph.initializer.extend(wide.values())


def _casts_to(node: onnx.NodeProto) -> int | None:
    return next((a.i for a in node.attribute if a.name == "to"), None) if standard(node, "Cast") else None


def _name_added(graph: onnx.GraphProto) -> None:
    """Name the converter's casts and constants after the nodes that they serve."""
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
