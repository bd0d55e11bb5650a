"""Local sources over real snapshots (overlay mounts), in place and through a transfer."""

import asyncio
import io
import os
import shutil
import tarfile

import pytest

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, Code
from boxwright.fsutil.compress import Compression
from boxwright.session.inprocess import InProcessSession
from boxwright.session.manager import SessionManager
from boxwright.session.packets import decode_stat
from boxwright.session.providers.localdirs import LocalDirs
from boxwright.session.services import SessionServices
from boxwright.session.treewalk import TreeWalk
from boxwright.snapshots.contenthash import checksum, content_hashes
from boxwright.snapshots.layers import ensure_blobs
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources import localtree
from boxwright.sources.base import SourceContext
from boxwright.sources.local import LocalSources
from boxwright.store import Store

pytestmark = pytest.mark.root


class Elsewhere(InProcessSession):
    """A client whose folders can't be read in place."""

    def local_dir(self, name):
        return None

    async def sync_dir(self, name, request, receiver, *, on_received=None):
        session = InProcessSession(self._services)
        await session.sync_dir(name, request, receiver, on_received=on_received)


class Bench:
    def __init__(self, root, context):
        self.context = context
        self.store = Store.open(root)
        self.snapshots = SnapshotManager.open(self.store)
        self.sources = LocalSources(self.snapshots)
        self.sessions = SessionManager()

    async def sync(self, session_type, **attrs):
        services = SessionServices(dirs=LocalDirs({"context": self.context}))
        session = session_type(services)
        self.sessions.attach(session)
        try:
            source = self.sources.resolve("context", attrs, None)
            return await source.snapshot(SourceContext(self.sessions.group([session.id])))
        finally:
            self.sessions.detach(session)

    async def close(self):
        await self.snapshots.close()
        self.store.close()


@pytest.fixture(params=[InProcessSession, Elsewhere], ids=["in-place", "transfer"])
def kind(request):
    return request.param


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "context"
    (root / "src/deep").mkdir(parents=True)
    (root / "src/a").write_bytes(b"a")
    (root / "src/deep/b").write_bytes(b"b" * 100_000)
    (root / "link").symlink_to("src/a")
    (root / "bin").write_bytes(b"#!")
    os.chmod(root / "bin", 0o755)
    os.link(root / "src/a", root / "second")
    (root / "empty").mkdir()
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    return root


def run(tmp_path, context, use):
    async def main():
        bench = Bench(tmp_path / "state", context)
        try:
            await use(bench)
        finally:
            await bench.close()

    asyncio.run(main())


def listing(root):
    out = {}
    for walked in TreeWalk(os.fsencode(root), reset_owner=False):
        entry = walked.stat
        content = b""
        if entry.is_file:
            with open(os.path.join(os.fsencode(root), entry.path), "rb") as file:
                content = file.read()
        out[entry.path] = (entry.mode, entry.mtime_ns, entry.linkname, content)
    return out


async def assert_same(bench, ref):
    """The snapshot is the context, and the digests handed over are those of its files."""
    async with ref.mounted() as root:
        assert await to_worker(listing, root) == listing(bench.context)
    from_seed = await checksum(ref, "/src")
    bench.store.db.execute("DELETE FROM content_hashes")
    content_hashes(bench.snapshots).forget(ref.id)
    assert await checksum(ref, "/src") == from_seed


async def assert_same_tree(bench, ref):
    async with ref.mounted() as root:
        assert await to_worker(listing, root) == listing(bench.context)


def test_a_context_becomes_a_snapshot_and_an_unchanged_one_the_same(kind, context, tmp_path):
    async def use(bench):
        first = await bench.sync(kind)
        await assert_same(bench, first)
        second = await bench.sync(kind)
        assert second.id == first.id

    run(tmp_path, context, use)


def test_changes_among_many_unchanged_files(kind, tmp_path):
    context = tmp_path / "context"
    for number in range(700):
        path = context / f"src/d{number // 100}/f{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    shutil.copytree(context, tmp_path / "again")

    async def use(bench):
        first = await bench.sync(kind)
        (context / "src/d0/f007").write_bytes(b"other")
        shutil.rmtree(context / "src/d2")
        (context / "src/d3/f350").unlink()
        (context / "src/d3/f350").mkdir()
        (context / "src/d4/f4000").write_bytes(b"new")
        second = await bench.sync(kind)
        assert second.id != first.id
        await assert_same(bench, second)
        third = await bench.sync(kind)
        assert third.id == second.id
        bench.context = tmp_path / "again"
        await assert_same_tree(bench, await bench.sync(kind))

    run(tmp_path, context, use)


def test_changes_of_every_sort(kind, context, tmp_path):
    async def use(bench):
        first = await bench.sync(kind)
        before = listing(context)
        (context / "src/a").unlink()
        (context / "src/a").write_bytes(b"changed")
        (context / "second").unlink()
        shutil.rmtree(context / "src/deep")
        (context / "src/deep").write_bytes(b"now a file")
        (context / "empty").rmdir()
        (context / "empty").symlink_to("bin")
        (context / "link").unlink()
        (context / "new/er").mkdir(parents=True)
        (context / "new/er/file").write_bytes(b"n")
        os.chmod(context / "bin", 0o644)
        second = await bench.sync(kind)
        await assert_same(bench, second)
        async with first.mounted() as root:
            assert listing(root) == before

    run(tmp_path, context, use)


def test_an_image_of_a_folder_shows_nothing_of_its_past(kind, context, tmp_path):
    """The states lie over each other on the disk, yet an image has one layer of the last."""
    (context / "private").write_bytes(b"key")

    async def use(bench):
        form = Compression("uncompressed")
        before = await bench.sync(kind)
        (context / "private").unlink()
        (context / "new").write_bytes(b"new")
        after = await bench.sync(kind)
        fresh = await bench.sync(kind, **{"local.sharedkeyhint": "another"})
        made = []
        for ref in (after, fresh, after):
            made.append(await ensure_blobs(ref, store=bench.store, compression=form))
        assert [[layer.diff_id for layer in layers] for layers in made] == [
            [made[0][0].diff_id]
        ] * 3
        data = bench.store.blobs.path(made[0][0].descriptor.digest).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            names = archive.getnames()
        assert "new" in names
        assert not [name for name in names if "private" in name]
        assert len(await ensure_blobs(before, store=bench.store, compression=form)) == 1
        for ref in (before, after, fresh):
            await ref.release()

    run(tmp_path, context, use)


def test_only_names_and_attributes_and_what_is_excepted(kind, context, tmp_path):
    async def use(bench):
        attrs = {
            "local.metadatatransfer": "true",
            "local.metadatatransferexclude": '["src/deep/*"]',
        }
        for _ in range(2):
            ref = await bench.sync(kind, **attrs)
            async with ref.mounted() as root:
                found = await to_worker(listing, root)
            assert sorted(found) == [b".fsutil-metadata", b"src", b"src/deep", b"src/deep/b"]
            data = found[b".fsutil-metadata"][3]
            paths = []
            while data:
                size = int.from_bytes(data[:4], "little")
                paths.append(decode_stat(data[4 : 4 + size]).path)
                data = data[4 + size :]
            wanted = [walked.stat.path for walked in TreeWalk(os.fsencode(bench.context))]
            assert paths == wanted
            await ref.release()
            (bench.context / "new").write_bytes(b"")

    run(tmp_path, context, use)


def test_the_state_survives_a_restart(kind, context, tmp_path):
    ids = []

    async def use(bench):
        ids.append((await bench.sync(kind)).id)

    run(tmp_path, context, use)
    run(tmp_path, context, use)
    assert ids[0] == ids[1]


def test_a_pruned_state_is_made_again(kind, context, tmp_path):
    async def use(bench):
        first = await bench.sync(kind)
        await first.release()
        await bench.snapshots.delete(first.id)
        second = await bench.sync(kind)
        assert second.id != first.id
        await assert_same(bench, second)

    run(tmp_path, context, use)


def test_many_changes_do_not_pile_up(kind, context, tmp_path, monkeypatch):
    monkeypatch.setattr(localtree, "MAX_DEPTH", 3)

    async def use(bench):
        for number in range(8):
            (context / "src/a").write_bytes(b"%d" % number * (number + 1))
            ref = await bench.sync(kind)
            depth = 1
            below = ref.parent
            while below is not None:
                depth, below = depth + 1, below.parent
            assert depth <= 3
            await assert_same(bench, ref)

    run(tmp_path, context, use)


def test_patterns_of_one_sync_do_not_stick(kind, context, tmp_path):
    async def use(bench):
        attrs = {"local.includepattern": '["src"]', "local.excludepatterns": '["**/deep"]'}
        async with (await bench.sync(kind, **attrs)).mounted() as root:
            assert sorted(listing(root)) == [b"src", b"src/a"]
        await assert_same(bench, await bench.sync(kind))

    run(tmp_path, context, use)


def test_without_trust_in_stats_the_content_decides(context, tmp_path):
    async def use(bench):
        first = await bench.sync(Elsewhere, **{"local.differ": "none"})
        same = await bench.sync(Elsewhere, **{"local.differ": "none"})
        assert same.id == first.id
        for name, content in (("bin", b"?!"), ("src/a", b"A"), ("src/deep/b", b"c" * 100_000)):
            stat = (context / name).stat()
            (context / name).write_bytes(content)
            os.utime(context / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        changed = await bench.sync(Elsewhere, **{"local.differ": "none"})
        assert changed.id != first.id
        await assert_same(bench, changed)
        assert (await bench.sync(Elsewhere, **{"local.differ": "none"})).id == changed.id

    run(tmp_path, context, use)


def test_files_too_many_or_too_large_to_hold_are_written_without_trust(
    context, tmp_path, monkeypatch
):
    monkeypatch.setattr(localtree, "_DOUBTFUL_FILES", 2)
    monkeypatch.setattr(localtree, "_DOUBTFUL_BYTES", 1000)

    async def use(bench):
        await bench.sync(Elsewhere)
        for name in ("bin", "src/a", "src/deep/b"):
            content = (context / name).read_bytes()
            stat = (context / name).stat()
            (context / name).write_bytes(content[::-1])
            os.utime(context / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        await assert_same(bench, await bench.sync(Elsewhere, **{"local.differ": "none"}))

    run(tmp_path, context, use)


def test_folders_of_one_name_do_not_push_each_other_out(context, tmp_path):
    """buildctl gives all folders one key: going back to the first must cost nothing."""
    other = tmp_path / "other"
    (other / "lib").mkdir(parents=True)
    for number in range(100):
        (other / f"lib/{number:03}").write_bytes(b"%d" % number)

    async def use(bench):
        first = await bench.sync(Elsewhere)
        bench.context = other
        second = await bench.sync(Elsewhere)
        await assert_same_tree(bench, second)
        bench.context = context
        assert (await bench.sync(Elsewhere)).id == first.id
        (context / "bin").write_bytes(b"changed")
        changed = await bench.sync(Elsewhere)
        await assert_same(bench, changed)
        bench.context = other
        assert (await bench.sync(Elsewhere)).id == second.id
        # What is known of them outlives the process.
        bench.sources = LocalSources(bench.snapshots)
        assert (await bench.sync(Elsewhere)).id == second.id
        bench.context = context
        assert (await bench.sync(Elsewhere)).id == changed.id

    run(tmp_path, context, use)


def indexed(bench):
    """Return the snapshots that the index files of a state folder name."""
    folder = bench.store.root / "contexts"
    lines = [path.read_bytes().partition(b"\n")[0] for path in folder.iterdir()]
    return {line.split()[-1].decode() for line in lines}


def test_the_index_of_a_snapshot_that_is_gone_goes_with_the_next_sync(context, tmp_path):
    other = tmp_path / "other"
    (other / "lib").mkdir(parents=True)

    async def use(bench):
        first = await bench.sync(Elsewhere)
        bench.context = other
        second = await bench.sync(Elsewhere)
        assert indexed(bench) == {first.id, second.id}
        await first.release()
        await bench.snapshots.delete(first.id)
        (other / "file").write_bytes(b"changed")
        third = await bench.sync(Elsewhere)
        assert first.id not in indexed(bench)
        assert third.id in indexed(bench)

    run(tmp_path, context, use)


def test_the_index_of_a_snapshot_that_is_gone_goes_at_the_next_start(kind, context, tmp_path):
    async def use(bench):
        first = await bench.sync(kind)
        second = await bench.sync(kind, **{"local.sharedkeyhint": "of another project"})
        assert indexed(bench) == {first.id, second.id}
        await first.release()
        await bench.snapshots.delete(first.id)
        bench.sources = LocalSources(bench.snapshots)
        assert indexed(bench) == {second.id}
        again = await bench.sync(kind, **{"local.sharedkeyhint": "of another project"})
        assert again.id == second.id

    run(tmp_path, context, use)


def test_more_folders_than_states_are_all_right(context, tmp_path):
    folders = []
    for number in range(6):
        folders.append(tmp_path / f"project-{number}")
        (folders[-1] / f"only-{number}").mkdir(parents=True)
        (folders[-1] / f"only-{number}/file").write_bytes(b"%d" % number)

    async def use(bench):
        for folder in (*folders, *folders):
            bench.context = folder
            await assert_same_tree(bench, await bench.sync(Elsewhere))

    run(tmp_path, context, use)


def test_same_size_and_time_but_other_content_is_seen_in_place(context, tmp_path):
    async def use(bench):
        file = context / "src/deep/b"
        await bench.sync(InProcessSession)
        await bench.sync(InProcessSession)
        file.write_bytes(b"c" * 100_000)
        os.utime(file, ns=(10**18, 10**18))
        await assert_same(bench, await bench.sync(InProcessSession))

    run(tmp_path, context, use)


def test_an_unreadable_context_is_named(kind, context, tmp_path):
    async def use(bench):
        shutil.rmtree(context)
        with pytest.raises(BoxwrightError) as caught:
            await bench.sync(kind)
        assert caught.value.code in {Code.SOURCE_NOT_FOUND, Code.SESSION_LOST}
        assert str(context) in str(caught.value)
        assert list((tmp_path / "state/snapshots").iterdir()) == []

    run(tmp_path, context, use)


def test_two_builds_at_once_share_one_sync(kind, context, tmp_path):
    async def use(bench):
        first, second = await asyncio.gather(bench.sync(kind), bench.sync(kind))
        assert first.id == second.id

    run(tmp_path, context, use)
