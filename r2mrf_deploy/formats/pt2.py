"""AOTInductor packages, `.pt2`: a zip archive of compiled code. The contract is stored in its metadata."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from r2mrf_deploy import archives
from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.formats import KEY, Content
from r2mrf_deploy.manifest import LARGEST, Contract


@dataclass(frozen=True)
class Package:
    """The header of a package."""

    device: str
    """PyTorch's name: cpu, cuda."""


def read(path: Path) -> Content:
    """Read a package without unpacking or running it.

    Raises:
        ArtifactError: the file is damaged, is not an AOTInductor package, or would be unpacked outside its folder.
    """
    with reading(path, ArtifactError, "is not an AOTInductor package, or is damaged", "export it again"):
        with zipfile.ZipFile(path) as archive:
            archives.verify(archive, path)
            name = next((n for n in archive.namelist() if n.endswith(".wrapper_metadata.json")), None)
            if name is None or archive.getinfo(name).file_size > 2 * LARGEST:
                raise ValueError("it has no metadata" if name is None else "its metadata are too large")
            found = json.loads(archive.read(name))
        device, text = found["AOTI_DEVICE_KEY"], found.get(KEY)
        if not isinstance(device, str) or not isinstance(text, str | None):
            raise ValueError("its metadata are not text")
    contract = Contract.parse(text, f"{path} is damaged: the contract inside") if text else None
    return Content(contract, Package(device))
