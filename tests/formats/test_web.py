"""A page says what it needs in a block of JSON; whatever else is in the place of a page gets a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from r2mrf_deploy import formats, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.manifest import Contract, TensorSpec

SPEC = TensorSpec(name="image", dtype="uint8", shape=[1, 64, 64, 3], layout="NHWC")
PROVIDER = web.Provider(script="a.mjs", loader="b.mjs", binary=web.File(name="c.wasm.gz", sha256="0" * 64, bytes=1))


def page(change: Callable[[dict], object] = lambda _: None) -> bytes:
    """A page with its block of JSON, changed or not."""
    site = web.Site(
        contract=Contract(kind="web", inputs=[SPEC], outputs=[]),
        title="</script> & <b>",
        files=web.Files(model=PROVIDER.binary, wasm=PROVIDER, webgpu=PROVIDER),
        runtime="onnxruntime-web 1.30.0",
        version="0" * 12,
        companions=("a.mjs",),
    )
    fields = site.model_dump(mode="json")
    change(fields)
    block = json.dumps(fields).replace("<", "\\u003c").encode()
    return b"<!doctype html>\n" + web.START + block + b"</script>\n<p>more</p>"


def read(tmp_path: Path, content: bytes) -> formats.Content:
    (tmp_path / "index.html").write_bytes(content)
    return formats.read(tmp_path / "index.html")


def test_the_contract_is_read_from_the_block(tmp_path: Path) -> None:
    found = read(tmp_path, page())
    assert found.contract == Contract(kind="web", inputs=[SPEC], outputs=[])
    assert found.header.title == "</script> & <b>" and found.header.companions == ("a.mjs",)
    assert Artifact.open(tmp_path).contract == found.contract


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it says nothing of an artifact"),
        (b"<p>a page of another site</p>", "it says nothing of an artifact"),
        (page()[:300], "it says nothing of an artifact"),
        (page().replace(b"</script>", b""), "it says nothing of an artifact"),
        (page().replace(b'"title"', b"title"), "is not a page of r2mrf, or is damaged"),
        (page(lambda f: f.pop("contract")), "is damaged"),
        (page(lambda f: f.update(contract=[])), "the contract inside is not a contract"),
        (page(lambda f: f["contract"].update(inputs=3)), "the contract inside is not a contract: inputs"),
        (page(lambda f: f.update(surplus=1)), "surplus: Extra inputs are not permitted"),
        (page(lambda f: f["files"].pop("wasm")), "files.wasm: Field required"),
        (page(lambda f: f.update(title="x" * (3 << 20))), "what it says is too large"),
        (bytes(range(256)) * 100, "it says nothing of an artifact"),
        (web.START + b"[" * 100_000 + b"</script>", "is not a page of r2mrf, or is damaged"),
    ],
)
def test_anything_else_gets_a_clear_error(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        read(tmp_path, content)
    assert said in str(error.value) and "\n" not in str(error.value) and "index.html" in str(error.value)


def test_only_our_pages_are_pages(tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    assert not web.is_page(file) and web.file_of(tmp_path) == tmp_path
    file.write_bytes(b"<p>photographs of a holiday</p>")
    assert not web.is_page(file) and web.file_of(tmp_path) == tmp_path
    file.write_bytes(page())
    assert web.is_page(file) and web.file_of(tmp_path) == file
    assert web.file_of(tmp_path / "none") == tmp_path / "none"
