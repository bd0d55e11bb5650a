"""The header form under which a file's metadata enters its content digest.

This is the historical "tarsum v1" form, kept because cache keys are exchanged with BuildKit: field
names and values are concatenated without separators, modification times are left out, sizes
are those of regular files only. The digest of a file is the sha256 of this header followed by
its content; its name is not part of it, names are added by the folder that holds it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping

_TYPEFLAGS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
    stat.S_IFSOCK: b"0",  # an archive can't hold a socket; hashed as an empty file
}

_PLAIN = b"namemode%duid%dgid%dsize%dtypeflag0linknameunamegnamedevmajor0devminor0"

# Go's io/fs.FileMode, which fsutil's Stat carries on the wire.
_GO_TYPES = (
    (1 << 31, stat.S_IFDIR),
    (1 << 27, stat.S_IFLNK),
    (1 << 25, stat.S_IFIFO),
    (1 << 24, stat.S_IFSOCK),
)
_GO_DEVICE = 1 << 26
_GO_CHAR_DEVICE = 1 << 21
_GO_SETUID = 1 << 23
_GO_SETGID = 1 << 22
_GO_STICKY = 1 << 20


def unix_mode(go_mode: int) -> int:
    """Return the st_mode for a Go file mode as fsutil sends it."""
    mode = go_mode & 0o777
    for bit, wanted in ((_GO_SETUID, 0o4000), (_GO_SETGID, 0o2000), (_GO_STICKY, 0o1000)):
        if go_mode & bit:
            mode |= wanted
    for bit, kind in _GO_TYPES:
        if go_mode & bit:
            return mode | kind
    if go_mode & _GO_DEVICE:
        return mode | (stat.S_IFCHR if go_mode & _GO_CHAR_DEVICE else stat.S_IFBLK)
    return mode | stat.S_IFREG


def header(
    mode: int,
    uid: int,
    gid: int,
    size: int,
    *,
    linkname: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return the header bytes of one file.

    Args:
        mode: st_mode.
        uid: Owner.
        gid: Group.
        size: Bytes; counts for regular files only.
        linkname: The target of a symbolic link.
        device: Major and minor number of a device.
        xattrs: All extended attributes; those that don't belong in an image are left out.
    """
    kind = stat.S_IFMT(mode)
    permissions = mode & 0o7777
    if kind == stat.S_IFLNK:
        permissions |= 0o777
    elif kind != stat.S_IFREG:
        linkname = b""
    if kind == stat.S_IFREG:
        linkname = b""
    else:
        size = 0
    text = b"namemode%duid%dgid%dsize%dtypeflag%blinkname%bunamegnamedevmajor%ddevminor%d" % (
        permissions,
        uid,
        gid,
        size,
        _TYPEFLAGS[kind],
        linkname,
        *device,
    )
    if xattrs:
        for name in sorted(xattrs, key=os.fsencode):
            if is_hashed_xattr(name):
                text += os.fsencode(name) + xattrs[name]
    return text


def plain_header(permissions: int, uid: int, gid: int, size: int) -> bytes:
    """Return the header bytes of a regular file without attributes; as :func:`header`."""
    return _PLAIN % (permissions, uid, gid, size)


def is_hashed_xattr(name: str) -> bool:
    """Return whether an extended attribute counts: not the machine's own ones."""
    if name == "security.capability":
        return True
    return not name.startswith(("security.", "system.", "trusted.overlay.", "user.overlay."))


def file_hash(
    mode: int,
    uid: int,
    gid: int,
    size: int,
    *,
    linkname: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[str, bytes] | None = None,
) -> hashlib._Hash:
    """Return a running sha256 that has taken the header; feed it the file's content.

    Arguments are those of :func:`header`. A receiver of files uses it to hash what it writes
    in one pass.
    """
    return hashlib.sha256(
        header(mode, uid, gid, size, linkname=linkname, device=device, xattrs=xattrs)
    )
