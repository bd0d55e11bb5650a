"""One logical line to a :class:`Statement`: keyword, flags and arguments, still untyped.

Which words there are depends on the instruction: JSON or one string (RUN, CMD), JSON or
words (COPY, VOLUME), pairs (ENV, LABEL), words with quotes (ARG), one string (USER).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from boxwright.core.dataclass import dataclass, field
from boxwright.dockerfile.errors import DockerfileError, find_word
from boxwright.dockerfile.golang import SPACE, SPACES, quote, split_words
from boxwright.dockerfile.syntax import Heredoc, Position, Range, line_ranges

_BLANKS = re.compile(r"[\t\v\f\r ]+")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_PLAIN = re.compile(f"[^'\"\\\\`{SPACE}]+")
"""Characters that mean nothing in a word, to be taken in one go."""
_MAX_ONBUILD = 50
"""Levels of ONBUILD that are looked into; two are refused later anyhow."""

Origin = tuple[int, int, int]
"""Offset in the logical line, source line, column there: where a piece came from."""


@dataclass(slots=True)
class Statement:
    """An instruction before it is typed.

    Attributes:
        keyword: As written.
        flags: Raw ``--x=y`` words without quotes.
        args: What follows, split as the instruction wants it.
        is_json: The arguments were a JSON array.
        text: The logical line.
        inner: The instruction inside ONBUILD.
        start: First source line.
        end: Last source line, heredoc bodies included.
        origins: Where the pieces of ``text`` came from, by rising offset.
    """

    keyword: str
    text: str
    flags: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    is_json: bool = False
    inner: Statement | None = None
    heredocs: tuple[Heredoc, ...] = ()
    start: int = 1
    end: int = 1
    comments: tuple[str, ...] = ()
    origins: list[Origin] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The keyword in upper case."""
        return self.keyword.upper()

    @property
    def ranges(self) -> tuple[Range, ...]:
        """One range for each source line."""
        return line_ranges(self.start, self.end)

    def locate(self, token: str) -> Range | None:
        """Return where ``token`` first stands in the source, or None."""
        return locate(self.text, self.origins, token)


def locate(text: str, origins: list[Origin], token: str) -> Range | None:
    """Map the first occurrence of ``token`` in a logical line back to the source."""
    offset = find_word(text, token)
    if offset < 0:
        return None
    for start, line, column in reversed(origins):
        if start <= offset:
            first = column + offset - start
            return Range(Position(line, first), Position(line, first + len(token)))
    return None


@dataclass(frozen=True, slots=True)
class _Arguments:
    words: tuple[str, ...] = ()
    is_json: bool = False
    inner: Statement | None = None


def parse_line(text: str, escape: str, *, depth: int = 0) -> Statement:
    """Split a logical line.

    Raises:
        DockerfileError: not in the form that the instruction asks for.
    """
    parts = _BLANKS.split(text.strip(SPACE), maxsplit=1)
    flags, rest = _split_flags(parts[1], escape) if len(parts) == 2 else ((), "")
    rest = rest.strip(SPACE)
    keyword = parts[0]
    if keyword.lower() == "onbuild":
        arguments = _onbuild(rest, escape, depth)
    else:
        parse = _BY_INSTRUCTION.get(keyword.lower(), _ignore)
        arguments = parse(rest, escape)
    return Statement(
        keyword=keyword,
        text=text,
        flags=flags,
        args=arguments.words,
        is_json=arguments.is_json,
        inner=arguments.inner,
    )


def _split_flags(line: str, escape: str) -> tuple[tuple[str, ...], str]:
    """Take the leading ``--`` words off; return them and the rest of the line."""
    flags: list[str] = []
    position, size = 0, len(line)
    while True:
        while position < size and line[position] in SPACES:
            position += 1
        if not line.startswith("--", position):
            return tuple(flags), line[position:]
        word, position = _flag_word(line, position, escape)
        if word == "--":
            return tuple(flags), line[position:]
        flags.append(word)


def _flag_word(line: str, position: int, escape: str) -> tuple[str, int]:
    """Read one flag; return it without its quotes, and where it ends."""
    out: list[str] = []
    open_quote = ""
    while position < len(line):
        plain = _PLAIN.match(line, position)
        if plain is not None:
            out.append(plain[0])
            position = plain.end()
            continue
        char = line[position]
        if not open_quote and char in SPACES:
            break
        position += 1
        if open_quote == char:
            open_quote = ""
        elif not open_quote and char in {"'", '"'}:
            open_quote = char
        elif char == escape:
            if position < len(line):
                out.append(line[position])
                position += 1
        else:
            out.append(char)
    return "".join(out), position


def split_quoted(text: str, escape: str) -> list[str]:
    """Split at white space outside quotes; quotes and escapes stay in the words."""
    if escape not in text and "'" not in text and '"' not in text:
        return split_words(text)
    words: list[str] = []
    position, size = 0, len(text)
    while True:
        while position < size and text[position] in SPACES:
            position += 1
        if position >= size:
            return words
        word, position = _quoted_word(text, position, escape)
        if word:
            words.append(word)


def _quoted_word(text: str, position: int, escape: str) -> tuple[str, int]:
    out: list[str] = []
    open_quote = ""
    while position < len(text):
        plain = _PLAIN.match(text, position)
        if plain is not None:
            out.append(plain[0])
            position = plain.end()
            continue
        char = text[position]
        if not open_quote and char in SPACES:
            break
        position += 1
        if open_quote == char:
            open_quote = ""
        elif char == escape and open_quote != "'":
            if position >= len(text):
                break  # an escape character at the very end is dropped
            out.append(char)
            char = text[position]
            position += 1
        elif not open_quote and char in {"'", '"'}:
            open_quote = char
        out.append(char)
    return "".join(out), position


def _ignore(_rest: str, _escape: str) -> _Arguments:
    return _Arguments()


def _one_string(rest: str, _escape: str) -> _Arguments:
    return _Arguments((rest,) if rest else ())


def _blank_separated(rest: str, _escape: str) -> _Arguments:
    return _Arguments(tuple(_BLANKS.split(rest)) if rest else ())


def _quoted_words(rest: str, escape: str) -> _Arguments:
    return _Arguments(tuple(split_quoted(rest, escape)))


def _json_or_string(rest: str, escape: str) -> _Arguments:
    strings = parse_json_strings(rest)
    return _one_string(rest, escape) if strings is None else _Arguments(strings, is_json=True)


def _json_or_words(rest: str, escape: str) -> _Arguments:
    strings = parse_json_strings(rest)
    if strings is None:
        return _blank_separated(rest, escape)
    return _Arguments(strings, is_json=True)


def _healthcheck(rest: str, escape: str) -> _Arguments:
    end = next((i for i, char in enumerate(rest) if char in SPACES), len(rest))
    if end == 0:
        return _Arguments()
    command = _json_or_string(rest[end:].lstrip(SPACE), escape)
    return _Arguments((rest[:end], *command.words), command.is_json)


def _onbuild(rest: str, escape: str, depth: int) -> _Arguments:
    if not rest:
        return _Arguments()
    if depth >= _MAX_ONBUILD:
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    inner = parse_line(rest, escape, depth=depth + 1)
    return _Arguments((inner.keyword, *inner.args), inner=inner)


def _pairs(name: str) -> Callable[[str, str], _Arguments]:
    """ENV and LABEL: triples of key, value and the ``=`` ("" in the legacy form)."""

    def parse(rest: str, escape: str) -> _Arguments:
        words = split_quoted(rest, escape)
        if not words:
            return _Arguments()
        if "=" not in words[0]:
            parts = _BLANKS.split(rest, maxsplit=1)
            if len(parts) < 2:
                raise DockerfileError(
                    f"{name} must have two arguments",
                    token=rest,
                    hint=f"write {name} {parts[0]}=value",
                )
            return _Arguments((parts[0], parts[1], ""))
        triples: list[str] = []
        for word in words:
            key, separator, value = word.partition("=")
            if not separator:
                raise DockerfileError(
                    f"Syntax error - can't find = in {quote(word)}."
                    " Must be of the form: name=value",
                    token=word,
                    hint="put a value that has spaces in quotes",
                )
            triples += (key, value, "=")
        return _Arguments(tuple(triples))

    return parse


def parse_json_strings(text: str) -> tuple[str, ...] | None:
    """Read a JSON array of strings; None if the text is no JSON array.

    Raises:
        DockerfileError: an array, but not of strings only.
    """
    text = text.lstrip(SPACE)
    if not text.startswith("["):
        return None
    not_strings = DockerfileError(
        "when using JSON array syntax, arrays must be comprised of strings only", token=text
    )
    try:
        items = json.loads(
            text, parse_int=_number, parse_float=_number, parse_constant=_no_constant
        )
    except RecursionError:
        raise not_strings from None
    except ValueError:
        return None
    if not all(isinstance(item, str) for item in items):
        raise not_strings
    return tuple(_LONE_SURROGATES.sub("\ufffd", item) for item in items)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("number out of range")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


_BY_INSTRUCTION: dict[str, Callable[[str, str], _Arguments]] = {
    "add": _json_or_words,
    "arg": _quoted_words,
    "cmd": _json_or_string,
    "copy": _json_or_words,
    "entrypoint": _json_or_string,
    "env": _pairs("ENV"),
    "expose": _blank_separated,
    "from": _blank_separated,
    "healthcheck": _healthcheck,
    "label": _pairs("LABEL"),
    "maintainer": _one_string,
    "run": _json_or_string,
    "shell": _json_or_string,
    "stopsignal": _one_string,
    "user": _one_string,
    "volume": _json_or_words,
    "workdir": _one_string,
}
INSTRUCTIONS = tuple(sorted([name.upper() for name in _BY_INSTRUCTION] + ["ONBUILD"]))
