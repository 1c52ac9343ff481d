"""Channels that are left out: which ones the others can stand in for, and what becomes narrower without them.

A tensor that only convolutions read can lose channels if what makes it can make fewer. Channels are chosen by pivoted
Cholesky factorisation of the tensor's second moments, weighted by how strongly the readers read each channel; the readers'
weights then take over what the remaining channels predict of the others by least squares (as in He et al., "Channel Pruning
for Accelerating Very Deep Neural Networks", ICCV 2017, without their lasso). The inputs of a concatenation that are one
channel each are whole branches of the network: what only they need goes with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from r2mrf_deploy.graph.compression.low_rank import BLOCK
from r2mrf_deploy.graph.compression.moments import Moments, damped
from r2mrf_deploy.graph.compression.network import Convolution, Network
from r2mrf_deploy.graph.prepare import standard

_EACH_CHANNEL = frozenset(
    {
        *("Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Identity"),
        *("Resize", "MaxPool", "AveragePool"),
    }
)
"""Operators that compute each channel of their first input alike, and by itself; the other inputs are constants."""
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul"})
_BLOCKED = 2 * BLOCK
"""With this many channels or more, a multiple of `BLOCK` is kept."""


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors of the same channels: what one layer reads, at every step that it is run in."""

    name: str
    """The first tensor."""
    tensors: tuple[str, ...]
    readers: Mapping[str, tuple[str, ...]]
    """Tensor -> the names of the convolutions that read it."""
    importance: np.ndarray
    """[C]: the squared norm of the readers' weights of each channel."""

    def order(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        """The channels, most needed first, and the share of the weighted energy that the first 1 .. C do not predict."""
        scale = np.sqrt(self.importance)
        weighted = moments.second * scale[:, None] * scale
        energy = max(float(np.trace(weighted)), np.finfo(np.float64).tiny)
        rest, columns = weighted.diagonal().copy(), np.zeros_like(weighted)
        chosen: list[int] = []
        left: list[float] = []
        for k in range(len(rest)):
            rest[chosen] = -np.inf
            pivot = int(rest.argmax())
            if rest[pivot] > 1e-12 * energy:
                column = (weighted[:, pivot] - columns[:, :k] @ columns[pivot, :k]) / np.sqrt(rest[pivot])
                columns[:, k] = column
                rest -= np.square(column)
            chosen.append(pivot)
            rest[pivot] = 0
            left.append(float(np.maximum(rest, 0).sum(where=np.isfinite(rest))) / energy)
        return np.array(chosen), np.array(left)


def fewest(left: np.ndarray, error: float) -> int:
    """The least number of channels that leave at most a share `error` unpredicted, in blocks where there are many."""
    enough = int(np.argmax(left <= error)) + 1
    return enough if len(left) < _BLOCKED else min(-(-enough // BLOCK) * BLOCK, len(left))


def groups(network: Network) -> list[Group]:
    """What could lose channels: every tensor that only convolutions read, and that can be made narrower."""
    found: dict[tuple[str, ...], list[str]] = {}
    for tensor in network.makers:
        readers = _readers(network, tensor)
        if readers:
            found.setdefault(tuple(_digest(c) for c in readers), []).append(tensor)
    return [group for tensors in found.values() if (group := _group(network, tensors)) is not None]


def _readers(network: Network, tensor: str) -> list[Convolution]:
    """The convolutions that read a tensor; empty if something else does too."""
    readers = [(network.convolution(node) if slot == 0 else None) for node, slot in network.readers.get(tensor, ())]
    plain = [c for c in readers if c is not None and c.group == 1]
    return plain if tensor not in network.outputs and len(plain) == len(readers) else []


def _digest(convolution: Convolution) -> str:
    return hashlib.sha256(repr(convolution.weight.shape).encode() + convolution.weight.tobytes()).hexdigest()


def _group(network: Network, tensors: list[str]) -> Group | None:
    readers = {t: _readers(network, t) for t in tensors}
    first = readers[tensors[0]]
    width = first[0].weight.shape[1]
    importance = np.sum([np.square(c.weight, dtype=np.float64).sum((0, 2, 3)) for c in first], 0)
    group = Group(
        tensors[0], tuple(tensors), {t: tuple(c.node.name for c in r) for t, r in readers.items()}, importance
    )
    without_last = np.arange(width - 1)
    return group if width > 1 and narrowing(network, dict.fromkeys(tensors, without_last)) is not None else None


@dataclass
class Narrowing:
    """What has to change so that tensors lose channels."""

    rows: dict[str, np.ndarray] = field(default_factory=dict)
    """Convolution -> the outputs that it keeps."""
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    """Tensor -> the channels that it keeps."""
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)
    """The nodes between, by name."""


def narrowing(network: Network, wanted: Mapping[str, np.ndarray]) -> Narrowing | None:
    """How tensors can lose channels; None where something that makes one, or another reader, needs them all.

    Args:
        wanted: tensor -> the channels to keep, in order. Its readers are the caller's.
    """
    found = Narrowing()
    pending = dict(wanted)
    splits: dict[str, dict[str, np.ndarray]] = {}
    while pending or splits:
        if not pending:  # every output of a split that loses channels is known by now
            name, outputs = splits.popitem()
            node = found.nodes[name]
            pending[node.input[0]] = _before_split(network, node, outputs)
            continue
        tensor, kept = pending.popitem()
        if tensor in found.kept:
            if not np.array_equal(found.kept[tensor], kept):
                return None
            continue
        node = network.makers.get(tensor)
        if node is None or tensor in network.outputs:
            return None
        found.kept[tensor] = kept
        found.nodes[node.name] = node
        if _splits(network, node):
            splits.setdefault(node.name, {})[tensor] = kept
            continue
        needed = _needed(network, node, kept, found)
        if needed is None:
            return None
        pending |= needed
    inner = (t for t in found.kept if t not in wanted)
    read = all(node.name in found.nodes for t in inner for node, _ in network.readers.get(t, ()))
    return found if read and all(_fits(network, node, found, wanted) for node in found.nodes.values()) else None


def _fits(network: Network, node: onnx.NodeProto, found: Narrowing, wanted: Mapping[str, np.ndarray]) -> bool:
    """Whether a node that becomes narrower gets the channels that it then needs."""
    if standard(node, "Concat"):
        parts = _parts(network, list(node.input), found.kept[node.output[0]])
        return parts is not None and all(
            np.array_equal(found.kept.get(name, np.arange(width)), inside)
            for name, inside, width in parts
            if len(inside)
        )
    convolution = network.convolution(node)
    return convolution is None or convolution.depthwise or node.input[0] not in {*found.kept} - {*wanted}


def _splits(network: Network, node: onnx.NodeProto) -> bool:
    """Whether a node splits channels into stated sizes."""
    if not standard(node, "Split") or len(node.input) < 2 or network.constant(node.input[1]) is None:
        return False
    return next((a.i for a in node.attribute if a.name == "axis"), 0) in (1, -3)


def _needed(network: Network, node: onnx.NodeProto, kept: np.ndarray, found: Narrowing) -> dict[str, np.ndarray] | None:
    """The channels that a node's inputs keep if its output keeps these; None if they cannot lose any."""
    convolution = network.convolution(node)
    if convolution is not None and (convolution.group == 1 or convolution.depthwise):
        found.rows[node.name] = kept
        return {node.input[0]: kept} if convolution.depthwise else {}
    if standard(node, *_EACH_CHANNEL) and all(network.constant(i) is not None for i in node.input[1:] if i):
        return {node.input[0]: kept} if len(node.output) == 1 else None
    if standard(node, *_ELEMENTWISE) and all(_by_channel(network, i, node.output[0]) for i in node.input):
        return {name: kept for name in node.input if network.constant(name) is None}
    if standard(node, "Concat") and onnx.helper.get_node_attr_value(node, "axis") in (1, -3):
        parts = _parts(network, list(node.input), kept)
        return None if parts is None else {n: k for n, k, width in parts if 0 < len(k) < width}
    return None


def _by_channel(network: Network, name: str, output: str) -> bool:
    """Whether an operand is a constant number, one for each channel [1, C, 1, 1], or has all channels of the output."""
    array, width = network.constant(name), network.channels(output)
    if array is None:
        return width is not None and network.channels(name) == width
    return array.size == 1 or (array.shape[-3:] == (array.size, 1, 1) and array.size == width)


def _parts(network: Network, names: list[str], kept: np.ndarray) -> list[tuple[str, np.ndarray, int]] | None:
    """For each input of a concatenation: its name, the channels of its own that it keeps, and its width."""
    found, start = [], 0
    for name in names:
        width = network.channels(name)
        if width is None:
            return None
        inside = kept[(kept >= start) & (kept < start + width)] - start
        found.append((name, inside, width))
        start += width
    return found


def _before_split(network: Network, node: onnx.NodeProto, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The channels that a split's input keeps."""
    sizes = network.constant(node.input[1])
    assert sizes is not None
    kept, start = [], 0
    for name, size in zip(node.output, sizes.tolist(), strict=True):
        kept.append(start + outputs.get(name, np.arange(size)))
        start += size
    return np.concatenate(kept)


def narrow(network: Network, change: Narrowing) -> None:
    """Make the nodes of a narrowing narrower. The readers of what it was wanted for are the caller's."""
    for name, node in change.nodes.items():
        if name in change.rows:
            _keep_rows(network, node, change.rows[name])
        elif standard(node, "Split"):
            _narrow_split(network, node, change.kept)
        elif standard(node, "Concat"):
            parts = _parts(network, list(node.input), change.kept[node.output[0]])
            assert parts is not None
            node.input[:] = [part for part, inside, _ in parts if len(inside)]
        elif standard(node, "Resize") and len(node.input) > 3 and node.input[3]:
            _narrow_sizes(network, node, len(change.kept[node.output[0]]))
        elif standard(node, *_ELEMENTWISE):
            for slot, source in enumerate(node.input):
                array = network.constant(source)
                if array is not None and array.size > 1:
                    node.input[slot] = network.part(source, change.kept[node.output[0]], axis=array.ndim - 3)
    for tensor, kept in change.kept.items():
        network.set_channels(tensor, len(kept))
    network.index()


def _keep_rows(network: Network, node: onnx.NodeProto, kept: np.ndarray) -> None:
    for slot in range(1, len(node.input)):
        if node.input[slot]:
            node.input[slot] = network.part(node.input[slot], kept, axis=0)
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1:
            attribute.i = len(kept)


def _narrow_sizes(network: Network, node: onnx.NodeProto, width: int) -> None:
    """Sizes say how many channels there are; scales do not."""
    sizes = network.constant(node.input[3])
    assert sizes is not None
    if len(sizes) == 4:
        narrower = np.array([sizes[0], width, *sizes[2:]], np.int64)
        node.input[3] = network.add_constant(f"{node.name}/sizes", narrower)


def _narrow_split(network: Network, node: onnx.NodeProto, kept: Mapping[str, np.ndarray]) -> None:
    sizes = network.constant(node.input[1])
    assert sizes is not None
    left = [len(kept[name]) if name in kept else size for name, size in zip(node.output, sizes.tolist(), strict=True)]
    outputs = [name for name, size in zip(node.output, left, strict=True) if size]
    node.output[:] = outputs
    node.input[1] = network.add_constant(f"{node.name}/sizes", np.array([size for size in left if size], np.int64))
    for attribute in [a for a in node.attribute if a.name == "num_outputs"]:
        node.attribute.remove(attribute)


def read_less(network: Network, group: Group, kept: np.ndarray, moments: Moments) -> None:
    """Let the readers of a group read only these channels, and take over what they predict of the others."""
    gone = np.setdiff1d(np.arange(len(group.importance)), kept)
    second = damped(moments.second)
    predicted = np.linalg.solve(second[kept][:, kept], second[kept][:, gone])  # [kept, gone]
    made: dict[str, str] = {}
    for name in dict.fromkeys(reader for readers in group.readers.values() for reader in readers):
        node = network.named(name)
        source = node.input[1]
        if source not in made:
            weight = network.constant(source)
            assert weight is not None
            taken = np.einsum("mghw,kg->mkhw", weight[:, gone].astype(np.float64), predicted)
            made[source] = network.add_constant(f"{name}/kept", (weight[:, kept] + taken).astype(np.float32))
        node.input[1] = made[source]
    network.index()


def without_unread(network: Network) -> Iterator[Narrowing]:
    """Remove what nothing reads, and narrow what makes the unread outputs of splits, until nothing is left to remove."""
    while True:
        network.prune()
        unread = {
            name: np.arange(0)
            for node in network.nodes
            if _splits(network, node) and any(network.readers.get(o) for o in node.output)
            for name in node.output
            if name not in network.readers and name not in network.outputs
        }
        changes = (narrowing(network, {name: kept}) for name, kept in unread.items())
        change = next((c for c in changes if c is not None), None)
        if change is None:
            return
        narrow(network, change)
        yield change
