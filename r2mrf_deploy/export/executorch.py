"""ExecuTorch programs, `.pte`, for phones: what XNNPACK can compute is handed to it, at best the whole network as one part.

The contract is a method of the program, which returns it as text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r2mrf_deploy import environment, formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError, first_line
from r2mrf_deploy.export.base import Exporter, Written, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.export.traced import contract_of, traced
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.torch_dynamic import to_dynamic_module
from r2mrf_deploy.graph.torch_module import to_module
from r2mrf_deploy.progress import Progress, ProgressCallback, quiet
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.executorch import ExecuTorch
from r2mrf_deploy.wording import count


class ExecuTorchExporter(Exporter):
    suffix = ".pte"
    title = "ExecuTorch"
    precisions = ("fp32", "fp16", "int8")

    def availability(self) -> Availability:
        return ExecuTorch().availability()

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        said = contract_of(source)
        progress(Progress("turning the graph into a PyTorch module"))
        graph = files.read(source.path)
        int8 = said.precision == "int8"
        program = traced(to_dynamic_module(graph) if int8 else to_module(graph), said, "cpu")
        tools = environment.tool_versions("r2mrf-deploy", "torch", "executorch")
        contract = derived(source, said, tools, kind="executorch")
        progress(Progress("converting to ExecuTorch"))
        file.write_bytes(_lowered(program, contract.embedded()))
        header = formats.read(file).header
        if left := [o for o in header.operators if o.startswith("quantized_decomposed::")]:
            raise BuildError(
                f"XNNPACK has no INT8 kernel for a node that {source.path.name} computes in INT8 ({left[0]})"
            )
        parts = count(sum(header.delegates.values()), "part")
        notes = [f"converted by ExecuTorch {environment.version('executorch')}, {parts} on XNNPACK"]
        if int8:
            notes.append("ranges of activations are found in each image")
        if said.profiles:
            notes.append(f"plans {header.planned_bytes / 1e6:,.0f} MB of memory for the largest size")
        return contract, ", ".join(notes)


def _lowered(program: Any, contract: str) -> bytes:
    """A program of PyTorch's as a file of ExecuTorch's."""
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            edge = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods={formats.KEY: contract}
            )
            return bytes(edge.to_executorch().buffer)
        except Exception as e:  # its exceptions share no base class
            raise BuildError(f"ExecuTorch cannot convert the graph: {first_line(e)}; --debug shows the rest") from e
