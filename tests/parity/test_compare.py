"""Parity tells sameness from difference, finds where a difference begins, and does not praise a flat map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import GraphError, UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.check import Remembering
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.parity.compare import compare, photographs_for, sample_inputs
from r2mrf_deploy.runtimes.base import Arrays, Runner
from tests.conftest import forge, manifest_of

pytestmark = pytest.mark.artifact

INPUT = TensorSpec(name="image", dtype="uint8", shape=[1, 4, 4, 3], layout="NHWC")
RAMP = np.linspace(0.1, 0.9, 16, dtype=np.float32).reshape(1, 1, 4, 4)
IMAGE = np.zeros((1, 4, 4, 3), np.uint8)


class Fixed(Runner):
    """Gives the same outputs whatever it is fed."""

    runtime, device, inputs, runs = "fixed", "none", (INPUT,), 0

    def __init__(self, **outputs: np.ndarray) -> None:
        self._outputs = outputs
        self.outputs = tuple(
            TensorSpec(name=n, dtype=v.dtype.name, shape=list(v.shape), layout="NCHW") for n, v in outputs.items()
        )

    def _run(self, arrays: Arrays) -> Arrays:
        self.runs += 1
        return dict(self._outputs)


def verdict(candidate: Fixed, reference: Fixed | None = None, per_step: bool = False):  # type: ignore[no-untyped-def]
    return compare(Artifact(Path("x")), candidate, reference or Fixed(map=RAMP), [IMAGE], per_step=per_step)


def test_the_same_is_the_same() -> None:
    result = verdict(Fixed(map=RAMP.copy()))
    assert result.passed and result.map.largest == 0 and result.f_measure == 1


def test_a_difference_is_measured_and_fails() -> None:
    other = RAMP.copy()
    other[0, 0, 0, 0] += 0.01
    result = verdict(Fixed(map=other))
    assert result.verdict == "fail" and "the map differs by up to 1.0e-02" in result.reason
    assert result.map.largest == pytest.approx(0.01, rel=1e-3)
    assert result.map.mean == pytest.approx(0.01 / 16, rel=1e-3)
    spread = np.log(RAMP / (1 - RAMP)).std()
    logit = np.log(0.11 / 0.89) - np.log(0.1 / 0.9)
    assert result.map.relative == pytest.approx(logit / spread, rel=1e-3)


def test_tf32_is_judged_by_what_it_rounds_and_a_fault_in_it_still_fails() -> None:
    rounded, wrong = Fixed(map=RAMP + np.float32(1e-3)), Fixed(map=RAMP[..., ::-1].copy())
    assert verdict(rounded).verdict == "fail"
    rounded.tf32 = wrong.tf32 = True
    result = verdict(rounded)
    assert result.passed and result.rounding == "tf32" and result.precision == "fp32"
    assert verdict(wrong).verdict == "fail"
    assert Remembering(rounded).tf32


def test_a_small_difference_of_nearly_saturated_values_fails_by_its_logits() -> None:
    values = np.full((1, 1, 4, 4), 0.01, np.float32)
    values[0, 0, 0] = 0.99
    other = values.copy()
    other[0, 0, 1] = 0.01009  # within 1e-4 of the map, but 2e-3 of the logits' spread
    result = verdict(Fixed(map=other), Fixed(map=values))
    assert result.map.largest < 1e-4 and result.verdict == "fail" and "logits" in result.reason


def test_values_that_are_not_finite_fail() -> None:
    other = RAMP.copy()
    other[0, 0, 0, 0] = np.nan
    assert verdict(Fixed(map=other)).verdict == "fail"


def test_a_sigmoid_that_oversteps_by_a_rounding_is_not_infinitely_wrong() -> None:
    values = RAMP.copy()
    values[0, 0, 3] = 1
    over = values.copy()
    over[0, 0, 3] = np.nextafter(np.float32(1), np.float32(2))
    assert verdict(Fixed(map=over), Fixed(map=values)).passed


def test_a_flat_reference_is_uninformative() -> None:
    flat = Fixed(map=np.full((1, 1, 4, 4), 0.5, np.float32))
    result = verdict(flat, flat)
    assert result.verdict == "uninformative" and "nearly flat" in result.reason


def moved(by: float) -> np.ndarray:
    """A map whose logits are off by this share of their spread."""
    logits = np.log(RAMP.astype(np.float64) / (1 - RAMP.astype(np.float64)))
    return (1 / (1 + np.exp(-logits - by * logits.std()))).astype(np.float32)


@pytest.mark.parametrize(
    ("artifact", "pytorch", "passes"),
    [
        (-8e-4, 6e-4, True),  # 1.4e-3 apart, but as near to FP64 as PyTorch is
        (-2.5e-3, 6e-4, False),  # four times as far
        (2e-3, 6e-5, False),  # PyTorch is near: this is no rounding
        (-8e-3, 6e-3, False),  # rounding that would hide a fault
    ],
)
def test_what_exceeds_the_bound_is_judged_by_fp64(artifact: float, pytorch: float, passes: bool) -> None:
    exact = Fixed(map=moved(0).astype(np.float64))
    candidate, reference = Fixed(map=moved(artifact)), Fixed(map=moved(pytorch))
    assert verdict(candidate, reference).verdict == "fail"
    result = compare(Artifact(Path("x")), candidate, reference, [IMAGE], exact=lambda: exact)
    assert exact.runs == 1  # it is the slowest of the three
    assert result.passed == passes, result.reason
    assert f"{abs(artifact):.1e} of their spread from FP64, the reference's own {pytorch:.1e}" in result.reason
    assert result.fp64["reference"].relative == pytest.approx(pytorch, abs=2e-6)
    assert result.map.relative == pytest.approx(abs(artifact - pytorch), rel=0.01)  # from PyTorch, as before


def test_fp64_is_not_computed_where_the_bound_is_kept() -> None:
    def exact() -> Runner:
        raise AssertionError("not needed")

    assert compare(Artifact(Path("x")), Fixed(map=RAMP), Fixed(map=RAMP), [IMAGE], exact=exact).passed


def test_where_fp64_cannot_be_computed_the_bound_stands() -> None:
    def exact() -> Runner:
        raise GraphError("no such operator")

    result = compare(Artifact(Path("x")), Fixed(map=moved(1e-3)), Fixed(map=moved(0)), [IMAGE], exact=exact)
    assert result.verdict == "fail" and "could not be compared in FP64: no such operator" in result.reason


@pytest.mark.parametrize("io", ["image", "tensor"])
def test_a_graph_in_fp64_is_its_checkpoint_in_fp64(
    small: Path, exported: Path, export: Callable[..., Path], io: str
) -> None:
    """But for its weights, which are rounded to FP32 after they were folded. A fault shows a thousand times as much."""
    from r2mrf_deploy.parity.exact import of_graph
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    steps = 2 if io == "image" else 4
    file = exported if io == "image" else export(dynamic=True, io="tensor", all_steps=True, steps=4)
    loaded = Checkpoint.load(small)
    graph = of_graph(Artifact.open(file))
    checkpoint = PyTorchRunner(loaded, io=io, steps=steps, all_steps=True, double=True)  # type: ignore[arg-type]
    (image,) = sample_inputs(graph.inputs[0], loaded.preprocess, photographs_for(None)[:1], [1, 3, 96, 128])
    a, b = (runner.run({io: image}) for runner in (graph, checkpoint))
    assert list(a) == list(b) and b["map"].std() > 0.02
    for name in a:
        assert a[name].dtype == b[name].dtype == np.float64
        np.testing.assert_allclose(a[name], b[name], atol=1e-5 * b[name].std(), err_msg=name)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Fixed(map=RAMP, extra=RAMP), "an output 'extra' that the reference does not have"),
        (Fixed(other=RAMP), "an output 'other'"),
        (Fixed(map=RAMP.astype(np.float16)), "map is float16, not float32"),
        (Fixed(map=RAMP[0]), "map has rank 3, not 4"),
        (Fixed(map=RAMP[:, :, :2]), r"map is \[1, 1, 2, 4\]"),
    ],
)
def test_structure_comes_before_values(candidate: Fixed, message: str) -> None:
    import re

    result = verdict(candidate)
    assert result.verdict == "fail" and re.search(message, result.reason)


def test_drift_is_named_by_its_first_step() -> None:
    names = ["step1_branch5", "step1_branch4", "step2_branch5", "step2_branch4"]
    reference = Fixed(map=RAMP, **dict.fromkeys(names, RAMP))
    drifting = Fixed(map=RAMP, **{n: RAMP + (0.01 * i if i > 1 else 0) * RAMP for i, n in enumerate(names)})
    result = verdict(drifting, reference, per_step=True)
    assert (result.verdict, result.drift) == ("fail", "step2_branch5")
    with pytest.raises(UsageError, match="`all_steps`"):
        verdict(Fixed(map=RAMP), per_step=True)


def test_artifacts_on_photographs_step_by_step(small: Path, exported: Path, tmp_path: Path) -> None:
    xml = build_artifact(exported, tmp_path / "x.xml").path
    for result in compare_artifacts(small, [exported, xml], per_step=True):
        assert result.passed, result.reason
        assert result.photographs == 3 and result.reference_spread > 0.05
        assert len(result.steps) == 10


def test_a_plan_without_a_gpu_is_not_called_compared(small: Path, exported: Path, tmp_path: Path) -> None:
    from r2mrf_deploy import environment

    if environment.cuda_driver() is None:
        pytest.skip("there is a GPU here")
    plan = build_artifact(exported, tmp_path / "x.plan").path
    (result,) = compare_artifacts(small, [plan])
    assert result.verdict == "not run" and not result.passed and "not run" in result.reason


def test_an_artifact_of_other_weights_fails(small: Path, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    weight = next(t for t in model.graph.initializer if t.name.endswith("fusion.weight"))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    manifest = manifest_of(exported)
    assert manifest is not None
    forge(manifest.model_copy(update={"file": path.name, "sha256": sha256(path)}), path)
    (result,) = compare_artifacts(small, [path])
    assert result.verdict == "fail" and result.drift is None


def test_photographs_of_one_s_own(small: Path, exported: Path, tmp_path: Path) -> None:
    from PIL import Image

    from r2mrf_deploy import sample_photographs

    Image.fromarray(sample_photographs.sample("rocket")).save(tmp_path / "r.jpg")
    (result,) = compare_artifacts(small, [exported], tmp_path)
    assert result.photographs == 1 and result.passed


def test_the_reference_is_the_checkpoint(small: Path, exported: Path, tmp_path: Path) -> None:
    other = Checkpoint.load(small)
    changed = {k: v * 1.02 if k == "fusion.weight" else v for k, v in other.state_dict.items()}
    path = Checkpoint(other.network, other.config, changed).save(tmp_path / "changed.pth")
    (result,) = compare_artifacts(path, [exported])
    assert result.verdict == "fail"
