"""Files that snapshots share by hard link are counted once, whoever is deleted first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from boxwright.linux.files import disk_usage
from boxwright.snapshots import SnapshotManager
from boxwright.snapshots.deletion import delete_many
from boxwright.snapshots.linkcopy import LinkCopier
from boxwright.snapshots.links import own_size
from boxwright.snapshots.verify import find_tree_problems
from boxwright.store import Store

FILE = 8192


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "root")
    yield opened
    opened.close(drain_trash=True)


@pytest.fixture
def manager(store: Store) -> SnapshotManager:
    return SnapshotManager.open(store, backend="native")


async def make(
    manager: SnapshotManager, files: Sequence[str] = (), linked: Sequence[tuple[str, str]] = ()
) -> str:
    """Commit a tree of new files and of links to files of other snapshots."""
    tree = manager.new(None, description="tree")
    copier = LinkCopier()
    async with tree.mounted() as root:
        for name in files:
            (root / name).write_bytes(b"x" * FILE)
        for source, name in linked:
            layer = manager.folder(source) / "fs"
            copier.copy(layer / name, root / name)
            tree.note_links([layer])
    assert copier.linked == len(linked)
    ref = await tree.commit()
    await ref.release()
    return ref.id


async def sizes(manager: SnapshotManager) -> dict[str, int]:
    """Return how many files are counted in each snapshot; together they are what is there."""
    found = {record.id: record.size_bytes or 0 for record in await manager.usage()}
    await asyncio.to_thread(manager.store.trash.drain)
    folder = manager.store.root / "snapshots"
    outer = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert sum(found.values()) + outer == disk_usage(folder)
    return {key: size // FILE for key, size in found.items()}


def test_copies_by_link_count_where_they_came_from(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        context = await make(manager, ["a", "b"])
        copy = await make(manager, ["own"], [(context, "a"), (context, "b")])
        assert await sizes(manager) == {context: 2, copy: 1}

    asyncio.run(scenario())


def test_a_snapshot_counts_as_before_when_others_link_to_it(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        context = await make(manager, ["a"])
        middle = await make(manager, ["m"], [(context, "a")])
        top = await make(manager, [], [(middle, "a"), (middle, "m")])  # counted for the first time
        assert await sizes(manager) == {context: 1, middle: 1, top: 0}

    asyncio.run(scenario())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
def test_files_live_on_in_those_that_are_left(
    manager: SnapshotManager, order: tuple[int, ...]
) -> None:
    async def scenario() -> None:
        context = await make(manager, ["a", "b"])
        first = await make(manager, ["f"], [(context, "a"), (context, "b")])
        second = await make(manager, [], [(context, "a"), (context, "b")])
        third = await make(manager, ["t"], [(context, "b"), (first, "a"), (first, "f")])
        trees = [context, first, second, third]
        await sizes(manager)
        for number in order:
            used = disk_usage(manager.store.root / "snapshots")
            freed = await manager.delete(trees[number])
            await sizes(manager)
            folder = used - disk_usage(manager.store.root / "snapshots") - freed
            assert 0 <= folder < FILE  # the folder of the snapshot itself
        assert manager.store.db.execute("SELECT * FROM snapshot_links") == []

    asyncio.run(scenario())


def test_those_that_are_left_may_share_what_the_oldest_lacks(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        context = await make(manager, ["a", "b", "c"])
        oldest = await make(manager, [], [(context, "c")])
        both = await make(manager, [], [(context, "a"), (context, "b")])
        one = await make(manager, [], [(context, "b")])
        assert await sizes(manager) == {context: 3, oldest: 0, both: 0, one: 0}
        await manager.delete(context)
        assert await sizes(manager) == {oldest: 1, both: 2, one: 0}
        assert manager.table.links.sources(one) == [both]
        assert (await manager.delete(both)) // FILE == 1
        assert await sizes(manager) == {oldest: 1, one: 1}

    asyncio.run(scenario())


def test_batches(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        context = await make(manager, ["a"])
        copies = [await make(manager, [], [(context, "a")]) for _ in range(3)]
        found = await delete_many(manager, [context, copies[0]])
        assert found[context] // FILE == 1
        assert found[copies[0]] // FILE == 0
        assert await sizes(manager) == {copies[1]: 1, copies[2]: 0}

    asyncio.run(scenario())


def test_sources_that_share_nothing_are_forgotten(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        base, other = await make(manager, ["a"]), await make(manager, ["b"])
        copy = await make(manager, [], [(base, "a")])
        manager.table.links.add(copy, [other, "never-there", copy])
        assert set(manager.table.links.sources(copy)) == {base, other}
        await manager.usage()
        assert manager.table.links.sources(copy) == [base]

    asyncio.run(scenario())


def test_merges_count_what_their_inputs_lack(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        lower = manager.new(None, description="lower")
        async with lower.mounted() as root:
            (root / "a").write_bytes(b"x" * FILE)
            (root / "gone").write_bytes(b"x" * FILE)
        base = await lower.commit()
        upper = manager.new(base, description="upper")
        async with upper.mounted() as root:
            (root / "gone").unlink()
            (root / "b").write_bytes(b"x" * FILE)
        top = await upper.commit()
        async with (
            manager.diff(base, top) as changes,
            manager.merge([base, changes]) as merged,
            merged.mounted() as root,
        ):
            assert {path.name for path in root.iterdir()} >= {"a", "b"}
        for ref in (top, base):
            await ref.release()
        found = await sizes(manager)
        assert sum(found.values()) == 3

    asyncio.run(scenario())


def test_a_check_of_the_store_agrees(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        context = await make(manager, ["a", "b"])
        await make(manager, ["own"], [(context, "a")])
        await manager.usage()
        assert [each.kind for each in find_tree_problems(manager.store)] == []

    asyncio.run(scenario())


def test_links_inside_a_tree_count_once(tmp_path: Path) -> None:
    tree, other = tmp_path / "tree", tmp_path / "other"
    (tree / "folder").mkdir(parents=True)
    other.mkdir()
    (tree / "a").write_bytes(b"x" * FILE)
    (tree / "folder/b").hardlink_to(tree / "a")
    alone = own_size(tree)
    assert alone // FILE == 1
    (other / "c").hardlink_to(tree / "a")
    assert own_size(tree, [other, tmp_path / "missing"]) == alone - FILE
    assert own_size(tmp_path / "missing", [other]) == 0


def test_what_a_tree_has_already_is_taken(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        origin = await make(manager, ["a", "b", "alone"])
        copied = await make(manager, linked=[(origin, "a")])
        again = await make(manager, linked=[(copied, "a"), (origin, "b")])
        stranger = await make(manager, ["a"])

        def layer(snapshot_id: str) -> Path:
            return manager.folder(snapshot_id) / "fs"

        def taken(name: str, below: Sequence[str]) -> bool:
            found = manager.taken(
                [layer(stranger), layer(origin)], [layer(each) for each in below]
            )
            return found((layer(origin) / name).lstat(), 1)

        # Of a relative by two steps, what it has; of others nothing; of the layer itself all.
        assert [taken(name, [again]) for name in ("a", "b", "alone")] == [True, True, False]
        assert [taken(name, [copied]) for name in ("a", "b", "alone")] == [True, False, False]
        assert not taken("a", [stranger, await make(manager, ["z"])])
        assert taken("alone", [origin])
        assert manager.table.links.family([copied]) == {origin, copied, again}
        assert manager.table.links.family([stranger]) == set()

    asyncio.run(scenario())
