"""How artifacts are to be served, and what was written for a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from r2mrf_deploy.errors import UsageError

Server = Literal["triton", "ovms"]
MOST = 1_000_000
"""Of each number: milliseconds, instances, threads, images."""


@dataclass(frozen=True)
class Options:
    """How artifacts are to be served. What a server or a backend has no use for is refused, not ignored."""

    backend: str | None = None
    """Triton's: tensorrt, onnxruntime, openvino, or python with this package's runtimes; by default that of the file."""
    runtime: str | None = None
    """What runs the artifact in the python backend; by default the artifact's default."""
    target_ms: float | None = None
    """Within how many milliseconds most requests should be answered."""
    instances: int | None = None
    """How often a network is loaded; by default once."""
    workers: int | None = None
    """Processes that decode files, and as many that draw maps; by default one for each core, and at most four."""
    threads: int | None = None
    """CPU threads of an instance; by default all."""
    max_batch: int | None = None
    """The most images of one inference, where the artifact leaves it open."""
    gpu: bool = False
    """Run on a GPU. A plan always does."""
    jpeg: bool = True
    """Also serve files: the bytes of a JPEG or PNG in."""

    def __post_init__(self) -> None:
        for name in ("target_ms", "instances", "workers", "threads", "max_batch"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MOST:
                raise UsageError(f"`{name}` must be above 0, and {MOST:,} at most, not {value:g}")

    def refuse(self, *names: str, why: str) -> None:
        """Raise UsageError if one of these options was given."""
        for name in names:
            if getattr(self, name) != getattr(Options, name):
                raise UsageError(f"`{name}`: {why}")


@dataclass(frozen=True)
class Entry:
    """One model of a repository."""

    name: str
    backend: str
    max_batch: int
    """The most images of one inference that the server forms; 0 if it forms none."""
    delay_ms: float | None
    """How long a request may wait for others; None where nothing waits."""
    inputs: Mapping[str, str]
    """Name -> type and sizes, as the server has them."""
    outputs: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
