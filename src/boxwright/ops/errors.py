"""Failures of file operations and of what an op asks for."""

from __future__ import annotations

import errno
import os

from boxwright.errors import BoxwrightError, Code, InvalidInputError, PermissionDeniedError

_GO_NAMES = {
    errno.ENOENT: "no such file or directory",
    errno.EEXIST: "file exists",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "is a directory",
    errno.ELOOP: "too many levels of symbolic links",
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "disk quota exceeded",
    errno.ENAMETOOLONG: "file name too long",
    errno.EPERM: "operation not permitted",
    errno.EACCES: "permission denied",
}


class FileOpError(BoxwrightError):
    """A COPY, ADD, WORKDIR or other file operation that its trees do not allow.

    ``path`` is a path inside the root file system, never one of this machine.
    """

    code = Code.INVALID

    def __init__(self, brief: str, *, path: str = "", detail: str = "", hint: str = "") -> None:
        super().__init__(brief, detail=detail, hint=hint)
        self.path = path


class SourceMissingError(FileOpError):
    """The source of a copy does not exist."""

    code = Code.SOURCE_NOT_FOUND


class DiskFullError(FileOpError):
    """The file operation ran out of space."""

    code = Code.DISK_FULL


class EntitlementError(PermissionDeniedError):
    """The build was not granted what a step asks for."""

    def __init__(self, entitlement: str) -> None:
        super().__init__(
            f"{entitlement} is not allowed",
            hint=f"allow it for this build with --allow {entitlement}, "
            "and in the builder's configuration",
        )
        self.entitlement = entitlement


class InvalidOpError(InvalidInputError):
    """An operation whose definition contradicts itself."""


def from_os_error(operation: str, path: str, exc: OSError) -> FileOpError:
    """Return the typed error for ``exc`` with the words that Go programs use."""
    number = exc.errno or 0
    text = _GO_NAMES.get(number, (exc.strerror or str(exc)).lower())
    brief = f"{operation} {path}: {text}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(brief, path=path, hint="free some space, or boxwright prune")
    if number == errno.ENOENT:
        return SourceMissingError(brief, path=path)
    return FileOpError(brief, path=path)


def inside(root: str, path: str | bytes | None) -> str:
    """Return a path of this machine as the image sees it."""
    text = os.fsdecode(path) if path is not None else ""
    if text == root:
        return "/"
    return text.removeprefix(root) if text.startswith(root + "/") else text
