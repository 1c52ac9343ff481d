"""What takes part in a benchmark, by what protocol, and what is measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from r2mrf_deploy import environment
from r2mrf_deploy.bench.summary import Statistics, Summary
from r2mrf_deploy.errors import R2mrfError, UsageError
from r2mrf_deploy.runtimes import Runner, Timing

Mode = Literal["latency", "throughput"]
MODES: dict[str, tuple[Mode, ...]] = {
    "latency": ("latency",),
    "throughput": ("throughput",),
    "both": ("latency", "throughput"),
}
"""What `bench_artifacts` can measure, and the candidates that it makes of each artifact."""
MARKS: dict[Mode, str] = {"latency": "", "throughput": ", throughput"}


@dataclass(frozen=True)
class Protocol:
    """trtexec's options, with trtexec's defaults."""

    warm_up: float = 200.0
    """Milliseconds."""
    duration: float = 3.0
    """Seconds."""
    iterations: int = 10
    avg_runs: int = 10
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    streams: int = 1
    """Concurrent inference streams, one thread each."""
    transfers: bool = True
    """Time the copies to and from the device too; trtexec 11 omits them unless asked."""

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.duration < 0 or self.iterations < 1 or self.avg_runs < 1:
            raise UsageError("`warm_up` and `duration` must not be negative, `iterations` and `avg_runs` at least 1")
        if not all(0 < p < 100 for p in self.percentiles):
            raise UsageError("`percentiles` must be between 0 and 100")
        if self.streams < 1:
            raise UsageError("`streams` must be at least 1")


@dataclass
class Candidate:
    """A runner to be timed, and its timings."""

    name: str
    runner: Runner
    feed: dict[str, np.ndarray]
    batch: int = 1
    flags: tuple[str, ...] = ()
    """Names of the options it was opened with."""
    mode: Mode = "latency"
    """What counts: how long an inference takes, or how many images are computed in a second."""
    requests: int | None = None
    """How many threads run inferences side by side; by default the protocol's streams."""
    watts: list[float | None] = field(default_factory=list)
    """Of each turn, its beginning included; None where the machine does not tell."""
    turns: list[list[Timing]] = field(default_factory=list)
    failure: Exception | None = None
    """What ended its run early."""

    @property
    def reason(self) -> str:
        """`failure`, as `worded`."""
        return worded(self.failure)

    @property
    def title(self) -> str:
        return _title(self.name, self.runner.runtime, self.batch, self.mode)

    @property
    def inferences(self) -> int:
        return sum(map(len, self.turns))


def worded(failure: BaseException | None) -> str:
    """An error in one line, with its type if it is not one of this package's."""
    text = next((line.strip() for line in str(failure).splitlines() if line.strip()), "")
    return text if isinstance(failure, R2mrfError) else f"{type(failure).__name__}: {text}"


def _title(name: str, runtime: str, batch: int, mode: Mode) -> str:
    return f"{name} on {runtime}" + (f", batch {batch}" if batch > 1 else "") + MARKS[mode]


@dataclass(frozen=True)
class Measurement:
    """The measurement of one candidate."""

    name: str
    runtime: str
    device: str
    on_gpu: bool
    batch: int
    flags: tuple[str, ...]
    summary: Summary
    speed_up: float
    """Latency of the baseline divided by this one's, median over the turns; above 1 is faster. If one of the two was
    measured for its throughput: this one's images per second divided by the baseline's."""
    speed_up_range: tuple[float, float]
    """The quartiles of those ratios."""
    differs: bool | None
    """Whether the 95 % confidence interval of the speed-up excludes 1; None for the baseline or with too few turns."""
    turns: tuple[tuple[Timing, ...], ...]
    shape: list[int]
    """Of the first input."""
    mode: Mode = "latency"
    requests: int = 1
    """How many inferences were in flight."""
    watts: float | None = None
    """What the processor or the GPU took meanwhile, with whatever else it did; None where the machine does not tell."""

    @property
    def title(self) -> str:
        return _title(self.name, self.runtime, self.batch, self.mode)

    @property
    def input(self) -> str:
        """The shape of the first input: `1x320x320x3`."""
        return "x".join(map(str, self.shape))

    @property
    def latency(self) -> Statistics:
        return self.summary.latency

    @property
    def images_per_second(self) -> float:
        return self.summary.throughput * self.batch

    @property
    def images_per_joule(self) -> float | None:
        """Images per second per watt; None where the machine does not tell its power."""
        return self.images_per_second / self.watts if self.watts else None

    def evidence(self, protocol: Protocol, machine: Mapping[str, str | int]) -> dict[str, Any]:
        """The summary that a manifest keeps."""
        return {
            "runtime": self.runtime, "device": self.device, "batch": self.batch, "shape": self.shape,
            "options": list(self.flags), "protocol": asdict(protocol), "machine": dict(machine),
            "latency": asdict(self.latency), "images_per_second": self.images_per_second, "requests": self.requests,
            "watts": self.watts, "date": environment.now(),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything except the individual inferences."""
        found = {k: v for k, v in asdict(replace(self, turns=())).items() if k not in ("summary", "turns")}
        rates = {"images_per_second": self.images_per_second, "images_per_joule": self.images_per_joule}
        return found | rates | asdict(self.summary)
