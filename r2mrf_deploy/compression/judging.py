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
    def drop(self, graph: onnx.ModelProto, precision: str, share: float = 1.0) -> Drop:
        """How much worse a graph is, on a share of the photographs."""

    @contextmanager
    def _opened(self, graph: onnx.ModelProto, precision: str) -> Iterator[tuple[Runner, Contract]]:
        contract = self._contract.model_copy(update={"precision": precision})
        with scratch() as folder:
            file = folder / "trial.onnx"
            onnx.save(graph, file)
            with node_search.evaluator(precision).open(Artifact(file, contract=contract)) as runner:
                yield runner, contract


class AgainstMaps(Judge):
    """The difference from the full network's maps, on photographs without masks.

    Args:
        full: the full network's graph.
        feeds: the photographs as inputs.
    """

    def __init__(self, full: onnx.ModelProto, contract: Contract, feeds: Sequence[Arrays]) -> None:
        super().__init__(contract)
        self._feeds = feeds
        self.what = f"the full network's maps of {len(feeds)} photographs"
        self._wanted = self._maps(full, "fp32", range(len(feeds)))

    def drop(self, graph: onnx.ModelProto, precision: str, share: float = 1.0) -> Drop:
        number = max(1, round(share * len(self._feeds)))
        used = _spread(len(self._feeds), number)
        return node_search.drop(self._maps(graph, precision, used), [self._wanted[i] for i in used])

    def _maps(self, graph: onnx.ModelProto, precision: str, used: Sequence[int]) -> list[np.ndarray]:
        with self._opened(graph, precision) as (runner, _):
            return [runner.run(self._feeds[i])["map"] for i in used]


class AgainstMasks(Judge):
    """What is lost of MAE and F (at 0.5) against masks; negative where a graph is better than the full network."""

    def __init__(self, full: onnx.ModelProto, contract: Contract, dataset: Dataset) -> None:
        super().__init__(contract)
        self._dataset = dataset
        self.what = f"the masks of {len(dataset)} photographs in {dataset.folder.name}"
        self._wanted = self._scores(full, "fp32", range(len(dataset)))

    def drop(self, graph: onnx.ModelProto, precision: str, share: float = 1.0) -> Drop:
        number = max(1, round(share * len(self._dataset)))
        used = _spread(len(self._dataset), number)
        found, wanted = _mean(self._scores(graph, precision, used)), _mean([self._wanted[i] for i in used])
        return Drop(found.mae - wanted.mae, wanted.f_half - found.f_half)

    def _scores(self, graph: onnx.ModelProto, precision: str, used: Sequence[int]) -> list[tuple[Scores, object]]:
        with self._opened(graph, precision) as (runner, contract):
            predictor = Predictor.of(runner, contract)
            return [judge(predictor(self._dataset.image(i)), self._dataset.truth(i)) for i in used]


def _spread(count: int, number: int) -> list[int]:
    """So many of the photographs, evenly spread."""
    return [i * count // number for i in range(number)]


def _mean(scores: Sequence[tuple[Scores, object]]) -> Scores:
    return average(scores)[0]  # type: ignore[arg-type]


def size(drop: Drop) -> float:
    """One number for a drop: the larger of the two, since both have the same bound."""
    return max(drop.mae, drop.f)
