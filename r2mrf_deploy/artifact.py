"""An artifact: a model file, its manifest, and what is known of it. Only this module writes them.

`Artifact.open` verifies a file once. `publish` makes a file and its manifest appear together. `Artifact.record` adds
evidence. A manifest is bound to its file by SHA-256, so a file is replaced in three steps: the new manifest is put beside
the old one as `x.onnx.json.next`, the new file is renamed over the old one, the new manifest is renamed over the old one. A
kill may come at any moment, since one of the two manifests always matches the file. If an artifact has further files, the
model file is removed before they are replaced. Those of the old artifact that the new one does not have are removed with it,
if they are as it left them; whatever else is in the folder stays.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy import formats, web, weights
from r2mrf_deploy.errors import ArtifactError, no_file
from r2mrf_deploy.files import flush, locked, refuse_special, sha256, staging
from r2mrf_deploy.manifest import Contract, Manifest
from r2mrf_deploy.progress import timed

Evidence = Mapping[str, Any]
"""One measurement of parity, latency or accuracy, as JSON."""

_LOG = logging.getLogger(__name__)
_SAME = {
    "parity": ("runtime", "device", "reference"),
    "latency": ("runtime", "device", "batch", "shape", "options"),
    "accuracy": ("dataset", "photographs", "runtime", "positive", "protocol"),
}
"""The fields that identify a measurement: later evidence replaces earlier evidence with the same values."""


@dataclass(frozen=True)
class Artifact:
    """A verified model file."""

    path: Path
    manifest: Manifest | None = None
    """The manifest beside the file, which matches it."""
    contract: Contract | None = None
    """The manifest, or if there is none the contract stored inside the file."""
    header: Any = None
    """What the format's own header says (see `formats`)."""

    @property
    def precision(self) -> str:
        return self.contract.precision if self.contract else "fp32"

    @property
    def rounding(self) -> str:
        """The precision that its results are rounded by: FP16 if it computes in FP32 with weights that are stored as FP16
        (see `graph.half_storage`)."""
        half = self.contract is not None and self.contract.export.get("weights") == "fp16"
        return "fp16" if half and self.precision == "fp32" else self.precision

    @property
    def executable(self) -> bool:
        """Whether opening the file runs code from it."""
        return self.path.suffix.lower() in formats.EXECUTABLE

    @classmethod
    def open(cls, path: Path | str | Artifact) -> Artifact:
        """Verify a model file: its SHA-256 against its manifest, and its header. The folder of a page stands for the page.

        Raises:
            InputError: no such file.
            ArtifactError: the file or its manifest is damaged, or the two do not match.
        """
        if isinstance(path, Artifact):
            return path
        path = web.file_of(Path(path))
        while True:
            if not path.is_file():
                raise no_file(path)
            before = _state(path)
            try:
                with timed(_LOG, "verified %s", path):
                    manifest, content = _manifest_of(path), formats.read(path)
                if manifest is None:
                    _LOG.debug("%s has no manifest", path)
                _refuse_contradiction(path, manifest, content.contract)
                return cls(path, manifest, manifest or content.contract, content.header)
            except ArtifactError:
                if path in before and _state(path) == before:  # otherwise another process is replacing the artifact
                    raise

    def record(
        self,
        *,
        parity: Sequence[Evidence] = (),
        latency: Sequence[Evidence] = (),
        accuracy: Sequence[Evidence] = (),
    ) -> str:
        """Add evidence to the manifest. It replaces earlier evidence of the same measurement.

        Returns:
            Why nothing was recorded; empty if it was.

        Raises:
            ArtifactError: the file has changed since it was opened, or the disk is full.
        """
        if self.manifest is None:
            return f"{self.path.name} has no manifest to record it in"
        if self.path.parent.resolve() == weights.folder().resolve():
            return f"{self.path.name} belongs to the package"
        if not os.access(self.path.parent, os.W_OK):
            return f"{self.path.parent} is read-only"
        try:
            refuse_special(Manifest.path_for(self.path))
        except ArtifactError as e:
            return str(e)
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


def publish(path: Path, write: Callable[[Path], Contract], check: Callable[[Artifact], Sequence[Evidence]]) -> Artifact:
    """Make a model file and its manifest appear together, or not at all.

    Args:
        path: the file. Missing folders are made; an existing artifact is replaced.
        write: writes the model file to the path it is given, and any further files beside it; returns the contract.
        check: checks the new artifact before it appears, and returns the evidence. If it raises, nothing is published.

    Raises:
        ArtifactError: the folder cannot be written, the disk is full, or one of the files would replace something that is
            no regular file, or a page would replace a file that belongs to none. Whatever was at `path` is unchanged.
    """
    for target in (path, Manifest.path_for(path)):
        refuse_special(target)
    _refuse_foreign(path, path)
    with staging(path) as folder:
        file = folder / path.name
        with timed(_LOG, "made %s", path.name):
            contract = write(file)
        companions = sorted(f for f in folder.iterdir() if f != file)
        for companion in companions:
            refuse_special(path.with_name(companion.name))
            _refuse_foreign(path, companion)
        for written in (file, *companions):
            flush(written)
        manifest = Manifest.bind(contract, file, companions)
        header = formats.read(file).header
        with timed(_LOG, "checked %s", path.name):
            evidence = check(Artifact(file, manifest, manifest, header))
        manifest = manifest.model_copy(update={"parity": list(evidence)})
        with locked(path.parent):
            _move(file, companions, manifest, path)
    _LOG.debug("published %s, %d bytes, and its manifest", path, manifest.bytes)
    return Artifact(path, manifest, manifest, header)


def _move(file: Path, companions: Sequence[Path], manifest: Manifest, path: Path) -> None:
    """Replace an artifact as the module's docstring says. The folder is locked."""
    pending = file.with_name(_next(path).name)
    manifest.write(pending)
    old = _claimed(path)
    pending.replace(_next(path))
    if companions:
        path.unlink(missing_ok=True)
        _remove(path, [(name, digest) for name, digest in old if name not in manifest.companions])
        for companion in companions:
            companion.replace(path.with_name(companion.name))
    file.replace(path)
    _next(path).replace(Manifest.path_for(path))


def _claimed(path: Path) -> list[tuple[str, str]]:
    """The names and SHA-256 of the companions that the manifests beside a file name: its own, and one left by a kill."""
    found: list[tuple[str, str]] = []
    for document in filter(Path.exists, (Manifest.path_for(path), _next(path))):
        with suppress(ArtifactError):
            companions = Manifest.read(document).companions
            found += [(name, digest) for name, digest in companions.items() if _beside(name)]
    return found


def _remove(path: Path, companions: Sequence[tuple[str, str]]) -> None:
    """Remove companions of an old artifact, where they are still the files that it was published with."""
    for name, digest in companions:
        file = path.with_name(name)
        with suppress(OSError):
            if stat.S_ISREG(file.lstat().st_mode) and sha256(file) == digest:
                file.unlink()


def _refuse_foreign(path: Path, new: Path) -> None:
    """Refuse that a file of a page takes the place of one that belongs to no page: a folder may hold another web site.

    Raises:
        ArtifactError: it would.
    """
    target = path.with_name(new.name)
    if path.suffix != web.SUFFIX or new.name not in web.FIXED or not target.exists() or web.is_page(target):
        return  # the names of all other files hold a hash: nobody else has them
    if new == path or (sha256(target) != sha256(new) and (target.name, sha256(target)) not in _claimed(path)):
        raise ArtifactError(
            f"cannot write {target}: it is there already, and is no page of r2mrf, or was changed since; move it away, or "
            "name another folder"
        )


def _next(path: Path) -> Path:
    """The new manifest, until it takes its place."""
    return path.with_name(f"{path.name}.json.next")


def _refuse_contradiction(path: Path, manifest: Manifest | None, inside: Contract | None) -> None:
    if manifest is None or inside is None:
        return
    for said, found in ((manifest.inputs, inside.inputs), (manifest.outputs, inside.outputs)):
        if said != found:
            names = ("; ".join(map(str, specs)) for specs in (found, said))
            raise ArtifactError("{}: the file has {}, its manifest says {}: make it again".format(path, *names))


def _state(path: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for file in (path, path.with_suffix(".bin"), Manifest.path_for(path), _next(path)):
        with suppress(OSError):
            status = file.stat()
            found[file] = (status.st_ino, status.st_mtime_ns)
    return found


def _manifest_of(path: Path) -> Manifest | None:
    """The manifest that matches a file; None if there is no manifest.

    Raises:
        ArtifactError: there are manifests, but none matches.
    """
    documents = [d for d in (Manifest.path_for(path), _next(path)) if d.exists()]
    for document in documents:
        try:
            return _verified(document, path)
        except ArtifactError:
            if document == documents[-1]:
                raise
    return None


def _verified(document: Path, path: Path) -> Manifest:
    """Read a manifest that must match a file."""
    manifest = Manifest.read(document)
    if manifest.kind != (kind := formats.KINDS.get(path.suffix.lower(), manifest.kind)):
        raise ArtifactError(f"{document} describes a file of kind {manifest.kind!r}; {path.name} is of kind {kind!r}")
    values = path.with_suffix(".bin").name  # OpenVINO reads it whatever the manifest says
    if manifest.kind == "openvino" and values not in manifest.companions:
        raise ArtifactError(f"{document} is not a manifest: its companions leave out {values}; make the artifact again")
    for name in manifest.companions:
        if not _beside(name):
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
    return manifest


def _beside(name: str) -> bool:
    """Whether a companion's name is that of a file in the same folder."""
    return name not in ("", ".", "..") and Path(name).name == name and name.isprintable()


def _merged(old: Sequence[Evidence], new: Sequence[Evidence], same: Sequence[str]) -> list[Evidence]:
    return list({repr([e.get(name) for name in same]): e for e in (*old, *new)}.values())
