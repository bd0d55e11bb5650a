"""An embedded registry over a fresh store, and a plain HTTP client for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from boxwright.core.digest import Digest
from boxwright.registryserver.app import ServerOptions
from boxwright.registryserver.serve import ListenOptions, serving
from boxwright.store.store import Store

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Answer:
    """One answer, read whole."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["errors"][0]["code"]


class Peer:
    """Speaks HTTP to the registry; paths begin after ``/v2``."""

    def __init__(self, session: aiohttp.ClientSession, url: str, store: Store) -> None:
        self.session = session
        self.url = url
        self.store = store

    async def __call__(self, method: str, path: str, data: Any = None, **headers: str) -> Answer:
        url = path if path.startswith("http") else f"{self.url}{self._path(path)}"
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        async with self.session.request(method, url, data=data, headers=named) as response:
            return Answer(response.status, response.headers, await response.read())

    @staticmethod
    def _path(path: str) -> str:
        return path if path.startswith("/v2") else f"/v2{path}"

    async def push_blob(self, name: str, data: bytes) -> Digest:
        digest = Digest.of(data)
        answer = await self("POST", f"/{name}/blobs/uploads/?digest={digest}", data)
        assert answer.status == 201, answer.body
        return digest

    async def push_image(self, name: str, tag: str = "", seed: bytes = b"layer", **extra: Any):
        config = await self.push_blob(name, b"{}" + seed)
        layer = await self.push_blob(name, seed)
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": describe(b"{}" + seed, "application/vnd.oci.image.config.v1+json"),
                "layers": [describe(seed, "application/vnd.oci.image.layer.v1.tar")],
                **extra,
            }
        ).encode()
        digest = Digest.of(body)
        answer = await self(
            "PUT", f"/{name}/manifests/{tag or digest}", body, Content_Type=MANIFEST
        )
        assert answer.status == 201, answer.body
        return digest, body, config, layer


def describe(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": Digest.of(data), "size": len(data)}


class Served:
    """Opens registries for a test."""

    MANIFEST, INDEX = MANIFEST, INDEX
    describe = staticmethod(describe)

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.asynccontextmanager
    async def __call__(
        self, options: ServerOptions | None = None, **listen: Any
    ) -> AsyncIterator[Peer]:
        store = Store.open(self.root)
        try:
            wanted = ListenOptions(server=options or ServerOptions(), **listen)
            connector = aiohttp.TCPConnector(ssl=False)
            async with (
                serving(store, wanted) as url,
                aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            ):
                yield Peer(session, url, store)
        finally:
            store.close()


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "root")


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    def runner(work: Coroutine[Any, Any, Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(60):
                return await work

        return asyncio.run(limited())

    return runner
