"""The session of a client at the other end of a connection (the engine's side).

The client's calls are reached through an inner connection inside the Session stream; see
:mod:`boxwright.wire.tunnel`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import UnimplementedError
from boxwright.registry.auth import Credentials, Token
from boxwright.session import metadata as md
from boxwright.session.base import (
    BytePipe,
    FileSink,
    OutputDeclinedError,
    OutputRequest,
    SecretNotFoundError,
    SessionLostError,
    SshAgentNotFoundError,
    SyncRequest,
    TransferError,
    TreeReceiver,
)
from boxwright.session.chunks import MAX_CHUNK_BYTES, decode_chunk, encode_chunk
from boxwright.session.treereceive import receive_tree
from boxwright.session.treesend import send_tree
from boxwright.session.treewalk import TreeWalk
from boxwright.wire import methods
from boxwright.wire.client import Connection
from boxwright.wire.clientcall import ClientStream
from boxwright.wire.methods import Method
from boxwright.wire.pb import (
    auth_pb2,
    content_pb2,
    health_pb2,
    policysession_pb2,
    secrets_pb2,
    sessionexporter_pb2,
    ssh_pb2,
)
from boxwright.wire.status import RpcError, StatusCode, from_rpc_error

_log = logging.getLogger(__name__)

_AUTH_TIMEOUT_S = 60.0
_POLICY_TIMEOUT_S = 300.0
_HEALTH_INTERVAL_S = 5.0
_HEALTH_TIMEOUT_S = 15.0
_HEALTH_FAILURES = 2
_NOT_THERE = frozenset((StatusCode.UNIMPLEMENTED, StatusCode.UNAVAILABLE))


class RemoteSession:
    """One client over a connection.

    Args:
        connection: The inner connection, on which the client serves.
        session_id: The id that builds name it by.
        exposed: Paths of the methods that the client serves.
        health_timeout_s: Of a client that asks for a stricter watch; None for the default.
        local_dirs: Shared folders that may be read in place, by name.
    """

    def __init__(
        self,
        connection: Connection,
        session_id: str,
        *,
        name: str = "",
        shared_key: str = "",
        exposed: Iterable[str] = (),
        health_timeout_s: float | None = None,
        local_dirs: Mapping[str, Path] | None = None,
    ) -> None:
        self._connection = connection
        self.id = session_id
        self.name = name
        self.shared_key = shared_key
        self.closed = asyncio.Event()
        self._exposed = frozenset(path.lower() for path in exposed)
        self._health_timeout_s = health_timeout_s
        self._local_dirs = dict(local_dirs or {})

    async def run(self) -> None:
        """Watch the client until it goes; owns the connection."""
        watch = asyncio.ensure_future(self._watch_health())
        try:
            await asyncio.wait((watch, self._connection.closed), return_when="FIRST_COMPLETED")
        finally:
            self.closed.set()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._connection.close()

    async def _watch_health(self) -> None:
        """Return when the client has stopped to answer.

        Patient on purpose: a slow line full of data delays the answers, and the next one is
        given half as much time again as the last one took.
        """
        custom = self._health_timeout_s
        interval_s = custom or _HEALTH_INTERVAL_S
        failures, took_s = 0, 0.0
        loop = asyncio.get_running_loop()
        while failures < (1 if custom else _HEALTH_FAILURES):
            await asyncio.sleep(interval_s)
            started = loop.time()
            try:
                await self._connection.unary(
                    methods.HEALTH_CHECK,
                    health_pb2.HealthCheckRequest(),
                    timeout_s=max(custom or _HEALTH_TIMEOUT_S, took_s * 1.5),
                )
                failures = 0
            except RpcError as exc:
                if exc.status is not StatusCode.UNIMPLEMENTED:
                    failures += 1
                    _log.warning("session %s: health check failed: %s", self.id, exc)
            took_s = loop.time() - started

    def supports(self, method_path: str) -> bool:
        """Return whether the client said that it serves this method."""
        return method_path.lower() in self._exposed

    def local_dir(self, name: str) -> Path | None:
        """Return the shared folder where it is proven to be readable here, else None."""
        return self._local_dirs.get(name)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn the errors of calls into ours."""
        try:
            yield
        except RpcError as exc:
            if self._connection.closed.done() or self.closed.is_set():
                raise SessionLostError(f"the client went away during {what}") from exc
            raise from_rpc_error(exc) from exc

    def _require(self, method: Method[Any, Any]) -> None:
        if self.closed.is_set():
            raise SessionLostError("the client has gone")
        if not self.supports(method.path):
            raise UnimplementedError(f"method {method.path} not supported by the client")

    @asynccontextmanager
    async def _call(
        self, method: Method[Any, Any], items: Sequence[tuple[str, str]], what: str
    ) -> AsyncIterator[ClientStream[Any, Any]]:
        self._require(method)
        with self._errors(what):
            async with self._connection.stream(method, metadata=items) as stream:
                yield stream

    async def sync_dir(
        self,
        name: str,
        request: SyncRequest,
        receiver: TreeReceiver,
        *,
        on_received: Callable[[int], None] | None = None,
    ) -> None:
        """Transfer a shared folder into ``receiver``."""
        items = md.encode_sync(name, request)
        async with self._call(methods.FILESYNC_DIFFCOPY, items, "a file transfer") as stream:
            await receive_tree(stream, receiver, on_received=on_received)
            await stream.close_send()

    async def credentials(self, host: str) -> Credentials | None:
        """Return the client's login for a host."""
        if not self.supports(methods.AUTH_CREDENTIALS.path):
            return None
        with self._errors("asking for credentials"):
            try:
                answer = await self._connection.unary(
                    methods.AUTH_CREDENTIALS,
                    auth_pb2.CredentialsRequest(Host=host),
                    timeout_s=_AUTH_TIMEOUT_S,
                )
            except RpcError as exc:
                if exc.status is StatusCode.UNIMPLEMENTED:
                    return None
                raise
        return Credentials(answer.Username, answer.Secret) if answer.Secret else None

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Let the client fetch a token; None if it does not do that."""
        if not self.supports(methods.AUTH_FETCH_TOKEN.path):
            return None
        request = auth_pb2.FetchTokenRequest(
            Host=host, Realm=realm, Service=service, Scopes=scopes
        )
        with self._errors("fetching a registry token"):
            try:
                answer = await self._connection.unary(
                    methods.AUTH_FETCH_TOKEN, request, timeout_s=_AUTH_TIMEOUT_S
                )
            except RpcError as exc:
                if exc.status is StatusCode.UNIMPLEMENTED:
                    return None
                raise
        return Token(answer.Token, float(answer.ExpiresIn or 60))

    async def token_authority(self, host: str, salt: bytes) -> bytes | None:
        """Return the client's key for tokens."""
        if not self.supports(methods.AUTH_GET_TOKEN_AUTHORITY.path):
            return None
        request = auth_pb2.GetTokenAuthorityRequest(Host=host, Salt=salt)
        with self._errors("asking for the token authority"):
            try:
                answer = await self._connection.unary(
                    methods.AUTH_GET_TOKEN_AUTHORITY, request, timeout_s=_AUTH_TIMEOUT_S
                )
            except RpcError as exc:
                if exc.status in _NOT_THERE and not self._connection.closed.done():
                    return None
                raise
        return bytes(answer.PublicKey) if len(answer.PublicKey) == 32 else None

    async def verify_token_authority(self, host: str, salt: bytes, payload: bytes) -> bytes | None:
        """Return ``payload`` signed by the client."""
        if not self.supports(methods.AUTH_VERIFY_TOKEN_AUTHORITY.path):
            return None
        request = auth_pb2.VerifyTokenAuthorityRequest(Host=host, Salt=salt, Payload=payload)
        with self._errors("verifying the token authority"):
            answer = await self._connection.unary(
                methods.AUTH_VERIFY_TOKEN_AUTHORITY, request, timeout_s=_AUTH_TIMEOUT_S
            )
        return bytes(answer.Signed)

    async def secret(self, secret_id: str) -> bytes:
        """Return a secret."""
        if not self.supports(methods.SECRETS_GET.path):
            raise SecretNotFoundError(secret_id)
        with self._errors("reading a secret"):
            try:
                answer = await self._connection.unary(
                    methods.SECRETS_GET,
                    secrets_pb2.GetSecretRequest(ID=secret_id),
                    timeout_s=_AUTH_TIMEOUT_S,
                )
            except RpcError as exc:
                if exc.status in {StatusCode.UNIMPLEMENTED, StatusCode.NOT_FOUND}:
                    raise SecretNotFoundError(secret_id) from exc
                raise
        return bytes(answer.data)

    async def check_policy(
        self, request: policysession_pb2.CheckPolicyRequest
    ) -> policysession_pb2.CheckPolicyResponse:
        """Let the client decide about a source."""
        self._require(methods.POLICY_CHECK)
        with self._errors("asking for a policy decision"):
            return await self._connection.unary(
                methods.POLICY_CHECK, request, timeout_s=_POLICY_TIMEOUT_S
            )

    async def ssh_check(self, agent_id: str) -> None:
        """Make sure that an agent is offered."""
        if not self.supports(methods.SSH_CHECK_AGENT.path):
            raise SshAgentNotFoundError(agent_id)
        with self._errors("asking for an ssh agent"):
            try:
                await self._connection.unary(
                    methods.SSH_CHECK_AGENT,
                    ssh_pb2.CheckAgentRequest(ID=agent_id),
                    timeout_s=_AUTH_TIMEOUT_S,
                )
            except RpcError as exc:
                if self._connection.closed.done():
                    raise
                is_unknown = exc.status is StatusCode.UNIMPLEMENTED
                said = "" if is_unknown else exc.message
                raise SshAgentNotFoundError(agent_id, said) from exc

    async def ssh_forward(self, agent_id: str) -> BytePipe:
        """Connect to an agent."""
        self._require(methods.SSH_FORWARD_AGENT)
        items = [(md.SSH_ID, agent_id)]
        stream = self._connection.stream(methods.SSH_FORWARD_AGENT, metadata=items)
        with self._errors("connecting to an ssh agent"):
            await stream.__aenter__()
        return _StreamPipe(stream, self)

    async def send_file(self, metadata: Mapping[str, str], *, exporter_id: int = 0) -> FileSink:
        """Open the sink of an output."""
        self._require(methods.FILESEND_DIFFCOPY)
        items = md.encode_export(exporter_id, metadata)
        stream = self._connection.stream(methods.FILESEND_DIFFCOPY, metadata=items)
        with self._errors("opening an output"):
            await stream.__aenter__()
        return _StreamSink(stream, self)

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
        """Send a folder to a ``local`` output."""
        items = md.encode_export(exporter_id, metadata or {})
        items.append((md.EXPORTER_MULTI_PLATFORM, "1"))
        walk = await to_worker(
            TreeWalk,
            os.fsencode(root),
            reset_owner=False,
            mtime_ns=mtime_ns,
            layer_of=layer_of,
            is_split=is_split,
        )
        async with self._call(methods.FILESEND_DIFFCOPY, items, "sending an output") as stream:
            await send_tree(stream, walk, on_sent=on_sent)
            await stream.close_send()
            while await stream.recv_bytes() is not None:
                pass

    async def find_outputs(
        self, metadata: Mapping[str, bytes], refs: Sequence[str]
    ) -> Sequence[OutputRequest]:
        """Let the client choose further outputs; nothing if it does not do that."""
        if not self.supports(methods.EXPORTER_FIND.path):
            return ()
        request = sessionexporter_pb2.FindExportersRequest(metadata=dict(metadata), refs=refs)
        with self._errors("asking for outputs"):
            try:
                answer = await self._connection.unary(methods.EXPORTER_FIND, request)
            except RpcError as exc:
                if exc.status in _NOT_THERE and not self._connection.closed.done():
                    return ()
                raise
        return [OutputRequest(item.Type, dict(item.Attrs)) for item in answer.exporters]

    async def outputs_done(self, response: Mapping[str, str]) -> None:
        """Tell the client what the outputs reported, if it wants to know."""
        if not self.supports(methods.EXPORTER_FINALIZE.path):
            return
        request = sessionexporter_pb2.FinalizeExportRequest(exporter_response=dict(response))
        with self._errors("finishing the outputs"):
            try:
                await self._connection.unary(methods.EXPORTER_FINALIZE, request)
            except RpcError as exc:
                if exc.status not in _NOT_THERE or self._connection.closed.done():
                    raise

    async def read_content(self, store_id: str, digest: Digest) -> AsyncIterator[bytes]:
        """Read a blob of a layout that the client offers."""
        items = [(md.CONTENT_STORE, store_id)]
        async with self._call(methods.CONTENT_READ, items, "reading an OCI layout") as stream:
            await stream.send(content_pb2.ReadContentRequest(digest=digest))
            await stream.close_send()
            while (message := await stream.recv()) is not None:
                yield message.data

    async def write_content(
        self, store_id: str, digest: Digest, size: int, pieces: Iterator[bytes]
    ) -> None:
        """Write a blob into the layout that the client wants filled."""
        items = [(md.CONTENT_STORE, store_id)]
        request = content_pb2.WriteContentRequest
        async with self._call(methods.CONTENT_WRITE, items, "writing an OCI layout") as stream:
            try:
                offset = 0
                while data := await to_worker(next, pieces, b""):
                    await stream.send(
                        request(
                            action=content_pb2.WRITE,
                            ref=str(digest),
                            total=size,
                            expected=digest,
                            offset=offset,
                            data=data,
                        )
                    )
                    offset += len(data)
                    if await stream.recv() is None:
                        raise TransferError("the client stopped to take a blob")
                await stream.send(
                    request(
                        action=content_pb2.COMMIT,
                        ref=str(digest),
                        total=size,
                        expected=digest,
                        offset=offset,
                    )
                )
                await stream.close_send()
                while await stream.recv() is not None:
                    pass
            except RpcError as exc:
                if exc.status is not StatusCode.ALREADY_EXISTS:
                    raise

    async def pull_upload(self, url_path: str) -> AsyncIterator[bytes]:
        """Read an upload."""
        items = [(md.URL_PATH, url_path)]
        async with self._call(methods.UPLOAD_PULL, items, "reading an upload") as stream:
            await stream.close_send()
            while (raw := await stream.recv_bytes()) is not None:
                yield decode_chunk(raw)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn the errors of calls into ours (for the streams of this session)."""
        with self._errors(what):
            yield


class _StreamSink:
    """A :class:`FileSink` over a FileSend call."""

    def __init__(self, stream: ClientStream[Any, Any], session: RemoteSession) -> None:
        self._stream = stream
        self._session = session

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._session.errors("sending an output"):
            try:
                yield
            except RpcError as exc:
                if exc.status is StatusCode.ALREADY_EXISTS:
                    raise OutputDeclinedError from exc
                raise

    async def write(self, data: bytes) -> None:
        with self._errors():
            if len(data) <= MAX_CHUNK_BYTES:
                await self._stream.send_bytes(encode_chunk(data))
                return
            for start in range(0, len(data), MAX_CHUNK_BYTES):
                chunk = data[start : start + MAX_CHUNK_BYTES]
                await self._stream.send_bytes(encode_chunk(chunk))

    async def close(self) -> None:
        with self._errors():
            await self._stream.close_send()
            while await self._stream.recv_bytes() is not None:
                pass
        await self._stream.__aexit__(None, None, None)

    async def abort(self) -> None:
        self._stream.cancel()


class _StreamPipe:
    """A :class:`BytePipe` over a ForwardAgent call."""

    def __init__(self, stream: ClientStream[Any, Any], session: RemoteSession) -> None:
        self._stream = stream
        self._session = session

    async def read(self) -> bytes:
        with self._session.errors("using an ssh agent"):
            while (raw := await self._stream.recv_bytes()) is not None:
                if data := decode_chunk(raw):
                    return data
        return b""

    async def write(self, data: bytes) -> None:
        with self._session.errors("using an ssh agent"):
            await self._stream.send_bytes(encode_chunk(data))

    async def close(self) -> None:
        self._stream.cancel()
