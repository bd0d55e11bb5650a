"""A program on a terminal of its own, driven by what it shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class Terminal:
    """Runs a program on a pseudo terminal; what it shows is in ``text``."""

    def __init__(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None
    ) -> None:
        self._fd, other = os.openpty()
        self.text = ""
        self._waited = 0
        self.resize(24, 80)
        self.process = subprocess.Popen(
            [str(each) for each in argv],
            env={**os.environ, **(env or {})},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(120)
        os.close(self._fd)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; the program is told, as a terminal's owner is."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def wait(self, text: str, timeout_s: float = 120.0) -> None:
        """Wait until ``text`` is shown, after what earlier calls waited for."""
        end = time.monotonic() + timeout_s
        while (found := self.text.find(text, self._waited)) < 0:
            assert self._read(end), f"{text!r} is not shown:\n{self.text}"
        self._waited = found + len(text)

    def end(self, timeout_s: float = 120.0) -> int:
        """Wait until the program has ended and return its status."""
        end = time.monotonic() + timeout_s
        while self._read(end):
            pass
        return self.process.wait(max(0.0, end - time.monotonic()))

    @property
    def has_echo(self) -> bool:
        """Whether the terminal shows what is typed, as it does unless a program took it over."""
        return bool(termios.tcgetattr(self._fd)[3] & termios.ECHO)

    def _read(self, end_s: float) -> bool:
        """Take what is shown next; False when nothing comes any more."""
        left_s = end_s - time.monotonic()
        if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
            return False
        data = b""
        with contextlib.suppress(OSError):  # EIO: the program has closed it
            data = os.read(self._fd, 65536)
        self.text += data.decode(errors="replace")
        return bool(data)
