"""What can be changed in a graph, and a copy of it in which a choice of changes was made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from r2mrf_deploy.graph.compression import channels, moments
from r2mrf_deploy.graph.compression.channels import Group
from r2mrf_deploy.graph.compression.low_rank import Factor, LowRank, Ranks
from r2mrf_deploy.graph.compression.moments import Moments
from r2mrf_deploy.graph.compression.network import Convolution, Network
from r2mrf_deploy.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Choice:
    """Which changes to make."""

    channels: Mapping[str, int] = field(default_factory=dict)
    """Group -> how many channels it keeps."""
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    """Layer -> its inner channels."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Convolutions with the same weights: one layer, at every step that it is run in."""

    name: str
    """The first one."""
    nodes: tuple[str, ...]
    convolution: Convolution
    low_rank: LowRank


class Compressible:
    """A graph with what photographs send through it.

    Args:
        model: a prepared FP32 graph (see `prepare`) with shapes inferred.
        feeds: its inputs, one photograph each.
    """

    def __init__(
        self, model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], progress: ProgressCallback = silent
    ) -> None:
        self.model = model
        network = Network(model)
        self.groups = {group.name: group for group in channels.groups(network)}
        self._alike = _alike(network)
        self._orders: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        read = {t for g in self.groups.values() for t in g.tensors}
        of_layers = {t for like in self._alike for c in like for t in (c.node.input[0], c.node.output[0])}
        self._moments = moments.observe(model, feeds, read | of_layers, progress)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers that could be factored: every convolution that is not grouped."""
        found = {}
        for like in self._alike:
            first, names = like[0], tuple(c.node.name for c in like)
            low_rank = LowRank(first.weight, first.bias, *self._of(like), first.pointwise)
            found[names[0]] = Layer(names[0], names, first, low_rank)
        return found

    def order(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """See `Group.order`."""
        if group.name not in self._orders:
            self._orders[group.name] = group.order(self._read_by(group))
        return self._orders[group.name]

    def _read_by(self, group: Group) -> Moments:
        return moments.pooled([self._moments[t] for t in group.tensors])

    def _of(self, like: Sequence[Convolution]) -> tuple[Moments, Moments]:
        """The moments of what layers of the same weights read, and of what they make."""
        into = moments.pooled([self._moments[c.node.input[0]] for c in like])
        return into, moments.pooled([self._moments[c.node.output[0]] for c in like])

    def changed(self, choice: Choice) -> onnx.ModelProto:
        """A copy of the graph with a choice of changes.

        Raises:
            GraphError: the result is not valid ONNX.
        """
        network = Network(self.model)
        kept = _Kept(network)
        for name, count in choice.channels.items():
            group = self.groups[name]
            left = np.sort(self.order(group)[0][:count])
            change = channels.narrowing(network, dict.fromkeys(group.tensors, left))
            if change is None:  # an earlier change took away what it was about
                continue
            channels.read_less(network, group, left, self._read_by(group))
            channels.narrow(network, change)
            kept.take(change, group, left)
        for change in channels.without_unread(network):
            kept.take(change)
        factored: dict[tuple[str, ...], tuple[list[Factor], list[list[str]]]] = {}
        for name, ranks in choice.ranks.items():
            for node in self.layers[name].nodes:
                self._factor(network, kept, self.layers[name], node, ranks, factored)
        network.index()
        return network.model()

    def _factor(
        self,
        network: Network,
        kept: _Kept,
        layer: Layer,
        name: str,
        ranks: Ranks,
        factored: dict[tuple[str, ...], tuple[list[Factor], list[list[str]]]],
    ) -> None:
        """Put a convolution's factors in its place, unless they have as many multiply-adds as it has by now."""
        at = next((i for i, node in enumerate(network.nodes) if node.name == name), None)
        if at is None:
            return
        node = network.nodes[at]
        key = tuple(node.input[1:])
        if key not in factored:
            factors = self._factors(network, kept, layer, node, ranks)
            factored[key] = factors, [_constants(network, f"{name}/factor{i}", f) for i, f in enumerate(factors, 1)]
        factors, constants = factored[key]
        if factors:
            network.nodes[at : at + 1] = _chain(node, factors, constants)

    def _factors(self, network: Network, kept: _Kept, layer: Layer, node: onnx.NodeProto, ranks: Ranks) -> list[Factor]:
        now = network.convolution(node)
        assert now is not None
        columns, rows = kept.columns.get(node.name), kept.rows.get(node.name)
        low_rank = layer.low_rank
        if columns is not None or rows is not None:
            into, made = self._of([c for like in self._alike for c in like if c.node.name in layer.nodes])
            into = into if columns is None else into.part(columns)
            made = made if rows is None else made.part(rows)
            low_rank = LowRank(now.weight, now.bias, into, made, now.pointwise)
        out, into_ = now.weight.shape[:2]
        fits = Ranks(min(ranks.into, into_), min(ranks.out, out))
        factors = low_rank.factors(fits)
        return factors if sum(f.weight.size for f in factors) < now.weight.size else []


class _Kept:
    """Which of a convolution's original inputs and outputs are left."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.rows: dict[str, np.ndarray] = {}
        self.columns: dict[str, np.ndarray] = {}

    def take(self, change: channels.Narrowing, group: Group | None = None, left: np.ndarray | None = None) -> None:
        for name, rows in change.rows.items():
            self.rows[name] = self.rows[name][rows] if name in self.rows else rows
        if group is not None and left is not None:
            for readers in group.readers.values():
                self.columns |= dict.fromkeys(readers, left)


def _alike(network: Network) -> list[list[Convolution]]:
    """The convolutions that are not grouped, those with the same weights together."""
    found: dict[str, list[Convolution]] = {}
    for convolution in network.convolutions():
        if convolution.group == 1:
            digest = hashlib.sha256(repr(convolution.weight.shape).encode() + convolution.weight.tobytes())
            digest.update(b"" if convolution.bias is None else convolution.bias.tobytes())
            digest.update(repr(sorted(convolution.attributes.items())).encode())
            found.setdefault(digest.hexdigest(), []).append(convolution)
    return list(found.values())


def _constants(network: Network, name: str, factor: Factor) -> list[str]:
    found = [network.add_constant(f"{name}/weight", factor.weight)]
    return found if factor.bias is None else [*found, network.add_constant(f"{name}/bias", factor.bias)]


def _chain(node: onnx.NodeProto, factors: Sequence[Factor], constants: Sequence[Sequence[str]]) -> list[onnx.NodeProto]:
    """The convolutions in a node's place; the last one has its output."""
    made, source = [], node.input[0]
    for number, (factor, names) in enumerate(zip(factors, constants, strict=True), 1):
        name = f"{node.name}/factor{number}"
        out = node.output[0] if number == len(factors) else f"{name}/out"
        part = onnx.helper.make_node("Conv", [source, *names], [out], name=name)
        if factor.spatial:
            part.attribute.extend(node.attribute)
        made.append(part)
        source = out
    return made
