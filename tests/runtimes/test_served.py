"""A model on a server is used as any other is, whatever the server does: it is away, busy, slow, restarted, or wrong."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy.errors import ArtifactError, InputError, R2mrfError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import NEUTRAL, Contract, TensorSpec
from r2mrf_deploy.predict import Outputs, predict
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.kserve import client, over_http, tensors
from r2mrf_deploy.runtimes.served import Connection, ServedRunner, ServerUnavailable, connect
from tests.predict.conftest import BrightnessRunner, photograph
from tests.runtimes.fake_server import FILE, IMAGE, MAP, Certificates, FakeServer

pytest.importorskip("tritonclient")

Connect = Callable[..., ServedRunner]
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), dtype=np.uint8)
BRIGHTNESS = PHOTOGRAPH.mean(3, dtype=np.float32)[:, None] / np.float32(255)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.1)


@pytest.fixture(params=["http", "grpc"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with FakeServer(request.param) as running:
        yield running


@pytest.fixture
def opened(server: FakeServer) -> Iterator[Connect]:
    """`opened(**options)`: the server's model `focus`."""
    runners = []

    def open_(name: str = "/focus", **options: object) -> ServedRunner:
        options = {"retry_for": 5.0, "deadline": 5.0, **options}
        runners.append(connect(Connection(server.address + name, **options)))  # type: ignore[arg-type]
        return runners[-1]

    yield open_
    for runner in runners:
        runner.close()


def run(runner: ServedRunner) -> np.ndarray:
    return runner.run({"image": PHOTOGRAPH})["map"]


def contract(**changes: object) -> Contract:
    fields = {
        "kind": "onnx",
        "inputs": [TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")],
        "outputs": [TensorSpec(name="map", dtype="float32", shape=["n", 1, "h", "w"], layout="NCHW")],
        "profiles": {"image": {"min": [1, 8, 8, 3], "opt": [1, 16, 16, 3], "max": [4, 32, 32, 3]}},
        "preprocess": NEUTRAL.model_copy(update={"longest_side": 24}),
        "checkpoint_sha256": "c0ffee",
    }
    return Contract.model_validate(fields | changes)


def test_it_is_a_runner(server: FakeServer, opened: Connect) -> None:
    runner = opened()
    assert np.array_equal(run(runner), BRIGHTNESS) and BRIGHTNESS.std() > 0.1
    assert runner.device == f"fake 1.0 at {server.address}" and (runner.runtime, runner.streams) == ("server", 8)
    assert [(s.dtype, s.layout) for s in (*runner.inputs, *runner.outputs)] == [("uint8", "NHWC"), ("float32", "NCHW")]
    assert runner.identity == f"{server.address} focus 1"
    with pytest.raises(InputError, match="image must be uint8, not float32"):
        runner.run({"image": PHOTOGRAPH.astype(np.float32)})


def test_many_threads_share_it(server: FakeServer, opened: Connect) -> None:
    runner, server.fake.delay = opened(), 0.05
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(found, BRIGHTNESS) for found in pool.map(lambda _: run(runner), range(16)))
    assert server.fake.most_under_way > 4


@pytest.mark.parametrize("fault", ["busy", "cut", "unloaded"])
def test_a_passing_fault_is_survived(server: FakeServer, opened: Connect, fault: str) -> None:
    runner = opened()
    setattr(server.fake, fault, 3)
    assert np.array_equal(run(runner), BRIGHTNESS)
    assert server.fake.asked["infer"] >= (1 if (fault, server.scheme) == ("cut", "grpc") else 3)
    assert getattr(server.fake, fault) == 0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_http_calls_busy(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer("http") as server, connect(Connection(server.address + "/focus")) as runner:
        server.fake.busy, server.fake.busy_status = 1, status
        assert np.array_equal(run(runner), BRIGHTNESS)


def test_a_model_whose_process_has_died_is_away(server: FakeServer, opened: Connect) -> None:
    """Triton says so of a python model by an ordinary failure, until somebody restarts it."""
    server.fake.broken = "Failed to process the request(s) for model 'x', message: Stub process 'x_0_0' is not healthy."
    again = threading.Timer(0.3, lambda: setattr(server.fake, "broken", ""))
    again.start()
    assert run(opened()).shape[1] == 1 and server.fake.asked["infer"] > 1
    again.join()


def test_requests_that_nobody_wants_any_longer(server: FakeServer, opened: Connect) -> None:
    """Ctrl-C does not wait for an answer that may come in a minute."""
    server.fake.delay = 4
    runner, failed = opened(), []

    def wait() -> None:
        with pytest.raises(ServerUnavailable, match="given up"):
            run(runner)
        failed.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not server.fake.under_way:
        time.sleep(0.01)
    before = time.monotonic()
    runner.abandon()
    waiting.join(20)
    assert failed and time.monotonic() - before < 2
    server.fake.delay = 0
    assert run(runner).shape[1] == 1  # the next is answered


def test_the_largest_batch_of_a_server(server: FakeServer, opened: Connect) -> None:
    server.fake.max_batch = 8
    predictor = Predictor.of(opened())
    predictor.refuse_batch(8)
    with pytest.raises(UsageError, match="`batch` 9: the server takes 8 at most"):
        predictor.refuse_batch(9)


@pytest.mark.parametrize(("address", "warned"), [("http://192.0.2.1:1", True), ("http://127.0.0.1:1", False)])
def test_a_token_in_clear_is_warned_of(address: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    own = client.Client(Connection(address, token="secret"))
    assert ("without encryption" in caplog.text) == warned and "secret" not in caplog.text
    long = f"{'x' * 390} secret"  # what is cut off must not show a part of it
    assert "secre" not in own.said(Exception(long))
    own.close()


def test_a_server_that_stays_busy(server: FakeServer, opened: Connect) -> None:
    runner, server.fake.busy = opened(retry_for=0.3), 10**6
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=f"{server.address}: .*busy, and did not come back within 0.3 s"):
        run(runner)
    assert 0.2 < time.monotonic() - began < 2 and server.fake.asked["infer"] > 3


def test_it_can_be_told_not_to_try_again(server: FakeServer, opened: Connect) -> None:
    runner, server.fake.busy = opened(retry_for=0.0), 1
    with pytest.raises(ServerUnavailable, match=r"busy$"):
        run(runner)
    assert server.fake.asked["infer"] == 1


def test_a_server_that_is_away(server: FakeServer, opened: Connect) -> None:
    runner, patient = opened(retry_for=0.3), opened()
    server.stop()
    with pytest.raises(ServerUnavailable, match=r"(?i)connection refused.*`retry_for`"):
        run(runner)
    with pytest.raises(ServerUnavailable, match=r"(?i)connection refused"):
        opened(retry_for=0.1)
    threading.Timer(0.2, server.start).start()
    assert np.array_equal(run(opened()), BRIGHTNESS)  # one that starts later than its client
    assert np.array_equal(run(patient), BRIGHTNESS)


def test_a_server_that_restarts_in_the_middle(server: FakeServer, opened: Connect) -> None:
    """Requests under way break, connections kept alive go stale, new ones are refused: every answer is right."""
    runner, server.fake.delay = opened(retry_for=20.0), 0.02
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(run, runner) for _ in range(120)]
        for _ in range(2):
            before = server.fake.asked["infer"]
            while server.fake.asked["infer"] < before + 20:
                time.sleep(0.005)
            server.stop()
            time.sleep(0.3)
            server.start()
        assert all(np.array_equal(each.result(), BRIGHTNESS) for each in found)
    assert server.fake.asked["infer"] > 120


def test_a_deadline(server: FakeServer, opened: Connect) -> None:
    runner, server.fake.delay = opened(deadline=0.3, retry_for=60.0), 1.0
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"no answer within 0.3 s \(`deadline`\)"):
        run(runner)
    assert time.monotonic() - began < 0.9 and server.fake.asked["infer"] == 1  # it is not sent again


def test_a_refusal_is_the_inputs_and_not_repeated(server: FakeServer, opened: Connect) -> None:
    runner, server.fake.refused = opened(), "too odd\x1b[2J for http://me:secret@host\nand more"
    with pytest.raises(InputError) as raised:
        run(runner)
    assert "too odd\\x1b[2J for http://me:***@host" in str(raised.value) and "\n" not in str(raised.value)
    server.fake.refused, server.fake.broken = "", "out of memory"
    with pytest.raises(ArtifactError, match=f"^{server.address}: .*: out of memory"):
        run(runner)
    assert server.fake.asked["infer"] == 2


DAMAGE = {
    "dtype": "map is FP16, not FP32", "type": "of type 'FP9'", "short": "has 248 bytes; .* needs 252",
    "rank": r"has shape \[1, 9, 7\]", "batch": r"has shape \[2, 1, 9, 7\], not \[1, 1,", "huge": "more than 256 MiB",
    "missing": "output 'map' is missing", "surplus": "bytes too many|2 binary tensors for 1",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_answer(server: FakeServer, opened: Connect, damage: str) -> None:
    runner, server.fake.damage = opened(), damage
    with pytest.raises(ArtifactError, match=DAMAGE[damage]):
        run(runner)
    assert server.fake.asked["infer"] == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    {"garbage": "as a KServe v2 server does", "json": "in JSON numbers", "header": "longer than itself"}.items(),
)
def test_a_wrong_answer_by_http(damage: str, said: str) -> None:
    with FakeServer("http") as server, connect(Connection(server.address + "/focus")) as runner:
        server.fake.damage = damage
        with pytest.raises(ArtifactError, match=said):
            run(runner)


def test_an_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http, "LARGEST", 100)
    with FakeServer("http") as server:
        runner = connect(Connection(server.address + "/focus"))
        with runner, pytest.raises(ArtifactError, match="larger than"):
            run(runner)


def test_a_token(server: FakeServer, opened: Connect) -> None:
    server.fake.token = "right-1"
    for given in (None, "wrong-1"):
        with pytest.raises(ServerUnavailable, match="`token_file`") as raised:
            opened(token=given, retry_for=60.0)
        assert "wrong-1" not in str(raised.value)
    assert np.array_equal(run(opened(token="right-1", headers={"X-Team": "one"})), BRIGHTNESS)
    assert server.fake.headers["x-team"] == "one"
    assert "right-1" not in repr(Connection(server.address, token="right-1"))
    with pytest.raises(UsageError, match="one line"):
        Connection(server.address, token="a\r\nx: y")


def test_a_server_that_sends_us_elsewhere() -> None:
    """Neither the token nor a photograph goes to a server that nobody named."""
    with FakeServer("http") as server, FakeServer("http") as other:
        server.fake.redirect = other.address
        with pytest.raises(ServerUnavailable, match=f"it redirects to {other.address}"):
            connect(Connection(server.address + "/focus", token="s3cret"))
        assert not other.fake.headers


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs openssl to make certificates")
    folder = tmp_path_factory.mktemp("certificates")
    fresh = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def make(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    make("req", "-x509", *fresh, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=a test's authority")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        make("req", *fresh, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        make("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
             "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "client.pem").read_bytes() + (folder / "client.key").read_bytes())
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key", both)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_tls(scheme: str, certificates: Certificates) -> None:
    ca, own = certificates.ca, certificates.client
    with FakeServer(scheme, certificates) as server:
        address = server.address + "/focus"
        with connect(Connection(address, ca=ca)) as runner:
            assert np.array_equal(run(runner), BRIGHTNESS)
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"(?i)certificate.verify.failed.*`ca`"):
            connect(Connection(address, retry_for=60))  # its authority is nobody's
        assert time.monotonic() - began < 5
        with pytest.raises(InputError, match="holds no certificates"):
            connect(Connection(address, ca=ca.with_name("names")))
    with FakeServer(scheme, certificates, mutual=True) as server:
        address = server.address + "/focus"
        alone, key = ca.with_name("client.pem"), ca.with_name("client.key")
        for given in ({"certificate": own}, {"certificate": alone, "key": key}):
            with connect(Connection(address, ca=ca, **given)) as runner:
                assert np.array_equal(run(runner), BRIGHTNESS)
        with pytest.raises(ServerUnavailable):
            connect(Connection(address, ca=ca, retry_for=0.1))
        for wrong in ({"certificate": alone}, {"certificate": alone, "key": certificates.key}):
            with pytest.raises(InputError, match="must hold a certificate"):
                connect(Connection(address, ca=ca, **wrong))
    with FakeServer(scheme.removesuffix("s")) as server, pytest.raises(ServerUnavailable, match="a TLS address"):
        connect(Connection(server.address.replace(":", "s:", 1), ca=ca, retry_for=60))


def test_the_other_protocols_port() -> None:
    with FakeServer("http") as server, pytest.raises(ServerUnavailable, match="an HTTP address"):
        connect(Connection(server.address.replace("http", "grpc"), retry_for=60))
    with FakeServer("grpc") as server, pytest.raises(R2mrfError, match=r"a gRPC address|did not come back"):
        connect(Connection(server.address.replace("grpc", "http"), retry_for=0.2))


def test_the_only_model_that_makes_maps(server: FakeServer, opened: Connect) -> None:
    server.fake.models["words"] = ([{"name": "text", "datatype": "INT64", "shape": [-1]}], MAP)
    assert opened("").model == "focus"
    server.fake.models["second"] = (IMAGE, MAP)
    with pytest.raises(UsageError, match=r"several models make a map .* choose from focus, second"):
        opened("")
    server.fake.models = {"focus_jpeg": server.fake.models["focus_jpeg"]}
    with pytest.raises(UsageError, match=r"no model makes a map .* choose from focus_jpeg"):
        opened("")
    server.fake.models = {}
    with pytest.raises(UsageError, match="lists no models"):
        opened("")


def test_models_and_versions_that_are_not_there(opened: Connect) -> None:
    with pytest.raises(UsageError, match="no model fokus: did you mean 'focus'"):
        opened("/fokus")
    with pytest.raises(UsageError, match="no model focus in version 7"):
        opened("/focus/versions/7")
    assert np.array_equal(run(opened("/focus/versions/1")), BRIGHTNESS)


def test_the_contract_of_a_server(server: FakeServer, opened: Connect) -> None:
    server.fake.contract = contract().embedded()
    runner = opened()
    assert runner.contract == contract() and runner.identity == "c0ffee focus 1"
    assert Predictor.of(runner, runner.contract).largest == (24, 24)
    other = contract(checkpoint_sha256="other")
    given = Connection(server.address + "/focus")
    with connect(given, contract=other) as runner:  # the server knows better
        assert runner.contract == contract()
    server.fake.contract = ""
    with connect(given, contract=other) as runner:
        assert runner.contract == other
    with connect(given) as runner:
        assert runner.contract is None


def test_the_contract_in_metadata() -> None:
    """OpenVINO Model Server tells what is in the `rt_info` of our file."""
    with FakeServer("http") as server:
        server.fake.rt_info = contract().embedded()
        with connect(Connection(server.address + "/focus")) as runner:
            assert runner.contract == contract()


def test_what_the_contract_says_of_sizes(server: FakeServer, opened: Connect) -> None:
    fixed = [TensorSpec(name="image", dtype="uint8", shape=[1, 16, 24, 3], layout="NHWC")]
    server.fake.contract = contract(inputs=fixed, profiles={}).embedded()
    assert opened().inputs[0].shape == ["image_0", 16, 24, 3]  # the server may batch
    for damaged in ('{"kind": 3}', "no JSON", contract(inputs=[fixed[0].model_copy(update={"dtype": "float32"})],
                                                     profiles={}).embedded()):  # fmt: skip
        server.fake.contract = damaged
        with pytest.raises(ArtifactError, match="contract"):
            opened()


@pytest.mark.parametrize(
    "inputs",
    [
        [{"name": "image", "datatype": "UINT8", "shape": [1, 1 << 20, 1 << 20, 3]}],
        [{"name": "image", "datatype": "IMAGE", "shape": [1]}],
        [{"name": "image", "datatype": "UINT8", "shape": [-2]}],
        [{"name": "image", "datatype": "UINT8", "shape": [1] * 9}],
        [{"name": "", "datatype": "UINT8", "shape": [1]}],
        IMAGE + IMAGE,
        IMAGE * 300,
    ],
)
def test_metadata_that_nobody_should_send(server: FakeServer, opened: Connect, inputs: list[dict[str, object]]) -> None:
    server.fake.models["focus"] = (inputs, MAP)
    with pytest.raises(ArtifactError, match=f"^focus at {server.address}: ") as raised:
        opened()
    assert len(str(raised.value)) < 500


def test_statistics(server: FakeServer, opened: Connect) -> None:
    runner = opened()
    (before,) = runner.statistics()
    for _ in range(3):
        run(runner)
    (after,) = runner.statistics()
    found = after.since(before)
    assert (found.requests, found.inferences, found.executions) == (3, 12, 3)
    assert (found.batch, found.queue_ms, found.compute_ms) == (4, 2, 6)
    assert before.since(after) == before  # a server that was restarted counts anew
    assert [s.model for s in opened("/focus_jpeg").statistics()] == ["focus_jpeg", "focus"]
    server.fake.statistics = False
    assert runner.statistics() == []


def test_what_a_server_may_keep_to_itself(
    server: FakeServer, opened: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton's restricted protocols: gRPC calls them unavailable, which is not waited for."""
    server.fake.contract = contract().embedded()
    server.fake.restricted = ("config", "stats", "index")
    began = time.monotonic()
    runner = opened(retry_for=60.0)
    assert np.array_equal(run(runner), BRIGHTNESS) and runner.contract is None and runner.statistics() == []
    with pytest.raises(UsageError, match="lists no models"):
        opened("", retry_for=60.0)
    assert time.monotonic() - began < 5
    with connect(Connection(server.address + "/focus"), photographs=True):
        assert "has no contract that says how photographs are fitted" in caplog.text
    server.fake.restricted = ("model",)
    with pytest.raises(ServerUnavailable, match="protocol is restricted"):
        opened()


@pytest.mark.parametrize(("scheme", "package"), [("http", "aiohttp"), ("grpc", "tritonclient.grpc")])
def test_without_the_extra(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install .*\[serve\]"):
        connect(Connection(f"{scheme}://127.0.0.1:1/focus"))


def test_models_that_take_no_photograph(server: FakeServer) -> None:
    server.fake.models["floats"] = ([{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8]}], MAP)
    for name, said in (("focus_jpeg", "makes no map of one photograph"), ("floats", "no contract that says how")):
        with pytest.raises(InputError, match=said):
            connect(Connection(f"{server.address}/{name}"), photographs=True)
    with connect(Connection(f"{server.address}/focus_jpeg")) as runner:
        assert runner.outputs[0].dtype == "object"
    with pytest.raises(UsageError, match="`threads`"):
        connect(Connection(server.address), OpenOptions(threads=2))


def test_bytes_of_a_file(opened: Connect) -> None:
    runner = opened("/focus_jpeg")
    found = runner.run({"file": np.array([b"a file's bytes"], object)})
    assert found["png"].tolist() == [b"PNG"] and found["map"].shape == (2, 3) and FILE[0]["name"] == "file"


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", "bfloat16"])
def test_tensors_are_the_arrays(dtype: str) -> None:
    import ml_dtypes

    values = np.array([[0, 1], [2, -3]], np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensor = tensors.encode("x", values)
    back = tensors.decode(tensor)
    assert back.dtype == values.dtype and np.array_equal(back, values) and len(tensor.raw) == values.nbytes
    with pytest.raises(InputError, match="complex64"):
        tensors.encode("x", values.astype(np.float32).astype(np.complex64))


def test_texts_that_end_too_early() -> None:
    tensor = tensors.encode("x", np.array([[b"one", b""], [b"two", b"three"]], object))
    assert tensors.decode(tensor).tolist() == [[b"one", b""], [b"two", b"three"]]
    for size in range(len(tensor.raw)):
        with pytest.raises(ArtifactError, match=r"x: its bytes end too early|x has . elements"):
            tensors.decode(tensors.Tensor("x", "BYTES", (2, 2), tensor.raw[:size]))


def test_answers_damaged_anywhere() -> None:
    """Whatever the bytes of an answer are, it is read or refused."""
    sent = [tensors.encode("map", np.ones((1, 1, 4, 5), np.float32)), tensors.encode("png", np.array([b"abc"], object))]
    described = [
        {"name": x.name, "datatype": x.datatype, "shape": x.shape, "parameters": {"binary_data_size": len(x.raw)}}
        for x in sent
    ]
    head = json.dumps({"outputs": described}).encode()
    good, chance, refused = b"".join([head, *(x.raw for x in sent)]), random.Random(0), 0
    assert [np.array_equal(tensors.decode(x), tensors.decode(y)) for x, y in zip(
        over_http._tensors(good, str(len(head))), sent, strict=True)] == [True, True]  # fmt: skip
    for _ in range(3000):
        damaged, at = bytearray(good), chance.randrange(len(head))
        damaged[at : at + chance.randrange(6)] = chance.choice(
            [b"[", b"}", b"[]", b"-1", b"null", b"1e9", b'"', b"\xff"]
        )
        length = chance.choice([str(len(head) + len(damaged) - len(good)), str(len(head)), "-5", "²", "9" * 30, None])
        try:
            for tensor in over_http._tensors(bytes(damaged), length):
                tensors.decode(tensor)
        except ArtifactError:
            refused += 1
    assert refused > 2000


def pictures(folder: Path) -> list[Path]:
    found = [folder / f"{level}.png" for level in (10, 100, 200)]
    for file in found:
        photograph(file, int(file.stem), (64, 48))
    return found


def predicted(predictor: Predictor, files: list[Path], output: Path, **options: object) -> dict[str, bytes]:
    for prediction in predict(predictor, files, output, Outputs.of(["map", "overlay", "float"]), **options):  # type: ignore[arg-type]
        assert prediction.error is None, prediction.error
    return {p.name: p.read_bytes() for p in sorted(output.iterdir()) if p.suffix in (".png", ".jpg", ".npy")}


def test_files_are_those_of_the_model_here(server: FakeServer, tmp_path: Path) -> None:
    files = pictures(tmp_path / "in")
    with connect(Connection(server.address), photographs=True) as runner:
        served = predicted(Predictor.of(runner, runner.contract), files, tmp_path / "served")
    local = predicted(Predictor(BrightnessRunner(), NEUTRAL), files, tmp_path / "local")
    assert served == local and len(served) == 9


@pytest.mark.parametrize("tile", [None, 0.25])
def test_a_server_that_goes_away_ends_the_run_which_goes_on_later(
    server: FakeServer, tmp_path: Path, tile: float | None
) -> None:
    files = pictures(tmp_path / "in")
    given = Connection(server.address, retry_for=0.2)
    with connect(given, photographs=True) as runner:
        stream = predict(Predictor.of(runner), files, tmp_path / "out", Outputs.of(["map"]), tile=tile)
        server.stop()
        with pytest.raises(ServerUnavailable, match="did not come back"):
            list(stream)
    assert not list((tmp_path / "out").glob("*.png"))
    server.start()
    with connect(given, photographs=True) as runner:
        done = list(predict(Predictor.of(runner), files, tmp_path / "out", Outputs.of(["map"]), tile=tile, resume=True))
    assert [p.error for p in done] == [None] * 3
