"""Listeners and life cycle of the daemon.

:func:`serve` opens an engine, listens, and returns after a signal and a graceful end.
:class:`Front` puts an engine that is already open on the wire: the embedded owner of a state
folder uses it for ``engine.sock``, so that a second build becomes its client.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import unquote, urlsplit

from boxwright.config.schema import GrpcConfig
from boxwright.core.dataclass import dataclass
from boxwright.core.workers import install_pool
from boxwright.daemon.bridge import BridgeService
from boxwright.daemon.content import ContentService
from boxwright.daemon.control import ControlService
from boxwright.daemon.explain import ExplainService
from boxwright.daemon.health import HealthService
from boxwright.engine.engine import Engine
from boxwright.engine.preload import preload
from boxwright.engine.settings import EngineSettings
from boxwright.errors import BoxwrightError, Code
from boxwright.wire.listen import ListenError
from boxwright.wire.server import Authorize, Server
from boxwright.wire.tls import TlsOptions

_log = logging.getLogger(__name__)

ENGINE_SOCKET: Final = "engine.sock"
_SOCKET_MODE: Final = 0o660
_OWNER_MODE: Final = 0o600
_UNIX_PATH_LIMIT: Final = 107
_FOLDER_MODE: Final = 0o755
_CLOSE_GRACE_S: Final = 1.0


class DaemonConfigError(BoxwrightError):
    """The daemon can't listen as configured."""

    code = Code.CONFIG


@dataclass(frozen=True, slots=True)
class Listener:
    """One address to listen on.

    Attributes:
        address: ``unix:///path`` or ``tcp://host:port``.
        tls: certificates (tcp).
        mode: permissions of the socket file (unix).
        uid: its owner, -1 for the daemon's own.
        gid: its group, -1 for the daemon's own.
    """

    address: str
    tls: TlsOptions | None = None
    mode: int = _SOCKET_MODE
    uid: int = -1
    gid: int = -1


def default_address(name: str, *, is_root: bool, runtime_dir: str | None = None) -> str:
    """Return the address that a daemon called ``name`` listens on if none is configured.

    Args:
        name: ``buildkitd`` for upstream's path, else our own.
        is_root: whether the daemon runs as root on the host.
        runtime_dir: ``XDG_RUNTIME_DIR``.
    """
    folder, file = (
        ("buildkit", "buildkitd.sock") if name == "buildkitd" else ("boxwright", "boxwright.sock")
    )
    base = "/run" if is_root or not runtime_dir else runtime_dir
    return f"unix://{base}/{folder}/{file}"


def listeners(config: GrpcConfig, *, default: str) -> list[Listener]:
    """Return what ``[grpc]`` asks for.

    Raises:
        DaemonConfigError: an address or the TLS files make no sense.
    """
    tls: TlsOptions | None = None
    if config.tls.cert or config.tls.key_file:
        if not (config.tls.cert and config.tls.key_file):
            raise DaemonConfigError("TLS needs both a certificate and a key")
        tls = TlsOptions(
            ca=Path(config.tls.ca) if config.tls.ca else None,
            cert=Path(config.tls.cert),
            key=Path(config.tls.key_file),
        )
    found: list[Listener] = []
    for address in config.address or (default,):
        scheme = urlsplit(address).scheme
        if scheme == "tcp":
            found.append(Listener(address, tls=tls))
        elif scheme == "unix":
            uid = -1 if config.uid is None else config.uid
            gid = -1 if config.gid is None else config.gid
            found.append(Listener(address, uid=uid, gid=gid))
        else:
            raise DaemonConfigError(
                f"can't listen on {address!r}",
                hint="use unix:///path/to/socket or tcp://host:port",
            )
    return found


class Front:
    """An open engine on the wire. The engine stays the caller's."""

    def __init__(self, engine: Engine, *, authorize: Authorize | None = None) -> None:
        self.server = Server(authorize=authorize)
        self._health = HealthService()
        self._health.register(self.server)
        ControlService(engine).register(self.server)
        BridgeService(engine).register(self.server)
        history = engine.history
        ContentService(engine.parts.store.blobs, history.document, history.blobs).register(
            self.server
        )
        ExplainService(engine).register(self.server)

    async def listen(self, wanted: Sequence[Listener]) -> list[str]:
        """Listen on all addresses and return them as bound.

        Raises:
            ListenError: an address is in use or not permitted.
            TlsConfigError: a certificate can't be used.
        """
        bound: list[str] = []
        for each in wanted:
            parts = urlsplit(each.address)
            if parts.scheme == "unix":
                folder = Path(unquote(parts.netloc + parts.path)).parent
                _make_folder(folder, each.address)
            elif each.tls is None and not _is_loopback(parts.hostname):
                _log.warning(
                    "%s is open to everybody who can reach it; configure [grpc.tls] with a ca",
                    each.address,
                )
            bound.append(
                await self.server.listen(
                    each.address, tls=each.tls, mode=each.mode, uid=each.uid, gid=each.gid
                )
            )
        return bound

    async def listen_for_owner(self, root: Path) -> str | None:
        """Listen on ``engine.sock`` in the state folder, for the folder's user alone.

        Returns:
            The address, or None if the path is too long for a unix socket.
        """
        path = root / ENGINE_SOCKET
        if len(os.fsencode(path)) > _UNIX_PATH_LIMIT:
            _log.warning("%s is too long for a socket: one process at a time can build", path)
            return None
        return await self.server.listen(f"unix://{path}", mode=_OWNER_MODE)

    def stop_serving(self) -> None:
        """Let health probes fail, so that no further builds are sent here."""
        self._health.stop_serving()

    async def shutdown(self, grace_s: float) -> None:
        """Stop listening, let calls end, cancel the rest."""
        await self.server.shutdown(grace_s)


def _make_folder(folder: Path, address: str) -> None:
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as exc:
        raise ListenError(
            address,
            f"can't make its folder {folder}: {exc.strerror}",
            hint="name a socket that you may make: --addr unix:///path/of/a.sock (users without "
            "root get one by default where XDG_RUNTIME_DIR is set)",
        ) from exc


def _is_loopback(host: str | None) -> bool:
    return host is not None and (host == "localhost" or host.startswith("127.") or host == "::1")


class _Signals:
    """SIGTERM and SIGINT as two events: first graceful, then at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._loop = loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)


async def serve(
    settings: EngineSettings,
    wanted: Sequence[Listener],
    *,
    grace_s: float = 10.0,
    authorize: Authorize | None = None,
    on_ready: Callable[[list[str]], None] | None = None,
    beside: Callable[[Engine], AbstractAsyncContextManager[object]] | None = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT; a second signal skips the grace.

    Args:
        settings: of the engine, whose state folder is opened and closed here.
        wanted: where to listen, ``engine.sock`` in the state folder besides.
        grace_s: how long running builds may take to end after the signal.
        authorize: the policy of every call.
        on_ready: called with the bound addresses when clients can connect.
        beside: something else to serve from the same engine (the embedded registry).

    Raises:
        BoxwrightError: the state folder or an address can't be used.
    """
    loop = asyncio.get_running_loop()
    install_pool(loop)
    signals = _Signals(loop)
    try:
        engine = await Engine.open(settings)
        front = Front(engine, authorize=authorize)
        try:
            addresses = await front.listen(wanted)
            await front.listen_for_owner(settings.root)
            for address in addresses:
                _log.info("running server on %s", address)
            _notify("READY=1")
            if on_ready is not None:
                on_ready(addresses)
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                if beside is not None:
                    await stack.enter_async_context(beside(engine))
                loading = tasks.create_task(preload())
                await signals.stop.wait()
                loading.cancel()
            _log.info("stopping; running builds may take %g s to end", grace_s)
            _notify("STOPPING=1")
        finally:
            front.stop_serving()
            await _close(engine, front, signals, grace_s)
    finally:
        signals.close()


async def _close(engine: Engine, front: Front, signals: _Signals, grace_s: float) -> None:
    """Builds first, while their clients are still connected; then the connections."""
    closing = asyncio.ensure_future(engine.close(grace_s=grace_s if signals.stop.is_set() else 0))
    hurry = asyncio.ensure_future(signals.hurry.wait())
    try:
        await asyncio.wait({closing, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            # A second close cancels builds at once and waits for the first one's clean-up.
            _log.info("stopping at once")
            await front.shutdown(0)
        await closing
        await front.shutdown(_CLOSE_GRACE_S)
    finally:
        hurry.cancel()
        await asyncio.gather(hurry, return_exceptions=True)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), where it asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), target)
        except OSError as exc:
            _log.warning("can't notify systemd: %s", exc)
