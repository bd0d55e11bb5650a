"""The registry's life: listen, serve one store, stop.

Three users: ``boxwright registry serve``, the daemon (``[boxwright.registry] address``), and
tests. The store belongs to the caller: whoever owns the state folder serves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web

from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import install_pool, to_worker
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.registryserver.app import ServerOptions, make_app
from boxwright.store.store import Store

_SHUTDOWN_S = 5.0
_BACKLOG = 512
_LISTEN_HINTS = {
    errno.EADDRINUSE: "something else listens there: choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "ports below 1024 are for root: choose another one",
}


class RegistryListenError(BoxwrightError):
    """The registry can't listen at the wanted address."""

    code = Code.ENVIRONMENT


@dataclass(frozen=True)
class ListenOptions:
    """Where and how the registry listens; without ``tls_cert`` it speaks plain HTTP."""

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    server: ServerOptions = field(default_factory=ServerOptions)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Make the TLS context.

        Raises:
            InvalidInputError: only one of the files is given, or one is unusable.
        """
        if not self.tls_cert and not self.tls_key:
            return None
        if not self.tls_cert or not self.tls_key:
            raise InvalidInputError(
                "the registry's TLS needs a certificate and its key",
                hint="name both files, or none to speak plain HTTP",
            )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as exc:
            raise InvalidInputError(
                "can't use the registry's certificate",
                detail=f"{self.tls_cert}, {self.tls_key}: {exc}",
            ) from exc
        return context


def parse_address(text: str) -> tuple[str, int]:
    """Read ``host:port``; an empty host is this machine's loopback address.

    Raises:
        InvalidInputError: it is not of that form.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise InvalidInputError("invalid address", detail=repr(text), hint="write HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def read_users(path: str) -> dict[str, str]:
    """Read lines ``NAME:PASSWORD`` of who may use the registry, and their passwords.

    Empty lines and those that begin with ``#`` are skipped. No path: nobody, open to all.

    Raises:
        InvalidInputError: the file can't be read, a line is malformed, or nobody is in it.
    """
    if not path:
        return {}
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as exc:
        raise InvalidInputError(
            "can't read the users of the registry", detail=f"{path}: {exc.strerror or exc}"
        ) from exc
    except UnicodeError as exc:
        raise InvalidInputError("the users of the registry are not text", detail=path) from exc
    users: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, password = line.partition(":")
        if not name or not password:
            raise InvalidInputError(
                "a user of the registry has no name or no password",
                detail=f"{path}, line {number}",
                hint="write NAME:PASSWORD",
            )
        users[name] = password
    if not users:
        # Nobody to let in would mean everybody.
        raise InvalidInputError("no user of the registry is named", detail=path)
    return users


@contextlib.asynccontextmanager
async def serving(store: Store, options: ListenOptions) -> AsyncIterator[str]:
    """Serve ``store`` inside the block; yield the address, with the port that was bound.

    Raises:
        RegistryListenError: the address can't be listened at.
        InvalidInputError: the certificate is unusable.
    """
    context = options.ssl_context()
    runner = web.AppRunner(
        make_app(store, options.server),
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
        auto_decompress=False,  # what has a digest is stored as it came, whatever the headers say
    )
    await runner.setup()
    try:
        site = web.TCPSite(
            runner, options.host, options.port, ssl_context=context, backlog=_BACKLOG
        )
        try:
            await site.start()
        except OSError as exc:
            raise RegistryListenError(
                f"the registry can't listen at {options.host}:{options.port}",
                detail=os.strerror(exc.errno) if exc.errno else str(exc),
                hint=_LISTEN_HINTS.get(exc.errno or 0, ""),
            ) from exc
        host, port = runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        yield f"{'https' if context else 'http'}://{shown}:{port}"
    finally:
        await runner.cleanup()


async def serve(root: Path, options: ListenOptions, *, on_ready: Callable[[str], None]) -> None:
    """Own a state folder and serve it until SIGTERM or SIGINT.

    Args:
        root: the state folder; nobody else may have it.
        options: where to listen and for whom.
        on_ready: called with the address when clients can connect.

    Raises:
        BoxwrightError: the folder, the address or the certificate can't be used.
    """
    loop = asyncio.get_running_loop()
    install_pool(loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = await to_worker(Store.open, root)
    try:
        async with serving(store, options) as address:
            on_ready(address)
            await stop.wait()
    finally:
        await to_worker(store.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
