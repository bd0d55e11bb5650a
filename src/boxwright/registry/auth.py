"""Registry authentication: challenges, bearer tokens, basic credentials.

The token flow is that of the distribution specification's "token" document: an anonymous
request is answered 401 with ``WWW-Authenticate: Bearer realm=…,service=…,scope=…``; the token
server is asked with the credentials (if any), and the token is kept until it expires.
Credentials come from an :class:`AuthSource`, in the daemon the client's own session, so that
they never rest on the daemon's disk.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from boxwright.core.dataclass import dataclass, field

_MINIMUM_LIFE_S = 60.0
_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME = re.compile(rf"[\s,]*({_WORD})(?:\s+|(?=,)|\Z)")
_PARAMETER = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))[\s,]*')


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and its secret; an empty user with a secret is an identity token."""

    username: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and when it was issued and how long it lives, in seconds."""

    value: str = field(repr=False)
    expires_in_s: float = _MINIMUM_LIFE_S


class AuthSource(Protocol):
    """Where credentials come from."""

    async def credentials(self, host: str) -> Credentials | None:
        """Return the credentials for ``host``, or None to stay anonymous."""
        ...

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Let the credentials' owner fetch the token itself; None: we fetch it."""
        ...


class AnonymousAuth:
    """No credentials for anyone."""

    async def credentials(self, host: str) -> Credentials | None:
        """Return None."""
        return None

    async def fetch_token(
        self,
        host: str,
        realm: str,
        service: str,
        scopes: Sequence[str],
    ) -> Token | None:
        """Return None: the caller fetches an anonymous token."""
        return None


class StaticAuth(AnonymousAuth):
    """The same credentials for the given hosts."""

    def __init__(self, credentials: Mapping[str, Credentials]) -> None:
        self._credentials = dict(credentials)

    async def credentials(self, host: str) -> Credentials | None:
        """Return what was given for ``host``."""
        return self._credentials.get(host)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One ``WWW-Authenticate`` challenge (RFC 9110 section 11.3)."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Read the challenges of the given header values; what is not understood is left out.

    One value may hold several challenges (RFC 9110 section 11.6.1): what is followed by ``=``
    is a parameter of the last one, anything else begins the next.
    """
    found: list[Challenge] = []
    for header in headers:
        position = 0
        parameters: dict[str, str] = {}
        while position < len(header):
            parameter = _PARAMETER.match(header, position)
            scheme = None if parameter else _SCHEME.match(header, position)
            if parameter:
                name, quoted, bare = parameter.groups()
                value = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(name.lower(), value)
                position = parameter.end()
            elif scheme:
                parameters = {}
                found.append(Challenge(scheme[1].lower(), parameters))
                position = scheme.end()
            else:
                break
    return found


class TokenCache:
    """Tokens by endpoint and scope; a token is dropped before it can expire on the way."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}

    def get(self, host: str, scope: str) -> str | None:
        """Return a token that still lives, or None."""
        value, deadline = self._tokens.get((host, scope), ("", 0.0))
        return value if time.monotonic() < deadline else None

    def put(self, host: str, scope: str, token: Token) -> None:
        """Keep ``token`` for nine tenths of its life."""
        life = max(token.expires_in_s, _MINIMUM_LIFE_S) * 0.9
        self._tokens[host, scope] = (token.value, time.monotonic() + life)

    def drop(self, host: str, scope: str, value: str) -> None:
        """Forget a token that the registry refused, unless a newer one has replaced it."""
        if self._tokens.get((host, scope), ("", 0.0))[0] == value:
            self._tokens.pop((host, scope), None)


def scope_for(repository: str, *, push: bool) -> str:
    """Return the scope string of one repository."""
    return f"repository:{repository}:{'pull,push' if push else 'pull'}"


def parse_token(data: object) -> Token | None:
    """Read a token server's JSON answer; None if it holds no token."""
    if not isinstance(data, dict):
        return None
    fields: dict[str, Any] = data
    value = fields.get("token") or fields.get("access_token")
    expires = fields.get("expires_in")
    life = float(expires) if isinstance(expires, int | float) else _MINIMUM_LIFE_S
    return Token(str(value), life) if value else None


def realm_is_safe(realm: str, endpoint_scheme: str) -> bool:
    """Return whether credentials may be sent to ``realm``: never from https down to http."""
    scheme = urlsplit(realm).scheme
    return scheme == "https" or (scheme == "http" and endpoint_scheme == "http")
