"""Caches written to a place and read back from it, whole and damaged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from boxwright.core.clock import SystemClock
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code, NotFoundError
from boxwright.oci import mediatypes
from boxwright.oci.annotations import UNCOMPRESSED
from boxwright.oci.manifest import Index, Manifest
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream
from boxwright.remotecache.attributes import (
    CacheEntry,
    import_id,
    read_exports,
    read_import,
)
from boxwright.remotecache.chains import CacheChains
from boxwright.remotecache.format import CONFIG_MEDIA_TYPE, INLINE_KEY, CacheFormatError
from boxwright.remotecache.reader import read_cache
from boxwright.remotecache.writer import MANIFEST_KEY, WrittenCache, write_cache
from boxwright.solver.exporter import ExportLink, ExportResult
from boxwright.solver.types import Remote
from boxwright.store.store import Store


class Place:
    """A place in memory (CacheSource and CacheTarget), and a provider."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.root: Digest | None = None
        self.sent: list[Digest] = []
        self.wanted: list[Digest] = []

    @property
    def source_labels(self) -> Mapping[str, str]:
        return {}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        wanted = digest or self.root
        if wanted not in self.blobs:
            raise NotFoundError("no manifest", detail=str(wanted))
        body = self.blobs[wanted]
        return Descriptor("", wanted, len(body)), body

    async def blob(self, descriptor: Descriptor, sink: object) -> None:
        if descriptor.digest not in self.blobs:
            raise NotFoundError("no blob", detail=descriptor.digest)
        await sink.write(self.blobs[descriptor.digest])  # type: ignore[attr-defined]

    async def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    async def ensure(self, descriptor: Descriptor) -> None:
        self.wanted.append(descriptor.digest)

    def origin(self, descriptor: Descriptor) -> Mapping[str, str]:
        return {"where": f"{descriptor.digest}"}

    async def put_layer(
        self,
        descriptor: Descriptor,
        ensure: Callable[[], Awaitable[None]],
        on_progress: Callable[[int], None],
        origin: Mapping[str, str],
    ) -> bool:
        assert origin == self.origin(descriptor)
        if descriptor.digest in self.blobs:
            return False
        await ensure()
        on_progress(descriptor.size)
        self.sent.append(descriptor.digest)
        self.blobs[descriptor.digest] = b"layer"
        return True

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        self.blobs[descriptor.digest] = data

    async def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        assert descriptor.digest == Digest.of(data)
        self.blobs[descriptor.digest] = data
        self.root = descriptor.digest


def layer(name: str) -> Descriptor:
    noted = {UNCOMPRESSED: Digest.of(f"diff {name}".encode())}
    return Descriptor(mediatypes.OCI_LAYER_GZIP, Digest.of(name.encode()), 5, noted)


def graph(place: Place) -> CacheChains:
    chains = CacheChains()
    root = chains.add("sha256:r", (), ())
    for name, layers in (("x", "1"), ("y", "12"), ("z", "13")):
        remote = Remote(tuple(layer(n) for n in layers), place)
        links = [[ExportLink(root, name)]]
        chains.add(f"sha256:{name}", links, [ExportResult(7, remote, "", 0)])
    return chains


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store whose leases can be used."""
    opened = Store.open(tmp_path / "store")
    yield opened
    opened.close()


def write(store: Store, chains: CacheChains, place: Place, **options: bool) -> WrittenCache:
    async def run() -> WrittenCache:
        lease = store.leases.create()
        stream = ProgressStream()
        with step(stream, SystemClock(), "export") as shown:
            return await write_cache(chains, place, shown, lease, **options)

    return asyncio.run(run())


class Damaged(Place):
    """A place that some layers can't be had from."""

    def __init__(self, *gone: str, code: type[BoxwrightError] = NotFoundError) -> None:
        super().__init__()
        self._gone = {layer(name).digest for name in gone}
        self._error = code

    async def ensure(self, descriptor: Descriptor) -> None:
        if descriptor.digest in self._gone:
            raise self._error("gone")
        await super().ensure(descriptor)


class Looked(Damaged):
    """One that can tell."""

    async def is_there(self, descriptor: Descriptor) -> bool:
        return descriptor.digest not in self._gone


@pytest.mark.parametrize("kind", [Damaged, Looked])
def test_results_with_a_lost_layer_are_left_out(store: Store, kind: type[Damaged]) -> None:
    source, place = kind("2"), Place()
    written = write(store, graph(source), place)
    assert (written.layers, written.sent_layers) == (2, 2)
    (found,) = read(place)
    config, _ = found.marshal()
    assert {each.blob for each in config.layers} == {layer("1").digest, layer("3").digest}
    assert [bool(r.results) for r in config.records if r.digest == "sha256:y"] == [False]
    assert len(config.records) == 4


def test_an_older_result_takes_the_place_of_a_lost_one(store: Store) -> None:
    place, source = Place(), Damaged("new")
    chains = CacheChains()
    for name, when in (("old", 1), ("new", 2)):
        remote = Remote((layer(name),), source)
        chains.add("sha256:r", (), [ExportResult(when, remote, "", 0)])
    assert write(store, chains, place).layers == 1
    config, _ = read(place)[0].marshal()
    assert [each.blob for each in config.layers] == [layer("old").digest]


def test_all_layers_are_lost(store: Store) -> None:
    place = Place()
    written = write(store, graph(Damaged("1")), place)
    assert (written.descriptor, written.layers, place.root) == (None, 0, None)


@pytest.mark.parametrize(
    "why", [Code.DISK_FULL, Code.REGISTRY_UNREACHABLE, Code.REGISTRY_AUTH, Code.SESSION_LOST]
)
def test_what_may_be_over_next_time_is_no_loss(store: Store, why: Code) -> None:
    class PassingError(BoxwrightError):
        code = why

    place = Place()
    with pytest.raises(PassingError):
        write(store, graph(Damaged("2", code=PassingError)), place)
    assert place.root is None  # what was there is not replaced by less


def read(place: Place) -> list[CacheChains]:
    return asyncio.run(read_cache(place, place))


@pytest.mark.parametrize(
    ("options", "media_type"),
    [
        ({}, mediatypes.OCI_MANIFEST),
        ({"image_manifest": False}, mediatypes.OCI_INDEX),
        ({"image_manifest": False, "oci_types": False}, mediatypes.DOCKER_LIST),
    ],
)
def test_a_trip(store: Store, options: dict[str, bool], media_type: str) -> None:
    place = Place()
    chains = graph(place)
    written = write(store, chains, place, **options)
    assert json.loads(written.response[MANIFEST_KEY]) == {
        "mediaType": media_type,
        "digest": place.root,
        "size": len(place.blobs[place.root or Digest.of(b"")]),
    }
    assert (written.layers, written.sent_layers, written.sent_bytes) == (3, 3, 15)
    [again] = read(place)
    assert again.marshal()[0].encode() == chains.marshal()[0].encode()
    second = write(store, graph(place), place, **options)
    assert (second.layers, second.sent_layers) == (3, 0)
    assert len(place.wanted) == 3  # what is there is not fetched


def test_a_layer_on_several_parents_is_sent_once_and_named_as_often(store: Store) -> None:
    place = Place()
    chains = CacheChains()
    for layers in ("12", "32"):
        remote = Remote(tuple(layer(n) for n in layers), place)
        chains.add(f"sha256:{layers}", (), [ExportResult(7, remote, "", 0)])
    written = write(store, chains, place)
    manifest = json.loads(place.blobs[place.root or Digest.of(b"")])
    named = [each["digest"] for each in manifest["layers"]]
    assert named == [each.blob for each in chains.marshal()[0].layers]
    assert (len(named), written.sent_layers) == (4, 3)


def test_nothing_to_export(store: Store) -> None:
    place, chains = Place(), CacheChains()
    chains.add("sha256:r", (), ())
    assert write(store, chains, place).response == {}
    assert place.root is None


def test_a_damaged_config_is_refused(store: Store) -> None:
    place = Place()
    write(store, graph(place), place)
    manifest = json.loads(place.blobs[place.root or Digest.of(b"")])
    assert manifest["config"]["mediaType"] == CONFIG_MEDIA_TYPE
    config = Digest(manifest["config"]["digest"])
    for damage in (b"", b"{}", place.blobs[config] + b" "):
        place.blobs[config] = damage
        with pytest.raises(CacheFormatError):
            read(place)
    del place.blobs[config]
    with pytest.raises(NotFoundError):
        read(place)


def put(place: Place, data: bytes, media_type: str) -> Descriptor:
    digest = Digest.of(data)
    place.blobs[digest] = data
    return Descriptor(media_type, digest, len(data))


def image(place: Place, records: object, *, diff_ids: int = 2) -> Descriptor:
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"diff_ids": [layer(str(n)).annotations[UNCOMPRESSED] for n in range(diff_ids)]},
        "history": [{"created_by": "one"}, {"empty_layer": True}, {"created_by": "two"}],
    }
    if records is not None:
        text = json.dumps(records).encode()
        config[INLINE_KEY] = base64.b64encode(text).decode()
    body = json.dumps(config).encode()
    layers = tuple(
        Descriptor(mediatypes.OCI_LAYER_GZIP, layer(str(n)).digest, 5) for n in range(2)
    )
    manifest = Manifest(put(place, body, mediatypes.OCI_CONFIG), layers)
    return put(place, manifest.encode(), mediatypes.OCI_MANIFEST)


RECORDS = [{"digest": "sha256:r", "layers": [{"layer": 1, "createdAt": "2024-01-01T00:00:00Z"}]}]


def test_inline_caches_of_all_images_of_an_index() -> None:
    place = Place()
    other = [{"digest": "sha256:o", "chains": [{"layers": [1], "createdAt": ""}]}]
    nested = put(place, Index((image(place, other),)).encode(), mediatypes.OCI_INDEX)
    attested = Descriptor(
        mediatypes.OCI_MANIFEST, Digest.of(b"gone"), 3, {"vnd.docker.reference.type": "x"}
    )
    root = put(
        place,
        Index((image(place, RECORDS), image(place, None), attested, nested)).encode(),
        mediatypes.OCI_INDEX,
    )
    place.root = root.digest
    found = {c.marshal()[0].records[0].digest: c for c in read(place)}
    assert set(found) == {"sha256:r", "sha256:o"}
    config, blobs = found["sha256:r"].marshal()
    assert [x.blob for x in config.layers if x.parent == -1] == [layer("0").digest]
    noted = blobs[layer("1").digest].descriptor.annotations
    assert noted[UNCOMPRESSED] == layer("1").annotations[UNCOMPRESSED]
    assert noted["buildkit/description"] == "two"
    assert len(found["sha256:o"].marshal()[0].layers) == 1


def test_an_image_that_contradicts_itself_has_no_cache() -> None:
    place = Place()
    place.root = image(place, RECORDS, diff_ids=1).digest
    assert read(place) == []


@pytest.mark.parametrize("body", [b"{}", b"[]", b"x", b'{"mediaType":"text/plain"}'])
def test_what_is_no_cache_is_refused(body: bytes) -> None:
    place = Place()
    place.root = Digest.of(body)
    place.blobs[place.root] = body
    with pytest.raises(BoxwrightError):
        read(place)


def test_attributes_of_imports() -> None:
    found = read_import(CacheEntry("registry", {"ref": "a.test/b", "registry.insecure": "1"}))
    assert (str(found.ref), found.insecure) == ("a.test/b:latest", True)
    digest = Digest.of(b"x")
    local = read_import(CacheEntry("local", {"src": "/c", "digest": digest}))
    assert (local.folder, local.digest) == ("local:/c", digest)
    for entry in (
        CacheEntry("local", {"src": "/c"}),
        CacheEntry("local", {"digest": digest}),
        CacheEntry("registry", {}),
        CacheEntry("gha", {}),
        CacheEntry("what", {}),
    ):
        with pytest.raises(BoxwrightError):
            read_import(entry)


def test_one_place_is_one_import() -> None:
    one = CacheEntry("local", {"src": "/c", "digest": "d"})
    assert import_id(one) == import_id(CacheEntry("local", {"digest": "d", "src": "/c"}))
    assert import_id(one) != import_id(CacheEntry("local", {"src": "/d", "digest": "d"}))
    assert import_id(CacheEntry("registry", {"ref": "r", "x": "y"})) == "r"


def test_inline_exports_are_one() -> None:
    entries = [CacheEntry("inline", {}), CacheEntry("inline", {"mode": "max"})]
    assert len(read_exports(entries)) == 1
