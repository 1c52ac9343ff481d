"""Which files are checkpoints. Their content decides; their name decides where the content says nothing.

Only a few bytes and a zip archive's table are read, without PyTorch. Sources: the zip archives and the pickles of
`torch.save`, the archives of `torch.jit.save`, and the header of safetensors (8 bytes of length, then JSON).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

SUFFIXES = (".pth", ".pt", ".ckpt", ".pth.tar", ".safetensors")
"""How the names of checkpoints usually end."""

Kind = Literal["torch", "safetensors"]
"""What wrote the file: `torch.save` (or `torch.jit.save`, whose programs `torch_file` refuses), or safetensors."""


class Loading(TypedDict, total=False):
    """How to read a checkpoint: the arguments of `Checkpoint.load`, handed on by whatever opens one."""

    network: str | None
    settings: Mapping[str, str] | None
    weights_key: str | None
    rename: Mapping[str, str] | None


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint by its content, or else by its name. There need not be such a file."""
    return kind(path) is not None or named_as_checkpoint(path)


def named_as_checkpoint(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """A checkpoint's name without its suffix: `best` of `best.pth.tar`."""
    known = (s for s in SUFFIXES if path.name.lower().endswith(s))
    return path.name[: -len(suffix)] if (suffix := max(known, key=len, default="")) else path.stem


def kind(path: Path) -> Kind | None:
    """What kind of checkpoint a file is by its content; None if it is none, or cannot be read."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return None
    try:
        with path.open("rb") as f:
            head, size = f.read(64), path.stat().st_size
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04"):
        return _archive(path, head)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":  # a pickle: `torch.save` before PyTorch 1.6
        return "torch"
    length = int.from_bytes(head[:8], "little")
    return "safetensors" if head[8:9] == b"{" and 2 <= length <= size - 8 else None


def _archive(path: Path, head: bytes) -> Kind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # cut short: its first entry is left
        names = [head[30:].split(b".pkl")[0].decode(errors="replace") + ".pkl"]
    inside = {name.partition("/")[2] for name in names}  # below the archive's own folder
    return "torch" if "data.pkl" in inside else None
