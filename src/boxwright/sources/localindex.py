"""What is known about a shared folder's last states, so that the next sync finds the changes.

The index of a state names the snapshot that holds it and, for every entry, the encoded stat
and the content digest. It lives in one file that is replaced as a whole; a missing, older or
damaged file only means that everything is transferred again. A file goes when a sync finds
its snapshot gone, or at the next start.

Clients may call all folders by one key (buildctl does), and one folder is asked for with other
patterns by other steps. So several states are kept for each key, and the first entries of a
transfer tell which of them it is a change of.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from boxwright.core.dataclass import dataclass, field
from boxwright.session.packets import split_path

if TYPE_CHECKING:
    from boxwright.sources.locallisting import Listing

KIND_FILE, KIND_DIR, KIND_SYMLINK, KIND_OTHER, KIND_HARDLINK = range(5)

# marshal is by far the fastest codec of the standard library for this. Its data is only ever
# our own (checked by a digest) and read by the same interpreter version (part of the header).
# The first line ends with the snapshot's id, so that one read tells whether a file is of use.
_HEADER = b"boxwright-context-2 %x %d " % (sys.hexversion, marshal.version)
_LONGEST_LINE = 256
_DIGEST_BYTES = 32
STATES_PER_KEY = 4
_SAME_SHARE = 8  # of the first entries, one in so many must be unchanged,
_KNOWN_SHARE = 2  # or one in so many known by name


class Entry(NamedTuple):
    """One entry of the last state.

    Attributes:
        rest: The encoded stat without its path.
        kind: ``KIND_*``.
        digest: Content digest of a file (sha256 of tarsum header and content), else empty.
        inode: Of the user's file where it was read in place, else 0.
        ctime_ns: Its change time; 0 says that the stat alone must not be trusted.
    """

    rest: bytes
    kind: int
    digest: bytes = b""
    inode: int = 0
    ctime_ns: int = 0


@dataclass(slots=True)
class ContextIndex:
    """The last state of one shared folder.

    Attributes:
        snapshot_id: The snapshot that holds it; empty for nothing yet.
        depth: How many incremental layers that snapshot consists of.
        entries: By path.
        slot: Which of the files of its key it is in.
        listing: How its entries were named, if a transfer needed to know; in memory only.
    """

    snapshot_id: str = ""
    depth: int = 0
    entries: dict[bytes, Entry] = field(default_factory=dict)
    slot: int = 0
    listing: Listing | None = None

    def digests(self) -> Iterator[tuple[bytes, Entry]]:
        """Yield path and entry of everything whose content digest is known."""
        for path, entry in self.entries.items():
            if entry.digest:
                yield path, entry


def closest(
    states: Sequence[ContextIndex], first: Sequence[bytes], *, complete: bool
) -> int | None:
    """Return which state a tree is a change of, by the first of its encoded stats.

    Args:
        states: What is known; between equals the first one wins.
        first: The encoded stats, with their paths.
        complete: Whether these are all. Of states that hold them all, the one that holds
            little else is then the better one.

    Returns:
        Index into ``states``; None if none of them has much in common with the tree.

    Raises:
        MalformedPacketError: a stat is damaged.
    """
    named = [split_path(raw) for raw in first]
    best, best_score = None, (0, 0, 0)
    for at, state in enumerate(states):
        found = [(state.entries.get(path), rest) for path, rest in named]
        same = sum(entry is not None and entry.rest == rest for entry, rest in found)
        known = sum(entry is not None for entry, _ in found)
        # A tree whose every file was touched is still a change of what it was before.
        if same * _SAME_SHARE < len(first) and known * _KNOWN_SHARE < len(first):
            continue
        score = (same, known, -len(state.entries) if complete else 0)
        if best is None or score > best_score:
            best, best_score = at, score
    return best


class IndexFiles:
    """The index files of one state folder (blocking; writes are atomic)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str, slot: int) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.{slot}.index"

    def load(self, key: str) -> list[ContextIndex]:
        """Return the usable indexes of a key, the one that was saved last first."""
        found: list[tuple[int, ContextIndex]] = []
        for slot in range(STATES_PER_KEY):
            path = self._path(key, slot)
            try:
                index = self._parse(path.read_bytes(), slot)
                saved_ns = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if index is not None:
                found.append((saved_ns, index))
        found.sort(key=lambda each: each[0], reverse=True)
        return [index for _, index in found]

    @staticmethod
    def _parse(raw: bytes, slot: int) -> ContextIndex | None:
        snapshot_id = _snapshot_of(raw[:_LONGEST_LINE])
        if not snapshot_id:
            return None
        begin = len(_first_line(snapshot_id))
        body = raw[begin + _DIGEST_BYTES :]
        if _digest(snapshot_id, body) != raw[begin : begin + _DIGEST_BYTES]:
            return None
        depth, entries = marshal.loads(body)  # noqa: S302 - see above
        return ContextIndex(
            snapshot_id,
            depth,
            {path: Entry._make(values) for path, values in entries.items()},
            slot,
        )

    def save(self, key: str, index: ContextIndex) -> None:
        """Put an index into its slot of a key."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entries = {path: tuple(entry) for path, entry in index.entries.items()}
        body = marshal.dumps((index.depth, entries))
        path = self._path(key, index.slot)
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        with temporary.open("wb") as file:
            file.write(_first_line(index.snapshot_id) + _digest(index.snapshot_id, body))
            file.write(body)
        os.replace(temporary, path)

    def forget(self, key: str, slots: Iterable[int]) -> None:
        """Remove some indexes of a key."""
        for slot in slots:
            self._path(key, slot).unlink(missing_ok=True)

    def prune(self, is_there: Callable[[str], bool]) -> None:
        """Remove what can't be of use to anybody; only while nobody saves.

        Args:
            is_there: Whether there is a snapshot with this id.
        """
        if not self._folder.exists():
            return
        for path in list(self._folder.iterdir()):
            if path.suffix == ".index":  # others are unfinished
                with path.open("rb") as file:
                    snapshot_id = _snapshot_of(file.read(_LONGEST_LINE))
                if snapshot_id and is_there(snapshot_id):
                    continue
            path.unlink()


def _first_line(snapshot_id: str) -> bytes:
    return _HEADER + snapshot_id.encode() + b"\n"


def _digest(snapshot_id: str, body: bytes) -> bytes:
    hasher = hashlib.sha256(snapshot_id.encode())
    hasher.update(body)
    return hasher.digest()


def _snapshot_of(head: bytes) -> str:
    """Return whose index begins like this; empty if it is not one that can be read."""
    line, end, _ = head.partition(b"\n")
    if not end or not line.startswith(_HEADER):
        return ""
    return line.removeprefix(_HEADER).decode(errors="replace")
