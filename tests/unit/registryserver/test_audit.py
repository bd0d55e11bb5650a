"""Listing, checking and collecting what the registry holds."""

from __future__ import annotations

import json

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.registryserver import audit

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NOW = 0
DAY_NS = 24 * 3600 * 10**9


async def push_index(peer, name, tag, *children):
    entries = []
    for digest in children:
        size = peer.store.blobs.stat(Digest(digest))
        entries.append({"mediaType": MANIFEST, "digest": str(digest), "size": size})
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    answer = await peer("PUT", f"/{name}/manifests/{tag}", body, Content_Type=INDEX)
    assert answer.status == 201, answer.body
    return Digest.of(body)


def release_all(store):
    for lease in store.leases.list():
        store.leases.release(lease.id)


def test_tags_with_what_they_take(served, run):
    async def work():
        async with served() as peer:
            digest, body, *_ = await peer.push_image("team/app", "v1")
            await peer.push_image("base", "2", b"other")
            config = Digest.of(b"built")
            peer.store.blobs.put(b"built")
            peer.store.images.set(
                "docker.io/library/made:1", Descriptor(MANIFEST, config, len(b"built"))
            )
            lines = audit.list_tags(peer.store)
            assert [(x.repository, x.tag) for x in lines] == [
                ("base", "2"),
                ("made", "1"),
                ("team/app", "v1"),
            ]
            assert lines[2].digest == digest
            assert lines[2].size_bytes == len(body) + len(b"{}layer") + len(b"layer")

    run(work())


def test_a_sound_registry_and_every_kind_of_damage(served, run):
    async def work():
        async with served() as peer:
            digest, _, _, layer = await peer.push_image("app", "v1")
            assert audit.check(peer.store) == (3, [])
            path = peer.store.blobs.path(layer)
            path.write_bytes(b"LAYER")
            (found,) = audit.check(peer.store)[1]
            assert (found.repository, found.manifest, found.blob) == ("app", digest, layer)
            assert found.problem == "damaged"
            path.write_bytes(b"layer")
            peer.store.db.execute("DELETE FROM blobs WHERE digest = ?", (layer,))
            (found,) = audit.check(peer.store)[1]
            assert found.problem == "missing"  # for readers it is, whatever file is left
            path.unlink()
            (found,) = audit.check(peer.store)[1]
            assert found.problem == "missing"

    run(work())


def test_collection_removes_what_nothing_leads_to(served, run):
    async def work():
        async with served() as peer:
            await peer.push_image("app", "v1")
            waiting = await peer.push_blob("app", b"nobody needs this")
            assert audit.collect(peer.store, untagged=True, older_ns=NOW).blobs == 0
            release_all(peer.store)  # what is being pushed has a lease
            assert audit.collect(peer.store, untagged=False, older_ns=NOW).blobs == 1
            assert (await peer("HEAD", f"/app/blobs/{waiting}")).status == 404
            assert (await peer("GET", "/app/manifests/v1")).status == 200

    run(work())


def test_untagged_manifests_go_unless_something_leads_to_them(served, run):
    async def work():
        async with served() as peer:
            old, *_ = await peer.push_image("app", "v1", b"old")
            await peer.push_image("app", "v1", b"new")  # takes the tag away from the first
            child, *_ = await peer.push_image("app", "", b"child")
            index = await push_index(peer, "app", "multi", child)
            noted = {"mediaType": INDEX, "digest": str(index), "size": 1}
            referrer, *_ = await peer.push_image("app", "", b"signature", subject=noted)
            lost = {"mediaType": MANIFEST, "digest": str(old), "size": 1}
            orphan, *_ = await peer.push_image("app", "", b"of the old one", subject=lost)
            release_all(peer.store)
            assert audit.collect(peer.store, untagged=True, older_ns=DAY_NS).manifests == 0
            done = audit.collect(peer.store, untagged=True, older_ns=NOW)
            assert done.manifests == 2
            assert done.blobs == 6
            for digest, status in ((old, 404), (orphan, 404), (child, 200), (referrer, 200)):
                assert (await peer("GET", f"/app/manifests/{digest}")).status == status

    run(work())


@pytest.mark.parametrize("untagged", [False, True])
def test_an_empty_registry(served, run, untagged):
    async def work():
        async with served() as peer:
            assert audit.list_tags(peer.store) == []
            assert audit.check(peer.store) == (0, [])
            assert audit.collect(peer.store, untagged=untagged, older_ns=NOW).size_bytes == 0

    run(work())
