"""Uploads: mounted, whole, in chunks, broken and stalled."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from boxwright.core.digest import Digest
from boxwright.registry.errors import (
    ContentMismatchError,
    RegistryAuthError,
    RegistryError,
    RegistryUnreachableError,
    StalledTransferError,
)
from boxwright.registry.hosts import Hosts
from boxwright.testing.registry import Failure, FakeRegistry, Faults

DATA = bytes(range(241)) * 20_000  # 4.8 MB: more than the kernel's buffers take at once


def _upload(kit, run, faults, data=DATA, mount_from="", **options):
    """Push one blob; return whether it was sent (or the failure) and the registry."""

    async def work():
        async with FakeRegistry(faults=faults) as registry:
            if mount_from:
                registry.put_blob(mount_from, data)
            async with kit.client(**options) as client:
                try:
                    sent = await client.push_blob(
                        kit.ref(registry),
                        kit.descriptor(data),
                        kit.reader(data),
                        mount_from=mount_from,
                    )
                except RegistryError as exc:
                    return exc, registry
            return sent, registry

    return run(work())


def _stored(kit, registry, data=DATA):
    return registry.blobs.get(("team/app", kit.descriptor(data).digest))


@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_in_one_piece(kit, run, data):
    sent, registry = _upload(kit, run, Faults(), data)
    assert sent is True
    assert _stored(kit, registry, data) == data
    assert [r.method for r in registry.requests if "/blobs/" in r.path] == ["HEAD", "POST", "PUT"]
    put = registry.requests[-1]
    assert put.headers["Content-Length"] == str(len(data))


def test_what_is_there_is_not_sent(kit, run):
    async def work():
        async with FakeRegistry() as registry:
            registry.put_blob("team/app", DATA)
            async with kit.client() as client:
                sent = await client.push_blob(
                    kit.ref(registry), kit.descriptor(DATA), kit.reader(DATA)
                )
            return sent, registry.count("POST")

    assert run(work()) == (False, 0)


def test_mounted_from_another_repository(kit, run):
    sent, registry = _upload(kit, run, Faults(), mount_from="team/base")
    assert sent is False
    assert _stored(kit, registry) == DATA
    assert registry.count("PUT") == 0


def test_refused_mount_becomes_an_upload(kit, run):
    sent, registry = _upload(kit, run, Faults(refuse_mounts=True), mount_from="team/base")
    assert sent is True
    assert _stored(kit, registry) == DATA
    assert registry.count("POST") == 1


@pytest.mark.parametrize(("times", "posts"), [(1, 2), (2, 2)])
def test_an_upload_in_place_of_a_mount_may_be_forgotten_once(kit, run, times, posts):
    """The blob may have had to be fetched first, for longer than a registry waits."""
    gone = [Failure("PUT", "/uploads/", 404, times=times)]
    faults = Faults(refuse_mounts=True, failures=gone)
    sent, registry = _upload(kit, run, faults, mount_from="team/base")
    assert registry.count("POST") == posts
    if times == 1:
        assert sent is True
        assert _stored(kit, registry) == DATA
    else:
        assert isinstance(sent, RegistryError)
        assert sent.status == 404


def test_mount_from_where_we_may_not_read_becomes_an_upload(kit, run):
    faults = Faults(failures=[Failure("POST", "/uploads/", 403)])
    sent, registry = _upload(kit, run, faults, mount_from="team/base")
    assert sent is True
    assert registry.count("POST") == 2


@pytest.mark.parametrize("times", [1, 2])
def test_a_broken_upload_goes_on_where_it_stopped(kit, run, times):
    faults = Faults(break_uploads=times, break_after=1_000_000)
    sent, registry = _upload(kit, run, faults)
    assert sent is True
    assert _stored(kit, registry) == DATA
    patches = [r for r in registry.requests if r.method == "PATCH"]
    assert len(patches) == times
    assert all(int(r.headers["Content-Range"].partition("-")[0]) >= 1_000_000 for r in patches)
    assert registry.count("POST") == 1


def test_a_forgotten_upload_begins_again(kit, run):
    faults = Faults(break_uploads=1, break_after=1_000_000)
    faults.failures = [Failure("GET", "/uploads/", 404)]
    sent, registry = _upload(kit, run, faults)
    assert sent is True
    assert _stored(kit, registry) == DATA
    assert registry.count("POST") == 2


def test_an_upload_forgotten_while_it_resumes_begins_again(kit, run):
    faults = Faults(break_uploads=1, break_after=1_000_000)
    faults.failures = [Failure("PATCH", "/uploads/", 404)]
    sent, registry = _upload(kit, run, faults)
    assert sent is True
    assert _stored(kit, registry) == DATA


def test_a_stalled_upload_names_blob_and_offset(kit, run_idle):
    data = os.urandom(1 << 20) * 24
    faults = Faults(stall_uploads=99, break_after=1)
    error, registry = _upload(kit, run_idle, faults, data, stall_s=30, retries=0)
    assert isinstance(error, StalledTransferError)
    assert registry.host in error.brief
    assert kit.descriptor(data).digest in error.detail
    assert f"of {len(data)}, nothing moved for 30 s" in error.detail


def test_a_registry_that_never_stops_breaking_ends_the_push(kit, run):
    faults = Faults(break_uploads=999, break_after=1)
    error, registry = _upload(kit, run, faults, retries=2)
    assert isinstance(error, RegistryError)
    assert registry.count("PUT") + registry.count("PATCH") == 3


def test_large_bodies_are_refused_so_chunks_are_sent(kit, run, monkeypatch):
    monkeypatch.setattr("boxwright.registry.upload._CHUNK_BYTES", 1 << 20)
    sent, registry = _upload(kit, run, Faults(largest_body=1 << 20))
    assert sent is True
    assert _stored(kit, registry) == DATA
    assert registry.count("PATCH") == -(-len(DATA) // (1 << 20))


def test_denied_push(kit, run):
    faults = Faults(failures=[Failure("POST", "/uploads/", 403, 9)])
    error, _ = _upload(kit, run, faults)
    assert isinstance(error, RegistryAuthError)


def test_upload_without_a_location(kit, run):
    faults = Faults(failures=[Failure("POST", "/uploads/", 202)])
    error, _ = _upload(kit, run, faults)
    assert isinstance(error, RegistryError)
    assert "no Location" in error.detail


def test_an_upload_to_nobody_keeps_its_cause_and_says_how_far_it_got(kit, run):
    nobody = {"Location": "http://127.0.0.1:1/upload"}
    faults = Faults(failures=[Failure("POST", "/uploads/", 202, headers=nobody)])
    error, _ = _upload(kit, run, faults)
    assert isinstance(error, RegistryUnreachableError)
    assert error.reason == "refused"
    assert f"at byte 0 of {len(DATA)}" in error.detail
    assert "last answer: POST 202" in error.detail
    assert error.hint.startswith("check the name")


def test_cancelling_an_upload_ends_it(kit, run):
    async def work():
        async with FakeRegistry(faults=Faults(stall_uploads=1, break_after=1)) as registry:
            async with kit.client() as client:
                task = asyncio.ensure_future(
                    client.push_blob(kit.ref(registry), kit.descriptor(DATA), kit.reader(DATA))
                )
                while not registry.count("PUT"):  # noqa: ASYNC110 - the fake has no event for it
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            others = asyncio.all_tasks() - {asyncio.current_task()}
            return [t for t in others if "push_blob" in repr(t) or "transfer" in repr(t)]

    assert run(work()) == []


def test_manifest_under_tag_and_by_digest(kit, run):
    async def work():
        async with FakeRegistry() as registry, kit.client() as client:
            ref = kit.ref(registry)
            digest = await client.push_manifest(ref, "a/b", b"{}", by_digest=True)
            assert registry.tags == {}
            await client.push_manifest(ref, "a/b", b"{}")
            assert registry.tags == {("team/app", "1"): digest}
            assert registry.manifests["team/app", digest] == ("a/b", b"{}")

    run(work())


def test_manifest_that_is_there_is_not_sent_again(kit, run):
    async def work():
        async with FakeRegistry() as registry, kit.client() as client:
            ref = kit.ref(registry)
            for body in (b"{}", b"{}", b"[]", b"[]", b"{}"):
                await client.push_manifest(ref, "a/b", body)
            assert registry.count("PUT") == 3  # the tag moved twice
            assert registry.tags == {("team/app", "1"): kit.descriptor(b"{}").digest}
            await client.push_manifest(ref, "a/b", b"[]", by_digest=True)
            assert registry.count("PUT") == 3

    run(work())


@pytest.mark.parametrize("status", [400, 403, 405])
def test_manifest_of_a_registry_that_answers_no_questions(status, kit, run):
    async def work():
        faults = Faults(failures=[Failure("HEAD", "/manifests/", status)])
        async with FakeRegistry(faults=faults) as registry, kit.client() as client:
            digest = await client.push_manifest(kit.ref(registry), "a/b", b"{}")
            assert registry.tags == {("team/app", "1"): digest}

    run(work())


def test_manifest_that_the_registry_rewrites(kit, run):
    async def work():
        other = {"Docker-Content-Digest": kit.descriptor(b"other").digest}
        faults = Faults(failures=[Failure("PUT", "/manifests/", 201, headers=other)])
        async with FakeRegistry(faults=faults) as registry, kit.client() as client:
            with pytest.raises(ContentMismatchError):
                await client.push_manifest(kit.ref(registry), "a/b", b"{}")

    run(work())


@pytest.mark.parametrize("with_tls", [True, False])
def test_registry_insecure_takes_http_and_unknown_certificates(kit, run, authority, with_tls):
    tls = authority.server_context(authority.issue("server", "elsewhere")) if with_tls else None

    async def work():
        async with FakeRegistry(tls=tls) as registry, kit.client(Hosts()) as client:
            sent = await client.push_blob(
                kit.ref(registry), kit.descriptor(b"x"), kit.reader(b"x"), insecure=True
            )
            return sent, _stored(kit, registry, b"x")

    assert run(work()) == (True, b"x")


def test_a_registry_without_tags_as_parameters_gets_the_tag_by_itself(kit, run):
    async def work():
        async with FakeRegistry() as registry, kit.client() as client:
            digest = Digest(f"sha512:{hashlib.sha512(b'{}').hexdigest()}")
            ref = kit.ref(registry)
            assert await client.push_manifest(ref, "a/b", b"{}", digest=digest) == digest
            assert registry.manifests["team/app", digest] == ("a/b", b"{}")
            assert registry.tags == {("team/app", "1"): kit.descriptor(b"{}").digest}
            assert await client.push_manifest(
                ref, "a/b", b"[]", digest=kit.descriptor(b"[]").digest
            )

    run(work())
