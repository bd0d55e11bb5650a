"""Layers of real snapshots: upstream's bytes, made once, and found again."""

import asyncio
import gzip
import io
import json
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.fsutil.compress import Compression, open_decompressor
from boxwright.fsutil.estargz import TOC_DIGEST, UNCOMPRESSED_SIZE
from boxwright.fsutil.tar import EntryType, TarReader, TarWriter
from boxwright.oci import mediatypes
from boxwright.snapshots.diff import changes
from boxwright.snapshots.layers import ensure_blobs
from boxwright.snapshots.layertar import write_changes
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.node import LayerBlob
from boxwright.store import Store

pytestmark = [
    pytest.mark.root,
]

GOLDEN = Path(__file__).parents[1] / "golden" / "layers"
EPOCH = 1_700_000_000


@asynccontextmanager
async def opened(root):
    store = Store.open(root)
    manager = SnapshotManager.open(store)
    try:
        yield store, manager
    finally:
        await manager.close()
        store.close()


async def commit(manager, parent, change, description="step"):
    async with manager.new(parent, description=description) as mutable:
        async with mutable.mounted() as root:
            change(root)
        return await mutable.commit()


def golden_layers(store):
    """The layers of buildkitd's image (all but the busybox), as if pulled from a registry."""
    found = []
    for number in range(1, 5):
        data = gzip.decompress((GOLDEN / f"layer{number}.tar.gz").read_bytes())
        digest = store.blobs.put(data)
        found.append(LayerBlob(Descriptor(mediatypes.OCI_LAYER, digest, len(data)), digest))
    return found


async def retar(manager, layer, epoch_s=None):
    async with manager.layer_tree(layer.snapshot_id) as tree:
        pieces = []
        tar = TarWriter(pieces.append)
        write_changes(tar, changes(tree), tree.upper, epoch_s=epoch_s)
        tar.close()
        return b"".join(pieces)


def names(store, descriptor):
    with store.blobs.open(descriptor.digest) as file:
        reader = TarReader(open_decompressor(file)[1])
        return {entry.name.decode(): (entry, reader.read()) for entry in reader}


def test_unpacked_layers_give_the_archives_they_came_from(tmp_path):
    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = manager.from_blobs(golden_layers(store))
            for layer in await ref.layers():
                assert Digest.of(await retar(manager, layer)) == layer.diff_id
            await ref.release()

    asyncio.run(main())


@pytest.mark.parametrize("algorithm", ["uncompressed", "gzip", "zstd"])
def test_rewritten_times_give_upstreams_diff_ids(tmp_path, algorithm):
    expected = json.loads((GOLDEN / "rewritten.json").read_text())[1:]

    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = manager.from_blobs(golden_layers(store))
            compression = Compression(algorithm)
            converted = await ensure_blobs(
                ref, store=store, compression=compression, epoch_s=EPOCH
            )
            assert [layer.diff_id for layer in converted] == expected
            for layer, wanted in zip(await ref.layers(), expected, strict=True):
                assert Digest.of(await retar(manager, layer, EPOCH)) == wanted
            await ref.release()

    asyncio.run(main())


def test_layers_of_the_base_image_keep_their_times(tmp_path):
    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            blobs = golden_layers(store)
            ref = manager.from_blobs(blobs)
            layers = await ensure_blobs(
                ref,
                store=store,
                compression=Compression(),
                epoch_s=EPOCH,
                keep_diff_ids=[blobs[0].diff_id, blobs[1].diff_id, "sha256:" + "0" * 64],
            )
            kept = [
                layer.diff_id == blob.diff_id for layer, blob in zip(layers, blobs, strict=True)
            ]
            assert kept == [True, True, False, True]  # the last is an empty archive
            assert layers[0].descriptor.digest == blobs[0].descriptor.digest
            await ref.release()

    asyncio.run(main())


def test_image_layers_stay_as_they_are_unless_forced(tmp_path):
    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            blobs = golden_layers(store)
            ref = manager.from_blobs(blobs)
            kept = await ensure_blobs(ref, store=store, compression=Compression("zstd"))
            assert [layer.descriptor.digest for layer in kept] == [
                blob.descriptor.digest for blob in blobs
            ]
            forced = await ensure_blobs(
                ref, store=store, compression=Compression("zstd", force=True)
            )
            assert {layer.descriptor.media_type for layer in forced} == {mediatypes.OCI_LAYER_ZSTD}
            assert [layer.diff_id for layer in forced] == [blob.diff_id for blob in blobs]
            await ref.release()

    asyncio.run(main())


def test_a_lazy_layer_is_fetched(tmp_path):
    data = gzip.decompress((GOLDEN / "layer1.tar.gz").read_bytes())
    descriptor = Descriptor(mediatypes.OCI_LAYER, Digest.of(data), len(data))
    fetched = []

    async def main():
        async with opened(tmp_path / "state") as (store, manager):

            async def fetch():
                fetched.append(store.blobs.put(data))

            ref = manager.from_blobs([LayerBlob(descriptor, Digest.of(data), fetch)])
            (layer,) = await ensure_blobs(ref, store=store, compression=Compression())
            assert layer.descriptor.digest == descriptor.digest
            assert store.blobs.stat(descriptor.digest) == len(data)
            await ref.release()

    asyncio.run(main())
    assert fetched == [descriptor.digest]


def test_changes_become_entries(tmp_path):
    def first(root):
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text("root")
        os.link(root / "etc/passwd", root / "etc/passwd-")
        (root / "old").mkdir()
        (root / "old/file").write_text("old")
        (root / "replaced").mkdir()
        (root / "replaced/below").write_text("below")

    def second(root):
        shutil.rmtree(root / "old")
        shutil.rmtree(root / "replaced")
        (root / "replaced").mkdir()
        (root / "replaced/new").write_text("new")
        (root / "etc/passwd").chmod(0o600)

    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            base = await commit(manager, None, first, "first")
            top = await commit(manager, base, second, "second")
            with store.leases.create() as lease:
                lower, upper = await ensure_blobs(
                    top, store=store, compression=Compression(), lease=lease
                )
            assert (lower.description, upper.description) == ("first", "second")
            assert lower.created_ns == base.created_ns
            below = names(store, lower.descriptor)
            assert list(below) == [
                "etc/",
                "etc/passwd",
                "etc/passwd-",
                "old/",
                "old/file",
                "replaced/",
                "replaced/below",
            ]
            assert below["etc/passwd-"][0].type == EntryType.HARD_LINK
            above = names(store, upper.descriptor)
            assert ".wh.old" in above
            assert "replaced/.wh.below" in above
            assert above["replaced/new"][1] == b"new"
            assert above["etc/passwd"][0].mode == 0o600
            assert above[".wh.old"][0].mtime == 0
            for ref in (base, top):
                await ref.release()

    asyncio.run(main())


def test_a_layer_is_made_once_per_form_also_over_a_restart(tmp_path):
    def change(root):
        (root / "f").write_bytes(os.urandom(100_000))

    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = await commit(manager, None, change)
            identity = ref.id
            forms = [Compression("gzip"), Compression("gzip", 6), Compression("zstd")]
            made = await asyncio.gather(
                *(
                    ensure_blobs(ref, store=store, compression=form, epoch_s=epoch)
                    for form in forms
                    for epoch in (None, EPOCH)
                    for _ in range(3)
                )
            )
            digests = {layers[0].descriptor.digest for layers in made}
            assert len(digests) == 6
            assert len({layers[0].diff_id for layers in made}) == 2
            written = {info.digest: info.created_ns for info in store.blobs.walk()}
            await manager.sync()
            await ref.release()
        async with opened(tmp_path / "state") as (store, manager):
            ref = manager.get(identity)
            (layer,) = await ensure_blobs(ref, store=store, compression=Compression("zstd"))
            assert layer.descriptor.digest in digests
            assert {info.digest: info.created_ns for info in store.blobs.walk()} == written
            (row,) = await ref.layers()
            assert row.diff_id == layer.diff_id
            await ref.release()

    asyncio.run(main())


def test_a_lost_blob_is_made_again(tmp_path):
    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = await commit(manager, None, lambda root: (root / "f").write_text("x"))
            (first,) = await ensure_blobs(ref, store=store, compression=Compression())
            store.blobs.delete(first.descriptor.digest)
            (again,) = await ensure_blobs(ref, store=store, compression=Compression())
            assert again == first
            assert store.blobs.stat(first.descriptor.digest) == first.descriptor.size
            await ref.release()

    asyncio.run(main())


def test_a_cancelled_export_leaves_nothing_behind(tmp_path):
    def change(root):
        for number in range(20):
            (root / str(number)).write_bytes(os.urandom(2_000_000))

    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = await commit(manager, None, change)
            task = asyncio.create_task(
                ensure_blobs(ref, store=store, compression=Compression("gzip", 9))
            )
            while not any(store.blobs.ingest.iterdir()):  # noqa: ASYNC110
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert list(store.blobs.ingest.iterdir()) == []
            assert list(store.blobs.walk()) == []
            await ref.release()

    asyncio.run(main())


def test_sockets_are_left_out_and_capabilities_kept(tmp_path):
    capability = bytes.fromhex("0100000200200000000000000000000000000000")

    def change(root):
        (root / "ping").write_bytes(b"elf")
        os.setxattr(root / "ping", "security.capability", capability)
        os.setxattr(root / "ping", "user.other", b"1")
        os.mknod(root / "socket", 0o140666)

    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = await commit(manager, None, change)
            (layer,) = await ensure_blobs(
                ref, store=store, compression=Compression("uncompressed")
            )
            data = store.blobs.read(layer.descriptor.digest)
            (entry,) = list(TarReader(io.BytesIO(data)))
            assert entry.xattrs == {"security.capability": capability}
            assert layer.diff_id == layer.descriptor.digest
            await ref.release()

    asyncio.run(main())


def test_estargz_layers_have_a_diff_id_of_their_own(tmp_path):
    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            ref = await commit(manager, None, lambda root: (root / "file").write_text("text"))
            (plain,) = await ensure_blobs(ref, store=store, compression=Compression())
            (found,) = await ensure_blobs(ref, store=store, compression=Compression("estargz"))
            (again,) = await ensure_blobs(ref, store=store, compression=Compression("estargz"))
            assert found == again
            assert found.diff_id != plain.diff_id
            assert found.descriptor.media_type == mediatypes.OCI_LAYER_GZIP
            assert {TOC_DIGEST, UNCOMPRESSED_SIZE} <= found.descriptor.annotations.keys()
            with store.blobs.open(found.descriptor.digest) as file:
                whole = gzip.decompress(file.read())
            assert Digest.of(whole) == found.diff_id
            assert str(len(whole)) == found.descriptor.annotations[UNCOMPRESSED_SIZE]
            assert set(names(store, found.descriptor)) == {"file"}
            (layer,) = await ref.layers()
            assert layer.diff_id == plain.diff_id
            await ref.release()

    asyncio.run(main())


def test_layers_of_a_base_image_become_estargz_only_by_force(tmp_path):
    async def main():
        async with opened(tmp_path / "state") as (store, manager):
            blobs = golden_layers(store)
            ref = manager.from_blobs(blobs)
            kept = await ensure_blobs(ref, store=store, compression=Compression("estargz"))
            assert [k.descriptor.digest for k in kept] == [b.descriptor.digest for b in blobs]
            form = Compression("estargz", force=True)
            made = await ensure_blobs(ref, store=store, compression=form)
            for old, new in zip(kept, made, strict=True):
                assert TOC_DIGEST in new.descriptor.annotations
                before, after = names(store, old.descriptor), names(store, new.descriptor)
                assert {n: (e.mode, e.mtime, e.linkname, d) for n, (e, d) in before.items()} == {
                    n: (e.mode, e.mtime, e.linkname, d) for n, (e, d) in after.items()
                }
            again = manager.from_blobs([LayerBlob(m.descriptor, m.diff_id) for m in made])
            assert [
                e.descriptor.digest
                for e in await ensure_blobs(again, store=store, compression=form)
            ] == [m.descriptor.digest for m in made]
            async with again.mounted() as root:
                assert not (root / "stargz.index.json").exists()
            await again.release()
            await ref.release()

    asyncio.run(main())
