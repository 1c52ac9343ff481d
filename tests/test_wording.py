"""Texts for people: outside text only shows, and counts agree with their nouns."""

from __future__ import annotations

import pytest

from r2mrf_deploy.wording import count, plain


@pytest.mark.parametrize(
    ("outside", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b2Jwiped\x07", r"\x9b2Jwiped\x07"),
        ("a\nerror: b\r\tc\x7f", r"a\nerror: b\r\tc\x7f"),
        ("gnp\u202e.exe\u2066\u2028", r"gnp\u202e.exe\u2066\u2028"),
        (b"\xff.png".decode("utf-8", "surrogateescape"), r"\udcff.png"),
        ("[red]Größe 照片 👩\u200d🚀 é\u202f1[/]", "[red]Größe 照片 👩\u200d🚀 é\u202f1[/]"),
    ],
)
def test_control_characters_become_visible_and_everything_else_stays(outside: str, shown: str) -> None:
    assert plain(outside) == shown
    assert plain(shown) == shown


def test_a_count_agrees_with_its_noun() -> None:
    assert [count(n, "core") for n in (0, 1, 2, 1234)] == ["0 cores", "1 core", "2 cores", "1,234 cores"]
