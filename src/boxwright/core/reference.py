"""Image references as Docker writes and reads them (distribution's reference grammar)."""

from __future__ import annotations

import re

from boxwright.core.dataclass import dataclass, replace
from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"\w[\w.-]{0,127}\Z", re.ASCII)
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?\Z"
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}\Z")
_MAX_PATH = 255
DEFAULT_HOST = "docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """A full reference: registry host, repository path, and a tag, a digest, or both."""

    host: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """The repository with its host, without tag and digest."""
        return f"{self.host}/{self.path}"

    def __str__(self) -> str:
        """Return the full form, ``docker.io/library/debian:12``."""
        text = self.name
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text

    @property
    def familiar(self) -> str:
        """The short form that Docker prints, ``debian:12``."""
        text = str(self)
        text = text.removeprefix(f"{DEFAULT_HOST}/library/")
        return text.removeprefix(f"{DEFAULT_HOST}/")

    def with_digest(self, digest: Digest) -> Reference:
        """Return this reference pinned to ``digest``."""
        return replace(self, digest=digest)

    def with_default_tag(self) -> Reference:
        """Return this reference with ``latest`` where neither tag nor digest is given."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference in full or familiar form; no tag is added.

        Raises:
            InvalidInputError: it is not a reference (upper case, empty part, bad tag …).
        """
        if _IDENTIFIER.match(text):
            raise InvalidInputError(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings",
                hint="an image id is no name; give the image a tag",
            )
        rest, at, digest_text = text.partition("@")
        digest = Digest(digest_text) if at else None
        tag = ""
        head, colon, tail = rest.rpartition(":")
        if colon and "/" not in tail:
            rest, tag = head, tail
        first, slash, remainder = rest.partition("/")
        has_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
        if slash and has_host:
            host, path = first, remainder
        else:
            host, path = DEFAULT_HOST, rest
        if host == "index.docker.io":
            host = DEFAULT_HOST
        if host == DEFAULT_HOST and "/" not in path:
            path = f"library/{path}"
        if path != path.lower():
            detail = f"repository name ({path}) must be lowercase"
            raise InvalidInputError("invalid reference format", detail=detail)
        if colon and "/" not in tail and not _TAG.match(tag):
            raise InvalidInputError("invalid reference format", detail=f"tag {tag!r}")
        if len(path) > _MAX_PATH:
            raise InvalidInputError(
                f"repository name must not be more than {_MAX_PATH} characters"
            )
        if not _HOST.match(host):
            raise InvalidInputError("invalid reference format", detail=f"registry {host!r}")
        if not path or not all(_COMPONENT.match(part) for part in path.split("/")):
            raise InvalidInputError("invalid reference format", detail=repr(text))
        return cls(host, path, tag, digest)
