"""A file to its statements: directives, comments, continuations and heredoc bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping

from boxwright.core.dataclass import dataclass, field
from boxwright.dockerfile.directives import BOM, DirectiveReader
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import SPACE
from boxwright.dockerfile.heredoc import find_heredocs
from boxwright.dockerfile.parser_line import Origin, Statement, locate, parse_line
from boxwright.dockerfile.syntax import Directive, Heredoc, line_ranges

MAX_LINE_BYTES = 65535
"""Of one source line; stock frontends refuse longer ones too."""
MAX_SOURCE_BYTES = 16 << 20
"""Of a whole Dockerfile, the size of the largest message that could carry it."""

_WITH_HEREDOCS = frozenset({"add", "copy", "run"})
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Script:
    r"""The statements of a file.

    Attributes:
        statements: In file order.
        escape: ``\`` or a backtick.
        directives: By lower-case name.
        empty_continuations: For each statement that has blank lines among its
            continuations, the number of its last line before any heredoc.
    """

    statements: tuple[Statement, ...]
    escape: str
    directives: Mapping[str, Directive]
    empty_continuations: tuple[int, ...]


def scan(source: bytes) -> Script:
    """Cut ``source`` into statements.

    Raises:
        DockerfileError: with the lines concerned; no file name yet.
    """
    if len(source) > MAX_SOURCE_BYTES:
        raise DockerfileError(
            f"dockerfile greater than max allowed size of {MAX_SOURCE_BYTES} bytes",
            hint="move data into files of the build context",
        )
    return _Scanner(source).run()


@dataclass(slots=True)
class _Logical:
    """A line with its continuations joined."""

    text: str
    origins: list[Origin]
    start: int
    has_blank: bool


@dataclass(slots=True)
class _Scanner:
    source: bytes
    lines: list[str] = field(init=False)
    number: int = field(init=False, default=0)
    escape: str = field(init=False, default="\\")
    directives: DirectiveReader = field(init=False, default_factory=DirectiveReader)

    def __post_init__(self) -> None:
        # Bytes that are not UTF-8 travel as lone surrogates, so that a literal heredoc body
        # comes out as it went in. Everywhere else they become U+FFFD.
        text = self.source.removeprefix(BOM).decode("utf-8", "surrogateescape")
        self.lines = text.split("\n")
        if not self.lines[-1]:
            self.lines.pop()

    def run(self) -> Script:
        statements: list[Statement] = []
        blanks: list[int] = []
        comments: list[str] = []
        while self.number < len(self.lines):
            logical = self._next_logical(comments)
            if logical is None:
                continue
            if logical.has_blank:
                blanks.append(self.number)
            statements.append(self._statement(logical, tuple(comments)))
            comments.clear()
        if not statements:
            last = max(1, self.number)
            raise DockerfileError("file with no instructions", ranges=line_ranges(last, last))
        return Script(tuple(statements), self.escape, self.directives.found, tuple(blanks))

    def _take(self) -> str:
        line = self.lines[self.number]
        self.number += 1
        if len(line) * 4 > MAX_LINE_BYTES:
            size = len(line.encode("utf-8", "surrogateescape"))
            if size > MAX_LINE_BYTES:
                raise DockerfileError(
                    f"dockerfile line greater than max allowed size of {MAX_LINE_BYTES}",
                    ranges=line_ranges(self.number, self.number),
                    hint="split the line, or move its data into a file of the build context",
                )
        return line

    def _next_logical(self, comments: list[str]) -> _Logical | None:
        """Read up to the end of a logical line; None for a comment or blank line."""
        line = self._take()
        token = line.rstrip("\r").lstrip(SPACE)
        if token.startswith("#"):
            self._comment(line, token, comments)
            return None
        self.directives.done = True
        if not token:
            return None
        first = self.number
        piece, continued = self._strip_continuation(token)
        pieces = [piece]
        origins = [(0, first, len(line) - len(line.lstrip(SPACE)))]
        offset = len(piece)
        has_blank = False
        while continued and self.number < len(self.lines):
            token = self._take().rstrip("\r")
            content = token.lstrip(SPACE)
            if content.startswith("#"):
                continue
            if not content:
                has_blank = True
                continue
            piece, continued = self._strip_continuation(token)
            origins.append((offset, self.number, 0))
            pieces.append(piece)
            offset += len(piece)
        text = "".join(pieces)
        if not text.isascii():
            text = _LONE_SURROGATES.sub("\ufffd", text)
        return _Logical(text, origins, first, has_blank)

    def _comment(self, line: str, token: str, comments: list[str]) -> None:
        self.directives.line = self.number - 1
        directive = self.directives.read(token)
        if directive is None:
            # The first character goes, whatever it is: an indented comment keeps its mark,
            # and so describes nothing.
            comment = _LONE_SURROGATES.sub("\ufffd", line[1:].strip(SPACE))
            if comment:
                comments.append(comment)
            else:
                comments.clear()
        elif directive.name == "escape":
            if directive.value not in {"`", "\\"}:
                raise DockerfileError(
                    f"invalid escape token '{directive.value}' does not match ` or \\",
                    ranges=directive.ranges,
                )
            self.escape = directive.value

    def _strip_continuation(self, line: str) -> tuple[str, bool]:
        """Take off a final escape character, unless another one stands before it."""
        bare = line.rstrip(" \t")
        if not bare.endswith(self.escape):
            return line, False
        if bare[-2:-1] == self.escape:
            return line, False
        return bare[:-1], True

    def _statement(self, logical: _Logical, comments: tuple[str, ...]) -> Statement:
        try:
            statement = parse_line(logical.text, self.escape)
            bodies = self._heredocs(statement, logical)
        except DockerfileError as error:
            raise error.located(
                line_ranges(logical.start, self.number),
                focus=locate(logical.text, logical.origins, error.token),
            ) from None
        statement.heredocs = bodies
        statement.start = logical.start
        statement.end = self.number
        statement.comments = comments
        statement.origins = logical.origins
        return statement

    def _heredocs(self, statement: Statement, logical: _Logical) -> tuple[Heredoc, ...]:
        command = statement.inner or statement
        if command.keyword.lower() not in _WITH_HEREDOCS or command.is_json:
            return ()
        if "<<" not in logical.text:
            return ()
        return tuple(self._body(doc) for doc in find_heredocs(logical.text))

    def _body(self, doc: Heredoc) -> Heredoc:
        """Read lines up to the delimiter."""
        content: list[str] = []
        while self.number < len(self.lines):
            line = self._take()
            end = line.rstrip("\r")
            if (end.lstrip("\t") if doc.chomp else end) == doc.name:
                return Heredoc(doc.name, doc.expand, doc.chomp, doc.descriptor, "".join(content))
            content += (line, "\n")
        raise DockerfileError(
            "unterminated heredoc",
            token=f"<<{doc.name}",
            hint=f"end it with a line that holds {doc.name} and nothing else",
        )
