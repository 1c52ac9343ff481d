"""Where the steps run, on what, and what is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy import gpus
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import RuntimeUnavailable

Result = dict[str, Any]
FORMS = {"traced": False, "rewritten": True}


@dataclass(frozen=True)
class Config:
    """A size and a batch that everything is measured at."""

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}-b{self.batch}"


@dataclass(frozen=True)
class Place:
    """Where the steps run, and on what."""

    folder: Path
    device: str
    """"cuda", or "cpu" for a dry run."""
    network: str
    settings: tuple[tuple[str, str], ...] = ()
    seconds: float = 1.0
    """To time each candidate for."""

    def order(self) -> dict[str, Any]:
        """As JSON, for another process."""
        return asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def ordered(cls, order: dict[str, Any]) -> Place:
        return cls(**order | {"folder": Path(order["folder"]), "settings": tuple(map(tuple, order["settings"]))})

    @property
    def checkpoint(self) -> Path:
        """Untrained weights whose map is informative, made once."""
        path = self.folder / f"{self.network}.pth"
        if not path.exists():
            Checkpoint.init(self.network, dict(self.settings)).save(path)
        return path

    def artifact(self, config: Config, form: str, half: bool, suffix: str) -> Path:
        return self.folder / str(config) / f"{form}{'-fp16' if half else ''}{suffix}"

    def card(self) -> gpus.GPU:
        """The class of the GPU at hand; on a CPU, that of the mission."""
        if self.device == "cpu":
            return gpus.get("gtx1080ti")
        from r2mrf_deploy.runtimes.cuda import bindings

        found = bindings.device()
        card = gpus.of_device(found.name, found.compute_capability)
        if card is None:
            raise RuntimeUnavailable(f"the table of GPUs has no {found.name}: add it to r2mrf_deploy/gpus.py")
        return card
