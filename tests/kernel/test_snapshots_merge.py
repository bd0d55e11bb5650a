"""Merges, diffs and changes of snapshots over real overlay mounts."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest
from snapshot_trees import commit, contents, layer_changes, put

from boxwright.linux import mount
from boxwright.linux.files import disk_usage
from boxwright.snapshots import (
    ImmutableRef,
    SnapshotManager,
    links,
    preparation,
    tree_changes,
)
from boxwright.snapshots import manager as snapshots_manager
from boxwright.snapshots.diff import write_layer
from boxwright.snapshots.linkcopy import LinkCopier
from boxwright.snapshots.verify import find_tree_problems
from boxwright.store import DiskFullError, Store

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "root")
    yield opened
    assert mount.list_mounts(opened.root) == [], "mounts were left"
    opened.close(drain_trash=True)


# -- merge and diff --------------------------------------------------------------------


def test_merge_of_independent_trees_stacks_them(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        first = await commit(manager, None, put(a="1", dir__x="1"))
        second = await commit(manager, None, put(b="2", dir__x="2", dir__y="2"))
        merged = manager.merge([first, second])
        assert await contents(merged) == {"a": "1", "b": "2", "dir/x": "2", "dir/y": "2"}
        assert not (store.root / "snapshots" / merged.id).exists()
        assert [layer.snapshot_id for layer in await merged.layers()] == [first.id, second.id]
        top = await commit(manager, merged, put(a=None))
        assert await contents(top) == {"b": "2", "dir/x": "2", "dir/y": "2"}
        assert (await layer_changes(top))[-1] == [("a", "delete")]
        assert manager.merge([first]).id == first.id

    asyncio.run(scenario())


def test_files_of_one_origin_are_separate_in_a_merge(store):
    async def linked(manager: SnapshotManager, source: Path, name: str) -> ImmutableRef:
        tree = manager.new(None, description="copy")
        async with tree.mounted() as root:
            copier = LinkCopier()
            copier.copy(source, root / name)
            assert copier.linked
            tree.note_links([source.parent])
        return await tree.commit()

    async def scenario():
        manager = SnapshotManager.open(store)
        origin = await commit(manager, None, put(a="1", b="2"))
        layer = manager.folder(origin.id) / "fs"
        first = await linked(manager, layer / "a", "first")
        second = await linked(manager, layer / "a", "second")
        other = await linked(manager, layer / "b", "other")
        apart = manager.merge([first, other])
        assert await contents(apart) == {"first": "1", "other": "2"}
        assert not (store.root / "snapshots" / apart.id).exists()  # stacked as they are
        for inputs in ([first, second], [other, first, second], [first, other, second]):
            merged = manager.merge(inputs)
            async with merged.mounted() as root:
                found = {path.name: path.lstat().st_ino for path in root.iterdir()}
            assert len(set(found.values())) == len(inputs), found
            wanted = {"first": "1", "second": "1", "other": "2"}
            assert await contents(merged) == {name: wanted[name] for name in found}
            assert len(await merged.layers()) == len(inputs)
        assert find_tree_problems(store) == []

    asyncio.run(scenario())


def test_diff_of_a_chain_is_its_further_layers_and_merges_with_its_deletions(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1", b="1", dir__x="1"))
        top = await commit(manager, base, put(a=None, dir__x=None, dir__new="1", c="1"))
        difference = manager.diff(base, top)
        assert [layer.snapshot_id for layer in await difference.layers()] == [top.id]
        assert await contents(difference) == {"c": "1", "dir/new": "1"}
        other = await commit(manager, None, put(a="other", dir__x="other", keep="other"))
        merged = manager.merge([other, difference])
        assert await contents(merged) == {"c": "1", "dir/new": "1", "keep": "other"}
        following = await commit(manager, merged, put(z="1"))
        assert (await contents(following))["keep"] == "other"

    asyncio.run(scenario())


def test_a_folder_that_was_only_made_hides_nothing_in_a_merge(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        top = await commit(manager, base, put(etc__mine="1"))  # overlayfs marks etc opaque
        other = await commit(manager, None, put(etc__theirs="1"))
        merged = manager.merge([other, manager.diff(base, top)])
        assert await contents(merged) == {"etc/mine": "1", "etc/theirs": "1"}

    asyncio.run(scenario())


def copy_up(root: Path) -> None:
    """Leave a file in the layer that is none of its changes."""
    put(etc__mine="1")(root)
    os.close(os.open(root / "a", os.O_RDWR))


def test_what_a_layer_changes_is_counted_and_known_once_it_is_apart(store):
    def folder_size(snapshot_id: str) -> int:
        return disk_usage(store.root / "snapshots" / snapshot_id)

    async def sizes(manager: SnapshotManager) -> dict[str, int | None]:
        return {record.id: record.size_bytes for record in await manager.usage()}

    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        top = await commit(manager, base, copy_up)
        other = await commit(manager, None, put(etc__theirs="1"))
        before = (await sizes(manager))[top.id]
        merged = manager.merge([other, manager.diff(base, top)])
        async with merged.mounted():
            assert sorted(os.listdir(store.root / "snapshots" / top.id)) == ["fs", "pure"]
        assert before != folder_size(top.id)
        assert (await sizes(manager))[top.id] == folder_size(top.id)
        assert find_tree_problems(store) == []
        again = SnapshotManager.open(store)
        assert os.listdir(store.root / "snapshots" / top.id) == ["fs"]
        assert find_tree_problems(store) == []
        assert (await sizes(again))[top.id] == folder_size(top.id) == before

    asyncio.run(scenario())


def test_a_size_that_grows_while_it_is_counted_is_counted_again(store, monkeypatch):
    counted, grown = threading.Event(), threading.Event()

    def count(trees: object) -> list[links.Counted]:
        found = links.count(trees)  # type: ignore[arg-type]
        counted.set()
        assert grown.wait(60)
        return found

    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        top = await commit(manager, base, copy_up)
        other = await commit(manager, None, put(etc__theirs="1"))
        with monkeypatch.context() as patch:
            patch.setattr(snapshots_manager, "count", count)
            counting = asyncio.ensure_future(manager.usage())
            assert await asyncio.to_thread(counted.wait, 60)
            await contents(manager.merge([other, manager.diff(base, top)]))
            grown.set()
            await counting
        size = disk_usage(store.root / "snapshots" / top.id)
        assert {each.id: each.size_bytes for each in await manager.usage()}[top.id] == size

    asyncio.run(scenario())


def test_a_layer_that_can_not_be_set_apart_is_counted_with_what_was_written(store, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        write_layer(*args, **kwargs)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "no space left")

    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        top = await commit(manager, base, copy_up)
        other = await commit(manager, None, put(etc__theirs="1"))
        await manager.usage()
        merged = manager.merge([other, manager.diff(base, top)])
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "write_layer", fail)
            with pytest.raises(DiskFullError):
                await contents(merged)
        size = disk_usage(store.root / "snapshots" / top.id)
        assert {each.id: each.size_bytes for each in await manager.usage()}[top.id] == size
        assert await contents(merged) == {"etc/mine": "1", "etc/theirs": "1"}
        assert find_tree_problems(store) == []

    asyncio.run(scenario())


def test_the_same_layers_twice_in_a_merge(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="base", b="base"))
        left = await commit(manager, base, put(a="left"))
        right = await commit(manager, base, put(b=None, c="right"))
        merged = manager.merge([left, right])
        # The base of the second input goes over the first one again, as upstream does it.
        assert await contents(merged) == {"a": "base", "c": "right"}
        assert len(await merged.layers()) == 4

    asyncio.run(scenario())


def test_diff_of_unrelated_trees_is_computed(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        lower = await commit(manager, None, put(a="1", b="1", gone__x="1", same="1"))
        base = await commit(manager, None, put(a="changed", new__y="1"))

        def keep_same(root: Path) -> None:
            (root / "same").write_text("1")
            (root / "b").mkdir()
            (root / "b" / "now-a-folder").write_text("1")
            when = lower_same.st_mtime_ns
            os.utime(root / "same", ns=(when, when))

        async with lower.mounted() as root:
            lower_same = (root / "same").stat()
        upper = await commit(manager, base, keep_same)
        difference = manager.diff(lower, upper)
        assert await contents(difference) == {
            "a": "changed",
            "b/now-a-folder": "1",
            "new/y": "1",
        }
        assert [sorted(layer) for layer in await layer_changes(difference)] == [
            [
                ("a", "modify"),
                ("b", "modify"),
                ("b/now-a-folder", "add"),
                ("gone", "delete"),
                ("new", "add"),
                ("new/y", "add"),
            ]
        ]
        assert await contents(manager.merge([lower, difference])) == {
            "a": "changed",
            "b/now-a-folder": "1",
            "new/y": "1",
            "same": "1",
        }
        nothing = manager.diff(lower, None)
        assert await contents(nothing) == {}
        assert await contents(manager.merge([upper, nothing])) == {"new/y": "1"}

    asyncio.run(scenario())


def test_diff_of_equal_trees_is_empty(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        difference = manager.diff(base, base)
        assert await contents(difference) == {}
        assert await difference.layers() == []
        assert await contents(manager.merge([base, difference])) == {"a": "1"}
        assert manager.diff(None, base).id == base.id

    asyncio.run(scenario())


def test_flattening_links_files_instead_of_copying(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1", gone="1"))
        top = await commit(manager, base, put(gone=None, new="1"))
        other = await commit(manager, None, put(gone="1"))
        merged = manager.merge([other, manager.diff(base, top)])
        assert await contents(merged) == {"new": "1"}
        snapshots = store.root / "snapshots"
        source = (snapshots / top.id / "fs" / "new").stat()
        assert (snapshots / merged.id / "view" / "new").stat().st_ino == source.st_ino

    asyncio.run(scenario())


# -- changes ---------------------------------------------------------------------------


def test_a_replaced_folder_is_compared_with_what_it_hides(store):
    async def scenario():
        manager = SnapshotManager.open(store)

        def base_files(root: Path) -> None:
            put(dir__same="1", dir__gone="1", dir__sub__x="1", link="1")(root)
            for path in root.rglob("*"):
                os.utime(path, (1, 1))

        def replace(root: Path) -> None:
            subprocess.run(["rm", "-rf", str(root / "dir")], check=True)
            put(dir__same="1", dir__new="1", link=None)(root)
            os.utime(root / "dir" / "same", (1, 1))
            (root / "link").mkdir()

        base = await commit(manager, None, base_files)
        top = await commit(manager, base, replace)
        assert (await layer_changes(top))[1] == [
            ("dir/gone", "delete"),
            ("dir/new", "add"),
            ("dir/sub", "delete"),
            ("link", "modify"),
        ]

    asyncio.run(scenario())


def test_an_untouched_parent_folder_is_not_a_change(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a__b__c="1"))
        top = await commit(manager, base, put(a__b__d="1"))
        assert (await layer_changes(top))[1] == [("a/b/d", "add")]
        mode = await commit(manager, base, lambda root: (root / "a").chmod(0o700))
        assert (await layer_changes(mode))[1] == [("a", "modify")]

    asyncio.run(scenario())


def test_comparing_trees_reads_content_only_where_times_prove_nothing(tmp_path):
    for name, content, when in (("l", "old", 5), ("u", "new", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cut").write_text(content)
        os.utime(tmp_path / name / "cut", (when, when))
        (tmp_path / name / "precise").write_text(content)
        os.utime(tmp_path / name / "precise", ns=(5_000_000_001, 5_000_000_001))
    found = [(c.path, c.kind) for c in tree_changes(tmp_path / "l", tmp_path / "u")]
    assert found == [(b"cut", "modify")]


def test_what_a_layer_touched_and_left_as_it_was_is_no_part_of_it_elsewhere(store):
    def touch(root: Path) -> None:
        (root / "etc/stub").touch()
        (root / "etc/stub").unlink()
        kept = (root / "kept").stat()
        (root / "kept").write_text("1")
        os.utime(root / "kept", ns=(kept.st_atime_ns, kept.st_mtime_ns))
        (root / "new").write_text("2")

    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(etc__passwd="root", kept="1"))
        step = await commit(manager, base, touch)
        async with manager.diff(base, step).mounted() as root:
            assert {path.name for path in root.iterdir()} == {"new"}
        other = await commit(manager, None, put(etc__hosts="h", kept="other"))
        merged = manager.merge([other, manager.diff(base, step)])
        assert await contents(merged) == {"etc/hosts": "h", "kept": "other", "new": "2"}
        assert await contents(step) == {"etc/passwd": "root", "kept": "1", "new": "2"}

    asyncio.run(scenario())


def test_a_folder_over_a_file_does_not_show_the_folder_under_it(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(x="0"))
        under = await commit(manager, base, put(dir__a="1"))
        file = await commit(manager, None, put(dir="file"))
        over = await commit(manager, base, put(dir__b="2"))
        merged = manager.merge([under, file, over])
        assert await contents(merged) == {"x": "0", "dir/b": "2"}

    asyncio.run(scenario())
