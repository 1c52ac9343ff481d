"""The exact rewrites from the outside: in export by default, and on any ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from r2mrf_deploy import runtimes, sample_photographs
from r2mrf_deploy.errors import ArtifactError, GraphError, InputError, UsageError
from r2mrf_deploy.export import optimize as optimize_module
from r2mrf_deploy.export.onnx import describe
from r2mrf_deploy.export.optimize import optimize_artifact
from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.files import serialized
from r2mrf_deploy.graph.rewrites import Optimized
from r2mrf_deploy.images import resize
from r2mrf_deploy.manifest import Manifest
from tests.conftest import manifest_of

pytestmark = pytest.mark.artifact

PAIRS = [("image", False, True), ("tensor", False, False), ("image", True, False), ("tensor", True, True)]
"""Of input, free size and outputs every pair of choices; the other combinations are slow tests."""
OTHERS = [(io, dynamic, not all_steps) for io, dynamic, all_steps in PAIRS]


@pytest.mark.parametrize(
    ("io", "dynamic", "all_steps"), [*PAIRS, *(pytest.param(*o, marks=pytest.mark.slow) for o in OTHERS)]
)
def test_export_rewrites_and_keeps_parity(export: Callable[..., Path], io: str, dynamic: bool, all_steps: bool) -> None:
    manifest = manifest_of(export(io=io, dynamic=dynamic, all_steps=all_steps, steps=4))
    assert manifest is not None
    (parity,) = manifest.parity  # against PyTorch, every step where there are steps
    assert parity["verdict"] == "pass" and len(parity["steps"]) == (20 if all_steps else 0)
    assert {"split concat", "cse", "commute"} <= {r.name for r in manifest.rewrites}
    assert all(r.count > 0 and r.multiply_adds_after <= r.multiply_adds_before for r in manifest.rewrites)


@pytest.fixture
def unoptimized(export: Callable[..., Path]) -> Path:
    """Four steps; not to be changed."""
    return export(steps=4, optimize=False)


def test_rewriting_can_be_left_out_and_made_up_for(unoptimized: Path, tmp_path: Path) -> None:
    plain = manifest_of(unoptimized)
    assert plain is not None and plain.rewrites == []
    done = optimize_artifact(unoptimized, tmp_path / "new.onnx")
    assert done.manifest and done.manifest.rewrites == done.optimized.records
    assert (done.manifest.multiply_adds or 0) < 0.9 * (plain.multiply_adds or 0)
    assert done.manifest.multiply_adds == cost.multiply_adds(onnx.load(done.path))
    assert done.manifest.inputs == plain.inputs and done.manifest.outputs == plain.outputs
    feed = {"image": resize(sample_photographs.sample("chelsea"), (96, 128))[None]}
    with runtimes.open(unoptimized) as before, runtimes.open(done.path) as after:
        a, b = before.run(feed)["map"], after.run(feed)["map"]
    assert a.std() > 0.05
    np.testing.assert_allclose(b, a, atol=1e-5)  # sums in another order
    again = optimize_artifact(done.path, tmp_path / "again.onnx")
    assert again.optimized.records == []


def test_a_foreign_model_gets_a_manifest_that_describes_it(tiny_onnx: Callable[..., Path], tmp_path: Path) -> None:
    done = optimize_artifact(tiny_onnx(manifest=False), tmp_path / "out.onnx")
    assert [str(s) for s in (*done.manifest.inputs, *done.manifest.outputs)] == [
        "image: uint8 [1×64×64×3]", "map: float32 [1×1×64×64]",
    ]  # fmt: skip
    assert (done.manifest.network, done.manifest.opset, done.manifest.precision) == (None, 17, "fp32")
    onnx.checker.check_model(onnx.load(done.path), full_check=True)


def test_what_is_refused(tiny_onnx, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = tiny_onnx()
    with pytest.raises(InputError, match="no such file"):
        optimize_artifact(tmp_path / "absent.onnx", tmp_path / "out.onnx")
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        optimize_artifact(model, tmp_path / "out.plan")
    with model.open("ab") as f:
        f.write(b"\0")
    with pytest.raises(ArtifactError, match="SHA-256"):
        optimize_artifact(model, tmp_path / "out.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(GraphError, match=r"text\.onnx is not an ONNX file"):
        optimize_artifact(tmp_path / "text.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_can_be_rewritten_in_its_place(unoptimized: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copy(unoptimized, tmp_path / "x.onnx"))
    shutil.copy(Manifest.path_for(unoptimized), Manifest.path_for(plain))
    apart = optimize_artifact(plain, tmp_path / "y.onnx").path
    optimize_artifact(plain, plain)
    assert plain.read_bytes() == apart.read_bytes()
    assert manifest_of(plain).rewrites == manifest_of(apart).rewrites != []  # type: ignore[union-attr]
    assert {p.name for p in tmp_path.iterdir()} == {"x.onnx", "x.onnx.json", "y.onnx", "y.onnx.json"}


def test_an_invalid_result_is_not_written(
    tiny_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: onnx.ModelProto, explain: bool) -> Optimized:
        model.graph.node[0].input[0] = "nobody"
        return Optimized(model, [])

    monkeypatch.setattr(optimize_module, "optimize", spoil)
    with pytest.raises(GraphError, match="would not be valid ONNX, so it is not written"):
        optimize_artifact(tiny_onnx(), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_what_no_file_can_hold_is_said() -> None:
    with pytest.raises(GraphError, match="over 2 GB"):
        serialized(_Huge())  # type: ignore[arg-type]


class _Huge:
    def SerializeToString(self) -> bytes:
        raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")


def test_export_and_optimize_agree_on_the_multiply_adds_of_a_batch(export: Callable[..., Path], tmp_path: Path) -> None:
    """Of one image, whatever the batch."""
    exported = manifest_of(export(batch=2))
    optimized = optimize_artifact(export(batch=2, optimize=False), tmp_path / "c.onnx").manifest
    one = cost.multiply_adds(onnx.load(export(batch=2))) // 2
    assert exported.multiply_adds == optimized.multiply_adds == one > 0
    assert describe(onnx.load(export(batch=2))).multiply_adds == one


def test_what_cannot_be_rewritten_is_written_as_it_is_with_a_warning(tmp_path: Path) -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 20]> g (float[2,3] x) => (seq(float[2,3]) s) { s = SequenceConstruct(x, x) }'
    )
    onnx.save(made, tmp_path / "sequence.onnx")
    done = optimize_artifact(tmp_path / "sequence.onnx", tmp_path / "out.onnx")
    assert done.warnings == () and done.manifest.outputs[0].dtype == "sequence_type"
    made.graph.quantization_annotation.add().tensor_name = "x"
    onnx.save(made, tmp_path / "annotated.onnx")
    done = optimize_artifact(tmp_path / "annotated.onnx", tmp_path / "out.onnx")
    assert "quantization annotations" in done.warnings[0]
    assert onnx.load(done.path).graph == made.graph


@pytest.mark.parametrize("fails", ["multiply_adds", "describe"])
def test_nothing_is_written_where_the_cost_cannot_be_computed(
    tiny_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*args: object) -> None:
        raise GraphError("the cost is unknown")

    monkeypatch.setattr(optimize_module.onnx, fails, fail)
    with pytest.raises(GraphError, match="the cost is unknown"):
        optimize_artifact(tiny_onnx(manifest=False), tmp_path / "out.onnx")
    assert not list(tmp_path.glob("out*"))
