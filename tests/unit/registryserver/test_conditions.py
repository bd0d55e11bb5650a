"""Conditional requests and parts of blobs (RFC 9110); what is refused at the edges."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.registryserver.app import ServerOptions

DATA = b"0123456789"


@pytest.mark.parametrize(
    ("ranged", "if_range", "body"),
    [
        ("bytes=2-4", "OWN", b"234"),
        ("Bytes=8-", "", b"89"),
        ("bytes=0-99999999999999999999", "", DATA),
        ("bytes=2-4", '"other"', None),
        ("bytes=2-4", "Sat, 29 Oct 1994 19:43:31 GMT", None),
        ("bytes=0-0,5-6", "", None),
        ("bytes=-", "", None),
        ("bytes=-0", "", None),
        ("bytes=x", "", None),
        ("lines=0-3", "", None),
    ],
)
def test_a_part_or_the_whole(served, run, ranged, if_range, body):
    async def work():
        async with served() as peer:
            digest = await peer.push_blob("app", DATA)
            asked = {"Range": ranged}
            if if_range:
                asked["If_Range"] = f'"{digest}"' if if_range == "OWN" else if_range
            got = await peer("GET", f"/app/blobs/{digest}", **asked)
            expected = (200, DATA) if body is None else (206, body)
            assert (got.status, got.body) == expected
            assert got.headers["ETag"] == f'"{digest}"'
            head = await peer("HEAD", f"/app/blobs/{digest}", **asked)
            assert (head.status, head.headers["Content-Length"]) == (200, "10")

    run(work())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_known_is_not_sent_again(served, run, method):
    async def work():
        async with served() as peer:
            manifest, _, _, layer = await peer.push_image("app", "v1")
            for digest, paths in (
                (layer, [f"/app/blobs/{layer}"]),
                (manifest, ["/app/manifests/v1", f"/app/manifests/{manifest}"]),
            ):
                for path in paths:
                    for known in ("*", f'"{digest}"', f'W/"{digest}"', f'"x", "{digest}"'):
                        got = await peer(method, path, If_None_Match=known)
                        assert (got.status, got.body) == (304, b"")
                        assert got.headers["ETag"] == f'"{digest}"'
                    for unknown in ('"x"', ""):
                        assert (await peer(method, path, If_None_Match=unknown)).status == 200
                    assert (await peer(method, path, If_Match=f'"{digest}"')).status == 200
                    for other in ('"x"', f'W/"{digest}"', ""):  # a weak tag matches nothing
                        assert (await peer(method, path, If_Match=other)).status == 412

    run(work())


def test_a_tag_that_was_changed_meanwhile_is_not_overwritten(served, run):
    async def work():
        async with served() as peer:
            first, one, *_ = await peer.push_image("app", seed=b"1")
            second, two, *_ = await peer.push_image("app", seed=b"2")

            async def put(body, **condition):
                answer = await peer(
                    "PUT", "/app/manifests/v1", body, Content_Type=served.MANIFEST, **condition
                )
                return answer.status

            assert await put(one, If_Match="*") == 412
            assert await put(one, If_None_Match="*") == 201
            assert await put(two, If_None_Match="*") == 412
            assert await put(two, If_Match=f'"{second}"') == 412
            assert (await peer("GET", "/app/manifests/v1")).body == one
            # Of many who have seen the same state, one writes.
            bodies = [
                json.dumps({**json.loads(two), "annotations": {"n": str(n)}}) for n in range(8)
            ]
            pushes = [put(body.encode(), If_Match=f'"{first}"') for body in bodies]
            assert sorted(await asyncio.gather(*pushes)) == [201, *[412] * 7]

            refused = await peer("DELETE", "/app/manifests/v1", If_Match=f'"{first}"')
            assert (refused.status, refused.code) == (412, "PRECONDITION_FAILED")
            now = (await peer("HEAD", "/app/manifests/v1")).headers["ETag"]
            assert (await peer("DELETE", "/app/manifests/v1", If_Match=now)).status == 202

    run(work())


def test_a_built_image_is_what_has_its_name(served, run):
    """What a client is told of it, it may name as the condition of a change."""

    async def work():
        async with served() as peer:
            digest, body, *_ = await peer.push_image("app", "seed")
            other, two, *_ = await peer.push_image("app", "seed", b"2")
            target = Descriptor(served.MANIFEST, digest, len(body))
            peer.store.images.set("docker.io/library/app:1", target)
            known = (await peer("HEAD", "/app/manifests/1")).headers["ETag"]
            for condition, status in (
                ({"If_None_Match": "*"}, 412),
                ({"If_Match": f'"{other}"'}, 412),
                ({"If_Match": known}, 201),
            ):
                answer = await peer(
                    "PUT", "/app/manifests/1", two, Content_Type=served.MANIFEST, **condition
                )
                assert answer.status == status
            assert (await peer("HEAD", "/app/manifests/1")).headers["ETag"] == f'"{other}"'

    run(work())


@pytest.mark.parametrize("page", ["-1", "x", "1.5", "\u00b2", "\u0662", "9" * 5000, ""])
def test_a_page_of_no_number_is_the_whole_list(served, run, page):
    async def work():
        async with served() as peer:
            for tag in "abc":
                await peer.push_image("app", tag)
            for path, key in (("/app/tags/list", "tags"), ("/_catalog", "repositories")):
                answer = await peer("GET", f"{path}?n={page}")
                assert answer.json[key] == (["a", "b", "c"] if key == "tags" else ["app"])
                assert "Link" not in answer.headers

    run(work())


def test_names_at_the_limit(served, run):
    async def work():
        async with served() as peer:
            for name in ("a" * 255, "a/" * 127 + "a"):
                await peer.push_image(name, "t" * 128)
                assert (await peer("GET", f"/{name}/tags/list")).json["tags"] == ["t" * 128]
            for name in ("a" * 256, "a/" * 127 + "aa"):
                answer = await peer("POST", f"/{name}/blobs/uploads/")
                assert (answer.status, answer.code) == (404, "NAME_INVALID")

    run(work())


def test_manifests_at_the_limit(served, run):
    async def work():
        async with served() as peer:
            _, body, *_ = await peer.push_image("app", "v1")
            full = body[:-1] + b" " * ((4 << 20) - len(body)) + b"}"
            sent = io.BytesIO(full)
            answer = await peer("PUT", "/app/manifests/v2", sent, Content_Type=served.MANIFEST)
            assert answer.status == 201
            assert (await peer("GET", "/app/manifests/v2")).body == full

    run(work())


def test_refusals_say_what_is_possible(served, run):
    async def work():
        async with served() as peer:
            _, _, _, layer = await peer.push_image("app", "v1")
            answer = await peer("OPTIONS", "/app/tags/list")
            assert (answer.status, answer.headers["Allow"]) == (405, "GET")
            answer = await peer("DELETE", f"/app/blobs/{layer}")
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
            answer = await peer("DELETE", "/app/manifests/sha256:zz")
            assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        async with served(ServerOptions(read_only=True)) as peer:
            answer = await peer("POST", "/app/blobs/uploads/")
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")

    run(work())
