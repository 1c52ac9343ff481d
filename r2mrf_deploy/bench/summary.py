"""trtexec's performance summary of timed inferences, in its words and by its rules.

Source: TensorRT's samples/common/sampleReporting.cpp and the documentation of trtexec.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2mrf_deploy.runtimes.base import Timing

UNSTABLE = 2.5
"""Coefficient of variation of the compute time, in percent, above which trtexec warns."""
ENQUEUE_BOUND = 0.8
"""Share of the compute time above which trtexec warns about the enqueue time."""

Turn = Sequence[Timing]
"""Consecutive inferences without a pause between them."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of one quantity over all inferences, in milliseconds."""

    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[str, float]

    @classmethod
    def of(cls, values: Sequence[float], percentiles: Sequence[float]) -> Statistics:
        ordered = sorted(values)
        found = {f"{p:g}": percentile(ordered, p) for p in percentiles}
        return cls(ordered[0], ordered[-1], statistics.fmean(ordered), statistics.median(ordered), found)

    def __str__(self) -> str:
        figures = {name: getattr(self, name) for name in ("min", "max", "mean", "median")}
        figures |= {f"percentile({p}%)": value for p, value in self.percentiles.items()}
        return ", ".join(f"{name} = {value:g} ms" for name, value in figures.items())


def percentile(ordered: Sequence[float], p: float) -> float:
    """trtexec's percentile of sorted values: index max(n - 1 - int((1 - p/100) * n), 0), in single precision as there."""
    share = np.float32(1) - np.float32(p) / np.float32(100)
    return ordered[max(len(ordered) - 1 - int(share * np.float32(len(ordered))), 0)]


@dataclass(frozen=True)
class Summary:
    """trtexec's figures for a run."""

    inferences: int
    throughput: float
    """Inferences per second of host walltime, which trtexec calls queries per second."""
    latency: Statistics
    """H2D, compute and D2H together."""
    enqueue: Statistics
    h2d: Statistics
    compute: Statistics
    d2h: Statistics
    host_walltime: float
    """Seconds from the first start to the last end of a turn, summed over the turns."""
    compute_total: float
    """Seconds."""
    variation: float
    """Coefficient of variation of the compute time, percent."""

    @classmethod
    def of(cls, turns: Sequence[Turn], percentiles: Sequence[float]) -> Summary:
        timings = [t for turn in turns for t in turn]
        walltime = sum(_end(turn) - _start(turn) for turn in turns) / 1e3
        compute = [t.compute for t in timings]
        return cls(
            inferences=len(timings),
            throughput=len(timings) / walltime,
            **{
                name: Statistics.of([getattr(t, name) for t in timings], percentiles)
                for name in ("latency", "enqueue", "h2d", "compute", "d2h")
            },
            host_walltime=walltime,
            compute_total=sum(compute) / 1e3,
            variation=100 * statistics.pstdev(compute) / statistics.fmean(compute),
        )

    def lines(self, on_gpu: bool) -> list[str]:
        """trtexec's lines, with "CPU Compute" for "GPU Compute" if there is no GPU."""
        where = "GPU" if on_gpu else "CPU"
        return [
            f"Throughput: {self.throughput:g} qps",
            f"Latency: {self.latency}",
            f"Enqueue Time: {self.enqueue}",
            f"H2D Latency: {self.h2d}",
            f"{where} Compute Time: {self.compute}",
            f"D2H Latency: {self.d2h}",
            f"Total Host Walltime: {self.host_walltime:g} s",
            f"Total {where} Compute Time: {self.compute_total:g} s",
        ]

    def warnings(self, on_gpu: bool) -> list[str]:
        """trtexec's warnings; those about the queue and the transfers apply only to a GPU."""
        found = []
        if on_gpu and self.enqueue.median > ENQUEUE_BOUND * self.compute.median:
            found.append(
                "the host enqueues hardly faster than the GPU computes, so the host may limit the throughput: "
                "try `cuda_graph`"
            )
        for name, transfer in (("host to device", self.h2d), ("device to host", self.d2h)):
            if on_gpu and transfer.median >= self.compute.median:
                found.append(
                    f"copying from {name} takes as long as computing, so the bus may limit the throughput: "
                    "benchmark without `transfers` to leave the copies out"
                )
        if self.variation > UNSTABLE:
            cure = "lock the GPU's clocks, or try `spin_wait`" if on_gpu else "stop other work on the machine"
            found.append(f"the compute time is unstable, coefficient of variation {self.variation:.1f} %: {cure}")
        return found


def trace_averages(turns: Sequence[Turn], runs: int, on_gpu: bool) -> list[str]:
    """trtexec's trace averages: a line for every `runs` consecutive inferences; the last of a turn may cover fewer."""
    return [
        f"Average on {len(group)} runs - {'GPU' if on_gpu else 'CPU'} latency: {_mean(group, 'compute'):g} ms - "
        f"Host latency: {_mean(group, 'latency'):g} ms (enqueue {_mean(group, 'enqueue'):g} ms)"
        for turn in turns
        for group in (turn[i : i + runs] for i in range(0, len(turn), runs))
    ]


def _mean(group: Turn, name: str) -> float:
    return statistics.fmean(getattr(t, name) for t in group)


def times(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """trtexec's exported times: one object per inference, in milliseconds from the first start, with its turn added."""
    zero = _start(turns[0])
    return [
        {
            f"{edge}{key}Ms": getattr(t, f"{edge}_{name}") - zero
            for key, name in (("Enq", "enqueue"), ("H2d", "h2d"), ("Compute", "compute"), ("D2h", "d2h"))
            for edge in ("start", "end")
        }
        | {f"{name}Ms": getattr(t, name) for name in ("h2d", "compute", "d2h", "latency")}
        | {"turn": number}
        for number, turn in enumerate(turns)
        for t in turn
    ]


def _start(turn: Turn) -> float:
    return min(min(t.start_enqueue, t.start_h2d) for t in turn)


def _end(turn: Turn) -> float:
    return max(max(t.end_enqueue, t.end_d2h) for t in turn)
