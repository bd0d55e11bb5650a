"""Content by other digests than sha256; names that come with a push by digest."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.engine.verify import ImageGraph, verify_push
from boxwright.registry.client import RegistryClient

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DATA = os.urandom(300_000)


def sha512(data: bytes) -> Digest:
    return Digest(f"sha512:{hashlib.sha512(data).hexdigest()}")


def described(data: bytes, media_type: str = "a/b") -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha512(data), "size": len(data)}


async def push_blob(peer, name: str, data: bytes) -> None:
    answer = await peer("POST", f"/{name}/blobs/uploads/?digest={sha512(data)}", data)
    assert answer.status == 201


async def push_image(peer, name: str, query: str = "", **extra: object):
    """Push an image all of whose digests are sha512; return the manifest and the answer."""
    for data in (b"{}", DATA):
        await push_blob(peer, name, data)
    fields = {"config": described(b"{}"), "layers": [described(DATA)], **extra}
    body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **fields}).encode()
    where = f"/{name}/manifests/{sha512(body)}{query}"
    return body, await peer("PUT", where, body, Content_Type=MANIFEST)


@pytest.mark.parametrize("announced", ["", "?digest-algorithm=sha512", "?digest-algorithm=sha384"])
@pytest.mark.parametrize("chunk", [len(DATA), 100_000])
def test_uploads_by_sha512(served, run, announced, chunk):
    async def work():
        async with served() as peer:
            where = (await peer("POST", f"/app/blobs/uploads/{announced}")).headers["Location"]
            for start in range(0, len(DATA), chunk):
                await peer("PATCH", where, DATA[start : start + chunk])
            answer = await peer("PUT", f"{where}?digest={sha512(DATA)}")
            assert answer.status == 201
            assert answer.headers["Docker-Content-Digest"] == sha512(DATA)
            assert (await peer("GET", answer.headers["Location"])).body == DATA
            part = await peer("GET", f"/app/blobs/{sha512(DATA)}", Range="bytes=10-19")
            assert (part.status, part.body) == (206, DATA[10:20])
            # What was pushed by one name is not shown by another.
            assert (await peer("HEAD", f"/app/blobs/{Digest.of(DATA)}")).status == 404

    run(work())


def test_wrong_and_unknown_ones_store_nothing(served, run):
    async def work():
        async with served() as peer:
            for query in (f"digest={sha512(b'x')}", "digest-algorithm=md5"):
                answer = await peer("POST", f"/app/blobs/uploads/?{query}", DATA)
                assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
            body = b'{"schemaVersion": 2, "layers": []}'
            answer = await peer("PUT", f"/app/manifests/{sha512(b'x')}", body)
            assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
            assert list(peer.store.blobs.files()) == []
            assert os.listdir(peer.store.blobs.ingest) == []

    run(work())


def test_an_image_by_sha512_is_pulled_mounted_referred_to_kept_and_deleted(served, run):
    async def work():
        async with served() as peer:
            body, answer = await push_image(peer, "app", "?tag=1&tag=latest")
            digest = sha512(body)
            assert answer.status == 201
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.headers["Location"] == f"/v2/app/manifests/{digest}"
            assert answer.headers["OCI-Tag"] == "1, latest"
            assert (await peer("GET", "/app/tags/list")).json["tags"] == ["1", "latest"]
            for reference in (digest, "1", "latest"):
                got = await peer("GET", f"/app/manifests/{reference}")
                assert (got.body, got.headers["Docker-Content-Digest"]) == (body, digest)

            mount = f"/other/blobs/uploads/?mount={sha512(DATA)}&from=app"
            assert (await peer("POST", mount)).status == 201
            assert (await peer("GET", f"/other/blobs/{sha512(DATA)}")).body == DATA

            subject = described(body, MANIFEST)
            _, referring = await push_image(peer, "app", subject=subject, artifactType="a/sbom")
            assert referring.headers["OCI-Subject"] == digest
            (found,) = (await peer("GET", f"/app/referrers/{digest}")).json["manifests"]
            assert found["digest"] == referring.headers["Docker-Content-Digest"]
            assert found["digest"].startswith("sha512:")
            return digest

    async def later(digest):
        async with served() as peer:
            peer.store.gc(grace_ns=0)
            assert peer.store.verify(repair=False).is_sound
            assert (await peer("GET", f"/app/blobs/{sha512(DATA)}")).body == DATA
            assert (await peer("DELETE", f"/app/blobs/{sha512(DATA)}")).status == 405
            assert (await peer("DELETE", f"/app/manifests/{digest}")).status == 202
            assert (await peer("GET", "/app/manifests/1")).status == 404

    run(later(run(work())))


def test_tags_come_with_a_push_by_digest_only_and_all_must_be_valid(served, run):
    async def work():
        async with served() as peer:
            digest, body, *_ = await peer.push_image("app", "v1")
            for query in ("?tag=good&tag=-bad", "?tag="):
                answer = await peer("PUT", f"/app/manifests/{digest}{query}", body)
                assert (answer.status, answer.code) == (400, "TAG_INVALID")
            answer = await peer("PUT", "/app/manifests/v2?tag=v3", body, Content_Type=MANIFEST)
            assert (answer.status, "OCI-Tag" in answer.headers) == (201, False)
            assert (await peer("GET", "/app/tags/list")).json["tags"] == ["v1", "v2"]

    run(work())


def test_our_client_brings_an_image_by_sha512(served, run):
    async def work():
        async with served() as peer:
            client = RegistryClient()
            ref = Reference.parse(f"{peer.url.removeprefix('http://')}/app:1")
            layer = Descriptor("a/b", sha512(DATA), len(DATA))
            body = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": described(DATA),
                    "layers": [described(DATA)],
                }
            ).encode()
            root = Descriptor(MANIFEST, sha512(body), len(body))

            async def read():
                yield DATA

            try:
                assert await client.push_blob(ref, layer, read)
                for _ in range(2):
                    told = await client.push_manifest(ref, MANIFEST, body, digest=root.digest)
                    assert told == root.digest
                graph = ImageGraph({layer.digest: layer}, [root])
                await verify_push(client, ref, root, graph, insecure=None, by_digest=False)
                assert await client.fetch_manifest(ref) == (root, body)
            finally:
                await client.close()

    run(work())
