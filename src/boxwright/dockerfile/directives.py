"""Parser directives: the ``# name=value`` lines that must come before anything else."""

from __future__ import annotations

import json
import re

from boxwright.core.dataclass import dataclass, field
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import SPACE
from boxwright.dockerfile.syntax import Directive, line_ranges

NAMES = ("syntax", "escape", "check")
BOM = b"\xef\xbb\xbf"
_BLANKS = "\t\n\f\r "
_NAME = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=")


@dataclass(slots=True)
class DirectiveReader:
    """Reads directives line by line until the first line that is none.

    Attributes:
        comment: What a directive line begins with.
        line: The number of the last line read.
        found: By lower-case name.
        done: No directive can follow any more.
    """

    comment: str = "#"
    line: int = 0
    found: dict[str, Directive] = field(default_factory=dict)
    done: bool = False

    def read(self, text: str) -> Directive | None:
        """Read one line without its line end; return the directive it holds, if any.

        Raises:
            DockerfileError: a directive is given twice.
        """
        self.line += 1
        if self.done:
            return None
        name, value = _split(text, self.comment)
        if name not in NAMES or not value:
            self.done = True
            return None
        if name in self.found:
            raise DockerfileError(
                f"only one {name} parser directive can be used",
                ranges=line_ranges(self.line, self.line),
                hint=f"remove this one or the one on line {self.found[name].ranges[0].start.line}",
            )
        directive = Directive(name, value, line_ranges(self.line, self.line))
        self.found[name] = directive
        return directive


def _split(text: str, comment: str) -> tuple[str, str]:
    """Return the lower-case name and the value of ``# name = value``, or empty strings."""
    if not text.startswith(comment):
        return "", ""
    body = text[len(comment) :].lstrip(SPACE)
    match = _NAME.match(body)
    if match is None:
        return "", ""
    value = body[match.end() :]
    # Blanks alone are a value too, if a useless one: the last of them.
    return match[1].lower(), value.strip(_BLANKS) or value[-1:]


def find_directive(name: str, source: bytes, *, any_format: bool = False) -> Directive | None:
    """Look for one directive without parsing the file, which may be in any language.

    Args:
        name: ``syntax``, ``escape`` or ``check``.
        source: The file; a byte order mark and a ``#!`` line are skipped.
        any_format: Accept ``// name=value`` and ``{"name": "value"}`` as well, for build
            definitions in languages with other comments.
    """
    data = source.removeprefix(BOM)
    skipped = 0
    if data.startswith(b"#!"):
        data = data.partition(b"\n")[2]
        skipped = 1
    for comment in ("#", "//") if any_format else ("#",):
        found = _read_all(data, DirectiveReader(comment, skipped)).get(name)
        if found is not None:
            return found
    if any_format and data.lstrip()[:1] == b"{":
        return _find_in_json(name, data, skipped + 1)
    return None


def detect_syntax(source: bytes) -> Directive | None:
    """Return the ``syntax`` directive in any of its forms.

    The first word of its value is the frontend image; the rest are arguments for it.
    """
    return find_directive("syntax", source, any_format=True)


def _read_all(data: bytes, reader: DirectiveReader) -> dict[str, Directive]:
    position = 0
    while position < len(data) and not reader.done:
        end = data.find(b"\n", position)
        line = data[position:] if end < 0 else data[position:end]
        position = len(data) if end < 0 else end + 1
        try:
            reader.read(line.decode("utf-8", "replace").removesuffix("\r"))
        except DockerfileError:
            break
    return reader.found


def _find_in_json(name: str, data: bytes, line: int) -> Directive | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, str):
        return None
    return Directive(name, value, line_ranges(line, line))
