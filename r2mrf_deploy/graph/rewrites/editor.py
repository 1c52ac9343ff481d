"""What every rewrite needs to read a graph, to weigh a change, and to make it.

A rewrite drafts the nodes it wants (`Editor.draft`), compares what they cost with what they make superfluous
(`Editor.gain`), and applies the draft or leaves it. Numbers for free dimensions are nominal: they weigh costs and decide
nothing about correctness, which rests on what the graph itself declares (`channels`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.cost import GraphCost, Inference, NodeCost, Shapes, Types, graph_cost, node_cost


@dataclass(frozen=True)
class Outcome:
    """What one pass of a rewrite did."""

    count: int = 0
    refusals: tuple[str, ...] = ()
    """Why it left alone what it nearly changed, one line each."""

    @classmethod
    def of(cls, attempts: Iterable[str | None]) -> Outcome:
        """Sum up attempts: each is "" if it changed something, else the reason, or None if there was nothing to change."""
        results = list(attempts)
        return cls(results.count(""), tuple(filter(None, results)))


Rewrite = Callable[["Editor"], Outcome]


@dataclass(frozen=True)
class Gain:
    """What a draft saves; negative where it costs more."""

    multiply_adds: int
    effort: int

    @property
    def pays(self) -> bool:
        """Less work and traffic together, and no more multiply-adds."""
        return self.multiply_adds >= 0 and self.effort > 0


class Editor:
    """A model whose local functions are written out, with the type of every tensor.

    Args:
        model: changed in place.
        shapes: shapes of the inputs, to weigh costs by.
    """

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.model = model
        self.graph = model.graph
        self.inference = Inference(model, shapes)
        self._names = set(_names(self.graph))
        self._digests: dict[tuple[int, tuple[int, int] | None], tuple[ir.TensorProtocol, bytes]] = {}

    @property
    def types(self) -> Types:
        return self.inference.types

    @property
    def opset(self) -> int:
        return self.model.opset_imports.get("", 1)

    def cost(self) -> GraphCost:
        """The cost of the graph as it is; nodes of unknown shape count nothing."""
        return graph_cost(self.graph, self.types)

    def nodes(self, *ops: str) -> list[ir.Node]:
        """The nodes of these standard operators, in the graph's order."""
        return [node for node in self.graph if node.op_type in ops and node.domain == ""]

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The value of an initialiser; None for anything else, and for one that a caller may override as an input."""
        if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
            return None
        return value.const_value.numpy()

    def digest(self, value: ir.Value, part: tuple[int, int] | None = None) -> bytes | None:
        """A hash of a constant's dtype, shape and content; None where it is no constant.

        Args:
            part: hash only this range of axis 1.
        """
        array, tensor = self.constant(value), value.const_value
        if array is None or tensor is None or tensor.dtype == ir.DataType.STRING:
            return None
        known = (id(tensor), part)
        if known not in self._digests:  # the tensor is kept, so that its id stays its own
            content = array if part is None else array[:, part[0] : part[1]]
            self._digests[known] = (tensor, _hash(content, tensor.dtype))
        return self._digests[known][1]

    def sole_user(self, value: ir.Value) -> ir.Node | None:
        """The only node of this graph that reads `value`; None where it has more readers or is an output."""
        users = {node for node, _ in value.uses()}
        node = users.pop() if len(users) == 1 else None
        return node if node is not None and node.graph is self.graph and not value.is_graph_output() else None

    def fresh(self, name: str) -> str:
        """A name that nothing in the graph has."""
        candidate, n = name, 1
        while candidate in self._names:
            candidate, n = f"{name}_{n}", n + 1
        self._names.add(candidate)
        return candidate

    def relearn_constants(self) -> None:
        """Take in initialisers that were not made by a draft."""
        for value in self.graph.initializers.values():
            if value not in self.types:
                self.inference.add_constant(value)

    def draft(self) -> Draft:
        return Draft(self)

    def orphans(self, values: Iterable[ir.Value]) -> list[ir.Node]:
        """The nodes that nothing needs once `values` are replaced."""
        replaced = set(values)
        gone: dict[ir.Node, None] = {}

        def unneeded(value: ir.Value) -> bool:
            return value in replaced or (not value.is_graph_output() and all(user in gone for user, _ in value.uses()))

        pending = [value.producer() for value in values]
        while pending:
            node = pending.pop()
            if node is None or node in gone or node.graph is not self.graph or not all(map(unneeded, node.outputs)):
                continue
            if bodies(node):  # what its body reads would go on being read
                continue
            gone[node] = None
            pending.extend(value.producer() for value in node.inputs if value is not None)
        return list(gone)

    def gain(self, draft: Draft, replaced: Sequence[ir.Value]) -> Gain:
        """What replacing these tensors by the draft saves."""
        before = [node_cost(node, self.types) for node in self.orphans(replaced)]
        after = draft.costs()
        return Gain(
            multiply_adds=sum(c.multiply_adds for c in before) - sum(c.multiply_adds for c in after),
            effort=sum(c.effort for c in before) - sum(c.effort for c in after),
        )

    def apply(self, draft: Draft, replacements: Mapping[ir.Value, ir.Value], before: ir.Node) -> None:
        """Insert the draft before a node, let its values take the place of the old ones, and drop what is orphaned.

        An output of the graph keeps its name, type and shape.
        """
        self.graph.insert_before(before, draft.nodes)
        for old, new in replacements.items():
            self._replace(old, new)
        for constant in draft.constants:
            if constant.uses():
                self.graph.register_initializer(constant)
        orphans = self.orphans(list(replacements))
        read = {value for node in orphans for value in node.inputs if value is not None}
        self.graph.remove(orphans, safe=True)
        for value in read:
            if value.is_initializer() and not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                del self.graph.initializers[value.name or ""]

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        if old.is_graph_output():
            slot = next(i for i, output in enumerate(self.graph.outputs) if output is old)
            named = self._renamable(old, new)
            self.graph.outputs[slot] = named
            old.name, named.name = self.fresh(f"{old.name}/replaced"), old.name
            named.type, named.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)

    def _renamable(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """`new`, or a copy of it if its own name must stay."""
        if not (new.is_graph_output() or new.is_graph_input() or new.is_initializer()):
            return new
        identity = ir.node("Identity", [new], name=self.fresh(f"{old.name}/identity"))
        producer = old.producer()
        assert producer is not None
        self.graph.insert_before(producer, identity)
        self.inference.types[identity.outputs[0]] = self.types[new]
        return identity.outputs[0]


class Draft:
    """Nodes that are not in the graph yet.

    They read the graph's values without being part of the graph, so a draft that is not applied must be dropped.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An initialiser; it joins the graph with the draft if a node uses it."""
        value = ir.Value(name=self._editor.fresh(name), const_value=ir.tensor(np.ascontiguousarray(array)))
        tensor = value.const_value
        assert tensor is not None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
        self._editor.inference.add_constant(value)
        self.constants.append(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
        like: ir.Value | None = None,
        channels: int | None = None,
    ) -> ir.Value:
        """A node with one output.

        Args:
            like: a tensor whose dtype and declared shape the output has, up to its channels.
            channels: the output's channels, where they are not `like`'s.
        """
        return self.ops(op_type, inputs, attributes, name=name, like=like, channels=[channels])[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
        like: ir.Value | None = None,
        channels: Sequence[int | None],
    ) -> Sequence[ir.Value]:
        """A node with an output for each entry of `channels`; see `op`."""
        name = self._editor.fresh(name)
        node = ir.node(op_type, inputs, attributes, num_outputs=len(channels), name=name)
        for i, (output, count) in enumerate(zip(node.outputs, channels, strict=True)):
            output.name = self._editor.fresh(f"{name}/out{i}" if len(channels) > 1 else f"{name}/out")
            if like is not None:
                output.type = like.type
                output.shape = with_channels(like.shape, count)
        self._editor.inference.add(node)
        self.nodes.append(node)
        return node.outputs

    def costs(self) -> list[NodeCost]:
        return [node_cost(node, self._editor.types) for node in self.nodes]

    def drop(self) -> None:
        """Detach the draft from the graph's values."""
        for node in reversed(self.nodes):
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
            for value in node.outputs:
                self._editor.inference.forget(value)
        for value in self.constants:
            self._editor.inference.forget(value)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds: of If, Loop, Scan."""
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            found.append(attr.as_graph())
        elif attr.type == ir.AttributeType.GRAPHS:
            found += attr.as_graphs()
    return found


def with_channels(shape: ir.Shape | None, channels: int | None) -> ir.Shape | None:
    """A declared shape [N, C, ...] with another number of channels."""
    if shape is None or channels is None:
        return shape
    return ir.Shape([channels if i == 1 else dim for i, dim in enumerate(shape)])


def channels(value: ir.Value | None) -> int | None:
    """The channels that a tensor [N, C, ...] is declared to have, or that were inferred; None where they are free."""
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    dim = value.shape[1]
    return dim if isinstance(dim, int) else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape that a tensor is declared to have; None where a dimension is free."""
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(value.shape.numpy())


def _hash(array: np.ndarray, dtype: ir.DataType) -> bytes:
    digest = hashlib.blake2b(f"{dtype.name}{array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _names(graph: ir.Graph) -> Iterator[str | None]:
    """Of every tensor and node, in bodies too: those share their names with the graph around them."""
    yield from (value.name for value in (*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield node.name
        yield from (value.name for value in node.outputs)
        for body in bodies(node):
            yield from _names(body)
