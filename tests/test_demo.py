"""The demo runs the whole chain and leaves what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import demo
from tests.conftest import manifest_of

pytestmark = pytest.mark.artifact


def test_demo(tmp_path: Path) -> None:
    result = demo.run(tmp_path / "demo")
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    rows = {r["artifact"]: r for r in report["rows"]}
    assert list(rows) == [
        *("r2mrf-lite.pth", "r2mrf-lite.onnx", "r2mrf-lite.xml"),
        *("r2mrf-lite-fp16.plan", "r2mrf-lite-bf16.xml", "r2mrf-lite-int8.xml"),
    ]
    for name, row in rows.items():
        assert row["precision"] == (name.split("-")[2].split(".")[0] if name.count("-") == 2 else "fp32")
    for name in ("r2mrf-lite-bf16.xml", "r2mrf-lite-int8.xml"):  # the shipped weights bear it
        assert rows[name]["parity"] in ("pass", "emulated") and rows[name]["median_ms"] > 0
        manifest = manifest_of(tmp_path / "demo" / name)
        assert manifest and manifest.share and manifest.share > 0.5
    for name in ("r2mrf-lite.onnx", "r2mrf-lite.xml"):
        assert rows[name]["parity"] == "pass"
        assert rows[name]["median_ms"] > 0 and rows[name]["speed_up"] > 0
        manifest = manifest_of(tmp_path / "demo" / name)
        assert manifest and manifest.parity and manifest.latency
    with Image.open(result.overlay) as overlay:
        assert overlay.size == (451, 300) and np.asarray(overlay).std() > 5
    assert 0.2 < result.in_focus < 0.8
