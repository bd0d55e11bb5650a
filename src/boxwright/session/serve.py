"""Serve a client's offer to a remote daemon (the client's side of a session)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from boxwright.core.workers import to_worker
from boxwright.errors import NotFoundError, PermissionDeniedError
from boxwright.session import metadata as md
from boxwright.session.base import BytePipe
from boxwright.session.chunks import decode_chunk, encode_chunk
from boxwright.session.providers.auth import AuthProvider
from boxwright.session.providers.localdirs import LocalDirs
from boxwright.session.providers.outputs import OutputChooser, OutputSinks
from boxwright.session.providers.secrets import SecretsProvider
from boxwright.session.providers.ssh import SshProvider
from boxwright.session.providers.uploads import UploadProvider
from boxwright.session.samemachine import announce
from boxwright.session.servecontent import add_layouts
from boxwright.session.services import SessionServices
from boxwright.session.treeoutput import receive_output
from boxwright.session.treesend import send_tree
from boxwright.session.treewalk import TreeWalk
from boxwright.wire import methods
from boxwright.wire.client import Connection
from boxwright.wire.pb import auth_pb2, health_pb2, secrets_pb2, sessionexporter_pb2, ssh_pb2
from boxwright.wire.server import Context, Server, ServerStream
from boxwright.wire.status import RpcError, StatusCode
from boxwright.wire.tunnel import MessageTunnel

TransferCallback = Callable[[str, int], None]
"""Told the name of a shared folder and how many bytes of it were just sent."""


def session_server(
    services: SessionServices, *, on_transfer: TransferCallback | None = None
) -> Server:
    """Return a server with the methods of everything that is offered, and health."""
    server = Server()
    server.add(methods.HEALTH_CHECK, _health)
    if services.dirs is not None:
        _add_dirs(server, services.dirs, on_transfer)
    if services.auth is not None:
        _add_auth(server, services.auth)
    if services.secrets is not None:
        _add_secrets(server, services.secrets)
    if services.ssh is not None:
        _add_ssh(server, services.ssh)
    if services.outputs is not None:
        _add_outputs(server, services.outputs)
    if services.chooser is not None:
        _add_chooser(server, services.chooser)
    if services.uploads is not None:
        _add_uploads(server, services.uploads)
    if services.layouts is not None:
        add_layouts(server, services.layouts)
    return server


def session_metadata(
    services: SessionServices, server: Server, *, share_paths: bool = False
) -> list[tuple[str, str]]:
    """Return the metadata that a Control.Session call begins with."""
    items = [(md.SESSION_ID, services.id), (md.SESSION_SHARED_KEY, services.shared_key)]
    if services.name:
        items.append((md.SESSION_NAME, services.name))
    if share_paths and services.dirs is not None:
        items += announce(services.dirs)
    return items + [(md.SESSION_METHOD, path) for path in server.handlers]


async def serve_session(
    connection: Connection,
    services: SessionServices,
    *,
    opened: asyncio.Event | None = None,
    on_transfer: TransferCallback | None = None,
    share_paths: bool = False,
) -> None:
    """Offer ``services`` to the daemon until cancelled or until the daemon ends the session.

    Args:
        connection: The outer connection, to the daemon.
        services: What is offered.
        opened: Set when the call is under way.
        on_transfer: Told of what is sent.
        share_paths: Tell where the shared folders are: an engine of the same user on the same
            machine then reads them in place.
    """
    server = session_server(services, on_transfer=on_transfer)
    items = session_metadata(services, server, share_paths=share_paths)
    async with connection.stream(methods.CONTROL_SESSION, metadata=items) as stream:
        if opened is not None:
            opened.set()
        await server.serve_over(MessageTunnel(stream))


async def _health(
    request: health_pb2.HealthCheckRequest, context: Context
) -> health_pb2.HealthCheckResponse:
    del request, context
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def _add_dirs(server: Server, dirs: LocalDirs, on_transfer: TransferCallback | None) -> None:
    async def diff_copy(stream: ServerStream, context: Context) -> None:
        name, request = md.decode_sync(context.metadata)
        walk = await to_worker(TreeWalk, os.fsencode(dirs.path(name)), request)

        def sent(count: int) -> None:
            if on_transfer is not None:
                on_transfer(name, count)

        await send_tree(stream, walk, on_sent=sent)

    server.add(methods.FILESYNC_DIFFCOPY, diff_copy)


def _add_auth(server: Server, auth: AuthProvider) -> None:
    async def credentials(
        request: auth_pb2.CredentialsRequest, context: Context
    ) -> auth_pb2.CredentialsResponse:
        del context
        found = await auth.credentials(request.Host)
        if found is None:
            return auth_pb2.CredentialsResponse()
        return auth_pb2.CredentialsResponse(Username=found.username, Secret=found.secret)

    async def fetch_token(
        request: auth_pb2.FetchTokenRequest, context: Context
    ) -> auth_pb2.FetchTokenResponse:
        del context
        token = await auth.fetch_token(
            request.Host, request.Realm, request.Service, tuple(request.Scopes)
        )
        return auth_pb2.FetchTokenResponse(
            Token=token.value, ExpiresIn=int(token.expires_in_s), IssuedAt=0
        )

    def check() -> None:
        if not auth.makes_tokens:
            raise RpcError(StatusCode.UNAVAILABLE, "client side tokens disabled")

    async def authority(
        request: auth_pb2.GetTokenAuthorityRequest, context: Context
    ) -> auth_pb2.GetTokenAuthorityResponse:
        del context
        check()
        key = await auth.authority_key(request.Host, request.Salt)
        return auth_pb2.GetTokenAuthorityResponse(PublicKey=key)

    async def verify(
        request: auth_pb2.VerifyTokenAuthorityRequest, context: Context
    ) -> auth_pb2.VerifyTokenAuthorityResponse:
        del context
        check()
        signed = await auth.sign(request.Host, request.Salt, request.Payload)
        return auth_pb2.VerifyTokenAuthorityResponse(Signed=signed)

    server.add(methods.AUTH_CREDENTIALS, credentials)
    server.add(methods.AUTH_FETCH_TOKEN, fetch_token)
    server.add(methods.AUTH_GET_TOKEN_AUTHORITY, authority)
    server.add(methods.AUTH_VERIFY_TOKEN_AUTHORITY, verify)


def _add_secrets(server: Server, secrets: SecretsProvider) -> None:
    async def get(
        request: secrets_pb2.GetSecretRequest, context: Context
    ) -> secrets_pb2.GetSecretResponse:
        del context
        data = await to_worker(secrets.get, request.ID)
        return secrets_pb2.GetSecretResponse(data=data)

    server.add(methods.SECRETS_GET, get)


def _add_ssh(server: Server, ssh: SshProvider) -> None:
    async def check(
        request: ssh_pb2.CheckAgentRequest, context: Context
    ) -> ssh_pb2.CheckAgentResponse:
        del context
        ssh.check(request.ID)
        return ssh_pb2.CheckAgentResponse()

    async def forward(stream: ServerStream, context: Context) -> None:
        pipe = await ssh.connect(context.metadata.get(md.SSH_ID))
        try:
            await join_pipe(stream, pipe)
        finally:
            await pipe.close()

    server.add(methods.SSH_CHECK_AGENT, check)
    server.add(methods.SSH_FORWARD_AGENT, forward)


async def join_pipe(stream: ServerStream, pipe: BytePipe) -> None:
    """Pass bytes between a call and a pipe until the pipe ends."""

    async def to_pipe() -> None:
        while (raw := await stream.recv_bytes()) is not None:
            await pipe.write(decode_chunk(raw))
        await pipe.close()

    requests = asyncio.ensure_future(to_pipe())
    try:
        while data := await pipe.read():
            await stream.send_bytes(encode_chunk(data))
    finally:
        requests.cancel()
        await asyncio.gather(requests, return_exceptions=True)


def _add_outputs(server: Server, outputs: OutputSinks) -> None:
    async def diff_copy(stream: ServerStream, context: Context) -> None:
        exporter_id, metadata = md.decode_export(context.metadata, context.metadata)
        folder = outputs.folders.get(exporter_id)
        if folder is not None:
            if folder.mirror and not context.metadata.get(md.EXPORTER_MULTI_PLATFORM):
                raise PermissionDeniedError(
                    "the daemon is too old for outputs with mode=delete",
                    hint="leave out mode=delete",
                )
            await receive_output(stream, os.fsencode(folder.path), mirror=folder.mirror)
            return
        if exporter_id not in outputs.files:
            raise NotFoundError(f"exporter {exporter_id} not found")
        sink = outputs.open_file(exporter_id, metadata)
        try:
            while batch := await stream.recv_batch():
                await sink.write(b"".join(map(decode_chunk, batch)))
        except BaseException:
            await sink.abort()
            raise
        await sink.close()

    server.add(methods.FILESEND_DIFFCOPY, diff_copy)


def _add_chooser(server: Server, chooser: OutputChooser) -> None:
    async def find(
        request: sessionexporter_pb2.FindExportersRequest, context: Context
    ) -> sessionexporter_pb2.FindExportersResponse:
        del context
        found = await chooser.find(dict(request.metadata), tuple(request.refs))
        answer = sessionexporter_pb2.FindExportersResponse()
        for item in found:
            answer.exporters.add(Type=item.type, Attrs=dict(item.attributes))
        return answer

    async def finalize(
        request: sessionexporter_pb2.FinalizeExportRequest, context: Context
    ) -> sessionexporter_pb2.FinalizeExportResponse:
        del context
        await chooser.done(dict(request.exporter_response))
        return sessionexporter_pb2.FinalizeExportResponse()

    server.add(methods.EXPORTER_FIND, find)
    server.add(methods.EXPORTER_FINALIZE, finalize)


def _add_uploads(server: Server, uploads: UploadProvider) -> None:
    async def pull(stream: ServerStream, context: Context) -> None:
        async for data in uploads.pull(context.metadata.get(md.URL_PATH)):
            await stream.send_bytes(encode_chunk(data))

    server.add(methods.UPLOAD_PULL, pull)
