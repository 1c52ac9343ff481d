"""Ranges: those of ONNX Runtime's calibrators to the bit, from one photograph in memory at a time."""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import HistogramCollector, create_calibrator

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import quantize, ranges
from r2mrf_deploy.graph.quantize import METHODS, Method
from r2mrf_deploy.progress import no_stdout

PEERS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader:
    """Photographs, as ONNX Runtime's calibrators read them."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def by_the_peer(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], method: Method, folder: Path) -> Any:
    file = folder / "model.onnx"
    onnx.save(model, file)
    with no_stdout():
        calibrator = create_calibrator(
            file,
            list(quantize.QUANTISED),
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=PEERS[method],
            extra_options={"symmetric": True},
        )
        for feed in feeds:
            calibrator.collect_data(Reader([feed]))
        return calibrator.compute_data()


def assert_same(found: Any, wanted: Any, names: list[str]) -> None:
    for name in names:
        ours, theirs = ([float(np.ravel(v)[0]) for v in one[name].range_value] for one in (found, wanted))
        assert ours == theirs, name


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_the_peer_s(exported: Path, tmp_path: Path, method: Method) -> None:
    """To the bit: the same kernels compute the values, and the same rules choose. No tensor has a number of values for
    which 99.999 % would end between two bins, where the peer's choice depends on its own rounding."""
    model = onnx.load(exported)
    feeds = [{"image": images.resize(p, (96, 128))[None].copy()} for p in sample_photographs.sharp()[:5]]
    feeds.append({"image": np.full_like(feeds[0]["image"], 128)})  # nothing to see
    found, wanted = quantize.calibrate(model, feeds, method), by_the_peer(model, feeds, method, tmp_path)
    assert len(list(found)) > 20
    assert_same(found, wanted, list(found))


def plain(shape: list[int | str], opset: int = 20) -> onnx.ModelProto:
    """A graph of one quantisable node, which reads twice its input."""
    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    two = onnx.numpy_helper.from_array(np.float32(2), "two")
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"], name="double"),
        helper.make_node("Conv", ["double", "w"], ["y"], name="conv"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def normal(seed: int, scale: float = 1.0, size: int = 64) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((1, 1, size, size)) * scale
    return {"x": values.astype(np.float32)}


GROWING = [normal(i, s) for i, s in enumerate((1.0, 1.3, 0.5, 2.5, 2.0, 2.6))]
"""Later photographs add bins."""
SPARSE = [{"x": np.maximum(feed["x"] - 1, 0)} for feed in GROWING]
OFFSET = [{"x": feed["x"] + np.float32(9)} for feed in GROWING]
EMPTY = [{"x": np.zeros_like(feed["x"])} for feed in GROWING[:2]]
CASES = {
    "growing": GROWING,
    "shrinking": GROWING[::-1],
    "with zeros": SPARSE,
    "away from zero": OFFSET,
    "zero": EMPTY,
    "zero at first": EMPTY + SPARSE,
    "many": [normal(i, 1 + (i % 7) / 20) for i in range(20)],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_bins_grow_as_the_peer_s_do(tmp_path: Path, case: str, method: Method) -> None:
    model = plain([1, 1, 64, 64])
    found, wanted = quantize.calibrate(model, CASES[case], method), by_the_peer(model, CASES[case], method, tmp_path)
    assert_same(found, wanted, ["double"])


@pytest.mark.parametrize("method", METHODS[1:])
def test_any_values_are_counted_as_the_peer_counts_them(method: Method) -> None:
    """Few values of many kinds: the range is the edge beside the largest, which is often near an edge itself."""
    generator = np.random.default_rng(19)
    for case in range(300):
        counted: ranges.Counted = ranges.Tail(6) if method == "percentile" else ranges.Whole()
        peer = HistogramCollector(method, True, ranges._BINS[method], 128, ranges.PERCENTILE, "same")
        for _ in range(generator.integers(2, 6)):
            values = generator.standard_normal(generator.integers(1, 30_000 if case % 30 == 0 else 300))
            values = (values * generator.uniform(0.1, 3) + generator.choice([0, 0, 5])).astype(np.float32)
            if case % 3 == 0:  # values that are equal, and often on an edge
                values = np.round(values * 16) / np.float32(16)
            elif "x" in peer.histogram_dict:  # the largest is on an edge that is added, up to rounding
                edges = peer.histogram_dict["x"][1].astype(np.float64)
                values[0] = edges[-1] + generator.integers(1, 900) * (edges[-1] - edges[-2])
            counted.add(values)
            with no_stdout():
                peer.collect({"x": values})
        if method == "entropy":  # to choose from it takes long
            for ours, theirs in zip(counted.histogram, peer.histogram_dict["x"], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        else:
            with no_stdout():
                low, high, *_ = peer.compute_collection_result()["x"]
            assert ranges._chosen({"x": counted.histogram}, method)["x"] == (low, high), case


def test_photographs_of_any_size_are_calibrated_on(tmp_path: Path) -> None:
    model = plain([1, 1, "h", "w"])
    feeds = [normal(i, 1.0, size) for i, size in enumerate((32, 100, 64))]
    assert_same(
        quantize.calibrate(model, feeds, "percentile"), by_the_peer(model, feeds, "percentile", tmp_path), ["double"]
    )


def test_all_is_counted_where_there_is_more_than_was_foreseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if tensors grew faster than the photographs: the first one's tail alone, then much smaller values."""
    monkeypatch.setattr(ranges, "_foreseen", lambda feeds: 0.05)
    bounds: list[float] = []

    class Told(ranges.Tail):
        def __init__(self, photographs: float) -> None:
            bounds.append(photographs)
            super().__init__(photographs)

    monkeypatch.setattr(ranges, "Tail", Told)
    model, feeds = plain([1, 1, 512, 512]), [normal(i, 1 / (1 + 40 * i), 512) for i in range(6)]
    found = quantize.calibrate(model, feeds, "percentile")
    assert bounds == [0.05, np.inf]
    assert_same(found, by_the_peer(model, feeds, "percentile", tmp_path), ["double"])


def test_a_histogram_is_numpy_s() -> None:
    generator = np.random.default_rng(1)
    for bins in (128, 130, 786):
        span = np.float32(generator.uniform(0.1, 50))
        _, edges = np.histogram(np.empty(0, np.float32), bins, range=(-span, span))
        on_edges = np.concatenate([edges, np.nextafter(edges, np.float32(-99)), np.nextafter(edges, np.float32(99))])
        values = np.concatenate([generator.standard_normal(100_000) * span / 3, np.zeros(1000), on_edges, on_edges])
        values = np.clip(values.astype(np.float32), -span, span)
        wanted, _ = np.histogram(values, bins, range=(-span, span))
        np.testing.assert_array_equal(ranges._binned(values, edges), wanted)


def test_few_values_are_counted_once_there_are_enough() -> None:
    """What makes it fast: of a hundred photographs, about 0.2 % of the first one's values, and ever fewer of later ones."""
    tail = ranges.Tail(100)
    for seed in range(100):
        tail.add(normal(seed, 1.0, 256)["x"].reshape(-1))
    counts, *_ = tail.histogram
    assert counts[tail._floor :].sum() < 0.01 * counts.sum() and not tail.missed
    assert 0.999 < counts.sum() / (100 * 256 * 256) <= 1  # ONNX Runtime does not count what is below the first edge


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_photographs(method: Method) -> None:
    """Of each photograph's tensor of 1 MB, nothing is left when the next one comes."""
    import tracemalloc

    model = plain([1, 1, 512, 512])

    @cache
    def peak(photographs: int) -> int:
        feeds = [normal(0, 1.0, 512)] * photographs
        quantize.calibrate(model, feeds[:1], method)
        gc.collect()
        tracemalloc.start()
        quantize.calibrate(model, feeds, method)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # half of one photograph's tensor, for what Python itself allocates; what is kept of 40 would be 40 MB
    assert peak(40) < peak(4) + 512 * 1024


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_said(method: Method, value: float) -> None:
    feed = normal(0)
    feed["x"][0, 0, 1, 1] = value
    with pytest.raises(
        GraphError, match=r"double has values that are not finite.*: check the weights and the photographs"
    ):
        quantize.calibrate(plain([1, 1, 64, 64]), [normal(1), feed, normal(2)], method)


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_quantised_there_are_no_ranges(method: Method) -> None:
    model = plain([1, 1, 64, 64])
    del model.graph.node[1:], model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("double", TensorProto.FLOAT, [1, 1, 64, 64]))
    assert not list(quantize.calibrate(model, [normal(0)], method))
    del model.graph.node[:]
    assert quantize.observe(model, [normal(0)]) == {}


def test_tensors_may_have_the_names_of_reductions() -> None:
    model = plain([1, 1, 64, 64])
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = model.graph.node[0].name = "ReduceMin/0"
    model.graph.node[1].input[1] = model.graph.initializer[0].name = "ReduceMax/0"
    largest = 2 * float(np.abs(normal(0)["x"]).max())
    (found,) = (data.range_value for _, data in quantize.calibrate(model, [normal(0)]).items())
    assert [float(value) for value in found] == [-largest, largest]
