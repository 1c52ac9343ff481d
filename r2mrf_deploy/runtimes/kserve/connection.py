"""Where a served model is, and how to reach it."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError, first_line, no_file
from r2mrf_deploy.wording import masked

PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}
"""Scheme -> default port: Triton's, and where there is TLS that of every TLS server."""

_FORMS = "http://HOST:8000/NAME, grpc://HOST:8001/NAME or http://HOST/v2/models/NAME/versions/1"


class ServerUnavailable(RuntimeUnavailable):
    """A server that does not answer, or answers no longer, or refuses everybody: a run cannot go on."""


@dataclass(frozen=True)
class Address:
    """The parts of a server's address."""

    scheme: Literal["http", "https", "grpc", "grpcs"]
    host: str
    """Of IPv6, with its brackets."""
    port: int
    prefix: str = ""
    """What comes before `/v2` in the paths of HTTP, such as `/team/models`."""
    model: str = ""
    """Empty where the address does not name one."""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `http://host:8000/NAME`, `http://host/prefix/v2/models/NAME/versions/1`; also with https, grpc, grpcs.

        Raises:
            UsageError: the text has another form, or contains a password.
        """
        shown = masked(text)
        try:
            url = urlsplit(text)
            host, port = url.hostname or "", url.port
        except ValueError as e:
            raise UsageError(f"`server` {shown} is not an address ({e}): write {_FORMS}") from None
        if url.scheme not in PORTS or not host or not text.isprintable() or " " in text or not text.isascii():
            raise UsageError(f"`server` {shown} is not an address: write {_FORMS}")
        if url.username is not None or url.query or url.fragment:
            raise UsageError(
                f"`server` {url.scheme}://{host}: an address holds no password, query or fragment: a token is read from "
                "`token_file` or the environment variable R2MRF_TOKEN"
            )
        prefix, model, version = cls._path([unquote(part) for part in url.path.split("/") if part], shown)
        if prefix and url.scheme.startswith("grpc"):
            raise UsageError(
                f"`server` {shown}: gRPC has no paths before the model's name: write grpc://HOST:8001/NAME"
            )
        scheme: Literal["http", "https", "grpc", "grpcs"] = url.scheme  # type: ignore[assignment]
        return cls(scheme, f"[{host}]" if ":" in host else host, port or PORTS[scheme], prefix, model, version)

    @staticmethod
    def _path(parts: list[str], shown: str) -> tuple[str, str, str]:
        """Prefix, model and version of a path."""
        version = ""
        before = parts
        if "v2" in parts:
            at = len(parts) - 1 - parts[::-1].index("v2")
            before, parts = parts[:at], parts[at + 1 :]
            if parts[:1] == ["models"]:
                parts = parts[1:]
            elif parts:
                raise UsageError(f"`server` {shown}: after /v2 comes /models/NAME")
        else:
            before = []
        if len(parts) == 3 and parts[1] == "versions":
            parts, version = parts[:1], parts[2]
        if len(parts) > 1:
            raise UsageError(f"`server` {shown}: its path names no model: write {_FORMS}")
        return "".join(f"/{quote(part, safe='')}" for part in before), "".join(parts), version

    @property
    def secure(self) -> bool:
        return self.scheme in ("https", "grpcs")

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        return self.host in ("localhost", "[::1]") or self.host.startswith("127.")

    @property
    def proxied(self) -> bool:
        """Whether the environment's proxy, if there is one, is for this server too (see `no_proxy`)."""
        return not urllib.request.proxy_bypass(self.host)

    @property
    def target(self) -> str:
        return f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """The server, without the model."""
        return f"{self.scheme}://{self.target}{self.prefix}"


@dataclass(frozen=True)
class Connection:
    """How to reach a served model."""

    address: str
    """As `Address.parse` takes it."""
    deadline: float = 60.0
    """Seconds in which a request must be answered."""
    retry_for: float = 60.0
    """Seconds for which a request is repeated while the server is away or says that it is busy. Inferences change nothing on
    a server, so that this is safe."""
    token: str | None = field(default=None, repr=False)
    """A bearer token."""
    ca: Path | None = None
    """A file of certificates (PEM) to trust, in place of the system's."""
    certificate: Path | None = None
    """The client's own certificate (PEM), where the server asks for one."""
    key: Path | None = None
    """Its key (PEM), unless it is in the same file."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further headers of every request; gRPC calls them metadata."""

    def __post_init__(self) -> None:
        address = Address.parse(self.address)
        if not 0 < self.deadline <= 86400:
            raise UsageError(f"`deadline` {self.deadline:g}: it must be above 0 seconds, and a day at most")
        if not 0 <= self.retry_for < float("inf"):
            raise UsageError(f"`retry_for` {self.retry_for:g}: it must not be negative")
        for name, file in (("ca", self.ca), ("certificate", self.certificate), ("key", self.key)):
            if file is not None and not address.secure:
                raise UsageError(f"`{name}` is for https:// and grpcs:// addresses, and this one is {address}")
            if file is not None and not file.is_file():
                raise no_file(file)
        if self.key and not self.certificate:
            raise UsageError("`key` is the key of a certificate: give `certificate` too")
        for name, value in self.all_headers.items():
            # a line end in a value would be a header of its own
            if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
                raise UsageError(f"the header {name!r} must be printable ASCII" if name != "authorization" else _TOKEN)

    @property
    def where(self) -> Address:
        return Address.parse(self.address)

    def trust(self) -> ssl.SSLContext:
        """What a server's certificate is checked by, and our own.

        Raises:
            InputError: a file holds no certificate or key.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ValueError) as e:
            raise InputError(f"{self.ca} holds no certificates in PEM ({first_line(e)})") from None
        if self.certificate:
            try:
                context.load_cert_chain(self.certificate, self.key, password="")  # asks nobody for one
            except (OSError, ValueError) as e:
                cure = "and its key, which is not encrypted, in PEM: see `key`"
                raise InputError(f"{self.certificate} must hold a certificate, {cure} ({first_line(e)})") from None
        return context

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers, with lower-case names, and the token."""
        own = {name.lower(): value for name, value in self.headers.items()}
        return own | ({"authorization": f"Bearer {self.token}"} if self.token else {})


_TOKEN = "the token must be one line of printable ASCII"
