"""Which network steps get that name none: the machine's, none, or one made by CNI plugins.

A connected namespace costs some plugin processes, so those that steps have left are kept for the
next ones (``cniPoolSize``), as BuildKit does; one that told plugins a hostname is not. Each lies
pinned to a file of the run folder, whose name is the id that plugins know: what an engine that
was killed has left connected is disconnected by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import boxwright
from boxwright.core.dataclass import dataclass
from boxwright.core.workers import to_worker
from boxwright.executor import cni
from boxwright.executor.cni import CniNetwork, NetworkConfigError, NetworkSetupError
from boxwright.linux.mount import umount
from boxwright.sandbox.netns import set_up

_log = logging.getLogger(__name__)

_PROGRAM = (
    "import sys; sys.path[:0]=[sys.argv.pop(1)]; from boxwright.sandbox.netns import main; main()"
)
_SIOCBRDELBR = 0x89A1
_MODES = ("auto", "host", "none", "cni", "bridge")


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """``worker.oci``'s keys about networks.

    Attributes:
        mode: auto, host, none, cni or bridge.
        config_path: A CNI configuration; with ``auto`` its presence decides.
        binaries: Folder of CNI plugins.
        pool_size: How many connected namespaces are kept while nobody needs them.
        bridge: Name of the bridge of mode ``bridge``.
        subnet: Its addresses.
    """

    mode: str = "auto"
    config_path: Path = Path("/etc/buildkit/cni.json")
    binaries: Path = Path("/opt/cni/bin")
    pool_size: int = 0
    bridge: str = "buildkit0"
    subnet: str = "10.10.0.0/16"


@dataclass(frozen=True, slots=True)
class _Namespace:
    id: str
    path: Path
    hostname: str
    result: cni.Json


class Networks:
    """The networks of one executor; used from its event loop, closed by it.

    Args:
        mode: What is served, for labels: ``host``, ``none`` or ``cni``.
        network: The plugins, for ``cni``.
        folder: Where namespaces are pinned; on the mount that the sandbox sees.
        pool_size: See :class:`NetworkSettings`.
        own_bridge: A bridge that goes when this is closed.
    """

    def __init__(
        self,
        mode: str = "host",
        network: CniNetwork | None = None,
        folder: Path = Path(),
        pool_size: int = 0,
        own_bridge: str = "",
    ) -> None:
        self.mode = mode
        self._network = network
        self._folder = folder
        self._pool_size = pool_size
        self._own_bridge = own_bridge
        self._idle: list[_Namespace] = []
        self._clean = asyncio.Lock()
        self._is_clean = False

    @classmethod
    def open(cls, settings: NetworkSettings, folder: Path, *, is_root: bool) -> Networks:
        """Return the networks that a configuration asks for; reads its files.

        Raises:
            NetworkConfigError: it can't be had here.
        """
        mode = settings.mode or "auto"
        if mode not in _MODES:
            raise NetworkConfigError(
                f'invalid network mode: "{mode}"', hint=f"one of {', '.join(_MODES)}"
            )
        if mode == "auto":
            mode = "cni" if is_root and settings.config_path.exists() else "host"
        if mode in ("host", "none"):
            return cls(mode)
        if not is_root:
            raise NetworkConfigError(
                f"network mode {mode} needs a daemon of root", hint="use network mode host"
            )
        own_bridge = ""
        if mode == "bridge":
            data = cni.bridge_config(settings.bridge, settings.subnet)
            network = cni.parse(data, (settings.binaries,), "network mode bridge")
            if not Path("/sys/class/net", settings.bridge).exists():
                own_bridge = settings.bridge
        else:
            network = cni.load(settings.config_path, settings.binaries)
        return cls("cni", network, folder, settings.pool_size, own_bridge)

    @contextlib.asynccontextmanager
    async def joined(self, hostname: str) -> AsyncIterator[str]:
        """Give the path of a connected namespace; empty for the machine's network.

        Raises:
            NetworkSetupError: a plugin refused, or no namespace can be made.
        """
        if self._network is None:
            yield ""
            return
        await self._disconnect_leftovers()
        if self._idle and not hostname:
            namespace = self._idle.pop()
        else:
            namespace = await self._connect(hostname)
        try:
            yield str(namespace.path)
        finally:
            if hostname or len(self._idle) >= self._pool_size:
                await asyncio.shield(self._release(namespace))
            else:
                self._idle.append(namespace)

    async def close(self) -> None:
        """Disconnect what is kept; nobody may be joined any more."""
        while self._idle:
            await self._release(self._idle.pop())
        if self._own_bridge:
            with contextlib.suppress(OSError):
                await to_worker(_remove_bridge, self._own_bridge)

    async def _connect(self, hostname: str) -> _Namespace:
        assert self._network is not None
        name = secrets.token_hex(12)
        path = self._folder / name
        await to_worker(self._folder.mkdir, 0o711, True, True)  # noqa: FBT003 - positional here
        try:
            await _make_namespace(path)
            result = await self._network.add(name, str(path), hostname=hostname)
        except BaseException:
            await asyncio.shield(to_worker(_unpin, path))
            raise
        return _Namespace(name, path, hostname, result)

    async def _release(self, namespace: _Namespace) -> None:
        assert self._network is not None
        await self._network.remove(
            namespace.id,
            str(namespace.path),
            hostname=namespace.hostname,
            result=namespace.result,
        )
        await to_worker(_unpin, namespace.path)

    async def _disconnect_leftovers(self) -> None:
        """Free the addresses of steps whose engine was killed; their devices went with it."""
        async with self._clean:
            if self._is_clean or self._network is None:
                return
            self._is_clean = True
            for path in await to_worker(_pinned, self._folder):
                await self._network.remove(path.name, "")
                await to_worker(_unpin, path)


def _pinned(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _unpin(path: Path) -> None:
    with contextlib.suppress(OSError):
        umount(path, detach=True)
    path.unlink(missing_ok=True)


async def _make_namespace(path: Path) -> None:
    root = str(Path(boxwright.__file__).parent.parent)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-SI",
        "-c",
        _PROGRAM,
        root,
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        raise NetworkSetupError("can't make a network namespace", detail=(lines or ["killed"])[-1])


def _remove_bridge(name: str) -> None:
    set_up(name, is_up=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCBRDELBR, struct.pack("16s", os.fsencode(name)))
