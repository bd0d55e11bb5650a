"""A state of a shared folder as its sender named it: what is unchanged is compared, not parsed.

A sender names all entries in every build, and in most builds none has changed, or a few have.
So the state keeps the messages that named its entries, and equal messages name equal entries: a
run of them costs one comparison of two lists.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property

from boxwright.core.dataclass import dataclass
from boxwright.session.packets import join_path, stat_packet
from boxwright.session.treewrite import NamedRun
from boxwright.sources.localindex import (
    KIND_DIR,
    KIND_FILE,
    KIND_HARDLINK,
    KIND_OTHER,
    Entry,
)

_WINDOW = 512
"""So many messages are compared at once: a difference costs no more than their copy."""


class Listing:
    """The entries of one state in the order in which they were named.

    Args:
        entries: By path.
        packets: The stat packet of each. None: made anew, as most senders would write them. With
            hard links among the entries there are none: whether such an entry is the same
            depends on the file that it is another name of.
    """

    def __init__(
        self, entries: Mapping[bytes, Entry], packets: Sequence[bytes] | None = None
    ) -> None:
        self._entries = entries
        if packets is None:
            packets = [stat_packet(join_path(path, each.rest)) for path, each in entries.items()]
        is_plain = all(entry.kind != KIND_HARDLINK for entry in entries.values())
        self.packets: Sequence[bytes] = packets if is_plain else ()

    def common(self, at: int, batch: Sequence[bytes], start: int) -> int:
        """Return how many messages of ``batch`` from ``start`` on are those from ``at`` on."""
        packets = self.packets
        if at >= len(packets) or packets[at] != batch[start]:
            return 0
        found = 0
        while True:
            ours = packets[at + found : at + found + _WINDOW]
            theirs = batch[start + found : start + found + _WINDOW]
            if ours != theirs:
                for mine, other in zip(ours, theirs, strict=False):
                    if mine != other:
                        break
                    found += 1
                return found
            found += len(ours)
            if len(ours) < _WINDOW:
                return found

    def place(self, path: bytes) -> int | None:
        """Return the number of an entry."""
        return self._places.get(path)

    def run(self, begin: int, end: int) -> tuple[dict[bytes, Entry], NamedRun]:
        """Return the entries of these numbers, and what there is to check about their names."""
        columns = self._columns
        items = columns.items[begin:end]
        entries = dict(items)
        folders = columns.folders[bisect_left(columns.folders, begin) :]
        no_files = columns.no_files[bisect_left(columns.no_files, begin) :]
        named = NamedRun(
            tuple(entries),
            frozenset(items[each - begin][0] for each in folders if each < end),
            frozenset(items[each - begin][0] for each in no_files if each < end),
            frozenset(columns.parents[begin:end]),
        )
        return entries, named

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {path: number for number, path in enumerate(self._entries)}

    @cached_property
    def _columns(self) -> _Columns:
        items = list(self._entries.items())
        kinds = [entry.kind for _, entry in items]
        return _Columns(
            items,
            [path.rpartition(b"/")[0] for path, _ in items],
            [number for number, kind in enumerate(kinds) if kind == KIND_DIR],
            [n for n, kind in enumerate(kinds) if kind not in {KIND_FILE, KIND_OTHER}],
        )


@dataclass(frozen=True, slots=True)
class _Columns:
    """Entries with their paths, the folder of each, and the numbers of folders and no files."""

    items: list[tuple[bytes, Entry]]
    parents: list[bytes]
    folders: list[int]
    no_files: list[int]
