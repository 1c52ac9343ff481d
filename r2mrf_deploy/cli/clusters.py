"""What `predict --ray` refuses and prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Context

from r2mrf_deploy.cli import flags
from r2mrf_deploy.cli.common import err, line, print_json, shown_progress
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.wording import count, masked

if TYPE_CHECKING:
    from r2mrf_deploy.predict import Outputs


UNUSED = ("report", "xmp", "roi", "tile", "overlap", "smooth", "limit", "scores_format", "cache")
"""Options of which a cluster makes nothing."""


def refuse_with_ray(context: Context, inputs: Sequence[str]) -> None:
    """Refuse options and inputs of which a cluster makes nothing."""
    flags.refuse_given(context, UNUSED, "does not go with `ray`")
    for each in inputs:
        what = "the list on standard input" if each == "-" else f"the film {masked(each)}"
        raise UsageError(
            f"`ray` takes files, folders, globs and addresses of photographs, not {what}: leave one of them out"
        )


def run(artifact: Path, given: Sequence[str], output: Path, outputs: Outputs, as_json: bool, **how: Any) -> None:
    """Run over a cluster, and say what was done."""
    from r2mrf_deploy.predict.cluster import predict_on_ray

    started = time.perf_counter()
    with shown_progress(rate=True) as progress:
        done = predict_on_ray(artifact, given, output, outputs, progress=progress, **how)
    if as_json:
        print_json(asdict(done))
    else:
        before = f"; {done.photographs - done.done:,} were done before" if done.done < done.photographs else ""
        rate = done.done / (time.perf_counter() - started)
        line(f"{done.folder}: the rows of {count(done.photographs, 'photograph')}", exact=True)
        line(f"{done.done - done.failed:,} done, {done.failed:,} failed; {rate:.1f} per second{before}", to=err)
    if done.failed:
        said = (
            f"{done.failed:,} of {count(done.done, 'photograph')} failed; their rows say why, the first: {done.error}"
        )
        raise InputError(said)
