"""Blobs on their way into the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.sources.fetch import AsyncSink, BlobFetcher
from boxwright.store.store import Store


class Silent:
    """A place that would never send anything."""

    source_labels: Mapping[str, str] = {}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        raise NotImplementedError

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        raise AssertionError("the fetch was cancelled before")


def test_a_fetch_that_is_cancelled_while_it_sets_room_aside_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def main(store: Store) -> None:
        make = store.blobs.writer

        def slowly(**options: object) -> object:
            begun.set()
            assert go_on.wait(60)
            return make(**options)  # type: ignore[arg-type]

        monkeypatch.setattr(store.blobs, "writer", slowly)
        blob = Descriptor("application/octet-stream", Digest.of(b"x"), 8 << 20)
        fetch = asyncio.ensure_future(BlobFetcher(store.blobs).fetch(Silent(), blob))
        await asyncio.to_thread(begun.wait, 60)
        fetch.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert list(store.blobs.ingest.iterdir()) == []

    store = Store.open(tmp_path / "s")
    asyncio.run(main(store))
    store.close()
