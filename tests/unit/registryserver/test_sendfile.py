"""Blobs leave whole on every loop, to fast, slow and vanishing clients."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
import uvloop

from boxwright.core.digest import Digest

DATA = os.urandom(1 << 20) * 24


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run_on(request):
    def runner(work):
        async def limited():
            async with asyncio.timeout(60):
                return await work

        with asyncio.Runner(loop_factory=request.param) as loop:
            return loop.run(limited())

    return runner


async def _store(peer, data=DATA):
    def put():
        with peer.store.blobs.writer() as writer:
            writer.write(data)
            return writer.commit()[0]

    digest = await asyncio.to_thread(put)
    peer.store.db.execute("INSERT INTO registry_blobs VALUES ('app', ?)", (digest,))
    return digest


def test_whole_and_ranges(served, run_on):
    async def work():
        async with served() as peer:
            digest = await _store(peer)
            whole = await peer("GET", f"/app/blobs/{digest}")
            assert Digest.of(whole.body) == digest
            part = await peer("GET", f"/app/blobs/{digest}", Range="bytes=1000000-20999999")
            assert part.status == 206
            assert part.body == DATA[1_000_000:21_000_000]
            # The connection is as good as new.
            assert (await peer("HEAD", f"/app/blobs/{digest}")).status == 200

    run_on(work())


def test_an_empty_blob(served, run_on):
    async def work():
        async with served() as peer:
            digest = await _store(peer, b"")
            answer = await peer("GET", f"/app/blobs/{digest}")
            assert (answer.status, answer.body) == (200, b"")

    run_on(work())


def test_a_slow_client_and_many_others(served, run_on):
    async def work():
        async with served() as peer:
            digest = await _store(peer)
            host, _, port = peer.url.removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 16)
            writer.write(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            others = await asyncio.gather(*(peer("GET", f"/app/blobs/{digest}") for _ in range(6)))
            assert {Digest.of(answer.body) for answer in others} == {digest}
            hashed, left = hashlib.sha256(), len(DATA)
            while left:
                piece = await reader.read(1 << 16)
                hashed.update(piece)
                left -= len(piece)
            assert hashed.hexdigest() == digest.hex
            writer.close()

    run_on(work())


def test_a_client_that_goes_away(served, run_on):
    async def work():
        async with served() as peer:
            digest = await _store(peer)
            host, _, port = peer.url.removeprefix("http://").partition(":")
            for _ in range(5):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await reader.read(1000)
                writer.transport.abort()
            whole = await peer("GET", f"/app/blobs/{digest}")
            assert Digest.of(whole.body) == digest

    run_on(work())
