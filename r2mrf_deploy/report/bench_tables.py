"""Measured latency and throughput for people: tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from r2mrf_deploy.bench import power
from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.report.tables import figure
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from r2mrf_deploy.bench.profiling import Profile
    from r2mrf_deploy.bench.protocol import Measurement


def bench_table(results: Sequence[Measurement]) -> Sheet:
    in_flight = any(m.mode == "throughput" for m in results)
    rated = in_flight or len({m.batch for m in results}) > 1
    rate = ("median ms", "p99", "images/s" if rated else "qps", "CV %", "speed-up")
    told = in_flight and any(m.watts is not None for m in results)
    numbers = (*(["in flight"] if in_flight else []), *rate[:3], *(["images/J"] if told else []), *rate[3:])
    spare = ("CV %",) if in_flight else (rate[2], "CV %")
    table = Sheet("artifact", "runtime", "input", numbers=numbers, spare=spare, once=("input",))
    for m in results:
        low, high = m.speed_up_range
        efficiency = "-" if m.images_per_joule is None else figure(m.images_per_joule)
        figures = [
            *([str(m.requests)] if in_flight else []),
            figure(m.latency.median),
            figure(list(m.latency.percentiles.values())[-1]),
            figure(m.images_per_second if rated else m.summary.throughput),
            *([efficiency] if told else []),
            f"{m.summary.variation:.1f}",
            "1.00" if m is results[0] else f"{m.speed_up:.2f} ({low:.2f}-{high:.2f})",
        ]
        table.add(m.name, m.runtime, m.input, *figures)
    return table


def bench_lines(results: Sequence[Measurement]) -> list[str]:
    """Notes on the table: differences that are lost in noise, and trtexec's warnings."""
    lines = throughput_lines(results)
    for m in results[1:]:
        baseline = results[0].title
        if m.differs is None:
            lines.append(f"{m.title}: too few turns to compare it with {baseline}; give a longer `duration`")
        elif not m.differs:
            lines.append(f"{m.title}: this run cannot tell its difference from {baseline} from noise")
    return lines + [f"{m.title}: {warning}" for m in results for warning in m.summary.warnings(m.on_gpu)]


def speed_up_line(results: Sequence[Measurement]) -> str:
    """What the column `speed-up` is."""
    of = "in latency; in images per second where one of the two has several in flight"
    more = f", {of}" if any(m.mode == "throughput" for m in results) else ""
    return f"speed-up: over {results[0].title}{more}, median and middle half of the turns"


def throughput_lines(results: Sequence[Measurement]) -> list[str]:
    """For each candidate that was measured for its throughput, how it compares with one inference after the other."""
    lines = []
    for m in results:
        if m.mode == "latency":
            continue
        inferences = count(m.requests, "inference")
        said = f"{m.title}: {figure(m.images_per_second)} images per second with {inferences} in flight"
        alone = next((a for a in results if a.mode == "latency" and _same_file(a, m)), None)
        if alone is not None:
            ratio = m.images_per_second / alone.images_per_second
            slower = m.latency.median / alone.latency.median
            said += f", {ratio:.2f} times those of one after the other; each takes {slower:.2f} times as long"
        if m.images_per_joule is not None:
            what = "GPU" if m.on_gpu else "processor"
            said += f"; {figure(m.images_per_joule)} images per second per watt of the {what}"
        lines.append(said)
    if lines and all(m.watts is None for m in results):
        lines.append(power.UNTOLD)
    return lines


def _same_file(a: Measurement, b: Measurement) -> bool:
    return (a.name, a.runtime, a.batch, a.shape) == (b.name, b.runtime, b.batch, b.shape)


def bench_rows(results: Sequence[Measurement]) -> list[dict[str, str | int | float]]:
    """One flat row per measurement, for CSV."""
    rows = []
    for m in results:
        row: dict[str, str | int | float] = {
            "artifact": m.name,
            "runtime": m.runtime,
            "device": m.device,
            "batch": m.batch,
            "input": m.input,
            "flags": " ".join(m.flags),
            "inferences": m.summary.inferences,
            "mode": m.mode,
            "requests": m.requests,
            "throughput_qps": m.summary.throughput,
            "images_per_second": m.images_per_second,
            "watts": "" if m.watts is None else m.watts,
            "images_per_joule": "" if m.images_per_joule is None else m.images_per_joule,
        }
        for name in ("latency", "enqueue", "h2d", "compute", "d2h"):
            s = getattr(m.summary, name)
            row |= {f"{name}_{k}_ms": getattr(s, k) for k in ("min", "max", "mean", "median")}
            row |= {f"{name}_p{p}_ms": value for p, value in s.percentiles.items()}
        row |= {"variation_percent": m.summary.variation, "speed_up": m.speed_up}
        row["speed_up_low"], row["speed_up_high"] = m.speed_up_range
        rows.append(row | {"differs": "" if m.differs is None else str(m.differs).lower()})
    return rows


def profile_tables(result: Profile) -> list[Sheet]:
    """Where the time goes: by scope of the network, then the costliest layers."""
    scopes = Sheet("scope", numbers=("ms", "%"))
    for scope, ms in result.scopes().items():
        scopes.add(scope, f"{ms:.3f}", f"{100 * ms / result.average:.1f}")
    layers = Sheet("costliest layers", numbers=("average ms", "median ms", "%"), spare=("median ms",))
    for layer in sorted(result.layers, key=lambda layer: -layer.total)[:15]:
        first, *others = layer.name.split(" + ")
        name = f"{first} and {len(others)} more" if others else first
        layers.add(name, f"{layer.average:.3f}", f"{layer.median:.3f}", f"{layer.percentage:.1f}")
    return [scopes, layers]
