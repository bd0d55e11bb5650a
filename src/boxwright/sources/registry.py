"""Images in registries: the remote over the distribution client, with the sessions' logins."""

from __future__ import annotations

import contextlib
import importlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, NotFoundError, UnimplementedError
from boxwright.registry.auth import AuthSource, Credentials, Token
from boxwright.registry.errors import BlobNotFoundError
from boxwright.registry.hosts import Hosts, wire_host
from boxwright.session.base import Session
from boxwright.session.manager import SessionManager
from boxwright.sources.fetch import AsyncSink

if TYPE_CHECKING:
    from boxwright.registry.client import RegistryClient
    from boxwright.registry.connections import Connections

SOURCE_LABEL = "boxwright.source."
_ORIGIN_LABEL = "boxwright.origin."
_KEPT_CLIENTS = 64
Clients = Callable[[Sequence[str]], AbstractAsyncContextManager["RegistryClient"]]


def origin_labels(host: str, path: str) -> dict[str, str]:
    """Labels of a manifest that a repository is known to have; it may have several origins."""
    return {f"{_ORIGIN_LABEL}{host}/{path}": "true"}


class SessionAuth:
    """Logins from the clients that want the work, asked one after the other (AuthSource).

    Args:
        sessions: all that there are.
        session_ids: of the clients.
        own: the daemon's logins, for hosts that no client has one for.
    """

    def __init__(
        self, sessions: SessionManager, session_ids: Sequence[str], own: AuthSource | None = None
    ) -> None:
        self._sessions = sessions
        self._ids = tuple(session_ids)
        self._own = own

    async def _live(self) -> AsyncIterator[Session]:
        for session_id in self._ids:
            try:
                yield await self._sessions.get(session_id)
            except BoxwrightError:
                continue

    async def credentials(self, host: str) -> Credentials | None:
        """Return the first login that a client has for the host, else the daemon's."""
        found = await self._of_clients(host)
        if found is None and self._own is not None:
            found = await self._own.credentials(host)
        return found

    async def _of_clients(self, host: str) -> Credentials | None:
        async for session in self._live():
            with contextlib.suppress(UnimplementedError, NotFoundError):
                found = await session.credentials(wire_host(host))
                if found is not None and (found.username or found.secret):
                    return found
        return None

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Let a client fetch the token, so that its password stays there."""
        # A client without a login would fetch a token for nobody in particular.
        if (
            self._own is not None
            and await self._own.credentials(host) is not None
            and await self._of_clients(host) is None
        ):
            return None
        async for session in self._live():
            with contextlib.suppress(UnimplementedError, NotFoundError):
                found = await session.fetch_token(wire_host(host), realm, service, scopes)
                if found is not None and found.value:
                    return found
        return None


class RegistryClients:
    """Distribution clients for the sessions that want some work.

    All share their connections. The tokens of a set of sessions are kept for its next request,
    so that a build logs in once and not for every layer. The HTTP stack is loaded with the first
    client: it is a third of what an engine would load, and most builds need no registry.
    """

    def __init__(
        self,
        hosts: Hosts,
        sessions: SessionManager,
        own_logins: AuthSource | None = None,
        *,
        stall_timeout_s: float = 60.0,
    ) -> None:
        self._hosts = hosts
        self._sessions = sessions
        self._own_logins = own_logins
        self._stall_timeout_s = stall_timeout_s
        self._connections: Connections | None = None
        self._clients: OrderedDict[tuple[str, ...], RegistryClient] = OrderedDict()

    @contextlib.asynccontextmanager
    async def __call__(self, session_ids: Sequence[str]) -> AsyncIterator[RegistryClient]:
        """Yield the client of these sessions."""
        await to_worker(importlib.import_module, "boxwright.registry.client")
        client = self._client(tuple(session_ids))
        yield client

    def _client(self, key: tuple[str, ...]) -> RegistryClient:
        from boxwright.registry.client import RegistryClient
        from boxwright.registry.connections import Connections

        if self._connections is None:
            self._connections = Connections()
        client = self._clients.pop(key, None) or RegistryClient(
            self._hosts,
            SessionAuth(self._sessions, key, self._own_logins),
            connections=self._connections,
            stall_timeout_s=self._stall_timeout_s,
        )
        self._clients[key] = client
        if len(self._clients) > _KEPT_CLIENTS:
            self._clients.popitem(last=False)
        return client

    async def close(self) -> None:
        """Close all connections."""
        self._clients.clear()
        if self._connections is not None:
            await self._connections.close()


class RegistryImage:
    """One image in a registry (:class:`~boxwright.sources.image.ImageRemote`)."""

    def __init__(self, ref: Reference, clients: Clients, session_ids: Sequence[str]) -> None:
        self._ref = ref
        self._clients = clients
        self._session_ids = tuple(session_ids)

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Where blobs came from: a push to the same registry can mount them from there."""
        return {SOURCE_LABEL + self._ref.host: self._ref.path}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Fetch the named manifest, or one by digest from the same repository."""
        ref = self._ref
        if digest is not None:
            ref = Reference(ref.host, ref.path, digest=digest)
        async with self._clients(self._session_ids) as client:
            return await client.fetch_manifest(ref)

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Fetch a blob; a foreign layer that the registry does not have, from its own address.

        Raises:
            RegistryError: by cause.
        """
        async with self._clients(self._session_ids) as client:
            try:
                await client.fetch_blob(self._ref, descriptor, sink)
            except BlobNotFoundError:
                if not descriptor.urls:
                    raise
                await client.fetch_foreign(descriptor, sink)
