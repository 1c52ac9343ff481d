"""The interface of every runtime.

A Runtime says whether it can be used here, and opens artifacts; a Runner is an opened artifact. Public methods check their
arguments and call the backend's `_` methods. Nothing above this package sees a backend's own types.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint_files import Loading
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import Preprocess, TensorSpec
from r2mrf_deploy.model_cache import ModelCache

_LOG = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
MOST_STREAMS = 8
"""The most inferences that are computed side by side on a CPU unless more are asked for: each takes memory of its own."""


@dataclass(frozen=True)
class Timing:
    """One inference on the host's monotonic clock, in milliseconds, with trtexec's names.

    A CPU runtime has no transfers: its h2d and d2h are empty intervals before and after its compute.
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
    """Whether a runtime can be used here."""

    ok: bool
    version: str | None = None
    reason: str = ""
    """Why it cannot be used here, or what it cannot do."""
    cure: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerTimes:
    """One layer of a profile."""

    name: str
    """The runtime's name for it: a node's name, or several if it fused them."""
    milliseconds: tuple[float, ...]
    """One for each inference."""


@dataclass(frozen=True)
class OpenOptions:
    """How to open an artifact. A runtime refuses options that it does not support; defaults leave the choice to it."""

    threads: int | None = None
    """CPU threads, of all inferences that run side by side together."""
    streams: int | None = None
    """How many inferences run side by side on a CPU, sharing its threads: they compute more images in a second than one
    after the other, each of which then takes longer."""
    throughput: bool = False
    """Compute as many images in a second as possible: as many inferences side by side as pay, up to `MOST_STREAMS`, unless
    `streams` says how many."""
    cuda_graph: bool | None = None
    """Launch inferences as a CUDA graph, if the artifact can be captured."""
    spin_wait: bool = False
    """Poll the device instead of sleeping until it is done: less delay, but it keeps a core busy."""
    buffers: Literal["cuda-python", "pycuda"] | None = None
    """The package that allocates and copies device memory; by default the first that is installed."""
    runtime_cache: Path | None = None
    """Where to keep what is compiled for this GPU, so that opening it again takes less time."""
    cache: ModelCache | None = None
    """Where to keep what the runtime compiled for this CPU, and to look for it, so that opening the artifact again takes
    less time. It computes the same."""
    profile: bool = False
    """Allow `Runner.profile`; inferences may be slower."""
    network: str | None = None
    """The network of a checkpoint that is a plain state dict, as for `Checkpoint.load`."""
    settings: tuple[tuple[str, str], ...] = ()
    """Fields to set in a checkpoint's config, as for `Checkpoint.load`."""
    weights_key: str | None = None
    """The key of the weights in a checkpoint's file, as for `Checkpoint.load`."""
    rename: tuple[tuple[str, str], ...] = ()
    """Parts of the names of a checkpoint's tensors to replace, as for `Checkpoint.load`."""

    @classmethod
    def of(cls, loading: Loading, **further: Any) -> OpenOptions:
        """The options that say how to read a checkpoint, and further ones."""
        settings, rename = (tuple((pairs or {}).items()) for pairs in (loading.get("settings"), loading.get("rename")))
        return cls(
            network=loading.get("network"),
            settings=settings,
            weights_key=loading.get("weights_key"),
            rename=rename,
            **further,
        )

    @property
    def loading(self) -> Loading:
        """How to read a checkpoint."""
        return {
            "network": self.network,
            "settings": dict(self.settings),
            "weights_key": self.weights_key,
            "rename": dict(self.rename),
        }


Pending = Callable[[], tuple[Arrays, Timing]]
"""Waits for a submitted inference and returns its outputs and times."""


class Runner(AbstractContextManager["Runner"]):
    """An opened artifact."""

    runtime: str
    device: str
    """What runs it, in words."""
    emulates: str = ""
    """Why it is not computed in the artifact's precision, in words; empty if it is."""
    tf32: bool = False
    """Whether it computes FP32 with operands that are rounded to TF32's 11 bits, as TensorRT does where the GPU can."""
    on_gpu: bool = False
    streams: int = 1
    """How many threads may call `run` at once to some advantage."""
    most_batch: int | None = None
    """The most images of one inference, where the batch is free; None: no limit is known."""
    in_flight: int = 1
    """How many inferences a thread may have in flight: 2 if the device works while the host prepares the next."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None = None
    """What a checkpoint says of its photographs; an artifact's contract says it otherwise."""
    network: str | None = None
    """The network of a checkpoint, as `preprocess`."""

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Compute the outputs.

        Args:
            arrays: one for each of `inputs`, with its dtype and a shape that it accepts.

        Raises:
            InputError: a name, dtype, rank or dimension is wrong; the message names the first of these.
        """
        return self._run(self._checked(arrays))

    def run_timed(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Timing]:
        """`run`, and when each of its parts started and ended."""
        return self.submit(arrays)()

    def submit(self, arrays: Mapping[str, np.ndarray], *, transfers: bool = True) -> Pending:
        """Start an inference. A thread may have `in_flight` of them, and must wait for them in order.

        Args:
            transfers: False skips the copies to and from the device, and the outputs. There must have been an inference
                with these shapes before. It has no effect on a CPU.
        """
        return self._submit(self._checked(arrays), transfers)

    def profile(self, arrays: Mapping[str, np.ndarray], runs: int) -> list[LayerTimes]:
        """The times of each layer in `runs` inferences, in the order of execution.

        Raises:
            UsageError: the runner was not opened with `profile`.
        """
        return self._profile(self._checked(arrays), runs)

    def abandon(self) -> None:
        """Give up the inferences that are under way, where that is possible: nobody wants their outputs any longer."""

    def close(self) -> None:
        """Release what the runner holds; it cannot be used afterwards."""

    @abstractmethod
    def _run(self, arrays: Arrays) -> Arrays: ...

    def _submit(self, arrays: Arrays, transfers: bool) -> Pending:
        start = now_ms()
        outputs = self._run(arrays)
        timing = Timing.host(start, now_ms())
        return lambda: (outputs, timing)

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

    def __exit__(self, *_: object) -> None:
        self.close()


class Runtime(ABC):
    """A way of running artifacts."""

    name: str
    title: str
    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the files that it opens."""
    supported_options: ClassVar[frozenset[str]] = frozenset()
    """The fields of OpenOptions that it supports."""
    unsupported_precisions: ClassVar[frozenset[str]] = frozenset()
    """Precisions that it has no kernels for."""
    variant_of: str = ""
    """The runtime that this is a variant of, if any: the two share a row in `r2mrf doctor`."""

    @abstractmethod
    def availability(self) -> Availability: ...

    @abstractmethod
    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner: ...

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        """Refuse an artifact, or options, for a reason that holds on every machine."""

    def open(self, artifact: Artifact, options: OpenOptions | None = None) -> Runner:
        """Open an artifact.

        Raises:
            UsageError: this runtime does not support an option.
            RuntimeUnavailable: the runtime is not installed, or has no device here, or no kernels for the precision.
            ArtifactError: the file is damaged, or was made for another version or device.
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
        start = time.perf_counter()
        runner = self._open(artifact, chosen)
        took = time.perf_counter() - start
        _LOG.debug("opened %s with %s %s on %s in %.3f s", artifact.path, self.name, state.version, runner.device, took)
        return runner


def changed(options: Any) -> list[str]:
    """The fields that are not at their defaults, of a dataclass without default factories."""
    return [f.name for f in fields(options) if getattr(options, f.name) != f.default]
