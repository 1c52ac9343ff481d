"""What an exporter is: it writes an ONNX artifact as a file of another format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.manifest import Contract, Manifest, TensorSpec
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.runtimes.base import Availability

if TYPE_CHECKING:
    from r2mrf_deploy.parity.compare import Parity
    from r2mrf_deploy.parity.node_search import Search


class Exporter(ABC):
    """Writes files of one format."""

    suffix: ClassVar[str]
    title: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "bf16", "int8")
    options: ClassVar[frozenset[str]] = frozenset()
    """The fields of FormatOptions that it supports."""

    @abstractmethod
    def availability(self) -> Availability:
        """Whether such files can be written here."""

    @abstractmethod
    def write(
        self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback
    ) -> tuple[Contract, str]:
        """Write an ONNX artifact as `file`, and what belongs to it beside it.

        Returns:
            (the contract of what was written, what its user has to know: for what it was built, what was not verified).

        Raises:
            UsageError, BuildError, GraphError, RuntimeUnavailable: it cannot be written this way.
        """


@dataclass(frozen=True)
class Exported:
    """An artifact that was made, and how it compares with what it was made from."""

    artifact: Artifact
    parity: Parity | None = None
    """None where there was nothing to compare it on."""
    note: str = ""
    warnings: tuple[str, ...] = ()
    search: Search | None = None
    """For nodes to keep in higher precision."""

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def manifest(self) -> Manifest:
        assert self.artifact.manifest is not None
        return self.artifact.manifest


def refuse_unsupported(exporters: Sequence[Exporter], precision: str, options: FormatOptions) -> None:
    """Refuse what an exporter cannot do, before anything is read.

    Raises:
        UsageError: a precision that one of them cannot write, or an option that none of them supports.
        RuntimeUnavailable: what one of them needs is not installed.
    """
    for name in options.given():
        if not any(name in e.options for e in exporters):
            titles = ", ".join(e.title for e in exporters)
            raise UsageError(f"`{name}` is not supported by {titles}: leave it out")
    for each in exporters:
        if precision not in each.precisions:
            raise UsageError(
                f"{each.title} files ({each.suffix}) have no {precision.upper()}: choose from {', '.join(each.precisions)}"
            )
        if not (state := each.availability()).ok:
            raise RuntimeUnavailable(f"{each.title} files cannot be written here: {state.reason}; {state.cure}")


def derived(
    source: Artifact, kind: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **found: Any
) -> Contract:
    """The contract of a file that is made from an ONNX artifact: the artifact's own, and what is different.

    Args:
        inputs, outputs: for a source that has no contract.
    """
    from r2mrf_deploy.files import sha256

    contract = source.contract or Contract(kind=kind, inputs=list(inputs), outputs=list(outputs))
    digest = source.manifest.sha256 if source.manifest else sha256(source.path)
    tools = contract.tools | found.pop("tools", {})
    kept = contract.model_dump(include=set(Contract.model_fields))
    return Contract.model_validate(kept | {"kind": kind, "source_sha256": digest, "tools": tools} | found)
