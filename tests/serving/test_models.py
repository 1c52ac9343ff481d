"""The models that Triton's python backend runs, with a stand-in for that backend's module."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.serving import models
from tests.predict.conftest import BrightnessRunner


@dataclass
class Tensor:
    called: str
    values: np.ndarray

    def name(self) -> str:
        return self.called

    def as_numpy(self) -> np.ndarray:
        return self.values

    def shape(self) -> list[int]:
        return list(self.values.shape)


class Error(Exception):
    INTERNAL, INVALID_ARG = 1, 2

    def __init__(self, said: str, code: int = 1) -> None:
        super().__init__(said)
        self.code = code


@dataclass
class Response:
    tensors: list[Tensor] = field(default_factory=list)
    error: Error | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error
        return {t.called: t.values for t in self.tensors}


class Request:
    """One of Triton's requests, which is its own sender."""

    def __init__(self, arrays: dict[str, np.ndarray], wanted: tuple[str, ...] = ("map",)) -> None:
        self._arrays, self._wanted = arrays, wanted
        self._answered = threading.Event()
        self.answers: list[Response] = []

    def inputs(self) -> list[Tensor]:
        return [Tensor(*each) for each in self._arrays.items()]

    def requested_output_names(self) -> tuple[str, ...]:
        return self._wanted

    def get_response_sender(self) -> Request:
        return self

    def send(self, response: Response, flags: int) -> None:
        assert flags == 1
        self.answers.append(response)
        self._answered.set()

    def answer(self) -> Response:
        assert self._answered.wait(20)
        assert len(self.answers) == 1
        return self.answers[0]


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        Tensor=Tensor, TritonError=Error, InferenceResponse=Response, TRITONSERVER_RESPONSE_COMPLETE_FINAL=1
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def contract(shape: list[int | str]) -> Contract:
    profile = {"image": {"min": [1, 32, 32, 3], "opt": [1, 32, 32, 3], "max": [4, 64, 64, 3]}}
    return Contract(
        kind="onnx",
        inputs=[TensorSpec(name="image", dtype="uint8", shape=shape, layout="NHWC")],
        outputs=[TensorSpec(name="map", dtype="float32", shape=[shape[0], 1, "h", "w"], layout="NCHW")],
        profiles=profile if "h" in shape else {},
    )


def started(model: models.Model, own: Contract, batched: bool = True, **parameters: str) -> models.Model:
    given = {"contract": own.embedded(), **parameters}
    config = {
        "max_batch_size": 8 if batched else 0,
        "parameters": {name: {"string_value": value} for name, value in given.items()},
    }
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": "/repository/brightness",
            "model_version": "1",
            "model_name": "brightness",
        }
    )
    return model


Start = Any


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`network(runner, shape)`: a `Network` that runs it."""
    begun: list[models.Model] = []

    def start(runner: BrightnessRunner, shape: list[int | str], batched: bool = True) -> models.Model:
        chosen = SimpleNamespace(name="brightness", supported_options={"threads", "streams"})
        monkeypatch.setattr(runtimes, "default", lambda artifact: chosen)
        monkeypatch.setattr(runtimes, "open", lambda *_, **__: runner)
        monkeypatch.setattr(Artifact, "open", lambda path: path)
        begun.append(started(models.Network(), contract(shape), batched, artifact="model.onnx"))
        return begun[-1]

    yield start
    for model in begun:
        model.finalize()


def only(responses: list[Response] | None) -> Response:
    assert responses is not None
    [response] = responses
    return response


def images(count: int, side: int = 40) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


def brightness(image: np.ndarray) -> np.ndarray:
    return image.mean(3, dtype=np.float32)[:, None] / np.float32(255)


def test_requests_are_answered_each_with_its_own(network: Start) -> None:
    runner = BrightnessRunner(streams=2)
    model = network(runner, ["n", "h", "w", 3])
    given = [images(count) for count in (1, 3, 2)]
    requests = [Request({"image": image}) for image in given]
    assert model.execute(requests) is None
    for request, image in zip(requests, given, strict=True):
        assert (request.answer().arrays()["map"] == brightness(image)).all()
    assert runner.batches == [1] * 6  # on a CPU one by one: the bits of each photograph are those that it has alone


def test_a_fixed_batch_is_filled(network: Start) -> None:
    runner = BrightnessRunner(batch=4, size=(40, 40))
    model = network(runner, [4, 40, 40, 3])
    request = Request({"image": images(5)})
    model.execute([request])
    assert (request.answer().arrays()["map"] == brightness(images(5))).all()
    assert runner.batches == [4, 4]


def test_a_gpu_computes_those_of_one_size_at_once(network: Start) -> None:
    runner = BrightnessRunner()
    runner.on_gpu = True
    model = network(runner, ["n", "h", "w", 3])
    given = [images(1), images(1, 50), images(2), images(3, 50)]
    requests = [Request({"image": image}) for image in given]
    model.execute(requests)
    for request, image in zip(requests, given, strict=True):
        assert (request.answer().arrays()["map"] == brightness(image)).all()
    assert sorted(runner.batches) == [3, 4]


def test_no_more_is_taken_than_there_are_threads_for(network: Start) -> None:
    """What waits must wait in Triton's queue, where it is counted and forms batches."""
    free, begun = threading.Event(), []

    class Slow(BrightnessRunner):
        def compute(self, image: np.ndarray) -> np.ndarray:
            begun.append(1)
            assert free.wait(20)
            return super().compute(image)

    model = network(Slow(streams=2), ["n", "h", "w", 3])
    requests = [Request({"image": images(1)}) for _ in range(6)]
    taking = threading.Thread(target=model.execute, args=(requests,))
    taking.start()
    time.sleep(0.3)
    assert taking.is_alive() and len(begun) == 2
    free.set()
    taking.join(20)
    assert all((request.answer().arrays()["map"] == brightness(images(1))).all() for request in requests)


def test_one_failure_answers_one_request(network: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(BrightnessRunner):
        def compute(self, image: np.ndarray) -> np.ndarray:
            if image.max() == 7:
                raise ArtifactError("its weights are damaged")
            if image.max() == 8:
                raise ZeroDivisionError("a fault")
            return super().compute(image)

    model = network(Failing(streams=2), ["n", "h", "w", 3])
    values = [np.full((1, 40, 40, 3), level, np.uint8) for level in (7, 8, 9)]
    large = np.zeros((1, 65, 40, 3), np.uint8)
    requests = [Request({"image": value}) for value in [*values, large]]
    model.execute(requests)
    damaged, fault, good, refused = (request.answer() for request in requests)
    assert str(damaged.error) == "its weights are damaged" and damaged.error.code == Error.INTERNAL
    assert "unexpected ZeroDivisionError" in str(fault.error) and "a request failed" in caplog.text
    assert (good.arrays()["map"] == brightness(values[2])).all()
    assert "at most [64, 64, 3] is taken" in str(refused.error) and refused.error.code == Error.INVALID_ARG
    again = [Request({"image": values[2]}) for _ in range(20)]  # no failure has kept a place
    model.execute(again)
    assert all(request.answer().error is None for request in again)


@pytest.mark.parametrize("batched", [True, False])
def test_the_two_ends(batched: bool) -> None:
    from r2mrf_deploy.images import png

    own = contract([2, 32, 32, 3])
    decoder, drawer = (started(model, own, batched) for model in (models.Decode(), models.Draw()))
    pictures = [
        np.random.default_rng(n).integers(0, 256, (50 + n, 70, 3), np.uint8) for n in range(2 if batched else 1)
    ]
    files = np.array([png(p) for p in pictures], np.object_)
    given = Request({"file": files[:, None] if batched else files}, ("image", "size"))
    decoded = only(decoder.execute([given])).arrays()
    assert decoded["image"].shape == (2, 32, 32, 3)  # of two photographs, or twice the same in a batch that is fixed
    assert decoded["size"].tolist() == ([[50, 70], [51, 70]] if batched else [50, 70])
    request = Request(
        {"network_map": brightness(decoded["image"]), "size": decoded["size"]}, ("png", "map", "scores", "verdict")
    )
    drawn = only(drawer.execute([request])).arrays()
    ahead = (2,) if batched else ()
    assert drawn["png"].shape == drawn["scores"].shape == (*ahead, 1)
    assert drawn["map"].shape == (*ahead, 32, 32) and drawn["verdict"].shape == (*ahead, 4)
    assert json.loads(drawn["scores"].reshape(-1)[0])["height"] == 50
    broken = Request({"file": np.array([[b"no picture"]] if batched else [b"no picture"], np.object_)}, ("image",))
    failed = only(decoder.execute([broken]))
    assert failed.error is not None and failed.error.code == Error.INVALID_ARG


def test_photographs_of_one_request_have_one_size() -> None:
    from r2mrf_deploy.images import png

    decoder = started(models.Decode(), contract(["n", "h", "w", 3]))
    files = [[png(np.zeros((height, 40, 3), np.uint8))] for height in (40, 50)]
    request = Request({"file": np.array(files, np.object_)}, ("image", "size"))
    assert "send them one by one" in str(only(decoder.execute([request])).error)


def test_limits_are_parameters() -> None:
    from r2mrf_deploy.images import png

    own = contract([1, 32, 32, 3])
    file = np.array([[png(np.zeros((40, 40, 3), np.uint8))]], np.object_)
    for parameters, said in (({"most_bytes": "20"}, "bytes, and at most 20"), ({"most_pixels": "999"}, "1,600 pixels")):
        request = Request({"file": file}, ("image", "size"))
        assert said in str(only(started(models.Decode(), own, True, **parameters).execute([request])).error)


def test_an_artifact_of_the_repository_is_opened(exported: Path, tmp_path: Path) -> None:
    import shutil

    (tmp_path / "1").mkdir()
    for name in (exported.name, f"{exported.name}.json"):
        shutil.copy(exported.with_name(name), tmp_path / "1" / name)
    own = Artifact.open(exported).contract
    assert own is not None
    config = {"max_batch_size": 8, "parameters": {
        "contract": {"string_value": own.embedded()}, "artifact": {"string_value": exported.name},
        "runtime": {"string_value": "openvino"}, "threads": {"string_value": "2"}, "streams": {"string_value": "2"},
    }}  # fmt: skip
    model = models.Network()
    place = {"model_repository": str(tmp_path), "model_version": "1", "model_name": "small"}
    model.initialize({"model_config": json.dumps(config), **place})
    image = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    request = Request({"image": image}, ("map", "step1_branch1"))
    model.execute([request])
    found = request.answer().arrays()
    with runtimes.open(exported, "openvino") as runner:
        wanted = np.concatenate([runner.run({"image": each[None]})["map"] for each in image])
    assert set(found) == {"map", "step1_branch1"} and np.abs(found["map"] - wanted).max() < 1e-5
    model.finalize()
