"""The engine's end of the socket to the sandbox supervisor.

A :class:`SupervisorLink` owns one supervisor process from :meth:`~SupervisorLink.start` to
:meth:`~SupervisorLink.close`. It is used from the event loop only. When the supervisor ends
unasked, every run in it fails with :class:`SandboxLostError` and the link is dead; the executor
starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boxwright
from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import to_worker
from boxwright.executor.errors import RuntimeFailedError, SandboxLostError
from boxwright.executor.streams import set_once
from boxwright.sandbox import propagation, protocol

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0  # it ends sooner if it fails; a machine may stand still meanwhile
_PROGRAM = (
    "import sys; sys.path[:0]=[sys.argv.pop(1)]; "
    "from boxwright.sandbox.supervisor import main; main()"
)


@dataclass(frozen=True, slots=True)
class SandboxFile:
    """A file in the run's private folder, which only the sandbox sees."""

    name: str
    data: bytes = field(repr=False)
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One process for the supervisor to start; descriptors stay the caller's to close.

    ``after`` is the container that it enters, if that may still be coming up.
    """

    id: str
    argv: Sequence[str]
    files: Sequence[SandboxFile]
    stdin: int
    stdout: int
    stderr: int
    cgroup: str = ""
    memory_bytes: int = 0
    has_pidfile: bool = True
    is_stoppable: bool = False
    after: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a started process ended: exit code, or the signal that killed it (0: none)."""

    code: int
    signal: int
    asked: bool
    log: str
    usage: dict[str, int]


class _Run:
    __slots__ = ("ended", "on_started", "sizing")

    def __init__(
        self, ended: asyncio.Future[Outcome], on_started: Callable[[], None] | None
    ) -> None:
        self.ended = ended
        self.on_started = on_started
        self.sizing: deque[asyncio.Future[None]] = deque()


class SupervisorLink:
    """A running supervisor."""

    def __init__(self, sock: socket.socket, child: subprocess.Popen[bytes], base: Path) -> None:
        self._sock = sock
        self._child = child
        self._base = base
        self._loop = asyncio.get_running_loop()
        self._runs: dict[str, _Run] = {}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._send_lock = asyncio.Lock()
        self._alive = True
        self.on_low: Callable[[int], None] | None = None
        self._loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    async def start(cls, base: Path, *, shares_processes: bool = False) -> SupervisorLink:
        """Start a supervisor whose private tmpfs lies on the existing folder ``base``.

        With ``shares_processes`` it and its steps stay in this process's PID namespace.

        Raises:
            RuntimeFailedError: it can't be started, or namespaces are refused.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        try:
            child = await to_worker(_spawn, theirs.fileno(), base, shares_processes)
        except OSError as exc:
            ours.close()
            raise RuntimeFailedError("can't start the sandbox", detail=str(exc)) from exc
        finally:
            theirs.close()
        link = cls(ours, child, base)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await link._ready
        except TimeoutError as exc:
            await link.close()
            raise RuntimeFailedError(
                "can't start the sandbox", detail=f"no answer within {_START_TIMEOUT_S:.0f} s"
            ) from exc
        except BaseException:
            await link.close()
            raise
        return link

    @property
    def is_alive(self) -> bool:
        """Whether runs can still be started."""
        return self._alive

    @property
    def base(self) -> Path:
        """The folder below which each run's private files appear, as ``<base>/<id>/<name>``."""
        return self._base

    @property
    def pid(self) -> int:
        """The process id of the outer supervisor process."""
        return self._child.pid

    async def run(
        self, request: RunRequest, on_started: Callable[[], None] | None = None
    ) -> Outcome:
        """Start a process and wait until it has ended and left nothing behind.

        Cancelling kills the process and still waits for its end.

        Raises:
            RuntimeFailedError: it could not be started.
            SandboxLostError: the supervisor ended first.
        """
        if not self._alive:
            raise _lost()
        run = _Run(self._loop.create_future(), on_started)
        self._runs[request.id] = run
        try:
            await self._send_run(request)
            return await self._wait(request.id, run)
        finally:
            del self._runs[request.id]

    async def _wait(self, run_id: str, run: _Run) -> Outcome:
        try:
            return await asyncio.shield(run.ended)
        except asyncio.CancelledError:
            if run.ended.cancelled():
                raise
            if not run.ended.done():
                await self.kill(run_id)
                await _until_done(run.ended)
            run.ended.exception()
            raise

    async def kill(self, run_id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the first process of a run's container, as soon as there is one."""
        with contextlib.suppress(SandboxLostError):
            await self._send({"op": "kill", "id": run_id, "signal": int(number)}, ())

    async def resize(self, run_id: str, rows: int, columns: int) -> None:
        """Set the size of the terminal that the first process of a run has.

        It is set when this returns, so that what is typed next is read with it; or the process has
        ended, or has no terminal.
        """
        run = self._runs.get(run_id)
        if run is None:
            return
        sized: asyncio.Future[None] = self._loop.create_future()
        run.sizing.append(sized)  # each message is answered, in order
        message = {"op": "resize", "id": run_id, "rows": rows, "columns": columns}
        with contextlib.suppress(SandboxLostError):
            await self._send(dict(message), ())
            either: set[asyncio.Future[Any]] = {sized, run.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def watch(self, path: str, free_bytes: int) -> None:
        """Stop stoppable runs and call ``on_low`` when the disk has less free than this."""
        with contextlib.suppress(SandboxLostError):
            await self._send({"op": "watch", "path": path, "free": free_bytes}, ())

    async def resume(self, path: str, free_bytes: int, run_ids: Sequence[str] | None) -> None:
        """Let runs go on that were stopped, or all; from that moment on watch for another mark."""
        ids = None if run_ids is None else list(run_ids)
        with contextlib.suppress(SandboxLostError):
            await self._send({"op": "watch", "path": path, "free": free_bytes, "ids": ids}, ())

    async def close(self) -> None:
        """End the supervisor and with it everything that runs in it."""
        self._lose()
        try:
            await to_worker(self._child.wait, 5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            await to_worker(self._child.wait)

    async def _send_run(self, request: RunRequest) -> None:
        message: dict[str, object] = {
            "op": "run",
            "id": request.id,
            "argv": list(request.argv),
            "files": [[f.name, f.mode, f.uid, f.gid, len(f.data)] for f in request.files],
            "cgroup": request.cgroup or None,
            "memory": request.memory_bytes,
            "pidfile": request.has_pidfile,
            "stoppable": request.is_stoppable,
            "after": request.after or None,
        }
        payload = os.memfd_create("boxwright-run", os.MFD_CLOEXEC)
        try:
            for file in request.files:
                view = memoryview(file.data)
                while view:
                    view = view[os.write(payload, view) :]
            fds = (payload, request.stdin, request.stdout, request.stderr)
            await self._send(message, fds)
        finally:
            os.close(payload)

    async def _send(self, message: dict[str, object], fds: Sequence[int]) -> None:
        data = protocol.encode(message)
        async with self._send_lock:
            while self._alive:
                try:
                    socket.send_fds(self._sock, [data], list(fds))
                except BlockingIOError:
                    await self._writable()
                except OSError:
                    self._lose()
                else:
                    return
        raise _lost()

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        fd = self._sock.fileno()
        self._loop.add_writer(fd, set_once, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(fd)

    def _readable(self) -> None:
        while self._alive:
            try:
                data = self._sock.recv(protocol.MAX_PACKET_BYTES + 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            self._handle(protocol.decode(data))

    def _handle(self, message: dict[str, object]) -> None:
        event = message["ev"]
        run = self._runs.get(str(message.get("id", "")))
        if event == "ready":
            self._ready.set_result(None)
        elif event == "failed" and run is None and not self._ready.done():
            self._ready.set_exception(_start_failure(message))
        elif event == "low":
            free = message["free"]
            if self.on_low is not None and isinstance(free, int):
                self.on_low(free)
        elif run is None or run.ended.done():
            return
        elif event == "started":
            if run.on_started is not None:
                run.on_started()
        elif event == "sized":
            sized = run.sizing.popleft()
            if not sized.done():
                sized.set_result(None)
        elif event == "failed":
            run.ended.set_exception(_run_failure(message))
        elif event == "exited":
            run.ended.set_result(_outcome(message))

    def _lose(self) -> None:
        if not self._alive:
            return
        self._alive = False
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        if not self._ready.done():
            self._ready.set_exception(
                RuntimeFailedError("can't start the sandbox", detail="its process ended at once")
            )
        for run in self._runs.values():
            if not run.ended.done():
                run.ended.set_exception(_lost())


def _spawn(fd: int, base: Path, shares_processes: bool) -> subprocess.Popen[bytes]:  # noqa: FBT001
    propagation.share(base)
    mode = ["shared"] if shares_processes else []
    package_root = Path(boxwright.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-SI", "-c", _PROGRAM, str(package_root), str(fd), str(base), *mode],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        start_new_session=True,  # the terminal's signals are for the engine
    )


async def _until_done(future: asyncio.Future[Outcome]) -> None:
    """Wait for ``future`` even when this task is cancelled again meanwhile."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


def _lost() -> SandboxLostError:
    return SandboxLostError(
        "the sandbox supervisor ended while the step ran",
        detail="its process was killed or the machine ran out of memory",
        hint="run the build again: finished steps are cached",
    )


def _start_failure(message: dict[str, object]) -> RuntimeFailedError:
    return RuntimeFailedError(
        "can't start the sandbox",
        detail=f"{message['stage']}: {_strerror(message)}",
        hint="run as root, or as an ordinary user where user namespaces are allowed "
        "(boxwright doctor explains)",
    )


def _run_failure(message: dict[str, object]) -> RuntimeFailedError:
    return RuntimeFailedError(
        "can't start the step's process", detail=f"{message['stage']}: {_strerror(message)}"
    )


def _strerror(message: dict[str, object]) -> str:
    number = message["errno"]
    text = os.strerror(number) if isinstance(number, int) else "unknown error"
    return f"{text} ({message['path']})" if message.get("path") else text


def _outcome(message: dict[str, object]) -> Outcome:
    code, number, usage = message["code"], message["signal"], message["usage"]
    assert isinstance(code, int)
    assert isinstance(number, int)
    assert isinstance(usage, dict)
    return Outcome(code, number, bool(message["asked"]), str(message["log"]), usage)
