"""The README's commands and Python are run as they stand, in the order in which they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import r2mrf_deploy

pytestmark = pytest.mark.artifact

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = ("make", "pip")
"""What a test cannot run from within itself."""
NETWORKS = [
    name if name == "r2mrf-edge" else pytest.param(name, marks=pytest.mark.slow)
    for name in re.findall(r"^\| `([\w-]+)` \| .* G \|$", TEXT, re.MULTILINE)
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_commands_do_what_they_say(tmp_path: Path) -> None:
    for folder in ("export", "engines", "benchmarks", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line and line.split()[0] not in SET_UP]
    assert len(commands) >= 8
    scripts = Path(sys.executable).parent
    for command in commands:
        name, *arguments = command.split()
        done = subprocess.run(
            [str(scripts / name), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    made = {p.name for p in tmp_path.iterdir()}
    assert {"ckpt.onnx", "ckpt.onnx.json", "ckpt.plan", "ckpt.plan.json", "ckpt.xml", "ckpt.bin"} <= made
    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_make_s_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", " ".join(blocks("sh"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_and_pictures_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / link).is_file(), link


def test_the_table_of_networks_is_true() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from r2mrf_deploy import networks

    rows = re.findall(r"\| `([\w-]+)` \| [^|]+ \| (\d?) ?\| ([\d.]+) M \| ([\d.]+) G \| [\d.]+ G \|", TEXT)
    assert {r[0] for r in rows} == set(networks.presets())
    for name, steps, parameters, multiply_adds in rows:
        family, config = networks.preset(name)
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            net = networks.create(family, config).eval()
            net(torch.empty(1, 3, 320, 320))
        if steps:
            assert config.to_dict()["steps"] == int(steps)
        assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}" == parameters
        # rounded to 0.1; the graph leaves out side outputs, which PyTorch computes
        assert counter.get_total_flops() / 2e9 == pytest.approx(float(multiply_adds), abs=0.051, rel=1e-3), name


@pytest.mark.parametrize("name", NETWORKS)
def test_the_column_of_rewritten_graphs_is_true(name: str, traced: Callable[..., Path]) -> None:
    import onnx

    from r2mrf_deploy.graph import cost
    from r2mrf_deploy.graph.rewrites import optimize

    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |") and line.endswith(" G |"))
    before, after = (float(cell.removesuffix(" G")) for cell in row.strip("| ").split(" | ")[-2:])
    model = onnx.load(traced(name))
    # rounded to 0.1
    assert cost.multiply_adds(model) / 1e9 == pytest.approx(before, abs=0.051)
    assert cost.multiply_adds(optimize(model).model) / 1e9 == pytest.approx(after, abs=0.051)


def test_the_public_names_are_importable() -> None:
    for name in r2mrf_deploy.__all__:
        assert getattr(r2mrf_deploy, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        r2mrf_deploy.absent  # noqa: B018
