"""What a download asks for."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.core.dataclass import dataclass, field


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What to ask for; ``login`` is the value of ``Authorization`` and never shown."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    login: str | None = field(default=None, repr=False)


def redacted(url: str) -> str:
    """Return a URL with the password of its user left out."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if not separator or not at or ":" not in user:
        return url
    return f"{scheme}://{user.partition(':')[0]}:xxxxx@{host}{slash}{path}"
