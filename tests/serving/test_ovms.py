"""What OpenVINO Model Server takes: opened by OpenVINO itself, since there is no server to try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import sample_photographs, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.images import resize
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.serving.repository import write_repository
from tests.conftest import TinyOnnx, forge, manifest_of

openvino = pytest.importorskip("openvino", reason="needs openvino")


def maps(model: Path | Any, image: np.ndarray) -> np.ndarray:
    """A model's map of an image, as OpenVINO's CPU plugin computes it with the settings of our config."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([image])["map"])


def rgb(batch: int = 1) -> np.ndarray:
    image = resize(sample_photographs.sample("chelsea"), (96, 128))
    assert np.abs(image[..., 0].astype(int) - image[..., 2]).mean() > 10  # not grey, else the order would not matter
    return np.stack([np.roll(image, 8 * n, 1) for n in range(batch)])


def test_a_bgr_picture_gives_the_map_of_the_rgb_picture(exported: Path, tmp_path: Path) -> None:
    xml = tmp_path / "built.xml"
    build_artifact(exported, xml)
    for source, batch in ((exported, 1), (weights.artifact("r2mrf-lite"), 2), (xml, 1)):
        repository = tmp_path / f"repo{source.suffix}{batch}"
        write_repository([source], repository, server="ovms")
        name = source.stem
        image = rgb(batch)
        expected = maps(source, image)
        assert expected.std() > 0.01
        tensors = next(p for p in (repository / name / "1").glob("model.*") if p.suffix == source.suffix)
        assert (maps(tensors, image) == expected).all()
        files = repository / f"{name}_jpeg" / "1" / "model.xml"
        assert (maps(files, np.ascontiguousarray(image[..., ::-1])) == expected).all()
        assert (maps(files, image) != expected).any()
        assert Artifact.open(files).contract is None  # the artifact's says RGB


def test_a_free_size_is_limited_to_what_the_network_is_used_at(tmp_path: Path) -> None:
    source = weights.artifact("r2mrf-lite")
    contract = Artifact.open(source).contract
    assert contract and contract.preprocess
    write_repository([source], tmp_path / "repo", server="ovms")
    shape = openvino.Core().read_model(tmp_path / "repo" / "r2mrf-lite_jpeg" / "1" / "model.xml").input().partial_shape
    most = min(contract.preprocess.longest_side, contract.profile("image")["max"][1])
    assert [shape[axis].max_length for axis in (1, 2)] == [most, most]
    assert [shape[axis].min_length for axis in (1, 2)] == contract.profile("image")["min"][1:3]
    assert shape[0].is_dynamic and shape[3] == 3


def test_the_list_of_models(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    entries = write_repository([tiny_onnx("net")], repository, server="ovms", threads=2, instances=2)
    assert [(e.name, e.inputs) for e in entries] == [
        ("net", {"image": "uint8 [1, 64, 64, 3]"}),
        ("net_jpeg", {"image": "uint8 [1, 64, 64, 3]"}),
    ]
    models = [each["config"] for each in json.loads((repository / "config.json").read_text())["model_config_list"]]
    assert [m["base_path"] for m in models] == ["net", "net_jpeg"]  # relative to config.json
    plugin = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "2"}
    assert all(m["plugin_config"] == plugin and m["nireq"] == 2 for m in models)
    assert [m.get("layout") for m in models] == [None, {"image": "NHWC"}]
    openvino.Core().compile_model(repository / "net_jpeg" / "1" / "model.xml", "CPU", plugin)  # the names are right
    files = {str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()}
    assert files == {"config.json", "net/1/model.onnx", "net_jpeg/1/model.xml", "net_jpeg/1/model.bin"}


def test_a_repository_is_added_to(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    for name, jpeg in (("net", True), ("other", True), ("net", False)):
        write_repository([tiny_onnx(name)], repository, server="ovms", jpeg=jpeg)
    listed = {
        each["config"]["name"] for each in json.loads((repository / "config.json").read_text())["model_config_list"]
    }
    assert listed == {"net", "other", "other_jpeg"} == {p.name for p in repository.iterdir() if p.is_dir()}


def test_what_ovms_does_not_take_is_refused(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    path = tiny_onnx("normalised")
    manifest = manifest_of(path)
    assert manifest
    tensor = TensorSpec(name="tensor", dtype="float32", shape=[1, 3, 64, 64], layout="NCHW")
    forge(manifest.model_copy(update={"inputs": [tensor]}), path)
    with pytest.raises(UsageError, match=r"uint8 NHWC inputs only, and normalised\.onnx has tensor: float32"):
        write_repository([path], tmp_path / "repo", server="ovms")
    with pytest.raises(UsageError, match="`target_ms`: it is for Triton"):
        write_repository([tiny_onnx()], tmp_path / "repo", server="ovms", target_ms=100)
    assert not (tmp_path / "repo").exists()
    write_repository([path], tmp_path / "repo", server="ovms", jpeg=False)
