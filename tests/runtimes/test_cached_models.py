"""A model that is opened from the cache computes the same, to the bit, and a cache that is of no use changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy import runtimes, sample_photographs, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.images import resize
from r2mrf_deploy.model_cache import ModelCache
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions, kept

pytestmark = pytest.mark.artifact

IMAGE = resize(sample_photographs.sample("chelsea"), (96, 128))[None]
RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(pytest.importorskip(request.param).__name__)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    return ModelCache(folder)


def outputs(path: Path, runtime: str, image: np.ndarray = IMAGE, **options: Any) -> dict[str, np.ndarray]:
    with runtimes.open(path, runtime, options=OpenOptions(**options)) as runner:
        return runner.run({"image": image})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def compiled(runtime: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The model files that the runtime has compiled."""
    done: list[str] = []
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession

        def opened(path: str, *arguments: Any, **options: Any) -> Any:
            done.append(path)
            return session(path, *arguments, **options)

        monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    else:
        import openvino

        compile_model = openvino.Core.compile_model

        def compiling(core: Any, path: str, *arguments: Any) -> Any:
            done.append(path)
            return compile_model(core, path, *arguments)

        monkeypatch.setattr(openvino.Core, "compile_model", compiling)
    return done


def test_maps_are_equal_to_the_bit(exported: Path, runtime: str, cache: ModelCache, compiled: list[str]) -> None:
    without = outputs(exported, runtime)
    first = outputs(exported, runtime, cache=cache)
    compiled.clear()
    second = outputs(exported, runtime, cache=cache)
    assert str(exported) not in compiled, "the second time it came out of the cache"
    assert without["map"].std() > 0.05 and same(without, first) and same(without, second)


@pytest.mark.parametrize("size", [(64, 96), (240, 320)])
def test_so_are_those_of_shipped_weights_at_any_size(runtime: str, cache: ModelCache, size: tuple[int, int]) -> None:
    photograph = resize(sample_photographs.sample("coffee"), size)[None]
    path = weights.artifact(weights.DEFAULT)
    without = outputs(path, runtime, photograph)
    found = [outputs(path, runtime, photograph, cache=cache) for _ in range(2)]
    assert without["map"].std() > 0.05 and all(same(without, each) for each in found)


def test_openvino_s_own_format_and_several_streams(exported: Path, tmp_path: Path, cache: ModelCache) -> None:
    pytest.importorskip("openvino")
    xml = build_artifact(exported, tmp_path / "x.xml").path
    for options in ({}, {"throughput": True}, {"streams": 2, "threads": 2}):
        without = outputs(xml, "openvino", **options)
        assert all(same(without, outputs(xml, "openvino", cache=cache, **options)) for _ in range(2))
    with runtimes.open(xml, "openvino", options=OpenOptions(cache=cache, streams=2, threads=2)) as runner:
        assert runner.streams == 2 and "2 threads" in runner.device
    kept = len([*cache.folder.iterdir()])
    assert kept >= 2, "each setting has a file of its own"


def test_damage_is_repaired(exported: Path, runtime: str, cache: ModelCache, compiled: list[str]) -> None:
    without = outputs(exported, runtime, cache=cache)
    (file,) = cache.folder.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    compiled.clear()
    assert same(without, outputs(exported, runtime, cache=cache)) and str(exported) in compiled
    compiled.clear()
    assert same(without, outputs(exported, runtime, cache=cache)) and str(exported) not in compiled


def test_what_no_longer_opens_is_compiled_again(exported: Path, runtime: str, cache: ModelCache) -> None:
    """Sound by its checksum, and yet no model: what another build of the same version may have written."""
    without = outputs(exported, runtime, cache=cache)
    (file,) = cache.folder.iterdir()
    name = file.name.split("-")[0]
    file.unlink()
    with cache.adding(name) as planted:
        assert planted is not None
        planted.write_bytes(b"no model at all")
    assert cache.find(name) is not None
    assert same(without, outputs(exported, runtime, cache=cache))
    (file,) = cache.folder.iterdir()
    assert file.stat().st_size > 1000


def test_a_full_disk_changes_nothing(
    exported: Path, runtime: str, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/dev/full` takes no byte."""
    from contextlib import contextmanager

    @contextmanager
    def full(*_: object) -> Any:
        yield Path("/dev/full")

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(ModelCache, "adding", full)
    assert same(outputs(exported, runtime), outputs(exported, runtime, cache=cache))


def test_a_damaged_artifact_is_the_same_error(tmp_path: Path, runtime: str, cache: ModelCache) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"hello")
    with pytest.raises(ArtifactError) as without:
        outputs(path, runtime)
    with pytest.raises(ArtifactError) as cached:
        outputs(path, runtime, cache=cache)
    assert str(cached.value) == str(without.value) and not [*cache.folder.iterdir()]


def test_a_changed_artifact_is_another(export: Any, tmp_path: Path, runtime: str, cache: ModelCache) -> None:
    """Of the same name and in the same place: what was kept of the first is not the second's."""
    first, second = export(io="image").read_bytes(), export(all_steps=True).read_bytes()
    path = tmp_path / "moved.onnx"
    path.write_bytes(first)
    outputs(path, runtime, cache=cache)
    path.write_bytes(second)
    assert same(outputs(path, runtime), outputs(path, runtime, cache=cache))


def test_weights_in_another_file_are_not_taken_for_those_of_before(
    exported: Path, tmp_path: Path, runtime: str, cache: ModelCache
) -> None:
    """The ONNX file stays the same when its weights change, so nothing is kept of it where no manifest tells them."""
    path, values = tmp_path / "x.onnx", tmp_path / "x.data"
    onnx.save_model(onnx.load(exported), path, save_as_external_data=True, location=values.name)
    before = outputs(path, runtime, cache=cache)
    assert not [*cache.folder.iterdir()]
    values.write_bytes((np.fromfile(values, np.float32) * np.float32(0.5)).tobytes())
    after = outputs(path, runtime, cache=cache)
    assert same(after, outputs(path, runtime)) and not same(before, after)


@pytest.mark.parametrize("suffix", [".xml", ".XML"])
def test_openvino_s_weights_are_part_of_the_key(tmp_path: Path, suffix: str) -> None:
    path, values = tmp_path / f"x{suffix}", tmp_path / "x.bin"
    path.write_text("<net/>")
    assert kept.source(Artifact(path)) is None, "OpenVINO says what is wrong with it"
    values.write_bytes(b"1")
    first = kept.source(Artifact(path))
    values.write_bytes(b"2")
    assert first is not None and kept.source(Artifact(path)) not in (None, first)


def test_what_is_replaced_after_it_was_verified_is_not_kept(
    exported: Path, tmp_path: Path, runtime: str, cache: ModelCache
) -> None:
    path = tmp_path / "x.onnx"
    for suffix in ("", ".json"):
        Path(f"{path}{suffix}").write_bytes(Path(f"{exported}{suffix}").read_bytes())
    artifact = Artifact.open(path)
    assert artifact.manifest is not None
    other = onnx.load(path)
    other.producer_name = "another"
    onnx.save_model(other, path)
    with runtimes.open(artifact, runtime, options=OpenOptions(cache=cache)):
        assert not [*cache.folder.iterdir()]


def test_the_library_writes_nothing_unless_it_is_asked(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2MRF_CACHE", str(tmp_path / "own"))
    with Predictor.open(exported) as predictor:
        expected = predictor(IMAGE[0])
    assert not (tmp_path / "own").exists()
    with Predictor.open(exported, cache=True) as predictor:
        assert np.array_equal(predictor(IMAGE[0]), expected)
    assert len([*(tmp_path / "own" / "r2mrf-deploy").iterdir()]) == 1


def test_the_command_keeps_it_unless_told_not_to(exported: Path, tmp_path: Path) -> None:
    """The files are the same, and PyTorch is not imported for an artifact."""
    from r2mrf_deploy import images

    photograph = tmp_path / "a.png"
    photograph.write_bytes(images.png(IMAGE[0]))
    made = []
    for folder, options in (("without", ["--no-cache"]), ("first", []), ("second", [])):
        code = "import sys; from r2mrf_deploy.cli import main; sys.exit(main(sys.argv[1:]) or 9 * ('torch' in sys.modules))"
        command = [sys.executable, "-c", code, "predict", str(exported), str(photograph), "-o", str(tmp_path / folder)]
        environment = os.environ | {"R2MRF_CACHE": str(tmp_path / "own")}
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "own").exists() == (folder != "without")
        made.append((tmp_path / folder / "a_map.png").read_bytes())
    assert made[0] == made[1] == made[2]


def test_the_table_of_suffixes_is_the_runtimes() -> None:
    """The registry repeats the suffixes of the classes, so that a suffix is looked up without importing them."""
    for name in runtimes.names():
        for suffix in runtimes.get(name).suffixes:
            assert name in [r.name for r in runtimes.suitable(Path(f"x{suffix}"))]
    claimed = {s: {r.name for r in runtimes.suitable(Path(f"x{s}"))} for s in runtimes.known_suffixes()}
    assert all(s in runtimes.get(name).suffixes for s, names in claimed.items() for name in names)
