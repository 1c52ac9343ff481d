"""Where a served model is: addresses, and connections that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.runtimes.kserve.connection import Address, Connection


@pytest.mark.parametrize(
    ("text", "parts"),
    {
        "http://host": ("http://host:8000", "", ""),
        "http://host/NAME": ("http://host:8000", "NAME", ""),
        "https://host/a%20b/v2/models/NAME/versions/3": ("https://host:443/a%20b", "NAME", "3"),
        "http://host:81/team/v2": ("http://host:81/team", "", ""),
        "http://host/v2/": ("http://host:8000", "", ""),
        "http://host/NAME/versions/2": ("http://host:8000", "NAME", "2"),
        "grpc://[::1]/v2/models/NAME": ("grpc://[::1]:8001", "NAME", ""),
        "grpcs://host:9/N%2FM": ("grpcs://host:9", "N/M", ""),
    }.items(),
)
def test_addresses(text: str, parts: tuple[str, str, str]) -> None:
    address = Address.parse(text)
    assert (str(address), address.model, address.version) == parts


@pytest.mark.parametrize(
    "text",
    ["host:8000", "ftp://host/NAME", "http:///NAME", "http://host:port", "http://host/a/b", "http://host/v2/NAME",
     "grpc://host/team/v2/models/NAME", "http://me:secret@host/NAME", "http://host/N?token=secret", "http://h ost/N",
     "http://host/N#secret", "http://host:99999/N"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="`server`") as raised:
        Address.parse(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"deadline": 0.0}, "`deadline`"), ({"deadline": float("nan")}, "`deadline`"), ({"retry_for": -1.0}, "`retry_for`"),
     ({"ca": Path(__file__)}, "`ca` is for https"), ({"key": Path(__file__)}, "`key`")],
)  # fmt: skip
def test_connections_that_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Connection("http://host/NAME", **options)  # type: ignore[arg-type]
