"""Files of `torch.save`, read without running code from them and without believing them.

`torch.load` compares no checksum: bytes that were damaged on the way become weights without a word. So a zip archive is
verified first. A bare pickle, as before PyTorch 1.6, has no checksums; only its structure can be wrong.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r2mrf_deploy import archives, safe_objects
from r2mrf_deploy.errors import CheckpointError, no_file, reading


def read_file(path: Path) -> dict[str, Any]:
    """Read the content of a PyTorch file without running code from it.

    Raises:
        InputError: no such file.
        CheckpointError: the file is damaged, is not a PyTorch file, would run code, or holds no dictionary.
    """
    if not path.is_file():
        raise no_file(path)
    with reading(path, CheckpointError, "is damaged, truncated or not a PyTorch checkpoint"):
        with path.open("rb") as f:
            start = f.read(2)
        if not start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as before PyTorch 1.6
            raise CheckpointError(f"{path} is not a PyTorch checkpoint")
        if start == b"PK":
            _verify(path)
        with warnings.catch_warnings():  # about bare pickles of later protocols; the error below says what is wrong
            warnings.simplefilter("ignore")
            try:
                with safe_objects.allowed():
                    content = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as e:
                what = "it holds Python objects as well as tensors, and reading them would run code from the file"
                raise CheckpointError(f"{path}: refused: {what}; save only its state_dict") from e
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict")
        _refuse_inflated(path, content)
    return content


def _verify(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise CheckpointError(
                f"{path} is a TorchScript program, which is code: save the state_dict of the module that it was made from"
            )
        archives.verify(archive, path)


def _refuse_inflated(path: Path, content: object) -> None:
    """Refuse tensors with more values than the file holds: strides of 0 make terabytes of one number when copied."""
    size = path.stat().st_size
    for tensor in _tensors(content):
        if tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"{path} is damaged: a tensor {list(tensor.shape)} is larger than the file")


def _tensors(content: object) -> Iterator[Tensor]:
    """The tensors at any depth; a pickle may refer to itself."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            waiting += item
