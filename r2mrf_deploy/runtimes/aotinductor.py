"""AOTInductor: networks that PyTorch's compiler turned into native code ahead of time, `.pt2` packages.

A package is executable code for one version of PyTorch, one device and one kind of processor. PyTorch checks little of
that, so it is checked here, before any of the code is loaded. PyTorch also unpacks a package wherever its member names lead,
outside its folder too. So what it is given is a private copy, which has been compared with the manifest and verified.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from functools import partial
from typing import Any

from r2mrf_deploy import environment, formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, UsageError, reading
from r2mrf_deploy.files import scratch, sha256
from r2mrf_deploy.manifest import Contract, Target
from r2mrf_deploy.progress import quiet
from r2mrf_deploy.runtimes.base import Availability, OpenOptions, Runner, Runtime, changed
from r2mrf_deploy.runtimes.pytorch.cuda import cuda_availability
from r2mrf_deploy.runtimes.pytorch.eager import ProgramRunner, PyTorch
from r2mrf_deploy.runtimes.pytorch.execution_context import TorchCuda, TorchRunner

_AGAIN = "export it again here with `r2mrf export CKPT -o FILE.pt2`"


def target_here(device: str, precision: str = "fp32") -> Target:
    """The target of a package that is made here for `device`, "cpu" or "cuda"."""
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
            reason = "packages run here but cannot be made: there is no C++ compiler"
            return Availability(True, state.version, reason, environment.CXX)
        if environment.cuda_driver() is None and environment.cuda_toolkit() is None:
            reason = "GPU packages run here but cannot be made: that needs the driver stub in the CUDA toolkit"
            return Availability(True, state.version, reason, "install the toolkit, or set CUDA_HOME to its folder")
        return state

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        device = artifact.header.device
        unsupported = {"cuda_graph", "spin_wait"} if device == "cpu" else {"threads"}
        if refused := [f for f in changed(options) if f in unsupported]:
            raise UsageError(f"{artifact.path.name} runs on the {device}, which does not support `{refused[0]}`")

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        device, contract = artifact.header.device, artifact.contract
        if contract is None or not contract.inputs:
            raise ArtifactError(f"{artifact.path} does not say what its inputs are: only r2mrf's packages open here")
        _check_target(device, contract, artifact.path.name)
        inputs, outputs = tuple(contract.inputs), tuple(contract.outputs)
        form = f"AOTInductor {contract.precision.upper()}"
        single = device == "cuda"  # the runner locks enqueueing; the package's own locks would prevent CUDA graphs
        program = partial(_run, _load(artifact, single), contract.profiles)
        if device == "cpu":
            return ProgramRunner(self.name, program, inputs, outputs, form, options.threads)
        return TorchRunner(
            TorchCuda(), program, inputs, outputs, runtime=self.name, form=form, tf32=False, options=options
        )


def _run(model: Any, profiles: dict[str, dict[str, list[int]]], *tensors: Any) -> Sequence[Any]:
    """Call the loaded code, if it was compiled for these sizes: with others it would read and write out of bounds."""
    for (name, profile), tensor in zip(profiles.items(), tensors, strict=False):
        low, shape, high = profile["min"], list(tensor.shape), profile["max"]
        if not all(a <= d <= b for a, d, b in zip(low, shape, high, strict=True)):
            raise InputError(f"aotinductor: {name} {shape} is outside the package's range, {low} to {high}")
    return model(*tensors)


def _load(artifact: Artifact, single_threaded: bool) -> Any:
    """Load the code. The copy is private, so that nobody can change it between its verification and its loading."""
    import torch

    with scratch() as folder, reading(artifact.path, ArtifactError, "is no package that PyTorch can load", _AGAIN):
        copy = folder / "package.pt2"
        shutil.copyfile(artifact.path, copy)
        if artifact.manifest and sha256(copy) != artifact.manifest.sha256:
            raise ArtifactError(
                f"{artifact.path} was changed after it was compared with its manifest: nothing was loaded"
            )
        formats.read(copy)
        with quiet():
            return torch._inductor.aoti_load_package(str(copy), run_single_threaded=single_threaded)


def _check_target(device: str, contract: Contract, name: str) -> None:
    """Refuse a package that was made for something other than what is here."""
    target = contract.target
    if device not in ("cpu", "cuda"):
        raise ArtifactError(f"{name} was made for {device!r}; known are cpu and cuda")
    if device == "cuda" and not (state := cuda_availability()).ok:
        raise RuntimeUnavailable(f"{name} was made for a GPU: {state.reason}; {state.cure}, or export it for the CPU")
    if target is None:
        return
    here = target_here(device)
    if target.device != device:
        raise ArtifactError(f"{name} was made for {device}, but its manifest says {target.device}; {_AGAIN}")
    for what, made, found in (
        ("PyTorch", target.runtime_version, here.runtime_version),
        ("compute capability", " ".join(target.compute_capabilities), " ".join(here.compute_capabilities)),
        ("CPU", target.cpu or "", here.cpu or ""),
    ):
        if made != found:
            raise ArtifactError(f"{name} was made for {what} {made}, but this machine has {found}; {_AGAIN}")
