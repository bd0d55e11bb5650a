"""Clients of misbehaving registries, made the same way everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.registry.auth import AuthSource
from boxwright.registry.client import RegistryClient
from boxwright.registry.hosts import Hosts
from boxwright.registry.transport import RetryBudget
from boxwright.testing.certificates import CertificateAuthority
from boxwright.testing.registry import FakeRegistry


class Memory:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data


class Kit:
    """What the tests of the client share."""

    Memory = Memory

    @contextlib.asynccontextmanager
    async def client(
        self,
        hosts: Hosts | None = None,
        auth: AuthSource | None = None,
        *,
        stall_s: float = 60.0,
        retries: int = 10,
    ) -> AsyncIterator[RegistryClient]:
        client = RegistryClient(
            hosts, auth, stall_timeout_s=stall_s, budget=RetryBudget(retries, refill_s=1e9)
        )
        try:
            yield client
        finally:
            await client.close()

    @staticmethod
    def ref(registry: FakeRegistry, tag: str = "1", path: str = "team/app") -> Reference:
        return Reference(registry.host, path, tag)

    @staticmethod
    def descriptor(data: bytes) -> Descriptor:
        return Descriptor("application/octet-stream", Digest.of(data), len(data))

    @staticmethod
    def reader(data: bytes, piece: int = 1 << 16) -> Callable[[], AsyncIterator[bytes]]:
        async def read() -> AsyncIterator[bytes]:
            for start in range(0, len(data), piece):
                yield data[start : start + piece]

        return read


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


class IdleSelector(selectors.DefaultSelector):
    """Takes its waits to be over when nothing has happened for a moment, and counts them."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(None if timeout is None else min(timeout, 0.1))
        if timeout is not None and not found:
            self.now_s += timeout
        return found


class IdleLoop(asyncio.SelectorEventLoop):
    """Its clock goes on only while nothing happens.

    A machine that stands still, or is busy with others, makes no peer silent.
    """

    def __init__(self) -> None:
        self._idle = IdleSelector()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.now_s


@pytest.fixture
def run_idle() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine that waits for a peer to fall silent: where both are in this loop."""

    def runner(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=IdleLoop) as loop:
            return loop.run(work)

    return runner


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine, with a limit so that a lost wake-up fails instead of hanging."""

    def runner(work: Coroutine[Any, Any, Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(60):
                return await work

        return asyncio.run(limited())

    return runner
