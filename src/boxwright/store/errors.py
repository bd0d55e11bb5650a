"""Failures of the state folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code


class StoreLockedError(BoxwrightError):
    """Another process owns the state folder.

    Args:
        root: The state folder.
        pid: The owner's process id, ``None`` if it left none.
    """

    code = Code.STORE_LOCKED

    def __init__(self, root: Path, pid: int | None) -> None:
        owner = f"process {pid}" if pid else "another process"
        super().__init__(
            f"the state folder {root} is in use by {owner}",
            hint="wait for it to end, talk to it through its socket, or choose another --root",
        )
        self.root = root
        self.pid = pid


class StoreVersionError(BoxwrightError):
    """The state folder was written by a newer version.

    Args:
        root: The state folder.
        found: The schema version found in it.
        known: The newest schema version that this program knows.
    """

    code = Code.STORE_VERSION

    def __init__(self, root: Path, found: int, known: int) -> None:
        super().__init__(
            f"the state folder {root} was written by a newer version",
            detail=f"it has schema version {found}, this program knows up to {known}",
            hint="use the newer program, or choose another --root",
        )
        self.found = found
        self.known = known


class StoreCorruptError(BoxwrightError):
    """The metadata database can't be read or contradicts itself."""

    code = Code.STORE_CORRUPT


class StoreAccessError(BoxwrightError):
    """The state folder can't be made or written by this user.

    Args:
        path: What could not be reached.
        reason: The system's text.
    """

    code = Code.PERMISSION

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"can't use the state folder {path}",
            detail=reason,
            hint="choose a folder that you own with --root or BOXWRIGHT_ROOT",
        )
        self.path = path


class NotAStoreError(BoxwrightError):
    """A folder that was to be erased, but is no state folder.

    Args:
        path: The folder.
    """

    code = Code.INVALID

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is no state folder",
            detail="it holds no state.db",
            hint="name the one to remove with --root or BOXWRIGHT_ROOT",
        )
        self.path = path


class DigestMismatchError(BoxwrightError):
    """Content does not have the digest or size that it was announced with.

    Args:
        want: The announced digest.
        got: The digest of what arrived.
        want_size: The announced size in bytes, ``None`` if it was not announced.
        got_size: How many bytes arrived.
    """

    code = Code.DIGEST_MISMATCH
    retryable = True

    def __init__(
        self, *, want: Digest | None, got: Digest | None, want_size: int | None, got_size: int
    ) -> None:
        facts = []
        if want is not None and got is not None and want != got:
            facts.append(f"wanted {want}, got {got}")
        if want_size is not None and want_size != got_size:
            facts.append(f"wanted {want_size} bytes, got {got_size}")
        super().__init__("content does not match its digest", detail="; ".join(facts))
        self.want = want
        self.got = got
        self.want_size = want_size
        self.got_size = got_size


class BlobNotFoundError(BoxwrightError):
    """A blob that is not in the store, or no longer.

    Args:
        digest: The blob asked for.
    """

    code = Code.NOT_FOUND

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"blob {digest} is not in the store")
        self.digest = digest


class DiskFullError(BoxwrightError):
    """The disk or a quota has no room; nothing half-written stays behind.

    Args:
        path: The file or folder that could not be written.
        needed: Bytes that were wanted, 0 if unknown.
        available: Bytes that are free, -1 if unknown.
    """

    code = Code.DISK_FULL

    def __init__(self, path: Path, *, needed: int = 0, available: int = -1) -> None:
        facts = [f"writing to {path}"]
        if needed:
            facts.append(f"{needed} bytes needed")
        if available >= 0:
            facts.append(f"{available} bytes free")
        super().__init__(
            "no space left on the disk of the state folder",
            detail=", ".join(facts),
            hint="free some with 'boxwright prune', or move the state folder with --root",
        )
        self.path = path
        self.needed = needed
        self.available = available


class DiskCapError(BoxwrightError):
    """The state folder may not grow any more, and nothing in it can be removed.

    Args:
        cap: The configured cap in bytes.
        used: What the folder takes.
        needed: Bytes that were wanted, 0 if unknown.
    """

    code = Code.DISK_CAP

    def __init__(self, cap: int, used: int, *, needed: int = 0) -> None:
        facts = [f"{used} of {cap} bytes are used"]
        if needed:
            facts.append(f"{needed} bytes needed")
        super().__init__(
            "the disk cap of the state folder is reached",
            detail=", ".join(facts),
            hint="see what holds it with 'boxwright gc explain', or raise boxwright.disk.cap",
        )
        self.cap = cap
        self.used = used
        self.needed = needed


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn "no space" in the block into :class:`DiskFullError`; others pass.

    Raises:
        DiskFullError: the block failed with ``ENOSPC`` or ``EDQUOT``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(path, needed=needed) from error
        raise
