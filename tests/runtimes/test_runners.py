"""Every runtime keeps the protocol: checked inputs, the same outputs, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import environment, runtimes, sample_photographs
from r2mrf_deploy.errors import ArtifactError, InputError, R2mrfError, RuntimeUnavailable, UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes import OpenOptions
from tests.conftest import heard

pytestmark = pytest.mark.artifact

IMAGE = resize(sample_photographs.sample("chelsea"), (96, 128))[None]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_are_pytorch_s(small: Path, exported: Path, runtime: str) -> None:
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    expected = PyTorchRunner(Checkpoint.load(small), all_steps=True).run({"image": IMAGE})
    with runtimes.open(exported, runtime, options=OpenOptions(threads=1)) as runner:
        assert [str(s) for s in runner.inputs] == ["image: uint8 [1×96×128×3] NHWC"]
        found, timing = runner.run_timed({"image": IMAGE})
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert value.std() > 0.05
        np.testing.assert_allclose(found[name], value, atol=1e-4 * value.std())
    assert timing.latency == timing.compute > 0
    assert timing.h2d == timing.d2h == 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_output_outlives_the_next_inference(exported: Path, runtime: str) -> None:
    with runtimes.open(exported, runtime) as runner:
        first = runner.run({"image": IMAGE})["map"]
        kept = first.copy()
        runner.run({"image": 255 - IMAGE})
    assert np.array_equal(first, kept)


_TWO = """
import gc, signal, sys
from pathlib import Path
from r2mrf_deploy import runtimes

first, second = (runtimes.open(Path(sys.argv[1]), sys.argv[2]) for _ in range(2))
first.close(), second.close()
del first, second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_ctrl_c_is_heard_after_two_runners(exported: Path, runtime: str) -> None:
    command = [sys.executable, "-c", _TWO, str(exported), runtime]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=heard)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_openvino_reads_its_own_format(exported: Path, tmp_path: Path) -> None:
    xml = build_artifact(exported, tmp_path / "x.xml").path
    with runtimes.open(xml) as converted, runtimes.open(exported, "openvino") as direct:
        assert converted.runtime == "openvino"
        a, b = converted.run({"image": IMAGE})["map"], direct.run({"image": IMAGE})["map"]
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "'image' is missing"),
        ({"image": IMAGE, "x": IMAGE}, "unknown input 'x'"),
        ({"image": IMAGE.astype(np.float32)}, "must be uint8, not float32"),
        ({"image": IMAGE[0]}, "must have shape"),
        ({"image": IMAGE[:, :90]}, r"must have shape \[1, 96, 128, 3\], not \[1, 90, 128, 3\]"),
    ],
)
def test_wrong_inputs_are_said_by_the_first_difference(
    exported: Path, feed: dict[str, np.ndarray], message: str
) -> None:
    with runtimes.open(exported) as runner, pytest.raises(InputError, match=message):
        runner.run(feed)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_models(exported: Path, tmp_path: Path, runtime: str, damage: str) -> None:
    path = tmp_path / "x.onnx"
    content = exported.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(ArtifactError, match=r"x\.onnx") as error:
        runtimes.open(path, runtime)
    assert "\n" not in str(error.value)


def test_a_changed_artifact_is_not_opened(exported: Path, tmp_path: Path) -> None:
    for suffix in (".onnx", ".onnx.json"):
        (tmp_path / f"small{suffix}").write_bytes(exported.with_name(f"small{suffix}").read_bytes())
    with (tmp_path / "small.onnx").open("ab") as f:
        f.write(b"\0")
    with pytest.raises(ArtifactError, match="SHA-256"):
        runtimes.open(tmp_path / "small.onnx")


def test_cuda_is_never_replaced_by_the_cpu_in_silence(exported: Path) -> None:
    if environment.cuda_driver() is None:
        pytest.skip("there is a GPU here")
    with pytest.raises(RuntimeUnavailable, match="CUDA"):
        runtimes.open(exported, "onnxruntime-cuda")


def test_names(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        runtimes.get("openvin")
    with pytest.raises(UsageError, match=r"does not open \.onnx files; onnxruntime"):
        runtimes.open(exported, "pytorch")
    with pytest.raises(InputError, match="no such file"):
        runtimes.open(tmp_path / "absent.onnx")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(R2mrfError, match="no runtime opens"):
        runtimes.open(tmp_path / "x.txt")


def test_every_runtime_says_whether_it_can_be_used() -> None:
    for name in runtimes.names():
        state = runtimes.get(name).availability()
        assert state.ok or (state.reason and state.cure), name
