"""safetensors files: tensors by name, and nothing that could run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor

from r2mrf_deploy.errors import CheckpointError, RuntimeUnavailable, first_line


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
        RuntimeUnavailable: the package is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        cure = 'pip install "r2mrf-deploy[export]"'
        raise RuntimeUnavailable(f"{path} is a safetensors file, and safetensors is not installed: {cure}")
    from safetensors.torch import load

    try:
        return load(path.read_bytes())  # a mapped file could change while it is used
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}") from None
    except Exception as e:  # SafetensorError derives from Exception; a header of unknown types ends in KeyError
        raise CheckpointError(f"{path} is a damaged safetensors file ({first_line(e)})") from None
