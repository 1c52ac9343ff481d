"""What a search has found so far, in a file, so that a search that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from r2mrf_deploy.errors import InputError, reading
from r2mrf_deploy.files import document, refuse_unwritable, write_atomically


def digest(subject: Mapping[str, Any]) -> str:
    """What tells a search from others."""
    return hashlib.sha256(json.dumps(subject, sort_keys=True, default=str).encode()).hexdigest()


class _Stored(BaseModel):
    subject: str
    found: dict[str, Any]


class Journal:
    """Values by key, each found only once.

    Args:
        file: where they are kept; None keeps them in memory.
        subject: what they are about: the model, the photographs, the versions of what computes.

    Raises:
        InputError: the file is damaged, or it has another subject.
    """

    def __init__(self, file: Path | None, subject: Mapping[str, Any]) -> None:
        self._file = file
        self._subject = digest(subject)
        self._found: dict[str, Any] = {}
        if file is None:
            return
        refuse_unwritable(file)
        if file.exists():
            with reading(file, InputError, "is not a stored search", "delete it"):
                stored = _Stored.model_validate_json(document(file))
            if stored.subject != self._subject:
                raise InputError(
                    f"{file} belongs to a search with another model, other photographs, options or versions: delete it, or "
                    "name another file"
                )
            self._found = stored.found

    def get(self, key: str, find: Callable[[], Any]) -> Any:
        """The value of a key, found now unless it is known. It must be what JSON can hold."""
        if key not in self._found:
            self._found[key] = find()
            if self._file is not None:
                stored = _Stored(subject=self._subject, found=self._found)
                write_atomically(self._file, stored.model_dump_json().encode())
        return self._found[key]
