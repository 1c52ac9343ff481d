"""Where the steps run, on which device and network, and at which sizes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy import gpus
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.files import write_atomically

Result = dict[str, Any]
FORMS = {"traced": False, "rewritten": True}


@dataclass(frozen=True)
class Config:
    """An image size, (height, width), and a batch size to measure at."""

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}-b{self.batch}"


@dataclass(frozen=True)
class Place:
    """Where the steps run, on which device and network."""

    folder: Path
    device: str
    """"cuda", or "cpu" for a dry run."""
    network: str
    settings: tuple[tuple[str, str], ...] = ()
    seconds: float = 1.0
    """How long each candidate is timed."""
    result: Path | None = None
    """Where this step's result is written."""

    def order(self) -> dict[str, Any]:
        """The fields as JSON values, for another process."""
        return asdict(self) | {"folder": str(self.folder), "result": None}

    def keep(self, found: Result) -> None:
        """Write the result so far: what a step has found is not lost if it crashes later."""
        if self.result:
            write_atomically(self.result, json.dumps(found, default=str).encode())

    @classmethod
    def ordered(cls, order: dict[str, Any]) -> Place:
        return cls(**order | {"folder": Path(order["folder"]), "settings": tuple(map(tuple, order["settings"]))})

    @property
    def checkpoint(self) -> Path:
        """An untrained checkpoint whose map is informative; made on first use."""
        path = self.folder / f"{self.network}.pth"
        if not path.exists():
            Checkpoint.init(self.network, dict(self.settings)).save(path)
        return path

    def artifact(self, config: Config, form: str, half: bool, suffix: str) -> Path:
        return self.folder / str(config) / f"{form}{'-fp16' if half else ''}{suffix}"

    def card(self) -> gpus.GPU:
        """The class of this GPU; on a CPU, the GTX 1080 Ti."""
        if self.device == "cpu":
            return gpus.get("gtx1080ti")
        from r2mrf_deploy.runtimes.cuda import bindings

        found = bindings.device()
        card = gpus.of_device(found.name, found.compute_capability)
        if card is None:
            raise RuntimeUnavailable(f"{found.name} is not in the table of GPUs: add it to r2mrf_deploy/gpus.py")
        return card
