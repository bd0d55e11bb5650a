"""Slash paths inside images, with the lexical rules that definitions are written by.

:mod:`posixpath` keeps a leading ``//`` and turns an empty path into ``.`` only in some
functions, so the few operations needed are spelt out here. All are purely lexical.
"""

from __future__ import annotations


def is_abs(path: str) -> bool:
    """Return whether ``path`` starts with a slash."""
    return path.startswith("/")


def clean(path: str) -> str:
    """Return the shortest equal path: no ``.``, no inner ``..``, no doubled slash.

    The empty path is ``.``; ``..`` at the root is dropped.
    """
    rooted = path.startswith("/")
    out: list[str] = []
    for part in path.split("/"):
        if part in {"", "."}:
            continue
        if part == ".." and out and out[-1] != "..":
            out.pop()
        elif part != ".." or not rooted:
            out.append(part)
    if rooted:
        return "/" + "/".join(out)
    return "/".join(out) or "."


def join(*parts: str) -> str:
    """Join the non-empty parts with slashes and clean the result; "" when all are empty."""
    present = [part for part in parts if part]
    return clean("/".join(present)) if present else ""


def base(path: str) -> str:
    """Return the last element; ``.`` of the empty path, ``/`` of one made of slashes only."""
    if not path:
        return "."
    stripped = path.rstrip("/")
    return stripped.rpartition("/")[2] if stripped else "/"


def parent(path: str) -> str:
    """Return all but the last element, cleaned; ``.`` when there is none."""
    return clean(path[: path.rfind("/") + 1])


def resolve(directory: str, path: str, *, keep_slash: bool) -> str:
    """Return ``path`` made absolute below ``directory``.

    Args:
        directory: The working directory, absolute or relative to ``/``.
        path: Absolute, or relative to ``directory``.
        keep_slash: Keep a trailing ``/`` or ``/.``, which tell a copy that the
            destination is a directory.
    """
    out = clean(path)
    if not is_abs(out):
        out = join("/", directory, out)
    return with_trailing_slash(path, out) if keep_slash else out


def with_trailing_slash(original: str, path: str) -> str:
    """Return ``path`` with the trailing ``/`` or ``/.`` that ``original`` had."""
    if original.endswith("/") and not path.endswith("/"):
        return path + "/"
    if original.endswith("/."):
        return (path if path == "/" else path + "/") + "."
    return path
