"""What the tests of runtimes on fakes begin with."""

from pathlib import Path

import pytest
from fake_stage import Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)
