"""What is quoted of a library's exception."""

from __future__ import annotations

import pytest

from r2mrf_deploy.errors import first_line, last_line


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("", "ValueError", "ValueError"),
        (" \n\n", "ValueError", "ValueError"),
        ("\n a\nb \n\n", "a", "b"),
        ("a", "a", "a"),
    ],
)
def test_a_quoted_line_is_never_empty(text: str, first: str, last: str) -> None:
    assert (first_line(ValueError(text)), last_line(ValueError(text))) == (first, last)
