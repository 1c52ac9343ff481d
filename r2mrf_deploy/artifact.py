"""An artifact: a model file, its manifest, and what is known of it. This module alone writes either.

`Artifact.open` verifies a file once. `publish` makes a file and its manifest appear together. `Artifact.record` adds
evidence. A manifest is bound to its file by SHA-256, so a file is replaced in three steps that can stop anywhere: the new
manifest is put beside the old one as `x.onnx.json.next`, the file is renamed over the old file, the new manifest is renamed
over the old one. At every moment one of the two manifests is the file's. Where an artifact has further files, the model file
is removed before they are replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy import formats
from r2mrf_deploy.errors import ArtifactError, no_file
from r2mrf_deploy.files import flush, locked, sha256, staging
from r2mrf_deploy.manifest import Contract, Manifest

Evidence = Mapping[str, Any]
"""One measurement as JSON: of parity, latency or accuracy."""

_SAME = {
    "parity": ("runtime", "device", "reference"),
    "latency": ("runtime", "device", "batch", "shape", "options"),
    "accuracy": ("dataset", "runtime", "positive"),
}
"""What two pieces of evidence of the same measurement have in common; the later replaces the earlier."""


@dataclass(frozen=True)
class Artifact:
    """A model file that was verified."""

    path: Path
    manifest: Manifest | None = None
    """The manifest beside the file; it matches."""
    contract: Contract | None = None
    """The manifest, or without one the contract that lies inside the file."""
    header: Any = None
    """What the format's own header says (see `formats`)."""

    @property
    def precision(self) -> str:
        return self.contract.precision if self.contract else "fp32"

    @property
    def executable(self) -> bool:
        """Whether opening the file runs code from it."""
        return self.path.suffix.lower() in formats.EXECUTABLE

    @classmethod
    def open(cls, path: Path | str | Artifact) -> Artifact:
        """Verify a model file: its SHA-256 against its manifest, and its header.

        Raises:
            InputError: no such file.
            ArtifactError: the file is damaged, its manifest is, or the two do not match.
        """
        if isinstance(path, Artifact):
            return path
        path = Path(path)
        if not path.is_file():
            raise no_file(path)
        while True:
            before = _state(path)
            try:
                manifest, content = _manifest_of(path), formats.read(path)
                _refuse_contradiction(path, manifest, content.contract)
                return cls(path, manifest, manifest or content.contract, content.header)
            except ArtifactError:
                if _state(path) == before:  # else another process replaced the artifact meanwhile
                    if not path.is_file():
                        raise no_file(path) from None
                    raise

    def record(
        self,
        *,
        parity: Sequence[Evidence] = (),
        latency: Sequence[Evidence] = (),
        accuracy: Sequence[Evidence] = (),
    ) -> str:
        """Add evidence to the manifest. It replaces what the same measurement gave before.

        Returns:
            Why nothing was recorded, in words; empty where it was.

        Raises:
            ArtifactError: the file was changed since it was opened, or the disk is full.
        """
        if self.manifest is None:
            return f"{self.path.name} has no manifest to record it in"
        if not os.access(self.path.parent, os.W_OK):
            return f"{self.path.parent} is read-only"
        with staging(self.path) as folder, locked(self.path.parent):
            current = _manifest_of(self.path)
            if current is None or current.sha256 != self.manifest.sha256:
                raise ArtifactError(f"{self.path} was changed meanwhile: nothing was recorded")
            found = {"parity": parity, "latency": latency, "accuracy": accuracy}
            merged = {k: _merged(getattr(current, k), v, _SAME[k]) for k, v in found.items()}
            document = folder / Manifest.path_for(self.path).name
            current.model_copy(update=merged).write(document)
            document.replace(Manifest.path_for(self.path))
            _next(self.path).unlink(missing_ok=True)
        return ""


def publish(
    path: Path,
    write: Callable[[Path], Contract | None],
    check: Callable[[Artifact], Sequence[Evidence]] | None = None,
) -> Artifact:
    """Make a model file and its manifest appear together, or neither.

    Args:
        path: the file. Missing folders are made; an artifact that is there is replaced.
        write: writes the model file to the path that it is given, further files beside it, and returns the contract. None
            leaves the file without a manifest.
        check: proves the new file before anybody sees it, and returns the evidence; what it raises keeps the file out.

    Raises:
        ArtifactError: the folder cannot be written or the disk is full. What was at `path` is as it was.
    """
    with staging(path) as folder:
        file = folder / path.name
        contract = write(file)
        companions = sorted(f for f in folder.iterdir() if f != file)
        for written in (file, *companions):
            flush(written)
        manifest = Manifest.bind(contract, file, companions) if contract else None
        header = formats.read(file).header
        if check is not None:
            evidence = check(Artifact(file, manifest, manifest, header))
            manifest = manifest.model_copy(update={"parity": list(evidence)}) if manifest else None
        with locked(path.parent):
            _move(file, companions, manifest, path)
    return Artifact(path, manifest, manifest, header)


def _move(file: Path, companions: Sequence[Path], manifest: Manifest | None, path: Path) -> None:
    """Replace an artifact as the module's docstring says. The folder is locked."""
    document = Manifest.path_for(path)
    if manifest is None:
        document.unlink(missing_ok=True)
    else:
        pending = file.with_name(_next(path).name)
        manifest.write(pending)
        pending.replace(_next(path))
    if companions:
        path.unlink(missing_ok=True)
        for companion in companions:
            companion.replace(path.with_name(companion.name))
    file.replace(path)
    if manifest is None:
        _next(path).unlink(missing_ok=True)
    else:
        _next(path).replace(document)


def _next(path: Path) -> Path:
    """The manifest that is to take its place, where a process was stopped in between."""
    document = Manifest.path_for(path)
    return document.with_name(f"{document.name}.next")


def _refuse_contradiction(path: Path, manifest: Manifest | None, inside: Contract | None) -> None:
    if manifest is None or inside is None:
        return
    for said, found in ((manifest.inputs, inside.inputs), (manifest.outputs, inside.outputs)):
        if said != found:
            names = ("; ".join(map(str, specs)) for specs in (found, said))
            raise ArtifactError("{}: the file has {}, its manifest says {}: make it again".format(path, *names))


def _state(path: Path) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for file in (path, path.with_suffix(".bin"), Manifest.path_for(path), _next(path)):
        try:
            stat = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_mtime_ns))
    return found


def _manifest_of(path: Path) -> Manifest | None:
    """The manifest that matches a file; None where there is none.

    Raises:
        ArtifactError: those that there are do not match.
    """
    documents = [d for d in (Manifest.path_for(path), _next(path)) if d.exists()]
    for number, document in enumerate(documents, 1):
        try:
            manifest = Manifest.read(document)
            _check(path, manifest, document)
        except ArtifactError:
            if number == len(documents):
                raise
        else:
            return manifest
    return None


def _check(path: Path, manifest: Manifest, document: Path) -> None:
    if manifest.kind != (kind := formats.KINDS.get(path.suffix.lower(), manifest.kind)):
        raise ArtifactError(f"{document} describes a file of kind {manifest.kind!r}; {path.name} is of kind {kind!r}")
    weights = path.with_suffix(".bin").name  # OpenVINO reads it, whatever the manifest says
    if manifest.kind == "openvino" and weights not in manifest.companions:
        raise ArtifactError(
            f"{document} is not a manifest: its companions leave out {weights}; make the artifact again"
        )
    for name in manifest.companions:
        if name in ("", ".", "..") or Path(name).name != name or not name.isprintable():
            raise ArtifactError(f"{document} is not a manifest: companion {name!r} is not beside it")
    for name, digest in (manifest.companions | {path.name: manifest.sha256}).items():
        file = path.with_name(name)
        try:
            found = sha256(file) if file.is_file() else None
        except OSError as e:
            raise ArtifactError(f"{file} cannot be read: {e.strerror or e}") from None
        if found is None:
            raise ArtifactError(f"{file} is missing: it belongs to {path.name}")
        if found != digest:
            raise ArtifactError(
                f"{file} does not match {document.name} (SHA-256 differs): it was changed or only half written; "
                "make the artifact again"
            )


def _merged(old: Sequence[Evidence], new: Sequence[Evidence], same: Sequence[str]) -> list[Evidence]:
    def key(evidence: Evidence) -> str:
        return repr([evidence.get(name) for name in same])

    return list({key(e): e for e in (*old, *new)}.values())
