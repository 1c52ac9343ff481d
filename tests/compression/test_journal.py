"""What a search has found is kept, and is not taken for another search's."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2mrf_deploy.compression.journal import Journal
from r2mrf_deploy.errors import InputError


def test_a_value_is_found_once_also_by_a_later_run(tmp_path: Path) -> None:
    asked = []

    def find() -> dict[str, float]:
        asked.append(1)
        return {"mae": 0.1 + 0.2}  # no short decimal: it must come back to the bit

    for _ in range(2):
        journal = Journal(tmp_path / "j.json", {"model": "a"})
        assert journal.get("key", find) == journal.get("key", find) == {"mae": 0.1 + 0.2}
    assert len(asked) == 1


@pytest.mark.parametrize("text", ["", "{", '{"subject": 1}'])
def test_a_damaged_journal_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "j.json"
    file.write_text(text)
    with pytest.raises(InputError, match="delete it"):
        Journal(file, {})
    assert file.read_text() == text


def test_another_searchs_journal_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "j.json"
    Journal(file, {"model": "a"}).get("key", lambda: 1)
    before = file.read_bytes()
    with pytest.raises(InputError, match="another model"):
        Journal(file, {"model": "b"})
    assert file.read_bytes() == before
