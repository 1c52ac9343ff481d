"""Plots of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2mrf_deploy import environment
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.files import refuse_unwritable, write_atomically
from r2mrf_deploy.metrics import BINS
from r2mrf_deploy.parity.compare import TOLERANCES
from r2mrf_deploy.wording import plain

SUFFIXES = (".png", ".svg", ".pdf")

if TYPE_CHECKING:
    from r2mrf_deploy.bench.protocol import Measurement
    from r2mrf_deploy.compression.curve import Curve, Point
    from r2mrf_deploy.evaluation import Evaluation
    from r2mrf_deploy.parity.compare import Parity

CURE = f"plots need matplotlib: {environment.installs('matplotlib')}"


def latency(measurements: Sequence[Measurement], path: Path) -> Path:
    """Plot the distribution of latencies and, for several batch sizes, latency against throughput, as PNG, SVG or PDF.

    Raises:
        RuntimeUnavailable: matplotlib is not installed.
    """
    plt = _pyplot()
    swept = len({m.batch for m in measurements}) > 1
    figure, axes = plt.subplots(1, 2 if swept else 1, figsize=(12 if swept else 7, 4.5), squeeze=False)
    distribution = axes[0][0]
    for m in measurements:
        distribution.ecdf([t.latency for turn in m.turns for t in turn], label=_label(m.title))
    distribution.set(xlabel="latency, ms", ylabel="share of inferences at most this slow", ylim=(0, 1.02))
    if max(m.latency.max for m in measurements) > 10 * min(m.latency.min for m in measurements):
        distribution.set_xscale("log")
    if swept:
        _trade(axes[0][1], measurements)
    return _finish(figure, path, -0.15)


def _trade(axis: Any, measurements: Sequence[Measurement]) -> None:
    lines: dict[str, list[Measurement]] = {}
    for m in measurements:
        lines.setdefault(f"{m.name} on {m.runtime}", []).append(m)
    for title, points in lines.items():
        axis.plot([p.latency.median for p in points], [p.images_per_second for p in points], "o-", label=_label(title))
        for p in points:
            spot = (p.latency.median, p.images_per_second)
            axis.annotate(str(p.batch), spot, textcoords="offset points", xytext=(5, 5))
    axis.set(xlabel="median latency, ms", ylabel="images per second", title="batch sizes beside the points")


def drift(results: Sequence[Parity], path: Path) -> Path:
    """Plot the error of every step and branch, in order of computation, for each artifact that was compared by step.

    Raises:
        UsageError: no artifact was compared by step.
        RuntimeUnavailable: matplotlib is not installed, or cannot write such files.
    """
    compared = [r for r in results if r.steps]
    if not compared:
        raise UsageError("there are no steps to plot: export with `all_steps` and give `per_step`")
    plt = _pyplot()
    names = list(compared[0].steps)
    figure, axis = plt.subplots(figsize=(max(7, 0.28 * len(names)), 4.8))
    for number, r in enumerate(compared):
        errors = [max(r.steps[name].relative, 1e-9) for name in r.steps]
        (line,) = axis.plot(
            range(len(errors)), errors, "o-", ms=3, label=_label(f"{r.artifact} ({r.precision}, {r.runtime})")
        )
        if r.precision not in {c.precision for c in compared[:number]}:
            axis.axhline(TOLERANCES[r.rounding].logits, color=line.get_color(), ls="--", lw=0.8)
    axis.set_yscale("log")
    ticks = [name.replace("_branch", ".").replace("step", "") for name in names]
    axis.set_xticks(range(len(names)), map(_label, ticks), rotation=90)
    axis.set(xlabel="step.branch, as computed", ylabel="largest error / standard deviation")
    axis.set_title("dashed: the tolerance of the precision", fontsize=9)
    return _finish(figure, path, -0.25)


def pareto(curve: Curve, path: Path) -> Path:
    """Plot what the points of a compression lose against what they cost.

    Raises:
        RuntimeUnavailable: matplotlib is not installed, or cannot write such files.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 5))
    front = [curve.points[i] for i in curve.front()]
    for precision in dict.fromkeys(p.precision for p in curve.points):
        points = [p for p in curve.points if p.precision == precision]
        axis.plot([_cost(p, curve) for p in points], [max(p.mae, p.f) for p in points], ".", label=precision.upper())
    axis.plot([_cost(p, curve) for p in front], [max(p.mae, p.f) for p in front], "-", lw=1, label="no point is better")
    if curve.chosen is not None:
        chosen = curve.points[curve.chosen]
        axis.plot(
            _cost(chosen, curve), max(chosen.mae, chosen.f), "o", ms=10, mfc="none", label=f"point {curve.chosen + 1}"
        )
    axis.plot(100, 0, "k*", ms=10, label="full network")
    axis.axhline(curve.max_drop, ls="--", lw=1, color="gray", label=f"bound, {curve.max_drop:g}")
    axis.set_yscale("symlog", linthresh=curve.max_drop)
    axis.set_ylim(bottom=min([0.0, *(max(p.mae, p.f) for p in curve.points)]) - curve.max_drop / 10)
    axis.set(xlabel=f"cost, percent of the full network ({curve.costs})", ylabel="larger loss of MAE and F")
    axis.set_xlim(0, None)
    axis.set_title(f"{curve.source} against {curve.judged}", parse_math=False)
    axis.legend(fontsize=8)
    figure.tight_layout()
    return save(figure, path)


def _cost(point: Point, curve: Curve) -> float:
    return 100 * point.cost / curve.full.cost


def _finish(figure: Any, path: Path, legend: float) -> Path:
    for axis in figure.axes:
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, legend))
    figure.tight_layout()
    return save(figure, path)


def evaluation(rows: Sequence[Evaluation], path: Path) -> Path:
    """Plot precision against recall, and F against the threshold, as the papers do.

    Raises:
        RuntimeUnavailable: matplotlib is not installed, or cannot write such files.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    for number, row in enumerate(rows):
        style = _style(number)
        left.plot(*row.curves.precision_recall, label=_label(f"{row.name} ({row.runtime})"), **style)
        f = row.curves.f
        right.plot(range(len(f)), f, **style)
        best = int(f.argmax())
        right.plot(best, f[best], "o", ms=4, color=style["color"])
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="threshold, of 255", ylabel="F, β² = 0.3", xlim=(0, 255), ylim=(0, 1.02))
    figure.legend(loc="lower center", ncols=min(len(rows), 3), fontsize=8)
    figure.tight_layout(rect=(0, 0.06 + 0.04 * ((len(rows) - 1) // 3), 1, 1))
    return save(figure, path)


def reliability(rows: Sequence[Evaluation], path: Path) -> Path:
    """Plot how often pixels are in focus against their predicted probability, as DeGroot and Fienberg (1983) do, and below
    it the share of the pixels in each bin.

    Raises:
        RuntimeUnavailable: matplotlib is not installed, or cannot write such files.
    """
    plt = _pyplot()
    size = (6.4, 6.7 + 0.17 * len(rows))  # the legend is below
    figure, (above, below) = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=(3, 1), layout="constrained")
    above.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", label="calibrated")
    edges = [number / BINS for number in range(BINS + 1)]
    for number, row in enumerate(rows):
        style = _style(number)
        text = f"{row.name} ({row.runtime}), ECE {row.scores.ece:.3f}"
        above.plot(*row.curves.reliability, "o", ms=3, label=_label(text), **style)
        below.stairs(row.curves.share, edges, baseline=None, **style)
    above.set(ylabel="share in focus", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    below.set(xlabel="predicted probability of being in focus", ylabel="share of pixels", ylim=(0, None))
    figure.legend(loc="outside lower center", fontsize=8)
    return save(figure, path)


def _style(number: int) -> dict[str, Any]:
    """The line of row `number`."""
    return {"color": f"C{number % 10}", "ls": ("-", "--", ":", "-.")[number // 10 % 4], "lw": 1.5}


def _label(text: str) -> str:
    """Outside text as matplotlib shows it: a dollar sign would begin a formula, a leading underscore would hide it."""
    shown = plain(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def refuse(path: Path) -> None:
    """Check, before anything is measured, that a plot can be written.

    Raises:
        UsageError: its suffix is not one of SUFFIXES.
        ArtifactError: the file cannot be written.
        RuntimeUnavailable: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: the name of a plot must end in {', '.join(SUFFIXES)}")
    refuse_unwritable(path)
    _pyplot()


def save(figure: Any, path: Path) -> Path:
    """Write a figure atomically, with a grid. Raises what `refuse` does."""
    refuse(path)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    content = BytesIO()
    figure.savefig(content, format=path.suffix.lower().lstrip("."), dpi=150)
    return write_atomically(path, content.getvalue())


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise RuntimeUnavailable(CURE) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
