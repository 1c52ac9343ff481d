"""The web page of an artifact: a folder of static files that runs the model in a browser and asks no other host.

`site/index.html` is the artifact's file. What the page has to know stands in it, in a block of JSON (`Site`). All other
files lie beside it, as companions: the page's own scripts (`page/`), ONNX Runtime Web, the model. Their names hold a hash of
their content, so that caches never mix two versions; only what must have a fixed name has one.

This package knows the files; `export/web.py` writes them, `formats/web.py` reads them, `runtimes/web/` runs them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.manifest import Contract, Manifest

KIND = "web"
"""What a manifest calls a page."""
SUFFIX = ".html"
INDEX = "index.html"
WORKER = "sw.js"
"""The service worker. Browsers know it by its address, so its name stays."""
HEADERS_FILE = "_headers"
"""What Netlify's and Cloudflare's static hosts read headers from."""
LICENCES = "licences.txt"
FIXED = (INDEX, WORKER, HEADERS_FILE, LICENCES)
"""The files whose names hold no hash."""

DIGITS = 12
"""Of a hash in a file's name: the first hexadecimal digits of the SHA-256."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "style-src 'self'",
        "media-src 'self' blob:",
        "manifest-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""The content security policy: the page loads, runs and asks for nothing but the files beside it."""

HEADERS = {
    "Content-Security-Policy": POLICY + "; frame-ancestors 'none'",  # which a meta element cannot say
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""The headers of every answer. With the two about other origins, browsers allow the threads of WebAssembly."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".gz": "application/gzip",
}
"""The media type of a suffix. Whatever else there is, is application/octet-stream."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """A file that is verified before it is used."""

    name: str
    sha256: str
    bytes: int


class Provider(_Part):
    """ONNX Runtime Web's files for one way of running: on the processor (WebAssembly), or on the GPU as well (WebGPU)."""

    script: str
    loader: str
    binary: File
    """The WebAssembly, compressed by gzip."""


class Files(_Part):
    """What the page's worker loads."""

    model: File
    wasm: Provider
    webgpu: Provider


class Site(_Part):
    """What a page has to know. It stands in the block of JSON in `index.html`."""

    contract: Contract
    title: str
    """What the page calls the model."""
    files: Files
    runtime: str
    """ONNX Runtime Web's name and version."""
    version: str
    """Differs between pages whose files differ."""
    sample: str | None = None
    """A photograph to try, if there is one."""
    licences: str = LICENCES
    companions: tuple[str, ...] = Field(default=())
    """Every file beside `index.html` that the page can ask for."""


def headers(name: str) -> dict[str, str]:
    """The headers with which a file of a page is served."""
    caching = "no-cache" if name in FIXED else "public, max-age=31536000, immutable"
    kind = TYPES.get(Path(name).suffix, "application/octet-stream")
    return {"Content-Type": kind, "Cache-Control": caching, **HEADERS}


def page_folder() -> Path:
    """The sources of the page."""
    return Path(__file__).with_name("page")


START = b'<script type="application/json" id="artifact">'
"""What begins the block of JSON, in the first kilobytes of a page."""
_HEAD = 16 << 10


def is_page(file: Path) -> bool:
    """Whether a file is a page of this package, by its first kilobytes or its manifest; other pages are none of ours."""
    if file.suffix.lower() != SUFFIX or not file.is_file():
        return False
    with suppress(OSError), file.open("rb") as content:
        if START in content.read(_HEAD):
            return True
    with suppress(ArtifactError):
        return Manifest.read(Manifest.path_for(file)).kind == KIND
    return False


def file_of(path: Path) -> Path:
    """The artifact's file that a path names: `FOLDER/index.html` for the folder of a page, otherwise the path itself."""
    page = path / INDEX
    return page if path.is_dir() and is_page(page) else path
