"""What is known about a shared folder's last state, so that the next sync finds the changes.

The index of a folder names the snapshot that holds its last state and, for every entry, the
encoded stat and the content digest. It lives in one file that is replaced as a whole; a
missing, older or damaged file only means that everything is transferred again.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from boxwright.core.dataclass import dataclass, field

KIND_FILE, KIND_DIR, KIND_SYMLINK, KIND_OTHER, KIND_HARDLINK = range(5)

# marshal is by far the fastest codec of the standard library for this. Its data is only ever
# our own (checked by a digest) and read by the same interpreter version (part of the header).
_HEADER = b"boxwright-context-1 %x %d\n" % (sys.hexversion, marshal.version)
_DIGEST_BYTES = 32


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
    """

    snapshot_id: str = ""
    depth: int = 0
    entries: dict[bytes, Entry] = field(default_factory=dict)

    def digests(self) -> Iterator[tuple[bytes, Entry]]:
        """Yield path and entry of everything whose content digest is known."""
        for path, entry in self.entries.items():
            if entry.digest:
                yield path, entry


class IndexFiles:
    """The index files of one state folder (blocking; writes are atomic)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.index"

    def load(self, key: str) -> ContextIndex:
        """Return the index of a key; an empty one where there is none that is usable."""
        try:
            raw = self._path(key).read_bytes()
        except FileNotFoundError:
            return ContextIndex()
        body = raw[len(_HEADER) + _DIGEST_BYTES :]
        digest = raw[len(_HEADER) : len(_HEADER) + _DIGEST_BYTES]
        if not raw.startswith(_HEADER) or hashlib.sha256(body).digest() != digest:
            return ContextIndex()
        snapshot_id, depth, entries = marshal.loads(body)  # noqa: S302 - see above
        return ContextIndex(
            snapshot_id, depth, {path: Entry._make(values) for path, values in entries.items()}
        )

    def save(self, key: str, index: ContextIndex) -> None:
        """Replace the index of a key."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entries = {path: tuple(entry) for path, entry in index.entries.items()}
        body = marshal.dumps((index.snapshot_id, index.depth, entries))
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        temporary.write_bytes(_HEADER + hashlib.sha256(body).digest() + body)
        os.replace(temporary, path)

    def forget(self, key: str) -> None:
        """Remove the index of a key."""
        self._path(key).unlink(missing_ok=True)
