"""The README's program compiles, links as engines/cpp/README.md says, and runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import PREFIX, TinyOnnx

pytestmark = pytest.mark.artifact

ROOT = Path(__file__).parents[2]


def block(file: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("way", ["sh", "cmake"])
def test_it_does(tiny_onnx: TinyOnnx, tmp_path: Path, way: str) -> None:
    tiny_onnx("ckpt")
    (tmp_path / "main.cpp").write_text(block("README.md", "cpp"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cpp").symlink_to(PREFIX)
    commands = block("engines/cpp/README.md", way)
    if way == "cmake":
        head = "cmake_minimum_required(VERSION 3.20)\nproject(main CXX)\nadd_executable(main main.cpp)\n"
        (tmp_path / "CMakeLists.txt").write_text(head + commands)
        commands = "cmake -DCMAKE_PREFIX_PATH=$PWD/out/cpp . && cmake --build ."
    strict = os.environ | {"CXXFLAGS": "-std=c++17 -Wall -Wextra -Werror"}
    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, env=strict, check=True, timeout=120)
    assert subprocess.run(["./main"], cwd=tmp_path, timeout=60).returncode == 0
