"""``ExecProcess``: the processes of containers over one stream of messages.

A client starts processes with Init, and gets Started, their output, Exit and Done. It feeds
their input, resizes their terminals and sends them signals. When the stream ends, so do they.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from google.protobuf.any_pb2 import Any as AnyMessage

from boxwright.engine.containers import Container, ContainerGoneError, Process, Wanted
from boxwright.errors import BoxwrightError, InvalidInputError, NotFoundError
from boxwright.executor.errors import ExecFailedError
from boxwright.wire.pb import gateway_pb2
from boxwright.wire.status import RpcError, StatusCode, to_rpc_error

_log = logging.getLogger(__name__)

_STDOUT, _STDERR = 1, 2
_CHUNK = 32 << 10
_HIGH_WATER = 1 << 20
_UNKNOWN_EXIT = 255
_MAX_PROCESSES = 64
_MAX_PENDING = 64


class ExecStream(Protocol):
    """The messages of one call; :class:`boxwright.wire.server.ServerStream` has this form."""

    async def recv(self) -> gateway_pb2.ExecMessage | None:
        """Return the next message, None at the end."""

    async def send(self, message: gateway_pb2.ExecMessage) -> None:
        """Send one; waits while the client does not keep up."""


class ExecSession:
    """One call. :meth:`run` returns when the client is done."""

    def __init__(self, stream: ExecStream, containers: Mapping[str, Container]) -> None:
        self._stream = stream
        self._containers = containers
        self._processes: dict[str, _Running] = {}

    async def run(self) -> None:
        """Serve the stream; processes that are left are killed.

        Raises:
            BoxwrightError: a message makes no sense, or a process can't be started.
        """
        try:
            while (message := await self._stream.recv()) is not None:
                await self._handle(message)
        finally:
            tasks = [t for each in self._processes.values() for t in (each.task, each.feeder)]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _handle(self, message: gateway_pb2.ExecMessage) -> None:
        name = message.ProcessID
        if not name:
            raise InvalidInputError("ProcessID required")
        kind = message.WhichOneof("Input")
        if kind == "Init":
            await self._start(name, message.Init)
            return
        running = self._processes.get(name)
        if running is None:
            raise NotFoundError(f'IO for process "{name}" not found')
        process = running.process
        match kind:
            case "File":
                if message.File.Fd == 0:
                    await running.feed(message.File.Data, ends=message.File.EOF)
            case "Resize":
                await process.resize(message.Resize.Rows, message.Resize.Cols)
            case "Signal":
                await process.signal(signal_number(message.Signal.Name))

    async def _start(self, name: str, init: gateway_pb2.InitMessage) -> None:
        if name in self._processes:
            raise InvalidInputError(f"Process {name} already exists")
        if len(self._processes) >= _MAX_PROCESSES:
            raise InvalidInputError(f"more than {_MAX_PROCESSES} processes on one stream")
        container = self._containers.get(init.ContainerID)
        if container is None:
            raise ContainerGoneError(init.ContainerID)
        output = _Output()
        process = await container.start(
            Wanted(
                init,
                lambda data: output.add(_STDOUT, data),
                lambda data: output.add(_STDERR, data),
            )
        )
        output.process = process
        self._processes[name] = _Running(
            process, asyncio.create_task(self._follow(name, init, process, output))
        )

    async def _follow(
        self, name: str, init: gateway_pb2.InitMessage, process: Process, output: _Output
    ) -> None:
        """Tell the client about one process from its start to its end."""
        send = self._stream.send
        try:
            await send(_message(name, Started=gateway_pb2.StartedMessage()))
            process.ended.add_done_callback(lambda _: output.end())
            while (piece := await output.next()) is not None:
                fd, data = piece
                if fd in init.Fds:
                    await send(_message(name, File=gateway_pb2.FdMessage(Fd=fd, Data=data)))
            for fd in sorted({_STDOUT, _STDERR} & set(init.Fds)):
                await send(_message(name, File=gateway_pb2.FdMessage(Fd=fd, EOF=True)))
            await send(_message(name, Exit=_exit(process.ended)))
            await send(_message(name, Done=gateway_pb2.DoneMessage()))
        except BoxwrightError as exc:
            _log.debug("process %s: the client has gone: %s", name, exc)
        finally:
            if (running := self._processes.get(name)) is not None:
                running.feeder.cancel()
            if not process.ended.done():
                process.ended.cancel()
                await asyncio.wait([process.ended])


class _Running:
    """A process, the task that tells about it, and the task that feeds its input."""

    def __init__(self, process: Process, task: asyncio.Task[None]) -> None:
        self.process = process
        self.task = task
        self._pending: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_PENDING)
        self.feeder = asyncio.create_task(self._feed())

    async def feed(self, data: bytes, *, ends: bool) -> None:
        """Queue input. A process that does not read keeps the client waiting, when much is due.

        Signals and sizes of terminals come through until then.
        """
        for item in (*([data] if data else []), *([None] if ends else [])):
            putting = asyncio.ensure_future(self._pending.put(item))
            await asyncio.wait({putting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            putting.cancel()

    async def _feed(self) -> None:
        while (data := await self._pending.get()) is not None:
            await self.process.write(data)
        self.process.close_input()


class _Output:
    """Output on its way to the client: a limited amount, then the process waits."""

    def __init__(self) -> None:
        self.process: Process | None = None
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._ended = False
        self._more = asyncio.Event()

    def add(self, fd: int, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            self._pieces.append((fd, data[start : start + _CHUNK]))
        self._size += len(data)
        self._more.set()
        if self._size > _HIGH_WATER and self.process is not None:
            self.process.pause()

    def end(self) -> None:
        self._ended = True
        self._more.set()

    async def next(self) -> tuple[int, bytes] | None:
        """Return the next piece; None when the process has ended and all is read."""
        while not self._pieces:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        piece = self._pieces.popleft()
        self._size -= len(piece[1])
        if self._size <= _HIGH_WATER // 2 and self.process is not None:
            self.process.resume()
        return piece


def signal_number(name: str) -> int:
    """Return the number of a signal's name, with or without ``SIG``.

    Raises:
        InvalidInputError: there is no such signal.
    """
    try:
        return signal.Signals["SIG" + name.upper().removeprefix("SIG")].value
    except KeyError:
        raise InvalidInputError(f"Unknown signal {name[:40]}") from None


def _exit(ended: asyncio.Future[None]) -> gateway_pb2.ExitMessage:
    if ended.cancelled():
        # The container was released, or its build has ended: clients look for these words.
        error: BaseException | None = RpcError(StatusCode.CANCELLED, "context canceled")
    else:
        error = ended.exception()
    if error is None:
        return gateway_pb2.ExitMessage(Code=0)
    code = error.process_exit_code if isinstance(error, ExecFailedError) else _UNKNOWN_EXIT
    status = to_rpc_error(error)
    message = gateway_pb2.ExitMessage(Code=code & 0xFFFF_FFFF)
    message.Error.code = int(status.status)
    message.Error.message = status.message
    for detail in status.details:
        if isinstance(detail, AnyMessage):
            message.Error.details.add().CopyFrom(detail)
    return message


def _message(name: str, **field: object) -> gateway_pb2.ExecMessage:
    return gateway_pb2.ExecMessage(ProcessID=name, **field)  # type: ignore[arg-type]
