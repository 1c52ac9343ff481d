"""The README's program compiles against the installed library, by pkg-config, and runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import PREFIX, TinyOnnx

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.usefixtures("library")
def test_it_does(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    program = re.search(r"```cpp\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert program
    (tmp_path / "main.cpp").write_text(program[1])
    where = os.environ | {"PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig")}
    said = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "r2mrf_deploy"], env=where, capture_output=True, text=True, check=True
    )
    flags = [*said.stdout.split(), f"-Wl,-rpath,{PREFIX / 'lib'}"]
    subprocess.run(["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "main.cpp", *flags], cwd=tmp_path, check=True)
    tiny_onnx("ckpt")
    assert subprocess.run(["./a.out"], cwd=tmp_path, timeout=60).returncode == 0
