"""Run a command's coroutine with a client, and everything that has to be around it.

The embedded engine needs namespaces before the process has threads or a loop, so this module
imports neither until it is called.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from boxwright.cli.target import Target, choose
from boxwright.client.ownership import OWNER_SOCKET, answers, own_engine

if TYPE_CHECKING:
    from boxwright.cli.boxwright import GlobalOptions
    from boxwright.client.client import Client
    from boxwright.config.load import LoadedConfig
    from boxwright.engine.engine import Engine
    from boxwright.engine.settings import EngineSettings
    from boxwright.registry.client import RegistryClient
    from boxwright.wire.tls import TlsOptions

T = TypeVar("T")
_OWNER_WAIT_S = 5.0
_OWNER_POLL_S = 0.05


def run_with_client(
    options: GlobalOptions,
    target: Target,
    use: Callable[[Client], Awaitable[T]],
    *,
    timeout_s: float = 10.0,
    is_waiting: bool = False,
) -> T:
    """Open a client for ``target``, await ``use(client)`` and close everything again.

    SIGINT and SIGTERM cancel ``use``; its clean-up is waited for. ``is_waiting``: a daemon that
    does not answer is tried again until ``timeout_s`` is over.

    Raises:
        BoxwrightError: no connection, or the state folder can't be used, or of ``use``.
        KeyboardInterrupt: a signal came.
    """
    if not target.is_embedded:
        wait_s = timeout_s if is_waiting else 0.0
        return _run(lambda: _use_daemon(target.address, _tls(target), use, timeout_s, wait_s))
    return run_embedded(options, use)


def run_chosen(options: GlobalOptions, builder: str, use: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``use`` with a client of the engine that options, environment or ``builder`` name.

    Raises:
        UsageError: a builder or address that can't be used.
        BoxwrightError: as of :func:`run_with_client`.
    """
    target = choose(os.environ, addr=options.addr or "", builder=builder, tls=options.tls)
    return run_with_client(options, target, use)


def root_of(options: GlobalOptions) -> Path:
    """Return the embedded engine's state folder."""
    from boxwright.engine.settings import default_root

    if options.root:
        return Path(options.root)
    return default_root(os.environ, is_root=os.geteuid() == 0)


def run_embedded(options: GlobalOptions, use: Callable[[Client], Awaitable[T]]) -> T:
    """Use the engine of the state folder: its owner's if there is one, else one of our own."""
    root = root_of(options)
    if answers(root / OWNER_SOCKET):
        address = f"unix://{root / OWNER_SOCKET}"
        return _run(lambda: _use_daemon(address, None, use, _OWNER_WAIT_S))
    settings = _settings(options, root)
    return _run(lambda: _use_engine(settings, use))


def run_engine(options: GlobalOptions, use: Callable[[Engine], Awaitable[T]]) -> T:
    """Own the state folder's engine, on its socket too, while ``use(engine)`` runs.

    Raises:
        StoreLockedError: another process owns it.
    """
    root = root_of(options)
    settings = _settings(options, root)

    async def own() -> T:
        async with own_engine(settings) as engine:
            return await use(engine)

    return _run(own)


def erase_root(options: GlobalOptions) -> Path:
    """Remove the embedded engine's state folder with all that it holds; return where it was.

    Rootless, files of other ids lie in it that only their user namespace can remove.

    Raises:
        BoxwrightError: it is in use, or no state folder.
    """
    from boxwright.engine.process import enter

    root = root_of(options)
    enter()
    from boxwright.store.erase import erase

    erase(root)
    return root


def run_with_registries(
    options: GlobalOptions, use: Callable[[RegistryClient], Awaitable[T]]
) -> T:
    """Run ``use`` with a registry client that has the user's logins and configuration.

    Raises:
        BoxwrightError: the configuration can't be read, or of ``use``.
        KeyboardInterrupt: a signal came.
    """
    from boxwright.client.registries import user_client

    loaded = load_config(options)

    async def run() -> T:
        client = user_client(os.environ, loaded.config, loaded.path)
        try:
            return await use(client)
        finally:
            await client.close()

    return _run(run)


def load_config(options: GlobalOptions) -> LoadedConfig:
    """Read the configuration file that was named, or the default one if it is there.

    Raises:
        ConfigError: it can't be read or is not valid.
    """
    from boxwright.config.load import default_path, load

    path = Path(options.config) if options.config else None
    return load(path, default=default_path(os.environ, is_root=os.geteuid() == 0))


def _settings(options: GlobalOptions, root: Path) -> EngineSettings:
    from boxwright.engine.process import enter

    loaded = load_config(options)
    entered = enter()
    from boxwright.engine.settings import EngineSettings

    for warning in (*loaded.warnings, *entered.warnings):
        os.write(2, f"warning: {warning}\n".encode())
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return EngineSettings(
        root=root,
        config=loaded.config,
        rootless=entered.rootless,
        config_path=loaded.path,
    )


def _run(make: Callable[[], Awaitable[T]]) -> T:
    import asyncio
    import signal

    import uvloop

    from boxwright.core.workers import install_pool

    async def main() -> T:
        loop = asyncio.get_running_loop()
        install_pool(loop)
        task = asyncio.current_task()
        assert task is not None
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        return await make()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def _tls(target: Target) -> TlsOptions | None:
    files = target.tls
    if not (files.ca or files.cert or files.key or files.server_name):
        return None
    from boxwright.wire.tls import TlsOptions

    return TlsOptions(
        ca=Path(files.ca) if files.ca else None,
        cert=Path(files.cert) if files.cert else None,
        key=Path(files.key) if files.key else None,
        server_name=files.server_name or None,
    )


async def _use_daemon(
    address: str,
    tls: TlsOptions | None,
    use: Callable[[Client], Awaitable[T]],
    timeout_s: float,
    wait_s: float = 0.0,
) -> T:
    import asyncio

    from boxwright.client.client import Client
    from boxwright.client.transport import GrpcTransport
    from boxwright.wire.client import ConnectError

    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + wait_s
    transport = None
    while transport is None:
        try:
            transport = await GrpcTransport.open(address, tls=tls, timeout_s=timeout_s)
        except ConnectError:
            if loop.time() >= deadline_s:
                raise
            await asyncio.sleep(_OWNER_POLL_S)
    async with Client(transport) as client:
        return await use(client)


async def _use_engine(settings: EngineSettings, use: Callable[[Client], Awaitable[T]]) -> T:
    from boxwright.client.client import Client
    from boxwright.client.transport import EmbeddedTransport
    from boxwright.store.errors import StoreLockedError

    try:
        async with own_engine(settings) as engine, Client(EmbeddedTransport(engine)) as client:
            return await use(client)
    except StoreLockedError:
        # Somebody was faster by a moment: he serves, as soon as he is up.
        path = settings.root / OWNER_SOCKET
        if not await _wait_for(path):
            raise
        return await _use_daemon(f"unix://{path}", None, use, _OWNER_WAIT_S)


async def _wait_for(path: Path) -> bool:
    import asyncio

    deadline = asyncio.get_running_loop().time() + _OWNER_WAIT_S
    while asyncio.get_running_loop().time() < deadline:
        if answers(path):
            return True
        await asyncio.sleep(_OWNER_POLL_S)
    return False
