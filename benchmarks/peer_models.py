"""What `peers.py` measures: a network as its peers and as this package make it, and how good what runs it is.

The peers get the network in PyTorch, with nothing of ours but its equations: torch.onnx.export, OpenVINO's converter and
NNCF make of it what they make of any network. NNCF is imported only where it is used, since it is no dependency of this
package.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import environment, images, runtimes, sample_photographs
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.evaluation import Method, evaluate
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.metrics import agreement, judge
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.compare import sample_inputs
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import quiet
from r2mrf_deploy.runtimes import OpenOptions, Runner
from r2mrf_deploy.runtimes.base import Arrays

HELD_OUT = ("chelsea", "astronaut", "coffee", "rocket")
"""Photographs that maps are compared on; nothing is calibrated on them."""
BOUND = 0.005
"""How much MAE and F may get worse, each: of NNCF's accuracy control, of our compression, and in the goals."""
VALIDATED, RANKED = 16, 8
"""On how many photographs NNCF's accuracy control judges a model, and ranks layers."""
TRIES = 5
"""Inferences of each memory layout of PyTorch, of which the faster one is measured."""
NOT_INSTALLED = "not installed: pip install nncf"

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Work:
    """A checkpoint at one size: the files that are made of it, and the judging of what runs them."""

    source: Path
    checkpoint: Checkpoint
    size: tuple[int, int]
    folder: Path
    threads: int
    calibration: Path
    dataset: Dataset | None
    control_seconds: float
    """That NNCF's accuracy control may take; 0 leaves it out."""
    made: dict[str, Path | Exception] = field(default_factory=dict)
    """What was made of each name, or why it cannot be made."""
    eager: Row = field(default_factory=dict)
    """The maps and scores of the first runner that was judged, which is PyTorch eager."""

    @cached_property
    def module(self) -> Any:
        """The network with its preprocessing in PyTorch, as every peer gets it."""
        from r2mrf_deploy.networks.deployed import Deployed

        return Deployed(self.checkpoint.module(), self.checkpoint.preprocess).eval()

    @cached_property
    def contract(self) -> Contract:
        """What the files of the peers do not say of their input, the same as in ours."""
        outputs = [TensorSpec(name="map", dtype="float32", shape=[1, 1, *self.size], layout="NCHW")]
        preprocess = self.checkpoint.preprocess.model_copy(update={"inside": True, "fit": "letterbox"})
        inputs = [self.module.input_spec(1, *self.size)]
        return Contract(kind="onnx", inputs=inputs, outputs=outputs, preprocess=preprocess)

    @cached_property
    def calibration_feeds(self) -> list[Arrays]:
        found = (images.read(file) for file in images.find([self.calibration]))
        spec = self.contract.inputs[0]
        return [{spec.name: a} for a in sample_inputs(spec, self.contract.preprocess, found)]

    @cached_property
    def feed(self) -> Arrays:
        """The photograph that everything is timed on."""
        spec, photograph = self.contract.inputs[0], sample_photographs.sample(HELD_OUT[0])
        return {spec.name: sample_inputs(spec, self.contract.preprocess, [photograph])[0]}

    @cached_property
    def digest(self) -> str:
        """Of the weights, the size and the photographs to calibrate on: models of the same are reused."""
        feeds = [hashlib.sha256(a.tobytes()).hexdigest() for feed in self.calibration_feeds for a in feed.values()]
        return hashlib.sha256(json.dumps([sha256(self.source), self.size, feeds]).encode()).hexdigest()[:12]

    def product(self, name: str, suffix: str, make: Callable[[Path], object]) -> Path:
        """A file of the folder. It is made once, whole or not at all; what making it raised is raised again."""
        place = self.folder / f"{name}-{self.digest}"
        file = place / f"{self.source.stem}-{name}{suffix}"
        if name not in self.made:
            try:
                if not place.exists():
                    part = place.with_name(f"{place.name}.part")
                    shutil.rmtree(part, ignore_errors=True)
                    part.mkdir()
                    make(part / file.name)
                    part.rename(place)
                self.made[name] = file
            except Exception as e:
                self.made[name] = e
        if isinstance(made := self.made[name], Exception):
            raise made
        return made

    # what the peers make

    def exported(self) -> Path:
        """The graph as torch.onnx.export makes it, with its own optimisation and none of ours."""

        def make(file: Path) -> None:
            import torch

            from r2mrf_deploy.graph.trace import translations

            with quiet(), torch.no_grad():
                torch.onnx.export(
                    self.module, (self.module.example(1, *self.size),), file, dynamo=True, input_names=["image"],
                    output_names=["map"], custom_translation_table=translations(), external_data=False, verbose=False,
                )  # fmt: skip

        return self.product("exported", ".onnx", make)

    def converted(self) -> Path:
        """The network as OpenVINO's converter makes it from PyTorch."""

        def make(file: Path) -> None:
            import openvino
            import torch

            example = self.module.example(1, *self.size)
            with quiet(), torch.no_grad():
                model = openvino.convert_model(self.module, example_input=(example,), input=[list(example.shape)])
            model.inputs[0].get_tensor().set_names({"image"})
            model.outputs[0].get_tensor().set_names({"map"})
            openvino.save_model(model, file, compress_to_fp16=False)

        return self.product("converted", ".xml", make)

    def quantised(self) -> Path:
        """OpenVINO's model, quantised by NNCF with its defaults."""

        def make(file: Path) -> None:
            nncf = installed_nncf()
            import openvino

            with quiet():
                model = openvino.Core().read_model(self.converted())
                made = nncf.quantize(model, nncf.Dataset(self.calibration_feeds))
            openvino.save_model(made, file, compress_to_fp16=False)

        return self.product("nncf", ".xml", make)

    def controlled(self) -> Path:
        """The same with NNCF's accuracy control, which keeps layers in FP32 until the loss is within the bound."""
        nncf = installed_nncf()
        if not self.control_seconds:
            raise UsageError("left out, since it takes minutes: give --control-seconds, such as 1200")

        def make(file: Path) -> None:
            import openvino

            control = Control(self, time.monotonic() + self.control_seconds)
            restoring = nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=RANKED, num_ranking_workers=1)
            with quiet():
                made = nncf.quantize_with_accuracy_control(
                    openvino.Core().read_model(self.converted()),
                    nncf.Dataset(self.calibration_feeds),
                    nncf.Dataset(control.cases, lambda case: case.feed),
                    control.accuracy,
                    max_drop=BOUND,
                    advanced_accuracy_restorer_parameters=restoring,
                )
            openvino.save_model(made, file, compress_to_fp16=False)

        judged = [pair.name for pair in self.dataset.pairs] if self.dataset else self.calibration.name
        kind = hashlib.sha256(json.dumps(judged).encode()).hexdigest()[:12]
        return self.product(f"nncf-control-{kind}", ".xml", make)

    # what this package makes

    def exact(self) -> Path:
        from r2mrf_deploy.export.chain import export_artifact
        from r2mrf_deploy.export.options import ExportOptions

        return self.product("exact", ".onnx", lambda file: export_artifact(self.source, file, ExportOptions(self.size)))

    def int8(self) -> Path:
        from r2mrf_deploy.export.convert import convert_artifact
        from r2mrf_deploy.export.options import PrecisionOptions

        options = PrecisionOptions("int8", self.calibration)

        def make(file: Path) -> None:
            convert_artifact(self.exact(), file, options, allow_failed_parity=True)

        return self.product("int8", ".onnx", make)

    def compressed(self) -> Path:
        from r2mrf_deploy.compression import CompressionOptions, compress_artifact

        options = CompressionOptions(max_drop=BOUND, costs="openvino", size=self.size)
        return self.product(
            "compressed", ".onnx", lambda file: compress_artifact(self.source, file, self.calibration, options)
        )

    def own_format(self, make: Callable[[], Path]) -> Path:
        """A file of this package as OpenVINO's own, as its user would deploy it there."""
        from r2mrf_deploy.export.build import build_artifact

        file = make()
        name = f"{file.stem.removeprefix(f'{self.source.stem}-')}-{sha256(file)[:8]}"
        return self.product(name, ".xml", lambda xml: build_artifact(file, xml, allow_failed_parity=True))

    # what runs

    def pytorch(self, module: Any, form: str) -> Runner:
        from r2mrf_deploy.runtimes.pytorch.eager import ProgramRunner

        inputs, outputs = tuple(self.contract.inputs), tuple(self.contract.outputs)
        return ProgramRunner("pytorch", module, inputs, outputs, form, self.threads)

    @cached_property
    def layouts(self) -> dict[str, float]:
        """Memory layout of PyTorch's weights -> the median of a few inferences in ms, the faster one first."""
        runners = {name: self.pytorch(module, name) for name, module in self.modules.items()}
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(TRIES + 1):
            for name, runner in runners.items():
                times[name].append(runner.run_timed(self.feed)[1].latency)
        medians = {name: statistics.median(each[1:]) for name, each in times.items()}  # the first warms up
        return dict(sorted(medians.items(), key=lambda item: item[1]))

    @cached_property
    def modules(self) -> dict[str, Any]:
        import torch

        last = copy.deepcopy(self.module).to(memory_format=torch.channels_last)
        return {"contiguous": self.module, "channels last": last}

    def run_eager(self) -> tuple[Runner, Path]:
        fastest = next(iter(self.layouts))
        return self.pytorch(self.modules[fastest], f"eager FP32, {fastest}"), self.source

    def run_compiled(self, **options: Any) -> tuple[Runner, Path]:
        """torch.compile of the faster module; it compiles at the first inference."""
        import torch

        fastest = next(iter(self.layouts))
        compiled = torch.compile(self.modules[fastest], dynamic=False, **options)
        return self.pytorch(compiled, f"compiled FP32, {fastest}"), self.source

    def run_file(self, make: Callable[[], Path], runtime: str, bf16: bool = False) -> tuple[Runner, Path]:
        """A file on a runtime; with `bf16`, OpenVINO computes in BF16 what is FP32 in it, as it does unless told not to."""
        file = make()
        if bf16 and "BF16" not in capabilities():
            raise RuntimeUnavailable("this CPU has no BF16 instructions")
        contract = Artifact.open(file).contract or self.contract
        if list(contract.inputs[0].shape) != list(self.contract.inputs[0].shape):
            raise InputError(
                f"its input is {contract.inputs[0].shape}: make it with --size {self.size[0]}x{self.size[1]}"
            )
        if bf16:
            contract = contract.model_copy(update={"precision": "bf16"})
        options = OpenOptions(threads=self.threads)
        return runtimes.get(runtime).open(Artifact(file, contract=contract), options), file

    # how good it is

    def predictor(self, runner: Runner) -> Predictor:
        return Predictor.of(runner, self.contract)

    def judged(self, runner: Runner) -> Row:
        """How far maps of sample photographs are from PyTorch eager's, and with masks how good they are.

        The loss is what MAE and F (at 0.5) lose: against masks if there are any, otherwise against PyTorch eager's maps.
        """
        predictor = self.predictor(runner)
        maps = [predictor(sample_photographs.sample(name)) for name in HELD_OUT]
        scores = None
        if self.dataset is not None:
            [evaluation] = evaluate([Method(lambda image: {"map": predictor(image)}, runner.runtime)], self.dataset)
            scores = evaluation.scores.to_dict()
        if not self.eager:
            self.eager.update(maps=maps, scores=scores)
        drop = node_search.drop(maps, self.eager["maps"])
        loss, own = {"mae": drop.mae, "f": drop.f}, self.eager["scores"]
        if scores and own:
            loss = {"mae": scores["mae"] - own["mae"], "f": own["f_half"] - scores["f_half"]}
        return {"map_difference": drop.mae, "scores": scores, "loss": loss}


def installed_nncf() -> Any:
    if not environment.importable("nncf"):
        raise RuntimeUnavailable(NOT_INSTALLED)
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def capabilities() -> Sequence[str]:
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def album(folder: Path) -> Path:
    """A folder of sample photographs to calibrate on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sample_photographs.names():
        if name not in HELD_OUT:
            (folder / f"{name}.png").write_bytes(images.png(sample_photographs.sample(name)))
    return folder


def size_on_disk(file: Path) -> int:
    """Bytes of a model, with the weights that OpenVINO writes beside it."""
    beside = [file.with_suffix(".bin")] if file.suffix == ".xml" else []
    return sum(each.stat().st_size for each in (file, *beside))


# ---- NNCF's accuracy control


@dataclass(frozen=True, eq=False)
class Case:
    """A photograph that accuracy control judges a model on."""

    photograph: np.ndarray
    truth: np.ndarray | None
    """Its mask; None if there are only PyTorch eager's maps."""
    wanted: np.ndarray
    """PyTorch eager's map."""
    feed: Arrays


class CompiledRunner(Runner):
    """A model that NNCF has compiled."""

    runtime, device = "openvino", "CPU"

    def __init__(self, model: Any, contract: Contract) -> None:
        self.inputs, self.outputs = tuple(contract.inputs), tuple(contract.outputs)
        self._model = model

    def _run(self, arrays: Arrays) -> Arrays:
        return {"map": np.array(self._model(arrays)["map"])}


class Control:
    """The validation function: the same loss, by the same bound, as that of our search.

    Args:
        end: on the monotonic clock, after which it gives up.
    """

    def __init__(self, work: Work, end: float) -> None:
        self._work, self._end = work, end
        eager, _ = work.run_eager()
        predictor = work.predictor(eager)
        self.cases = [self._case(photograph, truth, predictor) for photograph, truth in self._photographs()]

    def _photographs(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """With masks, photographs of the dataset, which the result is judged on too; otherwise those to calibrate on."""
        if (dataset := self._work.dataset) is not None:
            for number in range(len(dataset))[:: max(1, len(dataset) // VALIDATED)][:VALIDATED]:
                yield dataset.image(number), dataset.truth(number)
        else:
            for file in images.find([self._work.calibration])[:VALIDATED]:
                yield images.read(file), None

    def _case(self, photograph: np.ndarray, truth: np.ndarray | None, eager: Predictor) -> Case:
        [view] = eager.fit(photograph).views
        return Case(photograph, truth, eager(photograph), {self._work.contract.inputs[0].name: view})

    def accuracy(self, model: Any, cases: Any) -> tuple[float, list[float]]:
        """1 minus the loss, of all photographs and of each."""
        predictor = self._work.predictor(CompiledRunner(model, self._work.contract))
        losses = []
        for case in cases:
            if time.monotonic() > self._end:
                raise TimeoutError(
                    f"it found nothing within {self._work.control_seconds:g} s: give --control-seconds more"
                )
            losses.append(loss(predictor(case.photograph), case))
        each = np.array(losses)
        return 1 - float(each.mean(0).max()), [1 - float(worse) for worse in each.max(1)]


def loss(found: np.ndarray, case: Case) -> tuple[float, float]:
    """What a map loses of MAE and of F at 0.5."""
    if case.truth is None:
        return float(np.abs(found - case.wanted).mean()), 1 - agreement(found, case.wanted)
    (own, _), (eager, _) = judge(found, case.truth), judge(case.wanted, case.truth)
    return own.mae - eager.mae, eager.f_half - own.f_half
