"""Files, or marked parts of files, that are made from the code; shared by the generators.

Every generator takes ``--check``: write nothing, name what is out of date and end with 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- begin: made by {tool}, do not edit -->"
END = "<!-- end: made by {tool} -->"


def fill(text: str, body: str, tool: str) -> str:
    """Return ``text`` with ``body`` between the marks of ``tool``, at its end if it has none."""
    begin, end = BEGIN.format(tool=tool), END.format(tool=tool)
    part = f"{begin}\n\n{body.strip()}\n\n{end}"
    head, found, rest = text.partition(begin)
    if not found:
        return f"{text.rstrip()}\n\n{part}\n".lstrip()
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"error: {end!r} is missing")
    return head + part + tail


def finish(files: dict[Path, str]) -> int:
    """Write the files, or compare them (``--check``); return the exit status."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"out of date: {path.relative_to(ROOT)} (run {sys.argv[0]})")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0
