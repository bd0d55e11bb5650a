"""Uploads that are cancelled, left, or ended more than once."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path

import pytest

from boxwright.core.digest import Digest
from boxwright.registryserver import uploads
from boxwright.store.blobs import BlobWriter
from boxwright.store.errors import DiskCapError, DiskFullError

DATA = os.urandom(300_000)
DIGEST = Digest.of(DATA)


async def _begin(peer):
    return (await peer("POST", "/app/blobs/uploads/")).headers["Location"]


async def _half(peer, method, where, sent=DATA[:200_000]):
    """Begin a request whose body does not end; return its streams."""
    host, _, port = peer.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"{method} {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n"
    writer.write(head.encode() + sent)
    await writer.drain()
    return reader, writer


async def _until_staged(peer, *, staged):
    while bool(os.listdir(peer.store.blobs.ingest)) != staged:  # noqa: ASYNC110 - only a folder
        await asyncio.sleep(0.01)


def test_an_upload_is_cancelled_while_a_request_writes_to_it(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            reader, writer = await _half(peer, "PATCH", where)
            waiting = asyncio.ensure_future(peer("PATCH", where, b"x"))
            await asyncio.sleep(0.1)
            assert (await peer("DELETE", where)).status == 204
            # Neither goes on with a file that is closed, and the silent client is not waited for.
            assert b"404" in await reader.readline()
            assert (await waiting).code == "BLOB_UPLOAD_UNKNOWN"
            await _until_staged(peer, staged=False)
            writer.close()

    run(work())


def test_an_upload_that_is_ended_twice_at_once(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            await peer("PATCH", where, DATA)
            ends = [peer("PUT", f"{where}?digest={DIGEST}") for _ in range(4)]
            answers = await asyncio.gather(*ends)
            assert {answer.status for answer in answers} <= {201, 404}
            assert [answer.status for answer in answers].count(201) >= 1
            assert (await peer("GET", f"/app/blobs/{DIGEST}")).body == DATA

    run(work())


def test_a_single_post_that_breaks_off_leaves_nothing(served, run):
    async def work():
        async with served() as peer:
            where = f"/v2/app/blobs/uploads/?digest={DIGEST}"
            _, writer = await _half(peer, "POST", where)
            await _until_staged(peer, staged=True)
            writer.transport.abort()
            await _until_staged(peer, staged=False)

    run(work())


def test_a_client_that_goes_away_is_no_error_of_ours(served, run, caplog):
    async def work():
        async with served() as peer:
            for method in ("PATCH", "PUT"):
                where = await _begin(peer)
                _, writer = await _half(peer, method, f"{where}?digest={DIGEST}")
                writer.transport.abort()
                await peer("PATCH", where)  # waits until the other has noticed
            _, writer = await _half(peer, "PUT", "/v2/app/manifests/v1", b"{")
            writer.transport.abort()
            await asyncio.sleep(0.1)
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []

    run(work())


@pytest.mark.parametrize(
    "failure",
    [
        DiskCapError(cap=1, used=1, needed=1),
        DiskFullError(Path("file"), needed=1, available=0),
    ],
)
def test_no_room(served, run, monkeypatch, failure):
    def write(self, data):
        raise failure

    async def work():
        async with served() as peer:
            monkeypatch.setattr(BlobWriter, "write", write)
            answer = await peer("POST", f"/app/blobs/uploads/?digest={DIGEST}", DATA)
            assert (answer.status, answer.code) == (507, "DENIED")
            where = await _begin(peer)
            assert (await peer("PATCH", where, DATA)).status == 507
            assert (await peer("PATCH", where, DATA)).code == "BLOB_UPLOAD_UNKNOWN"
            assert os.listdir(peer.store.blobs.ingest) == []

    run(work())


def test_a_body_is_stored_as_it_came(served, run):
    async def work():
        async with served() as peer:
            for data in (gzip.compress(DATA), b"not compressed at all"):
                where = f"{await _begin(peer)}?digest={Digest.of(data)}"
                answer = await peer("PUT", where, data, Content_Encoding="gzip")
                assert answer.status == 201
                assert (await peer("GET", f"/app/blobs/{Digest.of(data)}")).body == data

    run(work())


def test_what_nobody_touches_goes_without_any_other_upload(served, run, monkeypatch):
    monkeypatch.setattr(uploads, "_IDLE_LIMIT_S", 0.5)

    async def work():
        async with served() as peer:
            where = await _begin(peer)
            reader, writer = await _half(peer, "PATCH", await _begin(peer))
            await _until_staged(peer, staged=False)
            assert (await peer("GET", where)).code == "BLOB_UPLOAD_UNKNOWN"
            assert b"408" in await reader.readline()
            writer.close()
            again = await _begin(peer)  # and the watch goes on after all were gone
            await _until_staged(peer, staged=False)
            assert (await peer("GET", again)).status == 404

    run(work())
