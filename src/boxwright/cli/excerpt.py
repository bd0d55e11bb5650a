"""The lines of a source file that an error is about, with a mark."""

from __future__ import annotations

from boxwright.errors import BoxwrightError

_CONTEXT_LINES = 2
_RULE = "-" * 20


def of_error(error: BoxwrightError) -> str:
    """Return the excerpts that belong to an error, its own or those a daemon sent with it."""
    own = getattr(error, "excerpt", "")
    if own:
        return str(own)
    details = getattr(error, "rpc_details", None)
    if not details:
        return ""
    from boxwright.wire import errdetails
    from boxwright.wire.pb import errdefs_pb2

    parts = []
    for detail in details:
        message = errdetails.unpack(detail)
        if isinstance(message, errdefs_pb2.Source) and message.HasField("info"):
            spans = [(r.start.line, r.end.line) for r in message.ranges]
            parts.append(excerpt(message.info.filename, message.info.data, spans))
    return "".join(dict.fromkeys(parts))


def excerpt(filename: str, source: bytes, spans: list[tuple[int, int]]) -> str:
    """Return the marked lines with some around them; lines count from 1.

    It is empty where the spans lie outside the source.
    """
    lines = source.decode("utf-8", "replace").removesuffix("\n").split("\n")
    starts = [start for start, _ in spans if start >= 1]
    if not starts or min(starts) > len(lines):
        return ""
    first, last = min(starts), min(max(max(span) for span in spans), len(lines))
    around = _CONTEXT_LINES if first == last else 1
    top, bottom = max(1, first - around), min(len(lines), last + around)
    out = [f"{filename}:{first}\n{_RULE}\n"]
    for number in range(top, bottom + 1):
        marked = any(start <= number <= max(start, end) for start, end in spans)
        mark = ">>>" if marked else "   "
        out.append(f" {number:3d} | {mark} {lines[number - 1]}".rstrip() + "\n")
    out.append(f"{_RULE}\n")
    return "".join(out)
