"""What the two ways to talk to a server, HTTP and gRPC, have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from r2mrf_deploy.runtimes.kserve.tensors import Tensor

Question = Literal["server", "model", "config", "stats", "ready", "index"]
UNHEALTHY = "is not healthy"
"""What Triton says of a python model whose process has died: only a restart of the server brings it back."""


class Broken(Exception):
    """The server is away, or says that it is busy: another try may succeed."""


class Refused(Exception):
    """The server's answer is no."""

    def __init__(self, why: Literal["denied", "missing", "bad", "failed", "late"], said: str) -> None:
        super().__init__(said)
        self.why = why
        """denied: it does not let us in; missing: it does not know this model or request; bad: it cannot use this request;
        failed: it could not compute it; late: it did not answer in time."""


class Wire(ABC):
    """One way to talk to a server. Its methods raise Broken, Refused and ArtifactError; they run on the event loop."""

    @abstractmethod
    async def ask(self, what: Question, model: str, version: str) -> dict[str, Any]:
        """A question's answer, as the protocol's JSON has it."""

    @abstractmethod
    def request(self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> Any:
        """An inference, ready to be sent any number of times."""

    @abstractmethod
    async def infer(self, request: Any) -> list[Tensor]: ...

    @abstractmethod
    async def close(self) -> None: ...
