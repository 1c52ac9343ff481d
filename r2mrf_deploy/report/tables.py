"""Results for people: tables and lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from r2mrf_deploy import gpus
from r2mrf_deploy.datasets import KNOWN
from r2mrf_deploy.fitting import stretched_in_words
from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.wording import count, first

if TYPE_CHECKING:
    from r2mrf_deploy.budget import Budget, Prediction
    from r2mrf_deploy.calibration import Calibrated
    from r2mrf_deploy.datasets import Dataset
    from r2mrf_deploy.doctor import Row
    from r2mrf_deploy.evaluation import Evaluation
    from r2mrf_deploy.export.base import Exported, Exporter
    from r2mrf_deploy.manifest import RewriteRecord
    from r2mrf_deploy.parity.compare import Difference, Parity
    from r2mrf_deploy.parity.node_search import Search
    from r2mrf_deploy.protocols import Protocol, Published

PUBLISHED = "published"
"""The runtime of a row that was not measured here."""
VERDICTS = {"pass": "green", "emulated": "yellow", "fail": "bold red", "uninformative": "yellow", "not run": "dim"}


def parity_table(results: Sequence[Parity]) -> Sheet:
    figures = ("max Δmap", "MAE", "Δlogit/σ", "F", "map std")
    table = Sheet("artifact", "runtime", "input", "parity", numbers=figures, spare=("MAE", "map std"), once=("input",))
    for r in results:
        differences = [f"{d:.1e}" for d in (r.map.largest, r.map.mean, r.map.relative)]
        found = [*differences, f"{r.f_measure:.4f}", f"{r.reference_spread:.3f}"]
        sizes = first(["x".join(map(str, shape)) for shape in r.shapes], 1)
        table.add(r.artifact, r.runtime, sizes, verdict(r.verdict), *(found if r.photographs else ["-"] * 5))
    return table


def _whose(r: Parity) -> str:
    return "the checkpoint's" if r.reference == "PyTorch" else f"{r.reference}'s"


def parity_lines(r: Parity, bisect: bool) -> list[str]:
    """What the table does not say about one result."""
    lines = [f"{r.artifact}: {r.reason}"] if r.reason else []
    if whole := r.whole_path:
        found = f"F {whole.f:.3f}, MAE {whole.mae:.3f}"
        lines.append(f"{r.artifact}: from a photograph to its map, against {_whose(r)} own: {found}")
    if r.not_recorded:
        lines.append(f"not recorded: {r.not_recorded}")
    if (search := r.bisect) is not None:
        kept = count(len(search.kept), "node")
        lines.append(f"keeping {kept} in FP32 brings {r.artifact} from {search.before} to {search.after}:")
    elif bisect:
        lines.append(f"{r.artifact}: there is nothing to bisect, its verdict is {r.verdict}")
    return lines


def steps_table(result: Parity) -> Sheet:
    """The largest difference of each side output relative to the reference's spread, in order of computation.

    A name is split into row and column: `step2_branch5` is row step2, column branch 5; `l2h3` is row l2h, column 3.
    """
    grid: dict[str, dict[str, Difference]] = {}
    for name, difference in result.steps.items():
        row, column = _cell(name)
        grid.setdefault(row, {})[column] = difference
    columns = list(dict.fromkeys(c for row in grid.values() for c in row))
    title = f"{result.artifact} on {result.runtime}: largest ΔO / σ(O)"
    table = Sheet("", numbers=columns, title=title)
    for row, cells in grid.items():
        table.add(row, *(f"{cells[c].relative:.1e}" if c in cells else "" for c in columns))
    return table


def _cell(name: str) -> tuple[str, str]:
    row, _, last = name.rpartition("_")
    number = last[len(last.rstrip("0123456789")) :]
    stem = last.removesuffix(number)
    return (row, f"{stem} {number}".strip()) if row else (stem, number or "-")


def where(machine: Mapping[str, Any], tools: Mapping[str, str]) -> str:
    """The machine and the tool versions, in one line."""
    vectors = f" with {machine['cpu_vectors']}" if "cpu_vectors" in machine else ""
    parts = [f"{machine['cpu']}{vectors}, {count(machine['cores'], 'core')}, {machine['system']}"]
    if "gpu" in machine:
        parts.append(f"{machine['gpu']}, driver {machine['driver']}, SM at {machine['gpu_sm_mhz']} MHz")
    if tools:
        parts.append(", ".join(f"{name} {version}" for name, version in tools.items()))
    return "; ".join(parts)


def budget_tables(budget: Budget) -> list[Sheet]:
    """One table per graph: each GPU class, and below a rule the small devices."""
    tables = []
    for graph in dict.fromkeys(p.graph for p in budget.predictions):
        predictions = [p for p in budget.predictions if p.graph == graph]
        p = predictions[0]
        work = (
            f"{p.multiply_adds / 1e9:.2f} G multiply-adds, {p.bytes / 1e6:.0f} MB moved, {count(p.kernels, 'kernel')}"
        )
        table = Sheet("device", numbers=("roof ms", "predicted ms", "headroom"), title=f"{graph}: {work}")
        cards = [p for p in predictions if not gpus.find(p.device).is_small]
        for number, p in enumerate([*cards, *(p for p in predictions if p not in cards)]):
            if cards and number == len(cards):
                table.rule()
            left = p.headroom(budget.budget_ms)
            headroom = Text(f"{100 * left:.0f} %", "green" if left >= 0 else "bold red")
            table.add(p.device, figure(p.roof), figure(p.ms), headroom)
        tables.append(table)
    return tables


def costliest_table(prediction: Prediction) -> Sheet:
    numbers = ("G mul-adds", "MB", "ms", "%")
    title = f"{prediction.graph} on {prediction.title}:"
    table = Sheet("costliest kernels", "of", "bound by", numbers=numbers, spare=("MB", "G mul-adds", "of"), title=title)
    for c in prediction.costliest:
        work = (f"{c.multiply_adds / 1e9:.2f}", f"{c.bytes / 1e6:.1f}")
        table.add(c.name, c.op, c.bound, *work, figure(c.ms), f"{100 * c.ms / prediction.ms:.1f}")
    return table


def budget_lines(budget: Budget) -> list[str]:
    """How the predictions were made, how networks get onto those devices, and how predictions compare with measurements on
    this machine."""
    lines = [*budget.refused, *_assumptions(budget)]
    lines += [f"{device}: {advice}" for device, advice in budget.advice.items()]
    if (here := budget.here) is not None:
        rates = ", ".join(f"{name.upper()} {rate:.3g} TFLOP/s" for name, rate in here.roof.tflops.items())
        lines.append(f"here: {here.roof.title}, measured {rates}, {here.roof.bandwidth:.0f} GB/s; {here.runtime}:")
        for p, ms in zip(here.predictions, here.measured, strict=True):
            found = f"roof {figure(p.roof)} ms, predicted {figure(p.ms)} ms, measured {figure(ms)} ms"
            lines.append(f"  {p.graph}: {found}: {100 * p.roof / ms:.0f} % of the roof was reached")
    return lines


def _assumptions(budget: Budget) -> list[str]:
    """What was added to the roofs on each kind of device, and what the roof of FP32 is."""
    devices = {p.device: gpus.find(p.device) for p in budget.predictions}
    lines, seen = [], set()
    for p in budget.predictions:
        device = devices[p.device]
        if (kind := (type(device), device.is_small)) in seen:
            continue
        seen.add(kind)
        launches = f"{p.launches / p.kernels * 1e3:.0f} µs per kernel"
        if isinstance(device, gpus.CPU):
            said = f"roof / {p.efficiency:g} on a {p.title}: nothing is launched or copied"
        elif device.is_small:
            said = f"roof / {p.efficiency:g}, {launches} and copies within the shared memory on a Jetson"
        else:
            said = f"roof / {p.efficiency:g}, {launches}, and the copies to and from the GPU ({p.transfers:.2f} ms)"
        lines.append(f"predicted: {said}")
    if lines:
        lines[-1] += f"; headroom in {budget.budget_ms:g} ms"
    if any("tf32" in device.tflops for device in devices.values()):
        lines.append("FP32 runs as TF32 where a GPU is faster with it, as in TensorRT; other runtimes do not use it")
    return lines


def kept_table(search: Search) -> Sheet:
    table = Sheet("kept in higher precision", "scope", numbers=("MAE without", "1 - F without"))
    for kept in search.kept:
        table.add(kept.node, kept.scope, f"{kept.without.mae:.4f}", f"{kept.without.f:.4f}")
    return table


def _add_scores(table: Sheet, rows: Sequence[Evaluation], figures: Sequence[str]) -> None:
    """A row for each evaluation; the best of several is bold."""
    best = {f: (min if f in ("mae", "ece") else max)(getattr(row.scores, f) for row in rows) for f in figures}
    for row in rows:
        values = {f: getattr(row.scores, f) for f in figures}
        cells = [Text(f"{v:.4f}", "bold" if len(rows) > 1 and v == best[f] else "") for f, v in values.items()]
        table.add(row.name, row.runtime, row.size, *cells)


def evaluation_table(rows: Sequence[Evaluation]) -> Sheet:
    figures = ("f_max", "f_adaptive", "f_half", "mae", "auc", "ece")
    spare = ("f_adaptive", "f_half", "ece")
    table = Sheet("map", "runtime", "input", numbers=figures, spare=spare, once=("input",))
    _add_scores(table, rows, figures)
    return table


def evaluation_dict(row: Evaluation, protocol: Protocol | None) -> dict[str, Any]:
    """A row for JSON and CSV; with a protocol, `f` is the protocol's F."""
    return row.to_dict() | ({"f": protocol.f_of(row.scores)} if protocol else {})


def protocol_table(rows: Sequence[Evaluation], protocol: Protocol, published: Sequence[Published]) -> Sheet:
    """The scores by a protocol, with what was published by it below. The column F is the protocol's."""
    others = [f for f in ("f_max", "f_adaptive", "f_half") if f != protocol.f]
    figures = (protocol.f, "mae", *others, "auc", "ece")
    heads = ("F", "mae", *others, "auc", "ece")
    table = Sheet("map", "runtime", "input", numbers=heads, spare=(*others, "input", "auc", "ece"), once=("input",))
    _add_scores(table, rows, figures)
    table.rule()
    notes = _noted(published)
    size = "-" if protocol.size is None else stretched_in_words(protocol.size)
    for p in published:
        name = f"{p.title} {'*' * (notes.index(p.note) + 1)}" if p.note else p.title
        table.add(name, PUBLISHED, size, f"{p.f:.3f}", f"{p.mae:.3f}", *["-"] * (len(others) + 2))
    return table


def protocol_lines(protocol: Protocol, published: Sequence[Published], dataset: Dataset, done: int) -> list[str]:
    """What the table of a protocol does not say: what its F is, and what the published rows are of."""
    lines = [f"protocol {protocol.name}: {protocol.about}"]
    if published:
        same = dataset.is_test_split and done == len(dataset)
        here = "the one evaluated here" if same else "not for those evaluated here"
        test = KNOWN[dataset.published].test
        lines.append(f"published: for the test split of {count(test, 'photograph')}, {here}")
        lines += [f"published in {source}" for source in dict.fromkeys(p.source for p in published)]
    return lines + [f"{'*' * number} {note}" for number, note in enumerate(_noted(published), 1)]


def _noted(published: Sequence[Published]) -> list[str]:
    return list(dict.fromkeys(p.note for p in published if p.note))


def calibration_table(done: Calibrated) -> Sheet:
    """The figures of a checkpoint's maps without and with the temperature."""
    figures = ("nll", "ece", "mae", "f_max", "f_adaptive", "f_half", "auc")
    table = Sheet("map", numbers=figures, spare=("f_adaptive", "auc"))
    for title, found in (("as it was", done.before), ("calibrated", done.after)):
        values = found.to_dict()
        table.add(title, *(f"{values[figure]:.4f}" for figure in figures))
    return table


def evaluation_line(dataset: Dataset, positive: str, done: int) -> str:
    """What the table of an evaluation covers."""
    part = f" (of {len(dataset):,})" if done < len(dataset) else ""
    others = f" ({dataset.left_out:,} more in its folder do not belong to it)" if dataset.left_out else ""
    what = "in focus" if positive == "sharp" else "blurred"
    return f"{count(done, 'photograph')}{part} of {dataset.folder.name}{others}; positive: {what}; F with β² = 0.3"


def rewrite_lines(records: Sequence[RewriteRecord]) -> list[str]:
    """One line per rewrite: its name, how often it applied, multiply-adds before and after."""
    if not records:
        return ["no rewrite applies"]
    work = [f"{r.multiply_adds_before / 1e9:.2f} -> {r.multiply_adds_after / 1e9:.2f} G multiply-adds" for r in records]
    return [f"{r.name}: {count(r.count, 'time')}, {saved}" for r, saved in zip(records, work, strict=True)]


def demo_table(rows: Sequence[dict[str, Any]]) -> Sheet:
    numbers = ("size", "median ms", "speed-up")
    table = Sheet(
        "artifact", "precision", "runtime", "input", "parity", numbers=numbers, spare=("size",), once=("input",)
    )
    for row in rows:
        median = "-" if row["median_ms"] is None else figure(row["median_ms"])
        speed_up = "-" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
        names = (row["artifact"], row["precision"], row["runtime"], row["input"], verdict(row["parity"]))
        table.add(*names, size(row["bytes"]), median, speed_up)
    return table


def doctor_table(rows: Sequence[Row]) -> Sheet:
    table = Sheet("what", "here", "version", prose=("what", "version", "does"))
    for row in rows:
        table.add(row.name, Text("yes", "green") if row.ok else Text("no", "yellow"), row.version or "-", row.does)
    return table


def doctor_lines(rows: Sequence[Row]) -> list[str]:
    """What is missing and how to get it: lines, since a command that is folded into a column cannot be copied."""
    return [f"{row.name}: {row.note}" for row in rows if row.note]


def figure(value: float) -> str:
    """A number with at least three significant digits and no exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{max(digits, 0)}f}"


def verdict(text: str) -> Text:
    return Text(text, VERDICTS.get(text, ""))


def size(count: float) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:.1f} MB"


def format_rows(exporters: Sequence[Exporter]) -> list[dict[str, Any]]:
    """What can be exported: suffix, title, precisions, options, and why not here."""
    return [
        {
            "suffix": e.suffix,
            "format": e.title,
            "precisions": list(e.precisions),
            "options": sorted(e.options),
            "available": (state := e.availability()).ok,
            "reason": "" if state.ok else f"{state.reason}; {state.cure}",
        }
        for e in exporters
    ]


def format_table(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    table = Sheet("suffix", "format", "here", prose=("precisions", "options"))
    for row in rows:
        here = "yes" if row["available"] else "no"
        table.add(row["suffix"], row["format"], here, " ".join(row["precisions"]), " ".join(row["options"]))
    return table


def format_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a format cannot be written here, and what helps."""
    return [f"{row['suffix']}: {row['reason']}" for row in rows if row["reason"]]


def exported_lines(done: Exported) -> list[str]:
    """A new artifact in words."""
    m = done.manifest
    facts = [size(m.bytes), m.precision, *map(str, m.inputs)]
    if m.multiply_adds:
        optimum = [profile["opt"] for profile in m.profiles.values()][:1]
        at = "".join(f" at {'x'.join(map(str, shape))}" for shape in optimum)
        facts.append(f"{m.multiply_adds / 1e9:.2f} G multiply-adds{at}")
        if m.share is not None:
            facts[-1] += f" ({100 * m.share:.1f} % of them in {m.precision})"
    lines = [f"{done.path}: {', '.join(filter(None, [*facts, done.note]))}"]
    p = done.parity
    if p is not None and p.photographs:
        found = f"{p.verdict}, map within {p.map.largest:.1e}, {p.map.mean:.1e} on average"
        lines.append(f"parity with {p.reference}: {found} ({p.runtime}, {p.device})")
    if p is not None and (whole := p.whole_path):
        lines.append(f"from a photograph to its map, against {_whose(p)} own: F {whole.f:.3f}, MAE {whole.mae:.3f}")
    if p is not None and p.passed and p.reason:
        lines.append(p.reason)
    return lines
