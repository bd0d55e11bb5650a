"""Packages as every kind of evidence describes them, and their package URLs."""

from __future__ import annotations

import re
from urllib.parse import quote

from boxwright.core.dataclass import dataclass, field

_LICENSE = re.compile(r"[A-Za-z0-9.+-]+")
_OPERATORS = frozenset({"AND", "OR", "WITH"})


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package.

    Attributes:
        kind: ``deb``, ``apk``, ``pypi``, ``npm`` or ``golang``, as package URLs name it.
        namespace: Before the name in the package URL (distribution, scope); may be empty.
        license: An SPDX expression; empty if there is none.
        supplier: ``Organization: …`` or ``Person: …``; empty if unknown.
        source: The path in the tree that tells of it.
        qualifiers: More parts of the package URL.
    """

    kind: str
    name: str
    version: str
    namespace: str = ""
    license: str = ""
    supplier: str = ""
    source: str = ""
    qualifiers: tuple[tuple[str, str], ...] = field(default=())

    @property
    def url(self) -> str:
        """The package URL (purl-spec)."""
        parts = [part for part in self.namespace.split("/") if part]
        path = "/".join(quote(part, safe="-_.~+") for part in (*parts, *self._names()))
        version = f"@{quote(self.version, safe='-_.~:')}" if self.version else ""
        more = "&".join(f"{k}={quote(v, safe='-_.~')}" for k, v in self.qualifiers if v)
        return f"pkg:{self.kind}/{path}{version}" + (f"?{more}" if more else "")

    def _names(self) -> list[str]:
        return [part for part in self.name.split("/") if part]


@dataclass(frozen=True, slots=True)
class Distribution:
    """What the tree's ``os-release`` says it is; empty if there is none."""

    id: str = ""
    version: str = ""

    @property
    def qualifier(self) -> tuple[tuple[str, str], ...]:
        """The distribution as part of package URLs."""
        name = "-".join(part for part in (self.id, self.version) if part)
        return (("distro", name),) if name else ()


def spdx_license(text: str) -> str:
    """Return a licence that reads like an SPDX expression, else nothing."""
    words = text.replace("(", " ").replace(")", " ").split()
    if not words or words[0] in _OPERATORS or words[-1] in _OPERATORS:
        return ""
    for number, word in enumerate(words):
        if (word in _OPERATORS) != bool(number % 2) or not _LICENSE.fullmatch(word):
            return ""
    return text.strip()


def plain(text: str) -> str:
    """Return text on one line without control characters."""
    return "".join(char if char.isprintable() else " " for char in text).strip()
