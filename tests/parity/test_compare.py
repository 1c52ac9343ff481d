"""Parity tells sameness from difference, finds where a difference begins, and does not praise a flat map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.parity.compare import compare
from r2mrf_deploy.runtimes.base import Arrays, Runner
from tests.conftest import forge, manifest_of

pytestmark = pytest.mark.artifact

INPUT = TensorSpec(name="image", dtype="uint8", shape=[1, 4, 4, 3], layout="NHWC")
RAMP = np.linspace(0.1, 0.9, 16, dtype=np.float32).reshape(1, 1, 4, 4)
IMAGE = np.zeros((1, 4, 4, 3), np.uint8)


class Fixed(Runner):
    """Gives the same outputs whatever it is fed."""

    runtime, device, inputs = "fixed", "none", (INPUT,)

    def __init__(self, **outputs: np.ndarray) -> None:
        self._outputs = outputs
        self.outputs = tuple(
            TensorSpec(name=n, dtype=v.dtype.name, shape=list(v.shape), layout="NCHW") for n, v in outputs.items()
        )

    def _run(self, arrays: Arrays) -> Arrays:
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


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Fixed(map=RAMP, extra=RAMP), "an output 'extra' that PyTorch does not have"),
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
