"""The protocol every runtime keeps.

A Runtime says whether it can be used here and opens an artifact; a Runner is an opened artifact. Public verbs check, the
`_` verbs of a backend do. Nothing above this package sees a backend's own types.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

import numpy as np

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import TensorSpec

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Timing:
    """One inference on the host's monotonic clock, in milliseconds, with trtexec's names.

    A runtime without a device has no transfers: its h2d and d2h are empty intervals at the ends of its compute.
    """

    start_enqueue: float
    end_enqueue: float
    start_h2d: float
    end_h2d: float
    start_compute: float
    end_compute: float
    start_d2h: float
    end_d2h: float

    @classmethod
    def host(cls, start: float, end: float) -> Timing:
        return cls(start, end, start, start, start, end, end, end)

    @property
    def enqueue(self) -> float:
        return self.end_enqueue - self.start_enqueue

    @property
    def h2d(self) -> float:
        return self.end_h2d - self.start_h2d

    @property
    def compute(self) -> float:
        return self.end_compute - self.start_compute

    @property
    def d2h(self) -> float:
        return self.end_d2h - self.start_d2h

    @property
    def latency(self) -> float:
        return self.h2d + self.compute + self.d2h


def now_ms() -> float:
    return time.perf_counter() * 1e3


@dataclass(frozen=True)
class Availability:
    """What a runtime says of itself: the doctor's row."""

    ok: bool
    version: str | None = None
    reason: str = ""
    """Why it cannot be used, or what it cannot do here."""
    cure: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerTimes:
    """One layer of a profile."""

    name: str
    """As the runtime calls it: the node's name, or several where it fused them."""
    milliseconds: tuple[float, ...]
    """Of each inference."""


@dataclass(frozen=True)
class OpenOptions:
    """How to open an artifact. A runtime refuses what it does not support; the defaults leave a choice to it."""

    threads: int | None = None
    """CPU threads of one inference."""
    cuda_graph: bool | None = None
    """Launch inferences as a CUDA graph, where the artifact can be captured."""
    spin_wait: bool = False
    """Wait for the device by asking it again and again: sooner to know, and busy meanwhile."""
    buffers: Literal["cuda-python", "pycuda"] | None = None
    """What allocates on the device and copies; by default the first that is installed."""
    runtime_cache: Path | None = None
    """A file that keeps what was compiled for this GPU, so that the next opening need not."""
    profile: bool = False
    """Make `Runner.profile` possible; inferences may be slower."""
    network: str | None = None
    """Of a checkpoint that is a plain state dict, see `Checkpoint.load`."""
    settings: tuple[tuple[str, str], ...] = ()
    """Fields of a checkpoint's config to set, likewise."""


Pending = Callable[[], tuple[Arrays, Timing]]
"""Waits for an inference that was submitted, and gives its outputs."""


class Runner(ABC):
    """An opened artifact."""

    runtime: str
    device: str
    """What computes, in words."""
    emulates: str = ""
    """How the artifact's precision is not the one it is computed in, in words; empty where it is."""
    on_gpu: bool = False
    in_flight: int = 1
    """How many inferences one thread may have submitted at once: 2 where a device works while the host prepares."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Compute the outputs.

        Args:
            arrays: one array for each of `inputs`, of its dtype and a shape it accepts.

        Raises:
            InputError: a name, dtype, rank or dimension is wrong (said in that order: the first difference).
        """
        return self._run(self._checked(arrays))

    def run_timed(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Timing]:
        """`run`, and when each part of it started and ended."""
        return self._run_timed(self._checked(arrays))

    def submit(self, arrays: Mapping[str, np.ndarray], *, transfers: bool = True) -> Pending:
        """Begin an inference. At most `in_flight` of a thread's may be waiting, and they are waited for in their order.

        Args:
            transfers: False leaves inputs and outputs on the device as they are and computes only (trtexec's
                `transfers`); there must have been an inference of these shapes. Nothing changes on a CPU.
        """
        return self._submit(self._checked(arrays), transfers)

    def profile(self, arrays: Mapping[str, np.ndarray], runs: int) -> list[LayerTimes]:
        """The time of every layer in `runs` inferences, in the order they run. Opened with `profile=True`.

        Raises:
            UsageError: this runtime cannot, or was not opened so.
        """
        return self._profile(self._checked(arrays), runs)

    def close(self) -> None:
        """Give back what the runner holds; it cannot be used afterwards."""

    @abstractmethod
    def _run(self, arrays: Arrays) -> Arrays: ...

    def _run_timed(self, arrays: Arrays) -> tuple[Arrays, Timing]:
        start = now_ms()
        outputs = self._run(arrays)
        return outputs, Timing.host(start, now_ms())

    def _submit(self, arrays: Arrays, transfers: bool) -> Pending:
        done = self._run_timed(arrays)
        return lambda: done

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        raise UsageError(f"{self.runtime} was not opened for a profile")

    def _checked(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        names = {s.name for s in self.inputs}
        if missing := names - set(arrays):
            raise InputError(f"{self.runtime}: input {sorted(missing)[0]!r} is missing; it wants {sorted(names)}")
        if surplus := set(arrays) - names:
            raise InputError(f"{self.runtime}: unknown input {sorted(surplus)[0]!r}; it wants {sorted(names)}")
        for spec in self.inputs:
            array = arrays[spec.name]
            if array.dtype.name != spec.dtype:
                raise InputError(f"{self.runtime}: {spec.name} must be {spec.dtype}, not {array.dtype.name}")
            if not spec.accepts(array.shape):
                raise InputError(f"{self.runtime}: {spec.name} must have shape {spec.shape}, not {list(array.shape)}")
        return {s.name: np.ascontiguousarray(arrays[s.name]) for s in self.inputs}

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime(ABC):
    """A way of running artifacts."""

    name: ClassVar[str]
    title: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """The artifacts it opens, by file suffix; it is the default for the first runtime registered with a suffix."""
    supported_options: ClassVar[frozenset[str]] = frozenset()
    """The fields of OpenOptions that it supports."""
    unsupported_precisions: ClassVar[frozenset[str]] = frozenset()
    """Precisions that it has no kernels for."""
    variant_of: ClassVar[str] = ""
    """The runtime that this one is a variant of, where the same things make the two available."""

    @abstractmethod
    def availability(self) -> Availability: ...

    @abstractmethod
    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner: ...

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        """Refuse an artifact that this runtime cannot open on any device."""

    def open(self, artifact: Artifact, options: OpenOptions | None = None) -> Runner:
        """Open an artifact.

        Raises:
            UsageError: this runtime does not support an option.
            RuntimeUnavailable: the runtime is not installed or has no device here, or has no kernels of the precision.
            ArtifactError: the file is damaged or was made for another version or device.
        """
        chosen = options or OpenOptions()
        if refused := [f for f in changed(chosen) if f not in self.supported_options]:
            raise UsageError(f"{self.title} does not support `{refused[0]}`: leave it out")
        if artifact.precision in self.unsupported_precisions:
            raise RuntimeUnavailable(
                f"{self.title} has no {artifact.precision.upper()} kernels: choose another `runtime`"
            )
        self._check(artifact, chosen)
        state = self.availability()
        if not state.ok:
            raise RuntimeUnavailable(f"{self.title} cannot run {artifact.path.name}: {state.reason}; {state.cure}")
        return self._open(artifact, chosen)


def changed(options: Any) -> list[str]:
    """The fields of a dataclass that are not at their defaults."""
    return [f.name for f in fields(options) if getattr(options, f.name) != f.default]
