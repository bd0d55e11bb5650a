"""Forward a client's ssh agents (draft-miller-ssh-agent).

A build may list keys and ask for signatures. Everything else that the protocol knows (adding,
removing, locking, extensions) is answered with a failure before it reaches the agent.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Mapping

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.linux import unixpath
from boxwright.session.base import SshAgentNotFoundError

DEFAULT_ID = "default"
_REQUEST_IDENTITIES, _SIGN_REQUEST = 11, 13
_FAILURE = b"\0\0\0\1\5"
_MAX_MESSAGE_BYTES = 256 << 10
_READ_BYTES = 32 << 10


class SshAgentError(BoxwrightError):
    """An ssh agent that can't be used."""

    code = Code.ENVIRONMENT


@dataclass(frozen=True, slots=True)
class AgentSource:
    """One offered agent: a socket path, or empty for ``SSH_AUTH_SOCK``."""

    id: str = DEFAULT_ID
    path: str = ""
    raw: bool = False


class AgentConnection:
    """A :class:`~boxwright.session.base.BytePipe` to an agent.

    Args:
        raw: Pass everything; else only what a build may ask.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, raw: bool
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._raw = raw
        self._pending = bytearray()
        self._refused: asyncio.Queue[bytes] = asyncio.Queue()
        self._reading: asyncio.Future[bytes] | None = None

    async def read(self) -> bytes:
        """Return the next answer bytes; empty at the end."""
        if self._raw:
            return await self._reader.read(_READ_BYTES)
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._reader.read(_READ_BYTES))
        refusal = asyncio.ensure_future(self._refused.get())
        try:
            await asyncio.wait((self._reading, refusal), return_when=asyncio.FIRST_COMPLETED)
            if refusal.done():
                return refusal.result()
            answer, self._reading = self._reading, None
            return answer.result()
        finally:
            refusal.cancel()

    async def write(self, data: bytes) -> None:
        """Send request bytes; requests that a build may not make are answered here."""
        if self._raw:
            self._writer.write(data)
        else:
            self._pending += data
            self._forward_whole_messages()
        await self._writer.drain()

    def _forward_whole_messages(self) -> None:
        pending = self._pending
        while len(pending) >= 5:
            length = int.from_bytes(pending[:4], "big")
            if not 0 < length <= _MAX_MESSAGE_BYTES:
                raise SshAgentError("malformed ssh agent request", detail=f"length {length}")
            if len(pending) < 4 + length:
                return
            message = bytes(pending[: 4 + length])
            del pending[: 4 + length]
            if message[4] in {_REQUEST_IDENTITIES, _SIGN_REQUEST}:
                self._writer.write(message)
            else:
                self._refused.put_nowait(_FAILURE)

    async def close(self) -> None:
        """End the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass  # the agent was faster


class SshProvider:
    """The agents of one client.

    Raises:
        InvalidInputError: an id twice, or no socket where one must be.
    """

    def __init__(
        self, sources: Iterable[AgentSource], environ: Mapping[str, str] = os.environ
    ) -> None:
        self._agents: dict[str, AgentSource] = {}
        for source in sources:
            agent_id = source.id or DEFAULT_ID
            if agent_id in self._agents:
                raise InvalidInputError(f'ssh agent "{agent_id}" is given twice')
            path = source.path or environ.get("SSH_AUTH_SOCK", "")
            _check_socket(agent_id, path)
            self._agents[agent_id] = AgentSource(agent_id, path, source.raw)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that are offered."""
        return tuple(self._agents)

    def check(self, agent_id: str) -> None:
        """Make sure that an agent is offered.

        Raises:
            SshAgentNotFoundError: it is not.
        """
        if (agent_id or DEFAULT_ID) not in self._agents:
            wanted = agent_id or DEFAULT_ID
            raise SshAgentNotFoundError(wanted, f"unset ssh forward key {wanted}")

    async def connect(self, agent_id: str) -> AgentConnection:
        """Open a connection to an agent.

        Raises:
            SshAgentNotFoundError: it is not offered.
            SshAgentError: its socket does not answer.
        """
        self.check(agent_id)
        source = self._agents[agent_id or DEFAULT_ID]
        try:
            with unixpath.usable(source.path) as name:
                reader, writer = await asyncio.open_unix_connection(name)
        except OSError as exc:
            raise SshAgentError(
                f'cannot connect to ssh agent "{source.id}"', detail=f"{source.path}: {exc}"
            ) from exc
        return AgentConnection(reader, writer, raw=source.raw)


def _check_socket(agent_id: str, path: str) -> None:
    if not path:
        raise InvalidInputError(
            f'ssh agent "{agent_id}" has no socket',
            hint="start an agent (eval $(ssh-agent); ssh-add) so that SSH_AUTH_SOCK is set",
        )
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise InvalidInputError(
            f'ssh agent "{agent_id}" is not usable', detail=f"{path}: {exc.strerror}"
        ) from exc
    if not stat.S_ISSOCK(mode):
        raise InvalidInputError(
            f'ssh agent "{agent_id}" is not a socket',
            detail=path,
            hint="add the key to an agent with ssh-add and pass the agent's socket",
        )
