"""mount(2), the file-descriptor mount API and overlayfs.

One thin function per operation, no policy. Nothing here changes the working folder or the
umask: the process is threaded. Paths with any byte in them (colon, comma, backslash) work,
as lower folders travel one by one, or as descriptors, never joined into one string of paths.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from boxwright.linux.libc import check, libc, syscall

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 0x100000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1

_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
# fsconfig(2) copies strings into a 256 byte buffer, the terminating zero included.
_FSCONFIG_STRING_MAX = 255
_PAGE_OPTIONS_MAX = os.sysconf("SC_PAGE_SIZE") - 1

# Changes to a file must land whole in the layer that makes them: a renamed folder or a
# metadata-only copy would leave half of it in a lower layer that later moves or goes.
_PRIVILEGED_OPTIONS = (("redirect_dir", "off"), ("metacopy", "off"), ("index", "off"))


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    fstype: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount a file system, bind or change flags: the classic system call.

    Raises:
        OSError: the kernel refused; the path is ``target``.
    """
    result = libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if fstype is None else fstype.encode(),
        ctypes.c_ulong(flags),
        None if data is None else os.fsencode(data),
    )
    check(result, target)


def umount(target: str | os.PathLike[str], *, detach: bool = False) -> None:
    """Unmount ``target``, lazily with ``detach``; a symbolic link is never followed.

    Raises:
        OSError: ``EBUSY`` while it is used, ``EINVAL`` where nothing is mounted.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
    check(libc.umount2(os.fsencode(target), flags), target)


def make_private(path: str | os.PathLike[str], *, recursive: bool = True) -> None:
    """Stop mount events between ``path`` and its peers in both directions."""
    mount(None, path, None, MS_PRIVATE | (MS_REC if recursive else 0))


def make_slave(path: str | os.PathLike[str], *, recursive: bool = True) -> None:
    """Keep receiving mount events under ``path`` but send none."""
    mount(None, path, None, MS_SLAVE | (MS_REC if recursive else 0))


def set_read_only(path: str | os.PathLike[str], *, recursive: bool = True) -> None:
    """Make the mount at ``path`` read-only, with all mounts below it if ``recursive``.

    Raises:
        OSError: ``path`` is no mount point, or recursion needs a kernel from 5.12 on.
    """
    attr = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    try:
        syscall(
            _SYS_MOUNT_SETATTR,
            -100,
            os.fsencode(path),
            _AT_RECURSIVE if recursive else 0,
            ctypes.byref(attr),
            ctypes.sizeof(attr),
            path=path,
        )
    except OSError as error:
        if error.errno != errno.ENOSYS or recursive:
            raise
        mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY)


def bind(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    read_only: bool = False,
    recursive: bool = True,
) -> None:
    """Bind ``source`` to ``target``; nothing stays mounted if making it read-only fails.

    Raises:
        OSError: either step failed; the path is ``target``.
    """
    mount(source, target, None, MS_BIND | (MS_REC if recursive else 0))
    if not read_only:
        return
    try:
        set_read_only(target, recursive=recursive)
    except OSError:
        umount(target, detach=True)
        raise


@dataclass(frozen=True, slots=True)
class _Context:
    """A file-system context that fsopen(2) gave."""

    fd: int

    def flag(self, key: str) -> None:
        syscall(_SYS_FSCONFIG, self.fd, _FSCONFIG_SET_FLAG, key.encode(), None, 0, path=key)

    def string(self, key: str, value: bytes) -> None:
        syscall(_SYS_FSCONFIG, self.fd, _FSCONFIG_SET_STRING, key.encode(), value, 0, path=value)

    def attach(self, target: str | os.PathLike[str], attributes: int) -> None:
        syscall(_SYS_FSCONFIG, self.fd, _FSCONFIG_CMD_CREATE, None, None, 0, path=target)
        mount_fd = syscall(_SYS_FSMOUNT, self.fd, _FSMOUNT_CLOEXEC, attributes, path=target)
        try:
            syscall(
                _SYS_MOVE_MOUNT,
                mount_fd,
                b"",
                -100,
                os.fsencode(target),
                _MOVE_MOUNT_F_EMPTY_PATH,
                path=target,
            )
        finally:
            os.close(mount_fd)


@contextmanager
def _open_context(fstype: str) -> Iterator[_Context]:
    fd = syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC, path=fstype)
    try:
        yield _Context(fd)
    finally:
        os.close(fd)


def _descriptor_path(stack: ExitStack, path: Path) -> bytes:
    """Open ``path`` for as long as ``stack`` lives and return a short name for it."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return b"/proc/self/fd/%d" % fd


def _overlay_options(*, writable: bool, userxattr: bool, volatile: bool) -> list[tuple[str, str]]:
    # With userxattr the kernel itself forces redirect_dir and metacopy off and refuses to
    # be told so (fs/overlayfs/params.c, "conflicting options").
    options = [("userxattr", "")] if userxattr else list(_PRIVILEGED_OPTIONS)
    if writable and volatile:
        options.append(("volatile", ""))
    return options


def _overlay_by_context(
    target: Path,
    lower: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    options: list[tuple[str, str]],
) -> None:
    with ExitStack() as stack, _open_context("overlay") as context:

        def short(path: Path) -> bytes:
            raw = os.fsencode(path)
            return raw if len(raw) <= _FSCONFIG_STRING_MAX else _descriptor_path(stack, path)

        context.string("source", b"overlay")
        for path in lower:
            context.string("lowerdir+", short(path))
        if upper is not None and work is not None:
            context.string("upperdir", short(upper))
            context.string("workdir", short(work))
        for key, value in options:
            if value:
                context.string(key, value.encode())
            else:
                context.flag(key)
        context.attach(target, 0 if upper is not None else _MOUNT_ATTR_RDONLY)


def _overlay_by_string(
    target: Path,
    lower: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    options: list[tuple[str, str]],
) -> None:
    with ExitStack() as stack:
        parts = [f"{key}={value}" if value else key for key, value in options]
        names = b":".join(_descriptor_path(stack, path) for path in lower)
        parts.append("lowerdir=" + names.decode())
        if upper is not None and work is not None:
            parts.append("upperdir=" + _descriptor_path(stack, upper).decode())
            parts.append("workdir=" + _descriptor_path(stack, work).decode())
        data = ",".join(parts)
        if len(data) > _PAGE_OPTIONS_MAX:
            raise OSError(errno.E2BIG, "too many overlay layers for this kernel", str(target))
        mount("overlay", target, "overlay", 0 if upper is not None else MS_RDONLY, data)


def overlay(
    target: Path,
    *,
    lower: Sequence[Path],
    upper: Path | None = None,
    work: Path | None = None,
    userxattr: bool = False,
    volatile: bool = False,
) -> None:
    """Mount an overlay; read-only without ``upper``.

    Args:
        target: An existing folder.
        lower: Lower folders, the uppermost first; read-only needs at least two.
        upper: The writable folder; goes with ``work`` on the same file system.
        work: An empty folder for the kernel.
        userxattr: Use ``user.overlay.*`` attributes, as mounts inside a user namespace must.
        volatile: Skip every sync of the upper folder; a crash may leave it torn.

    Raises:
        OSError: the kernel refused; ``E2BIG`` for too many layers on kernels before 6.7.
    """
    options = _overlay_options(writable=upper is not None, userxattr=userxattr, volatile=volatile)
    try:
        _overlay_by_context(target, lower, upper, work, options)
    except OSError as error:
        # EINVAL: no "lowerdir+" (before 6.7) or an option that is refused on both ways.
        if error.errno not in {errno.ENOSYS, errno.EINVAL}:
            raise
        _overlay_by_string(target, lower, upper, work, options)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo (proc(5)), as far as it is used here."""

    mount_id: int
    mount_point: Path
    fstype: str
    source: str


_OCTAL = {rb"\040": b" ", rb"\011": b"\t", rb"\012": b"\n", rb"\134": b"\\"}


def _unescape(field: bytes) -> str:
    if b"\\" in field:
        for escaped, plain in _OCTAL.items():
            field = field.replace(escaped, plain)
    return os.fsdecode(field)


def list_mounts(below: Path | None = None) -> list[MountEntry]:
    """Return this process's mounts in the order made, those at or under ``below`` if given."""
    prefix = None if below is None else str(below)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            point = _unescape(fields[4])
            if prefix is not None and point != prefix and not point.startswith(prefix + "/"):
                continue
            tail = fields[fields.index(b"-", 6) + 1 :]
            found.append(
                MountEntry(int(fields[0]), Path(point), _unescape(tail[0]), _unescape(tail[1]))
            )
    return found


def is_mountpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether something is mounted exactly at ``path`` (bind mounts included)."""
    wanted = os.path.realpath(path)
    return any(str(entry.mount_point) == wanted for entry in list_mounts())


def unmount_below(root: Path) -> int:
    """Detach every mount at or under ``root``, the newest first; return how many."""
    entries = list_mounts(root)
    for entry in reversed(entries):
        try:
            umount(entry.mount_point, detach=True)
        except OSError as error:
            if error.errno != errno.EINVAL:  # gone with its parent
                raise
    return len(entries)
