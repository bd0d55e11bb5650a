"""Paths of images for Linux and for Windows, as WORKDIR, COPY and ADD resolve them.

Results have forward slashes and no drive letter. On Linux nothing is changed but what
joining and cleaning does.
"""

from __future__ import annotations

from boxwright.errors import InvalidInputError
from boxwright.llb import build_paths as paths


def to_slash(path: str, os: str) -> str:
    """Return ``path`` with forward slashes."""
    return path.replace("\\", "/") if os == "windows" else path


def strip_drive(path: str, os: str, *, keep_slash: bool = False) -> str:
    """Return ``path`` without ``C:``; unchanged on Linux.

    Raises:
        InvalidInputError: another drive, a drive alone, or a UNC path.
    """
    if os != "windows":
        return path
    if len(path) == 2 and path[1] == ":":
        raise InvalidInputError(f'No relative path specified in "{path}"')
    if to_slash(path[:2], os) == "//":
        raise InvalidInputError("UNC paths are not supported")
    drive, colon, rest = path.partition(":")
    if colon and drive.lower() != "c":
        raise InvalidInputError("The specified path is not on the system drive (C:)")
    text = to_slash(rest if colon else path, os)
    cleaned = paths.clean(text)
    if keep_slash and len(cleaned) > 1 and text.endswith("/"):
        cleaned += "/"
    return cleaned


def is_abs(path: str, os: str) -> bool:
    """Return whether ``path`` does not depend on the working directory."""
    try:
        return paths.is_abs(strip_drive(path, os))
    except InvalidInputError:
        return False


def normalize(parent: str, path: str, os: str, *, keep_slash: bool) -> str:
    """Return ``path`` made absolute below ``parent``.

    Args:
        parent: The working directory; ``/`` where empty.
        path: Absolute, or relative to ``parent``; empty for ``parent`` itself.
        os: The platform's operating system.
        keep_slash: Keep a trailing ``/`` or ``/.``.

    Raises:
        InvalidInputError: see :func:`strip_drive`.
    """
    path, parent = to_slash(path, os), to_slash(parent, os)
    original = path
    parent = strip_drive(parent or "/", os, keep_slash=keep_slash)
    if not is_abs(parent, os):
        parent = paths.join("/", parent)
    path = strip_drive(path or parent, os, keep_slash=keep_slash)
    if not is_abs(path, os):
        path = paths.join(parent, path)
    return paths.with_trailing_slash(original, path) if keep_slash else path


def workdir(current: str, path: str, os: str) -> str:
    """Return the new working directory, with the platform's own separators."""
    out = normalize(current, path, os, keep_slash=False)
    return out.replace("/", "\\") if os == "windows" else out
