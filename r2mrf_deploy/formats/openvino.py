"""OpenVINO models: an `.xml` with its weights in a `.bin`. The contract is stored in `rt_info`."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.formats import KEY, Content
from r2mrf_deploy.manifest import Contract

_LARGEST = 64 << 20
"""Bytes of an `.xml`, which becomes about ten times as much in memory. It holds no weights: ours have about one MiB."""


def read(path: Path) -> Content:
    """Read the contract of an OpenVINO model.

    Raises:
        ArtifactError: the file is not an OpenVINO model, or its contract is damaged.
    """
    found = root(path).find(f"rt_info/{KEY}")
    text = found.get("value") if found is not None else None
    return Content(Contract.parse(text, f"the contract inside {path}") if text else None)


def root(path: Path) -> ElementTree.Element:
    """The document's root.

    Raises:
        ArtifactError: the file is not an OpenVINO model.
    """
    with reading(path, ArtifactError, "is not an OpenVINO model"):
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        found = ElementTree.parse(path).getroot()
    if found.tag != "net":
        raise ArtifactError(f"{path} is not an OpenVINO model: its root is <{found.tag}>, not <net>")
    return found
