"""The manifest: the JSON beside every artifact, bound to it by SHA-256.

An artifact is one model file and its manifest, `x.onnx` + `x.onnx.json`. The model file stays in its native format. The
manifest holds whatever else a loader, a person or an embedding program has to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from r2mrf_deploy.environment import now
from r2mrf_deploy.errors import ArtifactError, no_file, reading
from r2mrf_deploy.files import document, flush, sha256

LARGEST = 1 << 20
"""Bytes of a contract or manifest. Ours have some KiB; of millions of wrong values, each would become an error message."""

DEFAULT_SIZE = (320, 320)
"""Height and width in pixels by default: the papers' test size."""

_Deviation = Annotated[FiniteFloat, Field(gt=0)]
_C = TypeVar("_C", bound="Contract")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TensorSpec(_Model):
    """One input or output. A dimension is an int, or a name if it is free."""

    name: str
    dtype: str
    """numpy's name: uint8, float32, float16, bfloat16."""
    shape: list[int | str]
    layout: Literal["NHWC", "NCHW"] | None = None

    @property
    def static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """Which dimensions are height and width."""
        return (2, 3) if self.layout == "NCHW" else (1, 2)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        dims = "×".join(map(str, self.shape))
        return f"{self.name}: {self.dtype} [{dims}]" + (f" {self.layout}" if self.layout else "")


def side_outputs(names: Iterable[str]) -> list[str]:
    """The output names that are not the network's result, in their order."""
    return [name for name in names if name not in ("map", "logits")]


class Preprocess(_Model):
    """How a camera's RGB bytes become the network's input: (x / 255 - mean) / std, per channel."""

    model_config = ConfigDict(frozen=True)

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Deviation, _Deviation, _Deviation]
    color: Literal["RGB"] = "RGB"
    inside: bool = True
    """Whether the graph does this itself (`io` image) or expects its result (`io` tensor)."""
    longest_side: PositiveInt = 640
    """The longest side, in pixels, that a photograph is reduced to where the input's size is free: the scale that the
    network was trained at. What looks sharp in a photograph of 12 megapixels is soft from pixel to pixel."""
    fit: Literal["letterbox", "stretch"] = "stretch"
    """What a static input does with a photograph of another aspect (see `fitting`). Artifacts that do not say it were made
    before there was a choice."""


NEUTRAL = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""For an artifact that says nothing: values in 0 .. 1. An artifact that takes bytes does not use it."""


class RewriteRecord(_Model):
    """One exact rewrite: how often it was applied, and what it saved."""

    name: str
    count: int
    multiply_adds_before: int
    multiply_adds_after: int


class Target(_Model):
    """What a plan or a package was built for."""

    runtime: str
    runtime_version: str
    device: Literal["cuda", "cpu"] = "cuda"
    compute_capabilities: list[str]
    cpu: str | None = None
    """For code that runs on a CPU, its architecture and instruction set as PyTorch names them."""
    gpus: list[str] = Field(default_factory=list)
    options: dict[str, str] = Field(default_factory=dict)
    """The builder options that were set, by trtexec's names."""
    built_without_gpu: bool = False
    achieved_precision: str = "not verified: no device to ask"


class Contract(_Model):
    """What a program has to know to run a model file, and how the file was made.

    If the format has a place for it, the contract is also stored inside the file, which then runs without its manifest.
    """

    format: Literal["r2mrf-artifact/1"] = "r2mrf-artifact/1"
    kind: str
    """The format: onnx, openvino, plan, pt2, executorch, web."""
    network: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    export: dict[str, Any] = Field(default_factory=dict)
    """The export options that the graph was traced with."""
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    profiles: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    """The min, opt and max shape of each input with free dimensions."""
    preprocess: Preprocess | None = None
    precision: str = "fp32"
    share: float | None = None
    """The share of the multiply-adds that is in a reduced `precision` by the types in the ONNX graph, 0 to 1."""
    kept: list[str] = Field(default_factory=list)
    """Nodes that stay in higher precision, in addition to those that always do."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """How ranges were found: the method, the number of photographs, and the result of a search for nodes to keep."""
    compression: dict[str, Any] = Field(default_factory=dict)
    """How a compressed network may differ from the full one: the bound, what was measured, and what was changed."""
    opset: int | None = None
    rewrites: list[RewriteRecord] = Field(default_factory=list)
    parameters: int | None = None
    multiply_adds: int | None = None
    """For one image at the static size, or at the profile's optimum."""
    target: Target | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    checkpoint_sha256: str | None = None
    source_sha256: str | None = None
    """Of the ONNX file that this file was made from."""

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        """Layouts have four dimensions. A profile belongs to an input, has its rank, and 1 <= min <= opt <= max."""
        for spec in (*self.inputs, *self.outputs):
            if spec.layout and len(spec.shape) != 4:
                raise ValueError(f"{spec} has a layout, and not four dimensions")
            if any(isinstance(d, int) and d < 0 for d in spec.shape):
                raise ValueError(f"{spec} has a negative dimension")
        shapes = {spec.name: spec.shape for spec in self.inputs}
        for name, profile in self.profiles.items():
            if name not in shapes or set(profile) != {"min", "opt", "max"}:
                raise ValueError(f"the profile of {name} is not the min, opt and max of an input")
            if {len(sizes) for sizes in profile.values()} != {len(shapes[name])}:
                raise ValueError(f"the profile of {name} has another rank than the input")
            for fixed, low, best, high in zip(
                shapes[name], profile["min"], profile["opt"], profile["max"], strict=True
            ):
                if not 1 <= low <= best <= high or (isinstance(fixed, int) and not low == high == fixed):
                    raise ValueError(f"the profile of {name} has min {low}, opt {best}, max {high} for size {fixed}")
        return self

    def profile(self, name: str) -> dict[str, list[int]]:
        """The min, opt and max shape of an input with free dimensions; empty if nothing limits it."""
        return self.profiles.get(name, {})

    def embedded(self) -> str:
        """The contract as the text that is stored inside a file."""
        return self.model_dump_json(include=set(Contract.model_fields), exclude_defaults=True)

    @classmethod
    def parse(cls: type[_C], text: str | bytes, name: str) -> _C:
        """Read a contract or a manifest from JSON; `name` says in the message where the text was found.

        Raises:
            ArtifactError: the text is not a valid contract or manifest.
        """
        with reading(name, ArtifactError, f"is not a {cls.__name__.lower()}"):
            if len(text) > LARGEST:
                raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
            try:
                return cls.model_validate_json(text)
            except ValidationError as e:
                first = e.errors(include_url=False, include_input=False, include_context=False)[0]
                where = ".".join(map(str, first["loc"])) or "the document"
                raise ArtifactError(f"{name} is not a {cls.__name__.lower()}: {where}: {first['msg']}") from None


class Manifest(Contract):
    """A contract bound to its file by SHA-256, with the evidence of what the file computes and how fast."""

    file: str
    sha256: str
    bytes: int
    companions: dict[str, str] = Field(default_factory=dict)
    """The SHA-256 of each further file of the artifact (OpenVINO's .bin)."""
    parity: list[dict[str, Any]] = Field(default_factory=list)
    latency: list[dict[str, Any]] = Field(default_factory=list)
    accuracy: list[dict[str, Any]] = Field(default_factory=list)
    created: str = Field(default_factory=now)

    @staticmethod
    def path_for(model: Path) -> Path:
        return model.with_name(model.name + ".json")

    @classmethod
    def bind(cls, contract: Contract, file: Path, companions: Sequence[Path]) -> Manifest:
        """The manifest of files that have been written."""
        return cls(
            **contract.model_dump(include=set(Contract.model_fields)),
            file=file.name,
            sha256=sha256(file),
            bytes=sum(f.stat().st_size for f in (file, *companions)),
            companions={f.name: sha256(f) for f in companions},
        )

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest file.

        Raises:
            ArtifactError: the file cannot be read, or is not a manifest.
        """
        if path.exists() and not path.is_file():
            raise ArtifactError(str(no_file(path)))
        with reading(path, ArtifactError, "is not a manifest"):
            try:
                return cls.parse(document(path), str(path))
            except FileNotFoundError:
                raise ArtifactError(f"{path} is missing: an artifact needs its manifest beside it") from None

    def write(self, path: Path) -> None:
        """Write the manifest to a file, not atomically."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        flush(path)
