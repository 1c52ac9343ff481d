"""Name the nodes of a traced graph in the network's scopes.

`step3.branch5/second5/Conv` says what `node_conv2d_121` does not. The rewrites and converters derive their names from these,
and every runtime's profile contains them, so that measurements can be read. `scope` returns the first part of a name.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Mapping

import onnx

Scope = Callable[[str, int], str | None]
"""A network's `scope(path, call)`: the scope of the module at `path` when it is called for the `call`-th time (from 0), or
None if the module has no scope of its own."""

SHARED = "shared"
"""The scope of nodes that a rewrite took out of several scopes because they had them in common."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_FOLLOWS = frozenset({"Concat", "Resize", "Shape", "Gather", "Slice", "Cast", "Unsqueeze", "Reshape"})
"""Operators between modules that belong to what comes next; all others belong to what came before."""


def name_nodes(model: onnx.ModelProto, scope: Scope) -> None:
    """Rename every node to `scope/path/Operator` and its outputs to `.../out`; the graph's inputs and outputs keep their
    names.

    Args:
        model: as torch.onnx.export writes it, with the exporter's metadata on its nodes and the network as `network`.
    """
    scopes = _scopes_of(model.graph, scope)
    taken: Counter[str] = Counter()
    fixed = {v.name for v in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    renamed: dict[str, str] = {}
    for node, (first, rest) in zip(model.graph.node, scopes, strict=True):
        name = "/".join(filter(None, (first, rest, node.op_type)))
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        for i, output in enumerate(node.output):
            if output and output not in fixed:
                renamed[output] = f"{node.name}/out{i or ''}"
    rename(model.graph, renamed)


def rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Give the tensors that nodes make new names."""
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for info in graph.value_info:
        info.name = renamed.get(info.name, info.name)


def scope(name: str) -> str:
    """The network's scope of a node, or of a layer in a runtime's profile; "other" if it has none.

    A layer that combines several nodes has the scope of the first one with a scope.
    """
    for part in re.split(r"\s\+\s|,", name):
        first, slash, _ = part.strip().lstrip("/").partition("/")
        if slash and re.fullmatch(r"[A-Za-z][\w.]*", first):
            return first
    return "other"


def common(names: list[str]) -> str:
    """A name for a node that replaces these: the first one's, with the scope `SHARED` if the scopes differ."""
    _, slash, rest = names[0].partition("/")
    return names[0] if not slash or len({n.partition("/")[0] for n in names}) == 1 else f"{SHARED}/{rest}"


def _scopes_of(graph: onnx.GraphProto, scope_of: Scope) -> list[tuple[str, str]]:
    """For every node its scope, and the path below the module that the scope stands for."""
    calls: Counter[str] = Counter()
    inside: str | None = None
    scopes: list[tuple[str, str]] = []
    for node in graph.node:
        modules = _modules(node)
        module = next((s for s in modules if scope_of(s, 0) is not None), None)
        if module != inside and inside is not None:
            calls[inside] += 1
        inside = module
        if module is None:
            scopes.append(("", ""))
        else:
            scopes.append((scope_of(module, calls[module]) or "", modules[-1].removeprefix(module).lstrip(".")))
    return _between(graph, scopes)


def _modules(node: onnx.NodeProto) -> list[str]:
    """The paths of the modules that a node is in, outermost first, without the network's own."""
    notes = {p.key: p.value for p in node.metadata_props}
    scopes = ast.literal_eval(notes[_SCOPES])[:-1] if _SCOPES in notes else []
    return [s.removeprefix("network.") for s in scopes if s.startswith("network.")]


def _between(graph: onnx.GraphProto, scopes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Give the nodes between modules the scope of what comes next or of what came before."""
    nodes = graph.node
    makers = {output: i for i, node in enumerate(nodes) for output in node.output}
    users: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for name in node.input:
            users.setdefault(name, []).append(i)
    inputs, outputs = {v.name for v in graph.input}, {v.name for v in graph.output}
    for i, node in enumerate(nodes):  # in order: what came before has its scope
        if not scopes[i][0] and node.op_type not in _FOLLOWS:
            before = [makers[name] for name in node.input if name in makers and scopes[makers[name]][0]]
            if before:
                scopes[i] = scopes[max(before)]
            elif inputs & set(node.input):
                scopes[i] = ("input", "")
    for i in reversed(range(len(nodes))):
        if not scopes[i][0]:
            after = [u for output in nodes[i].output for u in users.get(output, []) if scopes[u][0]]
            last = "output" if outputs & set(nodes[i].output) else ""
            scopes[i] = (scopes[min(after)][0] if after else last, "")
    return [(first or "input", rest) for first, rest in scopes]
