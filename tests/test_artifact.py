"""Artifacts: verified once, published whole or not at all, and the only place where evidence is recorded."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import artifact as module
from r2mrf_deploy import images, runtimes, sample_photographs
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.errors import ArtifactError, InputError, R2mrfError
from r2mrf_deploy.manifest import Contract, Manifest, TensorSpec
from r2mrf_deploy.predictor import Predictor

IMAGE = TensorSpec(name="image", dtype="uint8", shape=[1, 64, 64, 3], layout="NHWC")
MAP = TensorSpec(name="map", dtype="float32", shape=[1, 1, 64, 64], layout="NCHW")


def put(path: Path, content: str, *, check: Callable[[Artifact], list[dict[str, object]]] = lambda _: []) -> Artifact:
    """Publish a file of an unknown format; an .xml with its .bin."""

    def write(file: Path) -> Contract:
        file.write_text(f"<net><!--{content}--></net>")
        if file.suffix == ".xml":
            file.with_suffix(".bin").write_text(content)
        kind = {".xml": "openvino"}.get(file.suffix, "onnx")
        return Contract(kind=kind, inputs=[IMAGE], outputs=[MAP], config={"content": content})

    return publish(path, write, check)


def intact(path: Path, *contents: str) -> str | None:
    """Which of the contents an artifact holds, wholly; None where there is nothing."""
    if not path.exists():
        return None
    found = Artifact.open(path)
    assert found.manifest is not None
    content = str(found.manifest.config["content"])
    assert content in contents and content in path.read_text()
    if path.suffix == ".xml":
        assert path.with_suffix(".bin").read_text() == content
    return content


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".") or p.name.endswith(".next")]


@pytest.mark.parametrize("name", ["a.bin1", "a.onnx", "a.xml"])
def test_a_file_and_its_manifest_appear_together(tmp_path: Path, name: str) -> None:
    path = tmp_path / "folder" / name
    made = put(path, "one")
    assert made.manifest == Artifact.open(path).manifest and intact(path, "one") == "one"
    assert put(path, "two").manifest.config == {"content": "two"}  # type: ignore[union-attr]
    assert intact(path, "two") == "two"
    expected = {name, f"{name}.json"} | ({"a.bin"} if name == "a.xml" else set())
    assert {p.name for p in path.parent.iterdir()} == expected


def test_what_the_check_refuses_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    put(path, "one")

    def refuse(new: Artifact) -> list[dict[str, object]]:
        assert new.manifest is not None and new.path.read_text() != path.read_text()
        raise ArtifactError("it is wrong")

    with pytest.raises(ArtifactError, match="it is wrong"):
        put(path, "two", check=refuse)
    assert intact(path, "one") == "one" and not leftovers(tmp_path)


class Stop(BaseException):
    """A process that is stopped here: nothing of it runs any more."""


def steps(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the `at`-th change of the file system stop the process, as a kill would: nothing is tidied up."""
    count = 0

    def counted(name: str) -> Callable[..., object]:
        original = getattr(Path, name)

        def change(self: Path, *args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == at:
                monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process does not tidy up
                raise Stop
            return original(self, *args, **kwargs)

        return change

    for name in ("replace", "unlink", "write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, counted(name))


@pytest.mark.parametrize("name", ["a.onnx", "a.xml"])
@pytest.mark.parametrize("before", [True, False])
def test_stopped_at_any_change_of_the_file_system(tmp_path: Path, name: str, before: bool) -> None:
    seen = set()
    for at in range(1, 20):
        path = tmp_path / str(at) / name
        path.parent.mkdir()
        if before:
            put(path, "one")
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, at)
            try:
                put(path, "two")
            except Stop:
                stopped = True
            else:
                stopped = False
        seen.add(intact(path, "one", "two"))
        put(path, "three")
        assert intact(path, "three") == "three" and not leftovers(path.parent)
        if not stopped:
            break
    assert not stopped and at > 3
    assert {"two"} < seen and (None in seen) == (name == "a.xml" or not before)


@pytest.mark.parametrize("before", [True, False])
def test_recording_stopped_at_any_change_of_the_file_system(tmp_path: Path, before: bool) -> None:
    for at in range(1, 8):
        path = tmp_path / str(at) / "a.onnx"
        path.parent.mkdir()
        opened = put(path, "one")
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, at)
            try:
                opened.record(latency=[{"runtime": "x", "median": 1.0}])
            except Stop:
                stopped = True
            else:
                stopped = False
        assert intact(path, "one") == "one"
        put(path, "three")
        assert not leftovers(path.parent)
        if not stopped:
            break
    assert not stopped and at > 1


def _forever(folder: str, started: Event) -> None:
    number = 0
    started.set()
    while True:
        number += 1
        made = put(Path(folder) / "a.xml", f"{number % 7}" * 2000)
        made.record(parity=[{"runtime": "x", "number": number}])


def test_a_process_killed_at_a_random_moment(tmp_path: Path) -> None:
    """Thirty times, with a real SIGKILL, within the time of about three publications on this machine."""
    path, generator = tmp_path / "a.xml", random.Random(0)
    contents = [f"{n}" * 2000 for n in range(7)]
    context = multiprocessing.get_context("fork")
    begin = time.perf_counter()
    put(path, contents[0])
    moments = 3 * (time.perf_counter() - begin)
    found = []
    for _ in range(30):
        started = context.Event()
        process = context.Process(target=_forever, args=(str(tmp_path), started))
        process.start()
        assert started.wait(60)
        time.sleep(generator.uniform(0, moments))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found.append(intact(path, *contents))
    put(path, contents[0])
    assert any(found) and not leftovers(tmp_path)


def test_two_processes_that_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    contents = [str(n) * 500 for n in range(8)]
    threads = [threading.Thread(target=lambda c=c: [put(path, c) for _ in range(5)]) for c in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            Artifact.open(path)
        except InputError:  # an .xml is away while its .bin is replaced
            continue
    for thread in threads:
        thread.join()
    assert intact(path, *contents) and not leftovers(tmp_path)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def write_text(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        yield


def test_a_full_disk(tmp_path: Path, full_disk: None, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write .*a\.onnx: No space left on device"):
        put(tmp_path / "a.onnx", "two")
    assert not list(tmp_path.iterdir())


def test_evidence_is_merged_and_stays_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    opened = put(path, "one")
    assert opened.record(latency=[{"runtime": "x", "batch": 1, "median": 2.0}]) == ""
    assert opened.record(latency=[{"runtime": "x", "batch": 1, "median": 1.0}, {"runtime": "y", "median": 3.0}]) == ""
    assert opened.record(accuracy=[{"dataset": "dut", "f": 0.9}]) == ""
    manifest = Artifact.open(path).manifest
    assert manifest is not None
    assert [e["median"] for e in manifest.latency] == [1.0, 3.0] and manifest.accuracy == [{"dataset": "dut", "f": 0.9}]
    common = {"dataset": "dut", "protocol": "common", "f": 0.8}
    for found in (common | {"f": 0.7}, common, {"dataset": "dut", "photographs": 5, "f": 0.6}):
        assert opened.record(accuracy=[found]) == ""  # only scores of the same protocol and photographs are replaced
    assert [e["f"] for e in Artifact.open(path).manifest.accuracy] == [0.9, 0.8, 0.6]  # type: ignore[union-attr]
    put(path, "two")
    with pytest.raises(ArtifactError, match="was changed meanwhile"):
        opened.record(latency=[{"runtime": "x"}])
    assert Artifact.open(path).manifest.latency == []  # type: ignore[union-attr]


def test_evidence_recorded_from_several_threads_is_all_there(tmp_path: Path) -> None:
    opened = put(tmp_path / "a.onnx", "one")
    threads = [threading.Thread(target=opened.record, kwargs={"latency": [{"runtime": str(n)}]}) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Artifact.open(opened.path).manifest.latency) == 12  # type: ignore[union-attr]


def test_where_nothing_can_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = put(tmp_path / "a.onnx", "one")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert "is read-only" in opened.record(parity=[{"runtime": "x"}])
    Manifest.path_for(opened.path).unlink()
    assert "has no manifest" in Artifact.open(opened.path).record(parity=[{"runtime": "x"}])


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    put(path, "one")
    document = Manifest.path_for(path)
    document.write_text(json.dumps(json.loads(document.read_text()) | {"kind": "onnx", "companions": {}}))
    with pytest.raises(ArtifactError, match="describes a file of kind 'onnx'"):
        Artifact.open(path)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_file_that_was_moved_alone_still_predicts(exported: Path, tmp_path: Path, suffix: str) -> None:
    """Everything that running it takes lies inside; only the evidence is gone."""
    from r2mrf_deploy.export.build import build_artifact

    whole = exported if suffix == ".onnx" else build_artifact(exported, tmp_path / "b.xml").path
    alone = tmp_path / "moved" / f"x{suffix}"
    alone.parent.mkdir()
    shutil.copy(whole, alone)
    if suffix == ".xml":
        shutil.copy(whole.with_suffix(".bin"), alone.with_suffix(".bin"))
    opened, original = Artifact.open(alone), Artifact.open(whole)
    assert opened.manifest is None and opened.contract is not None and original.manifest is not None
    fields = set(Contract.model_fields)
    assert opened.contract.model_dump(include=fields) == original.manifest.model_dump(include=fields)
    photograph = images.resize(sample_photographs.sample("coffee"), (117, 235))
    with Predictor.open(alone) as a, Predictor.open(whole) as b:
        found, expected = a(photograph), b(photograph)
    assert expected.std() > 0.02
    np.testing.assert_array_equal(found, expected)


def test_executable_files_keep_their_trust_rule(tmp_path: Path) -> None:
    for name, content in (("a.plan", b"ftrt" + bytes(20) + bytes([11, 0, 0, 0]) + bytes(40)),):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="executable code and has no manifest"):
            runtimes.open(tmp_path / name)


def test_damaged_contracts_are_refused(tiny_onnx: Callable[..., Path]) -> None:
    import onnx

    path = tiny_onnx(manifest=False)
    model = onnx.load(path)
    for text, said in (("{", "Invalid JSON"), ('{"kind": 5}', "contract"), ("[]", "contract")):
        onnx.helper.set_model_props(model, {"other": "x", "r2mrf": text})
        onnx.save(model, path)
        with pytest.raises(ArtifactError, match=said):
            Artifact.open(path)


def test_an_onnx_file_cut_anywhere_has_no_contract_or_its_own(exported: Path, tmp_path: Path) -> None:
    content, path = exported.read_bytes(), tmp_path / "cut.onnx"
    whole = Artifact.open(exported).contract
    for end in (
        0,
        1,
        2,
        3,
        10,
        100,
        len(content) // 2,
        len(content) - 1,
        *range(len(content) - 3000, len(content), 97),
    ):
        path.write_bytes(content[:end])
        try:
            found = Artifact.open(path).contract
        except R2mrfError:
            continue
        assert found is None or found.network == whole.network  # type: ignore[union-attr]


def test_the_old_manifest_serves_while_the_new_one_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    put(path, "one")
    waiting = module._next(path)
    waiting.write_text(Manifest.path_for(path).read_text().replace("one", "two"))
    assert intact(path, "one") == "one"


def test_verification_reads_a_file_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = module.sha256
    monkeypatch.setattr(module, "sha256", lambda path: read.append(path) or original(path))
    Predictor.open(exported).runner.close()
    assert read == [exported]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A killed process leaves a folder behind; the next one takes it away."""
    code = (
        "import os, signal, sys; from pathlib import Path; from r2mrf_deploy.files import staging\n"
        "with staging(Path(sys.argv[1])) as f: (f / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "a.onnx"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 1
    put(path, "one")
    assert not leftovers(tmp_path)
