"""Distribution specification: push, mounts, deletion; and what collection may take."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.registry.client import NOT_KEPT, RegistryClient

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DATA = os.urandom(300_000)
DIGEST = Digest.of(DATA)


async def _begin(peer, name="app"):
    answer = await peer("POST", f"/{name}/blobs/uploads/")
    assert answer.status == 202
    assert answer.headers["Docker-Upload-UUID"] in answer.headers["Location"]
    return answer.headers["Location"]


def test_post_then_put(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            answer = await peer("PUT", f"{where}?digest={DIGEST}", DATA)
            assert answer.status == 201
            assert answer.headers["Docker-Content-Digest"] == DIGEST
            assert (await peer("GET", answer.headers["Location"])).body == DATA
            assert (await peer("GET", where)).code == "BLOB_UPLOAD_UNKNOWN"

    run(work())


def test_single_post(served, run):
    async def work():
        async with served() as peer:
            answer = await peer("POST", f"/app/blobs/uploads/?digest={DIGEST}", DATA)
            assert answer.status == 201
            assert (await peer("GET", answer.headers["Location"])).body == DATA

    run(work())


def test_chunks(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            for start in range(0, len(DATA), 100_000):
                chunk = DATA[start : start + 100_000]
                end = start + len(chunk) - 1
                answer = await peer("PATCH", where, chunk, Content_Range=f"{start}-{end}")
                assert answer.status == 202
                assert answer.headers["Range"] == f"0-{end}"
                where = answer.headers["Location"]
                status = await peer("GET", where)
                assert (status.status, status.headers["Range"]) == (204, f"0-{end}")
            answer = await peer("PUT", f"{where}?digest={DIGEST}")
            assert answer.status == 201
            assert (await peer("GET", f"/app/blobs/{DIGEST}")).body == DATA

    run(work())


def test_the_last_chunk_may_come_with_the_put(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            await peer("PATCH", where, DATA[:1000])
            ranged = f"1000-{len(DATA) - 1}"
            answer = await peer(
                "PUT", f"{where}?digest={DIGEST}", DATA[1000:], Content_Range=ranged
            )
            assert answer.status == 201

    run(work())


@pytest.mark.parametrize("ranged", ["5-9", "0-4", "nonsense"])
def test_chunks_out_of_order(served, run, ranged):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            await peer("PATCH", where, b"abc", Content_Range="0-2")
            answer = await peer("PATCH", where, b"01234", Content_Range=ranged)
            assert (answer.status, answer.code) == (416, "BLOB_UPLOAD_INVALID")
            assert (await peer("GET", where)).headers["Range"] == "0-2"

    run(work())


def test_wrong_digest(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            answer = await peer("PUT", f"{where}?digest={Digest.of(b'other')}", DATA)
            assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
            assert (await peer("HEAD", f"/app/blobs/{DIGEST}")).status == 404
            assert os.listdir(peer.store.blobs.ingest) == []

    run(work())


@pytest.mark.parametrize(
    "query", ["", "?digest=sha256:zz", f"?digest=sha512:{'a' * 64}", f"?digest=md5:{'a' * 32}"]
)
def test_missing_malformed_or_foreign_digest(served, run, query):
    async def work():
        async with served() as peer:
            answer = await peer("PUT", f"{await _begin(peer)}{query}", b"x")
            assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
            if query:
                staged = os.listdir(peer.store.blobs.ingest)
                answer = await peer("POST", f"/app/blobs/uploads/{query}", b"x")
                assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
                assert os.listdir(peer.store.blobs.ingest) == staged

    run(work())


def test_an_upload_belongs_to_its_repository_and_can_be_dropped(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            assert (await peer("GET", where.replace("/app/", "/other/"))).status == 404
            await peer("PATCH", where, b"abc")
            assert (await peer("DELETE", where)).status == 204
            assert (await peer("GET", where)).status == 404
            assert os.listdir(peer.store.blobs.ingest) == []

    run(work())


def test_mounts(served, run):
    async def work():
        async with served() as peer:
            digest = await peer.push_blob("base", DATA)
            mount = f"/app/blobs/uploads/?mount={digest}"
            assert (await peer("POST", f"{mount}&from=none")).status == 202
            assert (await peer("POST", mount)).status == 202
            assert (await peer("HEAD", f"/app/blobs/{digest}")).status == 404
            answer = await peer("POST", f"{mount}&from=base")
            assert answer.status == 201
            assert (await peer("GET", answer.headers["Location"])).body == DATA

    run(work())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "MANIFEST_INVALID"),
        (b"[]", "MANIFEST_INVALID"),
        (b"\xff\xfe", "MANIFEST_INVALID"),
        (b"[" * 3000, "MANIFEST_INVALID"),
        (b'{"schemaVersion":1}', "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"layers":7}', "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"layers":[{}]}', "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"layers":[],"subject":5}', "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"mediaType":"a/b"}', "MANIFEST_INVALID"),
        (b" " * ((4 << 20) + 1), "SIZE_INVALID"),
    ],
)
def test_manifests_that_are_none(served, run, body, code):
    async def work():
        async with served() as peer:
            sent = io.BytesIO(body)
            answer = await peer("PUT", "/app/manifests/v1", sent, Content_Type=served.MANIFEST)
            assert answer.code == code
            assert 400 <= answer.status < 500
            assert (await peer("GET", "/app/manifests/v1")).status == 404

    run(work())


def test_a_manifest_needs_its_blobs_in_this_repository(served, run):
    async def work():
        async with served() as peer:
            _, body, config, _ = await peer.push_image("other", "v1")
            answer = await peer("PUT", "/app/manifests/v1", body, Content_Type=served.MANIFEST)
            assert answer.code == "MANIFEST_BLOB_UNKNOWN"
            assert answer.json["errors"][0]["detail"] == {"digest": config}
            index = json.dumps(
                {"schemaVersion": 2, "manifests": [served.describe(body, served.MANIFEST)]}
            )
            answer = await peer(
                "PUT", "/app/manifests/v1", index.encode(), Content_Type=served.INDEX
            )
            assert answer.code == "MANIFEST_BLOB_UNKNOWN"

    run(work())


def test_foreign_layers_need_not_be_there(served, run):
    async def work():
        async with served() as peer:
            layer = served.describe(b"foreign", "application/vnd.oci.image.layer.v1.tar")
            layer["urls"] = ["https://example.com/layer"]
            await peer.push_image("app", "v1", layers=[layer])

    run(work())


@pytest.mark.parametrize("tag", ["-x", "a" * 129, "ü"])
def test_invalid_tags(served, run, tag):
    async def work():
        async with served() as peer:
            _, body, *_ = await peer.push_image("app", "v1")
            answer = await peer("PUT", f"/app/manifests/{tag}", body, Content_Type=served.MANIFEST)
            assert (answer.status, answer.code) == (400, "TAG_INVALID")

    run(work())


def test_manifest_under_another_digest(served, run):
    async def work():
        async with served() as peer:
            _, body, *_ = await peer.push_image("app", "v1")
            answer = await peer("PUT", f"/app/manifests/{DIGEST}", body)
            assert answer.code == "DIGEST_INVALID"

    run(work())


def test_indexes_and_moved_tags(served, run):
    async def work():
        async with served() as peer:
            first, one, *_ = await peer.push_image("app", "v1", b"1")
            _, two, *_ = await peer.push_image("app", "v1", b"2")
            assert (await peer("GET", "/app/manifests/v1")).body == two
            assert (await peer("GET", f"/app/manifests/{first}")).body == one
            index = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": served.INDEX,
                    "manifests": [served.describe(m, served.MANIFEST) for m in (one, two)],
                }
            ).encode()
            answer = await peer("PUT", "/app/manifests/all", index, Content_Type=served.INDEX)
            assert answer.status == 201
            got = await peer("GET", "/app/manifests/all")
            assert (got.body, got.headers["Content-Type"]) == (index, served.INDEX)

    run(work())


def test_deletion(served, run):
    async def work():
        async with served() as peer:
            digest, _, config, layer = await peer.push_image("app", "v1")
            await peer.push_image("app", "v2")
            assert (await peer("DELETE", "/app/manifests/v1")).status == 202
            assert (await peer("DELETE", "/app/manifests/v1")).status == 404
            assert (await peer("GET", "/app/manifests/v2")).status == 200
            needed = await peer("DELETE", f"/app/blobs/{layer}")
            assert (needed.status, needed.code) == (405, "UNSUPPORTED")
            assert (await peer("DELETE", f"/app/manifests/{digest}")).status == 202
            assert (await peer("GET", "/app/manifests/v2")).status == 404
            assert (await peer("GET", f"/app/manifests/{digest}")).status == 404
            for blob in (config, layer):
                assert (await peer("DELETE", f"/app/blobs/{blob}")).status == 202
                assert (await peer("GET", f"/app/blobs/{blob}")).status == 404
                assert (await peer("DELETE", f"/app/blobs/{blob}")).status == 404

    run(work())


def test_many_at_once(served, run):
    async def work():
        async with served() as peer:
            blobs = [bytes([n]) * 20_000 for n in range(60)]
            same = asyncio.gather(*(peer.push_blob("app", b"same") for _ in range(20)))
            digests = await asyncio.gather(*(peer.push_blob("app", data) for data in blobs))
            assert len(set(await same)) == 1
            got = await asyncio.gather(*(peer("GET", f"/app/blobs/{d}") for d in digests))
            assert [answer.body for answer in got] == blobs

    run(work())


# --- collection ----------------------------------------------------------------------------------


def test_collection_spares_what_is_pushed_and_what_is_being_pushed(served, run):
    async def work():
        async with served() as peer:
            digest, _, config, layer = await peer.push_image("app", "v1")
            waiting = await peer.push_blob("app", b"waits for its manifest")
            where = await _begin(peer)
            await peer("PATCH", where, DATA)
            peer.store.gc(grace_ns=0)
            for blob in (config, layer, waiting):
                assert (await peer("HEAD", f"/app/blobs/{blob}")).status == 200
            assert (await peer("PUT", f"{where}?digest={DIGEST}")).status == 201
            await peer("DELETE", f"/app/manifests/{digest}")
            assert peer.store.gc(grace_ns=0).blobs == 1  # the manifest; its blobs are leased
            for lease in peer.store.leases.list():
                peer.store.leases.release(lease.id)
            assert peer.store.gc(grace_ns=0).blobs == 4
            assert (await peer("HEAD", f"/app/blobs/{layer}")).status == 404

    run(work())


def test_pushed_images_survive_a_restart_and_a_collection(served, run):
    async def push():
        async with served() as peer:
            return await peer.push_image("app", "v1")

    async def pull(digest, layer):
        async with served() as peer:
            peer.store.gc(grace_ns=0)
            assert (await peer("GET", "/app/manifests/v1")).status == 200
            assert (await peer("GET", f"/app/blobs/{layer}")).body == b"layer"

    digest, _, _, layer = run(push())
    run(pull(digest, layer))


def test_a_client_that_goes_away_in_the_middle_leaves_an_upload_to_go_on_with(served, run):
    async def work():
        async with served() as peer:
            where = await _begin(peer)
            host, _, port = peer.url.removeprefix("http://").partition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n"
            writer.write(head.encode() + DATA[:200_000])
            await writer.drain()
            writer.transport.abort()
            # The next request waits for the upload's lock, so it sees where the first one ended.
            answer = await peer("PATCH", where, b"")
            assert answer.status == 202
            status = await peer("GET", where)
            have = int(status.headers["Range"].partition("-")[2]) + 1
            have = 0 if have == 1 else have
            rest = await peer("PATCH", where, DATA[have:], Content_Range=f"{have}-{len(DATA) - 1}")
            assert rest.status == 202
            assert (await peer("PUT", f"{where}?digest={DIGEST}")).status == 201
            stored = await peer("GET", f"/app/blobs/{DIGEST}")
            assert hashlib.sha256(stored.body).hexdigest() == DIGEST.hex

    run(work())


def test_a_built_image_that_is_pushed_stays_without_its_build(served, run):
    async def work():
        async with served() as peer:
            _, body, *_ = await peer.push_image("made", "seed")
            peer.store.blobs.put(body)
            digest = Digest.of(body)
            name = "docker.io/library/made:1"
            peer.store.images.set(name, Descriptor(MANIFEST, digest, len(body)))
            shown = await peer("HEAD", "/made/manifests/1")
            assert shown.headers["Docker-Content-Digest"] == digest
            assert NOT_KEPT in shown.headers
            client = RegistryClient()
            try:
                ref = Reference.parse(f"{peer.url.removeprefix('http://')}/made:1")
                await client.push_manifest(ref, MANIFEST, body)
            finally:
                await client.close()
            peer.store.images.delete(name)
            kept = await peer("HEAD", "/made/manifests/1")
            assert kept.headers["Docker-Content-Digest"] == digest
            assert NOT_KEPT not in kept.headers

    run(work())
