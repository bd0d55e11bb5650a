"""What the engine sees of a client session, and the errors of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code, NotFoundError
from boxwright.registry.auth import Credentials, Token
from boxwright.wire.pb import policysession_pb2


class SessionLostError(BoxwrightError):
    """The client's session is not there, or went away while it was used."""

    code = Code.SESSION_LOST
    retryable = True

    def __init__(self, what: str, *, detail: str = "") -> None:
        super().__init__(
            what, detail=detail, hint="is the client that started the build still running?"
        )


class OutputDeclinedError(BoxwrightError):
    """The client has the output already, and takes no bytes of it (``AlreadyExists``)."""

    def __init__(self) -> None:
        super().__init__("the client has this output already")


class DirNotAllowedError(NotFoundError):
    """The client shares no folder of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'no access allowed to dir "{name}"')
        self.name = name


class SecretNotFoundError(NotFoundError):
    """The client offers no secret of this id."""

    def __init__(self, secret_id: str) -> None:
        super().__init__(
            f"secret {secret_id}: not found",
            hint=f"offer it with --secret id={secret_id},src=FILE",
        )
        self.secret_id = secret_id


class SshAgentNotFoundError(NotFoundError):
    """The client offers no ssh agent of this id.

    Args:
        agent_id: What was asked for.
        said: How the client put it; nothing if it forwards no agents at all.
    """

    def __init__(self, agent_id: str, said: str = "") -> None:
        super().__init__(
            said or f'no SSH key "{agent_id}" forwarded from the client',
            hint=f"offer it with --ssh {agent_id}",
        )
        self.agent_id = agent_id


class TransferError(BoxwrightError):
    """A file transfer that the other side ended, or that broke the protocol."""

    code = Code.SESSION_LOST


class ContextReadError(BoxwrightError):
    """A file or folder of the user that can't be read."""

    code = Code.SOURCE_NOT_FOUND

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(f"cannot read {path}", detail=cause.strerror or str(cause))
        self.path = path
        self.errno = cause.errno


class HostileTreeError(BoxwrightError):
    """A tree from outside with a name or link that must not be written."""

    code = Code.HOSTILE_INPUT

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__("refusing a file from the other side", detail=f"{path!r}: {reason}")
        self.path = path


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Which part of a shared folder is wanted (filesync metadata)."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()


class MessagePipe(Protocol):
    """A stream of messages in both directions; wire streams have this form."""

    async def send_bytes(self, payload: bytes) -> None:
        """Send one encoded message; waits while the other side does not keep up."""

    async def send_batch(self, payloads: Sequence[bytes]) -> None:
        """Send several small encoded messages; as :meth:`send_bytes` for each of them."""

    async def recv_bytes(self) -> bytes | None:
        """Return the next message, or None when the other side is done."""

    async def recv_batch(self) -> list[bytes]:
        """Return all messages that have arrived, at least one; empty at the end."""


class BytePipe(Protocol):
    """Bytes in both directions (a forwarded ssh agent)."""

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the other side is slow."""

    async def close(self) -> None:
        """End the connection; may be called twice."""


class FileSink(Protocol):
    """Where an exporter writes the one file of an output."""

    async def write(self, data: bytes) -> None:
        """Add bytes; waits while the client is slow."""

    async def close(self) -> None:
        """End the file and wait until the client has it.

        Raises:
            BoxwrightError: the client could not write it.
        """

    async def abort(self) -> None:
        """Give up; the client throws away what it has."""


FIRST_STATS = 64
"""How many entries :meth:`TreeReceiver.begin` is shown."""


class TreeReceiver(Protocol):
    """Takes the tree that :meth:`Session.sync_dir` transfers.

    ``add`` and ``end`` are called on the event loop and must not block; ``write`` runs in
    worker threads, never twice at a time.
    """

    def begin(self, first: Sequence[bytes]) -> None:
        """Look at the first :data:`FIRST_STATS` entries, or all if they are fewer.

        Called once, before any of them is added: whoever knows earlier states of the tree can
        choose the one that this is a change of.
        """

    def take_known(self, batch: Sequence[bytes], start: int) -> int:
        """Take those of the next entries, from the first on, that are plainly unchanged.

        Args:
            batch: Messages, whole.
            start: Which of them names the next entry.

        Returns:
            How many messages were taken: each named an entry whose data is not wanted. 0 is
            always right: what is not taken here is given to :meth:`add`.
        """

    def add(self, file_id: int, raw_stat: bytes) -> bool:
        """Take the next entry (an encoded ``Stat``); return whether its data is wanted."""

    def end(self) -> None:
        """All entries have been named."""

    async def prepare(self) -> None:
        """Get ready for ``write``; called before each of its calls."""

    def write(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Take pieces of wanted files, in order; empty bytes end a file."""

    async def finish(self) -> None:
        """All is here: write what remains; afterwards the sender is told of success."""


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """An output that a client wants: its type and attributes, as in a solve request."""

    type: str
    attributes: Mapping[str, str]


class Session(Protocol):
    """One client, as the engine sees it. All methods may raise :class:`SessionLostError`."""

    id: str
    name: str
    shared_key: str
    closed: asyncio.Event

    def supports(self, method_path: str) -> bool:
        """Return whether the client serves this method (``/package.Service/Method``)."""

    def local_dir(self, name: str) -> Path | None:
        """Return the shared folder itself where we may read it in place, else None."""

    async def sync_dir(
        self,
        name: str,
        request: SyncRequest,
        receiver: TreeReceiver,
        *,
        on_received: Callable[[int], None] | None = None,
    ) -> None:
        """Transfer a shared folder into ``receiver`` (FileSync.DiffCopy)."""

    async def credentials(self, host: str) -> Credentials | None:
        """Return the client's login for a registry host; None if it has none."""

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Let the client log in, so that its password never leaves it; None: it does not."""

    async def token_authority(self, host: str, salt: bytes) -> bytes | None:
        """Return the client's 32-byte ed25519 key for tokens; None if it makes no tokens."""

    async def verify_token_authority(self, host: str, salt: bytes, payload: bytes) -> bytes | None:
        """Return ``payload`` signed with that key (64 bytes of signature, then the payload)."""

    async def secret(self, secret_id: str) -> bytes:
        """Return a secret.

        Raises:
            SecretNotFoundError: the client does not offer it.
        """

    async def check_policy(
        self, request: policysession_pb2.CheckPolicyRequest
    ) -> policysession_pb2.CheckPolicyResponse:
        """Let the client decide about a source that the build wants to use."""

    async def ssh_check(self, agent_id: str) -> None:
        """Make sure that the client offers this ssh agent.

        Raises:
            SshAgentNotFoundError: it does not.
        """

    async def ssh_forward(self, agent_id: str) -> BytePipe:
        """Open a connection to the client's ssh agent."""

    async def send_file(self, metadata: Mapping[str, str], *, exporter_id: int = 0) -> FileSink:
        """Open the sink of a single-file output (FileSend.DiffCopy)."""

    async def send_tree(
        self,
        root: Path,
        *,
        exporter_id: int = 0,
        metadata: Mapping[str, str] | None = None,
        mtime_ns: int | None = None,
        layer_of: Callable[[bytes], int] | None = None,
        is_split: bool = False,
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        """Send a whole folder to a ``local`` output (FileSend.DiffCopy).

        Args:
            root: The folder.
            exporter_id: Which of the build's outputs.
            metadata: Further headers of the call.
            mtime_ns: One modification time for everything; the files' own if None.
            layer_of: Says which layer of the tree shows a path (hard links are in one layer).
            is_split: The folders at the top are roots of their own.
            on_sent: Told the bytes of every batch that was sent.
        """

    async def find_outputs(
        self, metadata: Mapping[str, bytes], refs: Sequence[str]
    ) -> Sequence[OutputRequest]:
        """Let the client choose further outputs of a result (Exporter.FindExporters).

        Args:
            metadata: The frontend's.
            refs: Ids under which the result's trees can be read through the gateway.
        """

    async def outputs_done(self, response: Mapping[str, str]) -> None:
        """Tell the client what the outputs reported (Exporter.FinalizeExport)."""

    def pull_upload(self, url_path: str) -> AsyncIterator[bytes]:
        """Read what the client uploads under this path (Upload.Pull)."""
