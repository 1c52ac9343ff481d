"""A part of a graph: what computes some of its tensors, from its inputs or from tensors in between.

Calibration runs only what the tensors that it measures depend on; a search for nodes to keep runs a network piece by piece.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx


def part(model: onnx.ModelProto, outputs: Collection[str], given: Collection[str] = ()) -> onnx.ModelProto:
    """The nodes that compute some tensors, in the graph's order, with the weights that they read.

    Args:
        outputs: tensors of the graph. They become the part's outputs; a runtime infers their types.
        given: tensors that need not be computed. Those that are read become the part's inputs, without a type.

    Raises:
        KeyError: no node computes an output, and it is not an input of the graph.
    """
    graph, given = model.graph, set(given)
    found = needed(graph, outputs, given)
    nodes = [node for number, node in enumerate(graph.node) if number in found]
    read = {name for node in nodes for name in reads(node)} | set(outputs)
    done = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    done.graph.name = graph.name
    done.graph.node.extend(nodes)
    done.graph.initializer.extend(i for i in graph.initializer if i.name in read)
    done.graph.input.extend(v for v in graph.input if v.name in read and v.name not in given)
    done.graph.input.extend(onnx.ValueInfoProto(name=name) for name in sorted(given & read))
    done.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return done


def needed(graph: onnx.GraphProto, outputs: Collection[str], given: Collection[str] = ()) -> set[int]:
    """The positions of the nodes that compute some tensors if others are given.

    Raises:
        KeyError: as for `part`.
    """
    makers = {output: number for number, node in enumerate(graph.node) for output in node.output if output}
    ready = {*given, "", *(v.name for v in graph.input), *(i.name for i in graph.initializer)}
    found, wanted = set[int](), [name for name in outputs if name not in ready]
    while wanted:
        number = makers[wanted.pop()]
        if number not in found:
            found.add(number)
            wanted += [name for name in reads(graph.node[number]) if name not in ready]
    return found


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, with those that the graphs inside it (If, Loop) read from outside."""
    yield from node.input
    for inner in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
        own = {name for n in inner.node for name in n.output} | {v.name for v in (*inner.input, *inner.initializer)}
        for name in (*(name for n in inner.node for name in reads(n)), *(v.name for v in inner.output)):
            if name not in own:
                yield name
