"""A client's session through a real connection: daemon side and client side of our own."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import pytest

from boxwright.errors import BoxwrightError, Code, UnimplementedError
from boxwright.session.base import (
    DirNotAllowedError,
    SecretNotFoundError,
    SessionLostError,
    SshAgentNotFoundError,
    SyncRequest,
)
from boxwright.session.manager import SessionManager
from boxwright.session.providers.auth import AuthProvider
from boxwright.session.providers.dockerconfig import DockerConfig
from boxwright.session.providers.localdirs import LocalDirs
from boxwright.session.providers.outputs import FolderOutput, OutputSinks, PathSink
from boxwright.session.providers.secrets import SecretSource, SecretsProvider
from boxwright.session.providers.ssh import AgentSource, SshProvider
from boxwright.session.providers.uploads import UploadProvider
from boxwright.session.samemachine import announce, readable_here
from boxwright.session.serve import serve_session
from boxwright.session.services import SessionServices
from boxwright.session.treeoutput import FolderReceiver
from boxwright.wire import methods
from boxwright.wire.bytestream import Peer
from boxwright.wire.client import Connection
from boxwright.wire.server import Server


@asynccontextmanager
async def session_over_socket(tmp_path, services, *, share_paths=False):
    """Yield the daemon's view of a client that offers ``services``, and the client's task."""
    manager = SessionManager()
    server = Server()

    async def serve(stream, context):
        await manager.serve_stream(stream, context.metadata)

    server.add(methods.CONTROL_SESSION, serve)
    address = await server.listen(f"unix://{tmp_path}/s")
    connection = await Connection.open(address)
    client = asyncio.ensure_future(serve_session(connection, services, share_paths=share_paths))
    try:
        yield await manager.get(services.id), client, manager
    finally:
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await connection.close()
        await server.shutdown(0)


def run(tmp_path, services, use):
    async def main():
        async with session_over_socket(tmp_path, services) as (session, client, manager):
            await use(session, client, manager)

    asyncio.run(main())


def test_a_folder_with_patterns_that_are_not_ascii(tmp_path):
    source = tmp_path / "context"
    (source / "é").mkdir(parents=True)
    (source / "é/file").write_bytes(b"data" * 100_000)
    (source / "other").write_bytes(b"")

    async def use(session, client, manager):
        target = tmp_path / "target"
        target.mkdir()
        receiver = FolderReceiver(os.fsencode(target))
        await session.sync_dir("context", SyncRequest(include=("é",)), receiver)
        assert [path.name for path in target.iterdir()] == ["é"]
        assert (target / "é/file").read_bytes() == b"data" * 100_000
        with pytest.raises(BoxwrightError) as caught:
            await session.sync_dir("secret", SyncRequest(), receiver)
        assert caught.value.code is Code.NOT_FOUND
        assert caught.value.brief == DirNotAllowedError("secret").brief

    run(tmp_path, SessionServices(dirs=LocalDirs({"context": source})), use)


def test_a_folder_of_the_same_user_is_read_in_place(tmp_path):
    async def main():
        services = SessionServices(dirs=LocalDirs({"context": tmp_path}))
        async with session_over_socket(tmp_path, services, share_paths=True) as (session, _, _):
            assert session.local_dir("context") == tmp_path
            assert session.local_dir("other") is None
        async with session_over_socket(tmp_path, services) as (session, _, _):
            assert session.local_dir("context") is None

    asyncio.run(main())


def test_announced_folders_are_believed_only_if_proven(tmp_path):
    ours = Peer("unix", uid=os.geteuid())
    (told,) = (value for _, value in announce(LocalDirs({"context": tmp_path})))
    assert readable_here([told], ours) == {"context": tmp_path}
    strangers = (Peer("unix", uid=os.geteuid() + 1), Peer("unix"), Peer("tcp", uid=os.geteuid()))
    for peer in strangers:
        assert readable_here([told], peer) == {}
    fields = json.loads(told)
    for lie in (
        {**fields, "inode": fields["inode"] + 1},
        {**fields, "path": str(tmp_path / "absent")},
        {**fields, "path": 7},
        {"name": "context"},
        [],
    ):
        assert readable_here([json.dumps(lie), "{"], ours) == {}


def test_secrets(tmp_path):
    (tmp_path / "token").write_bytes(b"s3cret")
    offered = SecretsProvider(
        [SecretSource("file", path=str(tmp_path / "token")), SecretSource("env", variable="E")],
        {"E": "from env"},
    )

    async def use(session, client, manager):
        assert await session.secret("file") == b"s3cret"
        assert await session.secret("env") == b"from env"
        with pytest.raises(SecretNotFoundError):
            await session.secret("absent")
        with pytest.raises(SshAgentNotFoundError):
            await session.ssh_check("default")
        with pytest.raises(UnimplementedError):
            await session.send_file({})

    run(tmp_path, SessionServices(secrets=offered), use)


def test_credentials_and_token_authority(tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    environ = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    config = DockerConfig({"auths": {"reg:5000": {"auth": "dTpw"}}}, environ)

    async def use(session, client, manager):
        found = await session.credentials("reg:5000")
        assert (found.username, found.secret) == ("u", "p")
        assert await session.credentials("elsewhere") is None
        key = await session.token_authority("reg:5000", b"salt")
        signed = await session.verify_token_authority("reg:5000", b"salt", b"payload")
        Ed25519PublicKey.from_public_bytes(key).verify(signed[:64], b"payload")
        assert signed[64:] == b"payload"
        assert await session.token_authority("reg:5000", b"pepper") != key

    run(tmp_path, SessionServices(auth=AuthProvider(config, environ)), use)


def test_outputs_into_a_file_and_a_folder(tmp_path):
    built = tmp_path / "built"
    (built / "bin").mkdir(parents=True)
    (built / "bin/app").write_bytes(b"\x7fELF")
    seen = {}

    def opener(metadata):
        seen.update(metadata)
        return PathSink(tmp_path / "deep/out.tar")

    outputs = OutputSinks({0: opener}, {1: FolderOutput(tmp_path / "dest")})

    async def use(session, client, manager):
        sink = await session.send_file({"containerimage.digest": "sha256:0"}, exporter_id=0)
        await sink.write(b"a" * 3_000_000)
        await sink.write(b"end")
        await sink.close()
        assert (tmp_path / "deep/out.tar").read_bytes() == b"a" * 3_000_000 + b"end"
        assert seen == {"containerimage.digest": "sha256:0"}
        await session.send_tree(built, exporter_id=1)
        assert (tmp_path / "dest/bin/app").read_bytes() == b"\x7fELF"
        sink = await session.send_file({}, exporter_id=7)
        with pytest.raises(BoxwrightError) as caught:
            await sink.close()
        assert caught.value.code is Code.NOT_FOUND

    run(tmp_path, SessionServices(outputs=outputs), use)


def test_an_aborted_output_leaves_no_file(tmp_path):
    outputs = OutputSinks({0: lambda _: PathSink(tmp_path / "out.tar")})

    async def use(session, client, manager):
        sink = await session.send_file({})
        await sink.write(b"half")
        await sink.abort()

    run(tmp_path, SessionServices(outputs=outputs), use)
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_an_upload_is_pulled_once(tmp_path):
    import io

    uploads = UploadProvider()
    url = uploads.add(io.BytesIO(b"tar" * 1_000_000))

    async def use(session, client, manager):
        path = url.removeprefix("http://buildkit-session")
        data = b"".join([chunk async for chunk in session.pull_upload(path)])
        assert data == b"tar" * 1_000_000
        with pytest.raises(BoxwrightError) as caught:
            await anext(session.pull_upload(path))
        assert caught.value.code is Code.NOT_FOUND

    run(tmp_path, SessionServices(uploads=uploads), use)


def test_an_ssh_agent_signs_but_takes_no_keys(tmp_path):
    async def agent(reader, writer):
        while head := await reader.read(4):
            body = await reader.readexactly(int.from_bytes(head, "big"))
            writer.write((1 + len(body)).to_bytes(4, "big") + b"\x0c" + body)
        writer.close()

    async def main():
        path = f"{tmp_path}/agent"
        server = await asyncio.start_unix_server(agent, path)
        services = SessionServices(ssh=SshProvider([AgentSource(path=path)], {}))
        async with session_over_socket(tmp_path, services) as (session, _, _):
            await session.ssh_check("default")
            pipe = await session.ssh_forward("default")
            await pipe.write(b"\0\0\0\1\x0b")
            assert await pipe.read() == b"\0\0\0\2\x0c\x0b"
            await pipe.write(b"\0\0\0\1")
            await pipe.write(b"\x11")  # SSH_AGENTC_ADD_IDENTITY
            assert await pipe.read() == b"\0\0\0\1\x05"
            await pipe.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_work_goes_on_through_another_session(tmp_path):
    async def main():
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        first = SessionServices(secrets=SecretsProvider([SecretSource("s", value=b"1")]))
        second = SessionServices(secrets=SecretsProvider([SecretSource("s", value=b"2")]))
        async with (
            session_over_socket(tmp_path / "a", first) as (one, client, manager),
            session_over_socket(tmp_path / "b", second) as (two, _, _),
        ):
            manager.attach(two)
            group = manager.group([one.id, two.id])
            assert await group.secret("s") == b"1"
            client.cancel()
            await one.closed.wait()
            group.discard(one.id)
            assert await group.secret("s") == b"2"
            group.discard(two.id)
            with pytest.raises(SessionLostError):
                await group.secret("s")

    asyncio.run(main())


def test_a_lost_client_is_told_as_such(tmp_path):
    async def use(session, client, manager):
        client.cancel()
        await session.closed.wait()
        with pytest.raises(SessionLostError):
            await session.sync_dir("context", SyncRequest(), FolderReceiver(b"/nonexistent"))
        with pytest.raises(SessionLostError):
            await manager.get(session.id, timeout_s=0)

    run(tmp_path, SessionServices(dirs=LocalDirs({"context": tmp_path})), use)
