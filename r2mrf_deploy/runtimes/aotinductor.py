"""AOTInductor: a network that PyTorch's compiler turned into native code ahead of time, a `.pt2` package.

A package is executable code for one PyTorch, one device and one kind of processor, and PyTorch checks little of that: here
it is checked before anything of it is loaded. `r2mrf export CKPT -o x.pt2` makes them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import platform
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r2mrf_deploy import environment
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import Manifest, Target, TensorSpec
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.base import Arrays, Availability, OpenOptions, Runner, Runtime, changed
from r2mrf_deploy.runtimes.pytorch.cuda import cuda_availability
from r2mrf_deploy.runtimes.pytorch.eager import PyTorch
from r2mrf_deploy.runtimes.pytorch.execution_context import TorchCuda, TorchRunner

Profiles = dict[str, dict[str, list[int]]]
METADATA = "r2mrf"
"""Where the inputs, the outputs and the target stand in a package's own metadata, for those who open it by themselves."""
_AGAIN = "export it again here with `r2mrf export CKPT -o FILE.pt2`"


@dataclass(frozen=True)
class Package:
    """What a package says of itself."""

    device: str
    """PyTorch's name: cpu, cuda."""
    target: Target | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """Known of packages of ours only."""
    profiles: Profiles

    @classmethod
    def read(cls, path: Path) -> Package:
        """Read a package without running it.

        Raises:
            ArtifactError: it is damaged, or is no AOTInductor package.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
                names = [n for n in archive.namelist() if n.endswith(".wrapper_metadata.json")]
                found: dict[str, str] = json.loads(archive.read(names[0])) if names else {}
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as e:
            raise ArtifactError(f"{path} is not an AOTInductor package, or is damaged: {e}") from None
        if broken:
            raise ArtifactError(f"{path} is damaged: {Path(broken).name}; {_AGAIN}")
        if "AOTI_DEVICE_KEY" not in found:
            raise ArtifactError(f"{path} is not an AOTInductor package")
        try:
            ours = json.loads(found.get(METADATA, "{}"))
            target = Target.model_validate(ours["target"]) if "target" in ours else None
            inputs, outputs = (tuple(map(TensorSpec.model_validate, ours.get(k, []))) for k in ("inputs", "outputs"))
        except (ValueError, ValidationError, AttributeError) as e:
            raise ArtifactError(f"{path} is damaged: {str(e).splitlines()[0]}") from None
        return cls(found["AOTI_DEVICE_KEY"], target, inputs, outputs, ours.get("profiles", {}))

    @staticmethod
    def metadata(manifest: Manifest) -> dict[str, str]:
        """What `read` reads, from the manifest of a package to be made."""
        return {METADATA: manifest.model_dump_json(include={"target", "inputs", "outputs", "profiles"})}


def target_here(device: str) -> Target:
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
        achieved_precision="fp32",
    )


class AOTInductor(Runtime):
    name = "aotinductor"
    title = "AOTInductor"
    suffixes = (".pt2",)
    supported_options = frozenset({"threads", "cuda_graph", "spin_wait"})

    def availability(self) -> Availability:
        state = PyTorch().availability()
        if not state.ok or environment.cxx():
            return state
        return Availability(
            True, state.version, "packages run here, but none can be made: no C++ compiler", environment.CXX
        )

    def open(self, artifact: Path, manifest: Manifest | None, options: OpenOptions | None = None) -> Runner:
        """Open a package that is already checked against its manifest's SHA-256.

        Raises:
            ArtifactError: it is damaged, not what its manifest says, or made for another PyTorch, device or processor.
            RuntimeUnavailable: PyTorch is not installed, or there is no device.
            UsageError: an option that means nothing on the package's device.
        """
        package = Package.read(artifact)
        if manifest is not None:
            _check_manifest(package, manifest, artifact)
        meaningless = {"cuda_graph", "spin_wait"} if package.device == "cpu" else {"threads"}
        for field in changed(options or OpenOptions()):
            if field in meaningless:
                flag = {"threads": "--threads", "cuda_graph": "--useCudaGraph", "spin_wait": "--useSpinWait"}[field]
                raise UsageError(f"{artifact.name} runs on the {package.device}, which has nothing to do with {flag}")
        return super().open(artifact, manifest, options)

    def _open(self, artifact: Path, manifest: Manifest | None, options: OpenOptions) -> Runner:
        package = Package.read(artifact)
        _check_target(package, manifest, artifact.name)
        if not package.inputs:
            raise ArtifactError(f"{artifact} does not say what its inputs are: only packages of r2mrf can be opened")
        inputs, outputs = (manifest.inputs, manifest.outputs) if manifest else (package.inputs, package.outputs)
        single = package.device == "cuda"  # its enqueueing is locked by the runner; its own locks prevent CUDA graphs
        program = _Program(_load(artifact, single), package.profiles)
        if package.device == "cpu":
            return AOTInductorRunner(program, tuple(inputs), tuple(outputs), options.threads)
        return TorchRunner(
            TorchCuda(),
            program,
            tuple(inputs),
            tuple(outputs),
            runtime=self.name,
            device="AOTInductor FP32",
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
        self, program: _Program, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], threads: int | None
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.device = f"CPU, {torch.get_num_threads()} threads, AOTInductor FP32"
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


def _check_manifest(package: Package, manifest: Manifest, artifact: Path) -> None:
    if manifest.kind != "pt2":
        raise ArtifactError(f"{artifact}: its manifest is of a file of kind {manifest.kind!r}, not of a .pt2 package")
    for found, said in ((package.inputs, manifest.inputs), (package.outputs, manifest.outputs)):
        if differs := specs.difference(found, said):
            raise ArtifactError(f"{artifact}: the package has {differs}; {_AGAIN}")


def _check_target(package: Package, manifest: Manifest | None, name: str) -> None:
    """Refuse what was made for something else than what is here."""
    target = manifest.target if manifest and manifest.target else package.target
    if package.device not in ("cpu", "cuda"):
        raise ArtifactError(f"{name} was made for {package.device!r}; known are cpu and cuda")
    if package.device == "cuda" and not (state := cuda_availability()).ok:
        raise RuntimeUnavailable(
            f"{name} was made for a GPU: {state.reason}; {state.cure}, or export with --device cpu"
        )
    if target is None:
        return
    here = target_here(package.device)
    if target.device != package.device:
        raise ArtifactError(f"{name} was made for {package.device}, its manifest says {target.device}; {_AGAIN}")
    for what, made, found in (
        ("PyTorch", target.runtime_version, here.runtime_version),
        ("compute capability", " ".join(target.compute_capabilities), " ".join(here.compute_capabilities)),
        ("a processor that is", target.cpu or "", here.cpu or ""),
    ):
        if made != found:
            raise ArtifactError(f"{name} was made for {what} {made}, here is {found}; {_AGAIN}")
