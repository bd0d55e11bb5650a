"""Pipes between a step's process and the event loop.

Reading never blocks the loop and never drops: every byte that the process wrote reaches the
callback before the run is reported as ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Callable

_CHUNK = 256 << 10

Sink = Callable[[bytes], None]


class OutputPipe:
    """One output stream: the process holds :attr:`write_fd`, the loop reads the other end."""

    def __init__(self, sink: Sink) -> None:
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self._paused = False
        self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_fd, False)
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._read_fd, self._readable)

    def pause(self) -> None:
        """Read no more for now: the process waits when the pipe is full."""
        if not self._paused and self._read_fd >= 0 and not self._ended.done():
            self._paused = True
            self._loop.remove_reader(self._read_fd)

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._read_fd >= 0:
            self._paused = False
            self._loop.add_reader(self._read_fd, self._readable)

    def close_write_end(self) -> None:
        """Close our copy of the process's end, so that the stream can end."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    async def finish(self) -> None:
        """Wait until everything written has been handed to the sink."""
        self.close_write_end()
        await self._ended

    def close(self) -> None:
        """Release both ends; safe to call twice."""
        self.close_write_end()
        if self._read_fd >= 0:
            self._loop.remove_reader(self._read_fd)
            os.close(self._read_fd)
            self._read_fd = -1
        if not self._ended.done():
            self._ended.set_result(None)

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other side of a terminal has closed
            data = b""
        if data:
            try:
                self._sink(data)
            except Exception as exc:  # noqa: BLE001 - delivered to the caller by finish()
                self._fail(exc)
        elif not self._ended.done():
            self._loop.remove_reader(self._read_fd)
            self._ended.set_result(None)

    def _fail(self, exc: Exception) -> None:
        self._loop.remove_reader(self._read_fd)
        if not self._ended.done():
            self._ended.set_exception(exc)


class TerminalPipe(OutputPipe):
    """A pseudo-terminal instead of a pipe: stdin, stdout and stderr of a process with a tty."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._waiting: asyncio.Future[None] | None = None
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        os.close(self.write_fd)
        self._read_fd, self.write_fd = os.openpty()
        os.set_blocking(self._read_fd, False)
        self._loop.add_reader(self._read_fd, self._readable)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the runtime's end, in characters; see ``Executor.resize`` too."""
        if self._read_fd >= 0:
            size = struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0)
            fcntl.ioctl(self._read_fd, termios.TIOCSWINSZ, size)

    async def write(self, data: bytes) -> None:
        """Type ``data``; waits while the process does not read.

        Raises:
            BrokenPipeError: the process has ended.
        """
        view = memoryview(data)
        while view:
            if self._read_fd < 0:
                raise BrokenPipeError
            try:
                view = view[os.write(self._read_fd, view) :]
            except BlockingIOError:
                ready: asyncio.Future[None] = self._loop.create_future()
                self._waiting = ready
                self._loop.add_writer(self._read_fd, set_once, ready)
                try:
                    await ready
                finally:
                    self._stop_waiting()
            except OSError as exc:
                raise BrokenPipeError from exc

    def _stop_waiting(self) -> None:
        if self._waiting is not None and self._read_fd >= 0:
            self._loop.remove_writer(self._read_fd)
        self._waiting = None

    def close(self) -> None:
        """Hang up."""
        if self._waiting is not None:
            set_once(self._waiting)
            self._stop_waiting()
        super().close()


class InputPipe:
    """A process's stdin fed by the loop; a process that does not read only delays the writer."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write_fd, False)
        self._loop = asyncio.get_running_loop()

    async def write(self, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            BrokenPipeError: the process has closed its stdin or ended.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._write_fd, view) :]
            except BlockingIOError:
                ready: asyncio.Future[None] = self._loop.create_future()
                self._loop.add_writer(self._write_fd, set_once, ready)
                try:
                    await ready
                finally:
                    self._loop.remove_writer(self._write_fd)

    def close_read_end(self) -> None:
        """Close our copy of the process's end."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def close(self) -> None:
        """Close both ends: the process reads end of file. Safe to call twice."""
        self.close_read_end()
        if self._write_fd >= 0:
            with contextlib.suppress(OSError):
                self._loop.remove_writer(self._write_fd)
            os.close(self._write_fd)
            self._write_fd = -1


def set_once(future: asyncio.Future[None]) -> None:
    """Resolve ``future`` unless it is already: a callback for the loop."""
    if not future.done():
        future.set_result(None)
