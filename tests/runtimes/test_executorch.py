"""ExecuTorch programs in Python: threads, sizes, damage, and what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import environment, runtimes, sample_photographs
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.files import sha256
from r2mrf_deploy.images import resize
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes import OpenOptions
from tests.conftest import copied, forge, manifest_of

Programs = Callable[..., Path]
IMAGE = resize(sample_photographs.sample("chelsea"), (96, 128))[None]


def test_programs_with_other_numbers_of_threads_stay_usable(
    programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    """The pool belongs to the process: what was opened before it was replaced would compute with freed memory."""
    with (
        runtimes.open(programs(), options=OpenOptions(threads=1)) as one,
        runtimes.open(programs(), options=OpenOptions(threads=2)) as two,
    ):
        assert (one.device, two.device) == ("CPU, 1 thread, XNNPACK FP32", "CPU, 2 threads, XNNPACK FP32")
        found = [runner.run({"image": IMAGE}) for _ in range(3) for runner in (one, two)]
        with runtimes.open(programs(), options=OpenOptions(threads=3)) as three:
            found += [runner.run({"image": IMAGE}) for runner in (three, one, two)]
    assert found[0]["map"].std() > 0.05
    for other in found[1:]:
        assert list(other) == list(found[0])
        for name, value in other.items():
            np.testing.assert_array_equal(value, found[0][name])
    assert capfd.readouterr() == ("", ""), "what ExecuTorch logs about the CPU is not for users"


def test_threads_that_call_at_once_get_their_own_maps(programs: Programs) -> None:
    images = [np.roll(IMAGE, 16 * n, axis=2) for n in range(8)]
    with runtimes.open(programs()) as runner, ThreadPoolExecutor(4) as pool:
        alone = [runner.run({"image": image})["map"] for image in images]
        together = list(pool.map(lambda image: runner.run({"image": image})["map"], images))
    for mine, wanted in zip(together, alone, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    assert len({m.tobytes() for m in alone}) == len(alone)


def test_what_a_caller_holds_is_not_overwritten(programs: Programs) -> None:
    image = IMAGE.copy()
    image.flags.writeable = False
    with runtimes.open(programs()) as runner:
        first = runner.run({"image": image})["map"]
        kept = first.copy()
        runner.run({"image": np.zeros_like(IMAGE)})
        np.testing.assert_array_equal(first, kept)
        with pytest.raises(InputError, match=r"executorch: image must have shape \[1, 96, 128, 3\], not"):
            runner.run({"image": IMAGE[:, :90]})
    np.testing.assert_array_equal(first, kept)


def test_an_option_that_it_does_not_have_is_refused(programs: Programs) -> None:
    with pytest.raises(UsageError, match="streams"):
        runtimes.open(programs(), options=OpenOptions(streams=2))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-100], lambda b: b[:9000] + bytes(64) + b[9064:]], ids=["cut", "zeros"]
)
def test_damage_is_refused_before_anything_is_loaded(
    programs: Programs, tmp_path: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ExecuTorch ends the process about some damage, so that a file without a manifest needs `trust` too."""
    path = copied(programs(), tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr("r2mrf_deploy.runtimes.executorch._library", None)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        runtimes.open(path)
    path.with_name("x.pte.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no manifest|is damaged"):
        runtimes.open(path)


def test_a_program_that_was_moved_alone_opens_if_it_is_trusted(programs: Programs, tmp_path: Path) -> None:
    path = Path(shutil.copy(programs(), tmp_path / "alone.pte"))
    with runtimes.open(programs()) as whole, runtimes.open(path, trust=True) as alone:
        assert alone.inputs == whole.inputs and alone.outputs == whole.outputs
        np.testing.assert_array_equal(alone.run({"image": IMAGE})["map"], whole.run({"image": IMAGE})["map"])


def test_a_program_and_a_contract_that_disagree_are_refused(programs: Programs, tmp_path: Path) -> None:
    path = copied(programs(), tmp_path)
    manifest = manifest_of(path)
    assert manifest is not None
    more = TensorSpec(name="more", dtype="float32", shape=[1, 1, 96, 128], layout="NCHW")
    forge(manifest.model_copy(update={"outputs": [*manifest.outputs, more]}), path)
    with pytest.raises(ArtifactError):
        runtimes.open(path)


def test_a_program_that_cannot_be_loaded_is_an_error_of_one_line(programs: Programs, tmp_path: Path) -> None:
    """The identifier of the delegate's own data is another, as a later version of XNNPACK's format would have it."""
    path = copied(programs(), tmp_path)
    content, manifest = path.read_bytes(), manifest_of(path)
    assert content.count(b"XH00") == 1 and manifest is not None
    path.write_bytes(content.replace(b"XH00", b"XH99"))
    forge(manifest.model_copy(update={"sha256": sha256(path)}), path)
    with pytest.raises(ArtifactError, match=r"x\.pte cannot be loaded by ExecuTorch \(.*\); export it again") as error:
        runtimes.open(path)
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment.importable
    monkeypatch.setattr(environment, "importable", lambda *names: "executorch" not in names and here(*names))
    state = runtimes.get("executorch").availability()
    assert (state.ok, state.cure) == (False, 'pip install "r2mrf-deploy[executorch]"')
    with pytest.raises(RuntimeUnavailable, match="executorch is not installed; pip install"):
        export_artifact(small, tmp_path / "x.pte")


def test_bench_times_it_beside_other_runtimes(
    programs: Programs, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--duration", "0.01", "--iterations", "2", "--warmUp", "0", "--threads", "1"]
    assert main(["bench", str(copied(programs(), tmp_path)), str(copied(exported, tmp_path)), *arguments]) == 0
    said = capsys.readouterr().out
    assert "executorch" in said and "onnxruntime" in said
