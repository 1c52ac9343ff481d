"""AOTInductor packages, `.pt2`: the graph compiled ahead of time, for one device and the installed version of PyTorch."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from r2mrf_deploy import environment, formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable, first_line
from r2mrf_deploy.export.base import Exporter, Written, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.export.traced import contract_of, traced
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.torch_module import to_module
from r2mrf_deploy.progress import Progress, ProgressCallback, quiet
from r2mrf_deploy.runtimes.aotinductor import AOTInductor, target_here
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.pytorch.cuda import triton_availability
from r2mrf_deploy.runtimes.pytorch.execution_context import precision


class AOTInductorExporter(Exporter):
    """`device` is what to compile for: "cuda" or "cpu"; by default the GPU if there is one."""

    suffix = ".pt2"
    title = "AOTInductor"
    precisions = ("fp32", "fp16", "bf16")
    options = frozenset({"device"})

    def availability(self) -> Availability:
        state = AOTInductor().availability()
        return state if environment.cxx() else Availability(False, state.version, "no C++ compiler", environment.CXX)

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        said = contract_of(source)
        gpu = triton_availability()
        if options.device == "cuda" and not gpu.ok:
            raise RuntimeUnavailable(f"`device` cuda: {gpu.reason}; {gpu.cure}, or use cpu")
        device = options.device or ("cuda" if gpu.ok else "cpu")
        progress(Progress("turning the graph into a PyTorch module"))
        program = traced(to_module(files.read(source.path)).to(device), said, device)
        tools = environment.tool_versions("r2mrf-deploy", "torch")
        contract = derived(source, said, tools, kind="pt2", target=target_here(device, said.precision))
        progress(Progress("compiling"))
        settings: dict[str, Any] = {
            "aot_inductor.metadata": {formats.KEY: contract.embedded()},
            "cpp.dynamic_threads": True,  # the process that runs the package sets their number
        }
        with quiet(), torch.no_grad(), cuda_home(device), precision(tf32=False if device == "cuda" else None):
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=settings)
            except Exception as e:  # its exceptions share no base class
                raise BuildError(f"PyTorch cannot compile the graph: {first_line(e)}; --debug shows the rest") from e
        _without_executable_stacks(file)
        if device == "cuda":
            progress(Progress("loading it in a process of its own"))
            _refuse_crash(file)
        return contract, f"compiled by PyTorch {torch.__version__} for the {device}"


_PROGRAM_HEADER = struct.Struct("<II")
_GNU_STACK, _EXECUTABLE = 0x6474E551, 1


def _without_executable_stacks(file: Path) -> None:
    """Take from a package's libraries the request for an executable stack.

    They make it by oversight, because the assembly file with the constants has no `.note.GNU-stack`. From 2.41 on, glibc
    loads no such library; before, it made the stacks of the whole process executable (glibc 2.41, NEWS).
    """
    copy = file.with_name(f"{file.name}.copy")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(copy, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith(".so"):
                content = _without_executable_stack(content)
            target.writestr(member, content)
    copy.replace(file)


def _without_executable_stack(library: bytes) -> bytes:
    """An ELF library for 64 bits, little-endian, whose program header PT_GNU_STACK has no flag PF_X."""
    if library[:6] != b"\x7fELF\x02\x01":
        return library
    changed = bytearray(library)
    (start,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    for at in range(start, start + size * count, size):
        kind, flags = _PROGRAM_HEADER.unpack_from(library, at)
        if kind == _GNU_STACK:
            _PROGRAM_HEADER.pack_into(changed, at, kind, flags & ~_EXECUTABLE)
    return bytes(changed)


_LOAD = """
import sys, torch
torch.zeros(1, device="cuda")
torch._inductor.aoti_load_package(sys.argv[1], run_single_threaded=True)
"""


def _refuse_crash(file: Path) -> None:
    """Load a package in a process of its own first: where PyTorch crashes, the caller's process would be lost.

    PyTorch 2.11 crashed on an H200 when it loaded a package, even one of a single convolution (docs/gpu.md).

    Raises:
        BuildError: the process was ended by a signal. Errors are left to the check that follows, which says more.
    """
    ended = subprocess.run([sys.executable, "-c", _LOAD, str(file)], capture_output=True).returncode
    if ended < 0:
        raise BuildError(
            f"PyTorch {torch.__version__} crashes here when it loads the package that it made "
            f"({signal.Signals(-ended).name}): install another version of it, or use the ONNX file with onnxruntime-cuda"
        )


@contextlib.contextmanager
def cuda_home(device: str) -> Iterator[None]:
    """Set CUDA_HOME while a package is linked: PyTorch looks for the driver's stub library only there, in a folder that it
    has chosen when it was imported."""
    from torch.utils import cpp_extension

    toolkit = environment.cuda_toolkit() if device == "cuda" else None
    before, chosen = os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME
    if toolkit:
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(toolkit)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = chosen
        if before is None:
            os.environ.pop("CUDA_HOME", None)
        else:
            os.environ["CUDA_HOME"] = before
