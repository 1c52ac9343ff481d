"""ExecuTorch on the CPU: programs for phones, `.pte`, whose networks XNNPACK computes.

Its thread pool belongs to the process, and what was opened with one pool keeps a pointer to it. So where another number of
threads is asked for, every open program is dropped first and is loaded again when it is next run.
"""

from __future__ import annotations

import platform
import threading
import weakref
from typing import Any

import numpy as np

from r2mrf_deploy import environment
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, first_line, reading
from r2mrf_deploy.formats.executorch import METHOD, Program
from r2mrf_deploy.progress import quiet
from r2mrf_deploy.runtimes.base import Arrays, Availability, OpenOptions, Runner, Runtime
from r2mrf_deploy.wording import count

_AGAIN = "export it again here with `r2mrf export CKPT -o FILE.pte`"


class ExecuTorch(Runtime):
    name = "executorch"
    title = "ExecuTorch"
    suffixes = (".pte",)
    supported_options = frozenset({"threads"})
    unsupported_precisions = frozenset({"bf16"})

    def availability(self) -> Availability:
        if not environment.importable("executorch", "torch"):
            return Availability(False, reason="executorch is not installed", cure=environment.installs("executorch"))
        return Availability(True, environment.version("executorch"))

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        return ExecuTorchRunner(artifact, options)


class ExecuTorchRunner(Runner):
    """Threads take turns: a program has one set of buffers, and all programs share the pool.

    Args:
        options: `threads` is set for the whole process; by default it is ExecuTorch's own choice.
    """

    runtime = "executorch"

    def __init__(self, artifact: Artifact, options: OpenOptions) -> None:
        contract = artifact.contract
        if contract is None or not contract.inputs:
            raise ArtifactError(f"{artifact.path} does not say what its inputs are: only r2mrf's programs open here")
        self.inputs, self.outputs = tuple(contract.inputs), tuple(contract.outputs)
        self.emulates = _emulated(contract.precision)
        self._path = artifact.path
        self._program: Any = None
        self._method: Any = None
        with _POOL.lock:
            threads = _POOL.resize(options.threads)
            self._load()
            _POOL.open.add(self)
        self.device = f"CPU, {count(threads, 'thread')}, {_computed(artifact.header)} {contract.precision.upper()}"

    def _load(self) -> None:
        library = _library()
        check = library.Verification.InternalConsistency  # of all offsets, before any is followed
        with quiet(), reading(self._path, ArtifactError, "cannot be loaded by ExecuTorch", _AGAIN):
            self._program = library._load_program(str(self._path), program_verification=check)
            self._method = self._program.load_method(METHOD)
            found = (self._method.method_meta().num_inputs(), self._method.method_meta().num_outputs())
        said = (len(self.inputs), len(self.outputs))
        if found != said:
            raise ArtifactError(f"{self._path} has {found} inputs and outputs, but its contract says {said}; {_AGAIN}")

    def drop(self) -> None:
        """Free the program, until it is next run."""
        self._program = self._method = None

    def _run(self, arrays: Arrays) -> Arrays:
        import torch

        # a tensor cannot share a read-only array's memory: those are copied
        tensors = [torch.from_numpy(np.require(arrays[s.name], requirements="W")) for s in self.inputs]
        with _POOL.lock:
            if self._method is None:
                self._load()
            try:
                self._method.set_inputs(tensors)
                self._method.execute()
                outputs = self._method.get_outputs()  # copies
            except RuntimeError as e:
                raise ArtifactError(f"ExecuTorch failed: {first_line(e)}") from None
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, outputs, strict=True)}

    def close(self) -> None:
        with _POOL.lock:
            self.drop()
            _POOL.open.discard(self)


def _computed(header: Program) -> str:
    """What computes."""
    return "XNNPACK" if "XnnpackBackend" in header.delegates else "ExecuTorch's own kernels,"


def _emulated(precision: str) -> str:
    """Why this CPU does not compute as a phone would; empty if it does."""
    if precision == "fp16" and platform.machine().lower() in ("x86_64", "amd64"):
        return "XNNPACK adds FP16 products up in FP32 on this CPU, which phones do not"
    return ""


class _Pool:
    """ExecuTorch's thread pool, and the programs that were opened with it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.open: weakref.WeakSet[ExecuTorchRunner] = weakref.WeakSet()
        self._own: int | None = None

    def resize(self, threads: int | None) -> int:
        """Give the pool a number of threads, or its own if None, and return it."""
        library = _library()
        with quiet():  # its log
            now = library._threadpool_get_thread_count()
            self._own = self._own or now
            if (wanted := threads or self._own) != now:
                for runner in self.open:
                    runner.drop()
                library._unsafe_reset_threadpool(wanted)
            return wanted


_POOL = _Pool()


def _library() -> Any:
    """The bindings to ExecuTorch's C++, which PyTorch has to be there for."""
    with quiet():
        from executorch.extension.pybindings import portable_lib
    return portable_lib
