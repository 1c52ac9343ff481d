"""The files of a web page: what is written, under which names, and what becomes of those that were there before."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from r2mrf_deploy import export, runtimes, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError, BuildError, GraphError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.export.web import HALF, LARGE, WebExporter
from r2mrf_deploy.export.web_operators import without_webgpu
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.progress import silent
from r2mrf_deploy.web import assembly, library
from tests.conftest import TinyOnnx
from tests.test_artifact import Stop, leftovers, steps
from tests.web_pages import needs_npm, small_library, unchecked


@pytest.fixture
def small_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> library.Library:
    found = small_library(tmp_path / "package")
    monkeypatch.setattr(library, "find", lambda: found)
    return found


@pytest.fixture
def page(tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path) -> Artifact:
    return unchecked(tiny_onnx(), tmp_path / "site")


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_each_name_holds_the_hash_of_its_content(page: Artifact) -> None:
    folder = page.path.parent
    assert page.manifest is not None and page.manifest.kind == "web"
    assert names(folder) == {*page.manifest.companions, "index.html", "index.html.json"}
    for name in names(folder) - {*web.FIXED, "index.html.json"}:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert re.search(rf"-{digest[:12]}\.", name), name


def test_the_block_says_what_lies_beside_it(page: Artifact) -> None:
    site, folder = page.header, page.path.parent
    assert isinstance(site, web.Site) and page.contract == page.manifest
    for file in (site.files.model, site.files.wasm.binary, site.files.webgpu.binary):
        content = (folder / file.name).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    binary = (folder / site.files.wasm.binary.name).read_bytes()
    assert gzip.decompress(binary) == f"/* {library.WASM.binary} */".encode()
    assert set(site.companions) | {"index.html", "index.html.json", "_headers"} == names(folder)
    assert site.licences in site.companions and site.title == "tiny"
    assert "Microsoft" in (folder / site.licences).read_text()


def test_every_reference_leads_to_a_file(page: Artifact) -> None:
    folder = page.path.parent
    found = 0
    for file in folder.iterdir():
        if file.suffix in (".js", ".css", ".html"):
            for name in re.findall(r'"\./([A-Za-z0-9_.-]+)"', file.read_text()):
                assert (folder / name).is_file(), f"{file.name} refers to {name}"
                found += name not in web.FIXED
    assert found >= 3  # the page's style, its script, the script's worker


def test_the_page_asks_no_other_host(page: Artifact) -> None:
    text = page.path.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1] == web.POLICY and "default-src 'none'" in web.POLICY
    for source in re.findall(r"(?:connect|script|worker|style|img|media)-src ([^;]*)", web.POLICY):
        assert set(source.split()) <= {"'self'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert not re.findall(r"<style|<script(?! type=\"application/json\"| type=\"module\" src=)|style=| on\w+=", text)


def test_headers_for_static_hosts(page: Artifact) -> None:
    text = (page.path.parent / web.HEADERS_FILE).read_text()
    for name, value in web.HEADERS.items():
        assert f"  {name}: {value}\n" in text
    model = page.header.files.model.name
    assert f"/{model}\n  Cache-Control: public, max-age=31536000, immutable\n" in text
    assert "/index.html\n  Cache-Control: no-cache\n" in text and "/sw.js\n  Cache-Control: no-cache\n" in text


def test_a_second_export_is_the_same_to_the_byte(tiny_onnx: TinyOnnx, page: Artifact, tmp_path: Path) -> None:
    again = unchecked(tiny_onnx(), tmp_path / "again")
    folder = page.path.parent
    assert names(again.path.parent) == names(folder)
    for name in names(folder) - {"index.html.json"}:  # the manifest has the date
        assert (folder / name).read_bytes() == (again.path.parent / name).read_bytes(), name


def test_another_page_replaces_all_of_the_old_one_and_nothing_else(
    page: Artifact, tiny_onnx: TinyOnnx, small_package: library.Library
) -> None:
    folder, old = page.path.parent, page.header.files.model.name
    (folder / "robots.txt").write_text("mine")
    (folder / "pictures").mkdir()
    (small_package.folder / library.WASM.loader).write_text("/* another version */")
    changed = folder / page.header.files.wasm.loader
    changed.write_text("mine too")
    new = unchecked(tiny_onnx("other", precision="fp16"), folder)
    assert new.manifest is not None and not (folder / old).exists()
    assert changed.read_text() == "mine too"  # no longer what was published
    assert names(folder) - {"robots.txt", "pictures", changed.name} == {
        *new.manifest.companions, "index.html", "index.html.json",
    }  # fmt: skip
    assert Artifact.open(folder).header.title == "other"


@pytest.mark.parametrize("name", ["index.html", "sw.js", "licences.txt"])
def test_a_file_of_another_web_site_is_not_replaced(
    name: str, tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("<p>another site</p>")
    with pytest.raises(ArtifactError, match=r"is no page of r2mrf, .* or name another folder"):
        unchecked(tiny_onnx(), tmp_path / "site")
    assert names(tmp_path / "site") == {name}


def test_another_web_site_s_data_make_it_no_page(
    tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<p>another site</p>")
    (tmp_path / "index.html.json").write_text('{"its": "data"}')
    with pytest.raises(ArtifactError, match="is no page of r2mrf"):
        unchecked(tiny_onnx(), tmp_path)
    assert (tmp_path / "index.html").read_text() == "<p>another site</p>"


def test_what_a_user_changed_in_a_page_is_not_lost(
    page: Artifact, tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(page.path.parent, folder)
    (folder / "_headers").write_text("/*\n  X-Mine: yes\n")
    with pytest.raises(ArtifactError, match=r"_headers: .* was changed since; move it away"):
        unchecked(tiny_onnx("new", precision="fp16"), folder)
    (folder / "_headers").unlink()
    assert Artifact.open(unchecked(tiny_onnx("new", precision="fp16"), folder)).manifest is not None


def test_stopped_at_any_change_of_the_file_system(
    page: Artifact, tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path
) -> None:
    new = tiny_onnx("new", precision="fp16")
    (small_package.folder / library.WASM.loader).write_text("/* another version */")
    seen = set()
    for at in range(1, 90):
        folder = tmp_path / str(at)
        shutil.copytree(page.path.parent, folder)
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, at)
            try:
                unchecked(new, folder)
            except Stop:
                stopped = True
            else:
                stopped = False
        seen.add(Artifact.open(folder).header.title if (folder / "index.html").exists() else "nothing")
        if not stopped or at % 5 == 0:
            made = unchecked(new, folder).manifest
            assert made is not None and not leftovers(folder)
            assert names(folder) == {*made.companions, "index.html", "index.html.json"}
        if not stopped:
            break
    assert not stopped and seen == {"tiny", "new", "nothing"}


@pytest.mark.parametrize("where", ["page-", "model-", "sw.js", "index.html"])
def test_a_damaged_page_does_not_open(page: Artifact, where: str) -> None:
    file = next(p for p in page.path.parent.iterdir() if p.name.startswith(where) and p.suffix != ".json")
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="does not match"):
        Artifact.open(page.path)
    file.unlink()
    with pytest.raises((ArtifactError, InputError), match=r"missing|no such file|is a folder"):
        Artifact.open(page.path.parent)


def test_a_page_without_its_manifest_is_trusted_only_if_asked(page: Artifact) -> None:
    Manifest.path_for(page.path).unlink()
    assert Artifact.open(page.path.parent).contract is not None
    with pytest.raises(ArtifactError, match="is executable code and has no manifest"):
        runtimes.open(page.path.parent)


@pytest.mark.parametrize("text", ["site", "site/", f"site{os.sep}", "site.v2/", "site/index.html"])
def test_a_folder_is_a_page(text: str) -> None:
    assert export.destination(text) == Path(text.rstrip("/")) / ("" if "html" in text else "index.html")


def test_other_outputs_are_files(tmp_path: Path) -> None:
    assert export.destination("a.onnx") == Path("a.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert export.destination(tmp_path / "folder.onnx").name == "index.html"
    with pytest.raises(UsageError, match="a page is a folder of files: name the folder, for example x"):
        export.destination("x.html")


def test_bf16_is_refused(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    needs_npm()
    with pytest.raises(UsageError, match="have no BF16"):
        build_artifact(tiny_onnx(precision="bf16"), tmp_path / "site")


def test_an_operator_without_a_kernel_is_refused(
    tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path
) -> None:
    path = tiny_onnx(manifest=False)
    model = onnx.load(path)
    model.graph.node[-2].op_type, model.graph.node[-2].domain = "Sharpen", "example.org"
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    said = Artifact.open(tiny_onnx("good")).contract
    path.write_bytes(model.SerializeToString())
    source = Artifact(path, None, said)
    with pytest.raises(GraphError, match=r"ONNX Runtime Web cannot run tiny\.onnx: .*Sharpen"):
        WebExporter().write(source, tmp_path / "index.html", FormatOptions(), silent)
    with pytest.raises(BuildError, match="does not take a photograph"):
        WebExporter().write(Artifact(path), tmp_path / "index.html", FormatOptions(), silent)


def test_what_webgpu_lacks_is_told(tiny_onnx: TinyOnnx) -> None:
    table = "| Cast | ai.onnx(6-12,13+) |  |\n| Relu | ai.onnx(6-12,13,14-16) |  |\n| Conv | com.example(1+) | x |\n"
    lacking = without_webgpu(onnx.load(tiny_onnx()), table)
    assert lacking == ["Cast of bytes", "Conv", "Mul", "Relu", "Resize", "Sigmoid", "Transpose"]  # opset 17
    needs_npm()
    table = library.find().read(library.OPERATORS).decode()
    assert without_webgpu(onnx.load(tiny_onnx()), table) == ["Cast of bytes"]


def test_the_weights_of_a_large_graph_are_rounded_if_parity_allows(
    tiny_onnx: TinyOnnx, small_package: library.Library, tmp_path: Path
) -> None:
    path = tiny_onnx()
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    values = numpy_helper.to_array(weights) * 2
    spare = np.random.default_rng(0).standard_normal(LARGE // 4).astype(np.float32)  # it is large, and adds nothing
    nodes = [
        helper.make_node("ReduceMean", ["spare"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["c2", "zero"], ["sum"]),
    ]
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    model.graph.initializer.extend(
        [numpy_helper.from_array(spare, "spare"), numpy_helper.from_array(np.zeros((), np.float32), "nothing")]
    )
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Resize")
    model.graph.node[at].input[0] = "sum"
    for node in reversed(nodes):
        model.graph.node.insert(at, node)
    large = tmp_path / "large.onnx"
    large.write_bytes(model.SerializeToString())
    source = Artifact(large, None, Artifact.open(path).contract)
    (tmp_path / "a").mkdir()
    contract, note = WebExporter().write(source, tmp_path / "a" / "index.html", FormatOptions(), silent)
    assert contract.export.items() >= HALF.items() and "FP16" in note
    (written,) = (tmp_path / "a").glob("model-*.onnx")
    assert written.stat().st_size < large.stat().st_size * 0.6


def test_the_package_is_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_npm()
    good = library.find().folder
    monkeypatch.setattr(library, "_places", lambda: iter([tmp_path / "onnxruntime-web"]))
    state = WebExporter().availability()
    assert not state.ok and state.reason == "onnxruntime-web is not installed" and "npm install" in state.cure
    copy = tmp_path / "onnxruntime-web"
    (copy / "dist").mkdir(parents=True)
    (copy / "docs").mkdir()
    for name in ("package.json", library.OPERATORS, *vars(library.WASM).values(), *vars(library.WEBGPU).values()):
        shutil.copyfile(good / name, copy / name)
    assert not library.missing()
    (copy / library.WASM.loader).write_text("another")
    assert re.search(r"ort-wasm-simd-threaded.mjs is missing, or is not the file of version", library.missing())
    (copy / "package.json").write_text(json.dumps({"version": "1.20.0"}))
    with pytest.raises(RuntimeUnavailable, match=r"has version 1\.20\.0, and pages are made with 1\.30\.0; make web"):
        library.find()


def test_the_lock_file_pins_the_version_and_names_no_registry() -> None:
    folder = Path(library.__file__).parent
    lock = json.loads((folder / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages["node_modules/onnxruntime-web"]["version"] == library.version()
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in packages.values())
    assert "://" not in (folder / "package-lock.json").read_text()
    assert lock["packages"][""]["dependencies"] == {library.NAME: library.version()}


def test_sources_refer_to_each_other_by_hashed_names() -> None:
    done = assembly.linked({"a.js": b'import "./b.js"; go("./sw.js")', "b.js": b"1", "sw.js": b'"./index.html"'})
    (b,) = (name for name in done if name.startswith("b-"))
    (a,) = (name for name in done if name.startswith("a-"))
    assert done[a] == f'import "./{b}"; go("./sw.js")'.encode() and set(done) == {a, b, "sw.js"}
    changed = assembly.linked({"a.js": b'import "./b.js"; go("./sw.js")', "b.js": b"2", "sw.js": b""})
    assert a not in changed  # what it refers to is another


def test_formats_list_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--formats"]) == 0
    assert ".html" in capsys.readouterr().out


@pytest.mark.artifact
def test_the_page_of_r2mrf_lite_is_below_20_mb(tmp_path: Path) -> None:
    needs_npm()
    from r2mrf_deploy import weights

    made = unchecked(weights.artifact("r2mrf-lite"), tmp_path / "site")
    assert made.manifest is not None and made.manifest.bytes < 20e6
    assert sum(f.stat().st_size for f in made.path.parent.iterdir()) < 20e6


@pytest.mark.artifact
def test_int8_is_written_as_it_is(converted: Callable[[str], Path], tmp_path: Path) -> None:
    needs_npm()
    source = converted("int8")
    made = unchecked(source, tmp_path / "site")
    assert made.precision == "int8" and made.rounding == "int8"
    counts = [
        Counter(node.op_type for node in onnx.load(file).graph.node)
        for file in (source, made.path.with_name(made.header.files.model.name))
    ]
    assert counts[0]["QuantizeLinear"] == counts[1]["QuantizeLinear"] > 10
