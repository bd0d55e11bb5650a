"""Shell wildcards in the source of a COPY or the path of an RM: Go's ``filepath.Match``."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator

from boxwright.executor import rootpath
from boxwright.ops.errors import from_os_error


def contains_wildcards(text: str) -> bool:
    """Return whether ``text`` has an unescaped ``*``, ``?`` or ``[``."""
    position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] in "*?[":
            return True
        position += 1
    return False


def expand(root_fd: int, root: str, pattern: str, *, follow_links: bool) -> list[str]:
    """Return the paths (absolute inside the root) that ``pattern`` matches, in name order.

    Only real folders are entered behind the first wildcard. A pattern without wildcards is
    returned without a trailing slash or dot, whether it exists or not.

    Raises:
        FileOpError: the folder before the first wildcard does not exist.
        OSError: one can't be read.
    """
    parts = [part for part in pattern.split("/") if part and part != "."]
    first = next((n for n, part in enumerate(parts) if contains_wildcards(part)), None)
    if first is None:
        return ["/" + "/".join(parts)]
    base = "/".join(parts[:first])
    place = rootpath.resolve(root_fd, os.fsencode(base), follow_last=follow_links)
    start = os.fsdecode(place)
    if start:
        try:
            info = os.stat(start, dir_fd=root_fd, follow_symlinks=False)
        except OSError as exc:
            raise from_os_error("lstat", f"/{start}", exc) from exc
        if not stat.S_ISDIR(info.st_mode):
            return []  # also a link that is not to be followed: it may lead anywhere
    matchers = [_compile(part) for part in parts[first:]]
    if any(matcher is None for matcher in matchers):
        return []
    return [f"/{path}" for path in _walk(root, start, matchers)]


def _walk(root: str, folder: str, matchers: list[re.Pattern[str] | None]) -> Iterator[str]:
    matcher, rest = matchers[0], matchers[1:]
    assert matcher is not None
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        if matcher.match(entry.name) is None:
            continue
        path = f"{folder}/{entry.name}" if folder else entry.name
        if not rest:
            yield path
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path, rest)


@functools.lru_cache(maxsize=256)
def _compile(part: str) -> re.Pattern[str] | None:
    """Translate one path component of a pattern; ``None`` if it is malformed: matches nothing."""
    out: list[str] = []
    position = 0
    while position < len(part):
        char = part[position]
        position += 1
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "\\":
            if position >= len(part):
                return None
            out.append(re.escape(part[position]))
            position += 1
        elif char == "[":
            translated = _class(part, position)
            if translated is None:
                return None
            text, position = translated
            out.append(text)
        else:
            out.append(re.escape(char))
    return re.compile("".join(out) + r"\Z", re.DOTALL)


def _class(part: str, position: int) -> tuple[str, int] | None:
    """Translate a character class from behind its bracket; return it and where it ends."""
    negated = part[position : position + 1] == "^"
    position += negated
    ranges: list[str] = []
    while part[position : position + 1] != "]" or not ranges:
        low = _class_char(part, position)
        if low is None:
            return None
        char, position = low
        high = char
        if part[position : position + 1] == "-":
            end = _class_char(part, position + 1)
            if end is None:
                return None
            high, position = end
        if high < char:
            return None
        ranges.append(f"{re.escape(char)}-{re.escape(high)}")
    return f"[{'^' if negated else ''}{''.join(ranges)}]", position + 1


def _class_char(part: str, position: int) -> tuple[str, int] | None:
    if position >= len(part) or part[position] in "-]":
        return None
    if part[position] == "\\":
        position += 1
    if position >= len(part):
        return None
    return part[position], position + 1
