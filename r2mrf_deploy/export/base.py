"""The base class of exporters: an exporter writes an ONNX artifact in another format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.export.options import PRECISIONS, FormatOptions
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import Contract, Manifest
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.runtimes.base import Availability, changed

if TYPE_CHECKING:
    from r2mrf_deploy.parity.compare import Parity
    from r2mrf_deploy.parity.node_search import Search


Written = tuple[Contract, str]
"""The contract of a new artifact, and a note for its user: what it was built for, what was not verified."""


class Exporter(ABC):
    """Writes files of one format."""

    suffix: ClassVar[str]
    title: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    options: ClassVar[frozenset[str]] = frozenset()
    """The supported fields of FormatOptions."""

    @abstractmethod
    def availability(self) -> Availability:
        """Whether files of this format can be written here."""

    @abstractmethod
    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        """Write an ONNX artifact as `file`, with any further files of the artifact beside it.

        Raises:
            UsageError, BuildError, GraphError, RuntimeUnavailable: the artifact cannot be written this way.
        """


@dataclass(frozen=True)
class Exported:
    """A new artifact, and how it compares with its source."""

    artifact: Artifact
    parity: Parity | None = None
    """None if the artifact does not take a photograph."""
    note: str = ""
    warnings: tuple[str, ...] = ()
    search: Search | None = None
    """The search for nodes to keep in higher precision."""

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
        UsageError: an exporter cannot write the precision, or none supports an option.
        RuntimeUnavailable: a package that an exporter needs is not installed.
    """
    for name in changed(options):
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


def derived(source: Artifact, contract: Contract, tools: Mapping[str, str], **found: Any) -> Contract:
    """The contract of a file made from an ONNX artifact.

    Args:
        contract: the source's, or what is known of a source that has none.
        tools: the versions of what made the file.
        found: the fields that differ from the source's.
    """
    digest = source.manifest.sha256 if source.manifest else sha256(source.path)
    kept = contract.model_dump(include=set(Contract.model_fields))  # without a manifest's hash and evidence
    return Contract.model_validate(kept | found | {"source_sha256": digest, "tools": {**contract.tools, **tools}})
