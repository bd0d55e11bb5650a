"""Content digests of files while they pass, as the content hashes of their snapshot have them."""

from __future__ import annotations

import hashlib
import os
import stat as stat_module

from boxwright.session import packets
from boxwright.session.packets import Stat
from boxwright.session.treewalk import permissions
from boxwright.snapshots import tarsum

_KERNEL_TYPES = (
    (packets.MODE_DIR, stat_module.S_IFDIR),
    (packets.MODE_SYMLINK, stat_module.S_IFLNK),
    (packets.MODE_CHAR_DEVICE, stat_module.S_IFCHR),
    (packets.MODE_DEVICE, stat_module.S_IFBLK),
    (packets.MODE_FIFO, stat_module.S_IFIFO),
)


def kernel_mode(stat: Stat) -> int:
    """Return type and permissions in the kernel's bits."""
    kind = stat_module.S_IFREG
    if stat.mode & packets.MODE_TYPE:
        kind = next(kernel for bit, kernel in _KERNEL_TYPES if stat.mode & bit)
    return kind | permissions(stat.mode)


def content_header(stat: Stat) -> bytes:
    """Return the bytes that the content digest of an entry begins with."""
    mode = stat.mode
    if mode <= 0o777 and not (stat.xattrs or stat.devmajor or stat.devminor):
        return tarsum.plain_header(mode, stat.uid, stat.gid, stat.size)
    return tarsum.header(
        kernel_mode(stat),
        stat.uid,
        stat.gid,
        stat.size,
        linkname=stat.linkname,
        device=(stat.devmajor, stat.devminor),
        xattrs={os.fsdecode(name): value for name, value in stat.xattrs.items()} or None,
    )


def header_digest(stat: Stat) -> bytes:
    """Return the content digest of an entry without content."""
    return hashlib.sha256(content_header(stat)).digest()
