"""AOTInductor: a network that PyTorch's compiler turned into native code ahead of time, a `.pt2` package.

A package is executable code for one PyTorch, one device and one kind of processor, and PyTorch checks little of that: here
it is checked before anything of it is loaded. `r2mrf export CKPT -o x.pt2` makes them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import Contract, Target, TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Availability, OpenOptions, Runner, Runtime, changed
from r2mrf_deploy.runtimes.pytorch.cuda import cuda_availability
from r2mrf_deploy.runtimes.pytorch.eager import PyTorch
from r2mrf_deploy.runtimes.pytorch.execution_context import TorchCuda, TorchRunner

Profiles = dict[str, dict[str, list[int]]]
_AGAIN = "export it again here with `r2mrf export CKPT -o FILE.pt2`"


def target_here(device: str, precision: str = "fp32") -> Target:
    """What a package made here for `device` ("cpu" or "cuda") runs on."""
    import torch

    gpu = device == "cuda"
    return Target(
        runtime="aotinductor",
        runtime_version=str(torch.__version__),
        device="cuda" if gpu else "cpu",
        compute_capabilities=["{}.{}".format(*torch.cuda.get_device_capability())] if gpu else [],
        gpus=[torch.cuda.get_device_name()] if gpu else [],
        cpu=None if gpu else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        built_without_gpu=not gpu,
        achieved_precision=precision,
    )


class AOTInductor(Runtime):
    name = "aotinductor"
    title = "AOTInductor"
    suffixes = (".pt2",)
    supported_options = frozenset({"threads", "cuda_graph", "spin_wait"})

    def availability(self) -> Availability:
        state = PyTorch().availability()
        if not state.ok:
            return state
        if environment.cxx() is None:
            reason = "packages run here, but none can be made: no C++ compiler"
            return Availability(True, state.version, reason, environment.CXX)
        if environment.cuda_driver() is None and environment.nvcc() is None and "CUDA_HOME" not in os.environ:
            reason = (
                "packages for the GPU run here, but none can be made: they are linked with CUDA's stub of the driver"
            )
            return Availability(True, state.version, reason, "install CUDA's toolkit, or set CUDA_HOME to its folder")
        return state

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        device = artifact.header.device
        unsupported = {"cuda_graph", "spin_wait"} if device == "cpu" else {"threads"}
        if refused := [f for f in changed(options) if f in unsupported]:
            raise UsageError(f"{artifact.path.name} runs on the {device}, which does not support `{refused[0]}`")

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        device, contract = artifact.header.device, artifact.contract
        if contract is None or not contract.inputs:
            raise ArtifactError(f"{artifact.path} does not say what its inputs are: only packages of r2mrf open here")
        _check_target(device, contract, artifact.path.name)
        inputs, outputs = tuple(contract.inputs), tuple(contract.outputs)
        single = device == "cuda"  # its enqueueing is locked by the runner; its own locks prevent CUDA graphs
        program = _Program(_load(artifact.path, single), contract.profiles)
        if device == "cpu":
            return AOTInductorRunner(program, inputs, outputs, options.threads, contract.precision)
        return TorchRunner(
            TorchCuda(),
            program,
            inputs,
            outputs,
            runtime=self.name,
            device=f"AOTInductor {contract.precision.upper()}",
            tf32=False,
            cuda_graph=bool(options.cuda_graph),
            options=options,
        )


class AOTInductorRunner(Runner):
    """A package on the CPU.

    Args:
        threads: for PyTorch; it holds for the whole process.
    """

    runtime = "aotinductor"

    def __init__(
        self,
        program: _Program,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        threads: int | None,
        precision: str,
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.device = f"CPU, {torch.get_num_threads()} threads, AOTInductor {precision.upper()}"
        self._program = program
        self.inputs, self.outputs = inputs, outputs

    def _run(self, arrays: Arrays) -> Arrays:
        import torch

        values = [arrays[s.name] for s in self.inputs]
        tensors = [torch.from_numpy(v if v.flags.writeable else v.copy()) for v in values]
        with torch.inference_mode():
            outputs = self._program(*tensors)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, outputs, strict=True)}


class _Program:
    """The loaded code, called only with sizes that it was compiled for: beyond, it would read and write anywhere."""

    def __init__(self, model: Any, profiles: Profiles) -> None:
        self._model = model
        self._ranges = [(name, p["min"], p["max"]) for name, p in profiles.items()]

    def __call__(self, *tensors: Any) -> Sequence[Any]:
        for (name, low, high), tensor in zip(self._ranges, tensors, strict=False):
            shape = list(tensor.shape)
            if not all(a <= d <= b for a, d, b in zip(low, shape, high, strict=True)):
                raise InputError(f"aotinductor: {name} {shape} is outside the package's range, {low} to {high}")
        return self._model(*tensors)


def _load(artifact: Path, single_threaded: bool) -> Any:
    import torch

    try:
        with quiet():
            return torch._inductor.aoti_load_package(str(artifact), run_single_threaded=single_threaded)
    except RuntimeError as e:
        raise ArtifactError(f"PyTorch cannot load {artifact}: {str(e).strip().splitlines()[0]}; {_AGAIN}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the compiler's chatter off the user's screen; what fails raises."""
    logger = logging.getLogger("torch")
    level = logger.level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            logger.setLevel(logging.ERROR)
            yield
        finally:
            logger.setLevel(level)


def _check_target(device: str, contract: Contract, name: str) -> None:
    """Refuse what was made for something else than what is here."""
    target = contract.target
    if device not in ("cpu", "cuda"):
        raise ArtifactError(f"{name} was made for {device!r}; known are cpu and cuda")
    if device == "cuda" and not (state := cuda_availability()).ok:
        raise RuntimeUnavailable(f"{name} was made for a GPU: {state.reason}; {state.cure}, or export it for the CPU")
    if target is None:
        return
    here = target_here(device)
    if target.device != device:
        raise ArtifactError(f"{name} was made for {device}, its manifest says {target.device}; {_AGAIN}")
    for what, made, found in (
        ("PyTorch", target.runtime_version, here.runtime_version),
        ("compute capability", " ".join(target.compute_capabilities), " ".join(here.compute_capabilities)),
        ("a processor that is", target.cpu or "", here.cpu or ""),
    ):
        if made != found:
            raise ArtifactError(f"{name} was made for {what} {made}, here is {found}; {_AGAIN}")
