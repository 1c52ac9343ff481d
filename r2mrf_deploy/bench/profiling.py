"""Where the time goes: a runtime's profile by layer, and summed by the network's scopes."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2mrf_deploy.graph import naming
from r2mrf_deploy.runtimes import Runner


@dataclass(frozen=True)
class Layer:
    """One layer of a profile, with trtexec's figures, in milliseconds."""

    name: str
    scope: str
    """The part of the network it belongs to: backbone, amdf, step2.branch3, shared, ..."""
    total: float
    average: float
    median: float
    percentage: float


@dataclass(frozen=True)
class Profile:
    """A profile of `count` inferences."""

    name: str
    runtime: str
    count: int
    layers: tuple[Layer, ...]

    @property
    def average(self) -> float:
        """Milliseconds per inference, summed over all layers."""
        return sum(layer.total for layer in self.layers) / self.count

    def scopes(self) -> dict[str, float]:
        """Milliseconds per inference by scope, with steps and branches grouped together."""
        sums: dict[str, float] = {}
        for layer in self.layers:
            sums[layer.scope] = sums.get(layer.scope, 0.0) + layer.total / self.count
        kinds = list(dict.fromkeys(map(_kind, sums)))
        order = sorted(sums, key=lambda scope: (scope == "other", kinds.index(_kind(scope)), _numbers(scope)))
        return {scope: sums[scope] for scope in order}

    def to_trtexec(self) -> list[dict[str, Any]]:
        """trtexec's exported profile: the number of inferences, then one object per layer, with its scope added."""
        return [
            {"count": self.count},
            *(
                {
                    "name": layer.name,
                    "timeMs": layer.total,
                    "averageMs": layer.average,
                    "medianMs": layer.median,
                    "percentage": layer.percentage,
                    "scope": layer.scope,
                }
                for layer in self.layers
            ),
        ]


def _kind(scope: str) -> str:
    """A scope up to its first number, so that all steps are of one kind."""
    return re.split(r"\d", scope)[0]


def _numbers(scope: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", scope)]


def profile(name: str, runner: Runner, feed: Mapping[str, np.ndarray], runs: int) -> Profile:
    """Profile a runner that was opened with `profile=True`, after one warm-up inference. Raises UsageError if the runtime
    cannot profile."""
    runner.run(feed)
    times = [(row.name, row.milliseconds) for row in runner.profile(feed, runs)]
    whole = sum(sum(ms) for _, ms in times) or 1.0
    layers = tuple(
        Layer(
            name=layer,
            scope=naming.scope(layer),
            total=sum(ms),
            average=statistics.fmean(ms),
            median=statistics.median(ms),
            percentage=100 * sum(ms) / whole,
        )
        for layer, ms in times
    )
    return Profile(name, runner.runtime, runs, layers)
