"""What a TensorRT plan says of itself, read without TensorRT and without a GPU.

A plan begins with four letters: `ftrt` for TensorRT, `vtrt` for TensorRT-RTX. A zero (u32) follows, and bytes 24-27 hold
the version that wrote the plan. A `vtrt` header also holds the file's length (u64 at 16) and one bit for each compute
capability that the plan was built for (u32 at 32); both were found in plans of TensorRT-RTX 1.7, and are not read from an
`ftrt` header. So a damaged or foreign file is refused before a driver is asked to execute it.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.formats import Content
from r2mrf_deploy.gpus import RTX_COMPUTE_CAPABILITIES, Flavour
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.wording import count

_LENGTH = 64
_FLAVOURS: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}


@dataclass(frozen=True)
class PlanHeader:
    flavour: Flavour
    version: str
    """The version of the library that wrote it: major.minor.patch.build."""
    compute_capabilities: tuple[str, ...] = ()
    """What a TensorRT-RTX plan was built for; empty for TensorRT, whose plans do not say."""


def read(plan: Path) -> Content:
    """Read the header of a plan. A plan has no place for a contract.

    Raises:
        ArtifactError: the file is not a plan, or is truncated.
    """
    with plan.open("rb") as f:
        return Content(header=parse(f.read(_LENGTH), plan.stat().st_size, plan.name))


def parse(head: bytes, size: int, name: str = "plan") -> PlanHeader:
    """Read a header from the first 64 bytes of a plan that is `size` bytes long.

    Raises:
        ArtifactError: these bytes do not begin a plan, or the plan is truncated.
    """
    flavour = _FLAVOURS.get(head[:4])
    if flavour is None:
        raise ArtifactError(f"{name} is not a TensorRT plan (it starts with {head[:4]!r}, not ftrt or vtrt)")
    if len(head) < _LENGTH:
        raise ArtifactError(f"{name} is truncated after {count(len(head), 'byte')}: build it again")
    zero, length, capabilities = struct.unpack_from("<4xI8xQ8xI", head)
    if zero:
        raise ArtifactError(f"{name} is damaged: its header holds {zero} where a plan has 0; build it again")
    version = ".".join(map(str, head[24:28]))
    if flavour == "tensorrt":
        return PlanHeader(flavour, version)
    if length != size:
        raise ArtifactError(f"{name} is damaged: its header says {length} bytes, the file has {size}; build it again")
    return PlanHeader(
        flavour, version, tuple(c for i, c in enumerate(RTX_COMPUTE_CAPABILITIES) if capabilities & (1 << i))
    )


def check_manifest(header: PlanHeader, manifest: Contract, name: str = "plan") -> None:
    """Compare a plan's header with its manifest.

    Raises:
        ArtifactError: the manifest describes another kind of artifact, library, version or target.
    """
    target = manifest.target
    if manifest.kind != "plan" or target is None:
        raise ArtifactError(f"{name}: its manifest describes a {manifest.kind} file, not a plan")
    targets = ", ".join(header.compute_capabilities)
    for what, said, found in (
        ("runtime", target.runtime, header.flavour),
        ("version", target.runtime_version, header.version),
        ("compute capabilities", ", ".join(target.compute_capabilities) if targets else "", targets),
    ):
        if said != found:
            raise ArtifactError(f"{name}: its manifest says {what} {said}, the plan itself {found}; build it again")


def check_version(header: PlanHeader, installed: str, name: str = "plan", version_compatible: bool = False) -> None:
    """Compare the version that wrote a plan with the version that is to run it.

    Args:
        installed: the installed library's version: major.minor.patch, on some platforms with more.
        version_compatible: whether the plan was built for any later version of the same major version.

    Raises:
        ArtifactError: the installed version does not open the plan.
    """
    wrote, runs = _numbers(header.version), _numbers(installed)
    if version_compatible and wrote[0] == runs[0] and wrote <= runs:
        return
    if wrote[: len(runs)] != runs[: len(wrote)]:
        raise ArtifactError(
            f"{name} was built by {header.flavour} {header.version}, but {installed} is installed: build it again "
            "with `r2mrf build`, or install that version"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """1.7.1.116 -> (1, 7, 1, 116); it ends before a part that is not a number (8.6.1.post1 -> 8.6.1)."""
    return tuple(map(int, itertools.takewhile(str.isdigit, version.split("."))))
