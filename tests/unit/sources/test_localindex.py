"""Which of a folder's known states a transfer is a change of, and where states are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwright.session.packets import MalformedPacketError, Stat, encode_stat, split_path
from boxwright.sources.localindex import (
    KIND_FILE,
    STATES_PER_KEY,
    ContextIndex,
    Entry,
    IndexFiles,
    closest,
)


def stats(prefix: str, count: int, mtime_ns: int = 1) -> list[bytes]:
    names = [f"{prefix}{number:03}".encode() for number in range(count)]
    return [encode_stat(Stat(name, 0o644, size=1, mtime_ns=mtime_ns)) for name in names]


def state(raws: list[bytes], slot: int = 0) -> ContextIndex:
    entries = {path: Entry(rest, KIND_FILE) for path, rest in map(split_path, raws)}
    return ContextIndex("snapshot", 1, entries, slot)


def test_the_state_that_shares_most_is_chosen() -> None:
    one, other = stats("a", 10), stats("b", 10)
    known = [state(other), state(one[:5] + other[:2]), state(one[:9])]
    assert closest(known, one, complete=True) == 2


def test_of_equals_the_last_used_is_chosen_unless_all_is_named() -> None:
    few, many = stats("a", 10), stats("a", 500)
    known = [state(many), state(few)]
    assert closest(known, few, complete=True) == 1
    assert closest(known, many[:10], complete=False) == 0


def test_a_tree_whose_every_file_was_touched_is_still_the_same_tree() -> None:
    assert closest([state(stats("b", 9)), state(stats("a", 9))], stats("a", 9, 2), complete=True)


def test_a_tree_with_hardly_anything_in_common_starts_afresh() -> None:
    same, other = stats("a", 1), stats("b", 20)
    assert closest([state(same + stats("c", 50))], same + other, complete=True) is None
    assert closest([], other, complete=True) is None


def test_unchanged_files_outweigh_known_names() -> None:
    before, after = stats("a", 10, 1), stats("a", 10, 2)
    assert closest([state(before), state(after[:3])], after, complete=False) == 1


def test_a_damaged_stat_is_an_error() -> None:
    with pytest.raises(MalformedPacketError):
        closest([state(stats("a", 1))], [b"\x0a\x7fshort"], complete=True)


def test_states_are_kept_side_by_side_and_read_newest_first(tmp_path: Path) -> None:
    files = IndexFiles(tmp_path / "contexts")
    for slot in range(STATES_PER_KEY):
        files.save("key", state(stats("a", slot + 1), slot))
    files.save("other", state(stats("b", 1)))
    times = {0: 30, 1: 10, 2: 40, 3: 20}
    for slot, at in times.items():
        os.utime(files._path("key", slot), (at, at))
    assert [each.slot for each in files.load("key")] == [2, 0, 3, 1]
    assert files.load("key")[0].entries == state(stats("a", 3)).entries
    files.forget("key", [2, 0])
    files.forget("key", [2])
    assert [each.slot for each in files.load("key")] == [3, 1]
    assert len(files.load("other")) == 1


def test_what_nobody_can_use_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "contexts"
    files = IndexFiles(folder)
    files.prune(lambda _: True)  # nothing was ever saved
    assert not folder.exists()
    files.save("key", ContextIndex("there", 1, {}, 0))
    files.save("key", ContextIndex("gone", 1, {}, 1))
    kept = os.listdir(folder)
    raw = files._path("key", 0).read_bytes()
    (folder / "0123.0.4711.partial").write_bytes(raw)
    (folder / "0123.index").write_bytes(raw.replace(b"-2 ", b"-1 ", 1))
    (folder / "0123.0.index").write_bytes(raw[:10])
    files.prune({"there"}.__contains__)
    assert [each.snapshot_id for each in files.load("key")] == ["there"]
    assert os.listdir(folder) == [name for name in kept if ".0." in name]


def test_an_index_of_another_snapshot_is_not_taken(tmp_path: Path) -> None:
    files = IndexFiles(tmp_path)
    files.save("key", ContextIndex("one", 1, {}))
    path = files._path("key", 0)
    path.write_bytes(path.read_bytes().replace(b"one\n", b"two\n"))
    assert files.load("key") == []


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    files = IndexFiles(tmp_path)
    files.save("key", state(stats("a", 3)))
    path = files._path("key", 0)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"x")
    assert files.load("key") == []
    path.write_bytes(b"")
    assert files.load("key") == []
