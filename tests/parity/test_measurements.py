"""What a search has measured is kept, and is not taken for another search's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from r2mrf_deploy.errors import InputError
from r2mrf_deploy.parity.measurements import Measurements
from r2mrf_deploy.parity.node_search import Drop

KIND = float | Drop


@pytest.mark.parametrize("value", [0.1 + 0.2, Drop(0.1 + 0.2, -1e-17)])  # no short decimals: they come back to the bit
def test_a_value_is_measured_once_also_by_a_later_run(tmp_path: Path, value: object) -> None:
    asked = []

    def find() -> object:
        asked.append(1)
        return value

    for _ in range(2):
        measured: Measurements[object] = Measurements(tmp_path / "s.json", {"model": "a"}, KIND)
        assert measured.get("key", find) == measured.get("key", find) == value
    assert len(asked) == 1


def test_what_is_not_finite_is_kept_too(tmp_path: Path) -> None:
    for _ in range(2):
        measured: Measurements[Drop] = Measurements(tmp_path / "s.json", {}, Drop)
        found = measured.get("key", lambda: Drop(math.nan, math.inf))
        assert math.isnan(found.mae) and found.f == math.inf


@pytest.mark.parametrize("text", ["", "{", '{"subject": 1}', '{"subject": "a", "found": {"key": {"mae": "x"}}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.json"
    file.write_text(text)
    with pytest.raises(InputError, match="delete it"):
        Measurements(file, {}, KIND)
    assert file.read_text() == text


def test_another_search_s_file_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    Measurements[float](file, {"model": "a"}, KIND).get("key", lambda: 1.0)
    before = file.read_bytes()
    with pytest.raises(InputError, match="another model"):
        Measurements(file, {"model": "b"}, KIND)
    assert file.read_bytes() == before
