"""What documents say of the package is so: targets of make, the table of networks, the public names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import r2mrf_deploy

from .documents import fenced, pages, read

pytestmark = pytest.mark.artifact

TEXT = read("docs/networks.md")
NETWORKS = [
    name if name == "r2mrf-edge" else pytest.param(name, marks=pytest.mark.slow)
    for name in re.findall(r"^\| `([\w-]+)` \| .* G \|$", TEXT, re.MULTILINE)
]


def test_make_s_targets_exist() -> None:
    makefile = read("Makefile")
    blocks = [block.text for page in pages() for block in fenced(page) if block.language == "sh"]
    targets = {target for block in blocks for target in re.findall(r"(?:^|; )make ([\w-]+)", block, re.MULTILINE)}
    assert len(targets) > 5
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


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
