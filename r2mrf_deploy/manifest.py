"""The manifest: the JSON beside every artifact, bound to it by SHA-256.

An artifact is one model file and its manifest, `x.onnx` + `x.onnx.json`. The model file stays native; whatever else a
loader, a person or a program embedding it has to know stands in the manifest.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.files import sha256, write_atomically

DEFAULT_SIZE = (320, 320)
"""Height and width in pixels where nothing else says them: the papers' test size."""

_Deviation = Annotated[FiniteFloat, Field(gt=0)]
"""A standard deviation, by which values are divided."""


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


class Preprocess(_Model):
    """How a camera's RGB bytes become the network's input: (x / 255 - mean) / std, per channel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Deviation, _Deviation, _Deviation]
    color: Literal["RGB"] = "RGB"
    inside: bool = True
    """Whether the graph does this itself (`--io image`) or expects it done (`--io tensor`)."""


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


class Manifest(_Model):
    format: Literal["r2mrf-artifact/1"] = "r2mrf-artifact/1"
    file: str
    sha256: str
    bytes: int
    companions: dict[str, str] = Field(default_factory=dict)
    """Further files of the artifact (OpenVINO's .bin) and their SHA-256."""
    kind: Literal["onnx", "plan", "openvino", "pt2"]
    checkpoint_sha256: str | None = None
    source_sha256: str | None = None
    """SHA-256 of the ONNX file that a plan or an OpenVINO model was made from."""
    network: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    profiles: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    """For each input with free dimensions: its min, opt and max shape."""
    preprocess: Preprocess | None = None
    precision: str = "fp32"
    kept: list[str] = Field(default_factory=list)
    """Nodes that stay in higher precision, beside those that always do."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """How ranges were found: the method, how many photographs, and what a search for nodes to keep came to."""
    opset: int | None = None
    rewrites: list[RewriteRecord] = Field(default_factory=list)
    parameters: int | None = None
    multiply_adds: int | None = None
    """Of one image at the static size, or at the optimum of the profile."""
    target: Target | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    parity: list[dict[str, Any]] = Field(default_factory=list)
    latency: list[dict[str, Any]] = Field(default_factory=list)
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @staticmethod
    def path_for(artifact: Path) -> Path:
        return artifact.with_name(artifact.name + ".json")

    def save(self, artifact: Path) -> Path:
        """Write the manifest beside `artifact`, atomically."""
        return write_atomically(self.path_for(artifact), (self.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest file.

        Raises:
            ArtifactError: it does not exist, is not JSON, or is not a manifest.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing: an artifact needs its manifest beside it") from None
        except (OSError, UnicodeDecodeError) as e:
            raise ArtifactError(f"{path} cannot be read as a manifest: {e}") from None
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ArtifactError(f"{path} is not a manifest: {where}: {first['msg']}") from None

    @classmethod
    def beside(cls, artifact: Path) -> Manifest | None:
        """The manifest of `artifact`, checked against it; None where there is no manifest.

        Raises:
            ArtifactError: the manifest is damaged, or is not this file's.
        """
        path = cls.path_for(artifact)
        if not path.exists():
            return None
        manifest = cls.read(path)
        # OpenVINO reads the .bin beside an .xml, whatever the manifest says
        weights = artifact.with_suffix(".bin").name
        if manifest.kind == "openvino" and weights not in manifest.companions:
            raise ArtifactError(
                f"{path} is not a manifest: its companions leave out {weights}; make the artifact again"
            )
        for name in manifest.companions:
            if name in ("", ".", "..") or Path(name).name != name or not name.isprintable():
                raise ArtifactError(f"{path} is not a manifest: companion {name!r} is not beside it")
        expected = manifest.companions | {artifact.name: manifest.sha256}
        for name, digest in expected.items():
            file = artifact.with_name(name)
            try:
                found = sha256(file) if file.is_file() else None
            except OSError as e:
                raise ArtifactError(f"{file} cannot be read: {e.strerror or e}") from None
            if found is None:
                raise ArtifactError(f"{file} is missing: it belongs to {artifact.name}")
            if found != digest:
                raise ArtifactError(
                    f"{file} does not match {path.name} (SHA-256 differs): it was changed or only half written; "
                    "make the artifact again"
                )
        return manifest
