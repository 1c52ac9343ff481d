"""AOTInductor packages, `.pt2`: a zip archive of compiled code. The contract is stored in its metadata."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.formats import KEY, Content
from r2mrf_deploy.manifest import Contract


@dataclass(frozen=True)
class Package:
    """The header of a package."""

    device: str
    """PyTorch's name: cpu, cuda."""


def read(path: Path) -> Content:
    """Read a package without running it.

    Raises:
        ArtifactError: the file is damaged, or is not an AOTInductor package.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = [n for n in archive.namelist() if n.endswith(".wrapper_metadata.json")]
            found = json.loads(archive.read(names[0])) if names else {}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, OSError) as e:
        raise ArtifactError(f"{path} is not an AOTInductor package, or is damaged: {e}") from None
    if broken:
        raise ArtifactError(f"{path} is damaged: {Path(broken).name}; export it again")
    if not isinstance(found, dict) or "AOTI_DEVICE_KEY" not in found:
        raise ArtifactError(f"{path} is not an AOTInductor package")
    text = found.get(KEY)
    contract = Contract.parse(text, f"{path} is damaged: the contract inside") if text else None
    return Content(contract, Package(found["AOTI_DEVICE_KEY"]))
