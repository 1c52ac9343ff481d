"""What the machine says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r2mrf_deploy import environment


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("max 100000\n", 6),
        ("400000 100000\n", 4),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("900000 100000", 6),
        ("", 6),
    ],
)
def test_a_container_uses_no_more_cores_than_its_share(
    said: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(said)
    monkeypatch.setattr(environment, "CPU_SHARE", tmp_path / "cpu.max")
    assert environment.cores() == cores
    monkeypatch.setattr(environment, "CPU_SHARE", tmp_path / "none")
    assert environment.cores() == 6
