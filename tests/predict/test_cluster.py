"""What a run over Ray makes: `predict`'s rows, each once, whatever is killed meanwhile."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import cli, images, sample_photographs
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, UsageError
from r2mrf_deploy.predict import Outputs, Source, Sources, cluster, parts, predict, ray_cluster, stores, workers
from r2mrf_deploy.predict.journal import Journal
from r2mrf_deploy.predict.parts import MOST_DEATHS, Parts
from r2mrf_deploy.predict.summaries import COLUMNS
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions
from tests.predict.conftest import Brightness, photograph

RUN = """
import sys
from r2mrf_deploy.predict import parts
parts.SIZE = {size}
from r2mrf_deploy.cli import main
sys.exit(main())
"""
"""The command line, with parts so small that a test has many of them."""
PATIENCE = 600
"""Seconds that a test waits for what takes some on a machine with nothing else to do."""
Row = dict[str, Any]


def command(*arguments: object, size: int = parts.SIZE) -> list[str]:
    return [sys.executable, "-c", RUN.format(size=size), "predict", *map(str, arguments)]


def done(*arguments: object, size: int = parts.SIZE, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, size=size),
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        env=os.environ | environment,
    )


def rows(output: Path) -> list[Row]:
    from pyarrow import dataset

    return dataset.dataset(output / "parts").to_table().to_pylist()


def predicted(artifact: Path, given: list[Path | str], output: Path, save: tuple[str, ...] = ("map",)) -> list[Row]:
    """The rows that `predict` would make: its scores, and the bytes of its files."""
    with Predictor.open(artifact, many=True) as predictor:
        sources = Sources(given, output=output, recursive=True)
        return [
            dict.fromkeys((*COLUMNS, *save)) | {k: v for k, v in p.to_dict().items() if k != "outputs"}
            | {kind: file.read_bytes() for kind, file in p.outputs.items()}
            for p in predict(predictor, sources, output, Outputs(save))
        ]  # fmt: skip


def album(folder: Path, count: int) -> Path:
    """Photographs of several sizes, and of every sort that is read in its own way or not at all."""
    samples, rng = sample_photographs.sharp(), np.random.default_rng(0)
    (folder / "deep").mkdir(parents=True)
    for number in range(count):
        source = samples[number % len(samples)]
        height, width = 60 + number % 7, 80 + number % 5
        top, left = rng.integers(0, source.shape[0] - height), rng.integers(0, source.shape[1] - width)
        place = folder / ("deep" if number % 3 else "") / f"{number:05}.jpg"
        place.write_bytes(images.jpeg(source[top : top + height, left : left + width]))
    whole = images.jpeg(images.resize(samples[0], (90, 120)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(whole)) as upright:
        upright.save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(images.grey(samples[1][:60, :90, 0] / np.float32(255), np.uint16)).save(
        folder / "deep" / "16 bit.png"
    )
    photograph(folder / "one pixel.png", 90, (1, 1))
    photograph(folder / "strip.png", 120, (301, 3))
    frames = [Image.new("L", (30, 20), level) for level in (10, 240)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    return folder


def workers_of(driver: int, called: str) -> Iterator[int]:
    """The processes of a run whose title begins so."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
    for number, title in titles.items():
        above: int | None = number
        while above is not None and above != driver:
            above = parents.get(above)
        if above == driver and title.startswith(called):
            yield number


def until(what: Callable[[], Any], run: subprocess.Popen[str]) -> Any:
    """Wait for something while a run goes on."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := what():
            return found
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.artifact
@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
@pytest.mark.parametrize(("count", "size"), [(200, 5), pytest.param(1993, 16, marks=pytest.mark.slow)])
def test_killed_and_resumed_every_row_is_there_once_and_as_predict_makes_it(
    tmp_path: Path, exported: Path, count: int, size: int
) -> None:
    folder, output = album(tmp_path / "photographs", count), tmp_path / "out"
    given = (exported, folder, "-r", "--ray", "--actors", 2, "-o", output)
    files = (output / "parts").glob
    run = subprocess.Popen(
        command(*given, size=size), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until(lambda: len(list(files("part-*"))) >= 3, run)
        victims = [until(lambda: list(workers_of(run.pid, "ray::MapWorker")), run)[0]]
        os.kill(victims[0], signal.SIGKILL)
        victims += [until(lambda: list(workers_of(run.pid, "ray::MapBatches(")), run)[0]]
        os.kill(victims[1], signal.SIGKILL)
        there = len(list(files("part-*")))
        until(lambda: len(list(files("part-*"))) >= there + 3, run)  # the run has survived it
        assert not set(victims) & set(workers_of(run.pid, "ray::"))
    finally:
        run.kill()
        run.communicate()
    before = {file: file.stat().st_mtime_ns for file in files("part-*")}
    assert size * (len(before) + 1) < count, "it was over before it was killed"

    again = done(*given, size=size)
    assert again.returncode == 2 and "--resume goes on" in again.stderr
    if count > 1000:  # the quick one has no time to start once more
        other = done(*given, "--resume", "--flip", size=size)
        assert other.returncode == 2 and "flip was False and is True" in other.stderr
    resumed = done(*given, "--resume", "--json", size=size)
    assert (resumed.returncode, len(resumed.stderr.splitlines())) == (2, 1) and "2 of" in resumed.stderr, resumed.stderr
    summary = json.loads(resumed.stdout)
    failed = {file for file in before if any(row["error"] for row in rows_of(file))}
    remade = [file for file, then in before.items() if file.stat().st_mtime_ns != then and file not in failed]
    assert len(remade) <= 2, (
        "but for parts of which workers that outlived the driver had been told, nothing is made again"
    )

    expected = predicted(exported, [folder], tmp_path / "plain")
    found = rows(output)
    assert len(found) == len(expected) == count + 7 == summary["photographs"]
    assert sorted(found, key=by_source) == sorted(expected, key=by_source)
    assert sum(row["error"] is not None for row in found) == 2 and len({row["map"] for row in found}) > count / 2
    assert sorted(p.name for p in output.iterdir()) == ["parts", "photographs.jsonl", "predictions.jsonl"]


def by_source(row: Row) -> str:
    return row["source"]


def rows_of(file: Path) -> list[Row]:
    from pyarrow import parquet

    return parquet.read_table(file).to_pylist()


POISON = """
import os, PIL.Image
_open = PIL.Image.open
def _deadly(fp, *more, **options):
    if "poison" in str(fp):
        os.kill(os.getpid(), 9)
    return _open(fp, *more, **options)
PIL.Image.open = _deadly
"""


@pytest.mark.artifact
def test_a_photograph_that_kills_its_worker_becomes_a_row_and_a_store_is_read_by_the_workers(
    tmp_path: Path, exported: Path
) -> None:
    """Every kind of output is a column of the bytes of its file."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    folder, kinds = tmp_path / "photographs", ("map", "map16", "float", "overlay", "contour", "thumbnail")
    for number in range(6):
        photograph(folder / f"{number}.png", 30 * number, (40 + number, 30))
    # so large that its decoder reduces it
    (folder / "long.jpg").write_bytes(images.jpeg(images.resize(sample_photographs.sharp()[0][:4], (30, 4200))))
    packed = tmp_path / "more.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(photograph(tmp_path / "a.jpg", 200), "a.jpg")
        archive.writestr("broken.jpg", b"no picture")
    given = [folder, f"zip://*.jpg::{packed}"]
    expected = predicted(exported, given, tmp_path / "plain", kinds)
    photograph(folder / "3 poison.png")
    run = done(exported, *given, "--ray", "-o", tmp_path / "out", "--save", ",".join(kinds), PYTHONPATH=str(tmp_path))
    assert run.returncode == 2 and "2 of 10 photographs failed" in run.stderr, run.stderr
    found = {row["source"]: row for row in rows(tmp_path / "out")}
    deadly = found.pop(str(folder / "3 poison.png"))
    assert f"{MOST_DEATHS} workers died while they read it" in deadly["error"] and deadly["map"] is None, run.stderr
    assert found == {row["source"]: row for row in expected} and len(found) == 9
    assert run.stdout == f"{tmp_path / 'out' / 'parts'}: the rows of 10 photographs\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--overlap", "0"], "--overlap does not go with --ray"),
        (["--ray-address", "", "--smooth", "0"], "--smooth does not go with --ray"),
        (["https://me:secret@host/a.jpg"], "https://me:***@host/a.jpg: with --ray, whose list"),
        (["--tile"], "--tile does not go with --ray"),
        (["--roi", "boxes.csv"], "--roi does not go with --ray"),
        (["--report", "a.html"], "--report does not go with --ray"),
        (["--scores-format", "csv"], "--scores-format does not go with --ray"),
        (["--no-cache"], "does not go with --ray"),
        (["--save", "coco"], "--save coco is one file"),
        (["-"], "not the list on standard input"),
        (["clip.mp4"], "not the film clip.mp4"),
        (["-o", "s3://bucket/out"], "--output is an address"),
        (["-o", "photographs"], "would lie among the photographs"),
        (["--ray-address", "ray://head:10001"], "run this on a machine of the cluster"),
        (["--ray-address", "127.0.0.1:9"], "no Ray cluster can be reached at 127.0.0.1:9"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph(Path("photographs/a.png"))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["predict", "r2mrf-edge", "photographs", "--ray", *arguments]) == 2
    printed = capsys.readouterr().err
    assert said in printed and "secret" not in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_actors_need_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "r2mrf-edge", str(photograph(tmp_path / "a.png")), "--actors", "2"]) == 2
    assert "--actors is for --ray" in capsys.readouterr().err


def test_the_list_is_cut_into_parts_and_holds_no_password(tmp_path: Path) -> None:
    """Names that JSON or UTF-8 cannot hold as they are come back as they were."""

    class Store:
        password = "secret"

    store = Store()
    given = [Source(f"/a/{n}\udcff\n.jpg", "") for n in range(2 * parts.SIZE)]
    given += [Source("sftp://me:***@host/b.jpg", "", stores.Fetch(store, "/b.jpg", "sftp://me:***@host/b.jpg"))]
    given += [Source("/c", "", error="/c cannot be searched")]
    found = Parts(tmp_path)
    found.write_list(given, [object(), store], lambda _: None)
    assert [(part.number, part.count) for part in found] == [(0, parts.SIZE), (1, parts.SIZE), (2, 2)]
    back = [source for part in found for source in found.sources(part.start, part.length, [None, store])]
    assert back == given and "secret" not in found.listing.read_text()
    last = list(found)[-1]
    (gone, _) = found.sources(last.start, last.length, [None, None])
    assert gone.error == "sftp://me:***@host/b.jpg: its store cannot be opened any more"


def test_a_part_is_done_when_its_file_is_there_and_nothing_in_it_failed(tmp_path: Path) -> None:
    found = Parts(tmp_path)
    row = dict.fromkeys(COLUMNS) | {"source": "a", "error": None}
    assert found.write(0, iter([row]), ()) == (0, "") and found.done() == {0}
    assert found.write(1, iter([row, row | {"error": "why"}]), ()) == (1, "why") and found.done() == {0}

    def broken() -> Iterator[Row]:
        yield row
        raise ValueError("the worker fails")

    with pytest.raises(ValueError, match="fails"):
        found.write(2, broken(), ())
    assert found.done() == {0} and not found.file(2).exists()
    assert found.write(1, iter([row]), ()) == (0, "") and found.done() == {0, 1}
    found.file(2).touch()  # what a power failure may leave
    for name in ("part-0000003.parquet.bak", "part-3.parquet", "notes"):
        found.file(2).with_name(name).write_text("no part")
    assert found.there() == found.done() == {0, 1}
    found.file(2).write_bytes(found.file(1).read_bytes()[:-9])
    assert found.there() == {0, 1, 2} and found.done() == {0, 1}


def test_of_two_workers_at_one_part_the_last_says_whether_it_failed(tmp_path: Path) -> None:
    """Whatever was written, and noted, in between."""
    found = Parts(tmp_path)
    row = dict.fromkeys(COLUMNS) | {"source": "a", "error": None}

    def overtaken(error: str | None, by: str | None) -> Iterator[Row]:
        yield row | {"error": error}
        found.write(0, iter([row | {"error": by}]), ())

    found.write(0, overtaken("why", None), ())
    assert found.done() == set()
    found.write(0, overtaken(None, "why"), ())
    assert found.done() == {0}


def test_a_worker_that_outlives_its_run_writes_nothing_into_the_next(tmp_path: Path) -> None:
    """Nor is what it wrote before taken for a part of it."""
    row = dict.fromkeys(COLUMNS) | {"source": "a", "error": None}
    runs = []
    for _ in range(2):
        Parts(tmp_path).write_list([Source("a", "")], (), lambda _: None)
        runs.append(Parts(tmp_path).opened())
        if len(runs) == 1:
            runs[0].write(0, iter([row]), ())
            assert runs[0].done() == {0}
    assert runs[1].done() == set()
    with pytest.raises(ArtifactError, match="holds another run by now"):
        runs[0].write(1, iter([row]), ())
    assert runs[1].there() == {0}
    runs[1].listing.unlink()
    with pytest.raises(ArtifactError, match=r"or its photographs\.jsonl is gone"):
        runs[1].write(0, iter([row]), ())


def test_the_folder_of_a_run_is_not_taken_by_another(tmp_path: Path, brightness: Brightness) -> None:
    """Of either kind; and it is looked at under the lock, in case that two began at once."""
    output = tmp_path / "out"
    image = photograph(tmp_path / "a.png")
    found = Parts(output)
    found.write_list([Source(str(image), "")], (), lambda _: None)
    (output / "predictions.jsonl").write_text("as it was")
    for how in (False, True):
        with pytest.raises(UsageError, match="holds a run of `ray`"):
            list(predict(brightness(), [image], output, resume=how))
    with pytest.raises(UsageError, match="holds a run of `ray`"):
        Journal(output, {"ray": parts.SIZE})
    assert (output / "predictions.jsonl").read_text() == "as it was"
    assert sorted(p.name for p in output.iterdir()) == ["photographs.jsonl", "predictions.jsonl"]
    found.listing.write_text('{"source": "a.jpg"}\n')
    with pytest.raises(UsageError, match=r"photographs\.jsonl is not the list of a run"):
        cluster.predict_on_ray(Path("none.onnx"), [image], output, resume=True)
    found.listing.unlink()
    found.write(0, iter([dict.fromkeys(COLUMNS)]), ())
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"whose photographs\.jsonl is gone"):
            cluster.predict_on_ray(Path("none.onnx"), [image], output, resume=resume)


def test_a_run_whose_files_went_missing_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Parts(tmp_path)
    found.write_list([Source("a", ""), Source("b", "")], (), lambda _: None)
    monkeypatch.setattr(cluster, "SEEN", 0)
    monkeypatch.setattr(cluster, "_round", lambda *_: iter([{"number": 0, "failed": 0, "error": ""}]))
    job: Any = SimpleNamespace(parts=found.opened())
    nothing: Any = None
    with pytest.raises(RuntimeUnavailable, match=r"1 file of .*parts went missing; `resume` goes on"):
        cluster._run(job, nothing, nothing, lambda _: None)


def test_what_was_given_is_compared_and_stays_short() -> None:
    few, many, others = (
        cluster._places([f"{n}.jpg" for n in range(start, end)]) for start, end in ((0, 3), (0, 999), (1, 1000))
    )
    assert few == [str(Path.cwd() / f"{n}.jpg") for n in range(3)] and many != others and len(many) < 80
    assert "secret" not in cluster._places(["sftp://me:secret@host/a"])[0]


def test_an_address_that_cannot_be_opened_keeps_its_place() -> None:
    pytest.importorskip("fsspec")
    first, second = cluster._stores(["a.jpg", "nowhere://a/b.png", "memory://a"])
    assert first is None and second is not None


def test_a_local_run_is_known_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        assert ray_cluster.address_of(None) is ray_cluster.address_of("") is ray_cluster.address_of("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert ray_cluster.address_of(None) == "auto" and ray_cluster.address_of("local") is None


def test_what_a_worker_raised_is_said_in_one_line() -> None:
    import ray

    def raised(cause: Exception) -> str:
        cause.args = (f"{cause}\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change",)
        return str(ray_cluster._cause(ray.exceptions.RayTaskError("write", "Traceback\nlong", cause)))

    assert raised(ArtifactError("it is a folder")) == "it is a folder"
    assert (
        raised(ValueError("no such thing"))
        == "Ray's workers failed: no such thing; what is done stays, `resume` goes on"
    )


def test_more_threads_than_a_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for such a machine."""
    import ray

    nodes = [
        {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}
        for alive, cpus, gpus in ((1, 4, 1), (1, 8, 0), (0, 64, 1))
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    nothing: Any = None
    for total, said in (
        ({"CPU": 12}, "no machine of the cluster has more than 8 CPUs"),
        ({"CPU": 12, "GPU": 1}, "no machine with a GPU of the cluster has more than 4 CPUs"),
    ):
        monkeypatch.setattr(ray, "cluster_resources", lambda total=total: total)
        with pytest.raises(UsageError, match=f"`threads` 16: {said}"):
            cluster._opened(nothing, 16)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such locks")
def test_rays_folder_has_a_short_path_and_those_of_killed_runs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    with ray_cluster._folder() as folder:
        assert len(str(folder)) < 40
    assert not folder.exists()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ray_cluster, "_LONGEST_FOLDER", 1000)
    left, fresh = (tmp_path / f"r2-{os.getuid()}-{name}" for name in ("left", "fresh"))
    for each in (left, fresh):
        each.mkdir()
    os.utime(left, (0, 0))
    with ray_cluster._folder() as first:
        os.utime(first, (0, 0))
        with ray_cluster._folder() as second:
            assert first.exists() and second.exists() and fresh.exists() and not left.exists()


IMPORTED_BEFORE = """
import sys, ray
from pathlib import Path
from r2mrf_deploy.errors import R2mrfError
from r2mrf_deploy.predict import parts
from r2mrf_deploy.predict.cluster import predict_on_ray
parts.SIZE = 1
model, photographs, output = map(Path, sys.argv[1:])
(output / "parts" / "part-0000001.parquet").mkdir(parents=True)
try:
    predict_on_ray(model, [photographs], output, progress=lambda progress: print("progress"))
except R2mrfError as e:
    print(type(e).__name__, e)
"""


@pytest.mark.artifact
@pytest.mark.skipif(sys.platform == "win32", reason="it has no such paths")
def test_ray_may_be_imported_before_and_an_error_of_a_worker_is_one_line(tmp_path: Path, exported: Path) -> None:
    """In a temporary folder whose path is too long for sockets; what the caller prints meanwhile is printed."""
    output, long = tmp_path / "out", tmp_path / ("long" * 20)
    for name in ("a.png", "b.png"):
        photograph(tmp_path / "in" / name, 100, (30, 40))
    long.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", IMPORTED_BEFORE, exported, tmp_path / "in", output],
        capture_output=True, text=True, timeout=PATIENCE, env=os.environ | {"TMPDIR": str(long)},
    )  # fmt: skip
    *printed, last = run.stdout.splitlines()  # without what Ray adds
    assert last == f"ArtifactError cannot write {output}/parts/part-0000001.parquet: it is a folder", run
    assert printed and set(printed) == {"progress"}, run
    assert run.stderr == ""


def test_pictures_of_a_part_are_not_in_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr(parts, "ROW_GROUP", 250)
    content = (dict.fromkeys(COLUMNS) | {"source": str(n), "map": bytes([n]) * 100} for n in range(7))
    found = Parts(tmp_path)
    found.write(0, content, ("map",))
    assert parquet.ParquetFile(found.file(0)).num_row_groups == 3
    assert [row["map"] for row in rows_of(found.file(0))] == [bytes([n]) * 100 for n in range(7)]


def test_a_step_that_kills_is_given_up(tmp_path: Path) -> None:
    """What ends, with an error too, is no death; what one photograph dies of is not held against another."""
    attempts = Parts(tmp_path).attempts(4)
    with pytest.raises(UsageError), attempts.at("photograph 7"):
        raise UsageError("an error")
    for _ in range(MOST_DEATHS):
        with attempts.step("writing"):
            pass
        attempts._note("+the network\n")  # and then the worker dies
    assert attempts.deaths() == {"the network": MOST_DEATHS}
    with (
        pytest.raises(ArtifactError, match=r"3 workers died .* at the network of part-0000004"),
        attempts.step("the network"),
    ):
        raise AssertionError("it is not tried again")
    Parts(tmp_path).forget_attempts()
    assert attempts.deaths() == {}


def test_photographs_of_one_shape_are_computed_together(tmp_path: Path, brightness: Brightness) -> None:
    """Those in between do not part them; each keeps its place."""
    predictor = brightness(batch="n")
    sizes = [(40, 40), (40, 80), (40, 40), (40, 80), (40, 40)]
    sources = [Source(str(photograph(tmp_path / f"{n}.png", 20 * n, size)), "") for n, size in enumerate(sizes)]
    sources.insert(2, Source("gone.jpg", "", error="gone"))
    found = Parts(tmp_path)
    found.write_list(sources, (), lambda _: None)
    found = found.opened()
    opened = workers.Opened(
        predictor.runner.inputs, predictor.preprocess, predictor.profile, False, "brightness", False
    )
    job = workers.Job(found, Outputs(("map",)), (), opened)
    (part,) = found
    batch = workers.read({k: np.array([getattr(part, k)]) for k in ("number", "start", "length")}, job)
    network = object.__new__(workers.Network)  # without opening a file
    network._job, network._predictor, network._batch = job, predictor, 2
    workers.write(network(batch), job)
    assert sorted(predictor.runner.batches) == [1, 2, 2]  # type: ignore[attr-defined]
    table = rows_of(found.file(0))
    assert [row["source"] for row in table] == [source.address for source in sources] and table[2]["error"] == "gone"
    levels = [np.asarray(Image.open(io.BytesIO(row["map"]))) for row in table if row["map"]]
    assert [level.max() for level in levels] == [level.min() for level in levels] == [0, 20, 40, 60, 80]


@pytest.mark.artifact
def test_a_machine_without_the_artifact_opens_what_is_sent_to_it(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its manifest, and nothing of it stays; a file of the same name that is another is not taken for it."""
    import ray

    monkeypatch.setattr(ray, "put", lambda content: content)
    monkeypatch.setattr(ray, "get", lambda content: content)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = workers.Model.of(exported)
    with model.here() as path:
        assert path == exported
    elsewhere = workers.Model(tmp_path / "elsewhere" / exported.name, model.digests, model.content)
    elsewhere.path.parent.mkdir()
    elsewhere.path.write_bytes(b"another")
    opening = workers.Opening(elsewhere, None, False, OpenOptions(), False, None)
    image = images.resize(sample_photographs.sharp()[0], (90, 120))
    with opening.open() as predictor, Predictor.open(exported) as usual:
        np.testing.assert_array_equal(predictor(image), usual(image))
        assert list(tmp_path.iterdir()) == [elsewhere.path.parent]
