"""Runs the project's own tests on the GPU, a file at a time, and says which passed. They are not in a bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from place import Place, Result

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "gpu"
FAMILIES = {"pytorch": "pytorch_cuda", "aotinductor": "aotinductor_cuda", "onnxruntime": "onnxruntime_cuda"}
"""Family of runtimes -> its file of tests, where it is not called as the family is."""


def files(families: Sequence[str]) -> list[str]:
    """The names of the files that there are for some families of runtimes, and those for all."""
    wanted = [*(FAMILIES.get(family, family) for family in families), "training_cuda", "latency"]
    return [name for name in wanted if (FOLDER / f"test_{name}.py").exists()]


def tests(place: Place, name: str) -> Result:
    """Run a file's tests.

    Raises:
        AssertionError: a test failed; the log has the whole output of each.
    """
    report = place.folder / f"tests-{name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--tb=short", f"--junit-xml={report}"]
    hidden = {} if place.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}  # a dry run skips them all
    subprocess.run([*command, str(FOLDER / f"test_{name}.py")], cwd=ROOT, env=os.environ | hidden)
    if not report.exists():
        raise AssertionError("pytest did not run to its end")
    cases = list(ElementTree.parse(report).iter("testcase"))
    found = partial(_messages, cases)
    failed, skipped = found("failure") | found("error"), found("skipped")
    if failed:
        first = ": ".join(next(iter(failed.items())))
        raise AssertionError(f"{len(failed)} of {len(cases)} tests failed, the first: {first}")
    return {"tests": len(cases), "passed": len(cases) - len(skipped), "skipped": skipped}


def _messages(cases: Sequence[ElementTree.Element], outcome: str) -> dict[str, str]:
    """Test -> the first line of why it ended so."""
    found = {case.get("name", ""): case.find(outcome) for case in cases}
    return {name: node.get("message", "").partition("\n")[0] for name, node in found.items() if node is not None}
