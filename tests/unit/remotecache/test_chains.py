"""The graph of records, and how the solver sees an imported one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import NotFoundError
from boxwright.fsutil.compress import Compression
from boxwright.oci import mediatypes
from boxwright.oci.annotations import UNCOMPRESSED
from boxwright.remotecache.chains import Blob, CacheChains, Item, build_chains
from boxwright.remotecache.format import CacheConfig, CacheFormatError, decode_inline
from boxwright.remotecache.inline import records_for_image
from boxwright.remotecache.keys import ImportedKeys, remote_id
from boxwright.remotecache.results import ImportedResults
from boxwright.solver.exporter import ExportLink, ExportResult
from boxwright.solver.types import Remote


class Provider:
    """Delivers nothing; only its place counts."""

    async def ensure(self, descriptor: Descriptor) -> None:
        raise NotFoundError("not here", detail=descriptor.digest)

    def origin(self, descriptor: Descriptor) -> Mapping[str, str]:
        return {}


PROVIDER = Provider()


def layer(name: str, media_type: str = mediatypes.OCI_LAYER_GZIP) -> Descriptor:
    diff_id = Digest.of(f"diff {name}".encode())
    return Descriptor(media_type, Digest.of(name.encode()), 10, {UNCOMPRESSED: str(diff_id)})


def result(*names: str, at: int = 1) -> ExportResult:
    return ExportResult(at, Remote(tuple(layer(n) for n in names), PROVIDER), "", 0)


def linked(item: Item | None, selector: str = "") -> list[ExportLink]:
    return [ExportLink(item, selector)]


def read_back(chains: CacheChains) -> CacheChains:
    config, blobs = chains.marshal()
    return build_chains(CacheConfig.decode(config.encode()), blobs)


def test_keys_of_one_session_are_not_exported() -> None:
    assert CacheChains().add("random:x", (), ()) is None


def test_an_empty_input_is_refused() -> None:
    with pytest.raises(CacheFormatError):
        CacheChains().add(Digest.of(b"x"), [[]], ())


def test_equal_records_are_one() -> None:
    chains = CacheChains()
    root = chains.add("sha256:root", (), ())
    first = chains.add("sha256:x", [linked(root)], [result("a", at=1)])
    second = chains.add("sha256:x", [linked(root)], [result("b", at=2)])
    assert first is second
    config, _ = chains.marshal()
    assert len(config.records) == 2
    assert [x.blob for x in config.layers] == [layer("b").digest]  # the newest result


def test_records_found_to_be_the_same_are_merged() -> None:
    chains = CacheChains()
    a, b = chains.add("sha256:a", (), ()), chains.add("sha256:b", (), ())
    one = chains.add("sha256:x", [linked(a)], [result("l")])
    two = chains.add("sha256:x", [linked(b)], [result("m", at=2)])
    child = chains.add("sha256:y", [linked(two)], [result("m", "n")])
    assert one is not two
    both = chains.add("sha256:x", [[ExportLink(a, ""), ExportLink(b, "")]], ())
    assert both in (one, two)
    config, _ = read_back(chains).marshal()
    assert sorted(r.digest for r in config.records) == [
        "sha256:a", "sha256:b", "sha256:x", "sha256:y"
    ]  # fmt: skip
    assert child is chains.add("sha256:y", [linked(both)], ())


def test_a_circle_is_not_closed() -> None:
    chains = CacheChains()
    root = chains.add("sha256:r", (), ())
    x = chains.add("sha256:x", [linked(root)], ())
    y = chains.add("sha256:x", [linked(x)], ())
    chains.add("sha256:x", [[ExportLink(root, ""), ExportLink(y, "")]], ())
    config, blobs = chains.marshal()
    build_chains(config, blobs)  # raises if there is one


def test_shared_layers_are_written_once() -> None:
    chains = CacheChains()
    root = chains.add("sha256:r", (), ())
    x = chains.add("sha256:x", [linked(root)], [result("1", "2")])
    chains.add("sha256:y", [linked(x)], [result("1", "2", "3")])
    config, blobs = chains.marshal()
    assert len(config.layers) == 3
    assert set(blobs) == {layer(n).digest for n in "123"}


def test_docker_layers_are_named_as_oci_layers() -> None:
    chains = CacheChains()
    remote = Remote((layer("1", mediatypes.DOCKER_LAYER_GZIP),), PROVIDER)
    chains.add("sha256:r", (), [ExportResult(1, remote, "", 0)])
    _, blobs = chains.marshal()
    assert [b.descriptor.media_type for b in blobs.values()] == [mediatypes.OCI_LAYER_GZIP]


def test_a_deep_graph_needs_no_recursion() -> None:
    chains = CacheChains()
    item = chains.add("sha256:0", (), ())
    for number in range(3000):
        item = chains.add(f"sha256:{number + 1}", [linked(item)], ())
    assert len(ImportedKeys(read_back(chains)).ids()) == 3001


def test_the_solver_finds_its_way() -> None:
    chains = CacheChains()
    root_digest, digest = Digest.of(b"root"), Digest.of(b"op")
    root = chains.add(root_key(root_digest, 0), (), ())
    chains.add(root_key(digest, 1), [linked(root, "sel")], [result("1", at=7)])
    keys = ImportedKeys(read_back(chains))
    link = CacheInfoLink(0, 1, digest, "sel")
    [target] = keys.links(root_key(root_digest, 0), link)
    assert keys.has_link(root_key(root_digest, 0), link, target)
    assert keys.links(root_key(root_digest, 0), CacheInfoLink(0, 0, digest, "sel")) == []
    [found] = keys.results(target)
    assert found.created_at == 7
    assert keys.ids_by_result(found.id) == [target]
    assert keys.backlinks(target) == [
        (root_key(root_digest, 0), CacheInfoLink(0, 0, root_key(digest, 1), "sel"))
    ]
    keys.add_link(target, link, "elsewhere")
    keys.release(found.id)
    assert keys.results(target) == [found]


class _Result:
    def __init__(self, remote: Remote) -> None:
        self.id = remote_id(remote)
        self.value = remote
        self.released = 0

    def clone(self) -> _Result:
        return self

    async def release(self) -> None:
        self.released += 1


def test_parents_come_with_a_result() -> None:
    chains = CacheChains()
    root = chains.add("sha256:r", (), ())
    x = chains.add("sha256:x", [linked(root)], [result("1")])
    other = chains.add("sha256:o", [linked(root)], [result("9")])
    chains.add("sha256:y", [linked(x), linked(other)], [result("1", "2")])
    keys = ImportedKeys(chains)
    opened: list[_Result] = []

    async def open_remote(remote: Remote) -> _Result:
        opened.append(_Result(remote))
        return opened[-1]

    results = ImportedResults(keys, open_remote)
    whole = remote_id(result("1", "2").remote)
    found = asyncio.run(results.load_with_parents(CacheResult(whole, 1)))
    assert sorted(len(r.value.descriptors) for r in found.values()) == [1, 2]
    with pytest.raises(NotFoundError):
        asyncio.run(results.load(CacheResult("sha256:none", 1)))


def test_a_parent_that_is_gone_gives_the_others_back() -> None:
    chains = CacheChains()
    root = chains.add("sha256:r", (), ())
    x = chains.add("sha256:x", [linked(root)], [result("1")])
    chains.add("sha256:y", [linked(x)], [result("1", "2")])
    opened: list[_Result] = []

    async def open_remote(remote: Remote) -> _Result:
        if opened:
            raise NotFoundError("gone")
        opened.append(_Result(remote))
        return opened[-1]

    results = ImportedResults(ImportedKeys(chains), open_remote)
    with pytest.raises(NotFoundError):
        asyncio.run(results.load_with_parents(CacheResult(remote_id(result("1", "2").remote), 1)))
    assert opened[0].released == 1


@pytest.mark.parametrize(
    ("types", "wanted", "fits"),
    [
        (["gzip", "zstd"], Compression("gzip"), True),
        (["zstd"], Compression("gzip"), False),
        (["gzip", "zstd"], Compression("gzip", force=True), False),
        (["gzip", "gzip"], Compression("gzip", force=True), True),
        (["zstd"], None, True),
    ],
)
def test_which_compression_an_export_may_reuse(
    types: list[str], wanted: Compression | None, fits: bool
) -> None:
    layers = [layer(str(n), mediatypes.layer_media_type(t)) for n, t in enumerate(types)]
    remote = Remote(tuple(layers), PROVIDER)
    chains = CacheChains()
    chains.add("sha256:r", (), [ExportResult(1, remote, "", 0)])

    async def open_remote(remote: Remote) -> _Result:
        return _Result(remote)

    results = ImportedResults(ImportedKeys(chains), open_remote)
    found = asyncio.run(results.load_remotes(CacheResult(remote_id(remote), 1), wanted))
    assert bool(found) is fits


def test_inline_records_number_the_layers_of_the_image() -> None:
    chains = CacheChains()
    root = chains.add("sha256:r", (), ())
    base = chains.add("sha256:b", [linked(root)], [result("1")])
    tool = chains.add("sha256:t", [linked(base)], [result("other")])
    link = chains.add("sha256:l", [linked(root)], [result("3")])
    chains.add("sha256:y", [linked(base), linked(tool), linked(link)], [result("1", "2", "3")])
    image = [
        (layer(n).digest, Digest(layer(n).annotations[UNCOMPRESSED])) for n in ("1", "2", "3")
    ]
    data = records_for_image(chains, image)
    assert data is not None
    records = {r.digest: r for r in CacheConfig.decode(b'{"records":' + data + b"}").records}
    assert [r.layer for r in records["sha256:y"].results] == [2]
    assert [r.layer for r in records["sha256:b"].results] == [0]
    assert records["sha256:t"].results == records["sha256:t"].chains == ()
    assert [c.layers for c in records["sha256:l"].chains] == [(2,)]
    assert records_for_image(chains, [(Digest.of(b"?"), Digest.of(b"??"))]) is None
    assert decode_inline


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcde"),
            st.lists(
                st.lists(
                    st.tuples(st.integers(0, 30), st.sampled_from(["", "s"])),
                    min_size=1,
                    max_size=3,
                ),
                max_size=2,
            ),
            st.lists(st.sampled_from("1234"), max_size=3),
        ),
        max_size=25,
    )
)
def test_any_graph_survives_a_trip(
    steps: list[tuple[str, list[list[tuple[int, str]]], list[str]]],
) -> None:
    chains, made = CacheChains(), list[Item | None]()
    for digest, deps, names in steps:
        links = [
            [ExportLink(made[n % len(made)], sel) for n, sel in dep] if made else []
            for dep in deps
        ]
        if not all(links):
            links = []
        made.append(chains.add(f"sha256:{digest}", links, [result(*names)] if names else ()))
    config, blobs = chains.marshal()
    assert set(blobs) == {entry.blob for entry in config.layers}
    again, _ = build_chains(CacheConfig.decode(config.encode()), blobs).marshal()
    assert {r.digest for r in again.records} == {r.digest for r in config.records}
    assert {x.blob for x in again.layers} == {x.blob for x in config.layers}


def test_layers_without_a_blob_are_left_out() -> None:
    chains = CacheChains()
    chains.add("sha256:r", (), [result("1", "2")])
    config, blobs = chains.marshal()
    known: dict[Digest, Blob] = {layer("1").digest: blobs[layer("1").digest]}
    narrowed, _ = build_chains(config, known).marshal()
    assert narrowed.layers == []
    assert [r.digest for r in narrowed.records] == ["sha256:r"]
