"""The TensorRT backend compiles with the headers of every TensorRT version that the toolkit supports.

The headers are public, but this repository may not contain them. R2MRF_TENSORRT_HEADERS lists their folders, separated by
colons.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.artifact

CPP = Path(__file__).parents[2] / "engines" / "cpp"
HEADERS = [folder for folder in os.environ.get("R2MRF_TENSORRT_HEADERS", "").split(":") if folder]
FLAGS = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
NONE = pytest.param("", marks=pytest.mark.skip(reason="needs TensorRT's headers: R2MRF_TENSORRT_HEADERS=folder:folder"))


@pytest.mark.parametrize("source", ["tensorrt.cpp", "tensorrt_context.cpp"])
@pytest.mark.parametrize("headers", HEADERS or [NONE])
def test_it_compiles(headers: str, source: str) -> None:
    assert (Path(headers) / "NvInferRuntime.h").exists()
    folders = [f"-I{CPP / folder}" for folder in ("include", "src", "src/cuda_abi")]
    command = ["c++", *FLAGS, '-DR2MRF_TENSORRT_MAJOR="0"', *folders, "-isystem", headers, str(CPP / "src" / source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
