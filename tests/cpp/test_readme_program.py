"""The program of docs/cpp.md compiles, links as engines/cpp/README.md says, and runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.documents import run

from .conftest import PREFIX, TinyOnnx

pytestmark = pytest.mark.artifact


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("way", ["sh", "cmake"])
def test_it_does(tiny_onnx: TinyOnnx, tmp_path: Path, way: str) -> None:
    tiny_onnx("ckpt")
    (tmp_path / "main.cpp").write_text(run("docs/cpp.md", "cpp")[0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cpp").symlink_to(PREFIX)
    commands = run("engines/cpp/README.md", way)[0]
    if way == "cmake":
        head = "cmake_minimum_required(VERSION 3.20)\nproject(main CXX)\nadd_executable(main main.cpp)\n"
        (tmp_path / "CMakeLists.txt").write_text(head + commands)
        commands = "cmake -DCMAKE_PREFIX_PATH=$PWD/out/cpp . && cmake --build ."
    strict = os.environ | {"CXXFLAGS": "-std=c++17 -Wall -Wextra -Werror"}
    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, env=strict, check=True, timeout=120)
    assert subprocess.run(["./main"], cwd=tmp_path, timeout=60).returncode == 0
