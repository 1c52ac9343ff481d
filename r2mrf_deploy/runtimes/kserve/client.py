"""Requests to a server: each in its time, and again while the server is away.

All requests of a process run on one event loop in a thread of its own, so that any number of threads may send them, and any
number can be under way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from functools import cache
from typing import Any, TypeVar

from r2mrf_deploy.errors import ArtifactError, InputError, first_line
from r2mrf_deploy.runtimes.kserve.connection import Connection, ServerUnavailable
from r2mrf_deploy.runtimes.kserve.tensors import Tensor
from r2mrf_deploy.runtimes.kserve.wire import Broken, Question, Refused, Wire
from r2mrf_deploy.wording import masked, plain

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds before a request is repeated: they double each time, and half of each is random, so that those who waited together
do not come back together."""

OPTIONAL: Collection[Question] = ("config", "stats", "index")
"""What a server may be told not to answer everybody."""

log = logging.getLogger(__name__)


class Client:
    """A connection to a server that outlasts the server's restarts. Threads may share it.

    Raises:
        ServerUnavailable: from every request, if the server is away for longer than `retry_for`, or does not answer within
            `deadline`, or does not let us in.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.address = str(connection.where)
        if connection.token and not (connection.where.secure or connection.where.loopback):
            log.warning("the token goes to %s without encryption: use https:// or grpcs://", self.address)
        self._loop = _running_loop(os.getpid())
        self._waiting: set[Future[Any]] = set()
        self._wire: Wire = self.call(self._opened())

    async def _opened(self) -> Wire:
        if self.connection.where.scheme.startswith("grpc"):
            from r2mrf_deploy.runtimes.kserve.over_grpc import GrpcWire

            return GrpcWire(self.connection)
        from r2mrf_deploy.runtimes.kserve.over_http import HttpWire

        return HttpWire(self.connection)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop, and wait for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._waiting.add(future)
        try:
            return future.result()
        except CancelledError:
            raise ServerUnavailable(f"{self.address}: the request was given up") from None
        except BaseException:  # Ctrl-C: nobody waits for it any longer
            future.cancel()
            raise
        finally:
            self._waiting.discard(future)

    def abandon(self) -> None:
        """Give up what is under way: whoever waits for it gets a ServerUnavailable."""
        for future in list(self._waiting):
            future.cancel()

    async def ask(self, what: Question, model: str = "", version: str = "") -> dict[str, Any] | None:
        """A question's answer; None where the server does not know the question or the model, or keeps the answer to itself.

        Raises:
            ArtifactError: the server says something that the protocol does not have.
        """
        try:
            return await self._retried(lambda: self._wire.ask(what, model, version))
        except Refused as e:
            if e.why == "missing" or (what in OPTIONAL and e.why != "late"):
                return None
            raise self._error(e) from None

    def request(self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> Any:
        return self._wire.request(model, version, inputs, outputs)

    async def infer(self, model: str, version: str, request: Any) -> list[Tensor]:
        """Send a `request`.

        Raises:
            InputError: the server cannot use it.
            ArtifactError: the server failed, or its answer is damaged.
        """

        async def attempt() -> list[Tensor]:
            try:
                return await self._wire.infer(request)
            except Refused as e:
                # a server that has just started may not have loaded its models yet
                if e.why not in ("missing", "bad") or await self._ready(model, version):
                    raise
                raise Broken(f"the model is not ready: {e}") from None

        try:
            return await self._retried(attempt)
        except Refused as e:
            raise self._error(e) from None

    async def _ready(self, model: str, version: str) -> bool:
        try:
            return (await self._wire.ask("ready", model, version)).get("ready") is True
        except Refused:
            return False

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
        patience = self.connection.retry_for
        ends = loop.time() + patience
        while True:
            try:
                return await attempt()
            except Broken as e:
                left = ends - loop.time()
                if left <= 0:
                    tried = f", and did not come back within {patience:g} s (`retry_for`)" if patience else ""
                    raise ServerUnavailable(f"{self.address}: {self.said(e)}{tried}") from None
                log.info("%s: %s; trying again for up to %g s", self.address, self.said(e), patience)
                await asyncio.sleep(min(pause * random.uniform(0.5, 1), left))
                pause = min(2 * pause, LONGEST_PAUSE)
            except ArtifactError as e:
                raise ArtifactError(f"{self.address}: {self.said(e)}") from None

    def said(self, error: Exception) -> str:
        """What a server or a library said, as a part of one line, without our secrets."""
        text = first_line(error)
        if self.connection.token:
            text = text.replace(self.connection.token, "***")
        return plain(masked(text))[:400]

    def _error(self, refused: Refused) -> Exception:
        said = f"{self.address}: {self.said(refused)}"
        if refused.why == "late":
            return ServerUnavailable(f"{said} (`deadline`)")
        if refused.why == "denied":
            return ServerUnavailable(said)
        return ArtifactError(said) if refused.why == "failed" else InputError(said)

    def close(self) -> None:
        self.call(self._wire.close())


@cache
def _running_loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop, of a process: after a fork, the thread is not there any longer."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="kserve", daemon=True).start()
    return loop
