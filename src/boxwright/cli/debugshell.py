"""``build --debug-shell``: a shell where a RUN failed, before the build gives up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator

from boxwright.client.failedstep import FailedStep, Keys
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.progress.events import Event, VertexEvent

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_CHUNK = 4096
_LAST_WORDS_S = 2.0


class DebugShell:
    """The shell of one build, and its progress, which is not drawn over the shell.

    Args:
        draw: Draws progress.
    """

    def __init__(self, draw: Callable[[list[Event]], None]) -> None:
        self._draw = draw
        self._held: list[Event] | None = None
        self._has_failed = asyncio.Event()
        self.was_asked = False
        """Whether a command failed, so that a shell could be thought of."""

    def update(self, events: list[Event]) -> None:
        """Take progress; what comes while the shell is open is drawn afterwards."""
        if self._held is not None:
            self._held += events
            return
        self._draw(events)
        if any(isinstance(event, VertexEvent) and event.error for event in events):
            self._has_failed.set()

    async def open(self, step: FailedStep) -> None:
        """Run a shell in the state that a failed command left, on this terminal."""
        self.was_asked = True
        # What the command wrote last is still on its way, by another call.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._has_failed.wait()
        held: list[Event] = []
        self._held = held
        try:
            await _run_shell(step)
        finally:
            self._held = None
            self._draw(held)


async def _run_shell(step: FailedStep) -> None:
    is_terminal = os.isatty(_STDIN) and os.isatty(_STDOUT)
    sys.stderr.write(
        f"\nerror: {step.error.brief}\n"
        f"The command was: {step.text}\n"
        f"A shell ({step.shell[0]}) in the state that it left; the build ends when the shell "
        "does.\n"
    )
    sys.stderr.flush()
    with _raw_terminal() if is_terminal else contextlib.nullcontext():
        try:
            await step.run(
                step.shell, _keys(is_terminal=is_terminal), _write, is_terminal=is_terminal
            )
        except BoxwrightError as error:
            sys.stderr.write(f"no shell can be opened: {error}\r\n")
            sys.stderr.flush()


def _write(fd: int, data: bytes) -> None:
    stream = sys.stderr if fd == _STDERR else sys.stdout
    stream.buffer.write(data)
    stream.buffer.flush()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Hand every key on as it is."""
    before = termios.tcgetattr(_STDIN)
    tty.setraw(_STDIN)
    try:
        yield
    finally:
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)


async def _keys(*, is_terminal: bool) -> AsyncIterator[Keys]:
    """Yield what comes on standard input, and the sizes of the terminal."""
    loop = asyncio.get_running_loop()
    resized = asyncio.Event()
    if is_terminal:
        resized.set()  # the first size
        loop.add_signal_handler(signal.SIGWINCH, resized.set)
    reading: asyncio.Future[bytes] | None = asyncio.ensure_future(_read_input())
    resizing = asyncio.ensure_future(resized.wait())
    try:
        while True:
            pending = [each for each in (reading, resizing) if each is not None]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if resizing.done():
                resized.clear()
                resizing = asyncio.ensure_future(resized.wait())
                size = os.get_terminal_size(_STDIN)
                yield Keys(rows=size.lines, columns=size.columns)
            if reading is not None and reading.done():
                data = reading.result()
                reading = asyncio.ensure_future(_read_input()) if data else None
                yield Keys(data or None)
    finally:
        if is_terminal:
            loop.remove_signal_handler(signal.SIGWINCH)
        tasks = [task for task in (reading, resizing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_input() -> bytes:
    """Return the next bytes of standard input, empty at its end; read only when asked."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    try:
        loop.add_reader(_STDIN, wake)
    except OSError:  # a file: it is always readable, so the kernel refuses to watch it
        return await to_worker(os.read, _STDIN, _CHUNK)
    try:
        await readable
    finally:
        loop.remove_reader(_STDIN)
    return os.read(_STDIN, _CHUNK)
