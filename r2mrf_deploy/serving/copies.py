"""Artifacts as they come into a repository: what can be served, and exact copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from r2mrf_deploy import checkpoint_files
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.files import flush, sha256
from r2mrf_deploy.manifest import Contract

SERVED = (".plan", ".onnx", ".xml")
"""Suffixes of what servers take."""


def opened(path: Path) -> Artifact:
    """Open an artifact that a server takes.

    Raises:
        UsageError: no server takes it: a checkpoint, an AOTInductor package.
        InputError, ArtifactError: as for `Artifact.open`; or nothing says what it takes and gives.
    """
    if checkpoint_files.is_checkpoint(path):
        raise UsageError(f"{path} is a checkpoint: export it first: r2mrf export {path.name}")
    if path.suffix.lower() not in SERVED and path.exists():
        raise UsageError(f"{path}: no server takes it; export or build an {', '.join(SERVED)}")
    artifact = Artifact.open(path)
    contract_of(artifact)
    return artifact


def contract_of(artifact: Artifact) -> Contract:
    """An artifact's contract.

    Raises:
        ArtifactError: it has none.
    """
    if artifact.contract is None:
        raise ArtifactError(
            f"{artifact.path} has no manifest ({artifact.path.name}.json) that says what it takes and gives: make it again "
            "with `r2mrf export` or `r2mrf build`"
        )
    return artifact.contract


def copied(artifact: Artifact, file: Path) -> Contract:
    """Copy an artifact's files, without its manifest; returns its contract.

    Raises:
        ArtifactError: it was changed since it was opened.
    """
    source, manifest = artifact.path, artifact.manifest
    files = {source: file}
    if source.suffix.lower() == ".xml":  # its values must have its name
        files[source.with_suffix(".bin")] = file.with_suffix(".bin")
    else:
        files |= {source.with_name(name): file.with_name(name) for name in (manifest.companions if manifest else ())}
    for old, new in files.items():
        shutil.copyfile(old, new)
        flush(new)
        if manifest and sha256(new) != (manifest.sha256 if old == source else manifest.companions[old.name]):
            raise ArtifactError(f"{old} was changed meanwhile: nothing was written")
    return contract_of(artifact)
