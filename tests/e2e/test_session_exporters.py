"""A client that chooses outputs when it has seen the result, as Docker's own daemon does."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from programs import Daemon

from boxwright import llb
from boxwright.core.workers import install_pool
from boxwright.errors import InvalidInputError, NotFoundError, UnimplementedError
from boxwright.session.base import OutputRequest
from boxwright.session.providers.outputs import OutputSinks, PathSink
from boxwright.session.serve import serve_session
from boxwright.session.services import SessionServices, new_id
from boxwright.wire import methods
from boxwright.wire.client import Connection
from boxwright.wire.pb import control_pb2
from boxwright.wire.status import RpcError

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
DESCRIPTOR = "containerimage.descriptor"


class Chooser:
    """Wants an archive, and remembers what it was told."""

    def __init__(self, outputs: Sequence[OutputRequest] = (), error: Exception | None = None):
        self.outputs = outputs
        self.error = error
        self.refs: Sequence[str] = ()
        self.response: Mapping[str, str] | None = None

    async def find(
        self, metadata: Mapping[str, bytes], refs: Sequence[str]
    ) -> Sequence[OutputRequest]:
        self.refs = refs
        if isinstance(self.error, UnimplementedError):
            raise self.error
        return self.outputs

    async def done(self, response: Mapping[str, str]) -> None:
        self.response = response
        if self.error is not None:
            raise self.error


def solve(
    daemon: Daemon,
    chooser: Chooser | None,
    archive: Path | None = None,
    outputs: Sequence[control_pb2.Exporter] = (),
) -> dict[str, str]:
    """Build one file with a session that has ``chooser``; return what the daemon answers."""
    sinks = OutputSinks()
    if archive is not None:
        sinks.files[len(outputs)] = lambda _metadata: PathSink(archive)
    services = SessionServices(outputs=sinks, chooser=chooser)
    definition = llb.scratch().file(llb.mkfile("/file", b"text")).marshal()

    async def work() -> dict[str, str]:
        install_pool(asyncio.get_running_loop())
        connection = await Connection.open(daemon.address)
        opened = asyncio.Event()
        session = asyncio.ensure_future(serve_session(connection, services, opened=opened))
        try:
            await opened.wait()
            request = control_pb2.SolveRequest(
                Ref=new_id(),
                Session=services.id,
                Definition=definition,
                EnableSessionExporter=True,
                Exporters=outputs,
            )
            answer = await connection.unary(methods.CONTROL_SOLVE, request)
            return dict(answer.ExporterResponse)
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)
            await connection.close()

    return asyncio.run(work())


def test_the_client_chooses_an_archive_and_hears_of_it(daemon: Daemon, tmp_path: Path) -> None:
    chooser = Chooser([OutputRequest("oci", {"compression": "zstd"})])
    answer = solve(daemon, chooser, tmp_path / "out.tar")
    assert len(chooser.refs) == 1
    assert chooser.response == answer
    with tarfile.open(tmp_path / "out.tar") as archive:
        index = json.load(archive.extractfile("index.json") or io.BytesIO())
        digest = index["manifests"][0]["digest"].replace(":", "/")
        manifest = json.load(archive.extractfile(f"blobs/{digest}") or io.BytesIO())
    assert [layer["mediaType"][-8:] for layer in manifest["layers"]] == ["tar+zstd"]


def test_its_outputs_come_after_those_of_the_request(daemon: Daemon, tmp_path: Path) -> None:
    chooser = Chooser([OutputRequest("tar", {})])
    first = control_pb2.Exporter(Type="image", Attrs={"name": "chosen:1"})
    answer = solve(daemon, chooser, tmp_path / "out.tar", [first])
    assert answer["image.name"] == "chosen:1"
    assert DESCRIPTOR in (chooser.response or {})
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == ["file"]


@pytest.mark.parametrize(
    "chooser",
    [None, Chooser(error=UnimplementedError("no opinion"))],
    ids=["does-not-serve-it", "says-unimplemented"],
)
def test_a_client_without_an_opinion_changes_nothing(
    daemon: Daemon, chooser: Chooser | None
) -> None:
    first = control_pb2.Exporter(Type="image", Attrs={"name": "chosen:1"})
    assert DESCRIPTOR in solve(daemon, chooser, outputs=[first])


@pytest.mark.parametrize(
    ("chooser", "words"),
    [
        (Chooser(error=NotFoundError("nowhere to put it")), "nowhere to put it"),
        (Chooser([OutputRequest("floppy", {})]), "floppy"),
    ],
    ids=["refused-at-the-end", "unknown-type"],
)
def test_what_the_client_says_can_fail_the_build(
    daemon: Daemon, chooser: Chooser, words: str
) -> None:
    with pytest.raises((RpcError, InvalidInputError), match=words):
        solve(daemon, chooser)
