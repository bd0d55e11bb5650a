"""An exported layout is a source of the next build, through the client's content store."""

import asyncio
import json

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError, NotFoundError, UnimplementedError
from boxwright.fsutil.tar import Entry, TarWriter
from boxwright.oci import mediatypes
from boxwright.oci.manifest import Index, Manifest
from boxwright.session.manager import SessionManager
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources.base import SourceContext
from boxwright.sources.fetch import BlobFetcher
from boxwright.sources.oci_layout import LayoutImage, OciLayoutProvider
from boxwright.store import DigestMismatchError, Store

pytestmark = [pytest.mark.root]


def layer(name, content):
    pieces = []
    tar = TarWriter(pieces.append)
    tar.add(Entry(name), content)
    tar.close()
    return b"".join(pieces)


class Client:
    """A session that serves one layout from memory."""

    id, name, shared_key = "client", "", ""

    def __init__(self):
        self.closed = asyncio.Event()
        self.blobs = {}
        self.asked = []

    def put(self, data):
        self.blobs[Digest.of(data)] = data
        return Digest.of(data), len(data)

    def image(self, architecture, content):
        data = layer(b"file", content)
        config = {
            "os": "linux",
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(data)]},
        }
        manifest = Manifest(
            Descriptor(mediatypes.OCI_CONFIG, *self.put(json.dumps(config).encode())),
            (Descriptor(mediatypes.OCI_LAYER, *self.put(data)),),
        )
        platform = Platform("linux", architecture)
        digest, size = self.put(manifest.encode())
        return Descriptor(manifest.media_type, digest, size, platform=platform)

    async def read_content(self, store_id, digest):
        self.asked.append((store_id, digest))
        if digest not in self.blobs:
            raise NotFoundError(f"blob {digest} not found")
        data = self.blobs[digest]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]


class OldClient:
    id, name, shared_key = "client", "", ""

    def __init__(self):
        self.closed = asyncio.Event()


def run(tmp_path, client, body):
    async def main():
        store = Store.open(tmp_path / "state")
        snapshots = SnapshotManager.open(store)
        sessions = SessionManager()
        sessions.attach(client)
        try:
            provider = OciLayoutProvider(sessions, snapshots, BlobFetcher(store.blobs))
            await body(provider, SourceContext(sessions.group(["client"])))
        finally:
            await snapshots.close()
            store.close()

    asyncio.run(main())


def test_image_of_an_index_becomes_a_tree(tmp_path):
    client = Client()
    images = [client.image("amd64", b"amd" * 5000), client.image("arm64", b"arm")]
    root, _ = client.put(Index(tuple(images)).encode())

    async def body(provider, context):
        attrs = {"oci.session": "client", "oci.store": "base"}
        source = provider.resolve(f"name@{root}", attrs, Platform("linux", "arm64"))
        key = await source.cache_key(context, 0)
        assert key.pin == root
        asked = len(client.asked)
        ref = await source.snapshot(context)
        assert len(client.asked) == asked  # nothing is fetched before it is read
        async with ref.mounted() as tree:
            assert (tree / "file").read_bytes() == b"arm"
        assert {store_id for store_id, _ in client.asked} == {"oci:base"}
        await ref.release()

    run(tmp_path, client, body)


def test_no_digest_or_a_bad_limit(tmp_path):
    async def body(provider, context):
        with pytest.raises(InvalidInputError):
            provider.resolve("name:tag", {}, None)
        for limit in ("0", "-1", "x", "99999"):
            with pytest.raises(InvalidInputError):
                provider.resolve(f"n@{Digest.of(b'')}", {"oci.layerlimit": limit}, None)

    run(tmp_path, OldClient(), body)


def test_clients_without_layouts(tmp_path):
    async def body(provider, context):
        source = provider.resolve(f"n@{Digest.of(b'')}", {}, None)
        with pytest.raises(UnimplementedError):
            await source.cache_key(context, 0)

    run(tmp_path, OldClient(), body)


def test_a_lying_client(tmp_path):
    client = Client()
    wanted = Digest.of(b"wanted")
    client.blobs[wanted] = b"other"
    client.blobs[Digest.of(b"huge")] = bytes(5 << 20)

    async def body(provider, context):
        for digest, error in (
            (wanted, DigestMismatchError),
            (Digest.of(b"huge"), InvalidInputError),
            (Digest.of(b"absent"), NotFoundError),
        ):
            image = LayoutImage(provider._sessions, ["client"], "s", digest)
            with pytest.raises(error):
                await image.manifest(None)

    run(tmp_path, client, body)
