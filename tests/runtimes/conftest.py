"""What the tests of runtimes on fakes begin with."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_stage import Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stage]:
    gc.freeze()  # the search for leaks then looks only at what the test makes, not at all of PyTorch
    yield Stage(monkeypatch, tmp_path)
    gc.unfreeze()
