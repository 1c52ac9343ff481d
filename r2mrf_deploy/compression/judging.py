"""How much worse a graph's maps are than the full network's, on photographs or against masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.files import scratch
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.metrics import Scores, average, judge
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.node_search import Drop
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes.base import Arrays, Runner


class Judge(ABC):
    """Runs graphs on the CPU and compares them with the full network.

    Args:
        contract: of the full network.
    """

    what: str
    """What is compared, as a phrase."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract

    @abstractmethod
    def drop(self, graph: onnx.ModelProto, precision: str) -> Drop:
        """How much worse a graph is."""

    @contextmanager
    def _opened(self, graph: onnx.ModelProto, precision: str) -> Iterator[tuple[Runner, Contract]]:
        contract = self._contract.model_copy(update={"precision": precision})
        with scratch() as folder:
            file = folder / "trial.onnx"
            onnx.save(graph, file)
            with node_search.evaluator(precision).open(Artifact(file, contract=contract)) as runner:
                yield runner, contract


class AgainstMaps(Judge):
    """The difference from a network's maps, on photographs without masks.

    Args:
        full: the network's graph.
        feeds: the photographs as inputs.
        whose: whose maps these are.
    """

    def __init__(
        self, full: onnx.ModelProto, contract: Contract, feeds: Sequence[Arrays], whose: str = "the full network's"
    ) -> None:
        super().__init__(contract)
        self._feeds = feeds
        self.what = f"{whose} maps of {len(feeds)} photographs"
        self._wanted = self._maps(full, "fp32")

    def drop(self, graph: onnx.ModelProto, precision: str) -> Drop:
        return node_search.drop(self._maps(graph, precision), self._wanted)

    def _maps(self, graph: onnx.ModelProto, precision: str) -> list[np.ndarray]:
        with self._opened(graph, precision) as (runner, _):
            return [runner.run(feed)["map"] for feed in self._feeds]


class AgainstMasks(Judge):
    """What is lost of MAE and F (at 0.5) against masks; negative where a graph is better than the full network."""

    def __init__(self, full: onnx.ModelProto, contract: Contract, dataset: Dataset) -> None:
        super().__init__(contract)
        self._dataset = dataset
        self.what = f"the masks of {len(dataset)} photographs in {dataset.folder.name}"
        self._wanted = self._scores(full, "fp32")

    def drop(self, graph: onnx.ModelProto, precision: str) -> Drop:
        found = self._scores(graph, precision)
        return Drop(found.mae - self._wanted.mae, self._wanted.f_half - found.f_half)

    def _scores(self, graph: onnx.ModelProto, precision: str) -> Scores:
        data = self._dataset
        with self._opened(graph, precision) as (runner, contract):
            predictor = Predictor.of(runner, contract)
            return average([judge(predictor(data.image(i)), data.truth(i)) for i in range(len(data))])[0]


def size(drop: Drop) -> float:
    """One number for a drop: the larger of the two, since both have the same bound."""
    return max(drop.mae, drop.f)
