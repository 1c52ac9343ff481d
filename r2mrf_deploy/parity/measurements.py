"""What a search has measured so far, in a file, so that a search that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from r2mrf_deploy.errors import InputError, reading
from r2mrf_deploy.files import document, refuse_unwritable, write_atomically

Value = TypeVar("Value")


def digest(subject: Mapping[str, Any]) -> str:
    """What tells a search from others."""
    return hashlib.sha256(json.dumps(subject, sort_keys=True, default=str).encode()).hexdigest()


class _Stored(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")

    subject: str
    found: dict[str, Any]


class Measurements(Generic[Value]):
    """Values by key, each measured only once.

    Args:
        file: where they are kept; None keeps them in memory.
        subject: what they are about: the model, the photographs, the versions of what computes.
        kind: the type of a value, as pydantic takes it.

    Raises:
        InputError: the file is damaged, or it has another subject.
    """

    def __init__(self, file: Path | None, subject: Mapping[str, Any], kind: Any) -> None:
        self._file = file
        self._subject = digest(subject)
        self._found: dict[str, Value] = {}
        if file is None:
            return
        refuse_unwritable(file)
        if file.exists():
            with reading(file, InputError, "is not a stored search", "delete it"):
                stored = _Stored.model_validate_json(document(file))
                self._found = TypeAdapter(dict[str, kind]).validate_python(stored.found)
            if stored.subject != self._subject:
                raise InputError(
                    f"{file} belongs to a search with another model, other photographs, options or versions: delete it, or "
                    "name another file"
                )

    def get(self, key: str, find: Callable[[], Value]) -> Value:
        """The value of a key, measured now unless it is known."""
        if key not in self._found:
            self._found[key] = find()
            if self._file is not None:
                stored = _Stored(subject=self._subject, found=self._found)
                write_atomically(self._file, stored.model_dump_json().encode())
        return self._found[key]
