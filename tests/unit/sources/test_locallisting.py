"""Entries that are taken over in runs: the same comes of them as of one entry after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.session import packets
from boxwright.session.base import HostileTreeError
from boxwright.session.packets import Stat, decode_stat, encode_stat, split_path, stat_packet
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.localindex import KIND_FILE, ContextIndex, Entry
from boxwright.sources.locallisting import Listing
from boxwright.sources.localtree import LocalTree, kind_of

NO_MANAGER = cast("SnapshotManager", None)
SOME_REF = cast("ImmutableRef", object())
MODES = (0o644, packets.MODE_DIR | 0o755, packets.MODE_SYMLINK | 0o777)


def base_of(stats: Sequence[Stat], *, listed: bool) -> ContextIndex:
    """Return the state in which these entries were named."""
    entries = {}
    for stat in stats:
        path, rest = split_path(encode_stat(stat))
        digest = b"d" * 32 if stat.is_file else b""
        entries[path] = Entry(rest, kind_of(stat), digest)
    index = ContextIndex("snapshot", 1, entries)
    index.listing = Listing(entries) if listed else None
    return index


def name_all(
    base: ContextIndex, stats: Sequence[Stat], cuts: Sequence[int]
) -> tuple[LocalTree, list[int]]:
    """Let a tree be named in batches of so many messages; return it with the wanted numbers."""
    tree = LocalTree(NO_MANAGER, [(base, SOME_REF)], description="")
    raws = [stat_packet(encode_stat(stat)) for stat in stats]
    wanted: list[int] = []
    done = turn = 0
    while done < len(raws):
        batch = raws[done : done + cuts[turn % len(cuts)]]
        turn += 1
        at = 0
        while at < len(batch):
            if count := tree.take_known(batch, at):
                at += count
                continue
            payload = packets.parse_packet(batch[at]).payload
            assert payload is not None
            if tree.add(done + at, payload):
                wanted.append(done + at)
            at += 1
        done += len(batch)
    tree.end()
    return tree, wanted


@st.composite
def trees(draw: st.DrawFn) -> list[Stat]:
    """Folders with files, links and folders in them, in the order of a sender."""
    found: list[Stat] = []
    for folder in draw(st.lists(st.integers(0, 5), unique=True)):
        mode = draw(st.sampled_from(MODES))
        name = b"d%d" % folder
        found.append(stat_of(name, mode, draw(st.integers(1, 2))))
        if mode & packets.MODE_DIR:
            for number in draw(st.lists(st.integers(0, 9), unique=True, max_size=6)):
                path = name + b"/f%d" % number
                found.append(stat_of(path, draw(st.sampled_from(MODES)), draw(st.integers(1, 2))))
    return sorted(found)


def stat_of(path: bytes, mode: int, mtime_ns: int) -> Stat:
    link = b"target" if mode & packets.MODE_SYMLINK else b""
    return Stat(path, mode, mtime_ns=mtime_ns, linkname=link)


@settings(deadline=None)
@given(trees(), trees(), st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_a_tree_in_runs_is_the_tree_entry_by_entry(
    old: list[Stat], new: list[Stat], cuts: list[int]
) -> None:
    check_same(old, new, cuts)


@settings(deadline=None)
@given(trees(), st.data(), st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_a_few_changes_in_runs_are_the_changes_entry_by_entry(
    old: list[Stat], data: st.DataObject, cuts: list[int]
) -> None:
    new = [each for each in old if data.draw(st.integers(0, 5))]
    new = [each._replace(mtime_ns=data.draw(st.integers(1, 9))) for each in new]
    check_same(old, new, cuts)


def outcome(
    base: ContextIndex, stats: Sequence[Stat], cuts: Sequence[int]
) -> tuple[object, ...] | bytes:
    """Return what became of a transfer, or the path at which it was refused."""
    try:
        tree, wanted = name_all(base, stats, cuts)
    except HostileTreeError as error:
        return error.path
    return wanted, list(tree.entries.items()), tree.changed, tree.is_successor


def check_same(old: list[Stat], new: list[Stat], cuts: list[int]) -> None:
    one_by_one = outcome(base_of(old, listed=False), new, [1])
    assert outcome(base_of(old, listed=True), new, cuts) == one_by_one


def test_an_unchanged_tree_is_one_run() -> None:
    stats = [stat_of(b"f%04d" % number, 0o644, 1) for number in range(2000)]
    base = base_of(stats, listed=True)
    raws = [stat_packet(encode_stat(stat)) for stat in stats]
    tree = LocalTree(NO_MANAGER, [(base, SOME_REF)], description="")
    assert tree.take_known(raws, 0) == 2000
    tree.end()
    assert not tree.changed
    assert tree.entries == base.entries


def test_a_run_is_taken_up_again_behind_a_change() -> None:
    stats = [stat_of(b"f%04d" % number, 0o644, 1) for number in range(2000)]
    base = base_of(stats, listed=True)
    changed = [*stats]
    changed[700] = stat_of(b"f0700", 0o644, 2)
    del changed[900:910]
    changed.insert(1500, stat_of(changed[1499].path + b"x", 0o644, 1))
    raws = [stat_packet(encode_stat(stat)) for stat in changed]
    tree = LocalTree(NO_MANAGER, [(base, SOME_REF)], description="")
    at, added = 0, 0
    while at < len(raws):
        count = tree.take_known(raws, at)
        if not count:
            tree.add(at, packets.parse_packet(raws[at]).payload or b"")
            added += 1
        at += count or 1
    assert added == 3  # changed, behind the removed ones, new
    tree.end()
    assert list(tree.entries) == [stat.path for stat in changed]


@pytest.mark.parametrize("trust_stats", [True, False])
def test_only_trusted_stats_make_runs(trust_stats: bool) -> None:
    stats = [stat_of(b"a", 0o644, 1)]
    tree = LocalTree(
        NO_MANAGER,
        [(base_of(stats, listed=True), SOME_REF)],
        description="",
        trust_stats=trust_stats,
    )
    assert tree.take_known([stat_packet(encode_stat(stats[0]))], 0) == int(trust_stats)


def test_a_state_with_hard_links_has_no_runs() -> None:
    stats = [Stat(b"a", 0o644, size=1), Stat(b"b", 0o644, size=1, linkname=b"a")]
    base = base_of(stats, listed=True)
    assert base.listing is not None
    assert not base.listing.packets


def test_a_folder_that_became_a_file_has_nothing_below_it() -> None:
    old = [stat_of(b"d", MODES[1], 1), stat_of(b"d/a", 0o644, 1), stat_of(b"d/b", 0o644, 1)]
    with pytest.raises(HostileTreeError) as caught:
        name_all(base_of(old, listed=True), [stat_of(b"d", 0o644, 1), *old[1:]], [9])
    assert caught.value.path == b"d/a"


def test_a_run_that_comes_again_is_named_twice() -> None:
    old = [stat_of(b"a", 0o644, 1), stat_of(b"b", 0o644, 1), stat_of(b"c", 0o644, 1)]
    with pytest.raises(HostileTreeError) as caught:
        name_all(base_of(old, listed=True), [*old, *old], [2])
    assert caught.value.path == b"a"


def test_entries_are_encoded_as_senders_do() -> None:
    stat = Stat(b"long/" + b"n" * 150, 0o644, size=300, mtime_ns=-5, xattrs={b"user.x": b"y"})
    path, rest = split_path(encode_stat(stat))
    listing = Listing({path: Entry(rest, KIND_FILE)})
    payload = packets.parse_packet(listing.packets[0]).payload
    assert payload is not None
    assert decode_stat(payload) == stat
