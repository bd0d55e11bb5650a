"""The client against a small daemon that answers what the test scripts."""

import asyncio
import json
import os

import pytest

from boxwright.client.client import Client
from boxwright.client.localcache import CacheSpec
from boxwright.client.request import BuildRequest, Export
from boxwright.client.transport import BUILD_ID, GrpcTransport
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.progress.events import LogEvent, VertexEvent
from boxwright.session.base import ContextReadError, SyncRequest
from boxwright.session.manager import SessionManager
from boxwright.session.providers.secrets import SecretSource
from boxwright.session.treeoutput import FolderReceiver
from boxwright.wire import methods
from boxwright.wire.pb import control_pb2, gateway_pb2
from boxwright.wire.server import Server
from boxwright.wire.status import RpcError, StatusCode

DIGEST = "sha256:" + "a" * 64


class ScriptedDaemon:
    """Serves sessions; Solve does what ``script(daemon, request)`` does."""

    def __init__(self, script):
        self.script = script
        self.sessions = SessionManager()
        self.solved = asyncio.Event()
        self.frontend_done = asyncio.Event()
        self.calls = []
        self.server = Server()
        self.server.add(methods.CONTROL_SESSION, self.session)
        self.server.add(methods.CONTROL_SOLVE, self.solve)
        self.server.add(methods.CONTROL_STATUS, self.status)
        self.server.add(methods.BRIDGE_PING, self.ping)
        self.server.add(methods.BRIDGE_SOLVE, self.bridge_solve)
        self.server.add(methods.BRIDGE_RETURN, self.bridge_return)

    async def session(self, stream, context):
        await self.sessions.serve_stream(stream, context.metadata)

    async def solve(self, request, context):
        try:
            response = await self.script(self, request)
        finally:
            self.solved.set()
        return control_pb2.SolveResponse(ExporterResponse=response or {})

    async def status(self, stream, context):
        await stream.recv()
        vertex = control_pb2.Vertex(digest=DIGEST, name="step")
        vertex.started.seconds = 1
        bad = control_pb2.Vertex(digest="nonsense")
        await stream.send(control_pb2.StatusResponse(vertexes=[vertex, bad]))
        await self.solved.wait()
        log = control_pb2.VertexLog(vertex=DIGEST, stream=1, msg=b"last words")
        await stream.send(control_pb2.StatusResponse(logs=[log]))

    async def ping(self, request, context):
        self.calls.append(("ping", context.metadata.get(BUILD_ID)))
        return gateway_pb2.PongResponse()

    async def bridge_solve(self, request, context):
        self.calls.append(("solve", dict(request.FrontendOpt)))
        if request.FrontendOpt.get("fail"):
            raise RpcError(StatusCode.UNKNOWN, "dockerfile parse error on line 1")
        result = gateway_pb2.Result(metadata={"result.txt": b"all good"})
        return gateway_pb2.SolveResponse(result=result)

    async def bridge_return(self, request, context):
        self.calls.append(("return", request.error.message))
        self.frontend_done.set()
        return gateway_pb2.ReturnResponse()


def run(tmp_path, script, use):
    async def main():
        daemon = ScriptedDaemon(script)
        address = await daemon.server.listen(f"unix://{tmp_path}/socket")
        try:
            async with Client(await GrpcTransport.open(address)) as client:
                await use(client, daemon)
        finally:
            await daemon.server.shutdown(0)

    asyncio.run(main())


def test_a_build_serves_its_session_and_reports_progress(tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    (context / "app").write_bytes(b"code")
    seen = {}

    async def script(daemon, request):
        session = await daemon.sessions.get(request.Session)
        (tmp_path / "copy").mkdir()
        await session.sync_dir(
            "context", SyncRequest(), FolderReceiver(os.fsencode(tmp_path / "copy"))
        )
        seen["secret"] = await session.secret("s")
        sink = await session.send_file({}, exporter_id=1)
        await sink.write(b"tar")
        await sink.close()
        seen["request"] = request
        return {"containerimage.digest": DIGEST}

    async def use(client, daemon):
        events = []
        request = BuildRequest(
            frontend="dockerfile.v0",
            opts={"target": "t"},
            locals={"context": context},
            secrets=(SecretSource("s", value=b"hush"),),
            exports=(Export("image", {"name": "app"}), Export("oci", path=tmp_path / "out.tar")),
            cache_from=(CacheSpec("registry", {"ref": "r/c"}),),
            shared_key="key",
        )
        result = await client.build(request, events.extend)
        assert result.exporter_response == {"containerimage.digest": DIGEST}
        assert [type(event) for event in events] == [VertexEvent, LogEvent]

    run(tmp_path, script, use)
    assert (tmp_path / "copy/app").read_bytes() == b"code"
    assert (tmp_path / "out.tar").read_bytes() == b"tar"
    assert seen["secret"] == b"hush"
    sent = seen["request"]
    assert [(e.Type, dict(e.Attrs)) for e in sent.Exporters] == [
        ("image", {"name": "app"}),
        ("oci", {}),
    ]
    assert sent.ExporterDeprecated == "image"
    imports = [{"Type": "registry", "Attrs": {"ref": "r/c"}}]
    assert json.loads(sent.FrontendAttrs["cache-imports"]) == imports
    assert sent.Cache.Imports[0].Attrs["ref"] == "r/c"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (
            'process "/bin/sh -c false" did not complete successfully: exit code: 1',
            Code.EXEC_FAILED,
        ),
        ("dockerfile parse error on line 3: unknown instruction: X", Code.DOCKERFILE_SYNTAX),
        ('target stage "x" could not be found', Code.UNKNOWN_STAGE),
        ('failed to calculate checksum of ref a::b: "/x": not found', Code.SOURCE_NOT_FOUND),
        ("something new", Code.INVALID),
    ],
)
def test_failures_of_other_daemons_have_stable_codes(tmp_path, message, code):
    async def script(daemon, request):
        raise RpcError(StatusCode.UNKNOWN, message)

    async def use(client, daemon):
        events = []
        with pytest.raises(BoxwrightError) as caught:
            await client.build(BuildRequest(frontend="dockerfile.v0"), events.extend)
        assert caught.value.code is code
        assert any(isinstance(event, LogEvent) for event in events)

    run(tmp_path, script, use)


def test_our_daemons_errors_arrive_as_they_were(tmp_path):
    async def script(daemon, request):
        raise InvalidInputError("brief", detail="facts", hint="do this")

    async def use(client, daemon):
        with pytest.raises(BoxwrightError) as caught:
            await client.build(BuildRequest(frontend="dockerfile.v0"))
        error = caught.value
        assert (error.code, error.brief, error.detail, error.hint) == (
            Code.INVALID,
            "brief",
            "facts",
            "do this",
        )

    run(tmp_path, script, use)


def test_cancelling_cancels_the_build_on_the_daemon(tmp_path):
    cancelled = []

    async def main():
        started = asyncio.Event()

        async def script(daemon, request):
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cancelled.append(request.Ref)
                raise

        daemon = ScriptedDaemon(script)
        address = await daemon.server.listen(f"unix://{tmp_path}/socket")
        async with Client(await GrpcTransport.open(address)) as client:
            request = BuildRequest(frontend="dockerfile.v0")
            task = asyncio.ensure_future(client.build(request))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await daemon.solved.wait()
        assert cancelled == [request.ref]
        await daemon.server.shutdown(0)

    asyncio.run(main())


def test_a_call_returns_the_frontends_metadata(tmp_path):
    async def script(daemon, request):
        assert request.Frontend == ""
        await daemon.frontend_done.wait()

    async def use(client, daemon):
        request = BuildRequest(
            frontend="dockerfile.v0", opts={"requestid": "frontend.lint"}, via_gateway=True
        )
        result = await client.build(request)
        assert result.metadata == {"result.txt": b"all good"}
        assert daemon.calls == [
            ("ping", request.ref),
            (
                "solve",
                {
                    "requestid": "frontend.lint",
                    "frontend.caps": "moby.buildkit.frontend.subrequests",
                },
            ),
            ("return", ""),
        ]

    run(tmp_path, script, use)


def test_a_failed_call_ends_the_build(tmp_path):
    async def script(daemon, request):
        await daemon.frontend_done.wait()
        raise RpcError(StatusCode.UNKNOWN, "dockerfile parse error on line 1")

    async def use(client, daemon):
        request = BuildRequest(frontend="dockerfile.v0", opts={"fail": "1"}, via_gateway=True)
        with pytest.raises(BoxwrightError) as caught:
            await client.build(request)
        assert caught.value.code is Code.DOCKERFILE_SYNTAX
        assert daemon.calls[-1][0] == "return"

    run(tmp_path, script, use)


@pytest.mark.parametrize(
    "request_",
    [
        BuildRequest(exports=(Export("oci"),)),
        BuildRequest(exports=(Export("local"),)),
        BuildRequest(exports=(Export("image", path=os.devnull),)),
    ],
)
def test_exports_that_make_no_sense_are_told_at_once(request_):
    with pytest.raises(InvalidInputError):
        request_.services()


def test_a_missing_folder_is_told_before_anything_is_sent(tmp_path):
    request = BuildRequest(locals={"context": tmp_path / "absent"})
    with pytest.raises(ContextReadError):
        request.services()
