"""Paths inside a root file system that may not exist yet.

``openat2(RESOLVE_IN_ROOT)`` resolves what exists; creating a file, or finding out what a runtime
will create, needs the place where a missing path would lie. :func:`resolve` answers that like a
chrooted process would: links are followed inside the root, ``..`` stops at it. The answer has no
links in it, so it is then opened with :func:`open_directory`, which refuses any.
"""

from __future__ import annotations

import errno
import os

from boxwright.linux.files import openat2_beneath

_MAX_LINKS = 255
_O_PATH_DIR = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_root(root: str | os.PathLike[str]) -> int:
    """Return an ``O_PATH`` descriptor of the folder ``root``; the caller closes it."""
    return os.open(root, _O_PATH_DIR)


def resolve(root_fd: int, path: bytes, *, follow_last: bool = True) -> bytes:
    """Return ``path`` relative to ``root_fd`` with every existing link resolved.

    Args:
        root_fd: The root folder.
        path: Any path; a leading slash, ``.`` and ``..`` mean what they mean in a chroot.
        follow_last: Resolve the last part too if it is a link.

    Returns:
        A relative path without links; ``b""`` is the root itself.

    Raises:
        OSError: ``ELOOP`` after 255 links, ``ENOTDIR`` below a file.
    """
    pending = [part for part in path.split(b"/") if part and part != b"."]
    pending.reverse()
    done: list[bytes] = []
    links = 0
    exists = True
    while pending:
        part = pending.pop()
        if part == b"..":
            if done:
                done.pop()
            exists = True
            continue
        done.append(part)
        if not exists or (not pending and not follow_last):
            continue
        try:
            target = os.readlink(b"/".join(done), dir_fd=root_fd)
        except FileNotFoundError:
            exists = False
            continue
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise _inside(exc, path) from exc
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
        done.pop()
        if target.startswith(b"/"):
            done.clear()
        inserted = [piece for piece in target.split(b"/") if piece and piece != b"."]
        pending.extend(reversed(inserted))
    return b"/".join(done)


def open_directory(root_fd: int, relative: bytes) -> int:
    """Open a folder that :func:`resolve` returned; a link on the way is an error.

    Raises:
        OSError: as open(2); ``ELOOP`` for a link.
    """
    return openat2_beneath(root_fd, relative or b".", _O_PATH_DIR)


def split(relative: bytes) -> tuple[bytes, bytes]:
    """Return parent and last name of a resolved path."""
    parent, _, name = relative.rpartition(b"/")
    return parent, name


def _inside(exc: OSError, path: bytes) -> OSError:
    return OSError(exc.errno, exc.strerror, os.fsdecode(path))
