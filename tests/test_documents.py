"""Every command in a document runs as it stands, or the document says why it is not run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r2mrf_deploy import images, sample_photographs

from .documents import ROOT, fenced, pages, read, run

SHELL = ("sh", "bash", "shell", "console")
COMMANDS = ("r2mrf ", "python ", "python3 ", "make ", "pip ", "cmake ", "nice ", "curl ", "docker ")
HERE = ["README.md", *(f"docs/{page}.md" for page in ("tutorial", "artifacts", "sorting", "command-line"))]
"""The pages whose commands and Python are run by this test, one after the other in one folder for each page."""
ELSEWHERE = {
    "docs/predict.md": "tests/predict/test_docs.py",
    "engines/cpp/README.md": "tests/cpp/test_readme_program.py",
    "docs/cpp.md": "tests/cpp/test_readme_program.py",
}
"""The pages that a test of their own runs."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", pages(), ids=named)
def test_commands_are_run_or_say_why_not(page: Path) -> None:
    waiting = [block.text for block in fenced(page) if block.language in SHELL and not block.reason]
    if named(page) in ELSEWHERE:
        assert named(page) in read(ELSEWHERE[named(page)])
    elif named(page) not in HERE:
        assert not waiting, "write <!-- not run: why --> before a block, or add the page to HERE"


@pytest.mark.parametrize("page", pages(), ids=named)
def test_commands_stand_in_fenced_blocks_that_say_so(page: Path) -> None:
    """No block is indented only, and none hides its commands behind another language."""
    prose = re.sub("```.*?```", "", read(page), flags=re.DOTALL)
    assert not re.search(rf"\n\s*\n {{4,}}(?:{'|'.join(COMMANDS)})", prose)
    others = [block.text for block in fenced(page) if block.language not in SHELL]
    assert not [text for text in others if text.startswith(COMMANDS)]


def test_a_reason_stands_before_a_block() -> None:
    for page in pages():
        said = re.findall("^ *<!-- not run:", read(page), re.MULTILINE)
        assert len(said) == sum(bool(block.reason) for block in fenced(page)), page


@pytest.mark.artifact
@pytest.mark.parametrize("page", HERE)
def test_they_run(page: str, folder: Path) -> None:
    for line in "".join(run(page, "sh")).splitlines():
        if command := shlex.split(line, comments=True):
            program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
            done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for code in run(page, "python"):
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert MADE[page] <= made


MADE = {
    "README.md": {"out/demo_map.png", "out/demo_overlay.jpg", "lite.onnx", "lite.onnx.json"},
    "docs/tutorial.md": {
        "maps/demo_map.png",
        "maps/demo_overlay.jpg",
        "lite.onnx",
        "lite.onnx.json",
        "small/demo_map.png",
    },
    "docs/artifacts.md": {"ckpt.onnx", "ckpt.onnx.json", "ckpt.plan", "ckpt.plan.json", "ckpt.xml", "ckpt.bin"},
    "docs/command-line.md": set(),
    "docs/sorting.md": {"scores/sheet.html", "scores/scores.jsonl"},
}
"""What the commands say that they make."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A checkout as far as commands read it, and two photographs."""
    for part in ("export", "engines", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    (tmp_path / "photographs").mkdir()
    for name in ("coffee", "chelsea"):
        (tmp_path / "photographs" / f"{name}.png").write_bytes(images.png(sample_photographs.sample(name)))
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("page", pages(), ids=named)
def test_links_and_pictures_exist(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", read(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        assert link.startswith("https://") or (page.parent / link).exists(), link
