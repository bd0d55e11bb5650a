"""Distribution specification: pull and content discovery."""

from __future__ import annotations

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.registryserver.repositories import Repositories
from boxwright.store import Store


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_base_answers(served, run, path):
    async def work():
        async with served() as peer:
            answer = await peer("GET", path)
            assert answer.status == 200
            assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"

    run(work())


@pytest.mark.parametrize("name", ["app", "team/app", "a/b/c-d__e.f"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifests_by_tag_and_digest(served, run, name, method):
    async def work():
        async with served() as peer:
            digest, body, _, _ = await peer.push_image(name, "v1")
            for reference in ("v1", digest):
                answer = await peer(method, f"/{name}/manifests/{reference}")
                assert answer.status == 200
                assert answer.headers["Docker-Content-Digest"] == digest
                assert answer.headers["Content-Type"] == served.MANIFEST
                assert answer.headers["Content-Length"] == str(len(body))
                assert answer.body == (body if method == "GET" else b"")

    run(work())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_blobs(served, run, method):
    async def work():
        async with served() as peer:
            digest = await peer.push_blob("app", b"0123456789")
            answer = await peer(method, f"/app/blobs/{digest}")
            assert answer.status == 200
            assert answer.headers["Content-Length"] == "10"
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.body == (b"0123456789" if method == "GET" else b"")

    run(work())


@pytest.mark.parametrize(
    ("ranged", "status", "body"),
    [
        ("bytes=3-", 206, b"3456789"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=-3", 206, b"789"),
        ("bytes=0-99", 206, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=5-2", 416, None),
    ],
)
def test_blob_ranges(served, run, ranged, status, body):
    async def work():
        async with served() as peer:
            digest = await peer.push_blob("app", b"0123456789")
            answer = await peer("GET", f"/app/blobs/{digest}", Range=ranged)
            assert answer.status == status
            if body is not None:
                assert answer.body == body

    run(work())


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/app/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("/app/manifests/sha256:" + "0" * 64, 404, "MANIFEST_UNKNOWN"),
        ("/none/manifests/v1", 404, "MANIFEST_UNKNOWN"),
        ("/app/manifests/sha256:zz", 400, "DIGEST_INVALID"),
        ("/app/blobs/sha256:" + "0" * 64, 404, "BLOB_UNKNOWN"),
        ("/app/blobs/sha256:..%2f..", 400, "DIGEST_INVALID"),
        ("/app/blobs/md5:00", 400, "DIGEST_INVALID"),
        ("/none/tags/list", 404, "NAME_UNKNOWN"),
        ("/UPPER/manifests/v1", 404, "NAME_INVALID"),
        ("/app/nonsense", 404, "NAME_INVALID"),
        ("/app/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"),
    ],
)
def test_errors_have_the_specified_form(served, run, path, status, code):
    async def work():
        async with served() as peer:
            await peer.push_image("app", "v1")
            answer = await peer("GET", path)
            assert (answer.status, answer.code) == (status, code)
            assert answer.headers["Content-Type"].startswith("application/json")

    run(work())


def test_a_blob_is_seen_only_where_it_was_pushed(served, run):
    async def work():
        async with served() as peer:
            digest = await peer.push_blob("secret/app", b"secret")
            assert (await peer("GET", f"/other/blobs/{digest}")).status == 404
            manifest, *_ = await peer.push_image("secret/app", "v1")
            assert (await peer("GET", f"/other/manifests/{manifest}")).status == 404

    run(work())


def test_tags_in_pages(served, run):
    async def work():
        async with served() as peer:
            for tag in ("b", "a", "d", "c"):
                await peer.push_image("app", tag)
            answer = await peer("GET", "/app/tags/list")
            assert answer.json == {"name": "app", "tags": ["a", "b", "c", "d"]}
            first = await peer("GET", "/app/tags/list?n=3")
            assert first.json["tags"] == ["a", "b", "c"]
            link = first.headers["Link"]
            assert link.endswith('; rel="next"')
            second = await peer("GET", link[1 : link.index(">")])
            assert second.json["tags"] == ["d"]
            assert "Link" not in second.headers
            assert (await peer("GET", "/app/tags/list?n=0")).json["tags"] == []
            assert (await peer("GET", "/app/tags/list?last=b")).json["tags"] == ["c", "d"]

    run(work())


def test_catalog(served, run):
    async def work():
        async with served() as peer:
            await peer.push_image("b/x", "1")
            await peer.push_image("a", "1")
            assert (await peer("GET", "/_catalog")).json == {"repositories": ["a", "b/x"]}
            assert (await peer("GET", "/_catalog?n=1")).json == {"repositories": ["a"]}

    run(work())


def test_referrers(served, run):
    async def work():
        async with served() as peer:
            subject, body, *_ = await peer.push_image("app", "v1")
            described = served.describe(body, served.MANIFEST)
            signature, signed, *_ = await peer.push_image(
                "app",
                seed=b"sig",
                subject=described,
                artifactType="application/x.sig",
                annotations={"k": "v"},
            )
            sbom, *_ = await peer.push_image("app", seed=b"sbom", subject=described)
            answer = await peer("GET", f"/app/referrers/{subject}")
            assert answer.status == 200
            assert answer.headers["Content-Type"] == served.INDEX
            assert {m["digest"] for m in answer.json["manifests"]} == {signature, sbom}
            only = await peer("GET", f"/app/referrers/{subject}?artifactType=application/x.sig")
            assert only.headers["OCI-Filters-Applied"] == "artifactType"
            assert only.json["manifests"] == [
                {
                    "mediaType": served.MANIFEST,
                    "digest": signature,
                    "size": len(signed),
                    "artifactType": "application/x.sig",
                    "annotations": {"k": "v"},
                }
            ]
            by_config = "application/vnd.oci.image.config.v1%2Bjson"
            of_config = await peer("GET", f"/app/referrers/{subject}?artifactType={by_config}")
            assert [m["digest"] for m in of_config.json["manifests"]] == [sbom]
            unknown = await peer("GET", f"/none/referrers/sha256:{'1' * 64}")
            assert (unknown.status, unknown.json["manifests"]) == (200, [])
            assert (await peer("GET", "/app/referrers/nonsense")).code == "DIGEST_INVALID"

    run(work())


def test_a_subject_may_come_later(served, run):
    async def work():
        async with served() as peer:
            _, body, *_ = await peer.push_image("other", "v1")
            absent = served.describe(body, served.MANIFEST)
            answer, *_ = await peer.push_image("app", seed=b"sig", subject=absent)
            found = await peer("GET", f"/app/referrers/{absent['digest']}")
            assert [m["digest"] for m in found.json["manifests"]] == [answer]

    run(work())


def test_an_image_of_a_build_is_pulled_without_any_push(served, run):
    async def work():
        async with served() as peer:
            digest, body, config, layer = await peer.push_image("elsewhere")
            target = Descriptor(served.MANIFEST, Digest(digest), len(body))
            peer.store.images.set("docker.io/library/hello:1", target)
            for name in ("hello", "library/hello"):
                found = await peer("GET", f"/{name}/manifests/1")
                assert found.body == body
                for blob in (config, layer):
                    assert (await peer("HEAD", f"/{name}/blobs/{blob}")).status == 200
            assert (await peer("GET", "/hello/tags/list")).json["tags"] == ["1"]
            assert "hello" in (await peer("GET", "/_catalog")).json["repositories"]

    run(work())


def test_names_of_builds_are_read_once_until_one_changes(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    try:
        digest = store.blobs.put(b"{}")
        images, repositories = store.images, Repositories(store)
        reads = []
        read = images.list
        monkeypatch.setattr(images, "list", lambda: reads.append(1) or read())
        target = Descriptor("application/vnd.oci.image.manifest.v1+json", digest, 2)
        images.set("docker.io/library/app:v1", target)
        for _ in range(3):
            assert repositories.names() == ["app"]
            assert repositories.tags("app") == repositories.tags("library/app") == ["v1"]
            assert repositories.find("app", "v1") == repositories.find("app", digest)
            assert repositories.exists("library/app")
            assert repositories.needs_blob("app", digest)
            assert not repositories.exists("other")
        assert len(reads) == 1
        images.set("docker.io/library/app:v2", target)
        assert repositories.tags("app") == ["v1", "v2"]
        images.delete("docker.io/library/app:v1")
        assert repositories.tags("app") == ["v2"]
        assert len(reads) == 3
    finally:
        store.close()
