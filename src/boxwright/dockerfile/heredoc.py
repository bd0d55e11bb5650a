"""Here-documents: finding ``<<WORD`` in an instruction and reading what it means."""

from __future__ import annotations

import re

from boxwright.dockerfile.expand import ExpansionError, expand
from boxwright.dockerfile.syntax import Heredoc

_HEREDOC = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)\Z")
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)


def parse_heredoc(word: str) -> Heredoc | None:
    """Read one word such as ``<<EOF``, ``3<<-'END'``; None if it is no heredoc.

    Raises:
        ExpansionError: the delimiter's quotes don't close.
    """
    match = _HEREDOC.match(word)
    if match is None or not match[3]:
        return None
    delimiter = expand(match[3], {}, skip_unset=True).words
    if len(delimiter) != 1:
        return None
    raw = expand(match[3], {}, skip_unset=True, raw_quotes=True).words
    return Heredoc(
        name=delimiter[0],
        # Quotes that vanish were quotes, and then the body is literal.
        expand=len(raw) == 1 and _count_quotes(raw[0]) == _count_quotes(delimiter[0]),
        chomp=match[2] == "-",
        descriptor=int(match[1][:9] or "0"),
    )


def is_heredoc(word: str) -> Heredoc | None:
    """Like :func:`parse_heredoc`, but a malformed one is none."""
    try:
        return parse_heredoc(word)
    except ExpansionError:
        return None


def find_heredocs(line: str) -> tuple[Heredoc, ...]:
    """Return the heredocs that a logical line announces, in order, still without bodies.

    Raises:
        ExpansionError: a delimiter can't be read.
    """
    try:
        words = expand(line, {}, raw_quotes=True, raw_escapes=True, skip_unset=True).words
    except ExpansionError:
        # Quotes are the shell's business here; without words there are no heredocs.
        return ()
    return tuple(doc for word in words if (doc := parse_heredoc(word)) is not None)


def chomp(body: str) -> str:
    """Strip the leading tabs of each line, as ``<<-`` asks for."""
    return _LEADING_TABS.sub("", body)


def _count_quotes(text: str) -> int:
    return text.count("'") + text.count('"')
