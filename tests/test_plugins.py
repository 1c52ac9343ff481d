"""What other packages add, and what becomes of those that are broken."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r2mrf_deploy import doctor, export, networks, plugins, runtimes
from r2mrf_deploy.errors import PluginError, UsageError
from r2mrf_deploy.networks.base import Detector

_FILES = {
    "good.py": """
from r2mrf_deploy.networks.r2mrf import R2MRF

class Mine(R2MRF):
    presets = {"mine": R2MRF.presets["r2mrf-edge"], "r2mrf": R2MRF.presets["r2mrf-edge"]}

class NoNetwork:
    pass
""",
    "runtime.py": """
from r2mrf_deploy.runtimes.base import Runtime

class Half(Runtime):
    suffixes = (".onnx",)

    def availability(self): ...
""",
    "broken.py": "import a_module_that_nobody_has",
}
Package = Callable[[str, dict[str, dict[str, str]]], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Installs a package that registers entry points, group -> name -> value; beside it are the modules of `_FILES`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for file, text in _FILES.items():
        (tmp_path / file).write_text(text)

    def install(name: str, registers: dict[str, dict[str, str]]) -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for group, e in registers.items())
        (folder / "entry_points.txt").write_text("\n".join(groups))
        plugins.registered.cache_clear()

    yield install
    plugins.registered.cache_clear()
    for file in _FILES:
        sys.modules.pop(Path(file).stem, None)


def test_a_network_of_another_package_is_one_of_ours(package: Package) -> None:
    package("a", {plugins.NETWORKS: {"mine": "good:Mine"}})
    assert networks.families()[-1] == "mine"
    assert issubclass(networks.get("mine"), Detector)
    presets = networks.presets()
    assert presets["mine"][0] == "mine"
    assert presets["r2mrf"][0] == "r2mrf", "a preset of ours was replaced"
    (row,) = [row for row in doctor.examine() if row.name == "network mine"]
    assert (row.does, row.ok, row.version, row.note) == ("from a", True, "1.0", "")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("broken:Mine", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("good:Absent", "AttributeError"),
        ("good:NoNetwork", "is no subclass of r2mrf_deploy.networks.base.Detector"),
    ],
)
def test_a_broken_package_fails_alone(
    value: str, what: str, package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    package("bad", {plugins.NETWORKS: {"bad": value}})
    with caplog.at_level(logging.WARNING):
        assert "r2mrf-edge" in networks.presets()
    (said,) = caplog.messages
    assert said.startswith(f"the network 'bad' of the package bad ({value}) ") and what in said
    with pytest.raises(PluginError, match="pip uninstall bad"):
        networks.get("bad")


def test_broken_formats_and_runtimes_fail_alone_too(package: Package) -> None:
    package("bad", {g: {"bad": "broken:Class"} for g in (plugins.EXPORTERS, plugins.RUNTIMES)})
    assert ".bad" in export.suffixes() and "bad" in runtimes.names()
    assert [e.suffix for e in export.exporters()] == list(export.REGISTRY)
    assert next(r.name for r in runtimes.suitable(Path("x.onnx"))) == "onnxruntime"
    for call in (lambda: export.exporter(Path("x.bad")), lambda: runtimes.get("bad")):
        with pytest.raises(PluginError, match="cannot be imported"):
            call()
    notes = {row.name: (row.ok, row.note) for row in doctor.examine() if row.name.endswith(" bad")}
    assert notes.keys() == {"exporter bad", "runtime bad"}
    assert not any(ok for ok, _ in notes.values()) and all("pip uninstall bad" in note for _, note in notes.values())


def test_a_class_that_cannot_be_made_fails_alone_too(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    package("old", {plugins.RUNTIMES: {"half": "runtime:Half"}})
    with caplog.at_level(logging.WARNING):
        assert next(r.name for r in runtimes.suitable(Path("x.onnx"))) == "onnxruntime"
    assert "cannot be used: TypeError" in caplog.text and "pip uninstall old" in caplog.text
    (row,) = [row for row in doctor.examine() if row.name == "runtime half"]
    assert not row.ok and "abstract" in row.note


def test_doctor_says_what_is_left_out_or_no_network(package: Package) -> None:
    package("a", {plugins.NETWORKS: {"r2mrf": "good:Mine", "wrong": "good:NoNetwork"}})
    rows = {row.name: row for row in doctor.examine()}
    assert not rows["network r2mrf"].ok and rows["network r2mrf"].note.startswith("left out")
    assert not rows["network wrong"].ok and "is no subclass" in rows["network wrong"].note


def test_a_name_that_is_taken_is_left_out(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    package("a", {plugins.NETWORKS: {"r2mrf": "good:Mine", "mine": "good:Mine"}})
    package("b", {plugins.NETWORKS: {"mine": "broken:Mine"}})
    with caplog.at_level(logging.WARNING):
        assert networks.get("r2mrf").__module__ == "r2mrf_deploy.networks.r2mrf"
        assert networks.get("mine").__module__ == "good"
    assert "the network 'r2mrf' of the package a (good:Mine) is left out: r2mrf-deploy has that name" in caplog.text
    assert "of the package b (broken:Mine) is left out: a has that name already" in caplog.text


def test_an_absent_network_may_be_another_package_s() -> None:
    with pytest.raises(UsageError, match=r"no network .elsewhere.: .*; is the package that adds it installed"):
        networks.get("elsewhere")
