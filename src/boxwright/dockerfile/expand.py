"""Variable expansion and word splitting, as the Dockerfile reference defines them.

The rules are a subset of the POSIX shell's with some of its own; where the reference is
silent, this does what upstream's lexer does, oddities included, because images are built
on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from boxwright.core.dataclass import dataclass
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand_pattern import Pattern, PatternError
from boxwright.dockerfile.golang import SPACE, SPACES, quote, split_words

_SPECIAL_PARAMETERS = frozenset("@*#?-$!0")
_MAX_DEPTH = 100
"""Levels of ``${a:-${b:-…}}``; more can only be an attack on the stack."""
_TEMPLATE = re.compile(r"\$(?:(\$)|\w+|\{\w+\})")
_PIECES = re.compile(f"[{SPACE}]+|[^{SPACE}]+")
_BLANKS = frozenset("\t\r ")
_RUN = {
    "\\": re.compile(f"[^$<'\"}}/\\\\{SPACE}]+"),
    "`": re.compile(f"[^$<'\"}}/`{SPACE}]+"),
}
"""By escape character: characters that mean nothing anywhere, to be taken in one go."""
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class ExpansionError(DockerfileError):
    """A word whose quotes or braces don't close, or whose ``${x:?}`` demands a value.

    Attributes:
        unmatched: Variables that were not found before it failed.
    """

    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expansion:
    """What became of a word.

    Attributes:
        text: The word with variables replaced and quotes removed.
        words: The same, split at white space that was not quoted, after replacement.
        matched: Variables that were found, in order of first use.
        unmatched: Variables that were not, in order of first use.
    """

    text: str
    words: tuple[str, ...]
    matched: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def expand(
    word: str,
    env: Mapping[str, str],
    *,
    escape: str = "\\",
    raw_quotes: bool = False,
    raw_escapes: bool = False,
    skip_quotes: bool = False,
    skip_unset: bool = False,
) -> Expansion:
    """Expand ``word``.

    Args:
        word: Text as written in an instruction.
        env: Values by variable name.
        escape: The file's escape character.
        raw_quotes: Keep quote characters in the result.
        raw_escapes: Keep escape characters in the result.
        skip_quotes: Quotes have no meaning (the bodies of heredocs).
        skip_unset: Leave references to unset variables as they are.

    Raises:
        ExpansionError: see the class; it carries no location yet.
    """
    if not word.isascii():
        word = _LONE_SURROGATES.sub("\ufffd", word.removeprefix("\ufeff"))
    if _is_plain(word, escape, skip_quotes=skip_quotes):
        return Expansion(word, tuple(split_words(word)))
    lexer = _Lexer(word, env, escape)
    lexer.raw_quotes = raw_quotes
    lexer.raw_escapes = raw_escapes
    lexer.skip_quotes = skip_quotes
    lexer.skip_unset = skip_unset
    try:
        text, words = lexer.run(None, raw_escapes=raw_escapes)
    except _LexError as error:
        shown = word if len(word) <= 1000 else word[:1000] + "…"
        failure = ExpansionError(f"failed to process {quote(shown)}: {error}", token=word)
        failure.unmatched = tuple(lexer.unmatched)
        raise failure from None
    return Expansion(text, tuple(words), tuple(lexer.matched), tuple(lexer.unmatched))


def _is_plain(word: str, escape: str, *, skip_quotes: bool) -> bool:
    if "$" in word or escape in word or "<<" in word:
        return False
    return skip_quotes or ("'" not in word and '"' not in word)


class _LexError(Exception):
    pass


class _TooDeepError(_LexError):
    pass


class _Words:
    """Collects words; the pending one lives in a buffer that nested runs share.

    Sharing it means that ``a${b:-c}`` gives the word ``c`` where the text is ``ac``. That
    is a flaw of upstream, but EXPOSE is defined by it and images must come out the same.
    """

    __slots__ = ("buffer", "inside", "words")

    def __init__(self, buffer: list[str]) -> None:
        self.buffer = buffer
        self.words: list[str] = []
        self.inside = False

    def add(self, text: str) -> None:
        for piece in _PIECES.findall(text):
            if piece[0] not in SPACES:
                self.buffer.append(piece)
                self.inside = True
            elif self.inside and self.buffer:
                self._flush()

    def add_raw(self, text: str) -> None:
        if text:
            self.buffer.append(text)
        self.inside = True

    def take(self) -> list[str]:
        if self.buffer:
            self._flush()
        return self.words

    def _flush(self) -> None:
        self.words.append("".join(self.buffer))
        self.buffer.clear()
        self.inside = False


class _Lexer:
    def __init__(self, text: str, env: Mapping[str, str], escape: str) -> None:
        self.text = text
        self.at = 0
        self.env = env
        self.escape = escape
        self._run_pattern = _RUN[escape]
        self.raw_quotes = self.raw_escapes = self.skip_quotes = self.skip_unset = False
        self.matched: dict[str, None] = {}
        self.unmatched: dict[str, None] = {}
        self._buffer: list[str] = []
        self._depth = 0

    def run(self, stop: str | None, *, raw_escapes: bool) -> tuple[str, list[str]]:
        """Process up to ``stop`` (consumed), or to the end; return text and words."""
        outer = self.raw_escapes
        self.raw_escapes = raw_escapes
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _TooDeepError(f"substitutions nested more than {_MAX_DEPTH} deep")
        self._buffer.clear()
        words = _Words(self._buffer)
        result: list[str] = []
        try:
            while self.at < len(self.text):
                char = self.text[self.at]
                if char == stop:
                    self.at += 1
                    return "".join(result), words.take()
                plain = self._run_pattern.match(self.text, self.at)
                if plain is not None:
                    self.at = plain.end()
                    words.add_raw(plain[0])
                    result.append(plain[0])
                    continue
                special = self._special(char)
                if special is not None:
                    piece = special()
                    result.append(piece)
                    (words.add if char == "$" else words.add_raw)(piece)
                else:
                    self._plain(char, result, words)
        finally:
            self.raw_escapes = outer
            self._depth -= 1
        if stop is not None:
            raise _LexError(f"unexpected end of statement while looking for matching {stop}")
        return "".join(result), words.take()

    def _special(self, char: str) -> Callable[[], str] | None:
        if char == "$":
            return self._dollar
        if char == "<":
            return self._possible_heredoc
        if char == "'" and not self.skip_quotes:
            return self._single_quoted
        if char == '"' and not self.skip_quotes:
            return self._double_quoted
        return None

    def _plain(self, char: str, result: list[str], words: _Words) -> None:
        self.at += 1
        if char != self.escape:
            words.add(char)
            result.append(char)
            return
        if self.raw_escapes:
            words.add_raw(char)
            result.append(char)
        following = self._next()
        if following:
            words.add_raw(following)
            result.append(following)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _next(self) -> str:
        char = self.text[self.at : self.at + 1]
        self.at += len(char)
        return char

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            self.at = len(self.text)
            raise _LexError("unexpected end of statement while looking for matching single-quote")
        start, self.at = self.at, end + 1
        return self.text[start : end + 1] if self.raw_quotes else self.text[start + 1 : end]

    def _double_quoted(self) -> str:
        opening = self._next()
        out = [opening] if self.raw_quotes else []
        while True:
            char = self._peek()
            if not char:
                raise _LexError(
                    "unexpected end of statement while looking for matching double-quote"
                )
            if char == '"':
                self.at += 1
                if self.raw_quotes:
                    out.append(char)
                return "".join(out)
            if char == "$":
                out.append(self._dollar())
                continue
            self.at += 1
            if char == self.escape:
                if self.raw_escapes:
                    out.append(char)
                following = self._peek()
                if not following:
                    continue
                if following in {'"', "$", self.escape}:
                    # Any other escape character inside double quotes stays.
                    char = following
                    self.at += 1
            out.append(char)

    def _possible_heredoc(self) -> str:
        """Keep ``<<`` and the blanks after it in one word with the delimiter that follows."""
        self.at += 1
        if self._peek() != "<":
            return "<"
        self.at += 1
        start = self.at
        while self._peek() in _BLANKS:
            self.at += 1
        return "<<" + self.text[start : self.at]

    def _name(self) -> str:
        start = self.at
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self.at += 1
            return self.text[start : self.at]
        if first in _SPECIAL_PARAMETERS:
            self.at += 1
            return first
        while (char := self._peek()) and (char == "_" or char.isalpha() or char.isdecimal()):
            self.at += 1
        return self.text[start : self.at]

    def _lookup(self, name: str) -> str | None:
        value = self.env.get(name)
        (self.unmatched if value is None else self.matched)[name] = None
        return value

    def _dollar(self) -> str:
        self.at += 1
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._lookup(name)
            if value is None:
                return f"${name}" if self.skip_unset else ""
            return value
        self.at += 1
        following = self._peek()
        if not following:
            raise _LexError("syntax error: missing '}'")
        if following in {"{", "}", ":"}:
            raise _LexError("syntax error: bad substitution")
        return self._braced(self._name())

    def _braced(self, name: str) -> str:
        modifier = char = self._next()
        if char == "}":
            value = self._lookup(name)
            if value is None:
                return f"${{{name}}}" if self.skip_unset else ""
            return value
        if char == "/":
            return self._replace(name)
        if char == ":":
            char = self._next()
            modifier += char
        elif char not in set("+-?#%"):
            self._bad_modifier(modifier)
        trims = char in {"#", "%"}
        if trims and modifier[0] == ":":
            self._bad_modifier(modifier)
        word = self._operand("}", raw_escapes=trims, missing="'}'")
        value = self._lookup(name)
        if value is None and self.skip_unset:
            return f"${{{name}{modifier}{word}}}"
        if trims:
            return _trim(char, word, value or "")
        return self._choose(name, modifier, word, value)

    def _choose(self, name: str, modifier: str, word: str, value: str | None) -> str:
        absent = value is None or (modifier[0] == ":" and not value)
        operation = modifier[-1]
        if operation == "-":
            return word if absent else value or ""
        if operation == "+":
            return "" if absent else word
        if operation != "?":
            self._bad_modifier(modifier)
        if absent:
            state = "unset" if value is None else "empty"
            raise _LexError(f"{name}: {word or f'is not allowed to be {state}'}")
        return value or ""

    def _replace(self, name: str) -> str:
        every = self._peek() == "/"
        self.at += every
        pattern = self._operand("/", raw_escapes=True, missing="'/' in ${}")
        replacement = self._operand("}", raw_escapes=True, missing="'}'")
        value = self._lookup(name)
        if value is None and self.skip_unset:
            return f"${{{name}/{pattern}/{replacement}}}"
        parsed = _parse_pattern(pattern)
        if every:
            # The replacement of all is a template without groups: $$ is $, $name nothing.
            replacement = _TEMPLATE.sub(lambda m: m[1] or "", replacement)
        return parsed.substitute(value or "", replacement, every=every)

    def _operand(self, stop: str, *, raw_escapes: bool, missing: str) -> str:
        try:
            return self.run(stop, raw_escapes=raw_escapes)[0]
        except _TooDeepError:
            raise
        except _LexError:
            if self.at < len(self.text):
                raise
            raise _LexError(f"syntax error: missing {missing}") from None

    def _bad_modifier(self, modifier: str) -> NoReturn:
        if not modifier:
            raise _LexError("syntax error: missing '}'")
        raise _LexError(f"unsupported modifier ({modifier}) in substitution")


def _parse_pattern(text: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except PatternError as error:
        raise _LexError(f"invalid pattern ({text}) in substitution: {error}") from None


def _trim(char: str, word: str, value: str) -> str:
    longest = word.startswith(char)
    pattern = _parse_pattern(word[1:] if longest else word)
    if char == "#":
        end = pattern.prefix_end(value, longest=longest)
        return value if end is None else value[end:]
    start = pattern.suffix_start(value, longest=longest)
    return value if start is None else value[:start]
