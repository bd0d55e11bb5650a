"""Uploads that are cancelled, left, or ended more than once."""

from __future__ import annotations

import asyncio
import os

from boxwright.core.digest import Digest
from boxwright.registryserver import uploads

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
