"""The sessions of an engine, by id and in groups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.registry.auth import Credentials, Token
from boxwright.session import metadata as md
from boxwright.session.base import Session, SessionLostError
from boxwright.session.remote import RemoteSession
from boxwright.session.samemachine import LOCAL_DIR, readable_here
from boxwright.wire.client import Connection
from boxwright.wire.metadata import Metadata
from boxwright.wire.serverstream import ServerStream
from boxwright.wire.tunnel import MessageTunnel

_log = logging.getLogger(__name__)

T = TypeVar("T")
LATE_SESSION_S = 5.0
"""How long a build waits for its session: clients open it beside their Solve call."""


class SessionManager:
    """All live sessions. Not thread safe: used from the event loop only."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._arrived = asyncio.Event()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The live sessions."""
        return tuple(self._sessions.values())

    def attach(self, session: Session) -> None:
        """Make a session known.

        Raises:
            InvalidInputError: it has no id, or another live session has the same.
        """
        known = self._sessions.get(session.id)
        if not session.id or (known is not None and not known.closed.is_set()):
            raise InvalidInputError(f"session {session.id!r} already exists")
        self._sessions[session.id] = session
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def detach(self, session: Session) -> None:
        """Forget a session; it counts as closed from now on."""
        session.closed.set()
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]

    async def serve_stream(self, stream: ServerStream, metadata: Metadata) -> None:
        """Carry the session of one Control.Session call until either side ends it."""
        timeout_ms = metadata.get(md.SESSION_HEALTH_TIMEOUT)
        connection = Connection.over(MessageTunnel(stream))
        session = RemoteSession(
            connection,
            metadata.get(md.SESSION_ID),
            name=metadata.get(md.SESSION_NAME),
            shared_key=metadata.get(md.SESSION_SHARED_KEY),
            exposed=metadata.get_all(md.SESSION_METHOD),
            health_timeout_s=max(1.0, int(timeout_ms) / 1000) if timeout_ms.isdigit() else None,
            local_dirs=readable_here(metadata.get_all(LOCAL_DIR), stream.context.peer),
        )
        try:
            self.attach(session)
            await session.run()
        finally:
            self.detach(session)
            await connection.close()

    async def get(self, session_id: str, *, timeout_s: float = LATE_SESSION_S) -> Session:
        """Return a live session, waiting for one that is late.

        Args:
            session_id: The id; a ``prefix:`` before it is ignored (it keeps sources of the
                same name apart).
            timeout_s: How long to wait.

        Raises:
            SessionLostError: it did not come, or has gone.
        """
        prefix, colon, rest = session_id.partition(":")
        wanted = rest if colon and rest else prefix
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    session = self._sessions.get(wanted)
                    if session is not None and not session.closed.is_set():
                        return session
                    await self._arrived.wait()
        except TimeoutError:
            raise SessionLostError(f"no active session for {wanted}") from None

    def group(self, ids: Iterable[str] = ()) -> SessionGroup:
        """Return a group of sessions by their ids."""
        return SessionGroup(self, ids)


class SessionGroup:
    """The sessions of all builds that want the same work.

    Work asks the group; if one client goes, another is asked. Sessions may join and leave at
    any time. It is also the registry client's source of credentials.
    """

    def __init__(self, manager: SessionManager, ids: Iterable[str] = ()) -> None:
        self._manager = manager
        self._ids: dict[str, None] = dict.fromkeys(session_id for session_id in ids if session_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, oldest first."""
        return tuple(self._ids)

    def add(self, session_id: str) -> None:
        """Let a build's session take part."""
        if session_id:
            self._ids[session_id] = None

    def discard(self, session_id: str) -> None:
        """A build no longer wants the work."""
        self._ids.pop(session_id, None)

    async def any(self, ask: Callable[[Session], Awaitable[T]], *, first: str = "") -> T:
        """Ask one session after the other until one answers.

        Args:
            ask: What to do; it is started over with the next session after any error.
            first: An id to begin with, whether it is in the group or not.

        Raises:
            SessionLostError: there is no session at all.
            BoxwrightError: the last session's error.
        """
        tried: set[str] = set()
        failure: BoxwrightError | None = None
        while True:
            candidates = [first] if first and first not in tried else self.ids
            session_id = next((each for each in candidates if each not in tried), None)
            if session_id is None:
                raise failure or SessionLostError("no active sessions")
            tried.add(session_id)
            try:
                return await ask(await self._manager.get(session_id))
            except BoxwrightError as exc:
                if failure is None or not isinstance(exc, SessionLostError):
                    failure = exc

    async def get_local(self, name: str) -> tuple[Session, Path] | None:
        """Return the first session whose folder of this name can be read in place."""
        for session_id in self.ids:
            try:
                session = await self._manager.get(session_id)
                path = session.local_dir(name)
            except BoxwrightError:
                continue
            if path is not None:
                return session, path
        return None

    async def secret(self, secret_id: str) -> bytes:
        """Return a secret of any session."""
        return await self.any(lambda session: session.secret(secret_id))

    async def credentials(self, host: str) -> Credentials | None:
        """Return the first login that a session has for a host."""
        if not self._ids:
            return None

        async def ask(session: Session) -> Credentials | None:
            return await session.credentials(host)

        return await self.any(ask)

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Let a client fetch the token, if there is one that does; None: fetch it yourself."""
        if not self._ids:
            return None

        async def ask(session: Session) -> Token | None:
            return await session.fetch_token(host, realm, service, scopes)

        return await self.any(ask)
