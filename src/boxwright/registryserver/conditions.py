"""Conditional and range requests on content that has a digest (RFC 9110, sections 13 and 14).

The entity tag of content is its digest in quotes: the same at every registry that has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError

_TAG = re.compile(r'(W/)?"([^"]*)"')
_ANY = "*"
# One range that asks for something: all others are better answered with the whole.
_RANGE = re.compile(r"bytes=(?:\d+-\d*|-0*[1-9]\d*)", re.ASCII | re.IGNORECASE)


class PreconditionFailedError(BoxwrightError):
    """What is there is not what a conditional request is for."""


def entity_tag(digest: str) -> str:
    """Return the entity tag of the content that has this digest."""
    return f'"{digest}"'


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be there (``match``) and what must not, as digests; None: no such header."""

    match: frozenset[str] | None = None
    none_match: frozenset[str] | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Self:
        """Read a request's conditions."""
        return cls(
            _digests(headers.get("If-Match"), weak=False),
            _digests(headers.get("If-None-Match"), weak=True),
        )

    def check_match(self, digest: str | None) -> None:
        """Compare with what is there, None: nothing.

        Raises:
            PreconditionFailedError: it is not what the request names.
        """
        if self.match is not None and not _is_among(digest, self.match):
            raise PreconditionFailedError("the content is not what If-Match says")

    def check_write(self, digest: str | None) -> None:
        """Compare with what is about to be changed, None: nothing.

        Raises:
            PreconditionFailedError: it is not what the request is for.
        """
        self.check_match(digest)
        if self.is_known(digest):
            raise PreconditionFailedError("the content is what If-None-Match excludes")

    def is_known(self, digest: str | None) -> bool:
        """Return whether the client has said that it knows what is there."""
        return self.none_match is not None and _is_among(digest, self.none_match)


ANYTHING = Condition()


def _digests(header: str | None, *, weak: bool) -> frozenset[str] | None:
    if header is None:
        return None
    if header.strip() == _ANY:
        return frozenset([_ANY])
    return frozenset(tag for mark, tag in _TAG.findall(header) if weak or not mark)


def _is_among(digest: str | None, wanted: frozenset[str]) -> bool:
    return digest is not None and (digest in wanted or _ANY in wanted)


def is_range_for(headers: Mapping[str, str], digest: str) -> bool:
    """Return whether a GET request is to be answered with the one part that it asks for.

    Several ranges, other units and what can't be read are ignored, as is a range of something
    else than this content.
    """
    if not _RANGE.fullmatch(headers.get("Range", "").strip()):
        return False
    return headers.get("If-Range", entity_tag(digest)).strip() == entity_tag(digest)
