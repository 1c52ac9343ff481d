"""`r2mrf predict --server`: what it refuses, and how it opens a model on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from r2mrf_deploy.errors import InputError

if TYPE_CHECKING:
    from r2mrf_deploy.predictor import Predictor
    from r2mrf_deploy.runtimes import OpenOptions
    from r2mrf_deploy.runtimes.kserve.connection import Connection

LOCAL = (
    *("ray", "ray_address", "actors", "runtime", "buffers", "runtime_cache", "threads", "trust"),
    *("network", "settings", "weights_key", "rename"),
)
"""Parameters of `predict` that say how a model is run here."""


def opened(connection: Connection, artifact: Path | None, options: OpenOptions, *, flip: bool) -> Predictor:
    """A model on a server, for photographs.

    Args:
        artifact: says how a photograph is fitted, where the server does not know.

    Raises:
        InputError: it does not say that.
        R2mrfError: what `connect` raises.
    """
    from r2mrf_deploy.artifact import Artifact
    from r2mrf_deploy.predictor import Predictor
    from r2mrf_deploy.runtimes.served import connect

    contract = Artifact.open(artifact).contract if artifact else None
    if artifact and contract is None:
        raise InputError(f"{artifact} has no contract: beside `server`, name the artifact that is served, or none")
    runner = connect(connection, options, contract=contract, photographs=True, outputs=("map",))
    return Predictor.of(runner, runner.contract, flip=flip)
