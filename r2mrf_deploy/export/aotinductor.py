"""AOTInductor packages, `.pt2`: the rewritten graph compiled ahead of time by PyTorch, for this PyTorch and one device."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from r2mrf_deploy import environment, formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable, first_line
from r2mrf_deploy.export.base import Exporter, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.torch_module import to_module
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.progress import Progress, ProgressCallback, quiet
from r2mrf_deploy.runtimes.aotinductor import AOTInductor, target_here
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.pytorch.cuda import triton_availability
from r2mrf_deploy.runtimes.pytorch.execution_context import precision


class AOTInductorExporter(Exporter):
    """`device` is what a package is compiled for: "cuda" or "cpu", by default the GPU where there is one."""

    suffix = ".pt2"
    title = "AOTInductor"
    precisions = ("fp32", "fp16", "bf16")
    options = frozenset({"device"})

    def availability(self) -> Availability:
        state = AOTInductor().availability()
        return state if environment.cxx() else Availability(False, state.version, "no C++ compiler", environment.CXX)

    def write(
        self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback
    ) -> tuple[Contract, str]:
        device = _device(options.device)
        progress(Progress("turning the graph into a PyTorch module"))
        model = files.read(source.path)
        program = _trace(to_module(model).to(device), source, device)
        (spec,) = source.contract.inputs if source.contract else (None,)
        contract = derived(
            source, "pt2", [spec] if spec else [], [], target=target_here(device, source.precision),
            tools=environment.tool_versions("r2mrf-deploy", "torch"),
        )  # fmt: skip
        progress(Progress("compiling"))
        settings: dict[str, Any] = {
            "aot_inductor.metadata": {formats.KEY: contract.embedded()},
            "cpp.dynamic_threads": True,  # as many as the process that runs it wants
        }
        with quiet(), torch.no_grad(), _cuda_home(device), precision(tf32=False if device == "cuda" else None):
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)
            except Exception as e:  # its exceptions share no base class
                raise BuildError(f"PyTorch cannot compile the graph: {first_line(e)}; --debug shows the rest") from e
        return contract, f"compiled by PyTorch {torch.__version__} for the {device}"


@contextlib.contextmanager
def _cuda_home(device: str) -> Iterator[None]:
    """Say where CUDA is while a package is linked: PyTorch looks for the driver's stub library there, and only there."""
    compiler, home = environment.nvcc(), os.environ.get("CUDA_HOME")
    if device != "cuda" or home or compiler is None:
        yield
        return
    os.environ["CUDA_HOME"] = str(compiler.resolve().parents[1])
    try:
        yield
    finally:
        del os.environ["CUDA_HOME"]


def _device(name: str | None) -> str:
    """The device to compile for.

    Raises:
        RuntimeUnavailable: it is not here.
    """
    gpu = triton_availability()
    if name == "cuda" and not gpu.ok:
        raise RuntimeUnavailable(f"`device` cuda: {gpu.reason}; {gpu.cure}, or use cpu")
    return name or ("cuda" if gpu.ok else "cpu")


def _trace(module: torch.nn.Module, source: Artifact, device: str) -> Any:
    """The module as PyTorch's own operators, an ExportedProgram."""
    contract = source.contract
    if contract is None or len(contract.inputs) != 1:
        raise BuildError(
            f"{source.path.name} has no contract that says what its input is: export it with `r2mrf export`"
        )
    (spec,) = contract.inputs
    further: dict[str, Any] = {}
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    if not spec.static:
        if "prefer_deferred_runtime_asserts_over_guards" not in inspect.signature(torch.export.export).parameters:
            raise RuntimeUnavailable(
                "this PyTorch cannot export free sizes: pip install -U torch, or export one `size`"
            )
        profile = contract.profiles[spec.name]
        free = [axis for axis, d in enumerate(spec.shape) if not isinstance(d, int)]
        dims = {a: torch.export.Dim(str(spec.shape[a]), min=profile["min"][a], max=profile["max"][a]) for a in free}
        further = {"dynamic_shapes": ((dims,),), "prefer_deferred_runtime_asserts_over_guards": True}
        shape = _example(spec, profile)
    with quiet(), torch.no_grad():
        try:
            example = torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device)
            return torch.export.export(module.eval(), (example,), strict=False, **further)
        except Exception as e:  # its exceptions share no base class
            raise BuildError(f"PyTorch cannot trace the graph: {first_line(e)}") from None


def _example(spec: TensorSpec, profile: dict[str, list[int]]) -> list[int]:
    """A shape whose free sizes are odd and differ from each other and from 1: none is taken for a constant or a multiple."""
    shape, (y, x) = list(profile["opt"]), spec.spatial_axes
    shape[0] = 2
    for axis in (y, x):
        shape[axis] = min(shape[axis] | 1, profile["max"][axis] - 1)
    if shape[x] == shape[y]:
        shape[x] += 2 if shape[x] + 2 <= profile["max"][x] else -2
    return shape
