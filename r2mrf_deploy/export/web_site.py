"""Writes the files of a web page: the model, ONNX Runtime Web, the page's own sources, a sample photograph, licences."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
from pathlib import Path

from PIL import Image

from r2mrf_deploy import sample_photographs, web
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.web import assembly, library

_QUALITY = 85


def write_site(contract: Contract, title: str, model: Path, file: Path, package: library.Library) -> None:
    """Write every file of a page.

    Args:
        contract: the page's.
        title: what the page calls the model.
        model: the ONNX file, in the page's folder already; it gets its hashed name.
        file: `index.html`.
        package: ONNX Runtime Web.
    """
    folder, written = file.parent, dict[str, bytes]()
    digest, size = sha256(model), model.stat().st_size
    named = model.replace(folder / f"model-{digest[: web.DIGITS]}.onnx")
    found = web.Files(
        model=web.File(name=named.name, sha256=digest, bytes=size),
        wasm=_provider(package, library.WASM, written),
        webgpu=_provider(package, library.WEBGPU, written),
    )
    sources = assembly.linked(assembly.sources())
    template = sources.pop(web.INDEX)
    written |= sources
    sample = _sample(written)
    written[web.LICENCES] = _licences(package.version, sample is not None).encode()
    companions = sorted([*written, named.name])
    site = web.Site(
        contract=contract,
        title=title,
        files=found,
        runtime=f"{library.NAME} {package.version}",
        version=assembly.version(written, f"{named.name} {title} {contract.embedded()} {template.decode()}"),
        sample=sample,
        companions=tuple(companions),
    )
    written[web.HEADERS_FILE] = assembly.headers_file([*companions, web.INDEX])
    for name, content in written.items():
        (folder / name).write_bytes(content)
    file.write_bytes(assembly.index(template, site))


def _provider(package: library.Library, parts: library.Parts, written: dict[str, bytes]) -> web.Provider:
    """Add the files of one way of running to what is written, each under its hashed name."""
    binary = package.compressed(parts.binary)
    return web.Provider(
        script=_add(Path(parts.script).name, package.read(parts.script), written),
        loader=_add(Path(parts.loader).name, package.read(parts.loader), written),
        binary=web.File(
            name=_add(f"{Path(parts.binary).name}.gz", binary, written),
            sha256=hashlib.sha256(binary).hexdigest(),
            bytes=len(binary),
        ),
    )


def _add(name: str, content: bytes, written: dict[str, bytes]) -> str:
    written[named := assembly.hashed(name, content)] = content
    return named


def _sample(written: dict[str, bytes]) -> str | None:
    """Add the demo's photograph, and return its name; None where scikit-image, which has it, is not installed."""
    try:
        photograph = sample_photographs.sample(sample_photographs.DEMO)
    except RuntimeUnavailable:
        return None
    content = io.BytesIO()
    Image.fromarray(photograph).save(content, "JPEG", quality=_QUALITY)
    return _add("sample.jpg", content.getvalue(), written)


def _licences(version: str, sample: bool) -> str:
    """Whose work the page holds, and on what terms."""
    parts = [
        "This page holds the work of others. What it holds, and on what terms:",
        "The page, its scripts and the model's weights: r2mrf-deploy, Apache-2.0, unless the model's author says otherwise. "
        "The licence stands below.",
        f"{library.NAME} {version}: MIT, Copyright (c) Microsoft Corporation. The files whose names begin with ort. "
        "Its licence, and the notices of what it is made of, stand below.",
    ]
    if sample:
        parts.append(
            "The sample photograph, a cat named Chelsea, by Stefan van der Walt: CC0. It comes with scikit-image."
        )
    for title, text in (("r2mrf-deploy", _own_licence()), *_runtime_licences()):
        parts.append(f"{'=' * 20} {title} {'=' * 20}\n\n{text.strip()}")
    return "\n\n".join(parts) + "\n"


def _own_licence() -> str:
    beside = Path(__file__).parents[2] / "LICENSE"  # in a checkout
    try:
        text = importlib.metadata.distribution("r2mrf-deploy").read_text("licenses/LICENSE")
    except importlib.metadata.PackageNotFoundError:
        text = None
    return text or (beside.read_text(encoding="utf-8") if beside.is_file() else "Apache License, Version 2.0")


def _runtime_licences() -> list[tuple[str, str]]:
    """ONNX Runtime's licence and notices: npm's package has neither, the wheel of the same sources has both."""
    spec = importlib.util.find_spec("onnxruntime")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    found = []
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        if not (folder / name).is_file():
            raise BuildError(f"this onnxruntime has no {name}, which a page must show: install it again with pip")
        found.append((f"ONNX Runtime, {name}", (folder / name).read_text(encoding="utf-8", errors="replace")))
    return found
