"""A terminal for programs, and what they write on it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from types import TracebackType

CONTROL = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]|\x1b[=>]|\x07")


class Terminal:
    """A program on a terminal of 80 columns; whatever it writes to standard output or standard error is read together."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], columns: int = 80) -> None:
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            try:
                os.execvpe(command[0], list(command), dict(environment))
            finally:  # never two test runs
                os._exit(127)
        ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._terminal)
        try:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read(self, until: str | None = None, seconds: float = 60) -> str:
        """What is written, up to a text (in what is left without control sequences), or else to the end of the program."""
        found, end = b"", time.monotonic() + seconds
        while time.monotonic() < end:
            if until is not None and until in shown(found.decode(errors="replace")):
                break
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    part = os.read(self._terminal, 1 << 16)
                except OSError:  # Linux says so where others say that this is the end
                    part = b""
                if not part:
                    break
                found += part
        return found.decode(errors="replace")


def shown(text: str) -> str:
    """Text without control sequences, and without what was taken back."""
    text = CONTROL.sub("", text)
    while "\b" in text[1:] and (less := re.sub(r"[^\b]\b", "", text, count=1)) != text:
        text = less
    return text
