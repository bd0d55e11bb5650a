"""Manifests and blobs that come, come late, come broken, or never end."""

from __future__ import annotations

import asyncio
import json

import pytest

from boxwright.core.reference import Reference
from boxwright.errors import Code
from boxwright.registry.client import MANIFEST_LIMIT_BYTES, MANIFEST_TYPES
from boxwright.registry.errors import (
    BlobNotFoundError,
    ContentMismatchError,
    ManifestNotFoundError,
    RegistryError,
    StalledTransferError,
)
from boxwright.registry.transport import RetryBudget, retry_after
from boxwright.testing.registry import Failure, FakeRegistry, Faults

DATA = bytes(range(251)) * 3000


def _download(kit, run, faults, data=DATA, **options):
    """Fetch one blob; return what arrived (or the failure) and the registry."""

    async def work():
        async with FakeRegistry(faults=faults) as registry:
            registry.put_blob("team/app", data)
            sink = kit.Memory()
            async with kit.client(**options) as client:
                try:
                    await client.fetch_blob(kit.ref(registry), kit.descriptor(data), sink)
                except RegistryError as exc:
                    return exc, registry
            return bytes(sink.data), registry

    return run(work())


def test_manifest_by_tag_and_by_digest(kit, run):
    async def work():
        async with FakeRegistry() as registry:
            digest, body = registry.put_manifest(
                "team/app", "1", {"schemaVersion": 2}, MANIFEST_TYPES[3] + "; charset=utf-8"
            )
            async with kit.client() as client:
                found, got = await client.fetch_manifest(kit.ref(registry))
                assert (found.digest, found.size, got) == (digest, len(body), body)
                assert found.media_type == MANIFEST_TYPES[3]
                ref = Reference(registry.host, "team/app", "1", digest)
                assert (await client.resolve(ref)).digest == digest

    run(work())


@pytest.mark.parametrize(
    ("manifest", "header", "expected"),
    [
        ({"mediaType": MANIFEST_TYPES[0], "manifests": []}, "text/plain", MANIFEST_TYPES[0]),
        ({"manifests": []}, "text/plain", MANIFEST_TYPES[0]),
        ({"layers": []}, "application/json", MANIFEST_TYPES[2]),
        ({"layers": []}, MANIFEST_TYPES[3], MANIFEST_TYPES[3]),
        (b"[1]", "text/plain", "text/plain"),
        (b"\xff", "text/plain", "text/plain"),
    ],
)
def test_media_type_of_careless_registries(kit, run, manifest, header, expected):
    async def work():
        async with FakeRegistry() as registry:
            registry.put_manifest("team/app", "1", manifest, header)
            async with kit.client() as client:
                return await client.resolve(kit.ref(registry))

    assert run(work()).media_type == expected


def test_missing_manifest(kit, run):
    async def work():
        async with FakeRegistry() as registry, kit.client() as client:
            with pytest.raises(ManifestNotFoundError) as caught:
                await client.resolve(kit.ref(registry))
            return caught.value

    error = run(work())
    assert error.code is Code.NOT_FOUND
    assert "team/app:1: not found" in error.brief


def test_manifest_with_another_digest(kit, run):
    async def work():
        async with FakeRegistry() as registry:
            digest, _ = registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            registry.manifests["team/app", digest] = ("", b"{}")
            async with kit.client() as client:
                with pytest.raises(ContentMismatchError, match="another manifest"):
                    await client.resolve(Reference(registry.host, "team/app", digest=digest))

    run(work())


def test_manifest_that_is_too_large(kit, run):
    async def work():
        async with FakeRegistry() as registry:
            registry.put_manifest("team/app", "1", b" " * (MANIFEST_LIMIT_BYTES + 1))
            async with kit.client() as client:
                with pytest.raises(ContentMismatchError, match="too large"):
                    await client.resolve(kit.ref(registry))

    run(work())


def test_a_broken_manifest_is_an_error_and_not_a_crash(kit, run):
    async def work():
        faults = Faults(failures=[Failure("GET", "/manifests/", 500, times=99, body=b"<html>")])
        async with FakeRegistry(faults=faults) as registry, kit.client(retries=1) as client:
            with pytest.raises(RegistryError) as caught:
                await client.resolve(kit.ref(registry))
            return caught.value, registry.count("GET", "/manifests/")

    error, asked = run(work())
    assert error.status == 500
    assert error.code is Code.REGISTRY_FAILED
    assert "<html>" not in error.detail
    assert asked == 2


@pytest.mark.parametrize(
    ("message", "is_full"),
    [("no space left on device", True), ("namespace of the tenant is locked", False)],
)
def test_a_full_registry_is_told_from_other_failures(message, is_full, kit, run):
    async def work():
        body = json.dumps({"errors": [{"code": "UNKNOWN", "message": message}]}).encode()
        faults = Faults(failures=[Failure("GET", "/manifests/", 500, times=99, body=body)])
        async with FakeRegistry(faults=faults) as registry, kit.client(retries=1) as client:
            with pytest.raises(RegistryError) as caught:
                await client.resolve(kit.ref(registry))
            return caught.value

    assert ("has no space left" in run(work()).brief) is is_full


def test_blob(kit, run):
    got, _ = _download(kit, run, Faults())
    assert got == DATA


def test_missing_blob(kit, run):
    async def work():
        async with FakeRegistry() as registry, kit.client() as client:
            with pytest.raises(BlobNotFoundError) as caught:
                await client.fetch_blob(kit.ref(registry), kit.descriptor(b"x"), kit.Memory())
            return caught.value

    assert kit.descriptor(b"x").digest in run(work()).brief


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["break_downloads", "stall_downloads", "end_early"])
def test_a_download_goes_on_where_it_stopped(kit, run_idle, fault, ranges):
    faults = Faults(break_after=200_000, no_ranges=not ranges, **{fault: 2})
    got, registry = _download(kit, run_idle, faults)
    assert got == DATA
    asked = [r.headers.get("Range") for r in registry.requests if "/blobs/" in r.path]
    assert asked[0] is None
    assert all(header for header in asked[1:])


def test_a_download_that_never_gets_on_ends_with_the_facts(kit, run_idle):
    faults = Faults(stall_downloads=99, break_after=1000)
    error, registry = _download(kit, run_idle, faults, stall_s=30, retries=2)
    assert isinstance(error, StalledTransferError)
    assert registry.host in error.brief
    assert kit.descriptor(DATA).digest in error.detail
    assert f"at byte 3000 of {len(DATA)}" in error.detail
    assert "no byte for 30 s" in error.detail


def test_progress_is_told(kit, run):
    seen = []

    async def work():
        async with FakeRegistry() as registry:
            registry.put_blob("team/app", DATA)
            async with kit.client() as client:
                await client.fetch_blob(
                    kit.ref(registry), kit.descriptor(DATA), kit.Memory(), on_progress=seen.append
                )

    run(work())
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


def test_an_endless_blob_is_cut_off(kit, run):
    error, _ = _download(kit, run, Faults(endless=True), data=b"x" * 5000)
    assert isinstance(error, ContentMismatchError)
    assert error.code is Code.DIGEST_MISMATCH


def test_a_blob_that_is_too_long(kit, run):
    faults = Faults(replace_blobs={kit.descriptor(DATA).digest: DATA + b"!"})
    error, _ = _download(kit, run, faults)
    assert isinstance(error, ContentMismatchError)


def test_a_blob_that_is_too_short(kit, run):
    faults = Faults(replace_blobs={kit.descriptor(DATA).digest: DATA[:-1]})
    error, _ = _download(kit, run, faults, retries=1)
    assert isinstance(error, RegistryError)
    assert f"at byte {len(DATA) - 1} of {len(DATA)}" in error.detail


def test_redirect_to_blob_storage(kit, run):
    async def work():
        async with FakeRegistry() as storage:
            storage.put_blob("team/app", DATA)
            async with FakeRegistry(faults=Faults(redirect_blobs=storage.url)) as registry:
                registry.put_blob("team/app", b"never sent")
                registry.blobs["team/app", kit.descriptor(DATA).digest] = b"never sent"
                sink = kit.Memory()
                async with kit.client() as client:
                    await client.fetch_blob(kit.ref(registry), kit.descriptor(DATA), sink)
                return bytes(sink.data)

    assert run(work()) == DATA


def test_redirect_without_end(kit, run):
    async def work():
        async with FakeRegistry() as registry:
            registry.put_blob("team/app", DATA)
            registry.faults.redirect_blobs = registry.url
            async with kit.client() as client:
                with pytest.raises(RegistryError, match="redirects without end"):
                    await client.fetch_blob(kit.ref(registry), kit.descriptor(DATA), kit.Memory())
            return registry.count("GET", "/blobs/")

    assert run(work()) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://x/"])
def test_redirect_to_something_that_is_not_http(kit, run, location):
    async def work():
        faults = Faults(failures=[Failure("GET", "/blobs/", 302, 9, {"Location": location})])
        async with FakeRegistry(faults=faults) as registry, kit.client() as client:
            with pytest.raises(RegistryError, match="redirects"):
                await client.fetch_blob(kit.ref(registry), kit.descriptor(DATA), kit.Memory())

    run(work())


def test_the_sinks_own_failure_passes_through(kit, run):
    class Full:
        async def write(self, data):
            raise OSError("disk full")

    async def work():
        async with FakeRegistry() as registry:
            registry.put_blob("team/app", DATA)
            async with kit.client() as client:
                with pytest.raises(OSError, match="disk full"):
                    await client.fetch_blob(kit.ref(registry), kit.descriptor(DATA), Full())
            return registry.count("GET", "/blobs/")

    assert run(work()) == 1


def test_a_hundred_blobs_at_once_over_few_connections(kit, run):
    blobs = [bytes([n]) * 50_000 for n in range(100)]

    async def work():
        async with FakeRegistry() as registry:
            for data in blobs:
                registry.put_blob("team/app", data)
            async with kit.client() as client:

                async def fetch(data):
                    sink = kit.Memory()
                    await client.fetch_blob(kit.ref(registry), kit.descriptor(data), sink)
                    return bytes(sink.data)

                assert await asyncio.gather(*(fetch(data) for data in blobs)) == blobs
            return len(registry.peers)

    assert 1 < run(work()) <= 8


# --- retries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_failures_are_tried_again_when_the_server_says(kit, run, status):
    async def work():
        fault = Failure("GET", "/manifests/", status, 2, {"Retry-After": "0"})
        async with FakeRegistry(faults=Faults(failures=[fault])) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client() as client:
                await client.resolve(kit.ref(registry))
            return registry.count("GET", "/manifests/")

    assert run(work()) == 3


def test_lasting_failures_are_not_tried_again(kit, run):
    async def work():
        faults = Faults(failures=[Failure("GET", "/manifests/", 400, 9, body=b"no")])
        async with FakeRegistry(faults=faults) as registry, kit.client() as client:
            with pytest.raises(RegistryError, match="400"):
                await client.resolve(kit.ref(registry))
            return registry.count("GET", "/manifests/")

    assert run(work()) == 1


def test_all_requests_share_one_budget(kit, run):
    async def work():
        fault = Failure("GET", "/manifests/", 503, 999, {"Retry-After": "0"})
        async with FakeRegistry(faults=Faults(failures=[fault])) as registry:
            async with kit.client(retries=6) as client:
                ref = kit.ref(registry)
                done = await asyncio.gather(
                    *(client.resolve(ref) for _ in range(20)), return_exceptions=True
                )
            assert all(isinstance(item, RegistryError) for item in done)
            return registry.count("GET", "/manifests/")

    assert run(work()) == 26


def test_budget_refills():
    budget = RetryBudget(2, refill_s=1e-9)
    assert all(budget.take() for _ in range(50))
    empty = RetryBudget(1, refill_s=1e9)
    assert empty.take()
    assert not empty.take()


def test_retry_after_header():
    assert retry_after("7") == 7.0
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
    assert retry_after("soon") is None
    assert retry_after("") is None


def test_error_texts_of_the_registry_reach_the_user(kit, run):
    async def work():
        body = b'{"errors":[{"code":"DENIED","message":"quota reached"}]}'
        faults = Faults(failures=[Failure("GET", "/manifests/", 403, body=body)])
        async with FakeRegistry(faults=faults) as registry, kit.client() as client:
            with pytest.raises(RegistryError) as caught:
                await client.resolve(kit.ref(registry))
            return caught.value

    error = run(work())
    assert error.code is Code.REGISTRY_AUTH
    assert "DENIED: quota reached" in error.detail
