"""Measures how fast `r2mrf predict` goes through a folder of photographs, beside its network alone, and where the rest goes.

    python benchmarks/predict.py --json results/predict.json
    python benchmarks/predict.py ckpt.onnx ckpt-int8.onnx --runtime openvino --count 300

For each artifact these take turns in one process, so that other load on the machine affects all of them alike:

- the network alone, as `r2mrf bench` runs it: one inference after the other, on all cores;
- the network alone with as many streams as `predict` uses;
- photographs one after the other: read, compute, draw, pack, write, as `predict` did before it was a pipeline;
- the pipeline of `predict`, with its default outputs, and with maps only.

- a film, whose overlays become a film again.

The photographs are parts of those of scikit-image, with noise like a camera's; so is the film, of as many pixels. By default
the artifacts are the shipped weights in FP32 and INT8. Ratios are taken within a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tables import RUNTIMES, in_code, markdown

from r2mrf_deploy import drawing, environment, images, sample_photographs, weights
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import PrecisionOptions
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.fitting import as_input
from r2mrf_deploy.predict import Outputs, Sources, predict
from r2mrf_deploy.predict.film import film
from r2mrf_deploy.predict.regions import regions
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predictor import Predictor

SIZE = (427, 640)
LARGE = (4000, 6000)
NOISE = 3.0
"""Standard deviation, in levels of 255."""
WAYS = ("network", "network, streams", "one by one", "pipeline", "pipeline, maps only", "film")
HEAD = ["images per second", "network", "with streams", "one by one", "`predict`", "maps only", "film"]
TURN = 3.0
"""Seconds that the network alone runs in a turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", type=Path, help="artifacts (default: the shipped weights in FP32 and INT8)"
    )
    parser.add_argument(
        "--runtime", action="append", help="time them on each of these (default: onnxruntime, openvino)"
    )
    parser.add_argument("--count", type=int, default=300, help="photographs in the folder")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = given.models or shipped(folder)
        photographs = list(made(folder / "photographs", given.count, SIZE))
        clip = made_film(folder / "clip.mp4", max(30, given.count // 3))
        rows = []
        print(markdown(HEAD, []))
        for model in models:
            for runtime in given.runtime or ("onnxruntime", "openvino"):
                rows.append(throughput(model, runtime, photographs, clip, folder / "out", given.turns))
                print(line(rows[-1]))
        found: dict[str, Any] = {"count": given.count, "size": SIZE, "turns": given.turns, "rows": rows}
        for size in (SIZE, LARGE):
            (photograph,) = made(folder / f"parts-{size[0]}", 1, size)
            with Predictor.open(models[0]) as predictor:
                found[f"parts {size[1]}x{size[0]}"] = table = parts(photograph, predictor, given.turns)
            print(f"\n| one photograph of {size[1]}x{size[0]} | median | bytes |\n|---|---:|---:|")
            for part in table:
                print(f"| {part['name']} | {part['ms']:.1f} ms | {part['bytes'] or '-'} |")
    if given.json:
        given.json.write_text(json.dumps({"machine": environment.describe()} | found, indent=2) + "\n")


def shipped(folder: Path) -> list[Path]:
    """The shipped weights in FP32 and in INT8."""
    calibration = folder / "calibration"
    fp32 = export_artifact(weights.checkpoint(weights.DEFAULT), folder / f"{weights.DEFAULT}.onnx").artifact.path
    for number, photograph in enumerate(sample_photographs.sharp()):
        write_atomically(calibration / f"{number}.png", images.png(photograph))
    int8 = convert_artifact(fp32, folder / f"{fp32.stem}-int8.onnx", PrecisionOptions("int8", calibration))
    return [fp32, int8.path]


def made(folder: Path, count: int, size: tuple[int, int]) -> Iterator[Path]:
    """JPEG files of a size, each with another part of a photograph."""
    rng = np.random.default_rng(0)
    sources = sample_photographs.sharp()
    for number in range(count):
        source = sources[number % len(sources)]
        share = rng.uniform(0.7, 1)
        height, width = (int(share * side) for side in source.shape[:2])
        top, left = (
            int(rng.integers(0, side - part + 1)) for side, part in zip(source.shape, (height, width), strict=False)
        )
        photograph = images.resize(source[top : top + height, left : left + width], size)
        noise = rng.normal(0, NOISE, size).astype(np.float32)[:, :, None]
        yield write_atomically(
            folder / f"{number:04}.jpg", images.jpeg((photograph + noise).clip(0, 255).astype(np.uint8))
        )


def made_film(path: Path, frames: int) -> Path:
    """A film in H.264 of 640x426, in which a photograph moves."""
    import av

    photograph = images.resize(sample_photographs.sample("coffee"), (SIZE[0] + frames, SIZE[1] + frames))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0] // 2 * 2, "yuv420p"
        for n in range(frames):
            seen = np.ascontiguousarray(photograph[n : n + stream.height, n : n + stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(seen, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def throughput(
    model: Path, runtime: str, photographs: Sequence[Path], clip: Path, output: Path, turns: int
) -> dict[str, Any]:
    """Images per second of each way, and their ratios."""
    with ExitStack() as stack:
        single = stack.enter_context(Predictor.open(model, runtime))
        many = stack.enter_context(Predictor.open(model, runtime, many=True))
        some = photographs[: max(1, len(photographs) // 3)]
        image = images.read(photographs[0])

        def pipeline(*save: str) -> float:
            start = time.perf_counter()
            sources = Sources([photographs[0].parent], output=output)
            done = list(predict(many, sources, output, Outputs(save)))
            assert len(done) == len(photographs) and not any(p.error for p in done)
            return len(done) / (time.perf_counter() - start)

        ways: dict[str, Callable[[], float]] = {
            "network": lambda: alone(single, image, 1),
            "network, streams": lambda: alone(many, image, many.streams),
            "one by one": lambda: one_by_one(single, some, output),
            "pipeline": lambda: pipeline("map", "overlay"),
            "pipeline, maps only": lambda: pipeline("map"),
            "film": lambda: film(many, str(clip), output, "clip", streams=many.streams).frames_per_second,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns + 1):
            for name, way in ways.items():
                rate = way()
                if turn:  # the first is the warm-up
                    rates[name].append(rate)
        of = {
            f"{a} / {b}": statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))
            for a in ("pipeline", "pipeline, maps only", "film")
            for b in ("network", "network, streams", "one by one")
        }
        medians = {name: statistics.median(found) for name, found in rates.items()}
        return {"model": model.name, "runtime": runtime, "device": many.runner.device, "streams": many.streams,
                "input": many.size, "images_per_second": medians, "ratios": of, "turns": rates}  # fmt: skip


def alone(predictor: Predictor, image: np.ndarray, streams: int) -> float:
    """Inferences per second on one input."""
    spec = predictor.runner.inputs[0]
    feed = {spec.name: as_input(image, spec, predictor.preprocess, predictor.profile)}
    end = time.perf_counter() + TURN

    def stream() -> int:
        done = 0
        while time.perf_counter() < end:
            predictor.runner.run(feed)
            done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        done = sum(job.result() for job in [pool.submit(stream) for _ in range(streams)])
    return done / (time.perf_counter() - start)


def one_by_one(predictor: Predictor, photographs: Sequence[Path], output: Path) -> float:
    """Photographs per second, with maps and overlays as PNG files."""
    start = time.perf_counter()
    for source in photographs:
        image = images.read(source)
        focus = predictor(image)
        write_atomically(output / f"{source.stem}_overlay.png", images.png(drawing.overlay(image, focus)))
        write_atomically(output / f"{source.stem}_map.png", images.png(images.grey(focus)))
    return len(photographs) / (time.perf_counter() - start)


def parts(photograph: Path, predictor: Predictor, turns: int) -> list[dict[str, Any]]:
    """The parts of `predict`, one after the other, and their medians in milliseconds."""
    whole, decoded = images.read(photograph), images.load(photograph, max(2048, 2 * max(predictor.largest))).pixels
    fitted = predictor.fit(decoded)
    (focus,) = predictor.infer([fitted])
    size, small = whole.shape[:2], focus.at(focus.shape)
    level, found = images.grey(focus.at(size)), regions(small, size)
    drawn = drawing.overlay(decoded, focus.at(decoded.shape[:2]))
    steps: dict[str, Callable[[], Any]] = {
        "read it whole": lambda: images.read(photograph),
        "read it as predict does": lambda: images.load(photograph, max(2048, 2 * max(predictor.largest))),
        "fit it into the input": lambda: predictor.fit(decoded),
        "the network": lambda: predictor.infer([fitted]),
        "scores and regions": lambda: Scores.of(small, size, None, regions(small, size)),
        "scores of known regions": lambda: Scores.of(small, size, None, found),
        "enlarge the map": lambda: images.grey(focus.at(size)),
        "pack the map as PNG": lambda: images.png(level),
        "draw the overlay": lambda: drawing.overlay(decoded, focus.at(decoded.shape[:2])),
        "pack the overlay as JPEG": lambda: images.jpeg(drawn),
        "pack the overlay as PNG": lambda: images.png(drawn),
        "write a file": lambda: write_atomically(photograph.with_suffix(".bin"), b"x" * 30_000),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    sizes: dict[str, int | None] = {}
    for _ in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            result = step()
            times[name].append(1e3 * (time.perf_counter() - start))
            sizes[name] = len(result) if isinstance(result, bytes) else None
    return [{"name": name, "ms": statistics.median(times[name][1:]), "bytes": sizes[name]} for name in steps]


def line(row: dict[str, Any]) -> str:
    return f"| {' | '.join(_cells(row))} |"


def table(found: dict[str, Any]) -> str:
    """Images per second, and in brackets the share of the network alone, and of it with streams."""
    return markdown(HEAD, map(_cells, found["rows"]))


def _cells(row: dict[str, Any]) -> list[str]:
    model = row["model"].removesuffix(".onnx")
    title = f"{in_code(model.removesuffix('-int8'))} {'INT8' if model.endswith('-int8') else 'FP32'}"
    cells = [f"{title}, {RUNTIMES[row['runtime']]}"]
    for way in WAYS:
        shares = [
            f"{row['ratios'][name]:.2f}"
            for name in (f"{way} / network", f"{way} / network, streams")
            if name in row["ratios"]
        ]
        cells.append(f"{row['images_per_second'][way]:.1f}" + (f" ({', '.join(shares)})" if shares else ""))
    return cells


if __name__ == "__main__":
    main()
