"""Images as sources: the right platform, fetched late, once, and only if it is an image."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.engine.images import Images
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.registry.client import RegistryClient
from boxwright.registry.errors import (
    ContentMismatchError,
    ManifestNotFoundError,
    RegistryUnreachableError,
)
from boxwright.session.manager import SessionManager
from boxwright.sources.fetch import BlobFetcher
from boxwright.sources.image import (
    MalformedImageError,
    PlatformNotFoundError,
    chain_id,
    choose_manifest,
    platform_choices,
    resolve_manifest,
)
from boxwright.sources.registry import RegistryClients, RegistryImage
from boxwright.store.errors import DigestMismatchError
from boxwright.store.store import Store
from boxwright.testing.registry import FakeRegistry, Faults

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
AMD64 = Platform("linux", "amd64")


def _image(registry, *, layers=(b"layer",), media_type=MANIFEST, tag="", path="team/app", **more):
    """Put an image into the fake; return its descriptor as an index would list it."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest.of(b"tar" + layer) for layer in layers]},
        **more,
    }
    config_bytes = json.dumps(config).encode()
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _described(registry, config_bytes, "config", path),
        "layers": [_described(registry, layer, "layer+gzip", path) for layer in layers],
    }
    digest, data = registry.put_manifest(path, tag, body)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _described(registry, data, media_type, path="team/app"):
    return {
        "mediaType": media_type,
        "digest": registry.put_blob(path, data),
        "size": len(data),
    }


@dataclass
class Setup:
    """Everything that resolves images, over one store."""

    store: Store
    images: Images
    clients: RegistryClients
    fetcher: BlobFetcher

    async def config(self, name, platform=AMD64, mode="default"):
        return await self.images.resolve_config(
            name, platform=platform, resolve_mode=mode, sessions=()
        )


@pytest.fixture
def setup(tmp_path):
    @contextlib.asynccontextmanager
    async def make():
        from boxwright.registry.hosts import Hosts

        store = Store.open(tmp_path / "root")
        sessions = SessionManager()
        clients = RegistryClients(Hosts(), sessions)
        try:
            yield Setup(store, Images(store, clients, sessions), clients, BlobFetcher(store.blobs))
        finally:
            await clients.close()
            store.close()

    return make


# --- platforms -----------------------------------------------------------------------------------


def _names(text):
    return [str(choice) for choice in platform_choices(Platform.parse(text))]


def test_what_runs_on_what():
    assert _names("linux/amd64") == ["linux/amd64", "linux/386"]
    assert _names("linux/amd64/v3")[:3] == ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]
    assert _names("linux/arm64")[:3] == ["linux/arm64", "linux/arm/v8", "linux/arm/v7"]
    assert _names("linux/arm/v7") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert _names("linux/s390x") == ["linux/s390x"]


def _entry(platform, seed=b"", **more):
    return {
        "mediaType": MANIFEST,
        "digest": Digest.of(platform.encode() + seed),
        "size": 1,
        "platform": Platform.parse(platform).to_json(),
        **more,
    }


def test_the_best_platform_wins_whatever_the_order():
    entries = [_entry("linux/386"), _entry("linux/arm/v6"), _entry("linux/amd64")]
    for order in (entries, entries[::-1]):
        chosen = choose_manifest({"manifests": order}, AMD64, "app")
        assert chosen.digest == Digest.of(b"linux/amd64")
    arm7 = choose_manifest({"manifests": entries}, Platform.parse("linux/arm/v7"), "app")
    assert arm7.digest == Digest.of(b"linux/arm/v6")


def test_every_level_below_runs_and_details_stay():
    v9 = _names("linux/arm64/v9.2")
    assert v9[:4] == ["linux/arm64/v9.2", "linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.7"]
    assert v9[10:12] == ["linux/arm64", "linux/arm/v8"]
    assert _names("windows(10.0.20348)/amd64") == [
        "windows(10.0.20348)/amd64",
        "windows(10.0.20348)/386",
    ]


def test_images_of_a_version_and_of_features():
    entries = [
        _entry("windows(10.0.17763.1)/amd64"),
        _entry("windows(10.0.20348.9)/amd64"),
        _entry("linux/amd64"),
        _entry("linux(+a)/amd64"),
        _entry("linux(+a+b)/amd64"),
    ]

    def chosen(text):
        found = choose_manifest({"manifests": entries}, Platform.parse(text), "app")
        return str(found.platform)

    assert chosen("windows(10.0.20348.1)/amd64") == "windows(10.0.20348.9)/amd64"
    assert chosen("windows/amd64") == "windows(10.0.17763.1)/amd64"
    assert chosen("linux/amd64") == "linux/amd64"
    assert chosen("linux(+a+b+c)/amd64") == "linux(+a+b)/amd64"
    assert chosen("linux(+b)/amd64") == "linux/amd64"


def test_attestations_are_no_images():
    note = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    attestation = _entry("linux/amd64", b"att", **note)
    image = _entry("linux/amd64")
    chosen = choose_manifest({"manifests": [attestation, image]}, AMD64, "app")
    assert chosen.digest == image["digest"]


def test_what_there_is_instead_is_named():
    with pytest.raises(PlatformNotFoundError) as caught:
        choose_manifest({"manifests": [_entry("linux/s390x")]}, AMD64, "app")
    assert "linux/s390x" in caught.value.detail
    assert caught.value.code is Code.NOT_FOUND


def test_chain_ids():
    first, second = Digest.of(b"1"), Digest.of(b"2")
    assert chain_id([first]) == first
    assert chain_id([first, second]) == Digest.of(f"{first} {second}".encode())


# --- resolving -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "manifest"), [(INDEX, MANIFEST), (LIST, SCHEMA2)])
def test_index_manifest_and_config_of_both_families(run, setup, index, manifest):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            wanted = _image(registry, media_type=manifest)
            other = _image(registry, layers=(b"other",), media_type=manifest)
            entries = [
                other | {"platform": {"os": "linux", "architecture": "arm64"}},
                wanted | {"platform": {"os": "linux", "architecture": "amd64"}},
            ]
            body = {"schemaVersion": 2, "mediaType": index, "manifests": entries}
            digest, _ = registry.put_manifest("team/app", "1", body)
            name, got, config = await made.config(f"{registry.host}/team/app:1")
            assert (name, got) == (f"{registry.host}/team/app:1", digest)
            assert json.loads(config)["architecture"] == "amd64"
            assert registry.count("GET", "/blobs/") == 1

    run(work())


def test_a_pinned_image_that_was_seen_before_needs_no_network(run, setup):
    async def work():
        async with setup() as made:
            async with FakeRegistry() as registry:
                entry = _image(registry) | {"platform": {"os": "linux", "architecture": "amd64"}}
                body = {"schemaVersion": 2, "manifests": [entry]}
                digest, _ = registry.put_manifest("team/app", "1", body, INDEX)
                name = f"{registry.host}/team/app:1"
                first = await made.config(name)
            pinned = f"{name}@{digest}"
            assert (await made.config(pinned))[1:] == first[1:]
            with pytest.raises(RegistryUnreachableError):
                await made.config(name)

    run(work())


def test_a_manifest_from_elsewhere_is_asked_for_at_the_name_that_is_given(run, setup):
    async def work():
        async with setup() as made, FakeRegistry() as registry:
            digest = _image(registry)["digest"]
            assert _image(registry, path="team/copy")["digest"] == digest
            name, _, config = await made.config(f"{registry.host}/team/app@{digest}")
            assert name.endswith(f"team/app@{digest}")
            for other in ("team/none", "else/where"):
                with pytest.raises(ManifestNotFoundError):
                    await made.config(f"{registry.host}/{other}@{digest}")
            asked = registry.count("GET", "/manifests/")
            assert (await made.config(f"{registry.host}/team/copy@{digest}"))[2] == config
            assert registry.count("GET", "/manifests/") == asked + 1
            for known in ("team/app", "team/copy"):
                await made.config(f"{registry.host}/{known}@{digest}")
            assert registry.count("GET", "/manifests/") == asked + 1

    run(work())


def test_resolve_modes_and_stored_tags(run, setup):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            remote = _image(registry, tag="1", author="remote")
            local = _image(registry, author="local")
            name = f"{registry.host}/team/app:1"
            for (_, digest), (_, body) in registry.manifests.items():
                if digest == local["digest"]:
                    made.store.blobs.put(body)
            config = next(d for d in registry.blobs.values() if b'"local"' in d)
            made.store.blobs.put(config)
            target = Descriptor(MANIFEST, Digest(local["digest"]), local["size"])
            made.store.images.set(name, target)
            assert (await made.config(name, mode="local"))[1] == local["digest"]
            assert (await made.config(name, mode="default"))[1] == remote["digest"]
            assert (await made.config(name, mode="pull"))[1] == remote["digest"]
            registry.tags.clear()
            assert (await made.config(name, mode="default"))[1] == local["digest"]
            with pytest.raises(BoxwrightError) as caught:
                await made.config(name, mode="pull")
            assert caught.value.code is Code.NOT_FOUND
            with pytest.raises(InvalidInputError):
                await made.config(name, mode="nonsense")

    run(work())


def test_one_build_logs_in_once_and_shares_connections(run, setup):
    from boxwright.testing.registry import Auth

    async def work():
        async with FakeRegistry(auth=Auth("bearer")) as registry, setup() as made:
            _image(registry, layers=tuple(b"layer %d" % n for n in range(12)), tag="1")
            ref = Reference(registry.host, "team/app", "1")
            remote = RegistryImage(ref, made.clients, ())
            root, body = await remote.manifest(None)
            resolved = await resolve_manifest(remote, "app", root, body, AMD64)
            fetches = [made.fetcher.fetch(remote, layer) for layer in resolved.layers]
            await asyncio.gather(*fetches)
            return registry

    registry = run(work())
    assert registry.count("GET", "/token") == 1
    assert len(registry.peers) <= 8


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 5000,
        b'{"schemaVersion":2}',
        b'{"schemaVersion":1,"fsLayers":[]}',
        b'{"config":[]}',
        b'{"config":{}}',
        b'{"config":{"digest":"sha256:00","size":1}}',
        b'{"config":{"digest":7,"size":"x"}}',
        b'{"mediaType":7,"manifests":[]}',
        b'{"manifests":7}',
        b'{"manifests":[7]}',
        b'{"manifests":[{"digest":"sha256:x","size":1}]}',
        b'{"mediaType":"' + INDEX.encode() + b'","manifests":{}}',
        b'{"manifests":[{"size":1,"digest":"sha256:' + b"0" * 64 + b'","annotations":3}]}',
        b'{"manifests":[{"size":1,"digest":"sha256:' + b"0" * 64 + b'","platform":{"os":[]}}]}',
    ],
)
def test_manifests_that_are_no_images(run, setup, body):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            registry.put_manifest("team/app", "1", body)
            with pytest.raises(BoxwrightError) as caught:
                await made.config(f"{registry.host}/team/app:1")
            assert caught.value.code in {Code.INVALID, Code.NOT_FOUND}

    run(work())


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (b"[]", "JSON object"),
        (b"{}", "disagree"),
        (b'{"rootfs":[]}', "disagree"),
        (b'{"rootfs":7}', "malformed"),
        (b'{"rootfs":{"diff_ids":7}}', "malformed"),
        (b'{"rootfs":{"diff_ids":["sha256:0"]}}', "malformed"),
    ],
)
def test_configs_that_are_none(run, setup, config, problem):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            body = {
                "schemaVersion": 2,
                "config": _described(registry, config, "config"),
                "layers": [_described(registry, b"layer", "layer")],
            }
            registry.put_manifest("team/app", "1", body)
            with pytest.raises(MalformedImageError, match=problem):
                await made.config(f"{registry.host}/team/app:1")

    run(work())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "config layers manifests mediaType digest size platform annotations urls os".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON, st.sampled_from([INDEX, MANIFEST, ""]))
def test_any_json_is_an_image_or_an_error_of_ours(data, media_type):
    class Empty:
        source_labels: dict[str, str] = {}  # noqa: RUF012

        async def manifest(self, digest):
            return Descriptor(MANIFEST, digest, 2), b"{}"

        async def blob(self, descriptor, sink):
            return None

    body = json.dumps(data).encode()
    root = Descriptor(media_type, Digest.of(body), len(body))
    with contextlib.suppress(BoxwrightError):
        asyncio.run(resolve_manifest(Empty(), "app", root, body, AMD64))


def _sha512(data):
    return Digest(f"sha512:{hashlib.sha512(data).hexdigest()}")


def test_images_by_other_digests_than_sha256(run, setup):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            ids = [_sha512(b"tar")]
            config = json.dumps({"rootfs": {"type": "layers", "diff_ids": ids}}).encode()
            parts = [
                {"mediaType": "a/b", "digest": _sha512(data), "size": len(data)}
                for data in (config, b"layer")
            ]
            for data in (config, b"layer"):
                registry.blobs["team/app", _sha512(data)] = data
            manifest = {"schemaVersion": 2, "config": parts[0], "layers": parts[1:]}
            body = json.dumps({**manifest, "mediaType": MANIFEST}).encode()
            digest = _sha512(body)
            registry.manifests["team/app", digest] = (MANIFEST, body)
            registry.tags["team/app", "1"] = digest
            name = f"{registry.host}/team/app"
            # What the registry knows it by, not the sha256 by which it could not be asked for.
            for reference in (f"{name}:1", f"{name}@{digest}"):
                assert (await made.config(reference))[1:] == (digest, config)
            asked = len(registry.requests)
            assert (await made.config(f"{name}@{digest}"))[1:] == (digest, config)
            assert len(registry.requests) == asked

            remote = RegistryImage(Reference.parse(name), made.clients, ())
            layer = Descriptor("a/b", _sha512(b"layer"), 5)
            await made.fetcher.fetch(remote, layer)
            assert made.store.blobs.read(layer.digest) == b"layer"

            registry.manifests["team/app", digest] = (MANIFEST, body + b" ")
            with pytest.raises(ContentMismatchError):
                await remote.manifest(digest)
            # A registry that says nonsense by a tag is not believed.
            found, _ = await RegistryImage(
                Reference.parse(f"{name}:1"), made.clients, ()
            ).manifest(None)
            assert found.digest == Digest.of(body + b" ")

    run(work())


# --- fetching ------------------------------------------------------------------------------------


def test_a_blob_that_many_want_is_fetched_once(run, setup):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            data = b"x" * 3_000_000
            digest = registry.put_blob("team/app", data)
            remote = RegistryImage(Reference(registry.host, "team/app"), made.clients, ())
            descriptor = Descriptor("layer", digest, len(data))
            seen = []
            await asyncio.gather(
                *(made.fetcher.fetch(remote, descriptor, seen.append) for _ in range(20))
            )
            assert made.store.blobs.read(digest) == data
            assert seen[-1] == len(data)
            labels = made.store.blobs.labels(digest)
            assert labels == {f"boxwright.source.{registry.host}": "team/app"}
            await made.fetcher.fetch(remote, descriptor)
            return registry.count("GET", "/blobs/")

    assert run(work()) == 1


def test_one_waiter_that_leaves_does_not_stop_the_others(run, setup):
    async def work():
        faults = Faults(stall_downloads=1, break_after=1000)
        async with FakeRegistry(faults=faults) as registry, setup() as made:
            data = b"x" * 100_000
            digest = registry.put_blob("team/app", data)
            descriptor = Descriptor("layer", digest, len(data))
            client = RegistryClient(stall_timeout_s=0.3)

            @contextlib.asynccontextmanager
            async def clients(session_ids):
                yield client

            remote = RegistryImage(Reference(registry.host, "team/app"), clients, ())
            first, second = (
                asyncio.ensure_future(made.fetcher.fetch(remote, descriptor)) for _ in range(2)
            )
            while not registry.count("GET", "/blobs/"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await second
            assert made.store.blobs.read(digest) == data
            await client.close()

    run(work())


def test_a_transfer_that_nobody_waits_for_ends(run, setup):
    async def work():
        faults = Faults(stall_downloads=1, break_after=1000)
        async with FakeRegistry(faults=faults) as registry, setup() as made:
            data = b"x" * 100_000
            digest = registry.put_blob("team/app", data)
            remote = RegistryImage(Reference(registry.host, "team/app"), made.clients, ())
            descriptor = Descriptor("layer", digest, len(data))
            task = asyncio.ensure_future(made.fetcher.fetch(remote, descriptor))
            while not registry.count("GET", "/blobs/"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert list(made.store.blobs.ingest.iterdir()) == []
            await made.fetcher.fetch(remote, descriptor)
            assert made.store.blobs.stat(digest) == len(data)

    run(work())


def test_a_blob_with_another_digest_is_never_published(run, setup):
    async def work():
        digest = Digest.of(b"right")
        faults = Faults(replace_blobs={digest: b"wrong"})
        async with FakeRegistry(faults=faults) as registry, setup() as made:
            registry.put_blob("team/app", b"right")
            remote = RegistryImage(Reference(registry.host, "team/app"), made.clients, ())
            with pytest.raises(DigestMismatchError):
                await made.fetcher.fetch(remote, Descriptor("layer", digest, 5))
            assert made.store.blobs.stat(digest) is None
            assert list(made.store.blobs.ingest.iterdir()) == []

    run(work())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://x/y"])
def test_foreign_layers_come_over_https_only(run, setup, url):
    async def work():
        async with FakeRegistry() as registry, setup() as made:
            remote = RegistryImage(Reference(registry.host, "team/app"), made.clients, ())
            descriptor = Descriptor("layer", Digest.of(b"x"), 1, urls=(url,))
            with pytest.raises(BoxwrightError, match="no https address"):
                await made.fetcher.fetch(remote, descriptor)

    run(work())
