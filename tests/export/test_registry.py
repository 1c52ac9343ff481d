"""The registry of exporters: a new format is one file and one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from r2mrf_deploy import export
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.export.base import Exporter, derived
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.report import tables
from r2mrf_deploy.runtimes.base import Availability


class Reversed(Exporter):
    """The whole file of a newcomer: a format that nobody runs."""

    suffix = ".oxnn"
    title = "Reversed ONNX"
    precisions = ("fp32",)

    def availability(self) -> Availability:
        return Availability(True)

    def write(
        self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback
    ) -> tuple[Contract, str]:
        file.write_bytes(source.path.read_bytes()[::-1])
        assert source.contract is not None
        return derived(source, source.contract, {}, kind="oxnn"), "reversed"


def test_a_new_format_is_one_file_and_one_line(
    tiny_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("oxnn")
    module.Exporter = Reversed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "oxnn", module)
    monkeypatch.setitem(export.REGISTRY, ".oxnn", "oxnn:Exporter")
    model = tiny_onnx()
    built = build_artifact(model, model.with_suffix(".oxnn"))
    assert built.note == "reversed" and Artifact.open(built.path).manifest == built.manifest
    assert built.manifest.inputs == Artifact.open(model).manifest.inputs  # type: ignore[union-attr]
    assert main(["export", "--formats"]) == 0
    assert "Reversed ONNX" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"Reversed ONNX files \(\.oxnn\) have no FP16: choose from fp32"):
        build_artifact(tiny_onnx("half", precision="fp16"), model.with_suffix(".oxnn"))


def test_formats_are_data() -> None:
    for exporter in export.exporters():
        assert exporter.suffix in export.REGISTRY and exporter.title
        assert set(exporter.precisions) <= {"fp32", "fp16", "bf16", "int8"}
        assert exporter.options <= set(FormatOptions.__dataclass_fields__)


def test_the_table_in_the_docs_is_the_registry_s() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    for row in tables.format_rows(export.exporters()):
        cells = [row["suffix"], row["format"], " ".join(row["precisions"]), " ".join(row["options"])]
        assert "| " + " | ".join(cells).rstrip() + " |" in text
