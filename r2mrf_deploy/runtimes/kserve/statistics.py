"""What a server counts of its own work: an extension of Triton's, which others have too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TIMES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class ServerStatistics:
    """What a server says of the work of one model; nanoseconds are summed over the requests."""

    model: str
    requests: int = 0
    failures: int = 0
    inferences: int = 0
    """How many images, or other items of batches."""
    executions: int = 0
    """How often the model was run: batches."""
    queue: int = 0
    """Nanoseconds of waiting."""
    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0

    @classmethod
    def of(cls, model: str, found: Any) -> ServerStatistics:
        """From the protocol's JSON, summed over a model's versions."""
        total = dict.fromkeys(("requests", "failures", "inferences", "executions", *_TIMES), 0)
        for each in found["model_stats"]:
            times = each.get("inference_stats", {})
            total["inferences"] += int(each.get("inference_count", 0))
            total["executions"] += int(each.get("execution_count", 0))
            for name, kind, what in (
                ("requests", "success", "count"),
                ("failures", "fail", "count"),
                *((name, name, "ns") for name in _TIMES),
            ):
                total[name] += int(times.get(kind, {}).get(what, 0))
        return cls(model, **total)

    def since(self, before: ServerStatistics) -> ServerStatistics:
        """What was added; all of it, if the server has begun to count again meanwhile."""
        if self.requests < before.requests:
            return self
        names = ("requests", "failures", "inferences", "executions", *_TIMES)
        return ServerStatistics(self.model, **{n: getattr(self, n) - getattr(before, n) for n in names})

    @property
    def batch(self) -> float | None:
        """Images of an execution, on average."""
        return self.inferences / self.executions if self.executions else None

    @property
    def queue_ms(self) -> float | None:
        """Of a request, on average."""
        return self.queue / self.requests / 1e6 if self.requests else None

    @property
    def compute_ms(self) -> float | None:
        """Of a request, on average, with what the server does to its input and output."""
        work = self.compute_input + self.compute_infer + self.compute_output
        return work / self.requests / 1e6 if self.requests else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model, "requests": self.requests, "failures": self.failures, "inferences": self.inferences,
            "executions": self.executions, "mean_batch": self.batch, "queue_ms": self.queue_ms,
            "compute_ms": self.compute_ms, "compute_input_ns": self.compute_input,
            "compute_infer_ns": self.compute_infer, "compute_output_ns": self.compute_output,
        }  # fmt: skip
