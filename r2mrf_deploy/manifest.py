"""The manifest: the JSON beside every artifact, bound to it by SHA-256.

An artifact is one model file and its manifest, `x.onnx` + `x.onnx.json`. The model file stays native; whatever else a
loader, a person or a program embedding it has to know stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from r2mrf_deploy.environment import now
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.files import flush, sha256

DEFAULT_SIZE = (320, 320)
"""Height and width in pixels where nothing else says them: the papers' test size."""

_Deviation = Annotated[FiniteFloat, Field(gt=0)]
"""A standard deviation, by which values are divided."""


_C = TypeVar("_C", bound="Contract")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TensorSpec(_Model):
    """One input or output. A dimension is an int, or a name where it is free."""

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
    """Of the names of outputs those that are not the network's result, in their order."""
    return [name for name in names if name not in ("map", "logits")]


class Preprocess(_Model):
    """How a camera's RGB bytes become the network's input: (x / 255 - mean) / std, per channel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Deviation, _Deviation, _Deviation]
    color: Literal["RGB"] = "RGB"
    inside: bool = True
    """Whether the graph does this itself (`io` image) or expects it done (`io` tensor)."""


class RewriteRecord(_Model):
    """One exact rewrite as it was applied: how often, and what it saved."""

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
    """Where it holds code for a CPU: its architecture and instruction set, as PyTorch names them."""
    gpus: list[str] = Field(default_factory=list)
    options: dict[str, str] = Field(default_factory=dict)
    """The builder's options that were not left at their defaults, by trtexec's names."""
    built_without_gpu: bool = False
    achieved_precision: str = "not verified: no device to ask"


class Contract(_Model):
    """What a program has to know to run a model file, and how the file was made.

    The contract lies inside the file where its format has a place for it, so that a file that was moved alone still runs.
    """

    format: Literal["r2mrf-artifact/1"] = "r2mrf-artifact/1"
    kind: str
    """The format: onnx, openvino, plan, pt2."""
    network: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    export: dict[str, Any] = Field(default_factory=dict)
    """The export options that the graph was traced with."""
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    profiles: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    """For each input with free dimensions: its min, opt and max shape."""
    preprocess: Preprocess | None = None
    precision: str = "fp32"
    kept: list[str] = Field(default_factory=list)
    """Nodes that stay in higher precision, beside those that always do."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """How ranges were found: the method, the number of photographs, and the result of a search for nodes to keep."""
    opset: int | None = None
    rewrites: list[RewriteRecord] = Field(default_factory=list)
    parameters: int | None = None
    multiply_adds: int | None = None
    """Of one image at the static size, or at the optimum of the profile."""
    target: Target | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    checkpoint_sha256: str | None = None
    source_sha256: str | None = None
    """SHA-256 of the ONNX file that the file was made from."""

    def limit(self, name: str) -> list[int]:
        """The largest shape of an input with free dimensions; empty where nothing limits it."""
        return self.profiles.get(name, {}).get("max", [])

    def embedded(self) -> str:
        """The contract as the text that is put inside a file."""
        return self.model_dump_json(include=set(Contract.model_fields), exclude_defaults=True)

    @classmethod
    def parse(cls: type[_C], text: str | bytes, name: str) -> _C:
        """Read a contract or a manifest from JSON.

        Args:
            name: what the text was found in, for the message.

        Raises:
            ArtifactError: the text is something else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ArtifactError(f"{name} is not a {cls.__name__.lower()}: {where}: {first['msg']}") from None


class Manifest(Contract):
    """A contract that is bound to its file by SHA-256, and the evidence of what the file computes and how fast."""

    file: str
    sha256: str
    bytes: int
    companions: dict[str, str] = Field(default_factory=dict)
    """Further files of the artifact (OpenVINO's .bin) and their SHA-256."""
    parity: list[dict[str, Any]] = Field(default_factory=list)
    latency: list[dict[str, Any]] = Field(default_factory=list)
    accuracy: list[dict[str, Any]] = Field(default_factory=list)
    created: str = Field(default_factory=now)

    @staticmethod
    def path_for(model: Path) -> Path:
        return model.with_name(model.name + ".json")

    @classmethod
    def bind(cls, contract: Contract, file: Path, companions: Sequence[Path] = (), **evidence: Any) -> Manifest:
        """The manifest of files that are written."""
        return cls(
            **contract.model_dump(include=set(Contract.model_fields)),
            file=file.name,
            sha256=sha256(file),
            bytes=sum(f.stat().st_size for f in (file, *companions)),
            companions={f.name: sha256(f) for f in companions},
            **evidence,
        )

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest file.

        Raises:
            ArtifactError: it does not exist, is not JSON, or is not a manifest.
        """
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing: an artifact needs its manifest beside it") from None
        except OSError as e:
            raise ArtifactError(f"{path} cannot be read as a manifest: {e.strerror or e}") from None

    def write(self, path: Path) -> None:
        """Write the document to a file, not atomically."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        flush(path)
