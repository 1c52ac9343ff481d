"""What every rewrite needs to read a graph, to weigh a change, and to make it.

A rewrite drafts new nodes (`Editor.draft`), compares their cost with that of the nodes they replace (`Editor.gain`), and
applies or drops the draft. Free dimensions have nominal sizes, which serve only to estimate costs. Correctness rests on what
the graph itself declares (`channels`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from r2mrf_deploy.graph.apart import Weights
from r2mrf_deploy.graph.cost import GraphCost, graph_cost, known_multiply_adds, node_cost
from r2mrf_deploy.graph.inference import Inference, Shapes, Types
from r2mrf_deploy.graph.nodes import bodies, constant_tensor, opset
from r2mrf_deploy.graph.rewrites.operators import is_known


@dataclass(frozen=True)
class Outcome:
    """What one pass of a rewrite did."""

    count: int = 0
    refusals: tuple[str, ...] = ()
    """Why near matches were left as they are, one line each."""

    @classmethod
    def of(cls, attempts: Iterable[str | None]) -> Outcome:
        """Sum up attempts: each is "" for a change, the reason for a refusal, or None where nothing matched."""
        results = list(attempts)
        return cls(results.count(""), tuple(filter(None, results)))


Rewrite = Callable[["Editor"], Outcome]


@dataclass(frozen=True)
class Gain:
    """What a draft saves; negative if it costs more."""

    multiply_adds: int
    effort: int

    @property
    def pays(self) -> bool:
        """Whether work and traffic together go down, and the multiply-adds do not go up."""
        return self.multiply_adds >= 0 and self.effort > 0


@dataclass(frozen=True, eq=False)
class Reading:
    """A node that was recognised as a function of one tensor."""

    node: ir.Node
    x: ir.Value

    @property
    def out(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def name(self) -> str:
        return self.node.name


class Editor:
    """A model without local functions, with the type of every tensor and the means to change it.

    Args:
        model: every node has a name; changed in place.
        shapes: shapes of the inputs, for estimating costs.
        weights: those that the model has placeholders for.
    """

    def __init__(self, model: ir.Model, shapes: Shapes, weights: Weights) -> None:
        weights.lend(model)
        self.model = model
        self.graph = model.graph
        self.weights = weights
        self.opset = opset(model)
        self.inference = Inference(model, shapes)
        self._names = set(_names(self.graph))
        self._numbers: dict[str, int] = {}

    @property
    def types(self) -> Types:
        return self.inference.types

    def to_proto(self) -> onnx.ModelProto:
        """The model as it is, with placeholders for its large weights."""
        self.weights.take_back(self.model)
        proto = ir.to_proto(self.model)
        self.weights.lend(self.model)
        return proto

    def multiply_adds(self) -> int:
        """Those of the graph as it is; nodes of unknown shape count as free."""
        return sum(known_multiply_adds(node, self.types) for node in self.graph)

    def cost(self) -> GraphCost:
        """The cost of the graph as it is; nodes of unknown shape count as free."""
        return graph_cost(self.graph, self.types)

    def knows(self, node: ir.Node) -> bool:
        """Whether this is a node of the main graph with an operator that the rewrites know; see `operators`."""
        return node.graph is self.graph and is_known(node, self.opset)

    def has(self, node: ir.Node | None, *ops: str) -> bool:
        """Whether this is a node of the main graph with one of these operators, as the rewrites know it."""
        return node is not None and node.op_type in ops and self.knows(node)

    def nodes(self, *ops: str) -> list[ir.Node]:
        """The nodes that `has` accepts for these operators, in the graph's order."""
        return [node for node in self.graph if self.has(node, *ops)]

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The numbers in an initialiser; None for anything else, and for one that is also an input: a caller may set it."""
        if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
            return None
        return None if value.const_value.dtype == ir.DataType.STRING else value.const_value.numpy()

    def digest(self, value: ir.Value, part: tuple[int, int] | None = None) -> bytes | None:
        """A hash of a constant's dtype, shape and content; None for anything else.

        Args:
            part: hash only this range of axis 1.
        """
        array, tensor = self.constant(value), value.const_value
        if array is None or tensor is None:
            return None
        digests = self.weights.digests
        if (tensor, part) not in digests:
            content = array if part is None else array[:, part[0] : part[1]]
            digest = hashlib.blake2b(f"{tensor.dtype.name}{content.shape}".encode(), digest_size=16)
            digest.update(content.tobytes())
            digests[tensor, part] = digest.digest()
        return digests[tensor, part]

    def lift(self, node: ir.Node) -> None:
        """Let an initialiser of the same name take the place of a Constant node, unless that holds strings."""
        out = node.outputs[0]
        tensor = constant_tensor(out)
        if tensor is None or out.is_graph_output():
            return
        constant = ir.val(out.name, const_value=tensor)
        self.graph.register_initializer(constant)
        ir.convenience.replace_all_uses_with(out, constant)
        self.graph.remove(node, safe=True)
        self.inference.forget(out)
        self.inference.add_constant(constant)

    def sole_user(self, value: ir.Value) -> ir.Node | None:
        """The only node that reads `value`; None if there are several, or one in a subgraph, or if it is an output."""
        users = {node for node, _ in value.uses()}
        node = users.pop() if len(users) == 1 else None
        return node if node is not None and node.graph is self.graph and not value.is_graph_output() else None

    def fresh(self, name: str) -> str:
        """`name`, with a number where it is taken."""
        candidate, n = name, self._numbers.get(name, 1)
        while candidate in self._names:
            candidate, n = f"{name}_{n}", n + 1
        self._numbers[name] = n  # no name is ever given back, so those before stay taken
        self._names.add(candidate)
        return candidate

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
            if bodies(node):  # what its body reads would still have a reader
                continue
            gone[node] = None
            pending.extend(value.producer() for value in node.inputs if value is not None)
        return list(gone)

    def gain(self, draft: Draft, replaced: Sequence[ir.Value]) -> Gain:
        """What replacing these tensors by the draft saves."""
        before = [node_cost(node, self.types) for node in self.orphans(replaced)]
        after = [node_cost(node, self.types) for node in draft.nodes]
        return Gain(
            multiply_adds=sum(c.multiply_adds for c in before) - sum(c.multiply_adds for c in after),
            effort=sum(c.effort for c in before) - sum(c.effort for c in after),
        )

    def apply_if_it_pays(self, draft: Draft, replacements: Mapping[ir.Value, ir.Value], before: ir.Node) -> Gain:
        """Apply the draft (see `apply`) if its gain pays, else drop it."""
        gain = self.gain(draft, list(replacements))
        if gain.pays:
            self.apply(draft, replacements, before)
        else:
            draft.drop()
        return gain

    def apply(self, draft: Draft, replacements: Mapping[ir.Value, ir.Value], before: ir.Node) -> None:
        """Insert the draft before a node, put its values in place of the old ones, and remove the nodes left without
        readers.

        The graph's outputs keep their names, types and shapes.
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
                del self.graph.initializers[value.name]

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        if old.is_graph_output():
            output = new
            if has_fixed_name(new):  # the output is a copy, which can take its name
                identity = ir.node("Identity", [new], name=self.fresh(f"{old.name}/identity"))
                self.graph.insert_before(old.producer(), identity)
                output = identity.outputs[0]
                self.inference.add(identity)
            self.graph.outputs[self.graph.outputs.index(old)] = output
            old.name, output.name = self.fresh(f"{old.name}/replaced"), old.name
            output.type, output.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)


class Draft:
    """Nodes that are not in the graph yet.

    They already count as readers of the graph's values, so a draft that is not applied must be dropped.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An initialiser; it joins the graph with the draft if a node uses it."""
        tensor = ir.tensor(np.asarray(array, order="C"))  # np.ascontiguousarray would make a vector of a scalar
        value = ir.val(self.editor.fresh(name), const_value=tensor)
        self.editor.inference.add_constant(value)
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
            like: a tensor with the output's dtype and, except for the channels, its declared shape.
            channels: the output's channels if they are not those of `like`.
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
        """A node with one output for each entry of `channels`; see `op`."""
        name = self.editor.fresh(name)
        node = ir.node(op_type, inputs, attributes, num_outputs=len(channels), name=name)
        for i, (output, count) in enumerate(zip(node.outputs, channels, strict=True)):
            output.name = self.editor.fresh(f"{name}/out{i}" if len(channels) > 1 else f"{name}/out")
            if like is not None:
                output.type, output.shape = like.type, like.shape
                if like.shape is not None and count is not None:
                    output.shape = ir.Shape([count if axis == 1 else dim for axis, dim in enumerate(like.shape)])
        self.editor.inference.add(node)
        self.nodes.append(node)
        return node.outputs

    def drop(self) -> None:
        """Detach the draft from the graph's values."""
        for node in self.nodes:
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
        for value in (*self.constants, *(output for node in self.nodes for output in node.outputs)):
            self.editor.inference.forget(value)


def operand(node: ir.Node, i: int) -> ir.Value | None:
    """An optional input; None also if it is an empty tensor, which older opsets write for a missing one."""
    value = node.inputs[i] if i < len(node.inputs) else None
    empty = value is not None and value.const_value is not None and value.const_value.size == 0
    return None if empty else value


def static_dim(value: ir.Value | None, axis: int) -> int | None:
    """A dimension of a tensor [N, C, ...] as declared or inferred; None if it is free."""
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def channels(value: ir.Value | None) -> int | None:
    """The number of channels of a tensor [N, C, ...]; None if it is free."""
    return static_dim(value, 1)


def has_fixed_name(value: ir.Value) -> bool:
    """Whether a tensor is an input, an output or an initialiser of the graph, so that no rewrite may rename it."""
    return value.is_graph_input() or value.is_graph_output() or value.is_initializer()


def _names(graph: ir.Graph) -> Iterator[str | None]:
    """The names of all tensors and nodes, also in subgraphs, which share their names with the graph around them."""
    for each in (graph, *graph.subgraphs()):
        yield from (value.name for value in (*each.inputs, *each.initializers.values()))
        for node in each:
            yield from (node.name, *(value.name for value in node.outputs))
